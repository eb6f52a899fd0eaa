"""A served model gives the answers of `fedhelp predict`, to the last bit, in both of the protocol's encodings, however many ask at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fedhelp_cli.main import main
from tests.core.data.writers import write_nifti
from tests.core.deployment.models import Hospital, hospital
from tests.core.deployment.test_images_in import head, picture, xray
from tests.core.serving.process import Served, files, numbers, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def predicted(here: Hospital, *images: Path, out: Path) -> list[dict[str, Any]]:
    """Rows of results.json."""
    done = CliRunner().invoke(main, ["predict", *map(str, images), "--silo", str(here.silo), "--out", str(out), "--no-pictures", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    answers: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["answers"]
    return answers


def same_classes(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    classes = found["class_names"]
    assert [row["decision"] for row in rows] == found["decision"] and [row["class"] for row in rows] == found["class"]
    assert [row["sha256"] for row in rows] == found["sha256"] and [row["margin"] for row in rows] == found["margin"]
    for field in ("probabilities", "model_probabilities"):
        assert [row[field][name] for row in rows for name in classes] == found[field], "to the last bit"


def test_classes_are_predicts_to_the_last_bit_alone_and_with_many_others_at_once(tmp_path: Path) -> None:
    here = hospital(tmp_path / "here", undecided_margin=0.01)
    images = [picture(tmp_path / "in" / f"{number:02d}.{ending}", size=(40 + number, 30), seed=number)
              for number, ending in enumerate(["png", "jpg"] * 8)]
    rows = predicted(here, *images, out=tmp_path / "out")
    assert {row["decision"] for row in rows} > {"do not decide"}, "some are decided, some are not"
    with served(here) as server:
        same_classes(server.answer(files(*images)), rows)
        with ThreadPoolExecutor(16) as pool:
            for found, row in zip(pool.map(lambda image: server.answer(files(image)), images * 4), rows * 4, strict=True):
                same_classes(found, [row])
        pixels = [np.asarray(Image.open(image).convert("RGB")) for image in images[::2]]
        for array, row in zip(pixels, rows[::2], strict=True):
            for dtype, name in (("UINT8", np.uint8), ("FP32", np.float32)):
                found = server.answer(numbers("pixels", dtype, array[None].astype(name)))
                assert found["probabilities"] == list(row["probabilities"].values()) and found["sha256"] != [row["sha256"]]


def test_sixteen_bit_pictures_and_dicom_images_are_predicts_too(tmp_path: Path) -> None:
    here = hospital(tmp_path / "here", "lung-segmentation")
    here.put_in_use(2, version="4", pixel_bits=12)
    deep = np.random.default_rng(3).integers(0, 4096, (30, 41)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    shot = xray(tmp_path / "shot.dcm", np.random.default_rng(4).integers(0, 4096, (30, 41)).astype(np.uint16))
    rows = predicted(here, tmp_path / "deep.png", shot, out=tmp_path / "out")
    with served(here) as server:
        found = server.answer(files(tmp_path / "deep.png", shot))
        assert found["expected_dice"] == [row["expected_dice"] for row in rows] and found["sha256"] == [row["sha256"] for row in rows]
        masks = np.array(found["mask"], np.uint8).reshape(2, 30, 41)
        for mask, row in zip(masks, rows, strict=True):
            assert np.array_equal(mask * 255, np.asarray(Image.open(tmp_path / "out" / row["mask"])))
        assert server.answer(numbers("pixels", "UINT16", deep[None]))["mask"] == masks[0].reshape(-1).tolist()


def test_a_volumes_mask_is_predicts_on_its_own_voxels(tmp_path: Path) -> None:
    here = hospital(tmp_path / "here", "brain-segmentation", undecided_dice=0.0)
    affine = np.array([[-2.0, 0, 0, 40], [0, -2, 0, 50], [0, 0, 3, -30], [0, 0, 0, 1]])
    path = tmp_path / "head.nii.gz"
    write_nifti(path, head(), affine)
    [row] = predicted(here, path, out=tmp_path / "out")
    expected = np.asarray(nibabel.load(tmp_path / "out" / row["mask"]).dataobj)
    assert expected.any() and not expected.all()
    with served(here) as server:
        for inputs in ([files(path)], [numbers("voxels", "INT16", head()[None]), numbers("affine", "FP64", affine)]):
            found = server.answer(*inputs)
            assert np.array_equal(np.array(found["mask"]).reshape(expected.shape), expected)
            assert found["expected_dice"] == [row["expected_dice"]] and found["millilitres"] == [row["millilitres"]]
            assert found["decision"] == ["brain"] and np.array(found["affine"]).reshape(4, 4) == pytest.approx(affine)
        assert server.answer(numbers("voxels", "INT16", head()[None]), numbers("spacing", "FP64", np.array([2.0, 2, 3])))["foreground"]


def test_sequences_are_asked_about_as_a_file_or_as_the_last_axis_of_an_array(tmp_path: Path) -> None:
    both, affine = np.stack([head(), head()[::-1]], axis=-1), np.diag([2.0, 2.0, 3.0, 1.0])
    path = tmp_path / "both.nii.gz"
    nibabel.save(nibabel.Nifti1Image(both, affine), path)
    with served(hospital(tmp_path / "here", "brain-tumours", undecided_dice=0.0)) as server:
        [voxels] = [tensor for tensor in server.client.get("/v2/models/chest").json()["inputs"] if tensor["name"] == "voxels"]
        assert voxels["shape"] == [-1, -1, -1, -1, 2]
        of_file = server.answer(files(path))
        of_array = server.answer(numbers("voxels", "INT16", both[None]), numbers("affine", "FP64", affine))
        assert of_array["mask"] == of_file["mask"] and len(of_file["mask"]) == 2 * head().size
        one = server.infer(numbers("voxels", "INT16", head()[None]), numbers("affine", "FP64", affine))
        assert one.status_code == 400 and "images x X x Y x Z x 2 expected" in one.text


def binary(server: Served, image: bytes, **more: Any) -> tuple[dict[str, Any], bytes]:
    """JSON and binary data of the answer to a question in the binary extension."""
    element = len(image).to_bytes(4, "little") + image
    header = json.dumps({"inputs": [
        {"name": "files", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(element)}}], **more}).encode()
    said = server.client.post("/v2/models/chest/infer", content=header + element, headers={"Inference-Header-Content-Length": str(len(header))})
    assert said.status_code == 200, said.text
    length = int(said.headers["inference-header-content-length"])
    return json.loads(said.content[:length]), said.content[length:]


def test_binary_tensors_hold_the_same_as_json(tmp_path: Path) -> None:
    here, image = hospital(tmp_path / "here"), picture(tmp_path / "a.png")
    with served(here) as server:
        in_json = server.answer(files(image))
        said, data = binary(server, image.read_bytes(), parameters={"binary_data_output": True}, id="seven")
        assert said["id"] == "seven" and said["model_version"] == "3"
        at = 0
        for output in said["outputs"]:
            raw, at = data[at : at + output["parameters"]["binary_data_size"]], at + output["parameters"]["binary_data_size"]
            if output["datatype"] in ("FP32", "FP64"):
                found = np.frombuffer(raw, "<f4" if output["datatype"] == "FP32" else "<f8").tolist()
                assert found == in_json[output["name"]] and len(found) == np.prod(output["shape"])
            else:
                assert raw == b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in in_json[output["name"]])
        assert at == len(data)
        said, data = binary(server, image.read_bytes(), outputs=[
            {"name": "decision"}, {"name": "probabilities", "parameters": {"binary_data": True}}])
        assert [output["name"] for output in said["outputs"]] == ["decision", "probabilities"] and said["outputs"][0]["data"] == in_json["decision"]
        assert np.frombuffer(data, "<f8").tolist() == in_json["probabilities"]


@pytest.mark.parametrize("task", ["melanoma", "lung-segmentation", "brain-segmentation"])
def test_metadata_names_every_input_and_output_as_the_answers_have_them(task: str, tmp_path: Path) -> None:
    here = hospital(tmp_path / "here", task)
    if task == "brain-segmentation":
        write_nifti(image := tmp_path / "head.nii.gz", head())
    else:
        image = picture(tmp_path / "a.png", mode="RGB" if task == "melanoma" else "L")
    with served(here) as server:
        assert server.client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
        assert server.client.get("/v2/health/live").status_code == server.client.get("/v2/health/ready").status_code == 200
        assert server.client.get("/v2/models/chest/ready").json() == {"name": "chest", "ready": True}
        said = server.client.get("/v2/models/chest/versions/3").json()
        outputs = server.infer(files(image)).json()["outputs"]
        assert [(one["name"], one["datatype"]) for one in outputs] == [(one["name"], one["datatype"]) for one in said["outputs"]]
        for one, told in zip(outputs, said["outputs"], strict=True):
            assert len(one["shape"]) == len(told["shape"])
            assert all(side in (-1, real) for side, real in zip(told["shape"], one["shape"], strict=True))
        for path in ("/v2/models/other", "/v2/models/chest/versions/9"):
            said = server.client.get(path)
            assert said.status_code == 404 and "model 'chest' version '3' is served here" in said.json()["error"]
