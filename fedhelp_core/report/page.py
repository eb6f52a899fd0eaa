"""The report of a finished (or aborted) run: one HTML file that opens anywhere, a pure function of `ReportFacts`.

Called by the evaluation step, which puts the page beside the run's objects, into the pipeline's HTML artifact and into MLflow.
Here facts become rows and geometry, cut so that no silo or teacher can make the page large; `run.html.j2` holds the HTML.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhelp_core.objectives.metrics import sensitivity_and_specificity, share_interval
from fedhelp_core.printable import printable
from fedhelp_core.registry.metrics import Metric
from fedhelp_core.report import charts
from fedhelp_core.report.facts import ReportFacts, SiloFacts, SiloScores, SoftLabelFacts, mean
from fedhelp_core.report.html import render
from fedhelp_core.report.text import count, number, size

MAX_BYTES = 4 * 2**20
"""Largest page, bytes: optional sections are left out, the heaviest first, until it fits."""

_MEANS: Sequence[tuple[str, Sequence[str]]] = (("small silos, mean", ("small",)), ("large silos, mean", ("large",)), ("all silos, mean", ()))
_METHODS = {"local": "training alone", "fedavg": "FedAvg", "fedprox": "FedProx", "fedhelp": "FedHelp"}
"""What people call a method; the others go by their names."""
_HEAVY = ("soft_labels", "confusions", "rounds")
_MAX_ROWS = 200          # per table: a page of hundreds of silos times hundreds of rounds helps nobody
_MAX_SILOS_IN_CHART = 40
_MAX_ROUNDS_IN_GRID = 120
_MAX_LOSSES = 12
_MAX_EXAMPLES = 12
_LOSS_TITLES = {
    "private_loss": "Small hospitals: shared model on their own images",
    "public_loss": "Small hospitals: shared model on the teacher's soft labels",
    "proxy_loss": "Large hospitals: shared model taught by the large one",
    "large_loss": "Large hospitals: large model helped by the shared one",
}
_FOUND = ["#sensitivity", "#95% interval", "#images found", "#specificity", "#95% interval", "#others left alone"]
Row = Sequence[str]


def render_report(facts: ReportFacts, *, max_bytes: int = MAX_BYTES) -> str:
    """The page as text, at most `max_bytes` of UTF-8 unless even its required sections are longer.

    Nothing in `facts` can make it fail: not-a-number is a dash, missing parts are left out.
    """
    for heaviest in range(len(_HEAVY) + 1):
        page = _page(facts, left_out=_HEAVY[:heaviest])
        if len(page.encode()) <= max_bytes:
            break
    return page


def _page(facts: ReportFacts, left_out: Sequence[str]) -> str:
    soft = None if "soft_labels" in left_out else facts.soft_labels
    return render(
        "run.html.j2", facts=facts, of_each=_of_each(facts),
        most=_MAX_ROWS, in_chart=_MAX_SILOS_IN_CHART, left_out=left_out, tiles=_tiles(facts), scores=_scores(facts),
        took_part=_took_part(facts), missing=_missing(facts), by_round=_by_round(facts), traffic=_traffic(facts),
        rounds=[] if "rounds" in left_out else _rounds(facts), confusions=[] if "confusions" in left_out else list(_confusions(facts)),
        soft=soft, **(_soft_labels(soft) if soft else {}), settings=list(facts.parameters.items())[:_MAX_ROWS], lineage=_lineage(facts),
        beside=_beside(facts), found=_found(facts))


def _tiles(facts: ReportFacts) -> Iterator[tuple[str, str]]:
    worst, worst_score = facts.worst_silo()
    metric = facts.headline.label
    done, planned = len(facts.rounds), facts.planned_rounds
    yield number(facts.small_silos_mean()), f"small silos' mean {metric}"
    yield number(worst_score), f"worst silo{': ' + worst if worst else ''}"
    yield number(facts.all_silos_mean()), f"all silos' mean {metric}"
    yield f"{done}" if planned in (None, done) else f"{done} of {planned}", "rounds"
    if seats := sum(len(r.participants) + len(r.absent) + len(r.refused) for r in facts.rounds):
        yield f"{sum(len(r.participants) for r in facts.rounds) / seats:.0%}", "of the updates asked for came and were accepted"
    uploaded = [r.bytes_up for r in facts.rounds if r.bytes_up is not None]
    if uploaded:
        yield size(sum(uploaded)), "left the silos in all"


def _scores(facts: ReportFacts) -> Mapping[str, Any]:
    metric = facts.headline
    worst_first = sorted(facts.silos, key=lambda silo: _last_if_unknown(metric.gain(facts.deployed(silo.name), 0.0)))
    shown = {silo.name for silo in worst_first[:_MAX_SILOS_IN_CHART]}
    rules = any(scores.operating_point for scores in facts.scores.values())
    more = [other for other in facts.metrics[1:] if any(
        other.name in scores for silo in facts.scores.values() for scores in silo.models.values())]
    near = [other for other in more if len(more) == 1 or other == facts.beside]
    return {
        "chart": charts.bars(
            [(silo.name, *_pair(facts, silo.name)) for silo in facts.silos if silo.name in shown],
            deployed="model that the silo deploys", other="proxy (global model), where the silo deploys its large model"),
        "head": ["silo", "kind", "#training images", "#test images", f"#{metric.label}", "#95% interval", "#proxy",
                 *(f"#{other.label}" for other in near), *(["operating point"] if rules else [])],
        "rows": [*([*_score_row(facts, silo, near), *([_decides(facts, silo)] if rules else [])] for silo in facts.silos[:_MAX_ROWS]),
                 *([label, "", "", "", number(facts.mean_of(metric, *kinds)), "", "",
                    *(number(facts.mean_of(other, *kinds)) for other in near), *([""] if rules else [])] for label, kinds in _MEANS)],
        **_other_scores(facts, [other for other in more if other not in near]),
    }


def _other_scores(facts: ReportFacts, metrics: Sequence[Metric]) -> Mapping[str, Any]:
    """The deployed models' scores by `metrics`, in a table of their own: one of a dozen columns is no reading."""
    rows = [[silo.name, *(number(facts.scores[silo.name].deployed(metric.name) if silo.name in facts.scores else None) for metric in metrics)]
            for silo in facts.silos[:_MAX_ROWS]]
    return {"others": [metric.label for metric in metrics], "other_head": ["silo", *(f"#{metric.label}" for metric in metrics)],
            "other_rows": [*rows, *([label, *(number(facts.mean_of(metric, *kinds)) for metric in metrics)] for label, kinds in _MEANS)]}


