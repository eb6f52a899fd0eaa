"""Equations 1-5 of FedHelp (arXiv 2412.19654; numbers as in docs/algorithm.md), one function each. Called by local_update.

Eq 1-4 are written over `LossTerms`: what supervision, softened answers and divergence are for one form of answer. `CLASSES`, the
default, are those of one class an image; `FINDINGS` of several findings at once; Eq 6 (voxel_losses.py) has those of masks and regions.

Shapes: B batch, C the task's classes, P the teacher's classes (C_pub), K findings. Logits are unnormalised; probabilities sum to 1
over the last dimension, but for findings, each of which has a probability of its own. Every function returns a scalar tensor, the
mean over the batch. "Fixed" arguments receive no gradient, whether or not the caller detached them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from fedhelp_core.algorithm.class_shares import prior_of, shares_of_classes
from fedhelp_core.config.algorithm import ClassWeights
from fedhelp_core.registry.tasks import NOT_LABELLED


@dataclass(frozen=True)
class LossTerms:
    """What Eq 1-4 are made of for one form of answer. Shapes in brackets are those of `CLASSES`."""

    supervised: Callable[[Tensor, Tensor], Tensor]
    """(logits (B, C), targets (B,)) -> the private step's loss."""
    softened: Callable[[Tensor, float], Tensor]
    """(logits of the model that is fixed in this step, T) -> its probabilities at T, without gradient."""
    divergence: Callable[[Tensor, Tensor, float], Tensor]
    """(target probabilities, logits, T) -> T² KL(target ‖ probabilities of logits / T)."""
    taught: Callable[[Tensor, Tensor, float], Tensor] | None = None
    """The same in Eq 3, where a silo's large model teaches what the silo labels alone; None: `divergence`."""


