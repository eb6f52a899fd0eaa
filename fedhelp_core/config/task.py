"""What is learnt: the `task` section of federation.yaml."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from fedhelp_core.config.section import Section
from fedhelp_core.config.sentences import nearest
from fedhelp_core.registry.tasks import TASKS


class VolumeConfig(Section):
    """How volumes are prepared, cut and put together again; read by tasks of three dimensions only."""

    spacing: float = Field(1.0, gt=0, le=100)
    """Side of a voxel in mm after resampling; FreeSurfer conforms to 1 mm too."""
    patch_size: int = Field(64, ge=8, le=512)
    """Side in voxels of the patches that are trained on."""
    patches: int = Field(1, ge=1, le=1000)
    """Patches of each volume in a local epoch."""
    window_size: int = Field(64, ge=8, le=512)
    """Side in voxels of the sliding window that a whole volume is answered with."""
    window_overlap: float = Field(0.25, ge=0, lt=1)
    """Share of a window that its neighbour covers too; MONAI's default."""
    windows: int = Field(4, ge=1, le=1024)
    """Windows answered at a time; fewer need less memory."""


class TaskConfig(Section):
    """What is learnt."""

    name: str = "melanoma"
    """Key of the task registry (fedhelp_core/registry/tasks.py)."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the integer labels, of a mask: background, foreground; default: the task's own."""
    image_size: int = Field(32, ge=8, le=1024)
    """Side in pixels (of volumes: in voxels) that images are brought to before training."""
    volume: VolumeConfig = VolumeConfig()

    @model_validator(mode="before")
    @classmethod
    def _own_classes(cls, document: Any) -> Any:
        task = TASKS.get(str(document.get("name", "melanoma"))) if isinstance(document, dict) else None
        return {"classes": task.classes, **document} if task is not None else document

    @model_validator(mode="after")
    def _fields_make_sense(self) -> Self:
        if self.name not in TASKS:
            near = nearest(self.name, list(TASKS))
            raise ValueError(f"name: one of {', '.join(TASKS)} expected, got {self.name!r}" + (f"; did you mean {near!r}?" if near else ""))
        if len(self.classes) < 2:
            raise ValueError(f"classes: at least 2 names expected, got {len(self.classes)}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: names must differ from each other")
        task = TASKS[self.name]
        if task.answer == "mask" and len(self.classes) != 2:
            raise ValueError(f"classes: {self.name} tells one foreground from its background, so 2 names expected, got {len(self.classes)}")
        if task.dimensions == 3:
            largest = max(self.volume.patch_size, self.volume.window_size)
            if largest > self.image_size:
                raise ValueError(f"volume: patch_size and window_size of at most image_size ({self.image_size}) expected, got {largest}")
        return self