def _of_each(facts: ReportFacts) -> Mapping[str, Any] | None:
    """Each finding's headline score, a row each: over the silos that label it, and of each silo."""
    name = facts.headline.name
    shown = [silo.name for silo in facts.silos[:_MAX_SILOS_IN_CHART] if name in facts.scores.get(silo.name, SiloScores(models={})).of_each]
    if not shown:
        return None
    values = {silo: facts.scores[silo].of_each[name] for silo in (one.name for one in facts.silos) if silo in facts.scores}
    rows = []
    for place, finding in enumerate(facts.answered[:_MAX_ROWS]):
        found = [of[place] for of in values.values() if place < len(of)]
        rows.append([finding, number(mean(found)), count(sum(not math.isnan(value) for value in found)),
                     *(number(values[silo][place] if place < len(values[silo]) else math.nan) for silo in shown)])
    return {"head": ["", f"#{facts.headline.label}, mean of silos", "#silos that have one", *(f"#{silo}" for silo in shown)], "rows": rows}


def _pair(facts: ReportFacts, silo: str) -> tuple[float | None, float | None]:
    """The deployed model's score, and the proxy's where that is another model."""
    scores = facts.scores.get(silo)
    if scores is None:
        return None, None
    name = facts.headline.name
    return scores.deployed(name), None if scores.deploys_proxy else scores.proxy(name)


def _score_row(facts: ReportFacts, silo: SiloFacts, more: Sequence[Metric]) -> Row:
    scores = facts.scores.get(silo.name, SiloScores(models={}))
    name = facts.headline.name
    return [silo.name, facts.kind(silo), count(silo.training_samples), count(silo.test_samples), number(scores.deployed(name)),
            _interval(scores.interval), number(scores.proxy(name)), *(number(scores.deployed(other.name)) for other in more)]


def _interval(ends: tuple[float, float] | None) -> str:
    return f"{number(ends[0])} to {number(ends[1])}" if ends is not None and all(map(math.isfinite, ends)) else "–"


def _beside(facts: ReportFacts) -> Mapping[str, Any] | None:
    """Silos and means by method, as a study of the same settings found them, and this run's own score last; None without a study.

    Means are over the silos that have a score in every column, so that they can be compared.
    """
    if facts.study is None:
        return None
    study, kinds = facts.study, {silo.name: silo.kind for silo in facts.silos}
    order = sorted(study.methods, key=lambda name: ([*_METHODS].index(name) if name in _METHODS else len(_METHODS), name))

    by_silo = {silo: [*(study.methods[name].get(silo, math.nan) for name in order), facts.deployed(silo)] for silo in kinds}
    whole = {silo: scores for silo, scores in by_silo.items() if all(map(math.isfinite, scores))}

    def means(of: Sequence[str]) -> list[str]:
        shown = [scores for silo, scores in whole.items() if not of or kinds[silo] in of]
        return [number(mean(scores[column] for scores in shown)) for column in range(len(order) + 1)]

    rows = [[silo, *map(number, scores)] for silo, scores in list(by_silo.items())[:_MAX_ROWS]]
    return {
        "seeds": study.seeds, "head": ["silo", *(f"#{_METHODS.get(name, name)}" for name in order), "#this run"],
        "rows": [*rows, *([label, *means(of)] for label, of in _MEANS)]}


