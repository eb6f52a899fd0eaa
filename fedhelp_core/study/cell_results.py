"""What the models of a study's cell said of each image, beside the cell's file: for intervals over patients, and for other operating points.

`run_study` writes one NPZ a cell, `read_results` reads it. Its rows are in the order of the silo's splits, so that two cells of the same data
can be compared image by image: `objective.scores_of` gives the scores of any rows. Names in the file are `<silo>/<model>/<what>`, the model
that the silo deploys first:

    test/...         what scores are computed from: `labels` and `probabilities` (the model's own), or `dice`, `hausdorff95` and `confusion`
    validation/...   the same of the validation images, where they were looked at
    point/...        `temperature`, `offsets`, `log_prior` and `log_occurrence` of the operating point; of findings a row each

Equal numbers give an equal file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhelp_core.algorithm.inference import Evaluated, ModelName
from fedhelp_core.algorithm.operating_point import FindingsPoint
from fedhelp_core.disk import atomic_write

Arrays = dict[str, npt.NDArray[Any]]


def results_beside(cell: Path) -> Path:
    """Where the results of the cell's file `cell` lie."""
    return cell.with_suffix(".npz")


def write_results(path: Path, evaluated: Mapping[str, Mapping[ModelName, Evaluated]]) -> None:
    """Silo -> model -> its evaluation after the last round, into `path` in one step."""
    arrays = {
        f"{silo}/{name}/{what}": array for silo, models in evaluated.items() for name, model in models.items()
        for what, array in _arrays_of(model).items()}
    with atomic_write(path, durable=True) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # names are none of its options


def read_results(path: Path) -> dict[str, dict[str, Arrays]]:
    """Silo -> model, the one that the silo deploys first -> array by its name, such as `test/probabilities`."""
    found: dict[str, dict[str, Arrays]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            silo, model, what = key.split("/", 2)
            found.setdefault(silo, {}).setdefault(model, {})[what] = file[key]
    return found


def _arrays_of(model: Evaluated) -> Arrays:
    arrays = {f"test/{name}": rows for name, rows in model.test.items()}
    arrays |= {f"validation/{name}": rows for name, rows in (model.validation or {}).items()}
    if model.point is not None:
        several = isinstance(model.point, FindingsPoint)
        points = model.point.of_each if isinstance(model.point, FindingsPoint) else (model.point,)
        rows = {
            "temperature": np.array([one.temperature for one in points]), "offsets": np.array([one.offsets_C for one in points]),
            "log_prior": np.array([one.log_prior_C for one in points]), "log_occurrence": np.array([one.log_occurrence_C for one in points])}
        arrays |= {f"point/{name}": values if several else values[0] for name, values in rows.items()}
    return arrays
