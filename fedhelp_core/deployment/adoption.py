"""A hospital takes a model into use: fetch and verify, join, compare by its own rule, adopt, go back. Called by `fedhelp model`.

The hub can promote; nothing but this hospital's own rule decides what answers here. Fetching alone needs the store. What was decided is in
`adoptions.jsonl`; nothing of it leaves, unless the hospital switches on that the store hears "adopted version N".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedhelp_core.config.federation import federation_in
from fedhelp_core.config.silo import SiloConfig
from fedhelp_core.data.examples import preparation
from fedhelp_core.deployment.adopted import Adopted, ModelFolder
from fedhelp_core.deployment.contract import Contract
from fedhelp_core.deployment.decisions import Decision
from fedhelp_core.deployment.joining import Joined, answers_alike, joined, scores_now
from fedhelp_core.disk import digest_of, disk_errors
from fedhelp_core.errors import ConfigError, FedHelpError, NotAdopted, NotFound, PermanentError, WeightsError
from fedhelp_core.protocol.documents import StoredWeights, dump, parse
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.protocol.model_record import Chain, ModelRecord, fetch_norms, fetch_weights, read_chain
from fedhelp_core.protocol.run import Run
from fedhelp_core.silo.egress import LedgeredStore
from fedhelp_core.store.base import Store
from fedhelp_core.weights.file import read_weights
from fedhelp_core.weights.header import Weights

_MOST_CARD = 2**20  # bytes of a model card


@dataclass(frozen=True)
class Fetched:
    """A record with its weights, on the hospital's own disk."""

    folder: Path
    record: ModelRecord
    threads: int
    """CPU threads of the run."""

    @property
    def card(self) -> Path | None:
        """The model card."""
        path = self.folder / "card.md"
        return path if path.exists() else None


def fetch(store: Store, folder: ModelFolder, version: str | None = None) -> tuple[Fetched, Chain]:
    """The champion, or the newest record of `version`, verified and on disk; and the whole record. Fetched once.

    Raises:
        NotFound: no model was promoted, or none of this version.
        PermanentError: the record has a gap, was altered, or is older than one that was seen here.
        WeightsError: the weights are not the record's, or this software prepares images in another way.
        StorageFull: no space left; nothing has changed.
    """
    with folder.locked():
        chain = read_chain(store, folder.name)
        chain.require_seen(*folder.seen())
        record = _chosen(chain, version)
        if preparation(record.task) != record.preprocessing:
            raise WeightsError(
                f"{ModelKeys(record.name).record(record.number)}: its images are prepared as {record.preprocessing!r}, this software prepares them as"
                f" {preparation(record.task)!r}; install the FedHelp of the hub")
        folder.see(*chain.newest)
        known = folder.folder / "fetched" / f"{record.number:06d}"
        if known.exists():
            try:
                found = read_fetched(known)
                if found.record == record:
                    return found, chain
            except FedHelpError:  # damaged since: fetched again
                pass
        with folder.fetching(record.number) as place:
            fetch_weights(store, record, place)
            fetch_norms(store, record, place)
            _fetch_card(store, record, place)
            (place / "record.json").write_bytes(dump(record))
            sha256, _ = digest_of(place / "record.json")
            (place / "fetched.json").write_text(json.dumps({"sha256": sha256, "threads": _threads_of(store, record)}), encoding="utf-8")
        return read_fetched(known), chain


def _chosen(chain: Chain, version: str | None) -> ModelRecord:
    if chain.champion is None:
        raise NotFound(f"model {chain.name!r}: the store has no record of it; the hub promotes one first (fedhelp promote, or its gate)")
    if version is None:
        return chain.champion
    found = [record for record in chain.records if record.version == version]
    if not found:
        known = ", ".join(dict.fromkeys(record.version for record in chain.records))
        raise NotFound(f"model {chain.name!r}: version {version[:20]!r} was never champion; the record has {known}")
    return found[-1]


