"""Soft masks: teachers of segmentation, in the same ledger and the same distillation set. Teachers here hold brightness for foreground."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.algorithm.local_update import SiloData, SiloState, UpdateSettings, initial_weights, local_update
from fedhelp_core.algorithm.randomness import fix_arithmetic
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.task import TaskConfig, VolumeConfig, algorithm_for
from fedhelp_core.config.teachers import PublicSetConfig
from fedhelp_core.data.public import preparation_of
from fedhelp_core.errors import ConfigError, DataError, TeacherError
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.softlabels import distillation_set
from fedhelp_core.softlabels.distillation_set import DistillationSet, load_distillation_set, read_index
from fedhelp_core.softlabels.prefetch import PrefetchReport, prefetch
from fedhelp_core.softlabels.public_images import read_public_images
from fedhelp_core.softlabels.summary import summarise
from fedhelp_core.softlabels.teachers import Question, Readiness
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.core.softlabels.helpers import Killed, killed_at, teacher_config
from tests.core.softlabels.inference_server import InferenceServer, json_answer

SIDE = 16
LUNGS = TaskConfig(name="lung-segmentation", image_size=SIDE)
BRAINS = TaskConfig(name="brain-segmentation", image_size=SIDE, volume=VolumeConfig(patch_size=8, window_size=8))
IMAGES = 5


def brightness(images: NDArray[np.uint8], classes: int) -> NDArray[np.float64]:
    """(n, classes, S, ...): of one class the foreground's probability; of several the background's first, then equal parts of the rest."""
    bright = np.moveaxis(images, -1, 1)[:, :1] / 255
    if classes == 1:
        return bright
    return np.concatenate([1 - bright, *[bright / (classes - 1)] * (classes - 1)], axis=1)


class BrightTeacher:
    """Remembers how many images it was asked about in each request."""

    def __init__(self, classes: int = 1, then: Callable[[int, Any], Any] = lambda _, answer: answer, **changes: Any) -> None:
        self.config = teacher_config(classes=classes, **changes)
        self.requests: list[tuple[int, ...]] = []
        self._then = then

    def prepare(self, question: Question) -> Readiness:
        assert question.masks
        return Readiness(batch_size=self.config.batch_size, concurrency=1, served_version="")

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
        answer = self._then(len(self.requests), brightness(images_NHWC, self.config.classes))
        self.requests.append(images_NHWC.shape)
        return answer


def draw_grey(folder: Path, count: int = IMAGES) -> Path:
    """Pictures that are dark on one side and bright on the other, each with its own noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = np.where(np.arange(SIDE) < SIDE // 2, 0, 255) * np.ones((SIDE, 1))
        pixels[: number + 1, :] = generator.integers(0, 256, (number + 1, SIDE))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def draw_volumes(folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        nibabel.save(nibabel.Nifti1Image(generator.random((SIDE, SIDE, SIDE + number)).astype(np.float32), np.eye(4)), folder / f"{number}.nii.gz")
    return folder


def run(store: Store, images: Path, *teachers: BrightTeacher, task: TaskConfig = LUNGS, **options: Any) -> PrefetchReport:
    public = PublicSetConfig(images=images, teachers=tuple(teacher.config for teacher in teachers))
    return prefetch(store, public, task, teachers=teachers, **options)


def loaded(store: Store, images: Path, *teachers: BrightTeacher, task: TaskConfig = LUNGS) -> DistillationSet:
    return load_distillation_set(store, run(store, images, *teachers, task=task).distillation_set_sha256)


def everything(found: DistillationSet) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.arange(found.images_NCHW.shape[0])
    return found.images_NCHW[index], found.probabilities_NC[index]


class TestSoftMasks:
    def test_a_set_holds_grey_images_and_a_foreground_probability_for_every_pixel(self, store: Store, tmp_path: Path) -> None:
        teacher = BrightTeacher()
        found = loaded(store, draw_grey(tmp_path / "public"), teacher)
        images, masks = everything(found)
        assert teacher.requests == [(2, SIDE, SIDE, 1), (2, SIDE, SIDE, 1), (1, SIDE, SIDE, 1)]
        assert (images.dtype, tuple(images.shape)) == (torch.uint8, (IMAGES, 1, SIDE, SIDE))
        assert (masks.dtype, tuple(found.probabilities_NC.shape)) == (torch.float32, (IMAGES, 1, SIDE, SIDE))
        torch.testing.assert_close(masks, images / 255, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("classes", "output", "foregrounds"), [
        (1, "logits", 1), (2, "probabilities", 1), (2, "logits", 1), (3, "probabilities", 2)])
    def test_of_several_classes_the_first_is_the_background(
        self, local: Store, tmp_path: Path, classes: int, output: str, foregrounds: int,
    ) -> None:
        def as_logits(_number: int, answer: NDArray[np.float64]) -> NDArray[np.float64]:
            if output == "probabilities":
                return answer
            clipped = answer.clip(1e-9, 1 - 1e-9)
            return np.log(clipped / (1 - clipped)) if classes == 1 else np.log(clipped) + 7  # softmax takes no notice of a shift

        found = loaded(local, draw_grey(tmp_path / "public"), BrightTeacher(classes, then=as_logits, output=output))
        images, masks = everything(found)
        assert (masks.shape[1], found.classes) == (foregrounds, classes)
        torch.testing.assert_close(masks.sum(dim=1, keepdim=True), images / 255, rtol=0, atol=foregrounds / 255)

    def test_volumes_are_asked_about_as_volumes(self, local: Store, tmp_path: Path) -> None:
        teacher = BrightTeacher(batch_size=1)
        found = loaded(local, draw_volumes(tmp_path / "public"), teacher, task=BRAINS)
        images, masks = everything(found)
        assert teacher.requests == [(1, SIDE, SIDE, SIDE, 1)] * 2
        assert tuple(images.shape) == tuple(masks.shape) == (2, 1, SIDE, SIDE, SIDE)
        torch.testing.assert_close(masks, images / 255, rtol=0, atol=1e-6)

    def test_a_batch_is_read_from_several_shards(self, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        public = draw_grey(tmp_path / "public")
        _, whole = everything(loaded(local, public, BrightTeacher()))
        monkeypatch.setattr(distillation_set, "IMAGES_PER_SHARD", 2)
        found = loaded(local, public, BrightTeacher())
        for index in ([4, 0, 3], [1, 1], [2], []):
            chosen = torch.tensor(index, dtype=torch.int64)
            assert found.probabilities_NC[chosen].equal(whole[chosen])

    def test_masks_take_a_fraction_of_their_pixels(self, local: Store, tmp_path: Path) -> None:
        def certain(_number: int, answer: NDArray[np.float64]) -> NDArray[np.float64]:
            half = np.arange(answer.shape[-1]) < answer.shape[-1] // 2
            return np.broadcast_to(half, answer.shape).astype(np.float64)

        sha256 = run(local, draw_grey(tmp_path / "public"), BrightTeacher(then=certain)).distillation_set_sha256
        (shard,) = read_index(local, sha256).shards
        assert shard.answers_stored < IMAGES * SIDE**2 / 5


class TestOneLedger:
    def test_a_second_run_asks_nothing_and_a_killed_one_goes_on(self, store: Store, tmp_path: Path) -> None:
        public = draw_grey(tmp_path / "public")
        with pytest.raises(Killed):
            run(store, public, BrightTeacher(then=killed_at(1)))
        second, third = BrightTeacher(), BrightTeacher()
        report = run(store, public, second)
        assert (report.asked, report.cached) == (3, 2)
        assert run(store, public, third).distillation_set_sha256 == report.distillation_set_sha256
        assert third.requests == []
        calm = run(open_store(str(tmp_path / "calm")), public, BrightTeacher())
        assert calm.distillation_set_sha256 == report.distillation_set_sha256

    def test_class_probabilities_and_masks_of_the_same_images_are_two_questions(self, local: Store, tmp_path: Path) -> None:
        public = draw_grey(tmp_path / "public")
        run(local, public, BrightTeacher(classes=2))
        keys = set(local.list("softlabels/ledger/"))
        teacher = teacher_config(classes=2)

        class Classifier:
            config = teacher

            def prepare(self, question: Question) -> Readiness:
                assert not question.masks
                return Readiness(batch_size=8, concurrency=1, served_version="")

            def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
                return [[0.5, 0.5]] * len(images_NHWC)

        report = prefetch(local, PublicSetConfig(images=public, teachers=(teacher,)), TaskConfig(image_size=SIDE), teachers=[Classifier()])
        assert report.asked == IMAGES
        assert keys < set(local.list("softlabels/ledger/"))

    def test_teachers_are_mixed_pixel_by_pixel(self, local: Store, tmp_path: Path) -> None:
        one = BrightTeacher(name="one", weight=3, then=lambda _, answer: np.ones_like(answer))
        other = BrightTeacher(name="other", weight=1, then=lambda _, answer: np.zeros_like(answer))
        found = loaded(local, draw_grey(tmp_path / "public"), one, other)
        assert torch.unique(everything(found)[1]).tolist() == pytest.approx([191 / 255])  # 3/4 of 255 is 191.25

    def test_a_classifier_needs_two_classes(self, local: Store, tmp_path: Path) -> None:
        teacher = teacher_config(classes=1)
        with pytest.raises(ConfigError, match="classes: at least 2 expected where teachers name classes, got 1"):
            prefetch(local, PublicSetConfig(images=tmp_path, teachers=(teacher,)), TaskConfig(image_size=SIDE))


class TestBadAnswers:
    @pytest.mark.parametrize(("classes", "change", "words"), [
        (1, lambda a: a[:, 0], r"2 masks of 1 probabilities per pixel, an array of shape \(2, 1, 16, 16\), got one of shape \(2, 16, 16\)"),
        (1, lambda a: a[:1], r"got one of shape \(1, 1, 16, 16\)"),
        (1, lambda a: a[..., :8], r"got one of shape \(2, 1, 16, 8\)"),
        (2, lambda a: a[:, :1], r"got one of shape \(2, 1, 16, 16\); correct `classes` in public_set.teachers, or the model"),
        (1, lambda a: a * math.nan, "expected finite numbers, got NaN or infinity in image 0"),
        (1, lambda a: a * 4 - 1, "expected probabilities, got -?[0-9.]+ in image 0; are these logits"),
        (1, lambda a: a + 0.5, "expected probabilities, got 1[0-9.]* in image 0; are these logits"),
        (2, lambda a: a * 0.5, r"expected classes that sum to 1 in every pixel, got 0\.5 in image 0"),
        (2, lambda a: a * 3 - 1, "expected probabilities, got -1 in image 0"),
        (1, lambda a: a.astype(str), "an array of numbers"),
    ])
    def test_none_of_it_is_recorded(self, local: Store, tmp_path: Path, classes: int, change: Callable[[Any], Any], words: str) -> None:
        public = draw_grey(tmp_path / "public")
        with pytest.raises(TeacherError, match=words):
            run(local, public, BrightTeacher(classes, then=lambda number, answer: change(answer) if number == 1 else answer))
        assert len([key for key in local.list("softlabels/ledger/") if "/answers/" in key]) == 1
        assert run(local, public, BrightTeacher(classes)).asked == IMAGES - 2

    def test_a_deflated_row_that_is_none_is_noticed(self, local: Store, tmp_path: Path) -> None:
        run(local, draw_grey(tmp_path / "public"), BrightTeacher())
        key = next(key for key in local.list("softlabels/ledger/") if "/answers/" in key)
        body = bytearray(local.get(key))
        body[-200:-190] = b"\0" * 10
        local.delete(key)
        local.put(key, bytes(body))
        with pytest.raises(TeacherError, match=r"recorded answers .*; the object is damaged or forged, delete it to ask again"):
            run(local, tmp_path / "public", BrightTeacher())

    @pytest.mark.parametrize(("layout", "name", "body", "words"), [
        ("folder", "colour.png", None, "is a colour picture .*, but this task's images are grey"),
        ("cifar10", "a.bin", bytes([7, *range(256)]) + bytes(3073 - 257), r"a\.bin\[0\]: is a colour picture"),
    ])
    def test_colour_where_grey_is_expected_is_named(self, tmp_path: Path, layout: str, name: str, body: bytes | None, words: str) -> None:
        if body is None:
            Image.new("RGB", (SIDE, SIDE), (200, 10, 10)).save(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(body)
        with pytest.raises(DataError, match=words):
            read_public_images(tmp_path, preparation_of(LUNGS), layout=layout)

    def test_a_volume_that_is_none_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
        with pytest.raises(DataError, match=r"broken\.nii\.gz: cannot be read as NIfTI"):
            read_public_images(tmp_path, preparation_of(BRAINS))


class TestOpenInference:
    def served(self, server: InferenceServer, channels: int = 1, output: tuple[int, ...] = (-1, 2, SIDE, SIDE)) -> None:
        server.model_metadata = {
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, channels, SIDE, SIDE]}], "outputs": [{"name": "scores", "shape": output}]}
        server.answer = lambda _, body: json_answer(self._answer(json.loads(body)))

    def _answer(self, request: dict[str, Any]) -> NDArray[np.float64]:
        tensor = request["inputs"][0]
        images_NCHW = np.asarray(tensor["data"]).reshape(tensor["shape"])
        assert (images_NCHW == images_NCHW[:, :1]).all()
        return np.concatenate([1 - images_NCHW[:, :1], images_NCHW[:, :1]], axis=1)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_masks_come_as_classes_first_and_a_model_of_colour_gets_grey_three_times(
        self, server: InferenceServer, local: Store, tmp_path: Path, channels: int,
    ) -> None:
        self.served(server, channels)
        teacher = server.teacher(classes=2)
        public = PublicSetConfig(images=draw_grey(tmp_path / "public"), teachers=(teacher.config,))
        found = load_distillation_set(local, prefetch(local, public, LUNGS, teachers=[teacher]).distillation_set_sha256)
        images, masks = everything(found)
        torch.testing.assert_close(masks, images / 255, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("channels", "output", "words"), [
        (2, (-1, 2, SIDE, SIDE), r"expected an input of grey images as one of .*, got FP32 of shape \[-1, 2, 16, 16\]"),
        (1, (-1, 2), r"expected an output of 2 classes per pixel, of shape \[n, 2, 16, 16\], got 'scores' of shape \[-1, 2\]"),
        (1, (-1, 3, SIDE, SIDE), r"got 'scores' of shape \[-1, 3, 16, 16\]; correct `classes`"),
        (1, (-1, 2, SIDE, 8), r"got 'scores' of shape \[-1, 2, 16, 8\]"),
    ])
    def test_a_model_of_something_else_is_refused_before_it_is_asked(
        self, server: InferenceServer, channels: int, output: tuple[int, ...], words: str,
    ) -> None:
        self.served(server, channels, output)
        with pytest.raises(TeacherError, match=words):
            server.teacher(classes=2).prepare(Question.of(LUNGS))
        assert server.posts == []

    def test_a_model_of_pictures_is_not_asked_about_volumes(self, server: InferenceServer) -> None:
        self.served(server)
        with pytest.raises(TeacherError, match=r"expected an input of volumes as one of .*, got FP32 of shape \[-1, 1, 16, 16\]"):
            server.teacher(classes=2).prepare(Question.of(BRAINS))


def test_a_small_silo_learns_from_the_mapped_set_what_it_learns_from_tensors(local: Store, tmp_path: Path) -> None:
    fix_arithmetic(1)
    found = loaded(local, draw_grey(tmp_path / "public"), BrightTeacher())
    algorithm = AlgorithmConfig(**{**algorithm_for({"name": LUNGS.name}), "batch_size": 2, "public_batch_size": 2})
    settings = UpdateSettings(algorithm=algorithm, objective=objective_of(LUNGS), kind="small", seed=3, silo="a")
    images, masks = everything(found)
    private = {"images_NCHW": images[:4], "labels_N": (images[:4] > 127).to(torch.uint8)}
    results = [
        local_update(initial_weights(algorithm, objective_of(LUNGS), seed=3), SiloState.empty(), SiloData(
            **private, public_images_MCHW=public, public_probabilities_MP=answers), settings, round_number=1)
        for public, answers in ((found.images_NCHW, found.probabilities_NC), (images, masks))]
    assert results[0].metrics["public_loss"] > 0
    assert all((results[0].weights[name] == results[1].weights[name]).all() for name in results[1].weights)


class TestSummary:
    def test_foregrounds_are_measured_in_shares_of_the_image(self, local: Store, tmp_path: Path) -> None:
        found = summarise(local, run(local, draw_grey(tmp_path / "public"), BrightTeacher()).distillation_set_sha256)
        assert (found.masks, found.classes, found.favourites_C, found.image_sides) == (True, ("foreground",), (IMAGES,), (SIDE, SIDE))
        assert found.most_entropy == pytest.approx(math.log(2))
        assert 0.3 < found.mean_C[0] < 0.7
        assert (found.entropies_N < 0.2).all()  # dark and bright are certain, the noisy rows are not
        assert found.examples[0].image_HWC.shape == (SIDE, SIDE, 3)
        assert found.examples[0].favourites == (("foreground", pytest.approx(0.5, abs=0.2)),)

    def test_two_teachers_agree_on_a_share_of_the_pixels(self, local: Store, tmp_path: Path) -> None:
        one = BrightTeacher(name="one", then=lambda _, answer: np.ones_like(answer))
        other = BrightTeacher(name="other", then=lambda _, answer: np.broadcast_to(np.arange(SIDE) < SIDE // 4, answer.shape).astype(float))
        (pair,) = summarise(local, run(local, draw_grey(tmp_path / "public"), one, other).distillation_set_sha256).agreements
        assert pair.same_favourite == pytest.approx(0.25)
        assert pair.divergence == pytest.approx(0.75 * math.log(2))

    def test_a_volume_is_shown_by_its_middle(self, local: Store, tmp_path: Path) -> None:
        sha256 = run(local, draw_volumes(tmp_path / "public"), BrightTeacher(), task=BRAINS).distillation_set_sha256
        found = summarise(local, sha256)
        assert (found.examples[0].image_HWC.shape, found.image_sides) == ((SIDE, SIDE, 3), (SIDE, SIDE, SIDE))


def test_pixels_of_masks_are_kept_to_a_255th(local: Store, tmp_path: Path) -> None:
    teacher = BrightTeacher(then=lambda _, answer: np.full_like(answer, 0.1234))
    _, masks = everything(loaded(local, draw_grey(tmp_path / "public"), teacher))
    assert masks.max().item() == masks.min().item() == pytest.approx(31 / 255)


