"""The compared rows: each a method with settings of its own, so that methods meet at one local epoch and at equal steps.

Read by __main__.py. `fedhelp` here is the study's default (docs/decisions/0024): Eq 2 before the first round, and then beside every private batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.reproduce.prepare import FIELD, NATURAL
from benchmarks.reproduce.sets import RealSet

EPOCHS, PUBLIC_STEPS, START = 2, 1, 400
"""FedHelp's own: local epochs, public batches after each private one, public batches before the first round."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table, for both normalisations."""

    name: str
    method: str
    settings: Mapping[str, object] = field(default_factory=dict)
    """Changes of the federation's `algorithm`."""
    teacher: str = FIELD
    compared: bool = False
    """Whether FedHelp is held against it: small silos take at least as many optimizer steps."""


def rows_of(study: RealSet, *, natural: bool, epochs: int) -> Sequence[Row]:
    """The rows of `study`, the reference (FedHelp) first, the compared ones next. `epochs`: `equal_epochs`."""
    return _classification(natural, epochs) if study.teacher_hospital else _without_teacher()


def equal_epochs(small_batches: Sequence[int], rounds: int) -> int:
    """Local epochs with which small silos take at least as many optimizer steps as FedHelp's; `small_batches`: of each of them, in an epoch."""
    steps = EPOCHS * (1 + PUBLIC_STEPS) * rounds * sum(small_batches) + START * len(small_batches)
    return math.ceil(steps / (rounds * sum(small_batches)))


def _classification(natural: bool, epochs: int) -> list[Row]:
    own = {"algorithm.local_epochs": EPOCHS, "algorithm.public_steps": PUBLIC_STEPS, "algorithm.public_start_steps": START}
    many = {"algorithm.local_epochs": epochs}
    paper = {"algorithm.local_epochs": 1, "algorithm.public_steps": 1, "algorithm.public_start_steps": 0, "algorithm.public_batch_size": 4}
    rows = [
        Row(name="FedHelp", method="fedhelp", settings=own),
        Row(name=f"alone, {epochs} epochs", method="local", settings=many, compared=True),
        Row(name=f"FedAvg, {epochs} epochs", method="fedavg", settings=many, compared=True),
        Row(name=f"FedProx, {epochs} epochs", method="fedprox", settings=many, compared=True),
        Row(name="FedAvg, 1 epoch", method="fedavg"),
        Row(name="alone, 1 epoch", method="local"),
        Row(name="FedHelp, the paper's steps", method="fedhelp", settings=paper),
        Row(name="FedHelp without a start from public images", method="fedhelp", settings={**own, "algorithm.public_start_steps": 0}),
        Row(name="FedHelp, public images at the start alone", method="fedhelp", settings={**own, "algorithm.public_steps": 0}),
        Row(name="FedHelp without soft labels", method="fedhelp-no-api", settings={"algorithm.local_epochs": EPOCHS}),
        Row(name="FedHelp, one way", method="fedhelp-one-way", settings=own),
        # FedHelp's processor time: twice that of its steps, since public batches are larger and large hospitals train two models
        Row(name=f"FedAvg, {2 * epochs} epochs", method="fedavg", settings={"algorithm.local_epochs": 2 * epochs}),
        Row(name=f"alone, {2 * epochs} epochs", method="local", settings={"algorithm.local_epochs": 2 * epochs}),
    ]
    if natural:
        rows.append(Row(name="FedHelp, natural images", method="fedhelp", settings=own, teacher=NATURAL))
    return rows


def _without_teacher() -> list[Row]:
    return [
        Row(name="FedHelp without soft labels", method="fedhelp-no-api", teacher=""),
        Row(name="alone", method="local", teacher="", compared=True),
        Row(name="FedAvg", method="fedavg", teacher="", compared=True),
        Row(name="FedProx", method="fedprox", teacher="", compared=True),
    ]