def _found(facts: ReportFacts) -> Mapping[str, Any] | None:
    """Sensitivity and specificity with their counts: of two classes those of the second by silo, of more each class's over all silos."""
    matrices = {silo.name: np.array(scores.confusion, dtype=np.int64) for silo in facts.silos
                if (scores := facts.scores.get(silo.name)) is not None and scores.confusion and scores.operating_point
                and len(scores.confusion) == len(facts.classes)}
    if not matrices:
        return None
    total = np.sum(list(matrices.values()), axis=0)
    if len(facts.classes) == 2:
        rows = [(silo, matrix, 1) for silo, matrix in list(matrices.items())[:_MAX_ROWS]]
        return {"of": facts.classes[1], "head": ["silo", *_FOUND], "sums": 1,
                "rows": [[silo, *_rates(matrix, label)] for silo, matrix, label in [*rows, ("all silos", total, 1)]]}
    return {"of": "", "head": ["class", *_FOUND], "sums": 0,
            "rows": [[name, *_rates(total, label)] for label, name in enumerate(facts.classes[:_MAX_ROWS])]}


def _rates(matrix_CC: npt.NDArray[np.int64], label: int) -> Iterator[str]:
    for right, of in sensitivity_and_specificity(matrix_CC, label):
        yield number(right / of if of else None)
        yield _interval(share_interval(right, of))
        yield f"{right:,} of {of:,}"


def _decides(facts: ReportFacts, silo: SiloFacts) -> str:
    """What the silo's operating point comes from, and of how many images."""
    rule = facts.scores[silo.name].operating_point if silo.name in facts.scores else ""
    return f"{rule} ({count(silo.validation_samples)} images)" if rule == "validation" else rule


def _last_if_unknown(score: float) -> float:
    return score if math.isfinite(score) else math.inf


def _took_part(facts: ReportFacts) -> charts.Chart:
    rounds = facts.rounds[-_MAX_ROUNDS_IN_GRID:]
    cells: dict[tuple[str, int], tuple[str, str]] = {}
    for closed in rounds:
        cells |= {(silo, closed.number): ("answered", "answered") for silo in closed.participants}
        cells |= {(silo, closed.number): ("absent", f"absent: {reason}") for silo, reason in closed.absent.items()}
        cells |= {(silo, closed.number): ("refused", f"refused: {reason}") for silo, reason in closed.refused.items()}
    return charts.participation_grid([silo.name for silo in facts.silos][:_MAX_SILOS_IN_CHART], [r.number for r in rounds], cells)


def _missing(facts: ReportFacts) -> list[Row]:
    return [[str(r.number), silo, word, reason] for r in facts.rounds
            for word, group in (("absent", r.absent), ("refused", r.refused)) for silo, reason in group.items()]


def _by_round(facts: ReportFacts) -> list[tuple[str, charts.Chart | None]]:
    """Validation scores, losses and norms; None stands for a chart without values."""
    names = dict.fromkeys(name for closed in facts.rounds for losses in closed.losses.values() for name in losses)
    numbers = [float(r.number) for r in facts.rounds]
    scored = [closed for closed in facts.rounds if closed.validation]
    curves = {silo.name: [closed.validation.get(silo.name) for closed in scored] for silo in facts.silos}
    label, numbers_scored = facts.headline.label, [float(closed.number) for closed in scored]
    found = [(f"{label[:1].upper()}{label[1:]} on validation images", charts.lines(numbers_scored, curves, x_label="round", y_label=label))]
    for name in list(names)[:_MAX_LOSSES]:
        series = {silo.name: [r.losses.get(silo.name, {}).get(name) for r in facts.rounds] for silo in facts.silos}
        found.append((_LOSS_TITLES.get(name, name), charts.lines(numbers, series, x_label="round", y_label="loss")))
    if any(closed.norms for closed in facts.rounds):
        moved = {silo.name: [r.norms.get(silo.name) for r in facts.rounds] for silo in facts.silos}
        found.append(("How far each update moved the trained weights", charts.lines(numbers, moved, x_label="round", y_label="L2 norm")))
    return found


