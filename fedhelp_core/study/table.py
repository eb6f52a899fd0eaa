"""The tables of a study: each silo, small and large silos' means, the worst silo, rounds to a score, and paired differences.

Called by `fedhelp simulate` after `run_study`: `write_tables` puts Markdown and CSV into the study's folder, and
`terminal_tables` gives the same for a terminal. Scores are of the model that a silo deploys, on its own test images, after the
last round; "±" is the sample standard deviation over seeds.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedhelp_core.registry.metrics import Metric, beside
from fedhelp_core.study.compared import SAME_MATHEMATICS
from fedhelp_core.study.study import CellResult, StudyResult

if TYPE_CHECKING:
    from rich.table import Table

_SHARE_OF_FEDAVG = 0.9  # the default target of rounds-to-a-score: 90 % of what fedavg ends with


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation (NaN for fewer than two values) of the finite among `n` values, one a seed."""

    mean: float
    deviation: float
    n: int

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """NaN values are left out."""
        finite = [v for v in values if math.isfinite(v)]
        if not finite:
            return Spread(mean=math.nan, deviation=math.nan, n=0)
        mean = sum(finite) / len(finite)
        variance = sum((v - mean) ** 2 for v in finite) / (len(finite) - 1) if len(finite) > 1 else math.nan
        return Spread(mean=mean, deviation=math.sqrt(variance), n=len(finite))

    def __str__(self) -> str:
        """'0.712 ±0.013', '0.712' for one seed, an en dash for none."""
        if not self.n:
            return "–"
        return f"{self.mean:.3f}" + (f" ±{self.deviation:.3f}" if self.n > 1 else "")


@dataclass(frozen=True, kw_only=True)
class RoundsToScore:
    """The first evaluated round in which the small silos' mean reached `target`: mean over the seeds that reached it."""

    target: float
    mean: float
    reached: int
    seeds: int

    def __str__(self) -> str:
        if math.isnan(self.target):
            return "–"
        if not self.reached:
            return "never"
        return f"{self.mean:.1f}" + (f" ({self.reached} of {self.seeds})" if self.reached < self.seeds else "")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method under one normalisation, over all seeds."""

    normalisation: str
    method: str
    silos: dict[str, Spread]
    small: Spread
    large: Spread
    all: Spread
    worst: Spread
    """Of each seed's worst silo, whichever it was."""
    small_beside: Spread | None
    """Small silos' mean by the score that no operating point changes; None where the task has none."""
    small_other: dict[str, Spread]
    """Small silos' mean by each of the task's other metrics' names."""
    rounds_to: RoundsToScore
    proxy_bytes: int
    """Bytes of weights sent by all silos together per round."""
    processor_seconds: Spread


@dataclass(frozen=True, kw_only=True)
class Paired:
    """`method` minus `against`, seed by seed: small silos' mean of the metric."""

    normalisation: str
    method: str
    against: str
    difference: Spread
    wins: int
    """Seeds in which `method` was strictly better."""


def rows_of(result: StudyResult, *, target: float | None = None) -> list[Row]:
    """Normalisation by normalisation, methods in the order asked for. `target`: score of rounds-to-a-score; None: 90 % of fedavg's."""
    return [
        _row(result, method, normalisation, _target(result, normalisation) if target is None else target)
        for normalisation in result.normalisations for method in result.methods
    ]


def paired(result: StudyResult, normalisation: str, *, method: str = "fedhelp", against: str = "fedavg") -> Paired:
    """The difference of two methods with everything else equal, data and seeds included."""
    metric = result.headline
    both = [(ours.mean(metric, "small"), theirs.mean(metric, "small"))
            for ours, theirs in zip(result.row(method, normalisation), result.row(against, normalisation), strict=True)]
    return Paired(normalisation=normalisation, method=method, against=against, difference=Spread.of(a - b for a, b in both),
                  wins=sum(metric.gain(a, b) > 0 for a, b in both))


