"""Which of its models a silo deploys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedhelp_core.algorithm.batches import to_input
from fedhelp_core.algorithm.inference import deployed_models
from fedhelp_core.algorithm.local_update import CPU, SiloState, UpdateSettings, initial_weights
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.registry.tasks import ENOUGH_VALIDATION

TASK = TaskConfig(classes=("x", "y"), image_size=8)
ALGORITHM = AlgorithmConfig(method="fedhelp", proxy_model="resnet8", large_model="resnet14", rank_top_k=1)
LARGE = UpdateSettings(algorithm=ALGORITHM, objective=objective_of(TASK), seed=1, silo="a", kind="large")
WEIGHTS = initial_weights(ALGORITHM, objective_of(TASK), seed=1)
IMAGES = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
NONE = IMAGES[:0], torch.empty(0, dtype=torch.int64)


def deployed(settings: UpdateSettings, images: Tensor, labels: Tensor) -> list[str]:
    return list(deployed_models(WEIGHTS, SiloState.empty(), settings, images_NCHW=images, targets_NK=labels))


def answers_of(name: str) -> Tensor:
    """Labels that this model has all right."""
    model = deployed_models(WEIGHTS, SiloState.empty(), LARGE, images_NCHW=NONE[0], targets_NK=NONE[1])[name].eval()
    with torch.no_grad():
        return model(to_input(IMAGES, CPU)).argmax(dim=1)


@pytest.mark.parametrize("better", ["large", "proxy"])
def test_a_large_silo_deploys_what_is_better_on_its_validation_images(better: str) -> None:
    labels = answers_of(better)
    worse = answers_of("large" if better == "proxy" else "proxy")
    assert len(labels.unique()) == 2 and not torch.equal(labels, worse), "the two models must differ for this test to say anything"
    assert deployed(LARGE, IMAGES, labels)[0] == better
    assert set(deployed(LARGE, IMAGES, labels)) == {"large", "proxy"}


@pytest.mark.parametrize("images", [0, 1, ENOUGH_VALIDATION["classes"] - 1])
def test_with_too_few_validation_images_it_deploys_its_large_model(images: int) -> None:
    assert deployed(LARGE, IMAGES[:images], answers_of("proxy")[:images]) == ["large", "proxy"]


@pytest.mark.parametrize(("kind", "method"), [("small", "fedhelp"), ("large", "fedavg")])
def test_others_have_the_proxy_alone(kind: str, method: str) -> None:
    settings = replace(LARGE, kind=kind, algorithm=ALGORITHM.model_copy(update={"method": method}))
    assert deployed(settings, IMAGES, answers_of("proxy")) == ["proxy"]
