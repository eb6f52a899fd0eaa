"""The report of a finished (or aborted) run: one HTML file that opens anywhere, and the summary table for a terminal.

`render_report` is called by the evaluation step, which puts the page beside the run's objects, into the pipeline's HTML
artifact and into MLflow; `render_summary_table` by the command line. Both are pure functions of `ReportFacts`. The page has
no script and loads nothing; whatever silos and teachers wrote is escaped, shortened, and cannot make the page large.
"""

from __future__ import annotations

import base64
import io
import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedhelp_core.registry.tasks import Metric
from fedhelp_core.report.charts import SERIES_COLOURS, bar_rows, clean, columns, lines, number, participation_grid

if TYPE_CHECKING:
    from rich.table import Table

MAX_BYTES = 4 * 2**20
"""Largest page, bytes: optional sections are left out, the heaviest first, until it fits."""

_MAX_ROWS = 200          # per table: a page of hundreds of silos times hundreds of rounds helps nobody
_MAX_SILOS_IN_CHART = 40
_MAX_ROUNDS_IN_GRID = 120
_MAX_EXAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class SiloFacts:
    """A silo as the check found it. `kind` is 'large' or 'small'; counts are images, None where unknown."""

    name: str
    kind: str
    training_samples: int | None = None
    test_samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """One closed round. `absent` and `refused` map silo -> reason, in the words of whoever gave it."""

    number: int
    participants: tuple[str, ...]
    absent: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    losses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """silo -> loss name -> mean over its last local epoch, the loss of the task first."""
    bytes_up: int | None = None
    """Bytes of all updates of this round together."""
    bytes_down: int | None = None
    """Bytes of the global model times the silos that fetched it."""
    seconds: float | None = None
    """From the round's opening to its commit."""


@dataclass(frozen=True, kw_only=True)
class SiloScores:
    """One silo's evaluation on its own test images: the deployed model first, then the other one where it has two."""

    models: Mapping[str, Mapping[str, float]]
    """model name ('large' | 'proxy') -> metric -> value; NaN where the metric is undefined."""
    confusion: tuple[tuple[int, ...], ...] | None = None
    """Counts of the deployed model: row = true class, column = predicted class."""

    @property
    def deploys_proxy(self) -> bool:
        """Whether the global proxy is what the silo deploys."""
        return next(iter(self.models), "proxy") == "proxy"

    def deployed(self, metric: str) -> float:
        """The deployed model's score, NaN without one."""
        return next((scores.get(metric, math.nan) for scores in self.models.values()), math.nan)

    def proxy(self, metric: str) -> float:
        """The proxy's score, NaN without one."""
        return self.models.get("proxy", {}).get(metric, math.nan)


@dataclass(frozen=True, kw_only=True)
class PublicExample:
    """A public image, uint8 (H, W, 3), and the teacher's favourites as (class name or number, probability)."""

    image_HWC: npt.NDArray[np.uint8]
    favourites: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """What one teacher was asked by the run, and what that cost."""

    name: str
    asked: int
    """Images that this run asked about."""
    cached: int
    """Images whose answers were in the ledger."""
    requests: int
    """Answered."""
    retried: int
    """Tries that it refused before it answered."""
    failed: int
    """Requests that were given up, or whose answer was no use."""
    in_doubt: int
    """Requests that may have been answered and charged for, unrecorded."""
    cost: float
    cost_ever: float
    """Of all runs that share the ledger."""
    currency: str
    latency_p50: float
    """Seconds of an answered request."""
    latency_p95: float


