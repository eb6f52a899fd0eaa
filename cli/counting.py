"""How many images are done: a bar on a terminal, else a line every ten seconds. Called by `fedhelp data ingest` and `fedhelp predict`."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

_EVERY = 10.0  # seconds between lines where nobody watches a terminal


class Counting:
    """`begins` is what the bar says at first, `done` what has been done to the images."""

    def __init__(self, console: Console, begins: str, done: str) -> None:
        self._console = console
        self._begins, self._done = begins, done
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
            disable=not console.is_terminal)
        self._task = self._bar.add_task(begins, total=None)
        self._said = time.monotonic()

    def __enter__(self) -> Counting:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def progress(self, done: int, total: int, of: str = "") -> None:
        """`done` of `total` images, `of`: whose they are."""
        self._bar.update(self._task, description=of or self._begins, completed=done, total=total)
        if not self._console.is_terminal and (done == total or time.monotonic() - self._said >= _EVERY):
            self._said = time.monotonic()
            self._console.print(f"{f'{of}: ' if of else ''}{done:,} of {total:,} images {self._done}", highlight=False, markup=False)
