"""Eq 1-5 against numbers worked out by hand, and the sign, scale and gradient traps of docs/algorithm.md."""

import math
from functools import partial

import pytest
import torch

from fedhelp_core.algorithm import losses

LN2, LN3 = math.log(2), math.log(3)


def logits(*rows):
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def test_eq1_is_the_mean_cross_entropy():
    # softmax of (ln 3, 0) is (3/4, 1/4)
    loss = losses.supervised_loss(logits((LN3, 0.0), (LN3, 0.0)), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_eq2_sums_over_classes_and_averages_over_the_batch_only():
    teacher = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    loss = losses.soft_label_loss(logits((LN3, 0.0), (0.0, 0.0)), teacher, temperature=1.0, weight=1.0)
    one_sample = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert loss.item() == pytest.approx(one_sample / 2)  # reduction="mean" would give a quarter of it


def test_eq2_scales_by_lambda_and_by_the_squared_temperature():
    teacher = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    at_one = losses.soft_label_loss(logits((LN3, 0.0)), teacher, temperature=1.0, weight=1.0)
    at_two = losses.soft_label_loss(logits((2 * LN3, 0.0)), teacher, temperature=2.0, weight=3.0)
    assert at_two.item() == pytest.approx(3 * 4 * at_one.item())


def test_eq2_reads_the_teachers_answers_as_probabilities_and_is_zero_when_they_are_met():
    teacher = torch.tensor([[0.75, 0.25]], dtype=torch.float64)
    assert losses.soft_label_loss(logits((LN3, 0.0)), teacher, temperature=1.0, weight=1.0).item() == pytest.approx(0.0, abs=1e-12)


def test_eq2_takes_a_teacher_probability_of_zero():
    teacher = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert losses.soft_label_loss(logits((0.0, 0.0)), teacher, temperature=1.0, weight=1.0).item() == pytest.approx(LN2)


def test_eq3_teaches_the_proxy_and_leaves_the_large_model_without_gradient():
    proxy, large = logits((LN3, 0.0)), logits((0.0, 0.0))
    loss = losses.proxy_loss(proxy, large, torch.tensor([0]), temperature=1.0, weight=2.0)
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert loss.item() == pytest.approx(math.log(4 / 3) + 2 * divergence)
    loss.backward()
    assert proxy.grad is not None and large.grad is None


def test_eq4_trains_the_large_model_on_labels_and_leaves_the_proxy_without_gradient():
    proxy, large = logits((0.0, 0.0, 0.0)), logits((0.0, 0.0, 0.0))
    loss = losses.large_loss(large, proxy, torch.tensor([1]), temperature=1.0, weight=1.0, rank_weight=0.2, top_k=1, margin=0.0)
    assert loss.item() == pytest.approx(LN3)  # both divergence and rank are zero here
    loss.backward()
    assert proxy.grad is None
    assert large.grad.tolist()[0] == pytest.approx([1 / 3, -2 / 3, 1 / 3])  # the label alone moves it


def test_eq4_divergence_points_from_the_proxy_to_the_large_model():
    proxy, large = logits((LN3, 0.0)), logits((0.0, 0.0))
    loss = losses.large_loss(large, proxy, torch.tensor([0]), temperature=1.0, weight=1.0, rank_weight=0.0, top_k=1, margin=0.0)
    kl_of_proxy_to_large = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss.item() == pytest.approx(LN2 + kl_of_proxy_to_large)


def test_eq5_is_zero_when_every_favourite_is_above_every_other_whatever_the_values():
    proxy = logits((3.0, 2.0, 1.0, 0.0))
    assert losses.rank_loss(proxy, logits((7.0, 90.0, -5.0, -6.0)), top_k=2).item() == 0.0


def test_eq5_counts_each_favourite_below_another_class_by_how_far_it_is_below():
    proxy = logits((3.0, 2.0, 1.0, 0.0))  # favourites: classes 0 and 1
    large = logits((1.0, 5.0, 2.0, 4.0))  # 0 is below 2 by 1 and below 3 by 3; 1 is above both
    assert losses.rank_loss(proxy, large, top_k=2).item() == pytest.approx((1 + 3) / (2 * 2))


def test_eq5_lifts_the_favourites_and_lowers_the_others():
    large = logits((0.0, 1.0))
    losses.rank_loss(logits((1.0, 0.0)), large, top_k=1).backward()
    assert large.grad.tolist() == [[-1.0, 1.0]]  # a step against the gradient raises the favourite


def test_eq5_margin_asks_for_a_distance():
    assert losses.rank_loss(logits((1.0, 0.0)), logits((2.0, 0.0)), top_k=1, margin=3.0).item() == pytest.approx(1.0)


def test_eq5_sends_no_gradient_to_the_proxy():
    proxy = logits((1.0, 0.0))
    losses.rank_loss(proxy, logits((0.0, 1.0)), top_k=1).backward()
    assert proxy.grad is None


@pytest.mark.parametrize("top_k", [0, 4, 5])
def test_eq5_refuses_k_outside_its_range(top_k):
    with pytest.raises(ValueError, match=f"0 < k < C expected with C = 4 classes, got {top_k}"):
        losses.rank_loss(logits((3.0, 2.0, 1.0, 0.0)), logits((3.0, 2.0, 1.0, 0.0)), top_k=top_k)


def test_fedprox_pulls_each_weight_back_to_the_global_one():
    weight = torch.tensor([3.0], requires_grad=True)
    (weight * 2).sum().backward()
    losses.proximal_gradient_([weight], [torch.tensor([1.0])], weight=0.5)
    assert weight.grad.item() == pytest.approx(2 + 0.5 * (3 - 1))


def test_balanced_loss_weighs_each_image_by_how_rare_its_class_is_in_training():
    # three images of class 0 and one of class 1: weights 4 / (2 * 3) and 4 / (2 * 1)
    terms = losses.with_class_weights(losses.CLASSES, "balanced", [3, 1])
    loss = terms.supervised(logits((LN3, 0.0), (LN3, 0.0)), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((2 / 3 * math.log(4 / 3) + 2 * math.log(4)) / 2)
    alone = terms.supervised(logits((LN3, 0.0)), torch.tensor([1]))
    assert alone.item() == pytest.approx(2 * math.log(4)), "a batch of rare images alone keeps their weight"


def test_balanced_loss_of_all_training_images_is_the_mean_over_classes():
    terms = losses.with_class_weights(losses.CLASSES, "balanced", [3, 0, 1])
    answers = logits((LN3, 0.0, -50.0), (0.0, 0.0, -50.0), (0.0, LN3, -50.0), (0.0, LN3, 0.0))
    each = torch.nn.functional.cross_entropy(answers, torch.tensor([0, 0, 0, 2]), reduction="none")
    loss = terms.supervised(answers, torch.tensor([0, 0, 0, 2]))
    assert loss.item() == pytest.approx((each[:3].mean().item() + each[3].item()) / 2)


def test_logit_adjusted_loss_adds_the_log_frequencies_in_training_alone():
    terms = losses.with_class_weights(losses.CLASSES, "logit-adjusted", [3, 1])  # with one image more, spread: 0.7 and 0.3
    assert terms.supervised(logits((0.0, 0.0)), torch.tensor([1])).item() == pytest.approx(-math.log(0.3))
    assert terms.supervised(logits((0.0, 0.0)), torch.tensor([0])).item() == pytest.approx(-math.log(0.7))
    missing = losses.with_class_weights(losses.CLASSES, "logit-adjusted", [4, 0])
    assert math.isfinite(missing.supervised(logits((0.0, 0.0)), torch.tensor([1])).item())


@pytest.mark.parametrize("how", ["balanced", "logit-adjusted"])
def test_class_weights_change_supervision_and_leave_divergences_and_ranks_as_they_are(how):
    terms = losses.with_class_weights(losses.CLASSES, how, [3, 1])
    proxy, large, labels = logits((LN3, 0.0)), logits((0.0, 1.0)), torch.tensor([1])
    settings = {"temperature": 2.0, "weight": 1.5}
    ranks = {"rank_weight": 0.2, "top_k": 1, "margin": 0.0}
    for equation, trained, fixed in ((losses.proxy_loss, proxy, large), (partial(losses.large_loss, **ranks), large, proxy)):
        changed = equation(trained, fixed, labels, **settings, terms=terms) - equation(trained, fixed, labels, **settings)
        supervision = terms.supervised(trained, labels) - losses.supervised_loss(trained, labels)
        assert abs(supervision.item()) > 0.1 and changed.item() == pytest.approx(supervision.item())


def test_without_class_weights_the_terms_are_the_papers():
    assert losses.with_class_weights(losses.CLASSES, "none", [3, 1]) is losses.CLASSES
