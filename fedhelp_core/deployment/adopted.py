"""A hospital's folder of one model: what was fetched, what is in use, what was before it. Knows no network.

    models/<name>/newest.json                           the newest record that was ever seen: no older one is taken for it
    models/<name>/fetched/000004/                       record.json, its weights, batch norms and card, fetched.json
    models/<name>/adopted/<version>-<sha16>/            contract.json, weights.safetensors, card.md: complete, whatever becomes of the rest
    models/<name>/in-use.json                           which of these answers, and which did before
    models/<name>/lock                                  held while something is adopted, rolled back or fetched
    adoptions.jsonl                                     every decision (decisions.py)

A folder has its name when it is complete, and `in-use.json` changes in one step: whatever is killed, the model in use stays whole. The last
two of each are kept. Called by `adoption`, by `fedhelp model` and `fedhelp predict`, and by whatever serves a model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhelp_core.deployment.contract import Contract
from fedhelp_core.deployment.decisions import DecisionLedger
from fedhelp_core.disk import atomic_write, disk_errors, folder_locked, require_locks, sweep, sync
from fedhelp_core.errors import ConfigError, NotFound, PermanentError, WeightsError
from fedhelp_core.protocol.documents import dump, parse
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.weights.file import write_weights
from fedhelp_core.weights.header import Weights

_KEPT = 2
WEIGHTS, CONTRACT, CARD = "weights.safetensors", "contract.json", "card.md"


@dataclass(frozen=True)
class Adopted:
    """A complete model of this hospital."""

    folder: Path
    contract: Contract

    @property
    def weights(self) -> Path:
        """The file; its sha256 is the contract's."""
        return self.folder / WEIGHTS

    @property
    def card(self) -> Path:
        """The model card; there may be none."""
        return self.folder / CARD


