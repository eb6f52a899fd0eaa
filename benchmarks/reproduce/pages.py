"""The pages of a study: tables as Markdown, CSV and HTML, and figures. Written anew after every row.

    OUT/<set>/scores.csv       every row, normalisation, seed and hospital: what it deploys, and its scores
    OUT/<set>/differences.csv  FedHelp minus each row, with intervals
    OUT/<set>/tables.md        for docs/reproduce
    OUT/<set>/report.html      the same with figures, one file

The CSV files hold no time, so the same seeds give the same bytes.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.reproduce.prepare import Prepared
from benchmarks.reproduce.results import Difference, RowResult, difference
from fedhelp_core.disk import atomic_write, disk_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%}")
_HOSPITALS = {"small": "small silos", "large": "large silos", "guest": "hospitals that train nothing"}
DIFFERENCE = ("difference", "patients_low", "patients_high", "seeds_low", "seeds_high")
Table = tuple[str, list[str], list[list[str]]]
"""Title, headings, cells."""


def write_pages(study: Prepared, rows: Sequence[RowResult], folder: Path) -> None:
    """All pages of what was computed so far."""
    blocks = {name: [row for row in rows if row.normalisation == name] for name in dict.fromkeys(row.normalisation for row in rows)}
    differences = {name: _differences(study, these) for name, these in blocks.items()}
    tables = [table for name, these in blocks.items() for table in _tables(these, differences[name], name)]
    write_csv(folder / "scores.csv", _score_lines(rows))
    write_csv(folder / "differences.csv", _difference_lines(differences))
    write_text(folder / "tables.md", "\n".join(_markdown(table) for table in tables))
    write_text(folder / "report.html", _html(study, rows, tables))


def _tables(these: Sequence[RowResult], differences: Sequence[Difference], normalisation: str) -> list[Table]:
    names = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC", "dice": "Dice"}
    small, large, guests = (these[0].hospitals(kind) for kind in ("small", "large", "guest"))
    metrics = these[0].metrics()
    headings = ["method", *(f"small, {names[m]}" for m in metrics), *(f"worst small, {names[m]}" for m in metrics[:1]),
                *(f"large, {names[m]}" for m in metrics), *(f"{guest}, {names[m]}" for guest in guests for m in metrics), "ECE", "processor s"]
    cells = []
    for row in these:
        own_guests = row.hospitals("guest")
        cells.append([
            row.row.name, *(f"{row.mean(m, small):.3f}" for m in metrics), f"{row.worst(metrics[0], small):.3f}",
            *(f"{row.mean(m, large):.3f}" for m in metrics),
            *(f"{row.mean(m, [guest]):.3f}" if guest in own_guests else "–" for guest in guests for m in metrics),
            f"{row.mean('ece', small):.3f}" if "auroc" in metrics else "–", _whole(row.processor_seconds())])
    title = f"Mean over {len(these[0].seeds)} seeds, normalisation {normalisation}"
    found = [(title, headings, cells)]
    compared = ["against", "score", "difference", "95 % over patients", "95 % over seeds", "ahead in"]
    for kind, hospitals in _HOSPITALS.items():
        lines = [
            [d.against.row.name, names[d.metric], f"{d.mean:+.3f}", str(d.over_patients), str(d.over_seeds),
             f"{d.better_in} of {len(d.against.seeds)}"]
            for d in differences if d.kind == kind]
        if lines:
            found.append((f"{these[0].row.name} minus another method, {hospitals}, normalisation {normalisation}", compared, lines))
    return found


def _differences(study: Prepared, these: Sequence[RowResult]) -> list[Difference]:
    """Of the reference, which is the first row of each normalisation."""
    reference, *others = these
    return [
        difference(reference, other, kind, metric, study.patients) for kind in _HOSPITALS for metric in reference.metrics()
        for other in others if other.hospitals(kind)]


def _score_lines(rows: Sequence[RowResult]) -> Iterable[Sequence[object]]:
    scores = sorted({name for row in rows for cell in row.cells for models in cell.scores[cell.final_round].values()
                     for found in models.values() for name in found})
    yield ["method", "normalisation", "seed", "hospital", "kind", "training_images", "deploys", *scores]
    for row in rows:
        for seed, cell in zip(row.seeds, row.cells, strict=True):
            for hospital, models in cell.scores[cell.final_round].items():
                deployed, found = next(iter(models.items()))
                yield [row.row.name, row.normalisation, seed, hospital, cell.kinds[hospital], cell.training_samples[hospital], deployed,
                       *(number_text(found.get(name, math.nan)) for name in scores)]


def _difference_lines(differences: Mapping[str, Sequence[Difference]]) -> Iterable[Sequence[object]]:
    yield ["normalisation", "hospitals", "against", "score", *DIFFERENCE, "better_in", "seeds"]
    for normalisation, found in differences.items():
        for d in found:
            yield [normalisation, d.kind, d.against.row.name, d.metric, *difference_cells(d), d.better_in, len(d.against.seeds)]


def difference_cells(d: Difference) -> list[str]:
    """Under the headings DIFFERENCE."""
    return [number_text(value) for value in (d.mean, d.over_patients.low, d.over_patients.high, d.over_seeds.low, d.over_seeds.high)]


def _whole(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0f}"


def number_text(value: float) -> str:
    """As it stands in the CSV files; NaN is empty."""
    return "" if math.isnan(value) else f"{value:.4f}"


def write_csv(path: Path, lines: Iterable[Sequence[object]]) -> None:
    """In one step; the same lines give the same bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_text(path, text.getvalue())


