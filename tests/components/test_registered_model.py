"""The model in MLflow's registry as its users have it: by files or arrays, in another process, where FedHelp is not installed, behind a server."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedhelp_components.evaluation.candidate import drawn_image, model_for_users
from fedhelp_core.algorithm.operating_point import prior_corrected
from fedhelp_core.config.federation import Federation, parse_federation
from fedhelp_core.data.given import prepared
from fedhelp_core.demo.tasks import drawn_task
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.tracking.carried import closure
from fedhelp_core.tracking.runs import Tracker
from fedhelp_core.tracking.server import tracking_uri
from tests.components.mlflow_serving import SERVE, serving

pytestmark = pytest.mark.slow
NETWORKS = {
    "melanoma": "resnet8", "pneumonia": "resnet8", "lung-segmentation": "unet2d-tiny", "brain-segmentation": "unet3d-tiny",
    "chest-findings": "resnet8", "brain-tumours": "unet3d-tiny"}
WITHOUT_FEDHELP = (  # an editable install is found by a finder of its own
    "import sys, json\n"
    "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in str(getattr(finder, '__module__', finder)).lower()\n"
    "                 and '__editable__' not in repr(finder)]\n"
    "try:\n    import fedhelp_core\n    raise SystemExit('FedHelp is installed: ' + fedhelp_core.__file__)\nexcept ModuleNotFoundError:\n    pass\n"
    "import numpy as np, mlflow\n")


def federation_of(task: str, folder: Path) -> Federation:
    """Of a preset, or of an example of the other forms."""
    drawn = drawn_task(task).task
    volumes = task.startswith("brain")
    document: dict[str, Any] = {
        "name": "use",
        "task": {**drawn, "image_size": 16, **({"volume": {"spacing": 12.0, "patch_size": 8, "window_size": 12}} if volumes else {})},
        "algorithm": {"method": "fedavg", "proxy_model": NETWORKS[task], "large_model": NETWORKS[task]}, "store": {"url": str(folder)},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},  # of its own, whatever MLflow has put into the environment meanwhile
        "silos": [{"name": "aachen", "dispatch": {"silo_config": "silo.yaml"}}]}
    return parse_federation(document, source="test")


def network_of(federation: Federation) -> torch.nn.Module:
    objective = objective_of(federation.task)
    point = None
    if federation.task.form == "labels":  # as common as in training: of one in ten, of two, of three
        point = objective.point_of([prior_corrected(shares, classes=2) for shares in objective.learnt_shares(
            [(1 + number) / 10 for number in range(objective.outputs)])])
    return objective.served(objective.build(federation.algorithm.proxy_model, torch.Generator().manual_seed(3)), point).eval()


class Registered(dict[str, Federation]):
    """Task -> federation with a registered model, made when it is asked for."""

    def __init__(self, make_folder: Callable[[str], Path]) -> None:
        self._make_folder = make_folder

    def __missing__(self, task: str) -> Federation:
        federation = federation_of(task, self._make_folder(task))
        Tracker.for_run(federation, "r").log_and_register_model(
            model_for_users(network_of(federation), federation.task, {"run": "r", "global_sha256": "00"}), name=task,
            tags={"fedhelp.run": "r", "fedhelp.global_sha256": "00"}, description="a model card")
        self[task] = federation
        return federation


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """Each in a registry of its own."""
    return Registered(tmp_path_factory.mktemp)


@pytest.fixture
def here() -> Iterator[None]:
    """MLflow's process-wide tracking URI is the test's own."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # documented in its code alone: back to the environment's
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


def in_another_process(program: str, federation: Federation, *arguments: str | Path, folder: Path) -> str:
    script = folder / "program.py"
    script.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, timeout=240, cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": tracking_uri(federation), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONPATH": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("task", [
    "pneumonia", "brain-segmentation", *(pytest.param(task, marks=pytest.mark.long) for task in ("melanoma", "lung-segmentation"))])
