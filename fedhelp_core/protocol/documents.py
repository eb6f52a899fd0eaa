"""What hub and silos write to each other in rounds, beside weights: JSON documents, hostile until parsed. facts.py has the others.

Each is a frozen dataclass whose fields say what may stand in them. `read` and `parse` refuse everything else, an unknown or
repeated field, a larger object and deeper nesting included, in one sentence that names the object and the field. keys.py knows
under which names they lie. Called by run.py, lease.py and the steps.
"""

from __future__ import annotations

import json
import math
import operator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, ConfigDict, FailFast, Field, TypeAdapter, ValidationError

from fedhelp_core.algorithm.server import Part
from fedhelp_core.errors import NotFound, PermanentError, WeightsError
from fedhelp_core.printable import printable_lines
from fedhelp_core.protocol.keys import NAME
from fedhelp_core.store.base import Store
from fedhelp_core.weights.header import WeightsSpec, no_duplicates

MAX_REASON = 500
"""Characters of a reason, however long what went wrong says it."""
MOST_SILOS = 10_000
_MOST_IMAGES = 10**9  # of a silo, and rounds of a run: no hospital has more, and sums of so many stay exact in a float
_YEARS = range(2000, 2200)  # of a time: no zone can move one of these beyond what dates can say
_LONGEST_TENSOR = 500  # characters; PyTorch names a tensor by its path through the modules


class Document:
    """What every document has in common: nothing is converted, nothing unknown is taken, floats are finite."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")
    max_bytes: ClassVar[int] = 2**20
    """A larger object is not read."""
    canonical: ClassVar[bool] = False
    """Whether its JSON has sorted fields and spaces; manifests have neither. Objects are compared by content, so this stays as it is."""


_adapters: dict[type, TypeAdapter[Any]] = {}
_T = TypeVar("_T")
D = TypeVar("D", bound=Document)


def dump(document: Document) -> bytes:
    """Its JSON."""
    adapter = _adapter(type(document))
    if document.canonical:
        return json.dumps(adapter.dump_python(document, mode="json"), sort_keys=True).encode()
    return adapter.dump_json(document)


def read(store: Store, kind: type[D], key: str) -> D | None:
    """The document of `kind` at `key`; None if there is none.

    Raises:
        PermanentError: the object is larger than such a document may be, or as in `parse`.
    """
    try:
        body = store.get(key, kind.max_bytes)
    except NotFound:
        return None
    return parse(kind, body, key)


def parse(kind: type[D], body: bytes, key: str) -> D:
    """The document of `kind` in `body`; `key` names the object in messages.

    Raises:
        PermanentError: `body` is no JSON, or not of such a document; the message names the field.
    """
    try:
        plain = json.loads(body, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as e:
        raise PermanentError(f"{key}: document: invalid JSON: {str(e)[:200]}") from e
    fields = getattr(kind, "__dataclass_fields__", plain)
    if isinstance(plain, dict) and (unknown := plain.keys() - fields):  # before the rest: of a million unknown fields, one is enough
        raise PermanentError(f"{key}: {_escaped(min(unknown))}: no such field, one of {', '.join(fields)} expected")
    try:
        document: D = _adapter(kind).validate_json(body)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        where = _escaped(".".join(str(part) for part in first["loc"]) or "document")
        raise PermanentError(f"{key}: {where}: {first['msg'][:1].lower()}{first['msg'][1:200]}, got {_found(plain, first['loc'])}") from e
    return document


def said(reason: object) -> str:
    """`reason` as it may stand in a document: at most MAX_REASON characters, unprintable ones replaced."""
    return "\n".join(printable_lines(str(reason)[:MAX_REASON]))


def utc_now() -> str:
    """The time of a document, for people."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _adapter(kind: type) -> TypeAdapter[Any]:
    """Made once for every kind; two threads may both make one."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def _found(value: Any, place: tuple[int | str, ...]) -> str:
    """At most 80 characters of what a document has at `place`, or last had on the way there."""
    for part in place:
        try:
            value = value[part]
        except (LookupError, TypeError):
            break
    return repr(value)[:80]


def _escaped(name: str) -> str:
    """A field's name as it may stand in a message: one line, not too long."""
    return name[:200].encode("unicode_escape").decode()


def _instant(text: str) -> str:
    """ISO 8601 with its zone, or nothing."""
    if text and ((instant := datetime.fromisoformat(text)).utcoffset() is None or instant.year not in _YEARS):
        raise ValueError(f"a time with its zone, in the years {_YEARS[0]} to {_YEARS[-1]}, expected")
    return text


