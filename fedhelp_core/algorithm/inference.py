"""Which model a silo deploys, and normalisation for a model that has none. Called by simulate and by the silo's evaluation.

Shapes: N images.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from fedhelp_core.algorithm.batches import Rows, to_input
from fedhelp_core.algorithm.local_update import SiloState, UpdateSettings, Weights, large_model_of, proxy_with
from fedhelp_core.registry.methods import METHOD_PARTS
from fedhelp_core.registry.tasks import ENOUGH_VALIDATION

_BATCH_PIXELS = 2**18  # a batch's images: large enough to keep the arithmetic busy, small enough for any GPU that trains


def deployed_models(
    global_weights: Weights, state: SiloState, settings: UpdateSettings, *, images_NCHW: Tensor, targets_NK: Tensor,
) -> dict[Literal["proxy", "large"], nn.Module]:
    """The models this silo evaluates, the one it deploys first: `proxy`, and in a large silo its own `large`.

    A large silo deploys its large model, as in the paper, unless the proxy has the better score on the silo's validation images,
    of which there have to be at least ENOUGH_VALIDATION (docs/decisions/0014). Test images have no say.

    Args:
        global_weights: The round's proxy.
        state: The silo's, after that round.
        settings: The silo's.
        images_NCHW: Its validation images, uint8; there may be none.
        targets_NK: Their labels or masks.
    """
    proxy = proxy_with(global_weights, state, settings)
    if settings.kind != "large" or not METHOD_PARTS[settings.algorithm.method].large_model:
        return {"proxy": proxy}
    large = large_model_of(state, settings)
    if len(targets_NK) >= ENOUGH_VALIDATION["mask" if targets_NK.ndim > 1 else "classes"]:
        metric = settings.objective.headline
        ours, theirs = (settings.objective.scored(model, images_NCHW, targets_NK, settings.device).scores[metric.name] for model in (large, proxy))
        if metric.gain(theirs, ours) > 0:  # never where one is undefined
            return {"proxy": proxy, "large": large}
    return {"large": large, "proxy": proxy}


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
