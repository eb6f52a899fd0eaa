"""What hub and silos write to each other, beside weights: the JSON documents of a run, hostile until parsed.

Each is a frozen dataclass whose fields say what may stand in them; `parse` refuses everything else. Called by rounds.py, which
knows under which names they lie (docs/architecture.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fedhelp_core.errors import PermanentError
from fedhelp_core.registry.tasks import Metric
from fedhelp_core.weights.header import WeightsSpec

MAX_REASON = 500
"""Characters of a reason, however long what went wrong says it."""
_DOCUMENT = ConfigDict(strict=True, allow_inf_nan=False, ser_json_inf_nan="constants")

_Name = Annotated[str, Field(max_length=100)]
_Text = Annotated[str, Field(max_length=300)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Metrics = Annotated[dict[_Name, float], Field(max_length=64)]
_Count = Annotated[int, Field(ge=0, le=2**53)]


@dataclass(frozen=True, kw_only=True)
class UpdateManifest:
    """One silo's answer to one round: `updates/<silo>.json`."""

    __pydantic_config__ = _DOCUMENT

    silo: _Name
    round: Annotated[int, Field(ge=1)]
    weights: Annotated[str, Field(max_length=1024)]
    """Key of the weights object."""
    sha256: _Sha256
    """Of the weights file, hex."""
    size_bytes: Annotated[int, Field(ge=0)]
    samples: Annotated[int, Field(ge=1, le=2**53)]
    """Private training images behind this update: n_k of Eq 7."""
    loss: float | None
    """Mean training loss; None where the method has none."""
    metrics: _Metrics
    architecture: _Text
    code_version: _Text = ""
    image_digest: _Text = ""
    created: _Text = ""
    """ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What made a round real: `commit.json`. Commit 0 holds the seeded start and has no participants."""

    __pydantic_config__ = _DOCUMENT

    round: Annotated[int, Field(ge=0)]
    global_key: Annotated[str, Field(max_length=1024)]
    """Key of the model after this round, which the next round starts from."""
    global_sha256: _Sha256
    spec: dict[str, Any]
    """What every update of the next round must look like: `WeightsSpec.to_json()`."""
    participants: tuple[str, ...] = ()
    """Silos in the average, in the order in which they were summed."""
    shares: dict[str, float] = field(default_factory=dict)
    """a_k of Eq 7 by participant."""
    absent: dict[str, str] = field(default_factory=dict)
    """Invited silos that sent nothing in time, and why."""
    refused: dict[str, str] = field(default_factory=dict)
    """Silos whose update failed a check, and which."""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """By participant: samples, loss, and what the silo's manifest says."""
    previous_sha256: str = ""
    """sha256 of the model that this round started from; '' in commit 0."""
    created: str = ""
    """ISO 8601, UTC."""

    @property
    def weights_spec(self) -> WeightsSpec:
        """`spec`, parsed."""
        return WeightsSpec.from_json(self.spec)


@dataclass(frozen=True, kw_only=True)
class SplitSizes:
    """Numbers of images."""

    __pydantic_config__ = _DOCUMENT

    training: _Count
    validation: _Count
    test: _Count


@dataclass(frozen=True, kw_only=True)
class SiloReport:
    """What a silo found when it checked itself: `silos/<silo>.json`. Counts and hashes."""

    __pydantic_config__ = _DOCUMENT

    silo: _Name
    samples: SplitSizes
    training_class_counts: Annotated[list[_Count], Field(max_length=10_000)]
    """Training images of each class; of masks: pixels."""
    test_sha256: _Sha256
    start_sha256: _Sha256
    """Of the start model that this silo's software draws from the seed."""


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """One model on a silo's test images."""

    __pydantic_config__ = _DOCUMENT

    scores: Annotated[dict[_Name, Annotated[float, Field(allow_inf_nan=True)]], Field(max_length=64)]
    """Metric's name -> value; NaN where the test images do not define it."""
    confusion: Annotated[list[list[_Count]], Field(max_length=10_000)]
    """(C, C) counts of images, or of pixels of masks: row = true class, column = predicted class."""


@dataclass(frozen=True, kw_only=True)
class SiloEvaluation:
    """A silo's scores on its own test images: `evaluation/<silo>.json`."""

    __pydantic_config__ = _DOCUMENT

    silo: _Name
    kind: Annotated[str, Field(pattern="^(small|large)$")]
    round: Annotated[int, Field(ge=0)]
    global_sha256: _Sha256
    """Of the global model that was scored, hex."""
    test_samples: _Count
    test_sha256: _Sha256
    """Of the test images and labels: only scores on the same ones are compared."""
    models: dict[Literal["proxy", "large"], ModelScores]
    deployed: Literal["proxy", "large"]
    """Which of its models the silo deploys (inference.deployed_models)."""

    @property
    def deployed_model(self) -> ModelScores:
        """Of the model that the silo deploys."""
        return self.models[self.deployed]

    def require_scores_of(self, metrics: Sequence[Metric], classes: int) -> None:
        """What depends on the task: every model scored by `metrics`, each within its range, and a confusion matrix of `classes`.

        Raises:
            PermanentError: it is not so; the message names the model and the field.
        """
        if self.deployed not in self.models:
            raise PermanentError(f"deployed: one of {', '.join(self.models) or 'no'} models expected, got {self.deployed!r}")
        for name, model in self.models.items():
            for metric in metrics:
                if metric.name not in model.scores:
                    raise PermanentError(f"models.{name}.scores: {metric.name} expected, got {', '.join(model.scores)[:80] or 'none'}")
                value = model.scores[metric.name]
                if not math.isnan(value) and not (math.isfinite(value) and 0 <= value <= metric.most):
                    raise PermanentError(f"models.{name}.scores.{metric.name}: a number from 0 to {metric.most:g} expected, got {value:g}")
            sizes = {len(model.confusion), *map(len, model.confusion)}
            if sizes != {classes}:
                raise PermanentError(f"models.{name}.confusion: {classes} rows of {classes} counts expected, got sides of {sorted(sizes)[:5]}")


Document = TypeVar("Document", UpdateManifest, Commit, SiloReport, SiloEvaluation)
OfSilo = TypeVar("OfSilo", SiloReport, SiloEvaluation)
_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (UpdateManifest, Commit, SiloReport, SiloEvaluation)}


def dump(document: UpdateManifest | Commit | SiloReport | SiloEvaluation) -> bytes:
    """Its JSON."""
    return _ADAPTERS[type(document)].dump_json(document)


def parse(kind: type[Document], body: bytes, key: str) -> Document:
    """The document of `kind` in `body`; `key` names the object in messages.

    Raises:
        PermanentError: `body` is no JSON, or not of such a document; the message names the field.
    """
    try:
        document: Document = _ADAPTERS[kind].validate_json(body)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise PermanentError(f"{key}: {where[:200]}: {first['msg'][:1].lower()}{first['msg'][1:200]}, got {repr(first['input'])[:80]}") from e
    return document


def parse_mapping(body: bytes, key: str) -> dict[str, Any]:
    """A JSON object of any fields.

    Raises:
        PermanentError: `body` is no such thing.
    """
    try:
        document = json.loads(body.decode())
    except (ValueError, RecursionError) as e:
        raise PermanentError(f"{key}: is not JSON ({str(e)[:100]}); the object is damaged or was tampered with") from e
    if not isinstance(document, dict):
        raise PermanentError(f"{key}: a JSON object expected, got {type(document).__name__}")
    return document


def utc_now() -> str:
    """The time of a document, for people."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
