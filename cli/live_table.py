"""The table that `fedhelp run` shows on a terminal while it works: who trains, waits, has sent or is absent, losses, time left.

Pure: a `RunNow` in, what rich prints out, no wider and no taller than the terminal. Called by run_progress.py, which looks into the store.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from fedhelp_core.printable import printable
from fedhelp_core.report.charts import thinned
from fedhelp_core.report.text import count, duration, number

STATES = {
    "refused": "bold red", "absent": "red", "waits": "yellow", "trains": "cyan", "checks": "cyan", "scores": "cyan", "sent": "green",
    "checked": "green", "ready": "green", "scored": "green",
}
"""What a silo may be doing, and its colour: who needs a person first. Where not all silos fit on the screen, the first of these are shown."""
_POINTS = 12  # of a line of losses: the whole run in a glance
_BLOCKS, _BLOCKS_ASCII = "▁▂▃▄▅▆▇█", "_.-~=+*#"
_AROUND = 6  # lines of the terminal that are not silos: two of the head, the heading, what the others do, and two to spare for the prompt
_LEAST_ROWS = 3
_LONGEST_NAME = 24
_WITH_LOSS, _WITH_LINE, _WITH_IMAGES = 46, 66, 84  # least widths of a terminal, in characters, for these columns


@dataclass(frozen=True, kw_only=True)
class SiloNow:
    """A silo at this moment."""

    name: str
    state: str
    """One of STATES."""
    kind: str = ""
    images: int | None = None
    """For training; None: not counted yet."""
    said: str = ""
    """How far it is, or why it waits or is absent."""
    losses: tuple[float, ...] = ()
    """Its mean training loss of each round that it answered."""
    score: float | None = None
    """Of its deployed model, by the task's first metric; None: not evaluated."""


@dataclass(frozen=True, kw_only=True)
class RunNow:
    """A run at this moment."""

    phase: str
    done: int
    """Closed rounds."""
    rounds: int
    seconds: float
    """Since this command began."""
    silos: tuple[SiloNow, ...]
    score: str = ""
    """What the silos' score is called."""
    seconds_left: float | None = None
    """Of the rounds; None: nobody can tell yet."""


class LiveTable:
    """What rich draws again and again: the newest `RunNow`."""

    def __init__(self, now: Callable[[], RunNow]) -> None:
        self._now = now
        self._spinner = Spinner("line", style="cyan")  # of plain characters, so that it turns on every terminal

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now = self._now()
        width = options.max_width
        yield Group(_head(now, self._spinner, width), *silo_rows(now, width=width, height=console.height, ascii_only=options.ascii_only))


def silo_rows(now: RunNow, *, width: int, height: int, ascii_only: bool = False) -> list[RenderableType]:
    """A row a silo; where the terminal has too few lines, those that a person should see, and how many others do what."""
    shown = _worth_seeing(now.silos, max(_LEAST_ROWS, height - _AROUND))
    columns = _columns(now, shown, width, ascii_only)
    table = Table(*(column for column, _ in columns), box=None, pad_edge=False, width=width)
    for silo in shown:
        table.add_row(*(cell(silo) for _, cell in columns), style="dim" if silo.state == "absent" else "")
    hidden = [silo for silo in now.silos if silo not in shown]
    return [table, *([Text(f"and {_counted(hidden)}", style="dim", no_wrap=True, overflow="ellipsis")] if hidden else [])]


def sparkline(values: Sequence[float], *, ascii_only: bool = False) -> str:
    """`values` as a line of blocks, the lowest value the lowest block, at most so many that the whole run fits; nothing without a number."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    finite = [known[place] for place in thinned(len(known), _POINTS)]
    blocks, low = _BLOCKS_ASCII if ascii_only else _BLOCKS, min(finite)
    span = max(finite) - low
    return "".join(blocks[round((value - low) / span * (len(blocks) - 1)) if span else 0] for value in finite)


def _head(now: RunNow, spinner: Spinner, width: int) -> RenderableType:
    """The phase, rounds as a bar where there is room, and times: in one line, or in two of a narrow terminal."""
    left = "" if now.seconds_left is None else f", about {duration(now.seconds_left)} left"
    phase, times = Text(now.phase, style="bold"), Text(f"{now.done}/{now.rounds}, {duration(now.seconds)}{left}", justify="right")
    grid = Table.grid(Column(width=1), Column(ratio=1, no_wrap=True, overflow="ellipsis"), padding=(0, 1), expand=True)
    if width < _WITH_LINE:
        grid.add_row(spinner, phase)
        grid.add_row("", Text(times.plain))
        return grid
    bar = [ProgressBar(total=max(1, now.rounds), completed=now.done, width=min(30, width - 66))] if width >= _WITH_IMAGES else []
    for _ in (*bar, times):
        grid.add_column(no_wrap=True)
    grid.add_row(spinner, phase, *bar, times)
    return grid


def _columns(now: RunNow, shown: Sequence[SiloNow], width: int, ascii_only: bool) -> list[tuple[Column, Callable[[SiloNow], RenderableType]]]:
    """Those for which the terminal has room and the run has something to show."""
    longest = max((len(silo.name) for silo in shown), default=4)
    found: list[tuple[Column, Callable[[SiloNow], RenderableType]]] = [
        (Column("silo", width=min(longest, _LONGEST_NAME, max(8, width // 3)), no_wrap=True), lambda silo: Text(printable(silo.name)))]
    if width >= _WITH_IMAGES:
        found += [(Column("kind", width=5, no_wrap=True), lambda silo: silo.kind),
                  (Column("images", width=9, no_wrap=True, justify="right"), lambda silo: count(silo.images))]
    found.append((Column("state", width=8, no_wrap=True), lambda silo: Text(silo.state, style=STATES[silo.state])))
    if width >= _WITH_LOSS:
        found.append((Column("loss", width=7, no_wrap=True, justify="right"), lambda silo: number(silo.losses[-1]) if silo.losses else "–"))
    if width >= _WITH_LINE:
        found.append((Column("by round", width=_POINTS, no_wrap=True), lambda silo: Text(sparkline(silo.losses, ascii_only=ascii_only))))
    if any(silo.score is not None for silo in shown) and width >= _WITH_LOSS:
        found.append((Column(now.score, width=min(len(now.score), 17), no_wrap=True, justify="right"), lambda silo: number(silo.score)))
    found.append((Column("", ratio=1, no_wrap=True, overflow="ellipsis"), lambda silo: Text(printable(silo.said), style="dim")))
    return found


def _worth_seeing(silos: Sequence[SiloNow], most: int) -> list[SiloNow]:
    """At most `most` of them, in their own order."""
    if len(silos) <= most:
        return list(silos)
    urgent = sorted(silos, key=lambda silo: list(STATES).index(silo.state))[:most - 1]  # one line says what the others do
    return [silo for silo in silos if silo in urgent]


def _counted(silos: Sequence[SiloNow]) -> str:
    """'94 more: 60 trains, 34 sent'."""
    by_state = Counter(silo.state for silo in silos)
    return f"{len(silos):,} more: {', '.join(f'{number} {state}' for state, number in by_state.most_common())}"