@dataclass(frozen=True, kw_only=True)
class SoftLabelFacts:
    """The distillation set in brief."""

    sha256: str
    images: int
    classes: int
    teachers: tuple[str, ...] = ()
    asked: tuple[TeacherFacts, ...] = ()
    requests: int | None = None
    """Requests that this run sent to teachers; 0: everything was in the ledger."""
    favourites: tuple[tuple[str, int, float], ...] = ()
    """Per class: its name, images whose likeliest class it is, its mean probability."""
    agreements: tuple[tuple[str, str, float, float], ...] = ()
    """Per pair of teachers: names, share of images with the same favourite, mean Jensen-Shannon divergence in nats."""
    entropies: tuple[float, ...] = ()
    """Entropy of each answer, in nats: 0 is certainty."""
    most_entropy: float | None = None
    """Of no opinion; None: log(classes)."""
    examples: tuple[PublicExample, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GateFacts:
    """What the promotion gate decided: 'promoted', 'kept' or 'manual', and why."""

    decision: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """Everything that the page shows. Only the first block is required: a missing part is left out of the page or named as missing."""

    run_id: str
    federation: str
    method: str
    normalisation: str
    silos: tuple[SiloFacts, ...]
    metrics: tuple[Metric, ...]
    """The task's scores, the one that charts and means go by first."""
    classes: tuple[str, ...] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)
    """Hyper-parameters by name, in the order to show them."""
    rounds: tuple[RoundReport, ...] = ()
    planned_rounds: int | None = None
    scores: Mapping[str, SiloScores] = field(default_factory=dict)
    soft_labels: SoftLabelFacts | None = None
    final_sha256: str | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)
    """For example config digest, distillation set, code version, image digest."""
    tracking: Mapping[str, str] = field(default_factory=dict)
    """For example MLflow run, registered model, version, alias."""
    gate: GateFacts | None = None
    aborted: str | None = None
    """Reason, where the run was ended early."""
    finished_at: str | None = None
    """ISO 8601 UTC, given by the caller: rendering reads no clock."""

    @property
    def headline(self) -> Metric:
        """The score that charts and means go by."""
        return self.metrics[0]

    def small_silos_mean(self) -> float:
        """Mean deployed score of the small silos that have one."""
        return _mean(self.deployed(silo.name) for silo in self.silos if silo.kind == "small")

    def large_silos_mean(self) -> float:
        """Mean deployed score of the large silos that have one."""
        return _mean(self.deployed(silo.name) for silo in self.silos if silo.kind == "large")

    def all_silos_mean(self) -> float:
        """Mean deployed score of all silos that have one."""
        return _mean(self.deployed(silo.name) for silo in self.silos)

    def worst_silo(self) -> tuple[str, float]:
        """Name and deployed score of the silo with the worst score; ('', NaN) without scores."""
        scores = {silo.name: self.deployed(silo.name) for silo in self.silos}
        worst = self.headline.worst(scores.values())
        return next((name for name, score in sorted(scores.items()) if score == worst), ""), worst

    def deployed(self, silo: str) -> float:
        """The silo's score by the headline metric, of the model that it deploys; NaN without one."""
        return self.scores[silo].deployed(self.headline.name) if silo in self.scores else math.nan

    def behind_proxy(self) -> tuple[str, ...]:
        """Silos that deploy a large model of their own although the global proxy scores better on their test images."""
        name = self.headline.name
        return tuple(silo for silo, scores in sorted(self.scores.items()) if self.headline.gain(scores.proxy(name), scores.deployed(name)) > 0)


def render_report(facts: ReportFacts, *, max_bytes: int = MAX_BYTES) -> str:
    """The page as text, at most `max_bytes` of UTF-8 unless even its required sections are longer.

    Nothing in `facts` can make it fail: not-a-number is a dash, missing parts are left out.
    """
    heavy: list[Callable[[ReportFacts], str]] = [_soft_labels, _confusions, _rounds_table]
    left_out: set[Callable[[ReportFacts], str]] = set()
    for section in [None, *heavy]:
        if section is not None:
            left_out.add(section)
        page = _page(facts, left_out)
        if len(page.encode()) <= max_bytes:
            break
    return page


