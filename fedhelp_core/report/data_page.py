"""The page of an ingested data set: counts, remarks and a few pictures. Called by `fedhelp data ingest`.

It has no script and loads nothing. It shows patients' pictures and file names, so it stays in the hospital.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fedhelp_core.data.examples import label_in_words
from fedhelp_core.data.findings import DataReport, remarks, rows_of, summary
from fedhelp_core.data.leakage import Group
from fedhelp_core.disk import disk_errors
from fedhelp_core.report import html

_SHOWN = 200  # rows a table


def write_report(out: Path, report: DataReport) -> None:
    """report.json and report.html below `out`."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(json.dumps(summary(report), indent=1) + "\n", encoding="utf-8")
        (out / "report.html").write_bytes(render(report).encode())


def render(report: DataReport) -> str:
    """The page."""
    found = {
        "Refused": report.refused, "Good to know": list(remarks(report)), "Left out": report.dropped, "Cannot be used": report.unusable,
        "The same more than once": [_told(group) for group in report.groups]}
    return html.render(
        "data.html.j2", title=f"{report.task.name}: {len(report.silos)} silos, {len(report.places):,} images", refused=bool(report.refused),
        answers={"classes": "classes", "labels": "findings"}.get(report.task.form, "foreground"), rows=rows_of(report)[:_SHOWN], found=found,
        most=_SHOWN, pictures=dict(_pictures(report)))


def _pictures(report: DataReport) -> Iterator[tuple[str, list[tuple[bytes, str]]]]:
    """Per silo that has some: its thumbnails as PNG, each with its class or how much of it is marked."""
    for silo in report.silos:
        shown = [place.seen for place in report.places if place.silo == silo and place.seen.thumbnail]
        if shown:
            yield report.called(silo), [
                (seen.thumbnail, f"{seen.foreground:.1%} marked" if report.task.per_pixel else label_in_words(seen.item, report.task))
                for seen in shown]


def _told(group: Group) -> str:
    return str(group) if group.leaks else f"twice or more in {next(iter(group.splits))}: {' = '.join(str(place) for place in group.places[:4])}"
