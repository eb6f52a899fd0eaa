"""What one step of a run settles for the later ones, as documents: written once, and whoever comes second adopts the first's.

`Run.settle` writes a fact, `Run.fact` reads it. Who is large, how common classes are and what the run starts from comes from check, the
distillation set from soft_label_prefetch. Its summary, the candidate, what was made for its users and who was left out come from evaluation, the
decision from promotion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Base64Bytes, ConfigDict, FailFast, Field, RootModel

from fedhelp_core.errors import PermanentError
from fedhelp_core.protocol.documents import (
    Amount,
    BySilo,
    Count,
    Document,
    Name,
    Score,
    Sha256,
    Share,
    SiloKind,
    Software,
    Statistics,
    StoredWeights,
    required_printable,
)
from fedhelp_core.protocol.keys import MODEL_NAME, NAME

_Prose = Annotated[str, Field(max_length=2**19)]  # reasons of all silos
_Label = Annotated[str, Field(max_length=10_000)]  # a class as its prompt, or a teacher with its version: the config limits neither


class Fact(Document):
    """A document with a name of its own in the run's folder."""

    canonical = True
    fact_name: ClassVar[str]


class Kinds(Fact, RootModel[BySilo[SiloKind]]):
    """Which silos are large: `kinds.json`."""

    model_config = ConfigDict(strict=True, frozen=True)
    fact_name: ClassVar[str] = "kinds"

    def of(self, silo: str) -> SiloKind:
        """The silo's kind.

        Raises:
            PermanentError: the fact says nothing of it.
        """
        try:
            return self.root[silo]
        except KeyError as e:
            raise PermanentError(f"kinds.json: silo {silo!r} expected, got {', '.join(self.root)[:200] or 'none'}; start the run anew") from e


@dataclass(frozen=True, kw_only=True)
class ClassShares(Fact):
    """How common each class is among all silos' training images: `class_shares.json`. Silos read what the global model has been trained on."""

    fact_name = "class_shares"

    shares: Annotated[list[Share], Field(min_length=1, max_length=10_000), FailFast()]
    """In the order of the task's classes, as class_shares.pooled_shares has them; of findings, as pooled_findings has them."""


@dataclass(frozen=True, kw_only=True)
class Account(Document):
    """What a teacher was asked and what came of it. Requests are told apart by their end."""

    requests: Count = 0
    """Answered and recorded."""
    images: Count = 0
    """Asked about in these."""
    retried: Count = 0
    """Tries that the teacher refused (429, 503, not reached) before it answered."""
    in_doubt: Count = 0
    """Requests that may have been answered, of which no answer was recorded."""
    in_doubt_images: Count = 0
    refused: Count = 0
    """Requests that the teacher did not answer, and that were given up."""
    unusable: Count = 0
    """Requests whose answer could not be used."""
    cost: Amount = 0.0
    """Of all but the refused ones, at the config's prices."""
    latency_p50: Amount = 0.0
    """Seconds of an answered request, median."""
    latency_p95: Amount = 0.0


@dataclass(frozen=True, kw_only=True)
class TeacherReport(Document):
    """How one teacher's answers were come by."""

    asked: Count
    """Images that this run asked about, in all of its processes."""
    cached: Count
    """Images that the ledger knew before this run."""
    currency: Annotated[str, Field(max_length=100), AfterValidator(required_printable)]
    run: Account
    """What this run's processes asked, the killed ones included."""
    ever: Account
    """What was asked under this identity by all runs."""


@dataclass(frozen=True, kw_only=True)
class SoftLabels(Fact):
    """Which distillation set the run uses, and what asking for it took: `distillation_set.json`. Sums are over the teachers."""

    fact_name = "distillation_set"

    sha256: Sha256
    images: Count
    """Distinct public images."""
    duplicates: Count
    """Images left out because another has the same content."""
    asked: Count
    cached: Count
    seconds: Amount
    classes: Count
    teachers: Annotated[dict[_Label, TeacherReport], Field(max_length=1000)]


