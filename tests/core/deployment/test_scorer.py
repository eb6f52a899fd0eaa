"""A model in use answers as in training's evaluation, whatever it is asked together, and refuses what cannot be an image of its task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhelp_core.algorithm.operating_point import FindingsPoint, OperatingPoint, prior_corrected
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.silo import AdoptionConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.examples import image_shape, preparation
from fedhelp_core.deployment.contract import Contract
from fedhelp_core.deployment.scorer import ClassAnswer, FindingsAnswer, MaskAnswer, Scorer, expected_dice, scorer_in
from fedhelp_core.errors import DataError, WeightsError
from fedhelp_core.objectives.metrics import classification_scores, findings_scores
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.documents import dump, parse
from fedhelp_core.weights.file import write_weights
from tests.core.deployment.models import TASKS, contract_of, drawn, scorer_for

pytestmark = pytest.mark.slow  # imports MONAI


def images_of(task: str, count: int = 5) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, *image_shape(TASKS[task])), np.uint8)


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_does_not_depend_on_which_images_are_asked_about_together(task: str) -> None:
    scorer, images = scorer_for(TASKS[task]), images_of(task)
    together = scorer.answers(images)
    for number, answer in enumerate(together):
        [alone] = scorer.answers(images[number : number + 1])
        [*_, last] = scorer.answers(images[: number + 1])
        for other in (alone, last):
            if not isinstance(answer, MaskAnswer):
                assert isinstance(other, ClassAnswer | FindingsAnswer)
                assert np.array_equal(answer.probabilities_K, other.probabilities_K) and answer.decided == other.decided
            else:
                assert isinstance(other, MaskAnswer)
                assert np.array_equal(answer.probabilities_KS, other.probabilities_KS)


@pytest.mark.parametrize("network", ["DenseNet121", "SEResNet50"])  # whose head sums a thousand features: in sixteen rows in another order
def test_so_it_is_with_any_network(network: str) -> None:
    task = TaskConfig(name="melanoma", image_size=64)
    objective = objective_of(task)
    weights = {name: value.numpy() for name, value in objective.build(network, torch.Generator().manual_seed(1)).state_dict().items()}
    made = contract_of(TASKS["melanoma"], drawn(TASKS["melanoma"]))
    contract = replace(made, task=task, preprocessing=preparation(task), network=ModelConfig(network=network))
    scorer = Scorer(contract, weights, AdoptionConfig(), torch.device("cpu"))
    images = np.random.default_rng(7).integers(0, 256, (17, 3, 64, 64), np.uint8)
    together, alone = (
        np.stack([answer.probabilities_K for part in np.split(images, parts) for answer in scorer.answers(part) if isinstance(answer, ClassAnswer)])
        for parts in (1, 17))
    assert np.array_equal(together, alone)
    evaluated = objective.results(scorer.network, torch.from_numpy(images), torch.zeros(17, dtype=torch.int64), scorer.device)
    assert np.array_equal(evaluated["probabilities"], alone)


@pytest.mark.parametrize("task", TASKS)
def test_answers_about_a_test_set_have_exactly_the_scores_of_the_evaluation(task: str) -> None:
    scorer, images = scorer_for(TASKS[task]), images_of(task, 9)
    objective, point = scorer.objective, scorer.contract.operating_point
    rng = np.random.default_rng(1)
    answered, sides = objective.outputs, images.shape[2:]
    shape = {"classes": 9, "labels": (9, answered), "masks": (9, 1, *sides), "regions": (9, answered, *sides)}[TASKS[task].form]
    most = {"classes": answered, "masks": answered + 1}.get(TASKS[task].form, 2)
    targets = rng.integers(0, most, shape, np.int64 if objective.form == "classes" else np.uint8)
    tensors = torch.from_numpy(images), torch.from_numpy(targets)
    evaluated = objective.scores_of(objective.results(scorer.network, *tensors, scorer.device), point).scores
    answers = scorer.answers(images)
    if objective.form == "classes":
        assert isinstance(point, OperatingPoint)
        probabilities = np.stack([answer.probabilities_K for answer in answers if isinstance(answer, ClassAnswer)])
        assert classification_scores(targets, probabilities, point) == evaluated
    elif objective.form == "labels":
        probabilities = np.stack([answer.probabilities_K for answer in answers if isinstance(answer, FindingsAnswer)])
        assert isinstance(point, FindingsPoint) and findings_scores(targets, probabilities, point)[0] == evaluated
    else:
        masks_NK = np.stack([answer.masks() for answer in answers if isinstance(answer, MaskAnswer)])
        true_NK = targets == 1 if objective.form == "regions" else targets == np.arange(1, answered + 1).reshape(1, -1, *(1,) * len(sides))
        over = tuple(range(2, 2 + len(sides)))
        dice_NK = 2 * (masks_NK & true_NK).sum(axis=over) / (masks_NK.sum(axis=over) + true_NK.sum(axis=over))
        assert float(np.mean(dice_NK)) == pytest.approx(evaluated["dice"], abs=1e-6)


@pytest.mark.parametrize(("images", "said"), [
    (np.zeros((1, 3, 16, 16), np.float32), r"uint8 of 0 to 255 expected, got float32 in 0\.\.1; do not scale"),
    (np.full((1, 3, 16, 16), 200.0), "uint8 of 0 to 255 expected, got float64;"),
    (np.full((1, 3, 16, 16), np.nan), "uint8 of 0 to 255 expected, got float64;"),
    (np.zeros((1, 3, 16, 16), np.uint16), "uint8 of 0 to 255 expected, got uint16;"),
    (np.zeros((1, 1, 16, 16), np.uint8), r"N x 3 x 16 x 16 \(channels first\) expected, got 1 x 1 x 16 x 16"),
    (np.zeros((1, 16, 16, 3), np.uint8), r"N x 3 x 16 x 16 \(channels first\) expected, got 1 x 16 x 16 x 3"),
    (np.zeros((1, 3, 32, 32), np.uint8), r"expected, got 1 x 3 x 32 x 32"),
    (np.zeros((3, 16, 16), np.uint8), r"expected, got 3 x 16 x 16"),
    (np.zeros((), np.uint8), "expected, got one number"),
], ids=["0..1", "float", "nan", "16-bit", "grey", "channels last", "size", "no batch", "scalar"])
def test_what_is_no_image_of_the_task_is_refused_in_one_sentence(images: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        scorer_for(TASKS["melanoma"]).answers(images)


def test_no_images_have_no_answers() -> None:
    assert scorer_for(TASKS["melanoma"]).answers(np.zeros((0, 3, 16, 16), np.uint8)) == []


def test_weights_of_another_task_or_network_are_refused() -> None:
    melanoma, pneumonia = TASKS["melanoma"], TASKS["pneumonia"]
    for weights in (drawn(pneumonia), drawn(TASKS["lung-segmentation"])):
        with pytest.raises(WeightsError, match=r"do not fit network 'resnet8' with 8 outputs: \d+ tensors differ, the first"):
            Scorer(contract_of(melanoma, weights), weights, AdoptionConfig(), torch.device("cpu"))


def test_weights_that_were_altered_are_refused(tmp_path: Path) -> None:
    task = TASKS["melanoma"]
    weights = drawn(task)
    write_weights(tmp_path / "w", drawn(task, seed=2), "resnet8")
    with pytest.raises(WeightsError, match="tampered with or damaged"):
        scorer_in(contract_of(task, weights), tmp_path / "w", AdoptionConfig(), torch.device("cpu"))


def test_images_that_this_software_would_prepare_otherwise_are_never_asked_about() -> None:
    with pytest.raises(WeightsError, match="its images are prepared as 'otherwise', this software prepares them as 'rgb8"):
        scorer_for(TASKS["melanoma"], preprocessing="otherwise")


def test_a_class_is_decided_where_all_are_equally_common_and_the_probabilities_are_the_hospitals() -> None:
    """Two classes: the model says 0.6 to 0.4, but has seen the first nine times as often, and so has the hospital."""
    common = np.log([0.9, 0.1])
    point = OperatingPoint(rule="validation", temperature=1.0, offsets_C=tuple(-common), log_prior_C=tuple(common), log_occurrence_C=(0.0, 0.0))
    scorer = scorer_for(TASKS["pneumonia"], operating_point=point)
    [answer] = scorer._classes(np.array([[0.6, 0.4]], np.float32))
    assert isinstance(answer, ClassAnswer) and scorer.class_name(answer) == "pneumonia"
    assert answer.calibrated_K == pytest.approx([0.6, 0.4])
    alike = np.array([0.6 / 0.9, 0.4 / 0.1])
    assert answer.margin == pytest.approx((alike[1] - alike[0]) / alike.sum())


@pytest.mark.parametrize(("width", "undecided"), [(0.0, False), (0.19, False), (0.21, True), (1.0, True)])
def test_a_class_that_is_nearer_to_the_second_than_the_band_is_not_decided(width: float, undecided: bool) -> None:
    nothing = (0.0, 0.0)
    point = OperatingPoint(rule="validation", temperature=1.0, offsets_C=nothing, log_prior_C=nothing, log_occurrence_C=nothing)
    scorer = scorer_for(TASKS["pneumonia"], band=AdoptionConfig(undecided_margin=width), operating_point=point)
    [answer] = scorer._classes(np.array([[0.4, 0.6]], np.float32))
    assert answer.undecided is undecided


def test_the_expected_dice_is_that_of_masks_drawn_from_the_probabilities() -> None:
    probabilities = np.full((40, 40), 0.05, np.float32)
    probabilities[10:30, 10:30] = 0.9
    rng, mask = np.random.default_rng(3), probabilities > 0.5
    drawn_ones = [rng.random(probabilities.shape) < probabilities for _ in range(200)]
    dice = np.mean([2 * (one & mask).sum() / (one.sum() + mask.sum()) for one in drawn_ones])
    assert expected_dice(probabilities) == pytest.approx(dice, abs=0.01)
    assert expected_dice(np.zeros((4, 4), np.float32)) == 0.0


def test_a_contract_is_written_and_read_whole() -> None:
    for task in TASKS.values():
        contract = replace(contract_of(task, drawn(task)), scores={"x": float("nan")}, notes=("one", "two"))
        again = parse(Contract, dump(contract), "contract.json")
        assert dump(again) == dump(contract) and again.task == contract.task and again.operating_point == contract.operating_point


def test_findings_are_found_at_the_hospitals_own_point() -> None:
    """Of the first finding what is above a tenth, of the second what is above a half, of the third hardly anything."""
    def at(share: float) -> OperatingPoint:
        return prior_corrected(np.array([1 - share, share]), classes=2, counts_C=(90, 10))

    task = TASKS["chest-findings"]
    scorer = scorer_for(task, operating_point=FindingsPoint(of_each=(at(0.1), at(0.5), at(0.999))), band=AdoptionConfig(undecided_margin=0.0))
    answers = [answer for answer in scorer.answers(images_of("chest-findings", 9)) if isinstance(answer, FindingsAnswer)]
    said_NK = np.stack([answer.probabilities_K for answer in answers])
    found_NK = np.stack([answer.found_K for answer in answers])
    assert found_NK.tolist() == (said_NK > [0.1, 0.5, 0.999]).tolist() and 0 < found_NK.sum() < found_NK.size
    for answer in answers:
        names = [name for name, found in zip(task.classes, answer.found_K, strict=True) if found]
        assert scorer.names_of(answer) == (", ".join(names) or "no finding")
        assert (answer.calibrated_K[1:] < answer.probabilities_K[1:]).all(), "a tenth of the hospital's images show it, fewer than the model has seen"