def _fetch_card(store: Store, record: ModelRecord, place: Path) -> None:
    if not record.card_sha256:
        return
    key = ModelKeys(record.name).card(record.card_sha256, "md")
    body = store.get(key, _MOST_CARD)
    if digest_of(body)[0] != record.card_sha256:
        raise PermanentError(f"{key}: is not the model card of the record (its sha256 is another); somebody altered it: ask the hub")
    (place / "card.md").write_bytes(body)


def _threads_of(store: Store, record: ModelRecord) -> int:
    """CPU threads that the run froze, on which the last digits of masks depend; 1 where the run is gone from the store."""
    try:
        federation = federation_in(Run(store, record.run).federation_yaml(), source=f"run {record.run}'s federation.yaml")
    except NotFound:
        return 1
    if federation.digest() != record.lineage.federation_sha256:
        raise PermanentError(f"run {record.run}: its federation.yaml is not the one that the model's record names; somebody altered it: ask the hub")
    return federation.runtime.threads


def read_fetched(folder: Path) -> Fetched:
    """What was fetched into `folder`.

    Raises:
        PermanentError: it was altered or damaged since.
    """
    path = folder / "record.json"
    try:
        with disk_errors(folder):
            body, said = path.read_bytes(), json.loads((folder / "fetched.json").read_text(encoding="utf-8"))
            sha256, threads = str(said["sha256"]), int(said["threads"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise PermanentError(f"{folder}: is damaged ({type(e).__name__}); fetch the model again") from e
    if digest_of(body)[0] != sha256:
        raise PermanentError(f"{path}: was altered since it was fetched; fetch the model again")
    return Fetched(folder, parse(ModelRecord, body, str(path)), threads)


def chosen_fetched(folder: ModelFolder, version: str | None) -> Fetched:
    """The newest record that was fetched, or the newest of `version`.

    Raises:
        NotFound: there is none.
        PermanentError: it was altered or damaged since.
    """
    for path in reversed(folder.fetched()):
        found = read_fetched(path)
        if version in (None, found.record.version):
            return found
    wanted = f"version {version} of model" if version else "model"
    raise NotFound(f"{folder.folder}: {wanted} {folder.name!r} was not fetched yet; fetch it first: fedhelp model fetch")


@dataclass(frozen=True)
class Comparison:
    """What a new model is beside the one in use, for this hospital."""

    joined: Joined
    in_use: Adopted | None
    old: Mapping[str, float]
    """Scores of the model in use, on today's test images; empty of none."""
    reason: str
    """For people: what the rule says, and why."""
    passes: bool

    @property
    def new(self) -> Contract:
        """Of the new model."""
        return self.joined.contract

    @property
    def is_in_use(self) -> bool:
        """Whether it is the model that answers already: under the same version, with the same weights, operating point and preparation."""
        return self.in_use is not None and _identity(self.in_use.contract) == _identity(self.new)


def _identity(contract: Contract) -> tuple[object, ...]:
    return contract.version, contract.weights_sha256, contract.operating_point, contract.pixel_bits


def compared(config: SiloConfig, folder: ModelFolder, fetched: Fetched, device: torch.device) -> Comparison:
    """The fetched model, joined and scored, beside the one in use on the same test images.

    Raises:
        ConfigError: it answers another question than the one in use, or than this hospital's data.
        DataError: the hospital's images cannot be used.
        WeightsError: weights that do not fit, or are damaged.
    """
    record, place = fetched.record, fetched.folder
    weights, norms = _read(place, record.weights), None if record.norms is None else _read(place, record.norms)
    new = joined(config, record, weights, norms, threads=fetched.threads, device=device)
    now = folder.adopted()
    if now is None:
        return Comparison(new, None, {}, "no model was in use", passes=True)
    if not answers_alike(new.contract, now.contract):
        raise ConfigError(
            f"model {record.name} version {record.version}: is of task {record.task.name} ({', '.join(record.task.classes)}), the model in use of"
            f" {now.contract.task.name} ({', '.join(now.contract.task.classes)}); a model of another task is adopted under another name")
    in_use = read_weights(now.weights, expected=None, max_bytes=now.weights.stat().st_size, sha256=now.contract.weights_sha256)
    old = scores_now(config, now.contract, in_use, device)
    passes, reason = verdict(new.contract, old, now.contract.version, config.adoption.tolerance)
    return Comparison(new, now, old, reason, passes)


def _read(place: Path, stored: StoredWeights) -> Weights:
    path = place / f"{stored.sha256}.safetensors"
    return read_weights(path, expected=stored.spec, max_bytes=stored.size_bytes, sha256=stored.sha256)


def verdict(new: Contract, old: Mapping[str, float], old_version: str, tolerance: float) -> tuple[bool, str]:
    """Whether the hospital's rule adopts `new`, and why: its main score may be below the old one's by at most `tolerance`."""
    metric = new.task.headline
    ours, theirs = new.scores[metric.name], old[metric.name]
    said = f"{metric.title} {ours:.3f} on this hospital's {new.test_images} test images, version {old_version} has {theirs:.3f}"
    if math.isnan(theirs):
        return True, f"{said}: nothing to fall behind"
    if math.isnan(ours):
        return False, f"{said}: the new score is not defined"
    gain = metric.gain(ours, theirs)
    allowed = f"{tolerance:g} below is allowed (adoption.tolerance)"
    return gain >= -tolerance, f"{said}: {'better' if gain > 0 else 'equal' if gain == 0 else f'worse by {-gain:.3f}'}, {allowed}"


def adopt(
    config: SiloConfig, folder: ModelFolder, fetched: Fetched, device: torch.device, *, force: str | None = None,
) -> Comparison:
    """Put the fetched model into use, if the hospital's rule lets it or `force`, a reason, is given. Written down either way.

    Raises:
        NotAdopted: the rule keeps the model in use that is.
        StateLocked: another adoption goes on.
        StorageFull: no space left; the model in use is the one before.
    """
    with folder.locked():
        found = compared(config, folder, fetched, device)
        if found.is_in_use:
            return found
        now = found.in_use
        said = Decision(
            model=folder.name, action="adopted" if found.passes else "forced", version=found.new.version,
            before=now.contract.version if now else "", weights_sha256=found.new.weights_sha256, new=found.new.scores, old=found.old,
            reason=found.reason if found.passes else f"{force} ({found.reason})")
        if not found.passes and force is None:
            folder.ledger.append(replace(said, action="kept", reason=found.reason))
            raise NotAdopted(
                f"model {folder.name} version {found.new.version} is not adopted: {found.reason}; version {said.before} stays in use"
                " (--force --reason TEXT adopts it all the same, and is written down)")
        new = folder.keep(found.new, found.joined.weights, fetched.card)
        folder.ledger.append(said)
        folder.put_in_use(new)
    return found


def roll_back(folder: ModelFolder, reason: str = "") -> tuple[Contract, Contract]:
    """The model before is in use again; (which it is, which it replaces).

    Raises:
        NotFound: no model was in use before.
    """
    with folder.locked():
        now, before = folder.in_use().contract, folder.before()
        if before is not None:
            digest, _ = digest_of(before.weights)
            if digest != before.contract.weights_sha256:
                raise WeightsError(f"{before.weights}: was altered since it was adopted; adopt version {before.contract.version} again")
            folder.ledger.append(Decision(
                model=folder.name, action="rolled-back", version=before.contract.version, before=now.version,
                weights_sha256=before.contract.weights_sha256, reason=reason))
        return folder.back().contract, now


def announce(config: SiloConfig, store: Store, contract: Contract) -> None:
    """Tell the store that this hospital adopted the version, and nothing else; it is in the egress ledger. Once for all.

    Raises:
        StoreUnavailable, AccessDenied: it could not be told; the model is in use all the same.
    """
    ledgered = LedgeredStore(store, config.state / "egress.jsonl", contract.run)
    ledgered.put_new(ModelKeys(contract.name).adoption(config.name, contract.version), f"adopted version {contract.version}\n".encode())
