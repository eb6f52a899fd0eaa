"""The study's teachers: EfficientNet-Lite0 as ImageNet left it, and with a head that one hospital's labelled images gave it.

The network, the head and the MLflow model are those of examples/teachers/efficientnet; here are the study's own calls:

- `natural_teacher(folder)` for natural images, 1,000 classes;
- `hospital_teacher(folder, labelled)` for the field's own, the hospital's classes;
- `auroc_on(head, features_ND, labels_N)`: what a teacher knows of images that it was not fitted on.

Both return what a federation names as `public_set.teachers`. Needs the group `reproduce`. Shapes: N images, D features, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.teachers.efficientnet.network import SIDE, EfficientNetLite0, Head
from examples.teachers.efficientnet.save import Fit, Labelled, auroc, features_of, fit_head, save
from fedhelp_core.config.teachers import TeacherConfig

__all__ = ["Fit", "Head", "Labelled", "auroc_on", "features_of", "fit_head", "hospital_teacher", "natural_teacher"]

_IMAGENET_CLASSES = 1000


def natural_teacher(folder: Path) -> TeacherConfig:
    """The teacher with ImageNet's classes, written into `folder` where it is not there yet."""
    if not (folder / "MLmodel").exists():
        save(folder)
    return _config("natural", folder, _IMAGENET_CLASSES)


def hospital_teacher(folder: Path, labelled: Labelled, *, most: int | None = None, seed: int = 0) -> tuple[TeacherConfig, Fit]:
    """The teacher fitted on a hospital's labelled images, written into `folder` (new or empty), and how it was fitted.

    `most`: of so many images, patient by patient in a drawn order, for a teacher of fewer images knows less; None: of all.
    """
    chosen = _drawn(labelled, len(labelled.images) if most is None else most, seed)
    network = EfficientNetLite0()
    fit = fit_head(
        features_of([labelled.images[i] for i in chosen], network), labelled.labels_N[chosen], [labelled.patients[i] for i in chosen],
        labelled.classes)
    save(folder, fit.head)
    return _config("hospital", folder, len(labelled.classes)), fit


def auroc_on(head: Head, features_ND: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
    """AUROC of the head's answers to images with these features, mean over classes, one against the rest."""
    return auroc(labels_N, head.probabilities(features_ND))


def _drawn(labelled: Labelled, most: int, seed: int) -> NDArray[np.int64]:
    """Positions of the first `most` images, patients in a drawn order."""
    names, owner_N = np.unique(np.asarray(labelled.patients), return_inverse=True)
    place_of_patient = np.argsort(np.random.default_rng(seed).permutation(len(names)))
    order = np.argsort(place_of_patient[owner_N], kind="stable")
    return np.sort(order[:most])


def _config(name: str, folder: Path, classes: int) -> TeacherConfig:
    return TeacherConfig(name=name, uri=str(folder), classes=classes, image_size=SIDE)
