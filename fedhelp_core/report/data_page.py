"""The page of an ingested data set: counts, remarks and a few pictures. Called by `fedhelp data ingest`.

It has no script and loads nothing. It shows patients' pictures and file names, so it stays in the hospital.
"""

from __future__ import annotations

import base64
import json
import string
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from fedhelp_core.data.findings import DataReport, remarks, rows_of, summary
from fedhelp_core.data.leakage import Group
from fedhelp_core.disk import explained
from fedhelp_core.registry.tasks import TASKS
from fedhelp_core.report.charts import clean

_SHOWN = 200  # rows a table


def write_report(out: Path, report: DataReport) -> None:
    """report.json and report.html below `out`."""
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(json.dumps(summary(report), indent=1) + "\n", encoding="utf-8")
        (out / "report.html").write_bytes(render(report).encode("utf-8", "xmlcharrefreplace"))


def render(report: DataReport) -> str:
    """The page."""
    chip = '<span class="chip bad">refused</span>' if report.refused else '<span class="chip good">usable</span>'
    title = f"{report.task.name}: {len(report.silos)} silos, {len(report.places):,} images"
    answers = "classes" if TASKS[report.task.name].answer == "classes" else "foreground"
    head = ("silo", "split", "images", answers, "sizes", "intensities", "grid")
    parts = [
        f'<header><h1>{clean(title)} {chip}</h1><p class="quiet">Shows pictures and file names of patients: keep it in the hospital.</p></header>',
        _list("Refused", report.refused), _section("What there is", _table(head, rows_of(report))), _list("Good to know", list(remarks(report))),
        _list("Left out", report.dropped), _list("Cannot be used", report.unusable),
        _list("The same more than once", [_told(group) for group in report.groups]), _pictures(report)]
    template = string.Template(resources.files("fedhelp_core.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=clean(title), body="\n".join(part for part in parts if part), series_style="")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{clean(title)}</h2>{body}</section>"


def _list(title: str, sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    rest = f'<p class="quiet">and {len(sentences) - _SHOWN:,} more in report.json</p>' if len(sentences) > _SHOWN else ""
    return _section(f"{title} ({len(sentences):,})", "<ul>" + "".join(f"<li>{clean(one, 600)}</li>" for one in sentences[:_SHOWN]) + "</ul>" + rest)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{clean(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{clean(value, 400)}</td>" for value in row) + "</tr>" for row in rows[:_SHOWN])
    return f'<div class="scroll"><table><tr>{cells}</tr>{body}</table></div>'


def _pictures(report: DataReport) -> str:
    classes = TASKS[report.task.name].answer == "classes"
    parts = []
    for silo in report.silos:
        shown = [place.seen for place in report.places if place.silo == silo and place.seen.thumbnail]
        figures = "".join(
            f'<figure><img alt="training image" src="data:image/png;base64,{base64.b64encode(seen.thumbnail).decode()}">'
            f"<figcaption>{clean(report.task.classes[seen.item.label] if classes else f'{seen.foreground:.1%} marked')}</figcaption></figure>"
            for seen in shown)
        if figures:
            parts.append(f'<h3>{clean(silo)}</h3><div class="pictures">{figures}</div>')
    return _section("Some training images", "".join(parts)) if parts else ""


def _told(group: Group) -> str:
    return str(group) if group.leaks else f"twice or more in {next(iter(group.splits))}: {' = '.join(str(place) for place in group.places[:4])}"
