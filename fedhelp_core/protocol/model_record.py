"""The record of what became champion: what hospitals read of a registered model, append-only and chained by hash.

`models/<name>/records/000001.json` and on, without gaps. Each names the sha256 of the bytes before it, so that nothing of the past can be
altered, left out or put elsewhere unseen. Weights and cards lie beside the records, named by their content. The hub appends
(components/promotion); hospitals read, trust nothing, and remember the newest record that they have seen (`Chain.require_seen`).
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, FailFast, Field, ValidatorFunctionWrapHandler, WrapValidator

from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.federation import EvaluationConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.disk import atomic_write, disk_errors
from fedhelp_core.errors import NotFound, PermanentError, WeightsError
from fedhelp_core.protocol.documents import (
    Document,
    Images,
    Name,
    Reason,
    Round,
    Score,
    Sha256,
    Sha256OrNone,
    Share,
    SiloKind,
    Software,
    SplitSizes,
    Statistics,
    StoredWeights,
    Text,
    Time,
    dump,
    parse,
)
from fedhelp_core.protocol.keys import MODEL_NAME, NAME, ModelKeys
from fedhelp_core.registry.models import MODELS
from fedhelp_core.registry.networks import networks
from fedhelp_core.store.base import Store
from fedhelp_core.weights.check import check_weights_file

_MOST_CONFIG = 2**18  # bytes of a section as JSON: a thousand classes with names of 200 letters
_MOST_RECORDS = 999_999  # what a name has digits for

ModelName = Annotated[str, Field(pattern=f"^{MODEL_NAME}$")]

def _as_written(written: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """A section of the config, of which nothing was converted: '32' and 32.5 are no 32."""
    section = read(written)
    if len(section.model_dump_json()) > _MOST_CONFIG:
        raise ValueError(f"at most {_MOST_CONFIG} bytes expected")
    if not isinstance(written, type(section)) and not _within(written, section.model_dump(mode="json")):
        raise ValueError("the fields as FedHelp writes them expected")
    return section


def _within(written: Any, known: Any) -> bool:
    """Whether all of `written` is in `known`, with the same types; what a newer version knows beside it does not matter."""
    if isinstance(written, dict) and isinstance(known, dict):
        return all(name in known and _within(value, known[name]) for name, value in written.items())
    if isinstance(written, list) and isinstance(known, list):
        return len(written) == len(known) and all(map(_within, written, known))
    return type(written) is type(known) and bool(written == known)


def _known_networks(algorithm: AlgorithmConfig) -> AlgorithmConfig:
    named = [model.network for model in (algorithm.proxy_model, algorithm.large_model) if model.network is not None]
    unknown = [name for name in named if name not in MODELS and name not in networks()]
    if unknown:
        raise ValueError(f"a model that this version of FedHelp knows expected, got {unknown[0][:80]!r}")
    return algorithm


@dataclass(frozen=True, kw_only=True)
class HospitalScores(Document):
    """How the model did in one hospital, on its own test images."""

    name: Annotated[str, Field(pattern=f"^({NAME})?$")]
    """Of a hospital that agreed to be named (`named` in its silo.yaml); '' of another, of which nothing but scores is told."""
    scores: Annotated[dict[Name, Score], Field(max_length=64)]
    """Metric's name -> value; NaN where the test images do not define it."""
    interval: tuple[Score, Score] | None = None
    """95% of the headline metric, by its test images; None: nobody took it."""
    kind: SiloKind | None = None
    images: SplitSizes | None = None


@dataclass(frozen=True, kw_only=True)
class Parent(Document):
    """What the run started from, where that was a model and not a seed."""

    sha256: Sha256
    """Of its weights."""
    model: Annotated[str, Field(pattern=f"^({MODEL_NAME})?$")] = ""
    """Registered name; '' of a file."""
    version: Annotated[str, Field(pattern=r"^[0-9]{0,18}$")] = ""


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights(Document):
    """Somebody's weights that a model began with."""

    sha256: Sha256
    licence: Text
    source: Text


