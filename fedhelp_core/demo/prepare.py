"""A demo's input: drawn hospitals, drawn public images, a trained teacher, and the files that describe them.

    <folder>/data/             the task's own layout (see data/phantom/)
    <folder>/public/           unlabelled images of other classes
    <folder>/teacher/          MLflow pyfunc
    <folder>/federation.yaml   what the hub knows
    <folder>/silos/*.yaml      what each hospital knows; state under <folder>/silos/<name>/
    <folder>/store/            made by runs: models, MLflow, report

Made once; what is there is used again. Called by `fedhelp run --demo`, `fedhelp simulate --demo` and `fedhelp data phantom`.
What differs from task to task is in tasks.py.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import yaml

from fedhelp_core.demo.tasks import DrawnTask, drawn_task
from fedhelp_core.disk import atomic_write
from fedhelp_core.errors import ConfigError

_FORMAT = "fedhelp-demo/4"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class DemoPaths:
    """Where the demo lies."""

    folder: Path

    @property
    def federation(self) -> Path:
        """federation.yaml."""
        return self.folder / "federation.yaml"


def prepare_demo(folder: Path, *, task: str = "melanoma", seed: int = 1, progress: Progress | None = None) -> DemoPaths:
    """Make what is missing of the demo in `folder`; each part appears whole or not at all.

    Raises:
        ConfigError: `folder` holds something else, or there is no demo of `task`.
    """
    say = progress or (lambda _what: None)
    drawn = drawn_task(task)
    paths, mark = DemoPaths(folder), folder / ".fedhelp-demo"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise ConfigError(f"{folder}: is not empty and no demo of this version; give another folder, or delete this one")
    folder.mkdir(parents=True, exist_ok=True)
    identity = _FORMAT if task == "melanoma" else f"{_FORMAT} {task}"  # the first demo's mark named no task
    if mark.exists() and mark.read_text(encoding="utf-8") != identity:
        raise ConfigError(
            f"{folder}: holds {mark.read_text(encoding='utf-8')!r}, expected {identity!r} (format, task); delete the folder, or give another")
    mark.write_text(identity, encoding="utf-8")
    public = drawn.public
    with _drawn_beside(folder, task, seed, say):
        _once(folder / "public", lambda path: public.write(path, count=drawn.public_images, seed=seed, progress=say))
        _once(folder / "teacher", lambda path: _write_teacher(path, task, drawn, say))
    (folder / "silos").mkdir(exist_ok=True)
    for number, silo in enumerate(drawn.silos):
        _once(folder / "silos" / f"{silo}.yaml", partial(_write_yaml, head=_SILO_HEAD, document=silo_document(drawn, number)))
    _once(paths.federation, partial(_write_yaml, head=_FEDERATION_HEAD, document=federation_document(drawn)))
    return paths


def federation_document(drawn: DrawnTask) -> dict[str, object]:
    """federation.yaml of a demo: the paper's algorithm, scaled to a laptop's two cores and a few minutes."""
    return {
        "version": 1,
        "name": "demo",
        "task": dict(drawn.task),
        "algorithm": {
            "method": "fedhelp", "rounds": 20, "batch_size": 4, "public_batch_size": 8,
            "public_steps": 8,  # a hospital of 8 images has 2 private batches a round, the paper's smallest 88: docs/results.md
            "proxy_model": "resnet8", "large_model": "resnet20", "large_silos": 2,
            "optimizer": {"learning_rate": 2e-3},  # fewer and longer steps than the paper's 50 rounds at 1e-3
            **drawn.algorithm,
        },
        "protocol": {"min_silos": max(1, len(drawn.silos) - 2), "round_deadline": 300.0},
        "evaluation": {"every": 2},
        "runtime": {"seed": 1, "threads": 1, "device": "auto"},
        "public_set": {
            "images": "public",
            "teachers": [{"name": "drawn", "kind": "mlflow", "uri": "teacher", "version": "1", "classes": drawn.public.answers}]},
        "store": {"url": "store"},
        "silos": [{"name": silo, **({"labelled": list(drawn.labelled[silo])} if silo in drawn.labelled else {}),
                   "dispatch": {"kind": "process", "silo_config": f"silos/{silo}.yaml"}} for silo in drawn.silos],
    }


def silo_document(drawn: DrawnTask, number: int) -> dict[str, object]:
    """silo.yaml of one drawn hospital."""
    return {"version": 1, "name": drawn.silos[number], "data": drawn.silo_data(number), "state": drawn.silos[number]}


_FEDERATION_HEAD = "# What the hub knows of the demo. Every field and its default: docs/configuration.md. Change and run again.\n"
_SILO_HEAD = "# What this hospital knows about itself. Never leaves it.\n"


def _once(path: Path, make: Callable[[Path], None]) -> None:
    """`make` under another name, then rename: a demo that was interrupted goes on here."""
    if not path.exists():
        with atomic_write(path) as scratch:
            make(scratch)


@contextmanager
def _drawn_beside(folder: Path, task: str, seed: int, say: Progress) -> Iterator[None]:
    """The hospitals' images, drawn by a second process meanwhile: drawing holds the interpreter's lock for most of its time."""
    if (folder / "data").exists():
        yield
        return
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_draw_hospitals, args=(folder, task, seed, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield
        say("hospital images")
        failed = ours.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        raise ConfigError(f"{folder / 'data'}: the process that draws its images ended with exit {code}; the same command goes on") from None
    finally:
        process.terminate()
        process.join()
    if failed is not None:
        raise failed


def _draw_hospitals(folder: Path, task: str, seed: int, answer: Connection) -> None:
    """In the second process; `answer` gets the error, or None."""
    for ending in (signal.SIGINT, signal.SIGTERM):  # what the parent's own handlers are told says enough
        signal.signal(ending, signal.SIG_DFL)
    try:
        _once(folder / "data", lambda path: drawn_task(task).write(path, seed, lambda _what: None))
    except Exception as e:
        answer.send(e)
    else:
        answer.send(None)


def _write_yaml(path: Path, *, head: str, document: dict[str, object]) -> None:
    path.write_text(head + yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def _write_teacher(path: Path, name: str, drawn: DrawnTask, say: Progress) -> None:
    from fedhelp_core.demo.teacher import TEACHERS, save_teacher, save_weights_as_teacher, teachers_task, train_teacher_of

    task, known = teachers_task(drawn), TEACHERS / f"{name}.safetensors"
    say("teacher")
    if known.exists():
        save_weights_as_teacher(known, path, architecture=drawn.teacher, task=task)
    else:
        save_teacher(train_teacher_of(drawn, progress=say), path, architecture=drawn.teacher, task=task)
