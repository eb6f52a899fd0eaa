"""`fedhelp run`: the whole pipeline on this machine, with progress, a table at the end and the commands to look further.

What components print goes to a log beside the store; people see rounds. Called by main.py.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedhelp_cli.run_ending import Ending
from fedhelp_cli.run_form import form_of
from fedhelp_components.check.__main__ import problems_of, raise_all
from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.crashes import crashes_kept_in
from fedhelp_core.errors import FedHelpError, JobFailed, NotFound
from fedhelp_core.printable import one_line
from fedhelp_core.protocol.facts import Kinds, SoftLabels
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from fedhelp_dispatch.process import start_ahead

console = Console(stderr=True)
_LOOK = 0.25  # seconds between looks at the store for the progress bar


def prepared_demo(folder: Path, task: str = "melanoma") -> Path:
    """The demo's federation.yaml, its input made first where it is not there yet."""
    from fedhelp_core.demo.prepare import prepare_demo

    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=False) as progress:
        bar = progress.add_task("demo input")
        paths = prepare_demo(folder.resolve(), task=task, progress=lambda what: progress.update(bar, description=f"demo input: {what}"))
        progress.update(bar, description=f"demo input: ready in {folder}")
    return paths.federation


def default_run_id(federation: Federation) -> str:
    """Name and hash of the config: the same config again means the same run."""
    return f"{federation.name}-{federation.digest()[:8]}"


def run_locally(path: Path, *, run_id: str | None, changes: Mapping[str, Any], dry_run: bool, through_kfp: bool = False) -> None:
    """Run fedhelp-compact for the federation at `path`, with `changes` to it, in this process or `through_kfp`.

    Raises:
        FedHelpError: as the component that failed said it.
    """
    federation = load_federation(path).override(**changes)
    name = run_id or default_run_id(federation)
    if dry_run:
        raise_all(problems_of(federation))
        _print_plan(federation, name)
        return
    ending = Ending(path, federation, name, changes, work_folder(federation, name) / "pipeline.log")
    if ending.was_before():
        ending.tell_again()
        return
    _run_pipeline(federation, name, ending.log, _through_kfp if through_kfp else _in_this_process)
    ending.tell()


def _print_plan(federation: Federation, run_id: str) -> None:
    console.print(f"run {run_id}: check -> soft_label_prefetch -> federation ({federation.algorithm.rounds} rounds, "
                  f"{len(federation.silos)} silos, method {federation.algorithm.method}) -> evaluation -> promotion")
    print(federation.to_yaml(), end="")
    if federation.silos_in_clusters:
        from fedhelp_dispatch.plan import planned_objects

        for planned in planned_objects(federation, run_id):
            print("---\n" + yaml.safe_dump(planned, sort_keys=False), end="")


def _run_pipeline(federation: Federation, run_id: str, log_path: Path, run_pipeline: Callable[[Federation, str, Path], object]) -> None:
    with log_path.open("a", encoding="utf-8") as log, RunProgress(federation, run_id):
        try:
            with crashes_kept_in(log_path.parent, f"run {run_id}"), contextlib.redirect_stdout(log):
                run_pipeline(federation, run_id, log_path.parent / "artifacts")
        except FedHelpError as e:
            e.add_note(f"everything that it printed is in {log_path}")
            raise


def _in_this_process(federation: Federation, run_id: str, artifacts: Path) -> None:
    if federation.silos_here:
        start_ahead()  # before the imports below: PyTorch is then imported there and here at once
    from fedhelp_pipelines.in_process import run_in_process

    run_in_process(federation, run_id, artifacts)


def _through_kfp(federation: Federation, run_id: str, artifacts: Path) -> None:
    from fedhelp_pipelines.local import run_compact

    with tempfile.TemporaryDirectory(prefix="fedhelp-run-") as scratch:
        frozen = Path(scratch) / "federation.yaml"
        frozen.write_text(federation.to_yaml(), encoding="utf-8")
        try:
            run_compact({"federation": str(frozen), "run_id": run_id, **form_of(federation)}, artifacts)
        except RuntimeError as e:
            raise JobFailed(f"a task of the pipeline failed ({one_line(e)}); the same command goes on where it was") from e


def work_folder(federation: Federation, run_id: str) -> Path:
    """Where this machine keeps log and artifacts of a run."""
    store = federation.store.folder
    folder = Path("fedhelp-runs") / run_id if store is None else store / "local" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class RunProgress:
    """A progress bar fed from the store: the phase, then rounds. Lines instead of a bar where nobody watches a terminal."""

    def __init__(self, federation: Federation, run_id: str) -> None:
        self._federation = federation
        self._run_id = run_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="progress")
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal)
        self._task: TaskID = self._progress.add_task("check", total=federation.algorithm.rounds)
        self._said: set[str] = set()
        self._started = time.monotonic()
        self._ours = False

    def __enter__(self) -> RunProgress:
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.stop()

    def _loop(self) -> None:
        store = open_store(self._federation.store.url, endpoint_url=self._federation.store.endpoint_url)
        run = Run(store, self._run_id)
        stopped = False
        while not stopped:
            stopped = self._stop.wait(_LOOK)  # and a last look after that, for what has come since
            with contextlib.suppress(FedHelpError):
                self._look(store, run)

    def _look(self, store: Store, run: Run) -> None:
        commit = run.latest_commit() if self._is_ours(run) else None
        done, rounds = commit.round if commit is not None else 0, self._federation.algorithm.rounds
        if not self._ours:
            phase = "check: every silo looks at its data"
        elif done == rounds:
            phase = "evaluation and promotion"
        elif done or run.has_fact(SoftLabels):
            phase = "federation: rounds"
        elif run.has_fact(Kinds):
            phase = "soft labels from the teacher"
        else:
            phase = "check: every silo looks at its data"
        self._progress.update(self._task, description=phase, completed=done)
        if done < rounds:
            self._say_once(phase)
        if commit is not None and done and not console.is_terminal:
            from fedhelp_components.aggregation.__main__ import mean_loss

            self._say_once(f"round {done} of {rounds}: {len(commit.participants)} silos, mean loss {mean_loss(commit):.3f}")
        self._say_once(phase)  # evaluation: after the last round

    def _is_ours(self, run: Run) -> bool:
        """Whether the run was frozen with our config. Before that, what the store holds of it may be another's."""
        if not self._ours:
            with contextlib.suppress(NotFound):
                self._ours = run.federation_yaml() == self._federation.to_yaml()
        return self._ours

    def _say_once(self, line: str) -> None:
        if line not in self._said and not console.is_terminal:
            self._said.add(line)
            console.print(f"[{time.monotonic() - self._started:5.1f} s] {line}", highlight=False, markup=False)