def render_summary_table(facts: ReportFacts) -> Table:
    """Final scores by silo, their means and the worst silo, for a terminal. Text from silos is never read as markup."""
    from rich.table import Table
    from rich.text import Text

    metric = facts.headline
    table = Table(title=Text(f"{facts.federation} · {facts.method} · {metric.label}"), show_footer=False)
    for heading in ("silo", "kind", "training images", "deployed", "proxy"):
        table.add_column(heading, justify="left" if heading in ("silo", "kind") else "right")
    for silo in facts.silos:
        scores = facts.scores.get(silo.name)
        table.add_row(
            Text(_printable(silo.name)), _kind(silo, scores), "–" if silo.training_samples is None else f"{silo.training_samples:,}",
            number(scores.deployed(metric.name)) if scores else "–", number(scores.proxy(metric.name)) if scores else "–")
    table.add_section()
    worst, worst_score = facts.worst_silo()
    table.add_row("small silos, mean", "", "", number(facts.small_silos_mean()), "", style="bold")
    if any(silo.kind == "large" for silo in facts.silos):
        table.add_row("large silos, mean", "", "", number(facts.large_silos_mean()), "")
    table.add_row("all silos, mean", "", "", number(facts.all_silos_mean()), "")
    table.add_row(Text(f"worst silo: {_printable(worst) or '–'}"), "", "", number(worst_score), "", style="bold")
    if warning := _behind_proxy(facts):
        table.caption, table.caption_justify = Text(_printable(warning, 600)), "left"
    return table


def _page(facts: ReportFacts, left_out: set[Callable[[ReportFacts], str]]) -> str:
    sections: list[Callable[[ReportFacts], str]] = [
        _header, _tiles, _gate, _scores, _participation, _training, _traffic, _rounds_table, _confusions, _soft_labels, _settings, _lineage]
    body = [section(facts) for section in sections if section not in left_out]
    if left_out:
        body.append('<p class="quiet">Some sections were left out to keep this page small; the run\'s store holds everything.</p>')
    template = string.Template(resources.files("fedhelp_core.report").joinpath("page.html").read_text(encoding="utf-8"))
    style = "".join(
        f".line.series-{i}{{stroke:var(--series-{i})}}.dot.series-{i}{{fill:var(--series-{i})}}.swatch.series-{i}{{background:var(--series-{i})}}"
        for i in range(SERIES_COLOURS))
    title = clean(f"{facts.federation} · {facts.run_id}")
    return template.substitute(title=title, body="\n".join(part for part in body if part), series_style=style)


def _header(facts: ReportFacts) -> str:
    if facts.aborted is not None:
        chip = '<span class="chip bad">aborted</span>'
    elif facts.scores:
        chip = '<span class="chip good">finished</span>'
    else:
        chip = '<span class="chip warn">not evaluated</span>'
    when = f" · {clean(facts.finished_at)}" if facts.finished_at else ""
    reason = f'<p class="bad">The run was ended: {clean(facts.aborted, 600)}</p>' if facts.aborted is not None else ""
    return (f"<header><h1>{clean(facts.federation)} {chip}</h1><p class=\"quiet\">run {clean(facts.run_id)} · {clean(facts.method)} · "
            f"normalisation {clean(facts.normalisation)}{when}</p>{reason}</header>")


def _tiles(facts: ReportFacts) -> str:
    worst, worst_score = facts.worst_silo()
    metric = facts.headline.label
    done, planned = len(facts.rounds), facts.planned_rounds
    tiles = [
        (number(facts.small_silos_mean()), f"small silos' mean {metric}"),
        (number(worst_score), f"worst silo{': ' + worst if worst else ''}"),
        (number(facts.all_silos_mean()), f"all silos' mean {metric}"),
        (f"{done}" if planned in (None, done) else f"{done} of {planned}", "rounds"),
    ]
    seats = sum(len(r.participants) + len(r.absent) + len(r.refused) for r in facts.rounds)
    if seats:
        tiles.append((f"{sum(len(r.participants) for r in facts.rounds) / seats:.0%}", "of the updates asked for came and were accepted"))
    uploaded = [r.bytes_up for r in facts.rounds if r.bytes_up is not None]
    if uploaded:
        tiles.append((_bytes(sum(uploaded)), "left the silos in all"))
    return '<div class="tiles">' + "".join(f'<div class="tile"><b>{clean(v)}</b><span>{clean(k)}</span></div>' for v, k in tiles) + "</div>"


