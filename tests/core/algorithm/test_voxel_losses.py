"""Eq 6 against numbers worked out by hand and against classification's form over {background, foreground}."""

import math

import pytest
import torch

from fedhelp_core.algorithm import losses

pytestmark = pytest.mark.slow  # MONAI takes seconds to import
LN3 = math.log(3)


@pytest.fixture(scope="module")
def mask():
    from fedhelp_core.algorithm.voxel_losses import MASK

    return MASK


def voxels(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, len(values)).requires_grad_()


def test_eq6_supervision_is_bce_plus_soft_dice(mask):
    # sigmoid(ln 3) = 3/4: one voxel of foreground, one of background, both answered 3/4
    bce = (math.log(4 / 3) + math.log(4)) / 2
    dice = 1 - 2 * 0.75 / (1 + 1.5)
    assert mask.supervised(voxels(LN3, LN3), torch.tensor([[[[1, 0]]]], dtype=torch.uint8)).item() == pytest.approx(bce + dice, abs=1e-4)


def test_eq6_divergence_is_the_mean_over_voxels_of_that_over_two_classes(mask):
    foreground, scores = torch.tensor([0.9, 0.2, 1.0, 0.0], dtype=torch.float64), voxels(1.0, -2.0, 0.5, 3.0)
    two_classes = torch.stack([1 - foreground, foreground], dim=1)
    logits = torch.stack([torch.zeros(4, dtype=torch.float64), scores.flatten()], dim=1)
    for temperature in (1.0, 2.0):
        ours = mask.divergence(foreground.reshape(1, 1, 1, 4), scores, temperature)
        assert ours.item() == pytest.approx(losses.CLASSES.divergence(two_classes, logits, temperature).item())


def test_eq3_and_eq4_over_masks_teach_one_model_and_leave_the_other_without_gradient(mask):
    target = torch.tensor([[[[1, 0]]]], dtype=torch.uint8)
    proxy, large = voxels(0.0, 0.0), voxels(1.0, -1.0)
    losses.proxy_loss(proxy, large, target, temperature=1.0, weight=1.0, terms=mask).backward()
    assert proxy.grad is not None and large.grad is None
    proxy, large = voxels(0.0, 0.0), voxels(1.0, -1.0)
    losses.large_loss(large, proxy, target, temperature=1.0, weight=1.0, rank_weight=0.0, top_k=1, margin=0.0, terms=mask).backward()
    assert proxy.grad is None and large.grad is not None


def test_eq2_over_masks_is_zero_where_the_teacher_is_met(mask):
    assert losses.soft_label_loss(
        voxels(LN3, 0.0), torch.tensor([[[[0.75, 0.5]]]], dtype=torch.float64), temperature=1.0, weight=1.0, terms=mask).item() == pytest.approx(0)