def required_printable(text: str) -> str:
    """What people read, refused instead of cleaned: no control or bidirectional characters, which could draw other lines than were written.

    Raises:
        ValueError: there is one.
    """
    if not text.replace("\n", "").isprintable():  # reasons may be lists
        raise ValueError("printable characters expected")
    return text


def _finite_or_nan(value: float) -> float:
    """NaN says that nothing defines the score."""
    if math.isinf(value):
        raise ValueError("a number or NaN expected")
    return value


def _possible(spec: WeightsSpec) -> WeightsSpec:
    if len(spec.architecture) > 300 or any(len(name) > _LONGEST_TENSOR for name in spec.tensors):
        raise ValueError(f"an architecture of at most 300 characters and tensors' names of at most {_LONGEST_TENSOR} expected")
    required_printable("".join([spec.architecture, *spec.tensors]))
    try:
        spec.require_possible()
    except WeightsError as e:
        raise ValueError(str(e)) from e
    return spec


Silo = Annotated[str, Field(pattern=f"^{NAME}$")]
SiloKind = Annotated[str, Field(pattern="^(small|large)$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$", max_length=100)]
Text = Annotated[str, Field(pattern=r"^[ -~]*$", max_length=300)]
Reason = Annotated[str, Field(max_length=MAX_REASON), AfterValidator(required_printable)]
Time = Annotated[str, Field(max_length=40), AfterValidator(_instant)]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]+$", max_length=1024)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sha256OrNone = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Spec = Annotated[WeightsSpec, AfterValidator(_possible)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Images = Annotated[int, Field(ge=0, le=_MOST_IMAGES)]
Round = Annotated[int, Field(ge=0, le=_MOST_IMAGES)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Score = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_finite_or_nan)]
Metrics = Annotated[dict[Name, float], Field(max_length=64)]
Confusion = Annotated[list[Annotated[list[Count], FailFast()]], Field(max_length=10_000), FailFast()]
Software = Annotated[dict[Name, Text], Field(max_length=64)]
Statistics = Literal["averaged", "public-images", "none"]
"""How the registered model's batch norms were made: averaged like the rest, from public images, or not at all."""
BySilo = Annotated[dict[Silo, _T], Field(max_length=MOST_SILOS)]


@dataclass(frozen=True, kw_only=True)
class StoredWeights(Document):
    """A weights file in the store, named by its content."""

    sha256: Sha256
    size_bytes: Annotated[Count, Field(ge=8)]
    spec: Spec


@dataclass(frozen=True, kw_only=True)
class UpdateManifest(Document):
    """One silo's answer to one round: `updates/<silo>.json`."""

    silo: Silo
    round: Annotated[Round, Field(ge=1)]
    trained_from: Sha256
    """Of the global model that this update was trained from, hex: an update for another round's model is never averaged."""
    weights: Key
    """Key of the weights object."""
    sha256: Sha256
    """Of the weights file, hex."""
    size_bytes: Count
    samples: Annotated[Images, Field(ge=1)]
    """Private training images behind this update, for people: n_k of Eq 7 is what the silo's check counted."""
    loss: float | None
    """Mean training loss; None where the method has none."""
    metrics: Metrics
    architecture: Text
    code_version: Text = ""
    image_digest: Text = ""
    created: Time = ""
    """ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True)
class Moved(Document):
    """How an update lies to the global model that it was trained from: L2 norms, apart for what is learnt and what is counted, and where it went."""

    trainable: Amount
    """Over all weights that an optimizer moves."""
    statistics: Amount
    """Over the running means and variances of batch norms."""
    direction: Annotated[float, Field(ge=-1.001, le=1.001)] | None = None
    """Cosine between its step and the round's median step; null where nobody looked."""


@dataclass(frozen=True, kw_only=True)
class Commit(Document):
    """What made a round real: `commit.json`. Commit 0 holds the seeded start and has no participants."""

    max_bytes = 16 * 2**20  # 1000 silos with all the metrics that a manifest may hold stay below

    round: Round
    global_key: Key
    """Key of the model after this round, which the next round starts from."""
    global_sha256: Sha256
    spec: Spec
    """What every update of the next round must look like."""
    participants: Annotated[tuple[Silo, ...], Field(max_length=MOST_SILOS), FailFast()] = ()
    """Silos in the average, in the order in which they were summed."""
    shares: BySilo[Share] = field(default_factory=dict)
    """a_k of Eq 7 by participant."""
    absent: BySilo[Reason] = field(default_factory=dict)
    """Invited silos that sent nothing in time, and why."""
    refused: BySilo[Reason] = field(default_factory=dict)
    """Silos whose update failed a check, and which."""
    metrics: BySilo[Annotated[dict[Name, float], Field(max_length=66)]] = field(default_factory=dict)
    """By participant: samples as check counted them, loss, and what the silo's manifest says."""
    norms: BySilo[Moved] = field(default_factory=dict)
    """How far each update moved from the global model, by participant; empty where nobody looked."""
    server_state: Annotated[dict[Part, Sha256], Field(exclude_if=operator.not_)] = field(default_factory=dict)
    """What the hub remembers of this round beside the model (algorithm/server.py), by its file's sha256; mostly nothing, and then not written."""
    previous_sha256: Sha256OrNone = ""
    """sha256 of the model that this round started from; '' in commit 0."""
    created: Time = ""
    """ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True)
class SplitSizes(Document):
    """Numbers of images."""

    training: Annotated[Images, Field(ge=1)]
    validation: Images
    test: Images


@dataclass(frozen=True, kw_only=True)
class ModelSize(Document):
    """How large a model is, by a silo's software: models/sizes.py says what each number is."""

    parameters: Count
    travelling_bytes: Count
    flops: Count
    training_bytes: Count
    batch_norms: Count
    pretrained: Reason = ""
    """Which of its tensors come from a file; '' where all come from the seed."""