def comparisons(result: StudyResult, method: str = "fedhelp") -> list[Paired]:
    """`method` against every other method (of two that are the same mathematics, one), under each normalisation; empty without `method`."""
    others = [m for m in result.methods if m != method and SAME_MATHEMATICS.get(m) not in result.methods]
    if method not in result.methods:
        return []
    return [paired(result, normalisation, method=method, against=other) for normalisation in result.normalisations for other in others]


def curve(results: Sequence[CellResult], metric: Metric, kind: str | None = "small") -> dict[int, Spread]:
    """Evaluated round -> the mean of silos of `kind`, spread over seeds."""
    return {at: Spread.of(cell.mean(metric, kind, at=at) for cell in results) for at in sorted(results[0].scores)}


def rounds_to(results: Sequence[CellResult], metric: Metric, target: float) -> RoundsToScore:
    """How soon each seed's small silos reached `target`."""
    first = [next((at for at in sorted(cell.scores) if metric.gain(cell.mean(metric, "small", at=at), target) >= 0), None) for cell in results]
    reached = [float(at) for at in first if at is not None]
    return RoundsToScore(target=target, mean=Spread.of(reached).mean, reached=len(reached), seeds=len(results))


def write_tables(result: StudyResult, out: Path, *, target: float | None = None) -> list[Path]:
    """`table.md`, `table.csv` (a row a method), `scores.csv` (a row a method, seed and silo), `rounds.csv` (of each round, too) in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {"table.md": markdown(result, target=target), "table.csv": summary_csv(result, target=target), "scores.csv": scores_csv(result),
             "rounds.csv": rounds_csv(result)}
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def terminal_tables(result: StudyResult, *, target: float | None = None) -> list[Table]:
    """One table a normalisation, then the paired comparisons."""
    from rich import box
    from rich.table import Table

    rows, tables = rows_of(result, target=target), []
    for normalisation in result.normalisations:
        block = [row for row in rows if row.normalisation == normalisation]
        table = Table(title=_title(result, normalisation), caption=_notes(result, block), caption_justify="left", box=box.SIMPLE, padding=0)
        for i, heading in enumerate(_headings(result)):
            table.add_column(heading.replace(" (", "\n("), justify="right" if i else "left", no_wrap=not i, vertical="middle")
        for row in block:
            table.add_row(*_cells(row, result), style="bold" if row.method == "fedhelp" else "")
        tables.append(table)
    differences = comparisons(result)
    if differences:
        table = Table(title="fedhelp minus another method, small silos' mean, seed by seed", box=box.SIMPLE)
        for i, heading in enumerate(_PAIRED_HEADINGS):
            table.add_column(heading, justify="right" if i > 1 else "left")
        for pair in differences:
            table.add_row(*_paired_cells(pair, result))
        tables.append(table)
    if len(result.metrics) > 1:
        table = Table(title=_OTHERS_TITLE, box=box.SIMPLE)
        for i, heading in enumerate(_other_headings(result)):
            table.add_column(heading, justify="right" if i > 1 else "left")
        for row in rows:
            table.add_row(*_other_cells(row, result))
        tables.append(table)
    return tables


def markdown(result: StudyResult, *, target: float | None = None) -> str:
    """The same tables as Markdown text."""
    rows, parts = rows_of(result, target=target), []
    for normalisation in result.normalisations:
        block = [row for row in rows if row.normalisation == normalisation]
        table = _markdown_table(_headings(result), [_cells(row, result) for row in block])
        parts += [f"### {_title(result, normalisation)}", table, _notes(result, block)]
    differences = comparisons(result)
    if differences:
        parts.append("### fedhelp minus another method: small silos' mean, seed by seed\n\n"
                     + _markdown_table(_PAIRED_HEADINGS, [_paired_cells(pair, result) for pair in differences]))
    if len(result.metrics) > 1:
        parts.append(f"### {_OTHERS_TITLE}\n\n" + _markdown_table(_other_headings(result), [_other_cells(row, result) for row in rows]))
    return "\n\n".join(parts) + "\n"


def summary_csv(result: StudyResult, *, target: float | None = None) -> str:
    """A line a normalisation and method; columns `<what>` and `<what>_sd`."""
    spreads = ["small_silos_mean", "large_silos_mean", "all_silos_mean", "worst_silo",
               *(f"small_silos_{metric.name}" for metric in result.metrics[1:]), *(f"silo_{silo}" for silo in _silos(result))]
    head = ["normalisation", "method", "seeds", *(f"{name}{end}" for name in spreads for end in ("", "_sd")),
            "target", "rounds_to_target", "seeds_that_reached_it", "proxy_bytes_per_round", "processor_seconds"]
    lines: list[Sequence[object]] = []
    for row in rows_of(result, target=target):
        values = [row.small, row.large, row.all, row.worst, *row.small_other.values(), *row.silos.values()]
        goal = row.rounds_to
        lines.append([row.normalisation, row.method, len(result.seeds), *(_plain(x) for v in values for x in (v.mean, v.deviation)),
                      _plain(goal.target), _plain(goal.mean), goal.reached, row.proxy_bytes, _plain(row.processor_seconds.mean)])
    return _csv(head, lines)


def scores_csv(result: StudyResult) -> str:
    """A line a normalisation, method, seed and silo, with the task's scores of the deployed model and of the proxy."""
    names = [metric.name for metric in result.metrics]
    head = ["normalisation", "method", "seed", "silo", "kind", "training_images", *names, *(f"proxy_{name}" for name in names)]
    lines = []
    for normalisation in result.normalisations:
        for method in result.methods:
            for seed, cell in zip(result.seeds, result.row(method, normalisation), strict=True):
                final = cell.scores[cell.final_round]
                for silo, kind in cell.kinds.items():
                    deployed, proxy = next(iter(final[silo].values())), final[silo]["proxy"]
                    lines.append([normalisation, method, seed, silo, kind, cell.training_samples[silo],
                                  *(_plain(deployed[m]) for m in names), *(_plain(proxy[m]) for m in names)])
    return _csv(head, lines)