def _gate(facts: ReportFacts) -> str:
    if facts.gate is None:
        return ""
    style = {"promoted": "good", "kept": "warn"}.get(facts.gate.decision, "warn")
    reasons = "".join(f"<li>{clean(reason, 600)}</li>" for reason in facts.gate.reasons[:_MAX_ROWS])
    return _section("Promotion", f'<p><span class="chip {style}">{clean(facts.gate.decision)}</span></p><ul>{reasons}</ul>')


def _scores(facts: ReportFacts) -> str:
    metric = facts.headline
    if not facts.scores:
        return _section("Scores", '<p class="quiet">No silo has been evaluated.</p>')
    shown = sorted(facts.silos, key=lambda s: _last_if_unknown(metric.gain(facts.deployed(s.name), 0.0)))[:_MAX_SILOS_IN_CHART]
    rows = [(silo.name, *_bar_pair(facts, silo.name)) for silo in facts.silos if silo in shown]
    chart = bar_rows(rows, deployed="model that the silo deploys", other="proxy (global model), where the silo deploys its large model")
    extra = [other for other in facts.metrics[1:] if any(
        other.name in scores for silo in facts.scores.values() for scores in silo.models.values())]
    head = ["silo", "kind", "#training images", "#test images", f"#{metric.label}", "#proxy", *(f"#{other.label}" for other in extra)]
    body = [_score_row(facts, silo, extra) for silo in facts.silos[:_MAX_ROWS]]
    for label, value in (("small silos, mean", facts.small_silos_mean()), ("large silos, mean", facts.large_silos_mean()),
                         ("all silos, mean", facts.all_silos_mean())):
        body.append([label, "", "", "", number(value), "", *("" for _ in extra)])
    warning = f'<p class="warn">{clean(text, 600)}</p>' if (text := _behind_proxy(facts)) else ""
    return _section(f"Scores: {metric.label} on each silo's own test images", chart + warning + _table(head, body, sums=3) + _cut_note(facts.silos))


def _behind_proxy(facts: ReportFacts) -> str:
    """A sentence about silos whose large model is not worth deploying; '' where there are none."""
    silos = facts.behind_proxy()
    if not silos:
        return ""
    return (f"Deploying a large model that scores below the global proxy: {', '.join(silos[:_MAX_ROWS])}. With ten validation"
            " images (docs/data.md) such a silo deploys the better of the two.")


def _score_row(facts: ReportFacts, silo: SiloFacts, extra: Sequence[Metric]) -> list[str]:
    scores = facts.scores.get(silo.name, SiloScores(models={}))
    name = facts.headline.name
    return [silo.name, _kind(silo, scores), _count(silo.training_samples), _count(silo.test_samples), number(scores.deployed(name)),
            number(scores.proxy(name)), *(number(scores.deployed(other.name)) for other in extra)]


def _kind(silo: SiloFacts, scores: SiloScores | None) -> str:
    """Of the silo; and whether a large one has chosen the proxy."""
    return "large, deploys the proxy" if scores is not None and len(scores.models) > 1 and scores.deploys_proxy else silo.kind


def _bar_pair(facts: ReportFacts, silo: str) -> tuple[float | None, float | None]:
    scores = facts.scores.get(silo)
    if scores is None:
        return None, None
    name = facts.headline.name
    return scores.deployed(name), None if scores.deploys_proxy else scores.proxy(name)