def test_it_answers_by_files_where_fedhelp_is_not_installed_and_prepares_them_as_training_does(
    task: str, registered: Registered, tmp_path: Path,
) -> None:
    federation = registered[task]
    raw = drawn_image(federation.task)
    suffix = ".nii.gz" if federation.task.dimensions == 3 else ".jpg"
    (tmp_path / f"image{suffix}").write_bytes(raw)
    in_another_process(
        WITHOUT_FEDHELP +
        f"model = mlflow.pyfunc.load_model('models:/{task}@candidate')\n"
        "raw = open(sys.argv[1], 'rb').read()\n"
        "answers = [model.predict([sys.argv[1]]), model.predict([raw]), model.predict([raw, sys.argv[1], raw])]\n"
        "assert [len(one) for one in answers] == [1, 1, 3]\n"
        "assert all((np.stack(one.iloc[:, 0].tolist()) == answers[0].iloc[0, 0]).all() for one in answers)\n"
        "import fedhelp_core\nassert fedhelp_core.__file__.endswith('preparation.zip/fedhelp_core/__init__.py'), fedhelp_core.__file__\n"
        "from fedhelp_core.data.given import prepared\n"
        "from fedhelp_core.config.task import TaskConfig, TaskConfig\n"
        "task = TaskConfig.model_validate(model.metadata.metadata['fedhelp']['task'])\n"
        "np.savez(sys.argv[2], prepared=prepared(raw, task), columns=list(answers[0].columns),\n"
        "         answers=np.stack([np.stack(answers[0][name].tolist()) for name in answers[0].columns], axis=1))\n",
        federation, tmp_path / f"image{suffix}", tmp_path / "found.npz", folder=tmp_path)
    found = np.load(tmp_path / "found.npz")
    expected = prepared(raw, federation.task)
    assert np.array_equal(found["prepared"], expected)
    with torch.inference_mode():
        probabilities = network_of(federation)(torch.from_numpy(expected[None]).float()).numpy()
    assert found["columns"].tolist() == list(federation.task.answered)
    if not federation.task.per_pixel:
        np.testing.assert_allclose(found["answers"], probabilities, atol=1e-6)
    elif federation.task.form == "regions":
        assert found["answers"].shape == probabilities.shape and (found["answers"] == (probabilities > 0.5)).mean() > 0.999
    else:
        assert (found["answers"][:, 0] == (probabilities[:, 1] > 0.5)).mean() > 0.999


def test_its_signature_example_card_and_metadata_say_what_it_is(registered: Registered, here: None) -> None:
    import mlflow

    for task in ("pneumonia", "lung-segmentation"):
        federation = registered[task]
        mlflow.set_tracking_uri(tracking_uri(federation))
        info = mlflow.models.get_model_info(f"models:/{task}@candidate")
        assert info.signature.outputs.input_names() == (["normal", "pneumonia"] if task == "pneumonia" else ["lung"])
        assert [column.type.name for column in info.signature.inputs.inputs] == ["binary"]
        noted = info.metadata["fedhelp"]
        assert noted["task"]["classes"] == list(federation.task.classes) and "shorter side 16" in noted["preprocessing"]
        model = mlflow.pyfunc.load_model(f"models:/{task}@candidate")
        assert base64.b64decode(model.input_example[0]) == drawn_image(federation.task)
        assert len(np.unique(prepared(drawn_image(federation.task), federation.task))) > 50, "a picture, not zeros"
        version = mlflow.MlflowClient().get_model_version_by_alias(task, "candidate")
        assert version.description == "a model card"
    assert [param.name for param in info.signature.params] == ["probabilities"]
    answers = model.predict([drawn_image(federation.task)], params={"probabilities": True})
    assert list(answers.columns) == ["lung", "lung probability"]
    assert ((answers["lung probability"][0] > 0.5) == answers["lung"][0]).all()


def test_findings_and_regions_are_named_in_the_signature_and_in_the_answers(registered: Registered, here: None) -> None:
    import mlflow

    for task in ("chest-findings", "brain-tumours"):
        federation = registered[task]
        mlflow.set_tracking_uri(tracking_uri(federation))
        info = mlflow.models.get_model_info(f"models:/{task}@candidate")
        names = list(federation.task.classes)
        assert info.signature.outputs.input_names() == names and len(names) > 2
        answers = mlflow.pyfunc.load_model(f"models:/{task}@candidate").predict([drawn_image(federation.task)])
        assert list(answers.columns) == names
        if task == "chest-findings":
            assert [column.type.name for column in info.signature.outputs.inputs] == ["float"] * len(names)
            assert not info.signature.params and ((answers.to_numpy() > 0) & (answers.to_numpy() < 1)).all()
        else:
            assert [param.name for param in info.signature.params] == ["probabilities"]
            assert all(set(np.unique(answers[name][0])) <= {0, 1} and answers[name][0].shape == (16,) * 3 for name in names)


