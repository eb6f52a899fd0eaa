"""The task registry: what a file leaves open follows its task; classification never imports MONAI; segmentation learns by Eq 6."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedhelp_core.algorithm.local_update import SiloData, SiloState, UpdateSettings, initial_weights, local_update
from fedhelp_core.algorithm.operating_point import prior_corrected
from fedhelp_core.algorithm.simulate import SimulatedSilo
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.federation import Federation, parse_federation
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.examples import image_shape
from fedhelp_core.errors import ConfigError
from fedhelp_core.models.build import build_model
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.registry.models import MODELS, smallest_trained_side
from fedhelp_core.registry.tasks import PRESETS
from fedhelp_core.study.study import run_study
from fedhelp_core.study.table import markdown, scores_csv


def federation(task: dict[str, object], **algorithm: object) -> Federation:
    return parse_federation({
        "name": "test", "task": task, "algorithm": {"method": "fedavg", **algorithm}, "store": {"url": "store"},
        "silos": [{"name": "a", "dispatch": {"silo_config": "a.yaml"}}]}, source="test")


def test_what_a_file_leaves_open_follows_its_task() -> None:
    found = federation({"name": "pneumonia"})
    assert (found.task.classes, found.algorithm.rank_top_k, found.algorithm.augmentation) == (("normal", "pneumonia"), 1, "mirror")
    assert federation({"name": "lung-segmentation"}).algorithm.proxy_model.network == "unet2d"
    assert len(federation({}).task.classes) == 8


def test_what_a_file_says_counts_more_than_its_task() -> None:
    assert federation({"name": "pneumonia", "classes": ["b", "a"]}, augmentation="none").algorithm.augmentation == "none"


@pytest.mark.parametrize(("task", "words"), [
    ({"name": "pnemonia"}, "did you mean 'pneumonia'"),
    ({"name": "lung-segmentation", "classes": ["background"]}, "at least 2 names expected, got 1"),
    ({"name": "lung-segmentation", "image_size": 47}, "task.image_size: a multiple of 16 expected for unet2d-large, got 47"),
    ({"name": "brain-segmentation", "image_size": 48}, r"at most image_size \(48\) expected, got 64"),
    ({"name": "lung-segmentation", "image_size": 16}, "task.image_size: at least 32 expected for unet2d-large, got 16: it would leave maps of"),
    ({"name": "brain-segmentation", "image_size": 64, "volume": {"patch_size": 16, "window_size": 16}},
     "task.volume.patch_size: at least 32 expected for unet3d-large, got 16"),
])
def test_a_task_that_cannot_be_is_refused_with_the_reason(task: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        federation(task)


@pytest.mark.parametrize("how", ["balanced", "logit-adjusted"])
def test_class_weights_are_for_classes_not_for_masks(how: str) -> None:
    assert federation({"name": "pneumonia"}, class_weights=how).algorithm.class_weights == how
    with pytest.raises(ConfigError, match=f"algorithm.class_weights: 'none' expected for lung-segmentation, .* got '{how}'"):
        federation({"name": "lung-segmentation", "image_size": 32}, class_weights=how)


@pytest.mark.parametrize("name", MODELS)
def test_the_smallest_side_of_every_model_is_the_one_that_a_batch_of_one_image_can_be_trained_on(name: str) -> None:
    network = MODELS[name]
    model = build_model(
        name, outputs=2, in_channels=1, answer=network.answer, dimensions=network.dimensions, generator=torch.Generator().manual_seed(1)).train()
    smallest = smallest_trained_side(network)
    assert model(torch.zeros((1, 1) + (smallest,) * network.dimensions)).isfinite().all()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.zeros((1, 1) + (smallest - network.sides_multiple_of,) * network.dimensions))


@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_silo_of_few_images_trains_on_all_of_them(count: int, kind: str) -> None:
    objective = objective_of(TaskConfig(classes=("a", "b"), image_size=8))
    algorithm = AlgorithmConfig(proxy_model="resnet8", large_model="resnet8", batch_size=2, public_batch_size=4, rank_top_k=1)
    images = torch.arange(count * 3 * 64).remainder(256).to(torch.uint8).reshape(count, 3, 8, 8)
    data = SiloData(  # one class alone, one public image
        images_NCHW=images, labels_N=torch.zeros(count, dtype=torch.int64), public_images_MCHW=images[:1],
        public_probabilities_MP=torch.tensor([[0.25, 0.75]]))
    settings = UpdateSettings(algorithm=algorithm, objective=objective, seed=1, silo="a", kind=kind)
    result = local_update(initial_weights(algorithm, objective, seed=1), SiloState.empty(), data, settings, round_number=1)
    assert (result.samples, result.steps) == (count, -(-count // 2))
    assert all(math.isfinite(value) for value in result.metrics.values())


def test_every_tasks_defaults_make_a_valid_federation() -> None:
    for name in PRESETS:
        federation({"name": name, "image_size": 64})


def test_a_model_of_another_form_is_refused_with_those_that_fit() -> None:
    with pytest.raises(ConfigError, match=r"a model for classes of 2D images expected \(resnet8, .*\), got 'unet2d'"):
        objective_of(TaskConfig()).build("unet2d")


@pytest.mark.slow
def test_classification_never_imports_monai_and_segmentation_not_what_monai_drags_in() -> None:
    code = """
