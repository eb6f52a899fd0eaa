"""The Model Registry: candidate, champion, and who was champion before. Called by promotion and by `promote` and `rollback`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import NotFound, PermanentError
from fedhelp_core.tracking.models import MODEL_TAG, RUN_TAG
from fedhelp_core.tracking.server import client_of, mlflow_errors, tracking_uri

CANDIDATE = "candidate"
CHAMPION = "champion"
SCORES_TAG = "fedhelp.scores"
PREVIOUS_TAG = "fedhelp.previous_champions"  # of the registered model: versions, the last one last
ROLLBACK_TAG = "fedhelp.rollback"  # of the registered model: the last rollback, as "from to"
RECORD_TAG = "fedhelp.record"  # of the registered model: the newest record that hospitals read, as "number sha256"
_NOTED = ("kind", "test_sha256")  # of a silo in SCORES_TAG, beside its scores
_COUNTS = "right"  # the same: right test images of each class, where a version has noted them
_CHAMPIONS_KEPT = 20
_VERSIONS_LISTED = 20  # in a message


class Promoted(NamedTuple):
    """The champion, and who it took the place of: itself where nothing changed, None where nobody was champion."""

    version: str
    replaced: str | None


class Registry:
    """The Model Registry: what is candidate, what is champion, and what was."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._opened: Any = None

    @classmethod
    def for_federation(cls, federation: Federation) -> Registry:
        """The registry beside the federation's runs; contacts nothing yet.

        Raises:
            ConfigError: no tracking URI can be told.
        """
        return cls(tracking_uri(federation))

    def scores_of(self, name: str, version: str) -> dict[str, dict[str, Any]]:
        """Silo -> its score by the task's metric's name, kind and test_sha256, as evaluation noted them at this version.

        Raises:
            NotFound: no such version, or nothing noted.
            PermanentError: what is noted cannot be read.
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        with mlflow_errors(self._uri):
            text = self._version(name, version).tags.get(SCORES_TAG)
        if text is None:
            raise NotFound(
                f"model {name!r} version {version}: no tag {SCORES_TAG}, so it was not registered by FedHelp's evaluation and cannot be"
                " compared; decide by hand: fedhelp promote")
        try:
            return _checked_scores(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise PermanentError(
                f"model {name!r} version {version}: tag {SCORES_TAG} cannot be read ({e}); expected JSON of silo ->"
                " a score, kind, test_sha256; mend it in MLflow, or decide by hand: fedhelp promote") from e

    def champion(self, name: str) -> str | None:
        """The version with alias `champion`; None where there is none.

        Raises:
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        try:
            with mlflow_errors(self._uri):
                return self._aliases(name).get(CHAMPION)
        except NotFound:
            return None

    def champion_before(self, name: str) -> str | None:
        """The version that `rollback` would make champion; None where there is none.

        Raises:
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        champion = self.champion(name)
        with mlflow_errors(self._uri):
            before = self._champions_before(name, champion) if champion is not None else []
        return before[-1] if before else None

    def run_of(self, name: str, version: str) -> str | None:
        """The id of the run that `version` is of; None where it does not say.

        Raises:
            NotFound: no such version.
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        with mlflow_errors(self._uri):
            run: str | None = self._version(name, version).tags.get(RUN_TAG)
        return run

    def same_weights(self, name: str, one: str, other: str) -> bool:
        """Whether two versions hold the same model, by what evaluation noted of each.

        Raises:
            NotFound: no such version.
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        with mlflow_errors(self._uri):
            noted = [self._version(name, version).tags.get(MODEL_TAG) for version in (one, other)]
        return noted[0] is not None and noted[0] == noted[1]

    def promote(self, name: str, version: str | None) -> Promoted:
        """Make `version` (None: the candidate) champion and remember the one before it.

        Raises:
            NotFound: no such model or version, or no candidate.
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        with mlflow_errors(self._uri):
            aliases = self._aliases(name)
            version = version or aliases.get(CANDIDATE)
            if version is None:
                raise NotFound(f"model {name!r}: no version has the alias {CANDIDATE!r}; run evaluation first, or name a version")
            self._require_version(name, version)  # before anything is changed
            champion = aliases.get(CHAMPION)
            if champion == version:
                return Promoted(version, version)
            if champion is not None:
                self._remember(name, [*self._champions_before(name, champion), champion])
            self._client().set_registered_model_alias(name, CHAMPION, version)  # last: a kill before it leaves the old champion
            return Promoted(version, champion)

    def rollback(self, name: str) -> str:
        """Give alias `champion` back to the version that had it before; that version.

        Raises:
            NotFound: there is no model or no champion, or none was before it, or that one has been deleted.
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        with mlflow_errors(self._uri):
            champion = self._aliases(name).get(CHAMPION)
            if champion is None:
                raise NotFound(f"model {name!r}: no version is champion; make one: fedhelp promote")
            before = self._champions_before(name, champion)
            if not before:
                raise NotFound(
                    f"model {name!r}: no champion was there before version {champion}; `fedhelp promote FEDERATION --version NUMBER` chooses another")
            previous = before.pop()
            self._require_version(name, previous)
            self._client().set_registered_model_tag(name, ROLLBACK_TAG, f"{champion} {previous}")  # before it is done: see `rolled_back`
            self._client().set_registered_model_alias(name, CHAMPION, previous)
            self._remember(name, before)
            return previous

    def rolled_back(self, name: str, before: str, after: str) -> bool:
        """Whether the last rollback was from version `before` to `after`: a command that was killed half-way goes on with it, not with another.

        Raises:
            NotFound: no such model.
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        with mlflow_errors(self._uri):
            return bool(self._client().get_registered_model(name).tags.get(ROLLBACK_TAG) == f"{before} {after}")

    def known_record(self, name: str) -> tuple[int, str]:
        """Number and sha256 of the newest record in the store that `remember_record` was told of; (0, '') before.

        Raises:
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        try:
            with mlflow_errors(self._uri):
                number, _, sha256 = self._client().get_registered_model(name).tags.get(RECORD_TAG, "0 ").partition(" ")
        except NotFound:
            return 0, ""
        return (int(number), sha256) if number.isdecimal() else (0, "")

    def remember_record(self, name: str, number: int, sha256: str) -> None:
        """That the store's record of `name` goes as far as this: what is shorter or another later on was tampered with.

        Raises:
            NotFound: no such model.
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        if self.known_record(name) != (number, sha256):
            with mlflow_errors(self._uri):
                self._client().set_registered_model_tag(name, RECORD_TAG, f"{number} {sha256}")

    def _champions_before(self, name: str, champion: str) -> list[str]:
        """Champions before the present one, the last one last. A killed promotion may have noted the present one already."""
        noted = self._client().get_registered_model(name).tags.get(PREVIOUS_TAG, "")
        versions = [version for version in noted.split(",") if version]
        while versions and versions[-1] == champion:
            versions.pop()
        return versions

    def _remember(self, name: str, versions: Sequence[str]) -> None:
        self._client().set_registered_model_tag(name, PREVIOUS_TAG, ",".join(versions[-_CHAMPIONS_KEPT:]))

    def _aliases(self, name: str) -> dict[str, str]:
        return {alias: str(version) for alias, version in self._client().get_registered_model(name).aliases.items()}

    def _require_version(self, name: str, version: str) -> None:
        there = sorted((str(found.version) for found in self._client().search_model_versions(f"name = '{name}'")), key=int)
        if version not in there:
            listed = ("... " if len(there) > _VERSIONS_LISTED else "") + ", ".join(there[-_VERSIONS_LISTED:])
            choice = f"choose one of {listed}: fedhelp promote FEDERATION --version NUMBER" if there else "run evaluation first"
            raise NotFound(f"model {name!r} has no version {version!r}; {choice}")

    def _version(self, name: str, version: str) -> Any:
        return self._client().get_model_version(name, version)

    def _client(self) -> Any:
        if self._opened is None:
            self._opened = client_of(self._uri)
        return self._opened


def _checked_scores(document: Any) -> dict[str, dict[str, Any]]:
    if not document:
        raise ValueError("no silo in it")
    scores: dict[str, dict[str, Any]] = {}
    for silo, noted in document.items():
        values = {str(name): float(value) for name, value in noted.items() if name not in (*_NOTED, _COUNTS)}
        if not values:
            raise ValueError(f"no score of {silo}")
        if not all(map(math.isfinite, values.values())):
            raise ValueError(f"{', '.join(values)} of {silo} is not finite")
        counts = {_COUNTS: [int(count) for count in noted[_COUNTS]]} if _COUNTS in noted else {}
        scores[str(silo)] = values | {key: str(noted[key]) for key in _NOTED} | counts
    return scores
