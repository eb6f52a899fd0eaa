"""What each task's demo is made of: drawn hospitals in the real data set's layout, a drawn public set, a teacher, settings.

Called by prepare.py, and so by `fedhelp run --demo`, `fedhelp simulate --demo` and `fedhelp data phantom`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.phantom import chest_findings, chest_xray, fed_isic, fed_ixi, fundus, lungs, organs, tumours
from fedhelp_core.data.phantom.drawing import Progress, PublicSet
from fedhelp_core.data.phantom.hospitals import datalist_of
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
    public: PublicSet
    teacher: str
    """Architecture, from the model registry."""
    public_images: int = 600
    teacher_images: int = 2400
    algorithm: Mapping[str, object] = field(default_factory=dict)
    """Fields of `algorithm` beside those that all demos share."""
    labelled: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Hospital -> what it labels, where that is not everything."""


def _melanoma_data(number: int) -> dict[str, object]:
    aside = {} if number else {"validation_fraction": 0.4}  # the largest hospital can spare images, and chooses between two models by them
    return {"layout": "fed-isic2019", "images": "../data/images", "split_csv": "../data/train_test_split.csv", "center": number, **aside}


def _lung_data(number: int) -> dict[str, object]:
    return {"layout": "pictures-and-masks", "images": "../data/images", "masks": "../data/masks", "prefix": list(lungs.COUNTS)[number],
            "test_fraction": (0.4, 0.6, 0.8)[number]}  # 70, 24 and 13 pictures or so to train on


def _brain_data(number: int) -> dict[str, object]:
    return {"layout": "fed-ixi", "root": "../data/subjects", "split_csv": "../data/metadata_tiny.csv", "hospital": list(fed_ixi.COUNTS)[number]}


DRAWN: Mapping[str, DrawnTask] = {
    "melanoma": DrawnTask(
        task={"name": "melanoma", "image_size": 32}, silos=SIX_SILOS, silo_data=_melanoma_data,
        write=lambda folder, seed, say: fed_isic.write_fed_isic(folder, seed=seed, progress=say), public=fed_isic.PUBLIC, teacher="resnet8",
        teacher_images=1800,
        algorithm={"rounds": 17, "public_start_steps": 200}),  # the teacher first: fewer rounds, and better small hospitals (docs/decisions/0024)
    "pneumonia": DrawnTask(
        task={"name": "pneumonia", "image_size": 48}, silos=SIX_SILOS,
        silo_data=lambda number: {"layout": "chest-xray", "root": "../data", "share": {"number": number}},
        write=lambda folder, seed, say: chest_xray.write_chest_xray(folder, seed=seed, progress=say), public=chest_xray.PUBLIC, teacher="resnet8",
        public_images=400, teacher_images=1600),
    "lung-segmentation": DrawnTask(
        task={"name": "lung-segmentation", "image_size": 48}, silos=("shenzhen", "montgomery", "tokyo"), silo_data=_lung_data,
        write=lambda folder, seed, say: lungs.write_lungs(folder, seed=seed, progress=say), public=lungs.PUBLIC, teacher="unet2d-tiny",
        public_images=200, teacher_images=320,
        algorithm={"large_silos": 1, "proxy_model": "unet2d-tiny", "large_model": "unet2d"}),
    "brain-segmentation": DrawnTask(
        task={"name": "brain-segmentation", "image_size": 32, "volume": {"spacing": 6.0, "patch_size": 16, "patches": 2, "window_size": 32}},
        silos=("guys", "hammersmith", "iop"), silo_data=_brain_data,
        write=lambda folder, seed, say: fed_ixi.write_fed_ixi(folder, seed=seed, progress=say), public=fed_ixi.PUBLIC, teacher="unet3d-tiny",
        public_images=60, teacher_images=128,
        algorithm={"large_silos": 1, "batch_size": 2, "public_batch_size": 4, "proxy_model": "unet3d-tiny", "large_model": "unet3d"}),
    "chest-findings": DrawnTask(
        task={"name": "chest-findings", "form": "labels", "classes": list(chest_findings.FINDINGS), "image_size": 48},
        silos=tuple(chest_findings.COUNTS), silo_data=lambda number: datalist_of(list(chest_findings.COUNTS)[number]),
        write=lambda folder, seed, say: chest_findings.write_chest_findings(folder, seed=seed, progress=say),
        public=chest_findings.PublicFindings(), teacher="resnet8", public_images=300, teacher_images=1200, labelled=chest_findings.LABELLED,
        algorithm={"large_silos": 1}),
    "retinopathy": DrawnTask(
        task={"name": "retinopathy", "form": "classes", "classes": list(fundus.GRADES), "image_size": 48}, silos=tuple(fundus.COUNTS),
        silo_data=lambda number: datalist_of(list(fundus.COUNTS)[number]),
        write=lambda folder, seed, say: fundus.write_fundus(folder, seed=seed, progress=say), public=fundus.PUBLIC, teacher="resnet8",
        public_images=300, teacher_images=900, algorithm={"large_silos": 1}),
    "chest-organs": DrawnTask(
        task={"name": "chest-organs", "form": "masks", "classes": list(organs.CLASSES), "image_size": 48}, silos=tuple(organs.COUNTS),
        silo_data=lambda number: datalist_of(list(organs.COUNTS)[number]),
        write=lambda folder, seed, say: organs.write_organs(folder, seed=seed, progress=say), public=organs.PUBLIC, teacher="unet2d-tiny",
        public_images=120, teacher_images=240, algorithm={"large_silos": 1, "proxy_model": "unet2d-tiny", "large_model": "unet2d"}),
    "brain-tumours": DrawnTask(
        task={"name": "brain-tumours", "form": "regions", "dimensions": 3, "channels": 4, "classes": list(tumours.REGIONS),
              "mask_values": [list(values) for values in tumours.REGIONS.values()], "image_size": 32,
              "volume": {"spacing": 6.0, "patch_size": 16, "patches": 2, "window_size": 32}},
        silos=tuple(tumours.COUNTS), silo_data=lambda number: datalist_of(list(tumours.COUNTS)[number]),
        write=lambda folder, seed, say: tumours.write_tumours(folder, seed=seed, progress=say), public=tumours.PUBLIC, teacher="unet3d-tiny",
        public_images=40, teacher_images=96,
        algorithm={"large_silos": 1, "batch_size": 2, "public_batch_size": 4, "proxy_model": "unet3d-tiny", "large_model": "unet3d"}),
}


def drawn_task(name: str) -> DrawnTask:
    """The demo of task `name`.

    Raises:
        ConfigError: no such demo.
    """
    if name not in DRAWN:
        raise ConfigError(f"task {name!r}: there are demos of {', '.join(DRAWN)}; choose one of them")
    return DRAWN[name]


def drawn_like(task: TaskConfig) -> DrawnTask:
    """The demo whose images are most like those of `task`: its own, or one of as many dimensions and, if there is one, channels."""
    def distance(drawn: DrawnTask) -> tuple[bool, bool, bool]:
        other = TaskConfig.model_validate(drawn.task)
        return other.name != task.name, other.dimensions != task.dimensions, other.channels != task.channels

    return min(DRAWN.values(), key=distance)
