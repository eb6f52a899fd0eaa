"""How much a teacher must know for Eq 2 to pay: its own score against FedHelp's gain, for teachers of fewer and fewer labelled images.

    python -m benchmarks.reproduce.curve DATA [--out build/reproduce] [--set pneumonia] [--labelled 8,32,128,512] [--seeds 1,2,3]

Writes teacher-curve.csv and teacher-curve.svg into OUT/<set>. Cells are those of the study, so the compared row is computed once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.reproduce.__main__ import batches_of_small, computed, numbers
from benchmarks.reproduce.pages import DIFFERENCE, difference_cells, number_text, svg, write_csv, write_text
from benchmarks.reproduce.prepare import Prepared, TeachersImages, prepare, teachers_images
from benchmarks.reproduce.results import Difference, difference
from benchmarks.reproduce.rows import equal_epochs, rows_of
from benchmarks.reproduce.sets import SETS
from fedhelp_core.errors import FedHelpError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NORMALISATION = "silo"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One teacher."""

    labelled: int
    """Images that it learnt from."""
    auroc: float
    """Its own, on the images that it is asked about."""
    gains: Sequence[Difference]
    """FedHelp with it minus FedAvg at equal steps, small silos, a score each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute what is missing, and write the curve."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce.curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the real sets (docs/reproduce/real-images.md)")
    parser.add_argument("--out", type=Path, default=Path("build/reproduce"), help="where the study's cells are; default: build/reproduce")
    parser.add_argument("--set", choices=[name for name, one in SETS.items() if one.teacher_hospital], default="pneumonia")
    parser.add_argument("--labelled", type=numbers, default="8,32,128,512", help="images that the teachers learnt from; default: 8,32,128,512")
    parser.add_argument("--seeds", type=numbers, default="1,2,3", help="comma-separated; default: 1,2,3")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    try:
        study = prepare(SETS[given.set], given.data, given.out)
        points = _points(study, teachers_images(study.study, given.data), given.labelled, given.seeds, given.workers)
    except FedHelpError as e:
        print(f"curve: {e}", file=sys.stderr)
        return e.exit_code
    _write(points, study.folder)
    return 0


def _points(study: Prepared, images: TeachersImages, sizes: Sequence[int], seeds: Sequence[int], workers: int) -> list[Point]:
    from benchmarks.reproduce.teacher import auroc_on, features_of, hospital_teacher
    from examples.teachers.efficientnet.network import EfficientNetLite0

    rows = rows_of(study.study, natural=False, epochs=equal_epochs(batches_of_small(study), study.federation().algorithm.rounds))
    fedhelp = rows[0]
    fedavg = computed(study, next(row for row in rows if row.compared and row.method == "fedavg"), _NORMALISATION, seeds, workers)
    asked_ND: NDArray[np.float32] = features_of(images.asked.images, EfficientNetLite0())
    points = []
    for size in sizes:
        name = f"field-{size}"
        teacher, fit = hospital_teacher(study.folder / "teachers" / name, images.labelled, most=size)
        public = {**study.teachers[fedhelp.teacher], "teachers": [{**teacher.model_dump(mode="json"), "name": name}]}
        row = replace(fedhelp, name=f"FedHelp, a teacher of {size} images", teacher=name)
        found = computed(replace(study, teachers={**study.teachers, name: public}), row, _NORMALISATION, seeds, workers)
        auroc = auroc_on(fit.head, asked_ND, images.asked.labels_N)
        points.append(Point(
            labelled=size, auroc=auroc, gains=[difference(found, fedavg, "small", metric, study.patients) for metric in found.metrics()]))
        print(f"{size} labelled images: the teacher's AUROC {auroc:.3f}; "
              + ", ".join(f"small silos' {d.metric.replace('_', ' ')} {d.mean:+.3f} ({d.over_patients})" for d in points[-1].gains), flush=True)
    return points


def _write(points: Sequence[Point], folder: Path) -> None:
    write_csv(folder / "teacher-curve.csv", [
        ["labelled", "teacher_auroc", "score", *DIFFERENCE],
        *([point.labelled, number_text(point.auroc), d.metric, *difference_cells(d)] for point in points for d in point.gains)])
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for i, metric in enumerate(d.metric for d in points[0].gains):
        gains = [point.gains[i] for point in points]
        middle = [d.mean for d in gains]
        errors = [[d.mean - d.over_patients.low for d in gains], [d.over_patients.high - d.mean for d in gains]]
        axes.errorbar([point.auroc for point in points], middle, yerr=errors, marker="o", capsize=3, label=metric.replace("_", " "))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("the teacher's own AUROC on the public images")
    axes.set_ylabel("FedHelp minus FedAvg at equal steps")
    axes.legend()
    write_text(folder / "teacher-curve.svg", svg(figure))


if __name__ == "__main__":
    sys.exit(main())
