"""How large models are, held against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedhelp_core.errors import ConfigError
from fedhelp_core.models.build import build_model, normalisation_keys
from fedhelp_core.models.sizes import require_answer, size_of


def test_a_models_size_is_what_one_counts_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 4, 3))
    size = size_of(model, shape=(1, 4, 4), batch=5)
    parameters = 2 * 9 + 32 * 3 + 3
    assert (size.parameters, size.travelling_bytes, size.batch_norms) == (parameters, 4 * parameters, 0)
    assert size.flops == 2 * (9 * 2 * 16) + 2 * (32 * 3)
    images, after_relu = 5 * 16 * 4, 5 * 32 * 4  # bytes: what the convolution, and then ReLU and the linear layer, need of the forward pass
    assert size.training_bytes == 4 * 4 * parameters + images + after_relu


def test_batch_norms_that_stay_at_home_do_not_travel() -> None:
    model = build_model("resnet8", outputs=2, generator=torch.Generator())
    shared = size_of(model, shape=(3, 32, 32), batch=4)
    kept = size_of(model, shape=(3, 32, 32), batch=4, at_home=normalisation_keys(model))
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert kept.batch_norms == norms > 0
    assert shared.travelling_bytes - kept.travelling_bytes == sum(
        4 * 4 * layer.num_features + 8 for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))


def test_a_window_that_a_network_cannot_answer_is_told_before_training() -> None:
    model = build_model("unet3d-tiny", outputs=1, in_channels=1, answer="mask", dimensions=3)
    require_answer(model, (1, 16, 16, 16))
    with pytest.raises(ConfigError, match=r"cannot answer windows of 17 x 17 x 17 \(task.volume.window_size\)"):
        require_answer(model, (1, 17, 17, 17))