def _participation(facts: ReportFacts) -> str:
    if not facts.rounds:
        return _section("Who took part", '<p class="quiet">No round was closed.</p>')
    rounds = facts.rounds[-_MAX_ROUNDS_IN_GRID:]
    cells: dict[tuple[str, int], tuple[str, str]] = {}
    for closed in rounds:
        cells |= {(silo, closed.number): ("answered", "answered") for silo in closed.participants}
        cells |= {(silo, closed.number): ("absent", f"absent: {reason}") for silo, reason in closed.absent.items()}
        cells |= {(silo, closed.number): ("refused", f"refused: {reason}") for silo, reason in closed.refused.items()}
    names = [silo.name for silo in facts.silos][:_MAX_SILOS_IN_CHART]
    grid = participation_grid(names, [r.number for r in rounds], cells)
    missing = [[str(r.number), silo, word, reason] for r in facts.rounds
               for word, group in (("absent", r.absent), ("refused", r.refused)) for silo, reason in group.items()]
    if not missing:
        return _section("Who took part", grid + '<p class="quiet">Every silo answered every round.</p>')
    note = f'<p class="quiet">{len(missing) - _MAX_ROWS:,} more are in the commits.</p>' if len(missing) > _MAX_ROWS else ""
    return _section("Who took part", grid + _table(["#round", "silo", "", "reason"], missing[:_MAX_ROWS]) + note)


def _training(facts: ReportFacts) -> str:
    names = dict.fromkeys(name for closed in facts.rounds for losses in closed.losses.values() for name in losses)
    charts = []
    for name in list(names)[:12]:
        series = {silo.name: [(float(r.number), r.losses[silo.name][name]) for r in facts.rounds if name in r.losses.get(silo.name, {})]
                  for silo in facts.silos}
        charts.append((_LOSS_TITLES.get(name, name), lines(series, x_label="round", y_label="loss", from_zero=True)))
    return _section("Training", _side_by_side(charts)) if charts else ""


_LOSS_TITLES = {
    "private_loss": "Proxy on private images (Eq 1)",
    "public_loss": "Proxy on soft labels (Eq 2)",
    "proxy_loss": "Proxy taught by the large model (Eq 3)",
    "large_loss": "Large model helped by the proxy (Eq 4)",
}


def _traffic(facts: ReportFacts) -> str:
    measured: list[tuple[str, str, list[float | None]]] = [
        ("Sent by the silos", "MiB", [None if r.bytes_up is None else r.bytes_up / 2**20 for r in facts.rounds]),
        ("Fetched by the silos", "MiB", [None if r.bytes_down is None else r.bytes_down / 2**20 for r in facts.rounds]),
        ("Duration", "seconds", [r.seconds for r in facts.rounds]),
    ]
    labels = [str(r.number) for r in facts.rounds]
    charts = [(title, columns(values, labels=labels, x_label="round", y_label=unit))
              for title, unit, values in measured if any(v is not None for v in values)]
    return _section("Traffic and time", _side_by_side(charts)) if charts else ""


def _rounds_table(facts: ReportFacts) -> str:
    if not facts.rounds:
        return ""
    head = ["#round", "#answered", "#absent", "#refused", "#mean loss", "#sent", "#fetched", "#seconds"]
    rows = []
    for r in facts.rounds[-_MAX_ROWS:]:
        loss = _mean(next(iter(losses.values()), math.nan) for losses in r.losses.values())
        rows.append([str(r.number), str(len(r.participants)), str(len(r.absent)), str(len(r.refused)), number(loss),
                     _bytes(r.bytes_up), _bytes(r.bytes_down), number(r.seconds, 1)])
    return _section("Rounds", f"<details><summary>{len(rows)} rounds</summary>{_table(head, rows)}</details>")


