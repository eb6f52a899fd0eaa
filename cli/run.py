"""`fedhelp run`: the whole pipeline on this machine, with progress, a table at the end and the commands to look further.

What components print goes to a log beside the store; people see rounds. Called by main.py.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fedhelp_cli.run_ending import Ending
from fedhelp_cli.run_form import form_of
from fedhelp_cli.run_progress import RunProgress, console, watched
from fedhelp_components.check.__main__ import problems_of, raise_all
from fedhelp_components.session import logs_folder
from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.crashes import crashes_kept_in
from fedhelp_core.errors import FedHelpError, JobFailed
from fedhelp_core.printable import one_line
from fedhelp_core.registry.tasks import DEFAULT_PRESET
from fedhelp_dispatch.process import start_ahead


def prepared_demo(folder: Path, task: str | None = None) -> Path:
    """The demo's federation.yaml, its input made first where it is not there yet."""
    with _steps("demo input") as say:
        from fedhelp_core.demo.prepare import prepare_demo  # seconds on a cold disk, and somebody waits for a sign

        paths = prepare_demo(folder.resolve(), task=task or DEFAULT_PRESET, progress=say)
        say(f"ready in {folder}")
    return paths.federation


@contextlib.contextmanager
def _steps(of: str) -> Iterator[Callable[[str], None]]:
    """Gives what shows the step that is being done: beside a spinner, or in a log as a line for each kind of step, whatever it counts."""
    since, said = time.monotonic(), set[str]()

    def line(what: str) -> None:
        kind = re.sub(r" ?\d+/\d+", "", what)
        if kind not in said:
            said.add(kind)
            console.print(f"[{time.monotonic() - since:5.1f} s] {of}: {kind}", highlight=False, markup=False)

    if not watched():
        line("begun")
        yield line
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task(of)
        yield lambda what: progress.update(bar, description=f"{of}: {what}")


def default_run_id(federation: Federation) -> str:
    """Name and hash of the config: the same config again means the same run."""
    return f"{federation.name}-{federation.digest()[:8]}"


def run_locally(
    path: Path, *, run_id: str | None, changes: Mapping[str, Any], dry_run: bool, through_kfp: bool = False, show: bool = False,
) -> None:
    """Run fedhelp-compact for the federation at `path`, with `changes` to it, in this process or `through_kfp`; `show` its report at the end.

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
    else:
        _run_pipeline(federation, name, ending.log, _through_kfp if through_kfp else _in_this_process)
        ending.tell()
    if show:
        from fedhelp_cli.open_page import open_report

        open_report(path, name)


def _print_plan(federation: Federation, run_id: str) -> None:
    console.print(f"run {run_id}: check -> soft_label_prefetch -> federation ({federation.algorithm.rounds} rounds, "
                  f"{len(federation.silos)} silos, method {federation.algorithm.method}) -> evaluation -> promotion")
    print(federation.to_yaml(), end="")
    if federation.silos_in_clusters:
        from fedhelp_dispatch.plan import planned_objects

        for planned in planned_objects(federation, run_id):
            print("---\n" + yaml.safe_dump(planned, sort_keys=False), end="")


def _run_pipeline(federation: Federation, run_id: str, log_path: Path, run_pipeline: Callable[[Federation, str, Path], object]) -> None:
    progress = RunProgress(federation, run_id, log=log_path, workers=logs_folder(federation, run_id))
    with log_path.open("a", encoding="utf-8") as log, progress:
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