def supervised_loss(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Eq 1: cross-entropy of the private step, CE(h(θ(x)), y). `labels_B` int64 in [0, C)."""
    return functional.cross_entropy(logits_BC, labels_B)


def _softened(fixed_logits_BC: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T) of the model that is fixed in this step: no gradient flows."""
    return functional.softmax(fixed_logits_BC.detach() / temperature, dim=-1)


def _scaled_divergence(target_BC: Tensor, logits_BC: Tensor, temperature: float) -> Tensor:
    """T² KL(target ‖ softmax(logits / T)): summed over classes, mean over the batch."""
    log_probabilities_BC = functional.log_softmax(logits_BC / temperature, dim=-1)
    divergence = functional.kl_div(log_probabilities_BC, target_BC.detach(), reduction="sum") / logits_BC.shape[0]
    return divergence * temperature**2


CLASSES = LossTerms(supervised=supervised_loss, softened=_softened, divergence=_scaled_divergence)


def findings_loss(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Eq 1 of several findings: binary cross-entropy of each, mean over all that are labelled; 0 where none is.

    `targets_BK`: 1 seen, 0 not seen, NOT_LABELLED.
    """
    labelled_BK = targets_BK != NOT_LABELLED
    each_BK = functional.binary_cross_entropy_with_logits(logits_BK, (targets_BK == 1).to(logits_BK.dtype), reduction="none")
    return (each_BK * labelled_BK).sum() / labelled_BK.sum().clamp(min=1)


def softened_each(fixed_logits_BK: Tensor, temperature: float) -> Tensor:
    """sigmoid(logits / T) of the model that is fixed in this step, each answer by itself: no gradient flows."""
    return torch.sigmoid(fixed_logits_BK.detach() / temperature)


def divergence_each(target_BK: Tensor, logits_BK: Tensor, temperature: float) -> Tensor:
    """T² KL over {no, yes} of each answer by itself (a finding, or a voxel's foreground), mean over all of them and the batch."""
    target_BK = target_BK.detach()
    cross_entropy = functional.binary_cross_entropy_with_logits(logits_BK / temperature, target_BK)
    entropy = -(torch.xlogy(target_BK, target_BK) + torch.xlogy(1 - target_BK, 1 - target_BK)).mean()
    return (cross_entropy - entropy) * temperature**2


FINDINGS = LossTerms(supervised=findings_loss, softened=softened_each, divergence=divergence_each)


def with_labelled(terms: LossTerms, labelled: Sequence[bool]) -> LossTerms:
    """`terms` for a silo that labels these answers alone: in Eq 3 its large model, which knows nothing of the others, teaches none of them.

    Eq 4 is left as it is: the proxy has learnt the others elsewhere, and the large model may.
    """
    if all(labelled):
        return terms
    chosen = [number for number, is_labelled in enumerate(labelled) if is_labelled]

    def taught(target_BK: Tensor, logits_BK: Tensor, temperature: float) -> Tensor:
        return terms.divergence(target_BK[:, chosen], logits_BK[:, chosen], temperature) if chosen else logits_BK.sum() * 0

    return replace(terms, taught=taught)


def balanced_loss(logits_BC: Tensor, labels_B: Tensor, weights_C: Tensor) -> Tensor:
    """Σ w_y CE / B. Divided by the batch's images, not by their weights: a batch of rare images then counts for as much as its images do."""
    return functional.cross_entropy(logits_BC, labels_B, weight=weights_C, reduction="sum") / len(labels_B)


def logit_adjusted_loss(logits_BC: Tensor, labels_B: Tensor, log_prior_C: Tensor) -> Tensor:
    """CE(z + log π, y) (Menon et al. 2021, arXiv 2007.07314, τ = 1): the logits z themselves then know nothing of the silo's class frequencies π."""
    return functional.cross_entropy(logits_BC + log_prior_C, labels_B)


def with_class_weights(terms: LossTerms, how: ClassWeights, counts_C: Sequence[int]) -> LossTerms:
    """`terms` with Eq 1's cross-entropy as `algorithm.class_weights` has it; `counts_C`: the silo's own training images of each class.

    Supervision alone changes. The divergences of Eq 2-4 and the order of Eq 5 look at the bare logits, as they are deployed:
    with 'balanced' and 'logit-adjusted' both models answer as if classes were equally common, so that no hospital's class
    frequencies pass from one model to the other. The public head of Eq 2 has classes of its own and is left as it is.
    """
    if how == "none":
        return terms
    if how == "balanced":
        weights_C = torch.as_tensor(1 / (shares_of_classes(counts_C) * sum(n > 0 for n in counts_C)))  # of all images their mean is 1
        return replace(terms, supervised=lambda logits_BC, labels_B: balanced_loss(logits_BC, labels_B, weights_C.to(logits_BC)))
    log_prior_C = torch.as_tensor(prior_of(counts_C)).log()
    return replace(terms, supervised=lambda logits_BC, labels_B: logit_adjusted_loss(logits_BC, labels_B, log_prior_C.to(logits_BC)))


def soft_label_loss(
    public_logits_BP: Tensor, teacher_probabilities_BP: Tensor, *, temperature: float, weight: float, terms: LossTerms = CLASSES,
) -> Tensor:
    """Eq 2: λ T² KL(q(u) ‖ softmax(g(θ(u)) / T)); the teacher's answers are probabilities, never logits."""
    return weight * terms.divergence(teacher_probabilities_BP, public_logits_BP, temperature)


def proxy_loss(
    proxy_logits_BC: Tensor, large_logits_BC: Tensor, labels_B: Tensor, *, temperature: float, weight: float, terms: LossTerms = CLASSES,
) -> Tensor:
    """Eq 3: CE(p, y) + λ T² KL(softmax(f / T) ‖ softmax(p / T)); the large model f is fixed."""
    taught = (terms.taught or terms.divergence)(terms.softened(large_logits_BC, temperature), proxy_logits_BC, temperature)
    return terms.supervised(proxy_logits_BC, labels_B) + weight * taught


def large_loss(
    large_logits_BC: Tensor, proxy_logits_BC: Tensor, labels_B: Tensor, *,
    temperature: float, weight: float, rank_weight: float, top_k: int, margin: float, terms: LossTerms = CLASSES,
) -> Tensor:
    """Eq 4: CE(f, y) + λ T² KL(softmax(p / T) ‖ softmax(f / T)) + γ rank(p, f); the proxy p is fixed."""
    helped = terms.divergence(terms.softened(proxy_logits_BC, temperature), large_logits_BC, temperature)
    loss = terms.supervised(large_logits_BC, labels_B) + weight * helped
    if rank_weight:
        loss = loss + rank_weight * rank_loss(proxy_logits_BC, large_logits_BC, top_k=top_k, margin=margin)
    return loss


def rank_loss(proxy_logits_BC: Tensor, large_logits_BC: Tensor, *, top_k: int, margin: float = 0.0) -> Tensor:
    """Eq 5: mean over samples of 1/(k(C-k)) Σ_{i∈S} Σ_{j∉S} max(0, m + f_j - f_i), S = the fixed proxy's top-k classes.

    Zero when the large model puts every favourite of the proxy at least `margin` above every other class.

    Raises:
        ValueError: unless 0 < top_k < C.
    """
    classes = large_logits_BC.shape[-1]
    if not 0 < top_k < classes:
        raise ValueError(f"top_k: 0 < k < C expected with C = {classes} classes, got {top_k}")
    order_BC = proxy_logits_BC.detach().argsort(dim=-1, descending=True, stable=True)
    ranked_BC = large_logits_BC.gather(-1, order_BC)
    favourites_BK1, others_B1J = ranked_BC[:, :top_k].unsqueeze(2), ranked_BC[:, top_k:].unsqueeze(1)
    return functional.relu(margin + others_B1J - favourites_BK1).mean()


def proximal_gradient_(parameters: Sequence[Tensor], anchor: Sequence[Tensor], *, weight: float) -> None:
    """Add the gradient of FedProx's μ/2 ‖w - w_global‖² (Li et al. 2020, arXiv 1812.06127) to each `.grad`, in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    current = [p.detach() for p in parameters if p.grad is not None]
    targets = [a for p, a in zip(parameters, anchor, strict=True) if p.grad is not None]
    torch._foreach_add_(gradients, torch._foreach_sub(current, targets), alpha=weight)