class ModelFolder:
    """The folder of the model `name` in a hospital's state.

    Raises:
        PermanentError: `name` is no model's name.
    """

    def __init__(self, state: Path, name: str) -> None:
        ModelKeys(name)
        self.name = name
        self.folder = state / "models" / name
        self.ledger = DecisionLedger(state / "adoptions.jsonl")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the model's lock; it goes with the process, however that ends.

        Raises:
            StateLocked: another process holds it.
            StorageFull, AccessDenied: the folder cannot be made.
        """
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            require_locks(self.folder)
        with folder_locked(self.folder, "another process fetches or adopts this model now; wait for it to end, and try again"):
            yield

    def in_use(self) -> Adopted:
        """The model that answers.

        Raises:
            NotFound: none was adopted.
            WeightsError: its contract is damaged.
        """
        found = self._in_use("in_use")
        if found is None:
            raise NotFound(f"{self.folder}: no model is in use; adopt one: fedhelp model fetch, then fedhelp model adopt")
        return found

    def adopted(self) -> Adopted | None:
        """As `in_use`; None where there is none."""
        return self._in_use("in_use")

    def before(self) -> Adopted | None:
        """The model that was in use before."""
        return self._in_use("before")

    def _in_use(self, which: str) -> Adopted | None:
        try:
            said = json.loads((self.folder / "in-use.json").read_text(encoding="utf-8"))
            name = said[which]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as e:
            raise PermanentError(f"{self.folder / 'in-use.json'}: is damaged ({type(e).__name__}); adopt a model again") from e
        return None if name is None else self._read(self.folder / "adopted" / str(name))

    def _read(self, folder: Path) -> Adopted:
        path = folder / CONTRACT
        try:
            with disk_errors(path):
                contract = parse(Contract, path.read_bytes(), str(path))
        except FileNotFoundError as e:
            raise NotFound(f"{path}: is gone; adopt the model again") from e
        except PermanentError as e:
            raise WeightsError(f"{e}; it was damaged, or written by another version: adopt the model again") from e
        return Adopted(folder, contract)

    def keep(self, contract: Contract, weights: Weights, card: Path | None) -> Adopted:
        """Write a complete model, not yet in use. Called by whoever holds the lock.

        Raises:
            StorageFull: no space left; nothing has changed.
        """
        body = dump(contract)
        folder = self.folder / "adopted" / f"{contract.version}-{hashlib.sha256(_lasting(body)).hexdigest()[:16]}"
        with disk_errors(folder):
            if not folder.exists():
                with atomic_write(folder) as scratch:
                    scratch.mkdir()
                    write_weights(scratch / WEIGHTS, weights, str(contract.network))
                    (scratch / CONTRACT).write_bytes(body)
                    if card is not None:
                        shutil.copyfile(card, scratch / CARD)
                    for path in scratch.iterdir():
                        sync(path)
        return self._read(folder)

    def put_in_use(self, new: Adopted) -> None:
        """From now on `new` answers; what did is before it. Then drop older ones. Called by whoever holds the lock."""
        now = self.adopted()
        if now is not None and now.folder == new.folder:
            return
        self._point(new, now)

    def back(self) -> Adopted:
        """The model before is in use again. Called by whoever holds the lock.

        Raises:
            NotFound: there is none.
            WeightsError: it is damaged.
        """
        before = self.before()
        if before is None:
            raise NotFound(f"{self.folder}: no model was in use before, so there is nothing to go back to")
        self._point(before, self.in_use())
        return before

    def _point(self, new: Adopted, before: Adopted | None) -> None:
        path = self.folder / "in-use.json"
        said = {"in_use": new.folder.name, "before": before.folder.name if before is not None else None}
        with disk_errors(path):
            with atomic_write(path, durable=True) as scratch:
                scratch.write_text(json.dumps(said), encoding="utf-8")
            for folder in (self.folder / "adopted").iterdir():
                if folder.name not in said.values() and not folder.name.startswith("."):
                    shutil.rmtree(folder, ignore_errors=True)

    # ---- what was fetched

    def seen(self) -> tuple[int, str]:
        """Number and sha256 of the newest record that was ever seen; (0, '') of none.

        Raises:
            PermanentError: the note of it is damaged.
        """
        path = self.folder / "newest.json"
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            return int(said["number"]), str(said["sha256"])
        except FileNotFoundError:
            return 0, ""
        except (ValueError, KeyError, TypeError) as e:
            raise PermanentError(f"{path}: is damaged ({type(e).__name__}); ask the hub which record is the newest, and remove the file") from e

    def see(self, number: int, sha256: str) -> None:
        """Remember the newest record. Called by whoever holds the lock."""
        path = self.folder / "newest.json"
        with disk_errors(path), atomic_write(path, durable=True) as scratch:
            scratch.write_text(json.dumps({"number": number, "sha256": sha256}), encoding="utf-8")

    def fetched(self) -> list[Path]:
        """Folders of fetched records, the oldest first."""
        folder = self.folder / "fetched"
        return sorted(path for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []

    @contextmanager
    def fetching(self, number: int) -> Iterator[Path]:
        """A new folder that becomes that of record `number` when the block ends well; then older ones are dropped. Under the lock."""
        folder = self.folder / "fetched" / f"{number:06d}"
        with disk_errors(folder):
            if folder.exists():  # what is in it did not fit its record
                shutil.rmtree(folder)
            with atomic_write(folder) as scratch:
                scratch.mkdir()
                yield scratch
            sweep(folder.parent, older_than=0)
            for old in self.fetched()[:-_KEPT]:
                shutil.rmtree(old, ignore_errors=True)


def _lasting(body: bytes) -> bytes:
    """A contract without when it was made: the same model of the same data has one name."""
    document: dict[str, Any] = json.loads(body)
    document.pop("made", None)
    return json.dumps(document, sort_keys=True).encode()


def models_in(state: Path) -> list[str]:
    """Names of the models that this hospital has something of."""
    folder = state / "models"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.exists() else []


def model_meant(state: Path, *, asked: str | None, configured: str | None, known: list[str] | None = None) -> str:
    """The name that is meant: as asked, else as silo.yaml says, else the only one.

    Raises:
        NotFound: there is none.
        ConfigError: there are several.
    """
    if asked or configured:
        return str(asked or configured)
    names = models_in(state) if known is None else known
    if not names:
        raise NotFound(
            f"{state / 'models'}: this hospital has no model yet; fetch and adopt one: fedhelp model fetch, then fedhelp model adopt"
            if known is None else "the store has no record of a model: the hub promotes one first (fedhelp promote, or its gate)")
    if len(names) > 1:
        raise ConfigError(f"several models are known ({', '.join(names)}); say which with --name, or adoption.model in silo.yaml")
    return names[0]
