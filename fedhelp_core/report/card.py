"""The model card: what a model is, what it was made from, how it did and where it fails, for whoever is about to use it. Markdown and HTML.

Called by evaluation. It names no hospital that did not agree, and no patient. Its sections are those of Mitchell et al. 2019 (arXiv 1810.03993).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markupsafe import Markup

from fedhelp_core.config.card import CardConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.printable import printable
from fedhelp_core.protocol.documents import Statistics
from fedhelp_core.protocol.model_record import HospitalScores, Lineage
from fedhelp_core.report import html
from fedhelp_core.report.text import number

_POOR_RECALL = 0.5  # of a class: more of its images are called something else than are found
_FAR_BELOW = 0.1  # of a score in [0, 1]: how far the worst hospital may lie below the mean before the card warns of it
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+|~!-])")
_MADE = {
    "averaged": "Batch norms were averaged like all other weights.",
    "public-images": "Batch norms stay in the hospitals. The registered model's have statistics of the public images; a hospital that took part"
                     " uses its own, which fit it better.",
    "none": "Batch norms stay in the hospitals, and there were no public images to make others from: only hospitals that took part can use it.",
}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a card says."""

    name: str
    run: str
    global_sha256: str
    task: TaskConfig
    network: str
    method: str
    preprocessing: str
    statistics: Statistics
    decision: str
    """How a class is decided, in words."""
    own: CardConfig
    """What the federation says itself."""
    class_shares: Sequence[float]
    hospitals: Sequence[HospitalScores]
    left_out: int
    means: Mapping[str, float]
    recalls: Sequence[float]
    """Of each class over all hospitals' test images, NaN where there is none; of masks, of the foreground's pixels."""
    public_images: int
    teachers: Sequence[str]
    lineage: Lineage


def render_card(facts: CardFacts) -> tuple[str, str]:
    """(Markdown, HTML), the same text."""
    text = "\n".join(_lines(facts)) + "\n"
    marked_up = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return text, html.render("card.html.j2", title=f"Model card: {facts.name}", text=Markup(marked_up))  # no HTML of a text passes


def _lines(facts: CardFacts) -> Iterator[str]:
    task = facts.task
    yield from (f"# Model card: {_text(facts.name)}", "")
    yield from ("**Not a medical device.** No authority has assessed it. It must not decide about a patient.", "")
    yield from _section("What it is", [
        f"It answers {_text(facts.task.name)} with {_answers(facts.task)}.",
        f"The network is {_text(facts.network)}, trained by {facts.lineage.hospitals} hospitals together with method {_text(facts.method)}.",
        f"Images are prepared as: {_text(facts.preprocessing)}.", _MADE[facts.statistics], facts.decision])
    yield from _section("Intended use", [
        _text(facts.own.intended_use) or "Research: to compare methods, and to be tried by hospitals on images whose diagnosis is known.",
        "Images must be of the kind that the hospitals below have. A hospital measures the model on its own images before it relies on it.",
        "It must not be used alone, on other kinds of images, or on patients who are unlike those below."])
    yield from _section("Data", [
        f"{facts.lineage.training_images:,} training and {facts.lineage.test_images:,} test images of {facts.lineage.hospitals} hospitals. No image"
        " left its hospital.",
        f"{facts.public_images:,} public images with answers of {_text(', '.join(facts.teachers))}." if facts.public_images else "No public images."])
    yield from _table(["hospital", "kind", "training", "validation", "test"], [
        [_text(one.name), one.kind or "", f"{one.images.training:,}", f"{one.images.validation:,}", f"{one.images.test:,}"]
        for one in facts.hospitals if one.name and one.images])
    yield from _table(["finding" if facts.task.form == "labels" else "class", "share in training"], [
        [_text(name), f"{share:.1%}"] for name, share in zip(facts.task.classes, facts.class_shares, strict=False)])
    title = task.headline.title
    yield from ("## Scores", "", f"On each hospital's own test images, which no training has seen. {title[:1].upper()}{title[1:]} of this model:", "")
    yield from _table(["hospital", task.headline.label, "95% interval"], _score_rows(facts))
    yield from _table(["over hospitals", "value"], [[_text(name.replace("_", " ")), number(value)] for name, value in sorted(facts.means.items())])
    yield from _section("Known failures", _failures(facts))
    yield from _section("Licence and contact", [
        _text(facts.own.licence) or "No licence was given: ask the federation before you use the weights elsewhere.",
        _text(facts.own.contact) or "No contact was given.", "The software, FedHelp, is Apache-2.0."])
    yield from ("## Lineage", "")
    yield from _table(["what", "value"], [
        ["run", _text(facts.run)], ["weights, sha256", facts.global_sha256], ["config, sha256", facts.lineage.federation_sha256],
        ["distillation set, sha256", facts.lineage.distillation_set_sha256 or "none"], ["rounds", str(facts.lineage.rounds)],
        ["started from", _parent(facts.lineage)],
        *([f"{which} model pretrained", f"{_text(one.source)}; licence {_text(one.licence)}; sha256 {one.sha256}"]
          for which, one in facts.lineage.pretrained.items()),
        *([_text(name), _text(version)] for name, version in sorted(facts.lineage.software.items()))])


