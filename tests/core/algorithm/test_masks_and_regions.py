"""Eq 6 of several foregrounds and of regions against loops written by hand; of one foreground both are the paper's."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from fedhelp_core.algorithm import losses, voxel_losses
from fedhelp_core.registry.tasks import NOT_LABELLED

GENERATOR = torch.Generator().manual_seed(4)
SHAPE = (2, 3, 3, 4)  # images, foregrounds, height, width
LOGITS = torch.randn(SHAPE, generator=GENERATOR, dtype=torch.float64)
OTHER = torch.randn(SHAPE, generator=GENERATOR, dtype=torch.float64)
NUMBERS = torch.randint(0, 4, (2, 1, 3, 4), generator=GENERATOR, dtype=torch.uint8)
REGIONS = torch.randint(0, 2, SHAPE, generator=GENERATOR, dtype=torch.uint8)
VOXELS = list(product(range(2), range(3), range(4)))


def probabilities(logits: Tensor, image: int, row: int, column: int, temperature: float = 1.0) -> list[float]:
    """Of background and foregrounds: the softmax over a background of logit 0."""
    powers = [1.0, *(math.exp(float(logits[image, k, row, column]) / temperature) for k in range(logits.shape[1]))]
    return [power / sum(powers) for power in powers]


def soft_dice(said: list[float], true: list[float]) -> float:
    """1 - Dice of one image and foreground, smoothed as MONAI does."""
    smooth = 1e-5
    return 1 - (2 * sum(a * b for a, b in zip(said, true, strict=True)) + smooth) / (sum(said) + sum(true) + smooth)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_supervision_of_classes_is_cross_entropy_over_voxels_and_dice_of_each_class() -> None:
    cross_entropy = [-math.log(probabilities(LOGITS, *voxel)[int(NUMBERS[voxel[0], 0, voxel[1], voxel[2]])]) for voxel in VOXELS]
    dice = []
    for image, k in product(range(2), range(3)):
        inside = [voxel for voxel in VOXELS if voxel[0] == image]
        dice.append(soft_dice([probabilities(LOGITS, *voxel)[k + 1] for voxel in inside],
                              [float(NUMBERS[image, 0, row, column] == k + 1) for _, row, column in inside]))
    expected = sum(cross_entropy) / len(cross_entropy) + sum(dice) / len(dice)
    assert voxel_losses.classes_loss(LOGITS, NUMBERS).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_of_classes_is_over_background_and_classes_of_each_voxel(temperature: float) -> None:
    target = voxel_losses.softened_classes(OTHER, temperature)
    found = []
    for voxel in VOXELS:
        p, q = (probabilities(logits, *voxel, temperature) for logits in (OTHER, LOGITS))
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        assert target[voxel[0], :, voxel[1], voxel[2]].tolist() == pytest.approx(p[1:])
    expected = temperature**2 * sum(found) / len(found)
    assert voxel_losses.divergence_of_classes(target, LOGITS, temperature).item() == pytest.approx(expected)


def test_of_one_foreground_the_general_form_is_the_papers() -> None:
    logits, mask = LOGITS[:, :1], (NUMBERS > 1).to(torch.uint8)
    assert voxel_losses.classes_loss(logits, mask).item() == pytest.approx(voxel_losses.supervised_loss(logits, mask).item())
    target = voxel_losses.foreground_probabilities(OTHER[:, :1])
    assert voxel_losses.divergence_of_classes(target, logits, 2.0).item() == pytest.approx(losses.divergence_each(target, logits, 2.0).item())
    assert voxel_losses.regions_loss(logits, mask).item() == voxel_losses.supervised_loss(logits, mask).item()
    assert voxel_losses.with_labelled_classes((True,)) is voxel_losses.MASK, "the paper's, bit for bit"


def test_supervision_of_regions_is_of_each_by_itself_and_leaves_out_what_is_not_labelled() -> None:
    target = REGIONS.clone()
    target[0, 1] = NOT_LABELLED
    entropies, dice = [], []
    for image, k in product(range(2), range(3)):
        if (image, k) == (0, 1):
            continue
        said = [sigmoid(float(LOGITS[image, k, row, column])) for row, column in product(range(3), range(4))]
        true = [float(target[image, k, row, column]) for row, column in product(range(3), range(4))]
        entropies += [-math.log(p if y else 1 - p) for p, y in zip(said, true, strict=True)]
        dice.append(soft_dice(said, true))
    expected = sum(entropies) / len(entropies) + sum(dice) / len(dice)
    logits = LOGITS.clone().requires_grad_()
    loss = voxel_losses.regions_loss(logits, target)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert logits.grad is not None and not logits.grad[0, 1].any() and logits.grad[1, 1].any()
    assert voxel_losses.regions_loss(LOGITS, torch.full(SHAPE, NOT_LABELLED)).item() == 0


def test_a_silo_that_labels_some_classes_takes_the_others_together_with_the_background() -> None:
    terms = voxel_losses.with_labelled_classes((True, False, True))
    own = torch.where(NUMBERS == 2, 0, NUMBERS)  # what the silo's masks say: class 2 looks like background
    cross_entropy = []
    for voxel in VOXELS:
        background, first, second, third = probabilities(LOGITS, *voxel)
        cross_entropy.append(-math.log([background + second, first, 0.0, third][int(own[voxel[0], 0, voxel[1], voxel[2]])]))
    dice = []
    for image, k in product(range(2), (1, 3)):
        inside = [voxel for voxel in VOXELS if voxel[0] == image]
        dice.append(soft_dice([probabilities(LOGITS, *voxel)[k] for voxel in inside],
                              [float(own[image, 0, row, column] == k) for _, row, column in inside]))
    expected = sum(cross_entropy) / len(cross_entropy) + sum(dice) / len(dice)
    assert terms.supervised(LOGITS, own).item() == pytest.approx(expected)
    one = voxel_losses.with_labelled_classes((False, True, False))
    assert math.isfinite(one.supervised(LOGITS, (NUMBERS == 2).to(torch.uint8) * 2).item())


def test_its_large_model_teaches_the_proxy_the_labelled_classes_against_the_rest() -> None:
    terms = voxel_losses.with_labelled_classes((True, False, True))
    found = []
    for voxel in VOXELS:
        p, q = (probabilities(logits, *voxel, 2.0) for logits in (OTHER, LOGITS))
        merged = [([one[0] + one[2], one[1], one[3]]) for one in (p, q)]
        found.append(sum(a * math.log(a / b) for a, b in zip(*merged, strict=True)))
    assert terms.taught is not None
    taught = terms.taught(terms.softened(OTHER, 2.0), LOGITS, 2.0)
    assert taught.item() == pytest.approx(4 * sum(found) / len(found))


def test_regions_that_a_silo_does_not_label_are_taught_nothing() -> None:
    terms = losses.with_labelled(voxel_losses.REGIONS, (True, False, True))
    logits = LOGITS.clone().requires_grad_()
    assert terms.taught is not None
    terms.taught(terms.softened(OTHER, 1.0), logits, 1.0).backward()
    assert logits.grad is not None and logits.grad.abs().sum(dim=(0, 2, 3)).ne(0).tolist() == [True, False, True]
