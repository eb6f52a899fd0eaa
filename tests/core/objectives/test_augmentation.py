"""Augmentations by name: seeded, within their ranges, masks move with their images; a wrong name or range is one sentence."""

import math
from typing import Any

import pytest
import torch

from fedhelp_core.config.algorithm import AlgorithmConfig, AugmentationConfig
from fedhelp_core.config.federation import parse_federation
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.errors import ConfigError
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.registry.augmentations import AUGMENTATIONS

pytestmark = pytest.mark.slow  # MONAI takes seconds to import
EYES = TaskConfig.model_validate({"name": "eyes", "form": "classes", "classes": ["a", "b"], "image_size": 16})
ORGANS = TaskConfig.model_validate({"name": "organs", "form": "masks", "classes": ["background", "x", "y"], "image_size": 16})
BRAINS = TaskConfig.model_validate({
    "name": "brains", "form": "regions", "dimensions": 3, "channels": 2, "classes": ["x"], "image_size": 16,
    "volume": {"patch_size": 8, "window_size": 8}})
RANGES: dict[str, Any] = {
    "RandFlip": None, "RandRotate": [20, 40], "RandZoom": [1.2, 1.5], "RandGaussianNoise": [0, 20], "RandGaussianSmooth": [1, 2],
    "RandAdjustContrast": [1.5, 2], "RandScaleIntensity": [1.2, 1.5], "RandShiftIntensity": [10, 20]}


def listed(*names: str) -> tuple[AugmentationConfig, ...]:
    return tuple(AugmentationConfig.model_validate({"transform": name, "probability": 1.0, "range": RANGES[name]}) for name in names)


def batch(task: TaskConfig) -> tuple[torch.Tensor, torch.Tensor]:
    sides = (16,) * task.dimensions
    images = torch.randint(0, 256, (3, task.channels, *sides), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    if not task.per_pixel:
        return images, torch.tensor([0, 1, 0])
    return images, (images[:, :1] > 100).to(torch.uint8)


@pytest.mark.parametrize("task", [EYES, ORGANS, BRAINS], ids=lambda task: task.name)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_changes_images_by_the_generator_alone(task: TaskConfig, name: str) -> None:
    assert set(RANGES) == set(AUGMENTATIONS)
    augment = objective_of(task).augmentation(listed(name))
    images, targets = batch(task)
    assert augment is not None
    once, again, other = (augment(images.clone(), targets.clone(), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert once[1].dtype == targets.dtype and (task.per_pixel or torch.equal(once[1], targets))
    if task.dimensions == 2:
        assert not torch.equal(once[0], images.to(once[0].dtype))
    if name not in ("RandFlip",):
        assert not torch.equal(once[0], other[0])


def test_a_mask_moves_with_its_image_and_keeps_its_numbers() -> None:
    images, _ = batch(ORGANS)
    images = (images > 128).to(torch.uint8) * 2
    augment = objective_of(ORGANS).augmentation(listed("RandFlip"))
    assert augment is not None
    changed, target = augment(images, images.clone(), torch.Generator().manual_seed(1))
    assert torch.equal(changed, target) and torch.equal(changed, images.flip(3))
    turned = objective_of(ORGANS).augmentation(listed("RandRotate", "RandZoom"))
    assert turned is not None
    assert set(turned(images, images.clone(), torch.Generator().manual_seed(1))[1].unique().tolist()) <= {0, 2}


def test_a_rotation_is_in_degrees() -> None:
    (step,) = listed("RandRotate")
    assert math.radians(step.ends[1]) < 1


@pytest.mark.parametrize(("listed_as", "words"), [
    ([{"transform": "RandRotat", "range": [-10, 10]}], r"transform: one of RandFlip, .*did you mean 'RandRotate'\?"),
    ([{"transform": "os.system", "range": [0, 1]}], "transform: one of RandFlip"),
    ([{"transform": "RandRotate"}], r"range: two numbers from -180 to 180 \(degrees\) expected of RandRotate, got none"),
    ([{"transform": "RandZoom", "range": [0.1, 3]}], r"range: two numbers from 0.5 to 2 \(times\) expected"),
    ([{"transform": "RandZoom", "range": [1.5, 1.2]}], "range: two numbers from 0.5 to 2"),
    ([{"transform": "RandFlip", "range": [0, 1]}], "range: RandFlip takes none"),
    ([{"transform": "RandFlip", "keys": ["image"]}], "unknown field"),
])
def test_what_cannot_be_an_augmentation_is_one_sentence_before_anything_starts(listed_as: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_federation({
            "name": "test", "task": EYES.model_dump(mode="json"), "algorithm": {"method": "fedavg", "augmentation": listed_as},
            "store": {"url": "store"}, "silos": [{"name": "a", "dispatch": {"silo_config": "a.yaml"}}]}, source="test")


def test_a_list_is_read_back_as_it_was_written() -> None:
    chosen = AlgorithmConfig.model_validate({"augmentation": [{"transform": "RandRotate", "range": [-10, 10]}, {"transform": "RandFlip"}]})
    assert AlgorithmConfig.model_validate(chosen.model_dump(mode="json")) == chosen