def _answers(task: TaskConfig) -> str:
    if task.form == "labels":
        return f"a probability of each of these findings by itself: {', '.join(map(_text, task.classes))}"
    if task.form == "classes":
        return f"a probability of each of {', '.join(map(_text, task.classes))}"
    if len(task.answered) > 1:
        how = "by itself" if task.form == "regions" else "and of the background"
        return f"a probability of each of {', '.join(map(_text, task.answered))} {how} for each {'voxel' if task.dimensions == 3 else 'pixel'}"
    return f"the probability of {_text(task.answered[0])} for each {'voxel' if task.dimensions == 3 else 'pixel'}"


def _score_rows(facts: CardFacts) -> list[list[str]]:
    name = facts.task.headline.name
    rows = []
    for place, one in enumerate(facts.hospitals, start=1):
        low, high = one.interval or (math.nan, math.nan)
        interval = "" if math.isnan(low) else f"{number(low)} to {number(high)}"
        rows.append([_text(one.name) or f"hospital {place}, not named", number(one.scores[name]), interval])
    return rows


def _failures(facts: CardFacts) -> list[str]:
    """What the numbers say by themselves."""
    metric, name = facts.task.headline, facts.task.headline.name
    scores = [score for one in facts.hospitals if math.isfinite(score := one.scores[name])]
    found = []
    mean, worst = sum(scores) / max(1, len(scores)), metric.worst(scores)
    if scores and abs(metric.gain(worst, mean)) > _FAR_BELOW:
        found.append(f"The worst hospital has {number(worst)}, the mean is {number(mean)}: yours may be as the worst.")
    classes = facts.task.answered
    poor = [f"{_text(label)} ({recall:.0%})" for label, recall in zip(classes, facts.recalls, strict=True) if recall < _POOR_RECALL]
    if poor:
        found.append(f"It misses more than it finds of {', '.join(poor)}.")
    unseen = [_text(label) for label, recall in zip(classes, facts.recalls, strict=True) if math.isnan(recall)]
    if unseen:
        found.append(f"No test image shows {', '.join(unseen)}: nothing is known of these.")
    if facts.left_out:
        found.append(f"{facts.left_out} hospitals missed rounds or the evaluation.")
    if facts.own.limits:
        found.append(_text(facts.own.limits))
    return [*found, "Not looked at: other scanners and cameras, other ages and skins than the hospitals' own, images that were altered on purpose."]


def _parent(lineage: Lineage) -> str:
    parent = lineage.parent
    if parent is None:
        return "pretrained weights" if "proxy" in lineage.pretrained else "a random start, drawn from the seed"
    return f"{_text(parent.model)} version {parent.version}, {parent.sha256}" if parent.model else f"weights {parent.sha256}"


def _section(title: str, sentences: Iterable[str]) -> Iterator[str]:
    yield from (f"## {title}", "", *(f"- {sentence}" for sentence in sentences), "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield from (f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
        yield ""


def _text(value: str) -> str:
    """A text of a config or a document in one line, none of it markup."""
    return _SPECIAL.sub(r"\\\1", printable(value, 1000))