def _confusions(facts: ReportFacts) -> str:
    parts = []
    for silo in facts.silos[:_MAX_SILOS_IN_CHART]:
        confusion = facts.scores[silo.name].confusion if silo.name in facts.scores else None
        if confusion:
            parts.append(f"<details><summary>{clean(silo.name)}</summary>{_confusion(confusion, facts.classes)}</details>")
    note = ('<p class="quiet">Rows: true class. Columns: predicted class, in the same order. '
            'Counts of images, or of the pixels of masks. Shade: share of the row.</p>')
    return _section("Confusion matrices of the deployed models", note + "".join(parts)) if parts else ""


def _confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    names = [clean(classes[i] if i < len(classes) else f"class {i}", 40) for i in range(len(confusion))]
    head = "".join(f'<th class="n" title="{name}">{i}</th>' for i, name in enumerate(names))
    rows = []
    for i, row in enumerate(confusion):
        shades = [0.75 * max(count, 0) / (sum(row) or 1) for count in row]
        cells = "".join(f'<td class="n" style="background:rgba(var(--heat),{shade:.2f})">{count:,}</td>'
                        for count, shade in zip(row, shades, strict=True))
        rows.append(f"<tr><th>{i} {names[i]}</th>{cells}</tr>")
    return f'<div class="scroll"><table class="matrix"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _soft_labels(facts: ReportFacts) -> str:
    soft = facts.soft_labels
    if soft is None:
        return ""
    asked = "" if soft.requests is None else f" This run sent {soft.requests:,} requests" + (
        ": every answer was in the ledger." if soft.requests == 0 else ".")
    teachers = f" Asked: {clean(', '.join(soft.teachers))}." if soft.teachers else ""
    parts = [f"<p>{soft.images:,} public images, {soft.classes:,} classes of the teacher.{teachers}{asked}</p>", _teacher_table(soft)]
    charts = []
    if soft.favourites:
        counts = [float(count) for _, count, _ in soft.favourites[:_MAX_ROWS]]
        charts.append(("What the teacher sees", columns(
            counts, labels=[str(i) for i in range(len(counts))], x_label="likeliest class", y_label="images")))
    if soft.entropies:
        charts.append(("How sure the teacher is", _entropy_histogram(soft)))
    parts += [_side_by_side(charts) if charts else "", _class_table(soft), _agreement_table(soft)]
    figures = "".join(_figure(example) for example in soft.examples[:_MAX_EXAMPLES])
    if figures:
        parts.append(f'<h3>Some public images</h3><div class="pictures">{figures}</div>')
    return _section("Soft labels", "".join(parts))


def _teacher_table(soft: SoftLabelFacts) -> str:
    if not soft.asked:
        return ""
    head = ["teacher", "#asked", "#known before", "#requests", "#retried", "#failed", "#in doubt", "#cost", "#cost ever", "#p50", "#p95"]
    rows = [[t.name, f"{t.asked:,}", f"{t.cached:,}", f"{t.requests:,}", f"{t.retried:,}", f"{t.failed:,}", f"{t.in_doubt:,}",
             f"{t.cost:,.2f} {t.currency}", f"{t.cost_ever:,.2f} {t.currency}", f"{t.latency_p50:.3f} s", f"{t.latency_p95:.3f} s"]
            for t in soft.asked[:_MAX_ROWS]]
    return _table(head, rows)


def _class_table(soft: SoftLabelFacts) -> str:
    if not soft.favourites:
        return ""
    rows = [[f"{i} {name}", f"{count:,}", number(mean)] for i, (name, count, mean) in enumerate(soft.favourites[:_MAX_ROWS])]
    table = _table(["class of the teacher", "#images that favour it", "#mean probability"], rows)
    return f"<details><summary>{len(soft.favourites):,} classes</summary>{table}</details>"


def _agreement_table(soft: SoftLabelFacts) -> str:
    if not soft.agreements:
        return ""
    rows = [[one, other, f"{same:.1%}", number(divergence)] for one, other, same, divergence in soft.agreements[:_MAX_ROWS]]
    return "<h3>How far teachers agree</h3>" + _table(["teacher", "and", "#same favourite", "#divergence (nats, 0 to 0.69)"], rows)


