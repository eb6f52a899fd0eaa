"""Seconds from the command `fedhelp run` to the commit of round 1, its processor time, and how fast `fedhelp --help` answers.

    python -m benchmarks.startup [--repeat 3]

The federation is small, so that starting is what is measured: three of the demo's hospitals, 60 of its public images, one
round; everything that a first run does (decode the images, ask the teacher, start workers, log to MLflow) is done anew each
time, in new folders. The demo's input itself is made once, under .cache/benchmarks/demo.
"""

from __future__ import annotations

import ctypes
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.figures import Figure, run_alone, spread

HOSPITALS = ("coimbra", "espoo", "faro")
PUBLIC_IMAGES = 60
ROUND_TARGET_S, HELP_TARGET_S = 8.0, 1.0
HELP_REPEATS = 5
_PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl: processes that outlive their parent become ours, so that their time is counted
DEMO = Path(".cache/benchmarks/demo")
FEDHELP = str(Path(sys.executable).with_name("fedhelp"))


def figures(repeat: int) -> list[Figure]:
    """The help page, then whole runs."""
    return [help_page(max(repeat, HELP_REPEATS)), *first_round(repeat)]


def help_page(repeat: int) -> Figure:
    """`fedhelp --help` on a warm disk, beside an interpreter that does nothing."""
    seconds([FEDHELP, "--help"])
    times = [(seconds([FEDHELP, "--help"]), seconds([sys.executable, "-c", "pass"])) for _ in range(repeat)]
    return Figure(
        name="fedhelp --help", value=statistics.median(t[0] for t in times), unit="s", target=HELP_TARGET_S,
        yardstick=f"python -c pass {statistics.median(t[1] for t in times):.3f} s", detail=f"median of {repeat}")


def first_round(repeat: int) -> list[Figure]:
    """From the command to commit 1, and to its end."""
    from fedhelp_core.demo.prepare import prepare_demo

    prepare_demo(DEMO.resolve(), progress=lambda what: print(f"demo input: {what}", file=sys.stderr))
    ours, through_kfp = zip(*((_run_once(), _run_once("--through-kfp")) for _ in range(repeat)), strict=True)
    to_commit, to_end, processor = ([t[i] for t in ours] for i in range(3))
    return [
        Figure(name="command to end of round 1", value=statistics.median(to_commit), unit="s", target=ROUND_TARGET_S,
               yardstick="--peers gives NVFLARE's and Flower's", detail=f"{len(HOSPITALS)} silos; quartiles {spread(to_commit)} s"),
        Figure(name="command to its end (evaluation, promotion, report)", value=statistics.median(to_end), unit="s",
               yardstick=f"through kfp's local runner {statistics.median(t[1] for t in through_kfp):.1f} s", detail=f"quartiles {spread(to_end)} s"),
        Figure(name="processor time of all its processes", value=statistics.median(processor), unit="s",
               yardstick=f"through kfp's local runner {statistics.median(t[2] for t in through_kfp):.1f} s",
               detail=f"quartiles {spread(processor)} s"),
    ]


def _run_once(*options: str) -> tuple[float, float, float]:
    """(seconds to commit 1, seconds to the end, processor seconds of all processes) of a run in new folders."""
    before = processor_seconds()
    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as folder:
        federation = small_federation(DEMO.resolve(), Path(folder))
        started = time.time()
        ended = started + seconds([FEDHELP, "run", str(federation), *options])
        commit = next((Path(folder) / "store" / "runs").glob("*/rounds/1/commit.json"))
        return commit.stat().st_mtime - started, ended - started, processor_seconds() - before


def processor_seconds() -> float:
    """Of all processes that this one ever caused, once they have ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def small_federation(demo: Path, folder: Path) -> Path:
    """federation.yaml in `folder` of a few of the demo's hospitals, whose states and store are new."""
    document = yaml.safe_load((demo / "federation.yaml").read_text(encoding="utf-8"))
    document["algorithm"] |= {"rounds": 1, "large_silos": 1}
    document["protocol"]["min_silos"] = len(HOSPITALS)
    document["store"]["url"] = str(folder / "store")
    document["public_set"]["images"] = str(_few_images(demo / document["public_set"]["images"], folder / "public"))
    for teacher in document["public_set"]["teachers"]:
        teacher["uri"] = str(demo / teacher["uri"])
    document["silos"] = [silo for silo in document["silos"] if silo["name"] in HOSPITALS]
    for silo in document["silos"]:
        silo["dispatch"]["silo_config"] = str(_silo_file(demo / silo["dispatch"]["silo_config"], folder))
    return _write(folder / "federation.yaml", document)


def _few_images(source: Path, folder: Path) -> Path:
    folder.mkdir()
    images = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    for image in images[:PUBLIC_IMAGES]:
        (folder / image.name).write_bytes(image.read_bytes())
    return folder


def _silo_file(source: Path, folder: Path) -> Path:
    """The demo's silo.yaml with a state of its own."""
    document = yaml.safe_load(source.read_text(encoding="utf-8"))
    for key in ("images", "split_csv"):
        document["data"][key] = str((source.parent / document["data"][key]).resolve())
    document["state"] = str(folder / "state" / document["name"])
    return _write(folder / f"{document['name']}.yaml", document)


def _write(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def seconds(command: list[str]) -> float:
    """How long `command` takes.

    Raises:
        CalledProcessError: it failed; what it said is on standard error.
    """
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
    done.check_returncode()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_alone(figures, __doc__, repeat=3)