@dataclass(frozen=True, kw_only=True)
class SiloReport(Document):
    """What a silo found when it checked itself: `silos/<silo>.json`. Counts and hashes."""

    silo: Silo
    samples: SplitSizes
    training_class_counts: Annotated[list[Count], Field(max_length=10_000), FailFast()]
    """Training images of each class, or with each finding; of masks: pixels."""
    training_labelled_counts: Annotated[list[Count], Field(max_length=10_000), FailFast()] = field(default_factory=list)
    """Of findings: training images in which each is labelled; empty of other forms."""
    test_sha256: Sha256
    start_sha256: Sha256
    """Of the start model that this silo's software draws from the seed."""
    models: dict[Literal["proxy", "large"], ModelSize] = field(default_factory=dict)
    """Of the federation's models, the large one where the method has one; for people."""


@dataclass(frozen=True, kw_only=True)
class ModelScores(Document):
    """One model on a silo's test images."""

    scores: Annotated[dict[Name, Score], Field(max_length=64)]
    """Metric's name -> value; NaN where the test images do not define it."""
    confusion: Confusion
    """(C, C) counts of images, or of pixels of masks: row = true class, column = what the silo decides at its operating point.
    Of findings (K, 4), of those images in which each is labelled: not seen and not found, not seen but found, seen but not found, seen and found."""
    argmax_confusion: Confusion = field(default_factory=list)
    """The same with the model's likeliest class as the column; of classes alone."""
    operating_point: Literal["argmax", "prior-corrected", "validation"] = "argmax"
    """What the silo's operating point comes from. Its temperature and offsets stay in the silo."""
    interval: tuple[Score, Score] | None = None
    """Of masks: 95% of the mean Dice over test images. Of classes none: it comes from the counts."""
    of_each: Annotated[dict[Name, Annotated[list[Score], Field(max_length=10_000), FailFast()]], Field(max_length=64)] = field(default_factory=dict)
    """Metric's name -> its value for each finding by itself; empty of other forms."""


@dataclass(frozen=True, kw_only=True)
class SiloEvaluation(Document):
    """A silo's scores on its own test images: `evaluation/<silo>.json`."""

    silo: Silo
    kind: SiloKind
    round: Round
    global_sha256: Sha256
    """Of the global model that was scored, hex."""
    test_samples: Images
    test_sha256: Sha256
    """Of the test images and labels: only scores on the same ones are compared."""
    models: dict[Literal["proxy", "large"], ModelScores]
    deployed: Literal["proxy", "large"]
    """Which of its models the silo deploys (inference.deployed_models)."""
    named: bool = False
    """Whether the hospital's name may stand beside its scores where all hospitals read them."""

    @property
    def deployed_model(self) -> ModelScores:
        """Of the model that the silo deploys."""
        return self.models[self.deployed]


@dataclass(frozen=True, kw_only=True)
class Notice(Document):
    """Why a silo will not answer a round (`absent/<silo>.json`), or why the run was ended for everyone (`abort`)."""

    canonical = True

    reason: Reason
    created: Time = ""
    """ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True)
class Sign(Document):
    """A hub's sign of life: `lease.json`, `leases/<silo>.json`."""

    max_bytes = 4096
    canonical = True

    counter: Annotated[int, Field(ge=0, le=2**63)]
    """Another one with every renewal: what workers look at."""
    seconds: Annotated[float, Field(gt=0, le=86400)]
    """How long it holds."""
    renewed: AwareDatetime
    """By the hub's clock: for people, never for a worker's decision."""

    def over(self, now: datetime) -> bool:
        """Whether no hub seems to be left."""
        return (now - self.renewed).total_seconds() > self.seconds