def test_arrays_are_answered_as_their_files_and_what_cannot_be_right_is_refused(registered: Registered, here: None) -> None:
    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(tracking_uri(registered["pneumonia"]))
    model = mlflow.pyfunc.load_model("models:/pneumonia@candidate")
    pixels = np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    by_file = model.predict([file.getvalue()])
    tables = [pd.DataFrame({"image": [given]}) for given in (pixels, file.getvalue())]
    for given in (pixels, pixels[None], np.stack([pixels, pixels]), pixels.astype(np.float32), [pixels], *tables):
        assert (model.predict(given).to_numpy() == by_file.to_numpy()).all()
    assert by_file.to_numpy().sum() == pytest.approx(1, abs=1e-6)
    for wrong, says in ((pixels / 255, "do not divide by 255"), (pixels.transpose(2, 0, 1), "channels last"),
                        (["/nowhere.png"], "no such image file"), (np.full((40, 60, 3), np.nan), "NaN"), ([], "at least one expected")):
        with pytest.raises(mlflow.exceptions.MlflowException, match=says) as refusal:
            model.predict(wrong)
        assert "\n" not in str(refusal.value)


def test_a_fedhelp_that_prepares_otherwise_is_refused_where_it_is_installed(
    registered: Registered, here: None, monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri(registered["pneumonia"]))
    monkeypatch.setattr("fedhelp_core.data.decode.preprocessing", lambda size: f"in another way, {size}")
    with pytest.raises(mlflow.exceptions.MlflowException, match="installed here prepares images as 'in another way, 16'"):
        mlflow.pyfunc.load_model("models:/pneumonia@candidate")


def test_it_carries_what_prepares_images_and_nothing_of_hospitals_stores_or_the_hub() -> None:
    carried = closure(["fedhelp_core.data.given"])
    assert {name.split(".")[1] for name in carried if "." in name} == {
        "budget", "child", "config", "data", "errors", "lean_monai", "printable", "registry"}
    assert sum(file.stat().st_size for file in carried.values()) < 200_000


@pytest.fixture
def served(registered: Registered, tmp_path: Path) -> Iterator[str]:
    """The address of MLflow's own server with the pneumonia model."""
    with serving(SERVE.format(uri="models:/pneumonia@candidate"), tracking_uri(registered["pneumonia"]), tmp_path) as port:
        yield f"http://127.0.0.1:{port}/invocations"


def asked(url: str, payload: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as e:
        with e:
            return e.code, json.load(e)


@pytest.mark.long
def test_mlflows_own_server_answers_by_bytes_and_arrays_refuses_in_a_sentence_and_opens_no_file(
    served: str, registered: Registered, tmp_path: Path,
) -> None:
    federation = registered["pneumonia"]
    raw = drawn_image(federation.task)
    coded = base64.b64encode(raw).decode()
    status, by_bytes = asked(served, {"inputs": [coded, coded]})
    assert status == 200 and [list(row) for row in by_bytes["predictions"]] == [["normal", "pneumonia"]] * 2
    with torch.inference_mode():
        expected = network_of(federation)(torch.from_numpy(prepared(raw, federation.task)[None]).float())[0].tolist()
    assert list(by_bytes["predictions"][0].values()) == pytest.approx(expected, abs=1e-5)
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3))
    status, by_array = asked(served, {"inputs": pixels.tolist()})
    assert status == 200 and len(by_array["predictions"]) == 1
    status, refused = asked(served, {"inputs": (pixels / 255).tolist()})
    assert status == 400 and "do not divide by 255" in refused["message"]
    (tmp_path / "secret.jpg").write_bytes(raw)
    status, refused = asked(served, {"inputs": [str(tmp_path / "secret.jpg")]})
    assert status == 400 and "base64 expected" in refused["message"]