@dataclass(frozen=True, kw_only=True)
class Lineage(Document):
    """What the model was made from."""

    federation_sha256: Sha256
    """Of the run's frozen config."""
    distillation_set_sha256: Sha256OrNone
    rounds: Round
    hospitals: Images
    """How many are in the average of the last round."""
    training_images: Images
    """Of all hospitals together."""
    test_images: Images
    software: Software
    """Package -> version, where the model was registered."""
    parent: Parent | None
    pretrained: dict[Literal["proxy", "large"], PretrainedWeights] = field(default_factory=dict)
    """What the proxy, and large models in hospitals, began with, where that was no seed."""


@dataclass(frozen=True, kw_only=True)
class ModelRecord(Document):
    """One decision about a model: what is champion from now on, and all that a hospital needs to use it."""

    max_bytes = 16 * 2**20
    canonical = True

    number: Annotated[int, Field(ge=1, le=_MOST_RECORDS)]
    previous_sha256: Sha256OrNone
    """Of the bytes of the record before; '' in the first."""
    name: ModelName
    kind: Literal["promoted", "rolled-back"]
    version: Annotated[str, Field(pattern=r"^[0-9]{1,18}$")]
    """In the hub's registry."""
    run: Annotated[str, Field(pattern=f"^{NAME}$")]
    """That trained it."""
    time: Time
    decided_by: Text
    """'gate', or the user who ran the command."""
    reason: Reason
    task: Annotated[TaskConfig, WrapValidator(_as_written)]
    """As the run froze it."""
    preprocessing: Annotated[str, Field(pattern=r"^[ -~]*$", max_length=1000)]
    """How the hub's software prepares images of this task, in words (examples.preparation); another hospital's must say the same."""
    algorithm: Annotated[AlgorithmConfig, WrapValidator(_as_written), AfterValidator(_known_networks)]
    """Network, normalisation, and what the operating point depends on."""
    evaluation: Annotated[EvaluationConfig, WrapValidator(_as_written)]
    weights: StoredWeights
    """As they travelled: without batch norms where those stay in hospitals."""
    statistics: Statistics
    norms: StoredWeights | None
    """The registered model's batch norms where `weights` has none; None: it has them, or nobody could make any."""
    class_shares: Annotated[list[Share], Field(max_length=10_000), FailFast()]
    """How common each class was in training; empty of masks."""
    headline: Name
    """The metric that the gate goes by."""
    scores: Annotated[dict[Name, Score], Field(max_length=256)]
    """Means and the worst hospital, without names."""
    hospitals: Annotated[tuple[HospitalScores, ...], Field(max_length=10_000), FailFast()]
    lineage: Lineage
    card_sha256: Sha256OrNone = ""
    """Of the model card (Markdown)."""
    card_html_sha256: Sha256OrNone = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the model's answers."""
        return self.task.classes


@dataclass(frozen=True)
class Chain:
    """A model's whole record, verified: `records[n - 1]` is number n, `sha256s` are of their bytes."""

    name: str
    records: tuple[ModelRecord, ...] = ()
    sha256s: tuple[str, ...] = ()

    @property
    def champion(self) -> ModelRecord | None:
        """The newest record; None where nothing was ever promoted."""
        return self.records[-1] if self.records else None

    @property
    def newest(self) -> tuple[int, str]:
        """Number and sha256 of the newest record, (0, '') without one: what a reader remembers."""
        return (len(self.records), self.sha256s[-1]) if self.records else (0, "")

    def require_seen(self, number: int, sha256: str) -> None:
        """Nothing where this chain goes on from what was seen before: record `number` with `sha256`.

        Raises:
            PermanentError: it is shorter, or was written anew.
        """
        if number > len(self.records):
            raise PermanentError(
                f"models/{self.name}: the record ends at number {len(self.records)}, but number {number} was seen here before; somebody took records"
                " out of the store or plays an older one back: ask the hub")
        if number and self.sha256s[number - 1] != sha256:
            raise PermanentError(
                f"{ModelKeys(self.name).record(number)}: sha256 {sha256[:12]}... was seen here before, got {self.sha256s[number - 1][:12]}...;"
                " the record was written anew: ask the hub")


