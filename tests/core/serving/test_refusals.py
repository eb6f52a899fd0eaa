"""What is no question, or no image of the model's task, gets one sentence and 400; the next question is answered."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.core.data.writers import write_nifti, write_series
from tests.core.deployment.models import hospital
from tests.core.deployment.test_images_in import head, picture
from tests.core.serving.process import Served, files, numbers, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

GREY = np.full((1, 20, 20), 7, np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (1, 20, 20, 3), np.uint8)
PNG = b"\x89PNG\r\n\x1a\n"


def tensor(**changes: Any) -> dict[str, Any]:
    return numbers("pixels", "UINT8", COLOURS) | changes


def in_base64(*raw: bytes) -> dict[str, Any]:
    return {"name": "files", "datatype": "BYTES", "shape": [len(raw)], "data": [base64.b64encode(one).decode() for one in raw]}


BODIES: dict[str, tuple[Any, str]] = {
    "no JSON": (b"\xff\xfe", "JSON expected"),
    "nesting without end": (b"[" * 200_000, "JSON expected"),
    "a list": ([], "an object with a list `inputs` expected"),
    "no inputs": ({"inputs": []}, "an object with a list `inputs` expected"),
    "an input without a name": ({"inputs": [{"datatype": "UINT8"}]}, "objects with name, datatype, shape and data expected"),
    "an unknown datatype": ({"inputs": [tensor(datatype="uint8")]}, "BYTES or one of BOOL, UINT8"),
    "a datatype that is a list": ({"inputs": [tensor(datatype=["UINT8"])]}, "BYTES or one of BOOL, UINT8"),
    "a shape with -1": ({"inputs": [tensor(shape=[-1, 20, 20, 3])]}, "a list of positive whole numbers expected"),
    "a shape of another size": ({"inputs": [tensor(shape=[1, 20, 21, 3])]}, "shape 1 x 20 x 21 x 3 has 1,260 elements, data has 1,200"),
    "data of texts": ({"inputs": [tensor(data=["a"] * 1200)]}, "whole numbers expected for UINT8"),
    "data of different lengths": ({"inputs": [tensor(data=[[1], [1, 2]])]}, "lists of equal lengths expected"),
    "numbers beyond the datatype": ({"inputs": [tensor(data=[256] * 1200)]}, "numbers that UINT8 holds expected, got 256 to 256"),
    "numbers beyond all": ({"inputs": [tensor(data=[10**400] * 1200)]}, "whole numbers expected"),
    "halves as whole numbers": ({"inputs": [tensor(data=[0.5] * 1200)]}, "whole numbers expected for UINT8, got float64"),
    "no data": ({"inputs": [tensor(data=None)]}, "a list expected, got None"),
    "an input of another name": ({"inputs": [tensor(name="x")]}, "files (BYTES), or pixels (numbers) expected, got x"),
    "files and pixels": ({"inputs": [tensor(), in_base64(PNG)]}, "files (BYTES), or pixels (numbers) expected"),
    "an input twice": ({"inputs": [tensor(), tensor()]}, "'pixels' is there twice"),
    "files as numbers": ({"inputs": [tensor(name="files")]}, "datatype BYTES expected, got UINT8"),
    "pixels as files": ({"inputs": [in_base64(PNG) | {"name": "pixels"}]}, "datatype UINT8, UINT16 or FP32 expected, got BYTES"),
    "an unknown output": ({"inputs": [tensor()], "outputs": [{"name": "logits"}]}, "'logits' is none of this model's"),
    "an id without end": ({"inputs": [tensor()], "id": "x" * 2000}, "a text of at most 1000 characters expected"),
    "binary data that is not there": (
        {"inputs": [tensor(data=None, parameters={"binary_data_size": 1200})]}, "at most the 0 bytes that are left expected"),
    "channels first": ({"inputs": [numbers("pixels", "UINT8", COLOURS.transpose(0, 3, 1, 2))]}, "channels last expected"),
    "two channels": ({"inputs": [numbers("pixels", "UINT8", COLOURS[..., :2])]}, "H x W x 3 (RGB) expected, got 20 x 20 x 2"),
    "pixels in 0..1": ({"inputs": [numbers("pixels", "FP32", COLOURS / 255)]}, "do not divide by 255"),
    "negative pixels": ({"inputs": [numbers("pixels", "FP32", COLOURS.astype(float) - 128)]}, "not scaled or centred ones"),
    "NaN": ({"inputs": [tensor(datatype="FP32", data=[float("nan")] * 1200)]}, "holds NaN or infinite pixels"),
    "too large for its datatype": ({"inputs": [tensor(datatype="FP32", data=[1e300] * 1200)]}, "holds NaN or infinite pixels"),
    "truth instead of pixels": ({"inputs": [tensor(datatype="BOOL", data=[True] * 1200)]}, "uint8, uint16 or float expected, got bool"),
    "16-bit colours": ({"inputs": [numbers("pixels", "UINT16", COLOURS.astype(np.uint16) * 100)]}, "16-bit pixels are read of grey pictures alone"),
    "four pixels": ({"inputs": [numbers("pixels", "UINT8", COLOURS[:, :2, :2])]}, "sides of at least 8"),
    "an image without the images' dimension": ({"inputs": [numbers("pixels", "UINT8", GREY[0])]}, "images x H x W, or images x H x W x C expected"),
    "voxels": ({"inputs": [numbers("voxels", "UINT8", COLOURS)]}, "files (BYTES), or pixels (numbers) expected, got voxels"),
    "no base64": ({"inputs": [in_base64(PNG) | {"data": ["/etc/passwd"]}]}, "a file's bytes in base64 expected, got '/etc/passwd'"),
    "files that are numbers": ({"inputs": [in_base64(PNG) | {"data": [7]}]}, "texts expected, each a file's bytes in base64"),
    "an empty file": ({"inputs": [in_base64(b"")]}, "input 'files', image 0: cannot be read as an image"),
    "a truncated picture": ({"inputs": [in_base64(PNG)]}, "input 'files', image 0: cannot be read as an image"),
    "a DICOM file that ends": ({"inputs": [in_base64(b"\0" * 128 + b"DICM")]}, "input 'files', image 0: "),
    "a NIfTI volume": ({"inputs": [in_base64(b"\x1f\x8b\x08")]}, "cannot be read as an image (is a gzip file"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(hospital(tmp_path_factory.mktemp("here")), "--max-mebibytes", "1") as running:
        yield running


def refused(said: httpx.Response, status: int, *parts: str) -> None:
    assert said.status_code == status, said.text
    [error] = said.json().values()
    for part in parts:
        assert part in error, error
    assert "\n" not in error and "Traceback" not in error and "/tmp/" not in error


@pytest.mark.parametrize("what", BODIES)
def test_bad_input_is_one_sentence(what: str, server: Served) -> None:
    body, sentence = BODIES[what]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    refused(server.client.post("/v2/models/chest/infer", content=content), 400, sentence)
    assert len(server.answer(tensor())["class"]) == 1


def test_binary_data_that_does_not_fit_is_one_sentence(server: Served) -> None:
    def asked(header: dict[str, Any], rest: bytes, length: str | None = None) -> httpx.Response:
        said = json.dumps({"inputs": [header]}).encode()
        return server.client.post("/v2/models/chest/infer", content=said + rest, headers={
            "Inference-Header-Content-Length": str(len(said)) if length is None else length})

    def sized(size: int, **more: Any) -> dict[str, Any]:
        return {"name": "pixels", "datatype": "UINT8", "shape": [1, 20, 20, 3], "parameters": {"binary_data_size": size}} | more

    assert asked(sized(1200), COLOURS.tobytes()).status_code == 200
    refused(asked(sized(1200), COLOURS.tobytes(), "-1"), 400, "bytes of JSON at the body's start expected")
    refused(asked(sized(1200), COLOURS.tobytes(), "9" * 30), 400, "bytes of JSON at the body's start expected")
    refused(asked(sized(1200), COLOURS.tobytes() + b"x"), 400, "1 bytes after the last tensor")
    refused(asked(sized(600), COLOURS.tobytes()[:600]), 400, "1,200 bytes of UINT8 expected for its shape, got 600")
    refused(asked(sized(2**70), b""), 400, "at most the 0 bytes that are left expected")
    refused(asked(sized(6, name="files", datatype="BYTES", shape=[1]), b"\xff\0\0\0ab"), 400, "ends amid an element")
    refused(asked(sized(6, parameters=[]), b""), 400, "parameters: an object expected")


def test_too_much_is_refused_before_it_is_read(server: Served) -> None:
    refused(server.client.post("/v2/models/chest/infer", content=b"x" * (2**20 + 1)), 413, "at most 1,048,576 bytes expected")
    refused(server.client.post("/v2/models/chest/infer", content=(b"x" * 2**16 for _ in range(32))), 413, "at most 1,048,576 bytes expected")
    refused(server.client.post("/v2/models/chest/infer", content=b"x", headers={"Content-Encoding": "gzip"}), 400, "without compression expected")
    refused(server.client.get("/v2/models/chest/infer"), 405, "Method Not Allowed")
    refused(server.client.get("/nothing"), 404, "Not Found")
    metrics = server.client.get("/metrics").text
    assert 'fedhelp_serving_requests_total{outcome="size"} 2.0' in metrics


def test_one_bad_image_is_named_by_its_number(tmp_path: Path, server: Served) -> None:
    good = picture(tmp_path / "a.png").read_bytes()
    refused(server.infer(in_base64(good, PNG)), 400, "input 'files', image 1: cannot be read")


def test_volumes_without_a_place_of_other_sizes_or_that_are_pictures_are_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", head())
    write_nifti(tmp_path / "b.nii.gz", head()[:20])
    write_series(tmp_path / "series", head(), np.diag([2.0, 2, 3, 1]))
    one_slice = next((tmp_path / "series").iterdir())
    damaged = (tmp_path / "a.nii.gz").read_bytes()[:-200]
    voxels = numbers("voxels", "INT16", head()[None])
    with served(hospital(tmp_path / "here", "brain-segmentation")) as server:
        refused(server.infer(voxels), 400, "voxels (numbers) with affine or spacing expected")
        both = numbers("spacing", "FP64", np.ones(3)), numbers("affine", "FP64", np.eye(4))
        refused(server.infer(voxels, *both), 400, "with affine or spacing expected")
        refused(server.infer(voxels, numbers("affine", "FP64", np.zeros((4, 4)))), 400, "input 'voxels', image 0")
        refused(server.infer(voxels, numbers("affine", "FP64", np.eye(3))), 400, "an affine of 4 x 4 numbers")
        refused(server.infer(voxels, numbers("affine", "FP64", np.full((4, 4), 1e300))), 400, "input 'voxels', image 0")
        refused(server.infer(numbers("voxels", "INT16", head())), 400, "voxels (numbers) with affine or spacing expected")
        refused(server.infer(numbers("voxels", "INT16", head()), numbers("spacing", "FP64", np.ones(3))), 400, "images x X x Y x Z expected")
        refused(server.infer(numbers("pixels", "UINT8", GREY)), 400, "voxels (numbers) with affine or spacing expected")
        refused(server.infer(files(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")), 400, "images of one size expected", "ask about them one by one")
        refused(server.infer(in_base64(damaged)), 400, "input 'files', image 0")
        refused(server.infer(files(picture(tmp_path / "a.png"))), 400, "input 'files', image 0")
        assert server.infer(files(one_slice)).status_code == 400, "one slice is no volume"
        assert server.infer(files(tmp_path / "a.nii.gz")).status_code == 200
