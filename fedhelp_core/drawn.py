"""What each task's demo is made of: drawn hospitals in the real data set's layout, a drawn public set, a teacher, settings.

Called by demo.py, and so by `fedhelp run --demo`, `fedhelp simulate --demo` and `fedhelp data phantom`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedhelp_core.data.phantom import chest_xray, fed_isic
from fedhelp_core.data.phantom.drawing import Progress, Public
from fedhelp_core.errors import ConfigError

SIX_SILOS = ("amsterdam", "barcelona", "coimbra", "dresden", "espoo", "faro")


@dataclass(frozen=True, kw_only=True)
class DrawnTask:
    """One task's demo."""

    task: Mapping[str, object]
    """The `task` section of federation.yaml."""
    silos: tuple[str, ...]
    silo_data: Callable[[int], dict[str, object]]
    """Number of a silo -> the `data` section of its silo.yaml; paths are relative to <demo>/silos."""
    write: Callable[[Path, int, Progress], None]
    """(folder, seed, progress): draw all hospitals' data."""
    public: Public
    teacher: str
    """Architecture, from the model registry."""
    public_images: int = 600
    teacher_images: int = 2400
    algorithm: Mapping[str, object] = field(default_factory=dict)
    """Fields of `algorithm` beside those that all demos share."""


def _melanoma_data(number: int) -> dict[str, object]:
    return {"layout": "fed-isic2019", "images": "../data/images", "split_csv": "../data/train_test_split.csv", "center": number,
            "validation_fraction": 0.0}  # nothing is tuned in the demo, and every training image counts


DRAWN: Mapping[str, DrawnTask] = {
    "melanoma": DrawnTask(
        task={"name": "melanoma", "image_size": 32}, silos=SIX_SILOS, silo_data=_melanoma_data,
        write=lambda folder, seed, say: fed_isic.write_fed_isic(folder, seed=seed, progress=say), public=fed_isic.PUBLIC, teacher="resnet8",
        teacher_images=1800),
    "pneumonia": DrawnTask(
        task={"name": "pneumonia", "image_size": 48}, silos=SIX_SILOS,
        silo_data=lambda number: {"layout": "chest-xray", "root": "../data", "share": {"number": number}},
        write=lambda folder, seed, say: chest_xray.write_chest_xray(folder, seed=seed, progress=say), public=chest_xray.PUBLIC, teacher="resnet8",
        public_images=400, teacher_images=1600),
}


def drawn_task(name: str) -> DrawnTask:
    """The demo of task `name`.

    Raises:
        ConfigError: no such demo.
    """
    if name not in DRAWN:
        raise ConfigError(f"task {name!r}: there are demos of {', '.join(DRAWN)}; choose one of them")
    return DRAWN[name]