def read_chain(store: Store, name: str) -> Chain:
    """The record of the model `name`, every entry of it read and held against the one before.

    Raises:
        PermanentError: `name` is no model's name; an entry is missing, altered, of another model or number, or not in its place.
    """
    keys = ModelKeys(name)
    found = store.list(keys.records)
    records: list[ModelRecord] = []
    sha256s: list[str] = []
    for number, key in enumerate(found, start=1):
        if key != keys.record(number):
            raise PermanentError(
                f"{key}: {keys.record(number)} expected next; the record of model {name!r} has a gap, or something foreign is in it")
        body = store.get(key, ModelRecord.max_bytes)
        record = parse(ModelRecord, body, key)
        if (record.name, record.number) != (name, number):
            raise PermanentError(
                f"{key}: number {number} of model {name!r} expected, got number {record.number} of {record.name!r}; it was put elsewhere")
        before = sha256s[-1] if sha256s else ""
        if record.previous_sha256 != before:
            raise PermanentError(
                f"{key}: previous_sha256: {before[:12] or 'none'} expected, got {record.previous_sha256[:12] or 'none'}; this record or the one"
                " before it was altered")
        records.append(record)
        sha256s.append(hashlib.sha256(body).hexdigest())
    return Chain(name, tuple(records), tuple(sha256s))


def read_records(store: Store, name: str) -> list[ModelRecord]:
    """As `read_chain`, without the sha256s."""
    return list(read_chain(store, name).records)


def champion_record(records: list[ModelRecord]) -> ModelRecord:
    """The newest one.

    Raises:
        NotFound: there is none.
    """
    if not records:
        raise NotFound("no model was promoted yet; the hub does that (fedhelp promote, or its gate)")
    return records[-1]


def model_names(store: Store) -> list[str]:
    """Of all models that have a record."""
    return sorted({key.split("/")[1] for key in store.list("models/") if "/records/" in key})


def append_record(store: Store, record: ModelRecord) -> bool:
    """Write `record` as the newest; False, and nothing is changed, where another has its number already."""
    return store.put_new(ModelKeys(record.name).record(record.number), dump(record))


def keep_weights(store: Store, name: str, source: Path, stored: StoredWeights) -> None:
    """The file `source` in the store under the model's name, once it is what `stored` says.

    Raises:
        WeightsError: it is not.
    """
    _require(source, stored)
    store.put_new(ModelKeys(name).weights(stored.sha256), source)


def fetch_weights(store: Store, record: ModelRecord, folder: Path) -> Path:
    """The model's weights as `folder`/<sha256>.safetensors, complete and verified, or not there at all. Fetched once.

    Raises:
        NotFound: they are not in the store.
        WeightsError: they are not those of the record: sha256, names, shapes, dtypes, or a value that none may have.
        StorageFull: no space left.
    """
    return _fetched(store, record.name, record.weights, folder)


def fetch_norms(store: Store, record: ModelRecord, folder: Path) -> Path | None:
    """As `fetch_weights`, of the registered model's batch norms; None where the record has none."""
    return None if record.norms is None else _fetched(store, record.name, record.norms, folder)


def _fetched(store: Store, name: str, weights: StoredWeights, folder: Path) -> Path:
    path = folder / f"{weights.sha256}.safetensors"
    if path.exists():
        try:
            _require(path, weights)
            return path
        except WeightsError:  # of a disk that lost power: fetched again
            path.unlink()
    fetched = store.fetch(ModelKeys(name).weights(weights.sha256), weights.size_bytes)
    try:
        with disk_errors(path), atomic_write(path, durable=True) as scratch:
            shutil.copyfile(fetched, scratch)
            _require(scratch, weights)
    finally:
        store.release(fetched)
    return path


def _require(path: Path, weights: StoredWeights) -> None:
    check_weights_file(path, spec=weights.spec, max_bytes=weights.size_bytes, sha256=weights.sha256)