@dataclass(frozen=True, kw_only=True)
class SummaryExample(Document):
    """One public image and what the teachers said."""

    shape: tuple[Annotated[int, Field(ge=1, le=2**14)], Annotated[int, Field(ge=1, le=2**14)], Literal[3]]
    pixels: Base64Bytes
    """uint8, (H, W, 3)."""
    favourites: Annotated[tuple[tuple[_Label, Amount], ...], Field(max_length=1000)]
    """Class name and probability, the likeliest first; of masks: the share of the image."""

    def __post_init__(self) -> None:
        if len(self.pixels) != math.prod(self.shape):
            raise ValueError(f"{math.prod(self.shape)} bytes of pixels expected, got {len(self.pixels)}")

    @classmethod
    def of(cls, image_HWC: NDArray[np.uint8], favourites: tuple[tuple[str, float], ...]) -> SummaryExample:
        """As it is kept."""
        height, width, _ = image_HWC.shape
        return cls(shape=(height, width, 3), pixels=image_HWC.tobytes(), favourites=favourites)

    @property
    def image_HWC(self) -> NDArray[np.uint8]:
        """RGB."""
        return np.frombuffer(self.pixels, np.uint8).reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class SoftLabelSummary(Fact):
    """The distillation set in numbers and examples, for the report: `soft_label_summary.json`."""

    fact_name = "soft_label_summary"
    max_bytes = 64 * 2**20

    teachers: Annotated[tuple[_Label, ...], Field(max_length=1000)]
    entropies: Annotated[tuple[Amount, ...], FailFast()]
    """Of each answer in nats."""
    most_entropy: Amount
    favourites: Annotated[tuple[tuple[_Label, Count, Amount], ...], FailFast()]
    """Class name, images that favour it, mean probability."""
    agreements: Annotated[tuple[tuple[_Label, _Label, Amount, float], ...], FailFast()]
    """Two teachers, share of images on which both favour the same class, mean Jensen-Shannon divergence in nats."""
    examples: Annotated[tuple[SummaryExample, ...], Field(max_length=1000)]


@dataclass(frozen=True, kw_only=True)
class Candidate(Fact):
    """The version under which the final model is registered, and its scores: `candidate.json`."""

    fact_name = "candidate"

    version: Name
    global_sha256: Sha256
    metrics: dict[Name, Score]
    """NaN where no silo's test images define one."""


@dataclass(frozen=True, kw_only=True)
class StartedFrom(Fact):
    """The model that the first round starts from, where that is no seed: `started_from.json`. Its weights lie under `models/<model>/weights/`."""

    fact_name = "started_from"

    weights: StoredWeights
    model: Annotated[str, Field(pattern=f"^{MODEL_NAME}$")]
    """Registered name that the weights lie under."""
    version: Annotated[str, Field(pattern=r"^[0-9]{0,18}$")]
    """'' of a file."""
    run: Annotated[str, Field(pattern=f"^({NAME})?$")]
    """That trained it: silos look for what they kept of it; '' where nobody knows."""
    carry_over: bool
    """Whether silos go on with that."""


@dataclass(frozen=True, kw_only=True)
class Served(Fact):
    """What evaluation added to the final model for those who use it without having trained it: `served.json`."""

    fact_name = "served"

    statistics: Statistics
    norms: StoredWeights | None
    """Batch norms made for others, where hospitals keep theirs."""
    software: Software
    card_sha256: Sha256
    """Of `card.md`."""
    card_html_sha256: Sha256


class LeftOut(Fact, RootModel[BySilo[_Prose]]):
    """Which silos missed rounds or the evaluation, and why, for people: `left_out.json`. An evaluation that is run again replaces it."""

    model_config = ConfigDict(strict=True, frozen=True)
    fact_name: ClassVar[str] = "left_out"


@dataclass(frozen=True, kw_only=True)
class Tracked(Fact):
    """Where people see the run in MLflow: `tracked.json`. A check that is run again replaces it."""

    fact_name = "tracked"

    address: Annotated[str, Field(max_length=2000), AfterValidator(required_printable)]


@dataclass(frozen=True, kw_only=True)
class Promotion(Fact):
    """What the gate decided: `promotion.json`."""

    fact_name = "promotion"

    decision: _Prose
    """One sentence for people."""
    outcome: Literal["promoted", "kept", "manual"]
    reasons: _Prose
    before: Name | None
    """The champion's version before, where this one took its place."""
