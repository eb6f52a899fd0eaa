"""The names of all objects in a store, made here and nowhere else (docs/architecture.md lists them). Pure.

Called by the round protocol, by softlabels and by the record of models. Weights are named by content, so that two writers of one
round can never mix one's weights with the other's manifest.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from fedhelp_core.errors import PermanentError

NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
"""Pattern of run ids and silos' names."""
MODEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,98}[A-Za-z0-9])?"
"""Pattern of a registered model's name as part of objects' names."""
_SHA_SHOWN = 16  # hex digits of a sha256 in a name
RUNS = "runs/"
"""Prefix of all runs' objects."""
_SET_INDEX = re.compile(r"softlabels/([0-9a-f]{64})/index\.json")


@dataclass(frozen=True)
class RunKeys:
    """The names of one run's objects.

    Raises:
        PermanentError: the run's id, or a silo's name in a method's argument, is not lower-case letters, digits and '-'.
    """

    run_id: str

    def __post_init__(self) -> None:
        _checked(self.run_id, "run id")

    @property
    def federation(self) -> str:
        """The frozen config."""
        return self._of("federation.yaml")

    @property
    def abort(self) -> str:
        """Why the run was ended for everyone."""
        return self._of("abort")

    @property
    def report(self) -> str:
        """The page for people."""
        return self._of("report.html")

    @property
    def rounds_csv(self) -> str:
        """Rounds as a table, beside the page."""
        return self._of("rounds.csv")

    def card(self, suffix: str) -> str:
        """The model card of the final model; `suffix`: md or html."""
        return self._of(f"card.{suffix}")

    def norms(self, sha256: str) -> str:
        """Batch norms that evaluation made for the final model."""
        return self._of(f"norms-{sha256[:_SHA_SHOWN]}.safetensors")

    def fact(self, name: str) -> str:
        """What one step settled for the later ones."""
        return self._of(f"{name}.json")

    def silo_report(self, silo: str) -> str:
        """What check found in the silo."""
        return self._of(f"silos/{_silo(silo)}.json")

    def evaluation(self, silo: str) -> str:
        """The silo's scores."""
        return self._of(f"evaluation/{_silo(silo)}.json")

    def lease(self, silo: str | None = None) -> str:
        """Renewed by whoever supervises all of the run's silos, or this one."""
        return self._of("lease.json" if silo is None else f"leases/{_silo(silo)}.json")

    def rounds(self) -> str:
        """Prefix of everything that belongs to a round."""
        return self._of("rounds/")

    def round(self, number: int) -> str:
        """Prefix of everything of one round."""
        return f"{self.rounds()}{number}/"

    def commit(self, round: int) -> str:
        """What makes the round real."""
        return f"{self.round(round)}commit.json"

    def global_model(self, round: int, sha256: str) -> str:
        """The model that `round` starts from."""
        return f"{self.round(round)}global-{sha256[:_SHA_SHOWN]}.safetensors"

    def server_state(self, round: int, part: str, sha256: str) -> str:
        """What the hub remembers as `round` starts. Its name begins as the model's does: who may read the one may read the other."""
        return f"{self.round(round)}global-{part}-{sha256[:_SHA_SHOWN]}.safetensors"

    def updates(self, round: int) -> str:
        """Prefix of the round's updates: manifests and weights."""
        return f"{self.round(round)}updates/"

    def update(self, silo: str, round: int) -> str:
        """The manifest of the silo's answer."""
        return f"{self.updates(round)}{_silo(silo)}.json"

    def weights(self, silo: str, round: int, sha256: str) -> str:
        """The weights of the silo's answer."""
        return f"{self.updates(round)}{_silo(silo)}-{sha256[:_SHA_SHOWN]}.safetensors"

    def absences(self, round: int) -> str:
        """Prefix of the round's absence markers."""
        return f"{self.round(round)}absent/"

    def absence(self, silo: str, round: int) -> str:
        """The mark that the silo will not answer."""
        return f"{self.absences(round)}{_silo(silo)}.json"

    def absent_silo(self, key: str) -> tuple[int, str] | None:
        """(round, silo) of an absence marker's name; None for another name."""
        match = re.fullmatch(re.escape(self.rounds()) + r"(\d+)/absent/([^/]+)\.json", key)
        return (int(match[1]), match[2]) if match else None

    def _of(self, name: str) -> str:
        return f"{RUNS}{self.run_id}/{name}"


def run_of_report(key: str) -> str | None:
    """The run whose report `key` is; None for another name."""
    match = re.fullmatch(f"{RUNS}({NAME})/report\\.html", key)
    return match[1] if match else None


@dataclass(frozen=True)
class ModelKeys:
    """The names of one registered model's objects: what hospitals read of it.

    Raises:
        PermanentError: the model's name cannot be part of an object's.
    """

    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(MODEL_NAME, self.name):
            raise PermanentError(
                f"registered model {self.name[:80]!r}: 1 to 100 letters, digits, '.', '_' and '-' expected, a letter or digit at both ends")

    @property
    def records(self) -> str:
        """Prefix of the record of what became champion."""
        return f"models/{self.name}/records/"

    def record(self, number: int) -> str:
        """The record's entry `number`, from 1 on."""
        return f"{self.records}{number:06d}.json"

    def weights(self, sha256: str) -> str:
        """The weights of that content."""
        return f"models/{self.name}/weights/{sha256}.safetensors"

    def card(self, sha256: str, suffix: str) -> str:
        """The model card of that content; `suffix`: md or html."""
        return f"models/{self.name}/cards/{sha256}.{suffix}"

    def adoption(self, silo: str, version: str) -> str:
        """The one sentence of a hospital that announces what it adopts."""
        return f"models/{self.name}/adoptions/{_silo(silo)}/{version}.txt"


SOFT_LABELS = "softlabels/"
"""Prefix of everything that teachers answered, for all runs."""


def set_object(sha256: str, name: str) -> str:
    """A file of the distillation set `sha256`."""
    return f"{SOFT_LABELS}{sha256}/{name}"


def set_of_index(key: str) -> str | None:
    """sha256 of the distillation set whose index `key` is; None for another name."""
    match = _SET_INDEX.fullmatch(key)
    return match[1] if match else None


def settled_set(question_sha256: str) -> str:
    """Which set it is for these images and teachers, once for all."""
    return f"{SOFT_LABELS}settled/{question_sha256}.txt"


def teacher_ledger(teacher_key: str) -> str:
    """Prefix of a teacher's ledger."""
    return f"{SOFT_LABELS}ledger/{teacher_key}/"


def teacher_card(name: str, version: str) -> str:
    """What this name and version of a teacher answered as."""
    return f"{SOFT_LABELS}teachers/{name}/{hashlib.sha256(version.encode()).hexdigest()[:_SHA_SHOWN]}.json"


def _silo(name: str) -> str:
    return _checked(name, "silo")


def _checked(name: str, what: str) -> str:
    """`name` as it may stand in an object's key."""
    if not re.fullmatch(NAME, name):
        raise PermanentError(f"{what} {name[:80]!r}: 1 to 63 lower-case letters, digits and '-' expected, no '-' at the ends")
    return name
