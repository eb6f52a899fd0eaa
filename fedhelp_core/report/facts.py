"""What the report of a run says, as values: filled by the evaluation step, shown by `page` and `terminal`.

Text in it comes from silos and teachers and is never trusted; whoever shows it escapes and shortens it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedhelp_core.registry.metrics import Metric, beside


@dataclass(frozen=True, kw_only=True)
class SiloFacts:
    """A silo as the check found it. `kind` is 'large' or 'small'; counts are images, None where unknown."""

    name: str
    kind: str
    training_samples: int | None = None
    validation_samples: int | None = None
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
    validation: Mapping[str, float] = field(default_factory=dict)
    """silo -> headline metric of this round's global model on its validation images, where they were scored."""
    norms: Mapping[str, float] = field(default_factory=dict)
    """silo -> L2 norm by which its update moved the trained weights."""
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
    """Counts of the deployed model: row = true class, column = what is decided at the operating point."""
    operating_point: str = ""
    """What the deployed model's operating point comes from; '' of masks."""
    interval: tuple[float, float] | None = None
    """95% of what the deployed model's main score may be, by so few test images; None: nobody knows."""
    of_each: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Metric -> the deployed model's value for each finding, foreground or region; empty of one, and of classes."""

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
class StudyFacts:
    """What a study of the same settings and test images found: methods side by side, each a mean over seeds, by the main score."""

    seeds: int
    methods: Mapping[str, Mapping[str, float]]
    """method -> silo -> mean score of the model that the silo deploys; NaN where undefined."""


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
    answered: tuple[str, ...] = ()
    """What scores of each are of: findings, foregrounds or regions."""
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
    card: str = ""
    """Name of the model card's file beside the page; '' where there is none."""
    enough_validation: int = 10
    """Validation images by which a silo chooses a model."""
    operating_point: str = ""
    """What the federation asked operating points to come from; '' of masks."""
    silos_left_out: Mapping[str, str] = field(default_factory=dict)
    """Silo -> which rounds it missed, or why it was not evaluated."""
    gate: GateFacts | None = None
    study: StudyFacts | None = None
    """None: no study of these settings is known."""
    rounds_file: str = ""
    """Name of the CSV of rounds beside the page; '' where there is none."""
    aborted: str | None = None
    """Reason, where the run was ended early."""
    finished_at: str | None = None
    """ISO 8601 UTC, given by the caller: rendering reads no clock."""

    @property
    def headline(self) -> Metric:
        """The score that charts and means go by."""
        return self.metrics[0]

    @property
    def beside(self) -> Metric | None:
        """The score that stands beside the main one: what no operating point changes."""
        return beside(self.metrics)

    def mean_of(self, metric: Metric, *kinds: str) -> float:
        """Mean of the deployed models' `metric` over the silos of `kinds` (none named: all) that have one."""
        return mean(self.scores[silo.name].deployed(metric.name) for silo in self.silos
                    if silo.name in self.scores and (not kinds or silo.kind in kinds))

    def small_silos_mean(self) -> float:
        """Mean deployed score of the small silos that have one."""
        return self.mean_of(self.headline, "small")

    def large_silos_mean(self) -> float:
        """Mean deployed score of the large silos that have one."""
        return self.mean_of(self.headline, "large")

    def all_silos_mean(self) -> float:
        """Mean deployed score of all silos that have one."""
        return self.mean_of(self.headline)

    def worst_silo(self) -> tuple[str, float]:
        """Name and deployed score of the silo with the worst score; ('', NaN) without scores."""
        scores = {silo.name: self.deployed(silo.name) for silo in self.silos}
        worst = self.headline.worst(scores.values())
        return next((name for name, score in sorted(scores.items()) if score == worst), ""), worst

    def deployed(self, silo: str) -> float:
        """The silo's score by the headline metric, of the model that it deploys; NaN without one."""
        return self.scores[silo].deployed(self.headline.name) if silo in self.scores else math.nan

    def behind_proxy(self) -> tuple[str, ...]:
        """Silos that deploy a large model of their own although the global proxy scores better on their test images, for want of validation images.

        One that has enough of them chose by them; test images say so by chance.
        """
        name = self.headline.name
        chose = {silo.name for silo in self.silos if (silo.validation_samples or 0) >= self.enough_validation}
        return tuple(silo for silo, scores in sorted(self.scores.items())
                     if silo not in chose and self.headline.gain(scores.proxy(name), scores.deployed(name)) > 0)

    def without_own_point(self) -> tuple[str, ...]:
        """Silos that were to fit their operating point on validation images and had too few."""
        asked = self.operating_point == "validation"
        return tuple(silo for silo, scores in sorted(self.scores.items()) if asked and scores.operating_point not in ("", "validation"))

    def kind(self, silo: SiloFacts) -> str:
        """Of the silo; and whether a large one has chosen the proxy."""
        scores = self.scores.get(silo.name)
        return "large, deploys the proxy" if scores is not None and len(scores.models) > 1 and scores.deploys_proxy else silo.kind

    def advice(self) -> str:
        """Sentences about silos that lack validation images, to choose a model by or to decide by; '' where there are none."""
        behind, without = self.behind_proxy(), self.without_own_point()
        said = [
            f"Deploying a large model that scores below the global proxy: {', '.join(behind)}. With {self.enough_validation} validation images"
            " (docs/data.md) such a silo deploys the better of the two."] if behind else []
        if without:
            said.append(f"Too few validation images for an operating point of their own: {', '.join(without)}. They decide by how common classes are"
                        " in training (docs/algorithm.md).")
        return " ".join(said)


def mean(values: Iterable[float]) -> float:
    """Mean of the finite ones, NaN without any."""
    finite = [v for v in values if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan
