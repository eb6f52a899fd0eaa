"""What every benchmark gives: figures beside their yardsticks, printed as one Markdown table.

A benchmark is a module with `figures(repeat) -> list[Figure]`; `run_alone` makes it a program of its own, and
`python -m benchmarks` starts each one so, in a process that has imported nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number. Smaller is better for all of them."""

    name: str
    value: float
    unit: str
    target: float | None = None
    """At most this; None: reported, not judged."""
    yardstick: str = ""
    """What stood beside it in the same run."""
    detail: str = ""

    @property
    def verdict(self) -> str:
        """'met', 'missed', or '' without a target."""
        if self.target is None:
            return ""
        return "met" if self.value <= self.target else "missed"


def run_alone(figures: Callable[[int], list[Figure]], description: str | None, *, repeat: int) -> None:
    """A benchmark's command line: --repeat (default `repeat`) and --json."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    add_options(parser, repeat=repeat)
    arguments = parser.parse_args()
    found = figures(arguments.repeat)
    show(found)
    if arguments.json is not None:
        write(found, arguments.json)


def add_options(parser: argparse.ArgumentParser, *, repeat: int | None) -> None:
    parser.add_argument("--repeat", type=int, default=repeat, metavar="N", help=f"measurements; the median counts (default {repeat or 'its own'})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")


def show(found: Iterable[Figure]) -> None:
    """The table, as Markdown that also reads well in a terminal."""
    table = Table(box=box.MARKDOWN)
    for heading in ("figure", "value", "target", "", "yardstick", "detail"):
        table.add_column(heading, justify="right" if heading in ("value", "target") else "left", overflow="fold")
    for figure in found:
        target = "" if figure.target is None else f"<= {quantity(figure.target, figure.unit)}"
        table.add_row(figure.name, quantity(figure.value, figure.unit), target, figure.verdict, figure.yardstick, figure.detail)
    Console(width=None if Console().is_terminal else 300).print(table)


def quantity(value: float, unit: str) -> str:
    """Three significant digits, never an exponent."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return f"{text} {unit}".strip()


def write(found: Sequence[Figure], path: Path) -> None:
    """The figures and the machine as JSON."""
    path.write_text(json.dumps({"machine": machine(), "figures": [asdict(figure) for figure in found]}, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> list[Figure]:
    return [Figure(**document) for document in json.loads(path.read_text(encoding="utf-8"))["figures"]]


def machine() -> str:
    """Cores, memory and load: what a reader needs to judge a figure."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (f"{len(os.sched_getaffinity(0))} cores ({_processor()}), {memory:.0f} GiB, Python {platform.python_version()}, "
            f"load average {os.getloadavg()[0]:.1f}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def spread(values: Sequence[float]) -> str:
    """Quartiles, e.g. '11.2 to 13.0'."""
    if len(values) < 2:
        return "of one measurement: none"
    low, _, high = statistics.quantiles(values, n=4)
    return f"{quantity(low, '')} to {quantity(high, '')}"
