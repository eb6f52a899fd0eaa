"""Peak memory and time of averaging weights files (Eq 7), beside a program that only reads the same files once.

    python -m benchmarks.averaging [--repeat 3] [--size-mib 256] [--cold]

Each side is a process of its own, so that its peak resident memory (VmHWM) is its own; they alternate, on files in the page
cache. The files of a case are distinct while free memory holds them all; else hard links of as many as it holds, which the
table says, because pieces of a file read several times may then come from the processor's cache.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, add_options, show, write
from fedhelp_core.protocol.averaging import average_files
from fedhelp_core.weights.file import CHUNK_BYTES, write_weights

CASES = (6, 60)
MEMORY_TARGET, TIME_TARGET = 2.0, 1.3
TENSORS = 64
READ_BYTES = 2**20


def figures(repeat: int, *, size_mib: int = 256, cold: bool = False) -> list[Figure]:
    """Time and memory for each number of files."""
    return [figure for files in CASES for figure in _case(files, size_mib, repeat, cold)]


def _case(files: int, size_mib: int, repeat: int, cold: bool) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as folder:
        distinct = _distinct(files, size_mib, Path(folder))
        _make(Path(folder), files, distinct, size_mib)
        _measure("read", folder)  # into the page cache
        turns = [{action: _measure(action, folder, cold) for action in ("average", "read", "result")} for _ in range(repeat)]
    ours, reading, result = (statistics.median(turn[action][0] for turn in turns) for action in ("average", "read", "result"))
    peak = max(turn["average"][1] for turn in turns)
    what = f"averaging {files} x {size_mib} MiB{' from disk' if cold else ''}"
    note = "distinct files" if distinct == files else f"hard links of {distinct} distinct files"
    return [
        Figure(name=f"{what}: time / reading once", value=ours / reading, unit="", target=TIME_TARGET,
               yardstick=f"reading once {reading:.2f} s", detail=f"{ours:.2f} s; {note}; hashing and writing the one result alone {result:.2f} s"),
        Figure(name=f"{what}: peak memory", value=peak / size_mib, unit="models", target=MEMORY_TARGET,
               yardstick="one model", detail=f"{peak:.0f} MiB, Python and numpy included"),
    ]


def _distinct(files: int, size_mib: int, folder: Path) -> int:
    """How many files of a case differ: all while memory (page cache) and disk hold them with room for others."""
    free_mib = min(_available_mib() * 0.75, shutil.disk_usage(folder).free / 2**20 * 0.5)
    return max(1, min(files, int(free_mib // size_mib) - 1))


def _available_mib() -> float:
    return int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")).split()[1]) / 1024


def _make(folder: Path, files: int, distinct: int, size_mib: int) -> None:
    """Files of float32 in equal tensors; each is the one before, moved along."""
    values = np.random.default_rng(1).standard_normal(size_mib * 2**18, dtype=np.float32)
    for number in range(distinct):
        tensors = np.array_split(np.roll(values, number), TENSORS)
        write_weights(_file(folder, number), {f"tensor{i:02}": tensor for i, tensor in enumerate(tensors)}, "benchmark")
    for number in range(distinct, files):
        os.link(_file(folder, number % distinct), _file(folder, number))


def _file(folder: Path, number: int) -> Path:
    return folder / f"update-{number:03}.safetensors"


def _measure(action: str, folder: str, cold: bool = False) -> tuple[float, float]:
    """(seconds, peak MiB) of `action` in a process of its own."""
    if cold:
        _forget(Path(folder))
    command = [sys.executable, "-m", "benchmarks.averaging", "--worker", action, folder]
    seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(peak)


def _forget(folder: Path) -> None:
    """Drop the files from the page cache."""
    for path in _updates(folder):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _updates(folder: Path) -> list[Path]:
    return sorted(folder.glob("update-*.safetensors"))


def _work(action: str, folder: Path) -> None:
    """The measured process: prints its seconds and its peak MiB."""
    paths = _updates(folder)
    started = time.perf_counter()
    if action == "average":
        average_files(paths, [1 / len(paths)] * len(paths), folder / "average", "benchmark")
    elif action == "read":
        _read_once(paths)
    else:
        _hash_and_write(paths[0].stat().st_size, folder / "result")
    print(time.perf_counter() - started, peak_mib())


def _read_once(paths: Sequence[Path]) -> None:
    """The least that any average must do."""
    buffer = bytearray(READ_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass


def _hash_and_write(size: int, path: Path) -> None:
    """What an average owes besides: its result on disk, named by its sha256."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with path.open("wb", buffering=0) as handle:
        for _ in range(size // CHUNK_BYTES):
            digest.update(piece)
            handle.write(piece)


def peak_mib() -> float:
    """VmHWM: unlike ru_maxrss it does not remember the process that this one was forked from."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    """Measure, or be the measured process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_options(parser, repeat=3)
    parser.add_argument("--size-mib", type=int, default=256, help="size of a file (default 256)")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before each reading")
    parser.add_argument("--worker", nargs=2, metavar=("ACTION", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(arguments.worker[0], Path(arguments.worker[1]))
        return
    found = figures(arguments.repeat, size_mib=arguments.size_mib, cold=arguments.cold)
    show(found)
    if arguments.json is not None:
        write(found, arguments.json)


if __name__ == "__main__":
    main()