def _entropy_histogram(soft: SoftLabelFacts) -> str:
    finite = [e for e in soft.entropies if math.isfinite(e)]
    top = soft.most_entropy or math.log(max(soft.classes, 2))
    counts, edges = np.histogram(np.clip(finite, 0.0, top), bins=24, range=(0.0, top))
    labels = [f"{edge:.1f}" for edge in edges[:-1]]
    label = f"entropy of an answer in nats (0: certain, {top:.2f}: no opinion)"
    return columns([float(c) for c in counts], labels=labels, x_label=label, y_label="images")


def _figure(example: PublicExample) -> str:
    answers = "<br>".join(f"{clean(name, 40)} {number(p, 2)}" for name, p in example.favourites[:3])
    source = f"data:image/png;base64,{_png(example.image_HWC)}"
    return f'<figure><img alt="public image" src="{source}"><figcaption>{answers}</figcaption></figure>'


def _png(image_HWC: npt.NDArray[np.uint8], side: int = 96) -> str:
    """The image as base64 PNG, shrunk to `side` pixels at most."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image_HWC, dtype=np.uint8))
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _settings(facts: ReportFacts) -> str:
    rows = [[name, str(value)] for name, value in list(facts.parameters.items())[:_MAX_ROWS]]
    if not rows:
        return ""
    return _section("Settings", f"<details><summary>{len(rows)} settings</summary>{_table(['setting', 'value'], rows)}</details>")


def _lineage(facts: ReportFacts) -> str:
    rows = [["final global model, sha256", facts.final_sha256]] if facts.final_sha256 else []
    if facts.soft_labels is not None:
        rows.append(["distillation set, sha256", facts.soft_labels.sha256])
    rows += [[name, value] for name, value in [*facts.lineage.items(), *facts.tracking.items()]][:_MAX_ROWS]
    return _section("Lineage", _table(["what", "value"], rows, wide=True)) if rows else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{clean(title)}</h2>{body}</section>"


def _side_by_side(charts: Sequence[tuple[str, str]]) -> str:
    """(title, chart) pairs, two in a row where the page is wide enough."""
    return '<div class="charts">' + "".join(f"<div><h3>{clean(title)}</h3>{chart}</div>" for title, chart in charts) + "</div>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, sums: int = 0, wide: bool = False) -> str:
    """Cells are escaped here. A heading that starts with '#' is a number's; the last `sums` rows are set apart."""
    numeric = [h.startswith("#") for h in head]
    cells = "".join(f'<th{_class("n" if n else "")}>{clean(h.removeprefix("#"))}</th>' for h, n in zip(head, numeric, strict=True))
    body = []
    for i, row in enumerate(rows):
        columns_ = "".join(
            f"<td{_class('n' if n else 'wide' if wide and j else '')}>{clean(value, 300)}</td>"
            for j, (value, n) in enumerate(zip(row, numeric, strict=True)))
        body.append(f"<tr{_class('sum' if i >= len(rows) - sums else '')}>{columns_}</tr>")
    return f'<div class="scroll"><table><tr>{cells}</tr>{"".join(body)}</table></div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _cut_note(silos: Sequence[SiloFacts]) -> str:
    if len(silos) <= _MAX_SILOS_IN_CHART:
        return ""
    return f'<p class="quiet">The chart shows the {_MAX_SILOS_IN_CHART} silos with the worst scores of {len(silos):,}.</p>'


def _mean(values: Iterable[float]) -> float:
    """Mean of the finite ones, NaN without any."""
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan


def _last_if_unknown(score: float) -> float:
    return score if math.isfinite(score) else math.inf


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _bytes(value: int | None) -> str:
    """Bytes for people: '1.4 MiB'."""
    if value is None:
        return "–"
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"


def _printable(text: str, most: int = 80) -> str:
    """The first `most` characters of `text`, without control characters, for a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:most])
