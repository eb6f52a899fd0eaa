"""A page a hospital of what the network will see: first and strangest images, masks over them, intensities beside the other hospitals'.

Called by `fedhelp data ingest` and `fedhelp check`. It has no script and loads nothing. It shows patients' pictures and file names, so it stays in
the hospital.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.examples import label_in_words, preparation
from fedhelp_core.data.findings import called
from fedhelp_core.data.inspection import Seen
from fedhelp_core.data.views import Picked, View, first_and_strangest, view_of
from fedhelp_core.disk import disk_errors
from fedhelp_core.report import html


@dataclass(frozen=True)
class Looked:
    """A hospital whose images were looked at."""

    silo: str
    seen: Sequence[Seen]
    total: int
    """Images that it has."""
    origin: str = ""
    bits: int | None = None
    remarks: Sequence[str] = ()
    problems: Sequence[str] = ()


def write_picture_pages(paths: Mapping[str, Path], hospitals: Sequence[Looked], task: TaskConfig) -> None:
    """The page of each hospital in `paths`, silo -> file, beside all of `hospitals`."""
    for one in hospitals:
        if one.silo in paths:
            path = paths[one.silo]
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(render(one, hospitals, task), encoding="utf-8")


def render(one: Looked, hospitals: Sequence[Looked], task: TaskConfig) -> str:
    """The page of `one`."""
    first, strangest = first_and_strangest(one.seen)
    return html.render(
        "pictures.html.j2", called=called(one.silo, one.origin), looked=len(one.seen), total=one.total, task=task.name,
        preparation=preparation(task), remarks=one.remarks, problems=one.problems, histograms=list(_histograms(hospitals, one)),
        sections=[("The first", list(_pictures(first, one, task))), ("The strangest", list(_pictures(strangest, one, task)))])


def _pictures(picked: Sequence[Picked], one: Looked, task: TaskConfig) -> Iterator[tuple[View, tuple[str, ...]]]:
    """Each as the network sees it, with the lines below it."""
    for choice in picked:
        answer = f"{choice.seen.foreground:.1%} marked" if task.per_pixel else label_in_words(choice.seen.item, task)
        grid = f"; {choice.seen.orientation}, {' x '.join(f'{side:g}' for side in choice.seen.spacing)} mm" if choice.seen.orientation else ""
        yield view_of(choice.seen.item, task, one.bits), (choice.seen.item.image.name, answer + grid, choice.why)


def _histograms(hospitals: Sequence[Looked], here: Looked) -> Iterator[dict[str, Any]]:
    """Shares of each hospital's pixels, the largest share of any hospital as 1."""
    sums = {one.silo: [sum(column) for column in zip(*(seen.view_histogram for seen in one.seen if seen.view_histogram), strict=True)]
            for one in hospitals}
    shares = {silo: [count / sum(counts) for count in counts] for silo, counts in sums.items()}
    most = max((share for values in shares.values() for share in values), default=1.0)
    for one in hospitals:
        yield {"called": called(one.silo, one.origin), "here": one is here, "shares": [share / most for share in shares[one.silo]]}
