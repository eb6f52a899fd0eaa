"""The demo from its command to its report: seconds and processor seconds, by part.

    python -m benchmarks.demo [--repeat 1]

Drawn from nothing into a folder that is deleted afterwards. A part ends where the command's own output says that the next one begins. Linux.
"""

from __future__ import annotations

import ctypes
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, run_alone

_PARTS = {  # what the output says -> the part that begins there
    "demo input: begun": "drawing, and the teacher", "check: ": "check", "soft labels": "soft labels", "federation: rounds": "rounds",
    "evaluation and promotion": "evaluation, promotion, report"}
_LINE = re.compile(r"^\[ *[\d.]+ s\] (?P<said>.*)$")
_REAP_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER: the workers of a fork server that has ended count too
_TICKS = os.sysconf("SC_CLK_TCK")


def parts() -> Iterator[tuple[str, float, float]]:
    """(part, seconds, processor seconds), the start of Python first; of one run.

    Raises:
        CalledProcessError: it failed.
    """
    ctypes.CDLL(None).prctl(_REAP_ORPHANS, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="fedhelp-demo-") as folder:
        command = [str(Path(sys.executable).with_name("fedhelp")), "run", "--demo", str(Path(folder) / "demo")]
        part, began, spent = "start", time.monotonic(), _processor_seconds()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                said = _LINE.match(line)
                following = next((name for words, name in _PARTS.items() if said is not None and said["said"].startswith(words)), None)
                if following is not None:
                    now, total = time.monotonic(), _processor_seconds()
                    yield part, now - began, total - spent
                    part, began, spent = following, now, total
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        ended = time.monotonic()
        while _reaped():
            pass
        yield part, ended - began, _processor_seconds() - spent


def figures(repeat: int) -> list[Figure]:
    """Medians of `repeat` runs."""
    runs = [list(parts()) for _ in range(repeat)]
    found = []
    for number, (name, _, _) in enumerate(runs[0]):
        seconds, processor = (statistics.median(run[number][column] for run in runs) for column in (1, 2))
        found.append(Figure(name=f"demo: {name}", value=seconds, unit="s", detail=f"{processor:.1f} s of processor time"))
    seconds, processor = (statistics.median(sum(row[column] for row in run) for run in runs) for column in (1, 2))
    return [*found, Figure(name="demo: command to report", value=seconds, unit="s", target=60.0),
            Figure(name="demo: processor time", value=processor, unit="s", target=110.0)]


def _processor_seconds() -> float:
    """Of all processes below this one, those that have ended included."""
    below, ticks = {os.getpid()}, 0
    stats = [[*text.rpartition(") ")[2].split(), path.parent.name] for path in Path("/proc").glob("[0-9]*/stat") if (text := _read(path))]
    parents = {int(fields[-1]): int(fields[1]) for fields in stats}
    for fields in stats:
        process = int(fields[-1])
        line = [process]
        while line[-1] in parents and line[-1] not in below:
            line.append(parents[line[-1]])
        if line[-1] in below:
            below |= set(line)
            ticks += sum(int(field) for field in fields[13:15]) + (0 if process == os.getpid() else sum(int(field) for field in fields[11:13]))
    return ticks / _TICKS


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended
        return ""


def _reaped() -> bool:
    """Whether an orphan was waited for; False: there is none left."""
    try:
        return os.waitpid(-1, 0)[0] > 0
    except ChildProcessError:
        return False


if __name__ == "__main__":
    run_alone(figures, __doc__, repeat=1)
