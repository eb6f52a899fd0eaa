"""How a silo's models are evaluated, which of them it deploys, and how it decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from fedhelp_core.algorithm.batches import to_input
from fedhelp_core.algorithm.inference import Evaluated, EvaluationData, ModelName, evaluated_models
from fedhelp_core.algorithm.local_update import CPU, SiloState, UpdateSettings, Weights, initial_weights, large_model_of, proxy_with
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.federation import EvaluationConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.registry.tasks import ENOUGH_VALIDATION

TASK = TaskConfig(classes=("x", "y"), image_size=8)
ALGORITHM = AlgorithmConfig(method="fedhelp", proxy_model="resnet8", large_model="resnet14", rank_top_k=1)
LARGE = UpdateSettings(algorithm=ALGORITHM, objective=objective_of(TASK), seed=1, silo="a", kind="large")
WEIGHTS = initial_weights(ALGORITHM, objective_of(TASK), seed=1)
IMAGES = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(64) % 2
ENOUGH = ENOUGH_VALIDATION["classes"]
ARGMAX = EvaluationConfig(operating_point="argmax")
SHARES = np.array([0.5, 0.5])


def evaluated(
    settings: UpdateSettings, images: Tensor, labels: Tensor, how: EvaluationConfig = ARGMAX, *, test: Tensor = IMAGES,
    shares: npt.NDArray[np.float64] | None = SHARES, weights: Weights = WEIGHTS,
) -> dict[ModelName, Evaluated]:
    data = EvaluationData(
        test_images_NCHW=test, test_labels_N=LABELS[:len(test)], validation_images_NCHW=images, validation_labels_N=labels, decision_counts=[(1, 3)],
        federation_shares=None if shares is None else [shares])
    return evaluated_models(weights, SiloState.empty(), settings, how, data)


def deployed(settings: UpdateSettings, images: Tensor, labels: Tensor) -> list[str]:
    return list(evaluated(settings, images, labels))


def answers_of(name: str) -> Tensor:
    """Labels that this model has all right."""
    model = large_model_of(SiloState.empty(), LARGE) if name == "large" else proxy_with(WEIGHTS, SiloState.empty(), LARGE)
    with torch.no_grad():
        return model.eval()(to_input(IMAGES, CPU)).argmax(dim=1)


@pytest.mark.parametrize("better", ["large", "proxy"])
def test_a_large_silo_deploys_what_is_better_on_its_validation_images(better: str) -> None:
    labels = answers_of(better)
    worse = answers_of("large" if better == "proxy" else "proxy")
    assert len(labels.unique()) == 2 and not torch.equal(labels, worse), "the two models must differ for this test to say anything"
    assert deployed(LARGE, IMAGES, labels)[0] == better
    assert set(deployed(LARGE, IMAGES, labels)) == {"large", "proxy"}


def test_a_proxy_that_is_ahead_by_chance_is_not_deployed() -> None:
    """Of the images that one model alone has right, the proxy has four, the large model two: chance would do it once in three."""
    proxy, large = answers_of("proxy"), answers_of("large")
    differ = torch.nonzero(proxy != large).flatten()[:6]
    same = torch.nonzero(proxy == large).flatten()[:20]
    rows = torch.cat([differ, same])
    ahead_by_two = torch.cat([proxy[differ[:4]], large[differ[4:]], proxy[same]])
    ahead_in_all = torch.cat([proxy[differ], proxy[same]])
    assert len(differ) == 6
    assert deployed(LARGE, IMAGES[rows], ahead_by_two)[0] == "large"
    assert deployed(LARGE, IMAGES[rows], ahead_in_all)[0] == "proxy"


@pytest.mark.parametrize("kind_of_results", ["classes", "masks"])
def test_the_mean_of_merits_is_the_headline_score(kind_of_results: str) -> None:
    random = np.random.default_rng(1)
    if kind_of_results == "classes":
        objective = objective_of(TaskConfig(classes=("x", "y", "z"), image_size=8))
        results = {"labels": random.integers(0, 2, 30), "probabilities": random.dirichlet(np.ones(3), 30).astype(np.float32)}
    else:
        objective = objective_of(TaskConfig(name="lung-segmentation", image_size=8))
        results = {"dice": random.random(5), "hausdorff95": random.random(5), "confusion": np.zeros((5, 2, 2), np.int64)}
    assert objective.merits(results).mean() == pytest.approx(objective.scores_of(results).scores[objective.headline.name])


@pytest.mark.parametrize("images", [0, 1, ENOUGH_VALIDATION["classes"] - 1])
def test_with_too_few_validation_images_it_deploys_its_large_model(images: int) -> None:
    assert deployed(LARGE, IMAGES[:images], answers_of("proxy")[:images]) == ["large", "proxy"]


@pytest.mark.parametrize(("kind", "method"), [("small", "fedhelp"), ("large", "fedavg")])
def test_others_have_the_proxy_alone(kind: str, method: str) -> None:
    settings = replace(LARGE, kind=kind, algorithm=ALGORITHM.model_copy(update={"method": method}))
    assert deployed(settings, IMAGES, answers_of("proxy")) == ["proxy"]


def test_a_choice_is_made_at_each_models_own_operating_point() -> None:
    """A proxy that ranks all images rightly, but leans to one class so far that it names no other: useless at argmax, the better one at its point."""
    weights = {**WEIGHTS, "head.bias": WEIGHTS["head.bias"] + np.array([3, 0], np.float32)}
    with torch.no_grad():
        answers = proxy_with(weights, SiloState.empty(), LARGE).eval()(to_input(IMAGES, CPU)).softmax(dim=1)[:, 1]
    labels = (answers > answers.quantile(0.7)).long()
    at_argmax, at_point = (evaluated(LARGE, IMAGES, labels, how, weights=weights) for how in (ARGMAX, EvaluationConfig()))
    assert next(iter(at_argmax)) == "large" and next(iter(at_point)) == "proxy"
    assert at_argmax["proxy"].scored.argmax_confusion_CC[:, 1].sum() == 0 and at_point["proxy"].scored.confusion_CC[:, 1].sum() > 10
    assert at_point["proxy"].scored.scores["auroc"] == at_argmax["proxy"].scored.scores["auroc"]


def test_test_images_have_no_say_in_how_a_silo_decides() -> None:
    labels = answers_of("proxy")
    one, other = (evaluated(LARGE, IMAGES, labels, EvaluationConfig(), test=images) for images in (IMAGES, 255 - IMAGES[:20]))
    assert {name: model.point for name, model in one.items()} == {name: model.point for name, model in other.items()}
    assert list(one) == list(other)


def offsets(settings: UpdateSettings, **data: object) -> dict[str, float]:
    """By model, the second class's offset less the first's, without a validation image."""
    found = evaluated(settings, IMAGES[:0], LABELS[:0], EvaluationConfig(), **data)  # type: ignore[arg-type]
    return {name: model.point.offsets_C[1] - model.point.offsets_C[0] for name, model in found.items() if model.point is not None}


def test_what_frequencies_a_model_knows_depends_on_who_trained_it() -> None:
    shares, log9, log3 = np.array([0.1, 0.9]), pytest.approx(-np.log(9)), pytest.approx(-np.log(3))
    assert offsets(LARGE, shares=shares) == {"large": log3, "proxy": log9}, "its own images are 1 : 3, the federation's 1 : 9"
    assert offsets(LARGE, shares=None) == {"large": log3, "proxy": log3}
    alone = replace(LARGE, kind="small", algorithm=ALGORITHM.model_copy(update={"method": "local"}))
    assert offsets(alone, shares=shares) == {"proxy": log3}
    for how in ("balanced", "logit-adjusted"):
        weighted = replace(LARGE, algorithm=ALGORITHM.model_copy(update={"class_weights": how}))
        assert offsets(weighted, shares=shares) == {"large": 0.0, "proxy": 0.0}
