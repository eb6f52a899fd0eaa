"""A federation so small that tests can train it dozens of times, and real processes that train it.

The images are drawn in Fed-ISIC2019's own layout, the teacher is an MLflow pyfunc, models are
resnet8. Fixtures over this are in conftest.py; other folders of tests may import both.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.data.phantom.dermoscopy import Camera
from fedhelp_core.data.phantom.fed_isic import PUBLIC, Site, write_fed_isic
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.open import open_store
from fedhelp_core.tracking.models import save_pyfunc_from_code
from tests import warm

SILOS = ("aachen", "brno", "coimbra")
ROUNDS = 2
TEACHER_CLASSES = 5
_EVEN = (1, 1, 1, 1, 1, 1, 1, 1)
_SITES = (
    Site(train=12, test=8, mix=_EVEN, camera=Camera()),
    Site(train=8, test=8, mix=_EVEN, camera=Camera(red=1.06, blue=0.92)),
    Site(train=6, test=4, mix=_EVEN, camera=Camera(exposure=0.9)),
)


def draw_input(folder: Path) -> None:
    """`data/`, `public/` and `teacher/` below `folder`."""
    write_fed_isic(folder / "data", seed=7, sites=_SITES)
    PUBLIC.write(folder / "public", count=12, seed=7)
    write_teacher(folder / "teacher", classes=TEACHER_CLASSES)


def write_teacher(folder: Path, *, classes: int) -> None:
    """An MLflow pyfunc that answers with `classes` probabilities."""
    save_pyfunc_from_code(folder, code=Path(__file__).with_name("teacher_model.py"), artifacts={}, settings={"classes": classes})


def federation_document(drawn: Path) -> dict[str, Any]:
    """federation.yaml; the store and the silos' files lie beside it."""
    return {
        "name": "tiny",
        "task": {"image_size": 16},
        "algorithm": {
            "rounds": ROUNDS, "batch_size": 4, "public_batch_size": 4, "proxy_model": "resnet8", "large_model": "resnet8", "large_silos": 1},
        "protocol": {"min_silos": len(SILOS), "round_deadline": 120.0},
        "runtime": {"seed": 5, "device": "cpu"},
        "public_set": {
            "images": str(drawn / "public"),
            "teachers": [{"name": "drawn", "uri": str(drawn / "teacher"), "classes": TEACHER_CLASSES}]},
        "store": {"url": "store"},
        "silos": [{"name": silo, "dispatch": {"kind": "process", "silo_config": f"{silo}.yaml"}} for silo in SILOS],
    }


def silo_document(drawn: Path, silo: str) -> dict[str, Any]:
    """silo.yaml of `silo`; its state lies beside it."""
    return {
        "name": silo, "state": f"state/{silo}",
        "data": {"layout": "fed-isic2019", "images": str(drawn / "data" / "images"), "split_csv": str(drawn / "data" / "train_test_split.csv"),
                 "center": SILOS.index(silo), "validation_fraction": 0.0},
    }


def set_field(document: Any, dotted: str, value: Any) -> None:
    """Replace or add the field at `dotted` ('silos.0.name') in place; `value` DELETE removes it."""
    *parents, leaf = [int(key) if key.isdecimal() else key for key in dotted.split(".")]
    for parent in parents:
        document = document[parent] if isinstance(parent, int) else document.setdefault(parent, {})
    if value is DELETE:
        del document[leaf]
    else:
        document[leaf] = value


DELETE = object()


@dataclass(frozen=True)
class TinyFederation:
    """A folder with federation.yaml, a silo.yaml per silo, and (made by runs) store/ and state/."""

    folder: Path
    drawn: Path

    @property
    def path(self) -> Path:
        return self.folder / "federation.yaml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @classmethod
    def written(cls, folder: Path, drawn: Path, **changes: Any) -> TinyFederation:
        """Write the files; `changes` are fields of federation.yaml with '__' for '.', e.g. algorithm__rounds=3."""
        folder.mkdir(parents=True, exist_ok=True)
        document = federation_document(drawn)
        for name, value in changes.items():
            set_field(document, name.replace("__", "."), value)
        tiny = cls(folder, drawn)
        tiny.path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        for silo in SILOS:
            tiny.write_silo(silo)
        return tiny

    def write_silo(self, silo: str, **changes: Any) -> None:
        """Write `silo`.yaml, with `changes` as in `written`."""
        document = silo_document(self.drawn, silo)
        for name, value in changes.items():
            set_field(document, name.replace("__", "."), value)
        (self.folder / f"{silo}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")

    def load(self) -> Federation:
        return load_federation(self.path)

    def run(self, run_id: str) -> Run:
        return Run(open_store(str(self.store)), run_id)

    def final_sha256(self, run_id: str) -> str:
        """sha256 of the global model after the last round."""
        rounds = self.load().algorithm.rounds
        commit = self.run(run_id).commit(rounds)
        assert commit is not None, f"round {rounds} of {run_id} is not committed"
        return commit.global_sha256


@dataclass
class Processes:
    """Real processes of a test, recognised by a mark in their environment, so that what they leave behind can be told."""

    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, *command: str | Path | int, folder: Path | None = None, fork: bool = True, **environment: str,
    ) -> subprocess.Popen[str]:
        """Start `command`, in `folder` where one is given; its standard output and error are one text. `fork`: as warm.py says, where that can be."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FEDHELP_", "MLFLOW_", "AWS_"))}
        start = warm.start if fork else warm.start_anew
        process = start(
            command, {**clean, "NO_PROXY": "127.0.0.1", warm.MARK: self.mark, **self.environment, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder)
        self.started.append(process)
        return process

    def fedhelp(
        self, *arguments: str | Path | int, folder: Path | None = None, fork: bool = True, **environment: str,
    ) -> subprocess.Popen[str]:
        """Start the installed `fedhelp` command."""
        return self.start(Path(sys.executable).with_name("fedhelp"), *arguments, folder=folder, fork=fork, **environment)

    def component(self, name: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Start a component's own `__main__`."""
        return self.start(sys.executable, "-m", f"fedhelp_components.{name}", *arguments, **environment)

    def alive(self) -> dict[int, str]:
        """pid -> command line of every process that carries the mark and has not ended."""
        wanted = f"{warm.MARK}={self.mark}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):  # it has just ended
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def wait_until_gone(self, seconds: float = 30.0) -> None:
        """Nothing of the test's processes is left; they are given `seconds` to notice that they should end."""
        deadline = time.monotonic() + seconds
        while alive := self.alive():
            assert time.monotonic() < deadline, f"left behind: {alive}"
            time.sleep(0.02)

    def kill_all(self) -> None:
        """For the end of a failed test."""
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.communicate()


def ended(process: subprocess.Popen[str], timeout: float = 600.0) -> tuple[int, str]:
    """Exit code and everything that `process` printed."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def succeeded(process: subprocess.Popen[str], timeout: float = 600.0) -> str:
    """What `process` printed, which must end well."""
    code, output = ended(process, timeout)
    assert code == 0, output
    return output


def last_json(output: str) -> Any:
    """The JSON of the last line printed."""
    return json.loads(output.strip().splitlines()[-1])


def wait_until(happened: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """What `happened` gives as soon as it gives something true."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    """Processes that are gone when the block ends, or the test fails."""
    started = Processes()
    try:
        yield started
        started.wait_until_gone()
    finally:
        started.kill_all()
