"""Mixed precision: float32's mathematics with bfloat16 inside, and nothing of it in what is kept, sent or averaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedhelp_core.algorithm.local_update import LocalResult, SiloData, SiloState, UpdateSettings, initial_weights, local_update
from fedhelp_core.algorithm.precision import is_mixed, kernels
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.federation import RuntimeConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.objectives.open import objective_of
from tests.core.objectives.test_tasks import mask_data, mask_settings

CPU = torch.device("cpu")


def classes(kind: str) -> tuple[UpdateSettings, SiloData]:
    chance = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=chance)
    data = SiloData(
        images_NCHW=images, labels_N=torch.arange(12) % 8, public_images_MCHW=images.flip(0),
        public_probabilities_MP=torch.rand((12, 5), generator=chance).softmax(1))
    algorithm = AlgorithmConfig(proxy_model="resnet8", large_model="resnet8", augmentation="none")
    return UpdateSettings(algorithm=algorithm, objective=objective_of(TaskConfig(image_size=16)), seed=1, silo="a", kind=kind), data


def update(settings: UpdateSettings, data: SiloData, precision: str) -> LocalResult:
    settings = replace(settings, precision=precision)  # type: ignore[arg-type]
    return local_update(initial_weights(settings.algorithm, settings.objective, seed=1), SiloState.empty(), data, settings, round_number=1)


def test_auto_is_float32_on_a_cpu_to_the_bit() -> None:
    assert RuntimeConfig().precision == "auto"
    assert not is_mixed("auto", CPU)
    assert is_mixed("bfloat16", CPU)
    settings, data = classes("large")
    auto, full = update(settings, data, "auto"), update(settings, data, "float32")
    assert all(np.array_equal(auto.weights[name], full.weights[name]) for name in full.weights)


@pytest.mark.parametrize("kind", ["small", "large"])
def test_bfloat16_comes_close_and_leaves_float32_behind(kind: str) -> None:
    settings, data = classes(kind)
    _mixed_is_close(update(settings, data, "float32"), update(settings, data, "bfloat16"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["small", "large"])
def test_so_it_does_in_segmentation(kind: str) -> None:
    settings, data = mask_settings(3, kind), mask_data(3)
    _mixed_is_close(update(settings, data, "float32"), update(settings, data, "bfloat16"))


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_gradients_of_small_volumes_are_right_in_bfloat16(side: int) -> None:
    """What oneDNN gets wrong at side 2 on processors with AVX512-BF16."""
    chance = torch.Generator().manual_seed(1)
    shape = (2, 32, side, side, side)
    weight, images, gradient = (torch.rand(each, generator=chance) for each in ((32, 32, 3, 3, 3), shape, shape))
    found = []
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        asked = weight.detach().to(dtype).requires_grad_()
        with kernels(precision, CPU):  # type: ignore[arg-type]
            torch.nn.functional.conv3d(images.to(dtype), asked, padding=1).backward(gradient.to(dtype))
        assert asked.grad is not None
        found.append(asked.grad.float())
    assert (found[1] - found[0]).abs().max() < 0.02 * found[0].abs().max()


def _mixed_is_close(full: LocalResult, mixed: LocalResult) -> None:
    assert any(not np.array_equal(full.weights[name], mixed.weights[name]) for name in full.weights), "bfloat16 was not used"
    assert {name: tensor.dtype for name, tensor in mixed.weights.items()} == {name: tensor.dtype for name, tensor in full.weights.items()}
    assert {name: tensor.dtype for name, tensor in mixed.state.tensors.items()} == {name: t.dtype for name, t in full.state.tensors.items()}
    assert mixed.metrics == pytest.approx(full.metrics, rel=0.1)