import sys
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.objectives.open import objective_of
objective_of(TaskConfig(name="pneumonia")).build("resnet8")
assert "monai" not in sys.modules
objective_of(TaskConfig(name="lung-segmentation"))
assert "monai" in sys.modules and not {"mlflow", "pandas", "matplotlib"} & set(sys.modules)
import matplotlib
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def mask_data(dimensions: int, count: int = 5, side: int = 16) -> SiloData:
    """Bright squares (or cubes) on dark ground, and where they are; the same with soft answers as public images."""
    generator = torch.Generator().manual_seed(dimensions)
    masks = torch.zeros((count, 1) + (side,) * dimensions, dtype=torch.uint8)
    for number in range(count):
        first = [int(torch.randint(0, side // 2, (), generator=generator)) for _ in range(dimensions)]
        masks[(number, 0, *(slice(begin, begin + side // 2) for begin in first))] = 1
    images = (masks * 120 + torch.randint(0, 60, masks.shape, generator=generator, dtype=torch.uint8)).to(torch.uint8)
    return SiloData(images_NCHW=images, labels_N=masks, public_images_MCHW=images.flip(0), public_probabilities_MP=masks.flip(0) * 0.8 + 0.1)


def mask_task(dimensions: int) -> TaskConfig:
    volume = {"patch_size": 8, "window_size": 8, "patches": 2}
    return TaskConfig.model_validate({
        "name": "lung-segmentation" if dimensions == 2 else "brain-segmentation", "image_size": 16, "volume": volume})


def mask_settings(dimensions: int, kind: str, augmentation: str = "flips") -> UpdateSettings:
    model = f"unet{dimensions}d-tiny"
    algorithm = AlgorithmConfig(proxy_model=model, large_model=model, batch_size=2, public_batch_size=2, augmentation=augmentation, local_epochs=6)
    return UpdateSettings(algorithm=algorithm, objective=objective_of(mask_task(dimensions)), seed=1, silo="a", kind=kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_segmentation_runs_through_the_same_local_update_and_gives_the_same_bits_twice(dimensions: int, kind: str) -> None:
    data, settings = mask_data(dimensions), mask_settings(dimensions, kind)
    start = initial_weights(settings.algorithm, settings.objective, seed=1)

    def update():
        return local_update(start, SiloState.empty(), data, settings, round_number=1)

    first, second = update(), update()
    assert all(np.array_equal(first.weights[name], second.weights[name]) for name in first.weights)
    assert set(first.metrics) == ({"private_loss", "public_loss"} if kind == "small" else {"proxy_loss", "large_loss"})
    visits = 1 if dimensions == 2 else 2
    assert first.steps == 6 * -(-len(data.labels_N) * visits // 2)


@pytest.mark.slow
def test_image_and_mask_are_cut_and_flipped_together() -> None:
    for dimensions in (2, 3):
        data = mask_data(dimensions)
        augment = objective_of(mask_task(dimensions)).augmentation("flips")
        assert augment is not None
        images, masks = augment(data.images_NCHW, data.labels_N, torch.Generator().manual_seed(5))
        assert images.shape[2:] == ((16, 16) if dimensions == 2 else (8, 8, 8))
        assert torch.equal(images >= 120, masks == 1)
        again, _ = augment(data.images_NCHW, data.labels_N, torch.Generator().manual_seed(5))
        assert torch.equal(images, again)


class _Threshold(torch.nn.Module):
    """Answers foreground where the input is bright: a prediction known by hand."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images > 0) * 20.0 - 10.0


@pytest.mark.slow
def test_scores_of_a_known_prediction_image_by_image() -> None:
    objective = objective_of(TaskConfig(name="lung-segmentation", image_size=16))
    masks = torch.zeros((2, 1, 16, 16), dtype=torch.uint8)
    masks[:, :, 4:8, 4:8] = 1
    images = masks * 255
    images[1] = 0
    images[1, :, 4:8, 4:6] = 255  # half of the second square is found
    found = objective.scored(_Threshold(), images, masks, torch.device("cpu"))
    assert found.scores["dice"] == pytest.approx((1 + 2 * 8 / (16 + 8)) / 2)
    assert found.confusion_CC.tolist() == [[2 * 256 - 32, 0], [8, 24]]
    assert tuple(found.scores) == tuple(metric.name for metric in TaskConfig(name="lung-segmentation").scored_by)
    nothing = objective.scored(_Threshold(), images * 0, masks, torch.device("cpu"))
    assert nothing.scores == {"dice": 0.0, "hausdorff95": pytest.approx(np.hypot(16, 16))}


@pytest.mark.slow
@pytest.mark.parametrize("task", [
    {"name": "pneumonia", "image_size": 16}, {"name": "lung-segmentation", "image_size": 16},
    {"name": "brain-segmentation", "image_size": 16, "volume": {"patch_size": 8, "window_size": 12}},  # 8 windows that overlap
], ids=lambda task: task["name"])
def test_what_is_served_answers_pixels_as_evaluation_does_and_is_exported_for_any_number_of_images(task: dict[str, object]) -> None:
    config = TaskConfig.model_validate(task)
    objective = objective_of(config)
    generator = torch.Generator().manual_seed(3)
    model = objective.build({"pneumonia": "resnet8", "lung-segmentation": "unet2d-tiny", "brain-segmentation": "unet3d-tiny"}[config.name], generator)
    served = objective.served(model.eval())
    pixels = torch.randint(0, 256, (3, *image_shape(config)), generator=generator, dtype=torch.uint8)
    exported = torch.export.export(served, (pixels[:2].float(),), dynamic_shapes=({0: torch.export.Dim("images")},))
    with torch.inference_mode():
        answers = exported.module()(pixels.float())
    expected = objective.probabilities(model, pixels, torch.device("cpu"))
    if objective.outputs == 1:
        expected = torch.cat((1 - expected, expected), dim=1)
    assert answers.shape == expected.shape
    torch.testing.assert_close(answers, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(answers.sum(dim=1), torch.ones_like(answers[:, 0]))


def test_what_is_served_decides_at_its_operating_point() -> None:
    objective = objective_of(TaskConfig(name="pneumonia", image_size=8))
    generator = torch.Generator().manual_seed(4)
    model = objective.build("resnet8", generator).eval()
    pixels = torch.randint(0, 256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    answers = objective.probabilities(model, pixels, torch.device("cpu"))
    middle = answers.median(dim=0).values.double().numpy()  # so that the point splits what argmax does not
    point = replace(prior_corrected(np.sqrt(middle), classes=2), temperature=2.0)
    with torch.inference_mode():
        served = objective.served(model, point)(pixels.float())
    assert served.argmax(dim=1).tolist() == point.decided(answers.numpy()).tolist()
    assert 5 < int(served.argmax(dim=1).sum()) < 35
    torch.testing.assert_close(served.double(), torch.from_numpy(point.calibrated(answers.numpy())), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_studys_tables_are_of_the_tasks_own_scores(tmp_path: Path) -> None:
    document = federation(mask_task(2).model_dump(), rounds=1, batch_size=2, proxy_model="unet2d-tiny", large_model="unet2d-tiny")
    data = mask_data(2)
    silo = SimulatedSilo(kind="small", training=data, test_images_NCHW=data.images_NCHW, test_labels_N=data.labels_N)
    found = run_study(document, methods=["local", "fedavg"], seeds=[1], out=tmp_path, load=lambda: {"a": silo})
    text = markdown(found)
    assert "### Dice after 1 rounds" in text and "Hausdorff 95 (pixels)" in text
    assert "dice,hausdorff95,proxy_dice,proxy_hausdorff95" in scores_csv(found)
