"""`fedhelp teacher`, and check's look at teachers: what they say is shown, and what cannot teach is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.numpy import save_file

from fedhelp_cli.main import main
from fedhelp_core.data.phantom.fed_isic import PUBLIC
from fedhelp_core.lean_monai import network_called
from fedhelp_core.tracking.models import load_pyfunc
from tests.tiny import TEACHER_CLASSES, TinyFederation

_ARGUMENTS = '{"init_features": 8, "growth_rate": 4, "block_config": [2, 2]}'
pytestmark = pytest.mark.timeout(600)  # seconds: MLflow is imported, and loads the model in a process of its own


def _fedhelp(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(one) for one in arguments])
    return done.exit_code, done.output


def _weights(folder: Path) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(5)
    network = network_called("densenet", "DenseNet")(2, 3, 4, 8, 4, (2, 2))
    network.train()(torch.rand(8, 3, 32, 32))
    file = folder / "weights.safetensors"
    save_file({name: tensor.numpy() for name, tensor in network.state_dict().items()}, file)
    return network.eval(), file


def test_a_teacher_of_ones_own_network_answers_as_the_network_does_and_is_tried_on_public_images(tmp_path: Path) -> None:
    network, file = _weights(tmp_path)
    PUBLIC.write(tmp_path / "public", count=30, seed=7)
    code, output = _fedhelp(
        "teacher", "monai:DenseNet", "--weights", file, "--classes", "a,b,c,d", "--image-size", "32", "--arguments", _ARGUMENTS, "--mean",
        "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--out", tmp_path / "teacher", "--images", tmp_path / "public")
    assert code == 0, output
    assert "teacher teacher: 20 public images" in output and "      classes: 4\n      image_size: 32" in output
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    predict, _ = load_pyfunc(str(tmp_path / "teacher"))
    with torch.inference_mode():
        expected = network((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25).softmax(dim=-1).numpy()
    assert np.allclose(predict(images), expected, atol=1e-5)
    settings = json.loads((tmp_path / "teacher" / "model-settings.json").read_text())
    assert settings["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    assert settings["outputs"][0]["shape"] == [-1, 4] and settings["parameters"]["uri"] == "./"
    assert f"mlserver start {tmp_path / 'teacher'}" in output


@pytest.mark.parametrize(("network", "more", "sentence"), [
    ("monai:DenseNet", ("--classes", "5", "--arguments", _ARGUMENTS), "is not of monai:DenseNet with 5 classes: class_layers.out.bias"),
    ("monai:DenseNet", ("--classes", "4", "--arguments", "nonsense"), "--arguments: a JSON object expected"),
    ("monai:DenseNat", ("--classes", "4"), "did you mean 'DenseNet'?"),
    ("torchvision:densenet121", ("--classes", "4"), "torchvision is not installed here, and FedHelp does not need it"),
    ("keras:x", ("--classes", "4"), "LIBRARY:NETWORK expected, of monai, timm, torchvision"),
])
def test_what_makes_no_teacher_is_a_sentence(network: str, more: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    _, file = _weights(tmp_path)
    code, output = _fedhelp("teacher", network, "--weights", file, "--image-size", "32", "--out", tmp_path / "teacher", *more)
    assert code != 0 and sentence in " ".join(output.split())


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "sentence"), [
    ("constant", "answers the same for 12 of 12 images, whatever they show"), ("wrong-count", "expected 4 classes, got 5; correct `classes`"),
    ("varied", None), ("priced", None)])
def test_check_tries_each_teacher_within_its_budget_and_tells_what_cannot_teach(
    teacher: str, sentence: str | None, make_tiny: Callable[..., TinyFederation],
) -> None:
    changes: dict[str, object] = {
        "constant": {}, "wrong-count": {"public_set__teachers__0__classes": 4}, "varied": {},
        "priced": {"public_set__teachers__0__budget": {"price_per_image": 1.0}}}[teacher]  # type: ignore[assignment]
    tiny = make_tiny(**changes)
    if teacher == "constant":
        _write_constant(tiny)
    code, output = _fedhelp("check", tiny.path)
    said = " ".join(output.split())
    assert (code == 0) == (sentence is None), output
    assert sentence is None or sentence in said
    assert ("12 public images, 12 of them asked about now" in said) == (teacher in ("constant", "varied"))
    assert ("which costs money and has no budget" in said) == (teacher == "priced")
    if teacher == "varied":  # nothing is asked twice
        assert "12 public images, 0 of them asked about now" in " ".join(_fedhelp("check", tiny.path)[1].split())


def _write_constant(tiny: TinyFederation) -> None:
    from fedhelp_core.tracking.models import save_pyfunc_from_code

    code = tiny.folder / "constant.py"
    code.write_text(
        "import mlflow, numpy\nfrom mlflow.pyfunc.model import PythonModel\n\n\nclass Constant(PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n"
        f"        return numpy.tile(numpy.eye({TEACHER_CLASSES})[1], (len(model_input), 1))\n\n\nmlflow.models.set_model(Constant())\n",
        encoding="utf-8")
    save_pyfunc_from_code(tiny.folder / "constant", code=code, artifacts={}, settings={})
    text = tiny.path.read_text(encoding="utf-8")
    tiny.path.write_text(text.replace(f"uri: {tiny.drawn / 'teacher'}", f"uri: {tiny.folder / 'constant'}"), encoding="utf-8")


def test_a_study_of_methods_without_soft_labels_needs_no_public_set(make_tiny: Callable[..., TinyFederation], tmp_path: Path) -> None:
    tiny = make_tiny()
    document = yaml.safe_load(tiny.path.read_text(encoding="utf-8"))
    del document["public_set"]
    tiny.path.write_text(yaml.safe_dump(document), encoding="utf-8")
    study = ("simulate", tiny.path, "--seeds", "1", "--normalisation", "silo", "--out", tmp_path / "study", "--dry-run", "--methods")
    code, output = _fedhelp(*study, "local,fedavg")
    assert code == 0, output
    code, output = _fedhelp(*study, "fedhelp")
    assert code == 10 and "public_set: method 'fedhelp' learns from soft labels" in output