def rounds_csv(result: StudyResult) -> str:
    """A line a normalisation, method, seed, round and silo: its losses in every round, and its deployed model's scores where that was evaluated."""
    names = [metric.name for metric in result.metrics]
    rows = [(normalisation, method, seed, cell) for normalisation in result.normalisations for method in result.methods
            for seed, cell in zip(result.seeds, result.row(method, normalisation), strict=True)]
    losses = list(dict.fromkeys(
        name for *_, cell in rows for silos in cell.losses.values() for found in silos.values() for name in found))
    lines = []
    for normalisation, method, seed, cell in rows:
        for at in sorted({*cell.losses, *cell.scores}):
            for silo, kind in cell.kinds.items():
                lost = cell.losses.get(at, {}).get(silo, {})
                scores = next(iter(cell.scores[at][silo].values())) if at in cell.scores else {}
                lines.append([normalisation, method, seed, at, silo, kind, *(_plain(lost.get(name, math.nan)) for name in losses),
                              *(_plain(scores.get(name, math.nan)) for name in names)])
    return _csv(["normalisation", "method", "seed", "round", "silo", "kind", *losses, *names], lines)


_PAIRED_HEADINGS = ["normalisation", "against", "mean difference", "sd over seeds", "better in"]
_OTHERS_TITLE = "Small silos' mean by the task's other scores"


def _row(result: StudyResult, method: str, normalisation: str, target: float) -> Row:
    results, (metric, *others) = result.row(method, normalisation), result.metrics
    return Row(
        normalisation=normalisation, method=method,
        silos={silo: Spread.of(cell.score(metric, silo) for cell in results) for silo in _silos(result)},
        small=Spread.of(cell.mean(metric, "small") for cell in results), large=Spread.of(cell.mean(metric, "large") for cell in results),
        all=Spread.of(cell.mean(metric) for cell in results), worst=Spread.of(cell.worst(metric) for cell in results),
        small_beside=Spread.of(cell.mean(rank, "small") for cell in results) if (rank := beside(result.metrics)) is not None else None,
        small_other={other.name: Spread.of(cell.mean(other, "small") for cell in results) for other in others},
        rounds_to=rounds_to(results, metric, target), proxy_bytes=results[0].proxy_bytes,
        processor_seconds=Spread.of(cell.processor_seconds for cell in results))


