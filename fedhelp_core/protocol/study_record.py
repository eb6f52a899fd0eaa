"""What a study tells the reports of runs with the same settings: methods side by side. `fedhelp simulate` writes it, reports read it.

It lies in the federation's store under a name made of the settings that decide a score, method and seed apart, so a report finds it by its own.
A report shows it only where the test images are the same. Nothing is decided by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedhelp_core.config.federation import Federation
from fedhelp_core.protocol.documents import BySilo, Document, Name, Round, Score, Sha256, dump, read
from fedhelp_core.store.base import Store

_SHOWN = 32  # hex digits of the settings' sha256 in a name


@dataclass(frozen=True, kw_only=True)
class StudyRecord(Document):
    """A study of one federation under one normalisation: `studies/<settings>.json`."""

    canonical = True

    metric: Name
    """The task's main score, of which all numbers are."""
    rounds: Round
    seeds: Annotated[list[int], Field(min_length=1, max_length=10_000)]
    test_sha256: BySilo[Sha256]
    """Of each silo's test images and labels."""
    methods: Annotated[dict[Name, BySilo[Score]], Field(max_length=64)]
    """method -> silo -> mean over seeds of the model that the silo deploys."""


def record_key(federation: Federation) -> str:
    """The record's name: all that a score depends on but the method and the seed."""
    settings = federation.model_dump(mode="json", include={"task", "algorithm", "evaluation", "runtime"})
    del settings["algorithm"]["method"], settings["runtime"]["seed"]
    text = json.dumps({**settings, "silos": list(federation.silo_names)}, sort_keys=True)
    return f"studies/{hashlib.sha256(text.encode()).hexdigest()[:_SHOWN]}.json"


def write_study(store: Store, federation: Federation, record: StudyRecord) -> None:
    """In place of an earlier one of these settings: the newest study is the widest."""
    store.put(record_key(federation), dump(record))


def known_study(store: Store, federation: Federation, test_sha256: Mapping[str, str]) -> StudyRecord | None:
    """The study of these settings on these test images; None where there is none.

    Raises:
        PermanentError: the object is no such record.
    """
    record = read(store, StudyRecord, record_key(federation))
    return record if record is not None and dict(record.test_sha256) == dict(test_sha256) else None
