"""Which model a silo deploys, and its answers on a set of images. Called by simulate and by the silo's evaluation.

Shapes: N images, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedhelp_core.algorithm.batches import Rows, to_input
from fedhelp_core.algorithm.local_update import METHOD_PARTS, SiloState, UpdateSettings, Weights, large_model_of, proxy_with

_BATCH = 256  # large enough to keep the arithmetic busy, small enough for any GPU that trains at batch 4


def deployed_models(global_weights: Weights, state: SiloState, settings: UpdateSettings) -> dict[str, nn.Module]:
    """The models this silo evaluates, the one it deploys first: a large silo its own `large` model, then everyone's `proxy`."""
    models = {"proxy": proxy_with(global_weights, state, settings)}
    if settings.kind == "large" and METHOD_PARTS[settings.algorithm.method].large_model:
        models = {"large": large_model_of(state, settings)} | models
    return models


@torch.no_grad()
def probabilities(model: nn.Module, images_NCHW: Tensor, device: torch.device) -> Tensor:
    """Class probabilities (N, C) float32 on the CPU for uint8 images (N, 3, H, W); the model is left in eval mode."""
    model.eval()
    answers = [model(to_input(part_BCHW, device)).float().softmax(dim=-1).cpu() for part_BCHW in torch.split(images_NCHW, _BATCH)]
    return torch.cat(answers)


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
    for index_B in torch.split(torch.arange(images_NCHW.shape[0]), _BATCH):
        model(to_input(images_NCHW[index_B], device))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    model.eval()
