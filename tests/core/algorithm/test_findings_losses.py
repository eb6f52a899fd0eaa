"""Eq 1-5 of several findings at once against loops written by hand; what nobody labelled teaches nothing."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from fedhelp_core.algorithm import losses
from fedhelp_core.registry.tasks import NOT_LABELLED

GENERATOR = torch.Generator().manual_seed(3)
LOGITS_BK = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
OTHER_BK = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
TARGETS_BK = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 255], [255, 1, 0, 255], [1, 1, 0, 255], [0, 255, 0, 255]], dtype=torch.uint8)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cross_entropy(logits_BK: Tensor, targets_BK: Tensor) -> float:
    """Binary cross-entropy of what is labelled, one by one."""
    found = []
    for row, column in product(*map(range, logits_BK.shape)):
        target, probability = int(targets_BK[row, column]), sigmoid(float(logits_BK[row, column]))
        if target != NOT_LABELLED:
            found.append(-math.log(probability if target else 1 - probability))
    return sum(found) / len(found) if found else 0.0


def divergence(target_BK: Tensor, logits_BK: Tensor, temperature: float) -> float:
    """T² KL of each finding, one by one."""
    found = []
    for row, column in product(*map(range, logits_BK.shape)):
        p, q = float(target_BK[row, column]), sigmoid(float(logits_BK[row, column]) / temperature)
        found.append(sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0))
    return temperature**2 * sum(found) / len(found)


def softened(logits_BK: Tensor, temperature: float) -> Tensor:
    return torch.tensor([[sigmoid(float(one) / temperature) for one in row] for row in logits_BK], dtype=torch.float64)


def test_eq1_is_the_binary_cross_entropy_of_what_is_labelled() -> None:
    assert float(losses.findings_loss(LOGITS_BK, TARGETS_BK)) == pytest.approx(cross_entropy(LOGITS_BK, TARGETS_BK))


def test_a_batch_in_which_nothing_is_labelled_costs_nothing_and_moves_nothing() -> None:
    logits = LOGITS_BK.clone().requires_grad_()
    loss = losses.findings_loss(logits, torch.full((5, 4), NOT_LABELLED, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_what_is_not_labelled_has_no_gradient() -> None:
    logits = LOGITS_BK.clone().requires_grad_()
    losses.findings_loss(logits, TARGETS_BK).backward()
    assert logits.grad is not None and torch.equal(logits.grad != 0, TARGETS_BK != NOT_LABELLED)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_eq2_is_the_divergence_of_each_finding_whatever_they_sum_to(temperature: float) -> None:
    teacher_BP = torch.tensor([[0.0, 1.0, 0.3], [0.9, 0.9, 0.9]], dtype=torch.float64)
    logits_BP = LOGITS_BK[:2, :3]
    found = losses.soft_label_loss(logits_BP, teacher_BP, temperature=temperature, weight=0.7, terms=losses.FINDINGS)
    assert float(found) == pytest.approx(0.7 * divergence(teacher_BP, logits_BP, temperature))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_eq3_and_eq4_are_their_sums_and_leave_the_fixed_model_without_gradient(temperature: float) -> None:
    proxy, large = LOGITS_BK.clone().requires_grad_(), OTHER_BK.clone().requires_grad_()
    taught = losses.proxy_loss(proxy, large, TARGETS_BK, temperature=temperature, weight=0.5, terms=losses.FINDINGS)
    assert taught.item() == pytest.approx(
        cross_entropy(LOGITS_BK, TARGETS_BK) + 0.5 * divergence(softened(OTHER_BK, temperature), LOGITS_BK, temperature))
    taught.backward()
    assert proxy.grad is not None and large.grad is None

    helped = losses.large_loss(
        large, proxy, TARGETS_BK, temperature=temperature, weight=0.5, rank_weight=0.2, top_k=2, margin=0.1, terms=losses.FINDINGS)
    ranks = []
    for row in range(5):
        favourites = sorted(range(4), key=lambda k, row=row: -float(LOGITS_BK[row, k]))[:2]  # type: ignore[misc]
        others = [k for k in range(4) if k not in favourites]
        ranks += [max(0.0, 0.1 + float(OTHER_BK[row, j]) - float(OTHER_BK[row, i])) for i in favourites for j in others]
    expected = cross_entropy(OTHER_BK, TARGETS_BK) + 0.5 * divergence(softened(LOGITS_BK, temperature), OTHER_BK, temperature)
    assert helped.item() == pytest.approx(expected + 0.2 * sum(ranks) / len(ranks))


def test_in_eq3_a_silo_teaches_what_it_labels_alone_and_in_eq4_learns_the_rest() -> None:
    terms = losses.with_labelled(losses.FINDINGS, (True, False, True, False))
    proxy, large = LOGITS_BK.clone().requires_grad_(), OTHER_BK.clone().requires_grad_()
    nothing = torch.full((5, 4), NOT_LABELLED, dtype=torch.uint8)
    losses.proxy_loss(proxy, large, nothing, temperature=1.0, weight=1.0, terms=terms).backward()
    assert proxy.grad is not None and proxy.grad.abs().sum(dim=0).ne(0).tolist() == [True, False, True, False]
    losses.large_loss(large, proxy, nothing, temperature=1.0, weight=1.0, rank_weight=0.0, top_k=1, margin=0.0, terms=terms).backward()
    assert large.grad is not None and large.grad.abs().sum(dim=0).ne(0).all()