def _traffic(facts: ReportFacts) -> list[tuple[str, charts.Chart | None]]:
    """None stands for a chart without values, and is said so; without any, there is no section."""
    measured = {
        ("Sent by the silos", "MiB"): [None if r.bytes_up is None else r.bytes_up / 2**20 for r in facts.rounds],
        ("Fetched by the silos", "MiB"): [None if r.bytes_down is None else r.bytes_down / 2**20 for r in facts.rounds],
        ("Duration", "seconds"): [r.seconds for r in facts.rounds],
    }
    labels = [str(r.number) for r in facts.rounds]
    drawn = [(title, charts.columns(values, labels=labels, x_label="round", y_label=unit)) for (title, unit), values in measured.items()]
    return drawn if any(chart is not None for _, chart in drawn) else []


def _rounds(facts: ReportFacts) -> list[Row]:
    return [[str(r.number), str(len(r.participants)), str(len(r.absent)), str(len(r.refused)),
             number(mean(next(iter(losses.values()), math.nan) for losses in r.losses.values())), size(r.bytes_up), size(r.bytes_down),
             number(r.seconds, 1)] for r in facts.rounds[-_MAX_ROWS:]]


def _confusions(facts: ReportFacts) -> Iterator[tuple[str, Row, list[list[tuple[int, float]]]]]:
    """Per silo: its name, the classes' names, and rows of (images, shade)."""
    for silo in facts.silos[:_MAX_SILOS_IN_CHART]:
        matrix = facts.scores[silo.name].confusion if silo.name in facts.scores else None
        if matrix:
            classes = [facts.classes[i] if i < len(facts.classes) else f"class {i}" for i in range(len(matrix))]
            yield silo.name, classes, [[(images, 0.75 * max(images, 0) / (sum(row) or 1)) for images in row] for row in matrix]


def _soft_labels(soft: SoftLabelFacts) -> Mapping[str, Any]:
    return {
        "asked": [[t.name, count(t.asked), count(t.cached), count(t.requests), count(t.retried), count(t.failed), count(t.in_doubt),
                   f"{number(t.cost, 2)} {t.currency}", f"{number(t.cost_ever, 2)} {t.currency}", f"{number(t.latency_p50)} s",
                   f"{number(t.latency_p95)} s"] for t in soft.asked[:_MAX_ROWS]],
        "soft_charts": _soft_charts(soft),
        "favourites": [[f"{i} {name}", count(images), number(share)] for i, (name, images, share) in enumerate(soft.favourites[:_MAX_ROWS])],
        "agreements": [[one, other, f"{same:.1%}", number(divergence)] for one, other, same, divergence in soft.agreements[:_MAX_ROWS]],
        "examples": [(_png(example.image_HWC), [f"{printable(name, 40)} {number(share, 2)}" for name, share in example.favourites[:3]])
                     for example in soft.examples[:_MAX_EXAMPLES]],
    }


def _soft_charts(soft: SoftLabelFacts) -> list[tuple[str, charts.Chart]]:
    favoured = [float(images) for _, images, _ in soft.favourites[:_MAX_ROWS]]
    labels = [str(i) for i in range(len(favoured))]
    drawn = (("What the teacher sees", charts.columns(favoured, labels=labels, x_label="likeliest class", y_label="images", whole=True)),
             ("How sure the teacher is", _entropies(soft)))
    return [(title, chart) for title, chart in drawn if chart is not None]


def _entropies(soft: SoftLabelFacts) -> charts.Chart | None:
    if not soft.entropies:
        return None
    top = soft.most_entropy or math.log(max(soft.classes, 2))
    counts, edges = np.histogram(np.clip([e for e in soft.entropies if math.isfinite(e)], 0.0, top), bins=24, range=(0.0, top))
    label = f"entropy of an answer in nats (0: certain, {top:.2f}: no opinion)"
    return charts.columns(counts.astype(float).tolist(), labels=[f"{edge:.2f}" for edge in edges[:-1]], x_label=label, y_label="images", whole=True)


def _png(image_HWC: npt.NDArray[np.uint8], side: int = 96) -> bytes:
    """The image as PNG, shrunk to `side` pixels at most."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image_HWC, dtype=np.uint8))
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _lineage(facts: ReportFacts) -> list[Row]:
    rows = [["final global model, sha256", facts.final_sha256]] if facts.final_sha256 else []
    if facts.soft_labels is not None:
        rows.append(["distillation set, sha256", facts.soft_labels.sha256])
    return [*rows, *([name, value] for name, value in [*facts.lineage.items(), *facts.tracking.items()][:_MAX_ROWS])]
