"""How a silo's models are evaluated, which of them it deploys and how it decides with it; normalisation for a model that has none.

`evaluated_models` is what simulate and the silo's evaluation both call, so that a study's scores are those of a run.
Shapes: N images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedhelp_core.algorithm.batches import Rows, to_input
from fedhelp_core.algorithm.class_shares import Shares, shares_of_classes
from fedhelp_core.algorithm.local_update import SiloState, UpdateSettings, Weights, large_model_of, proxy_with
from fedhelp_core.algorithm.objective import Results, Scored
from fedhelp_core.algorithm.operating_point import Point, operating_point
from fedhelp_core.config.federation import EvaluationConfig
from fedhelp_core.registry.methods import METHOD_PARTS

_BATCH_PIXELS = 2**18  # a batch's images: large enough to keep the arithmetic busy, small enough for any GPU that trains
_CHANCE = 0.05  # of replacing a large model that is as good as the proxy

ModelName = Literal["proxy", "large"]


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """What a silo's models are evaluated with."""

    test_images_NCHW: Tensor
    test_labels_N: Tensor
    validation_images_NCHW: Tensor
    """There may be none."""
    validation_labels_N: Tensor
    decision_counts: Sequence[Sequence[int]]
    """Of each decision the silo's own training images by what is true (Objective.counts_of_decisions)."""
    federation_shares: Sequence[Shares] | None
    """Of each decision how common its answers are among all silos' training images (Objective.learnt_shares); None: nobody told, the silo's own
    stand for them."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One model of a silo on its own images."""

    scored: Scored
    """On test images, at the operating point."""
    point: Point | None
    """None of masks and regions."""
    test: Results
    validation: Results | None
    """None where nobody looked."""


def evaluated_models(
    global_weights: Weights, state: SiloState, settings: UpdateSettings, evaluation: EvaluationConfig, data: EvaluationData,
) -> dict[ModelName, Evaluated]:
    """The models of a silo, the one it deploys first: `proxy`, and in a large silo its own `large`. Test images have no say in anything but scores.

    A large silo deploys its large model, as in the paper, unless the proxy is better on the silo's validation images, each model at its own
    operating point, by more than chance. For that there have to be enough of them (EvaluationConfig.enough_validation, docs/decisions/0014).

    Args:
        global_weights: The round's proxy.
        state: The silo's, after that round.
        settings: The silo's.
        evaluation: The federation's section.
        data: The silo's images.
    """
    models = _models(global_weights, state, settings)
    objective, device = settings.objective, settings.device
    enough = len(data.validation_labels_N) >= evaluation.enough_validation(objective.form)
    found: dict[ModelName, Evaluated] = {}
    for name, model in models.items():
        validation = None
        if enough and (objective.decides or len(models) > 1):
            validation = objective.results(model, data.validation_images_NCHW, data.validation_labels_N, device)
        point = _operating_point(name, settings, evaluation, data, validation) if objective.decides else None
        test = objective.results(model, data.test_images_NCHW, data.test_labels_N, device)
        found[name] = Evaluated(scored=objective.scores_of(test, point), point=point, test=test, validation=validation)
    chosen = _deployed(found, settings)
    return {chosen: found[chosen], **found}


def _models(global_weights: Weights, state: SiloState, settings: UpdateSettings) -> dict[ModelName, nn.Module]:
    """What the silo has, the model that the paper deploys first."""
    proxy = proxy_with(global_weights, state, settings)
    if settings.kind != "large" or not METHOD_PARTS[settings.algorithm.method].large_model:
        return {"proxy": proxy}
    return {"large": large_model_of(state, settings), "proxy": proxy}


def _deployed(found: dict[ModelName, Evaluated], settings: UpdateSettings) -> ModelName:
    """The paper's, unless there is a choice and the proxy is surely better on the validation images."""
    merits = {
        name: settings.objective.merits(model.validation, model.point) for name, model in found.items() if model.validation is not None}
    return "proxy" if len(merits) > 1 and _surely_positive(merits["proxy"] - merits["large"]) else next(iter(found))


def _surely_positive(differences_N: npt.NDArray[np.float64]) -> bool:
    """Whether their mean is above 0 by a one-sided paired t-test at 5 %."""
    from scipy.special import stdtrit  # a quarter of a second, and only a large silo comes here

    images = len(differences_N)
    if images < 2:
        return False
    error = differences_N.std(ddof=1) / math.sqrt(images)
    return bool(differences_N.mean() > stdtrit(images - 1, 1 - _CHANCE) * error)


def _operating_point(
    name: ModelName, settings: UpdateSettings, evaluation: EvaluationConfig, data: EvaluationData, validation: Results | None,
) -> Point:
    """How the silo decides with its model `name`: what class frequencies that one has been trained on is known from who trained it."""
    algorithm, counts = settings.algorithm, data.decision_counts
    shares: Sequence[Shares | None] = [None] * len(counts)
    if algorithm.class_weights == "none":
        everywhere = name == "proxy" and METHOD_PARTS[algorithm.method].averaged
        shares = data.federation_shares if everywhere and data.federation_shares is not None else [shares_of_classes(of_one) for of_one in counts]
    nothing = [(np.zeros(0, np.int64), np.zeros((0, len(of_one)), np.float32)) for of_one in counts]
    seen = nothing if validation is None else settings.objective.decisions(validation)
    return settings.objective.point_of([
        operating_point(evaluation, shares_C=shares_C, counts_C=counts_C, labels_N=labels_N, probabilities_NC=probabilities_NC)
        for shares_C, counts_C, (labels_N, probabilities_NC) in zip(shares, counts, seen, strict=True)])


@torch.no_grad()
def recompute_normalisation(model: nn.Module, images_NCHW: Rows, device: torch.device) -> None:
    """Batch-norm running statistics of `model` replaced by those of `images_NCHW` (cumulative averages), in place.

    For a global model made under `normalisation: silo`, which has none of its own: the images are the public ones.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    batch = max(1, _BATCH_PIXELS // math.prod(images_NCHW.shape[2:]))
    for index_B in torch.split(torch.arange(images_NCHW.shape[0]), batch):
        model(to_input(images_NCHW[index_B], device))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    model.eval()
