"""What a row of the study found: scores by hospital, and intervals over patients and over seeds.

Made by __main__.py, shown by pages.py. All numbers come from the cells that `run_study` keeps, so the same cells give the same numbers.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.reproduce.intervals import (
    Counts,
    Floats,
    Interval,
    auroc_of_draws,
    balanced_accuracy_of_draws,
    drawn_counts,
    mean_of_draws,
    mean_over,
    percentile_interval,
    seeds_interval,
)
from benchmarks.reproduce.rows import Row
from fedhelp_core.algorithm.operating_point import OperatingPoint
from fedhelp_core.study.cell_results import Arrays, read_results
from fedhelp_core.study.study import CellResult

Patients = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One row under one normalisation, a cell a seed."""

    row: Row
    normalisation: str
    seeds: tuple[int, ...]
    cells: tuple[CellResult, ...]

    @cached_property
    def images(self) -> tuple[dict[str, dict[str, Arrays]], ...]:
        """What the models said of each image, a cell a seed."""
        return tuple(read_results(cell.images) for cell in self.cells if cell.images is not None)

    def hospitals(self, kind: str) -> list[str]:
        """Names of the silos of a kind: small, large or guest."""
        return [name for name, found in self.cells[0].kinds.items() if found == kind]

    def metrics(self) -> list[str]:
        """Names of the scores that there are intervals of, the headline first."""
        some = next(iter(next(iter(self.images[0].values())).values()))
        return ["balanced_accuracy", "auroc"] if "test/probabilities" in some else ["dice"]

    def by_seed(self, metric: str, hospitals: Sequence[str]) -> list[float]:
        """Mean over the hospitals of what they deploy, a value a seed."""
        return [_mean([_final(cell, name)[metric] for name in hospitals]) for cell in self.cells]

    def mean(self, metric: str, hospitals: Sequence[str]) -> float:
        """Mean over seeds and hospitals."""
        return _mean(self.by_seed(metric, hospitals))

    def worst(self, metric: str, hospitals: Sequence[str]) -> float:
        """Of each seed's worst hospital, the mean."""
        return _mean([min(_final(cell, name)[metric] for name in hospitals) for cell in self.cells])

    def draws(self, metric: str, hospitals: Sequence[str], patients: Patients) -> Floats:
        """The mean over seeds and hospitals (B,) in each draw of patients."""
        per_seed = [
            mean_over({name: _draws(metric, next(iter(found[name].values())), _counts(name, patients)) for name in hospitals})
            for found in self.images]
        return np.mean(np.stack(per_seed), axis=0)  # type: ignore[no-any-return]

    def processor_seconds(self) -> float:
        """Of a run, the median over seeds."""
        return statistics.median(cell.processor_seconds for cell in self.cells)

    def line(self) -> str:
        """For the terminal."""
        small = self.hospitals("small")
        return ", ".join(f"small silos' {metric.replace('_', ' ')} {self.mean(metric, small):.3f}" for metric in self.metrics())


@dataclass(frozen=True, kw_only=True)
class Difference:
    """FedHelp minus another row."""

    against: RowResult
    kind: str
    """Of which hospitals: small, large or guest."""
    metric: str
    mean: float
    better_in: int
    over_patients: Interval
    over_seeds: Interval


def difference(reference: RowResult, other: RowResult, kind: str, metric: str, patients: Patients) -> Difference:
    """Paired by seed and by patient: the mean over the hospitals of a kind."""
    hospitals = reference.hospitals(kind)
    by_seed = [a - b for a, b in zip(reference.by_seed(metric, hospitals), other.by_seed(metric, hospitals), strict=True)]
    return Difference(
        against=other, kind=kind, metric=metric, mean=_mean(by_seed), better_in=sum(value > 0 for value in by_seed),
        over_patients=percentile_interval(reference.draws(metric, hospitals, patients) - other.draws(metric, hospitals, patients)),
        over_seeds=seeds_interval(by_seed))


def _final(cell: CellResult, hospital: str) -> Mapping[str, float]:
    """The scores of the model that the hospital deploys."""
    return next(iter(cell.scores[cell.final_round][hospital].values()))


_drawn: dict[tuple[str, int], Counts] = {}


def _counts(hospital: str, patients: Patients) -> Counts:
    """The same draws for every row."""
    key = hospital, len(patients[hospital])
    if key not in _drawn:
        seed = int.from_bytes(hashlib.sha256(f"bootstrap/{hospital}".encode()).digest()[:8], "big")
        _drawn[key] = drawn_counts(patients[hospital], seed=seed)
    return _drawn[key]


def _draws(metric: str, found: Mapping[str, Any], counts_BN: Counts) -> Floats:
    if metric == "dice":
        return mean_of_draws(found["test/dice"], counts_BN)
    labels_N, probabilities_NC = found["test/labels"], found["test/probabilities"].astype(np.float64)
    if metric == "auroc":
        return auroc_of_draws(labels_N, probabilities_NC, counts_BN)
    point = OperatingPoint(
        rule="validation", temperature=float(found["point/temperature"]), offsets_C=tuple(found["point/offsets"].tolist()),
        log_prior_C=tuple(found["point/log_prior"].tolist()), log_occurrence_C=tuple(found["point/log_occurrence"].tolist()))
    return balanced_accuracy_of_draws(labels_N, point.decided(found["test/probabilities"]), counts_BN, probabilities_NC.shape[1])


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