def _markdown(table: Table) -> str:
    title, headings, cells = table
    lines = [f"### {title}", "", "| " + " | ".join(headings) + " |", "| --- |" + " ---: |" * (len(headings) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells), ""])


def _html(study: Prepared, rows: Sequence[RowResult], tables: Sequence[Table]) -> str:
    parts = [f"<h1>{html.escape(study.study.title)}</h1>"]
    for title, headings, cells in tables:
        head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in cells)
        parts.append(f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{body}</table>")
    parts += [svg(figure) for figure in figures(rows).values()]
    return f"<!doctype html><meta charset=utf-8><title>{html.escape(study.study.title)}</title><style>{_STYLE}</style>{''.join(parts)}\n"


def figures(rows: Sequence[RowResult]) -> Mapping[str, Figure]:
    """Bars by hospital as in the paper's Figure 1, and curves by round and by processor seconds."""
    from matplotlib.figure import Figure

    found: dict[str, Figure] = {}
    for normalisation in dict.fromkeys(row.normalisation for row in rows):
        these = [row for row in rows if row.normalisation == normalisation]
        shown = [row for number, row in enumerate(these) if number == 0 or row.row.compared]
        metric = these[0].metrics()[-1]
        hospitals = [*these[0].hospitals("small"), *these[0].hospitals("large")]
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        bars, rounds, time = figure.subplots(1, 3)
        for number, row in enumerate(shown):
            places = [i + (number - (len(shown) - 1) / 2) * 0.8 / len(shown) for i in range(len(hospitals))]
            bars.bar(places, [row.mean(metric, [name]) for name in hospitals], width=0.8 / len(shown), label=row.row.name)
            small = row.hospitals("small")
            steps = sorted(row.cells[0].scores)
            heights = [
                sum(next(iter(cell.scores[step][name].values()))[metric] for cell in row.cells for name in small) / len(row.cells) / len(small)
                for step in steps]
            rounds.plot(steps, heights, marker=".")
            time.plot([step * row.processor_seconds() / steps[-1] for step in steps], heights, marker=".")
        bars.set_xticks(range(len(hospitals)), hospitals, rotation=30, ha="right")
        low = min(row.mean(metric, [name]) for row in shown for name in hospitals)
        bars.set_ylim(bottom=max(0.0, math.floor(low * 10) / 10 - 0.1))
        bars.set_title(f"{metric}, normalisation {normalisation}")
        bars.legend(fontsize=7, loc="lower right")
        rounds.set_title("small silos, by round")
        rounds.set_xlabel("round")
        rounds.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[attr-defined]
        time.set_title("small silos, by processor time")
        time.set_xlabel("processor seconds")
        found[normalisation] = figure
    return found


def svg(figure: Figure) -> str:
    """The same figure gives the same text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "fedhelp", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def write_text(path: Path, text: str) -> None:
    """In one step."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