def _target(result: StudyResult, normalisation: str) -> float:
    if "fedavg" not in result.methods:
        return math.nan
    metric = result.headline
    reached = Spread.of(cell.mean(metric, "small") for cell in result.row("fedavg", normalisation)).mean
    return reached * _SHARE_OF_FEDAVG if metric.larger_is_better else reached / _SHARE_OF_FEDAVG


def _silos(result: StudyResult) -> list[str]:
    return list(next(iter(result.cells.values())).kinds)


def _title(result: StudyResult, normalisation: str) -> str:
    some = next(iter(result.cells.values()))
    seeds = f"{len(result.seeds)} seeds" if len(result.seeds) > 1 else f"seed {result.seeds[0]}"
    label = result.headline.label
    return f"{label[0].upper()}{label[1:]} after {some.final_round} rounds, normalisation {normalisation}, {seeds}"


def _headings(result: StudyResult) -> list[str]:
    some = next(iter(result.cells.values()))
    silos = [f"{silo} ({kind}, {some.training_samples[silo]:,})" for silo, kind in some.kinds.items()]
    rank = beside(result.metrics)
    return ["method", *silos, "small silos", *([f"small silos ({rank.label})"] if rank is not None else []),
            "large silos", "all", "worst silo", "rounds to score", "sent per round"]


def _cells(row: Row, result: StudyResult) -> list[str]:
    sent = f"{row.proxy_bytes / 2**20:.2f} MiB" if row.proxy_bytes else "0"
    # a silo's own spread is in the CSV: twelve more numbers would hide the row's message
    silos = [f"{spread.mean:.3f}" if spread.n else "–" for spread in row.silos.values()]
    twice = row.method == "local" and len(result.normalisations) > 1
    mark = " *" if row.method in SAME_MATHEMATICS else " †" if twice else ""
    rank = [str(row.small_beside)] if row.small_beside is not None else []
    return [row.method + mark, *silos, str(row.small), *rank, str(row.large), str(row.all), str(row.worst), str(row.rounds_to), sent]


def _notes(result: StudyResult, block: Sequence[Row]) -> str:
    notes = []
    target = block[0].rounds_to.target
    if math.isfinite(target):
        least = "least" if result.headline.larger_is_better else "most"
        notes.append(f"Rounds to score: first evaluated round in which the small silos' mean is at {least} {target:.3f}.")
    if len(result.normalisations) > 1 and "local" in result.methods:
        notes.append("† averages nothing: both normalisations show the same scores.")
    notes += [f"* {name} is by definition the same mathematics as {same}: computed once."
              for name, same in SAME_MATHEMATICS.items() if name in result.methods]
    return " ".join(notes)


def _paired_cells(pair: Paired, result: StudyResult) -> list[str]:
    difference = pair.difference
    mean = f"{difference.mean:+.3f}" if difference.n else "–"
    deviation = f"{difference.deviation:.3f}" if difference.n > 1 else "–"
    return [pair.normalisation, pair.against, mean, deviation, f"{pair.wins} of {len(result.seeds)}"]


def _other_headings(result: StudyResult) -> list[str]:
    return ["normalisation", "method", *(metric.label for metric in result.metrics[1:])]


def _other_cells(row: Row, result: StudyResult) -> list[str]:
    return [row.normalisation, row.method, *(str(row.small_other[metric.name]) for metric in result.metrics[1:])]


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _csv(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return out.getvalue()


def _plain(value: float) -> str:
    """Six digits, or nothing where there is no number."""
    return f"{value:.6g}" if math.isfinite(value) else ""
