"""Images as users hand them over: files and raw arrays come out as training prepares them, bit for bit; what cannot be right is one sentence."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.given import images_in, prepared
from fedhelp_core.data.items import Item
from fedhelp_core.data.reading import read_examples
from fedhelp_core.data.unusable import Unusable

COLOUR = TaskConfig(name="melanoma", image_size=16)
GREY = TaskConfig(name="lung-segmentation", image_size=16)
RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (40, 50, 3), np.uint8)
DEEP = RNG.integers(0, 4096, (40, 50), np.uint16)


def file_of(pixels: np.ndarray[Any, Any], suffix: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"png": "PNG", "jpg": "JPEG"}[suffix], **options)
    return file.getvalue()


def trained_on(raw: bytes, task: TaskConfig, folder: Path) -> np.ndarray[Any, Any]:
    """What training makes of the file."""
    path, mask = folder / "picture.png", folder / "mask.png"
    path.write_bytes(raw)
    height, width = np.asarray(Image.open(io.BytesIO(raw))).shape[:2]
    marked = np.zeros((height, width), np.uint8)
    marked[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1
    Image.fromarray(marked).save(mask)
    (example,) = read_examples([Item(path, label=0, mask=mask if task == GREY else None)], task)
    assert not example.problem and example.image_CHW is not None
    return example.image_CHW


PNG, JPEG, DEEP_PNG = file_of(PIXELS), file_of(PIXELS, "jpg"), file_of(DEEP)
GREY_PNG = file_of(PIXELS[..., 0])


@pytest.mark.parametrize(("raw", "array", "task"), [
    pytest.param(PNG, PIXELS, COLOUR, id="colour"),
    pytest.param(JPEG, None, COLOUR, id="JPEG"),
    pytest.param(GREY_PNG, PIXELS[..., 0], COLOUR, id="grey shown as colour"),
    pytest.param(GREY_PNG, PIXELS[..., :1], GREY, id="grey"),
    pytest.param(file_of(np.repeat(PIXELS[..., :1], 3, 2)), np.repeat(PIXELS[..., :1], 3, 2), GREY, id="grey in three channels"),
    pytest.param(DEEP_PNG, DEEP, GREY, id="16 bits"),
    pytest.param(DEEP_PNG, DEEP.astype(np.float64), COLOUR, id="16 bits as float, shown as colour"),
    pytest.param(PNG, PIXELS.astype(np.float32), COLOUR, id="float of 0 to 255"),
    pytest.param(PNG, PIXELS.astype(np.int64).tolist(), COLOUR, id="lists of numbers, as JSON has them"),
])
def test_files_paths_bytes_base64_and_arrays_are_prepared_as_training_does(raw: bytes, array: Any, task: TaskConfig, tmp_path: Path) -> None:
    expected = trained_on(raw, task, tmp_path)
    path = tmp_path / "one.png"
    path.write_bytes(raw)
    coded = base64.b64encode(raw).decode()
    for given in (raw, path, str(path), f"data:image/png;base64,{coded}", *([] if array is None else [array])):
        assert np.array_equal(prepared(given, task), expected)
    assert np.array_equal(prepared(coded, task, paths=False), expected)


REFUSED: dict[str, tuple[Any, TaskConfig, str]] = {
    "0 to 1": (PIXELS / 255, COLOUR, "values from 0 to 1; do not divide by 255"),
    "float32 of 0 to 1": ((PIXELS / 255).astype(np.float32), COLOUR, "do not divide by 255"),
    "0 to 1 cast to whole numbers": ((PIXELS / 255).astype(np.uint8), COLOUR, "do not divide by 255"),
    "all black": (np.zeros((40, 50, 3), np.uint8), COLOUR, "values from 0 to 0"),
    "-1 to 1": (PIXELS / 127.5 - 1, COLOUR, "values from -1 on; give the file's own pixels"),
    "standardised": ((PIXELS - 127.0) / 64, COLOUR, "not scaled or centred"),
    "NaN": (np.where(PIXELS > 250, np.nan, PIXELS), COLOUR, "NaN or infinite"),
    "infinity": (np.where(PIXELS > 250, np.inf, PIXELS), COLOUR, "NaN or infinite"),
    "channels first": (PIXELS.transpose(2, 0, 1), COLOUR, "channels last expected .* got 3 x 40 x 50"),
    "two channels": (PIXELS[..., :2], COLOUR, "H x W x 3 .* got 40 x 50 x 2"),
    "four channels": (np.concatenate([PIXELS, PIXELS[..., :1]], 2), COLOUR, "got 40 x 50 x 4"),
    "one number": (np.float32(3), COLOUR, "expected, got a number"),
    "a row": (np.arange(50), COLOUR, "expected, got 50"),
    "five dimensions": (np.zeros((1, 1, 40, 50, 3)), COLOUR, "got 1 x 1 x 40 x 50 x 3"),
    "a stamp": (PIXELS[:4, :4], COLOUR, "sides of at least 8"),
    "nothing": (PIXELS[:0], COLOUR, "sides of at least 8"),
    "truth values": (PIXELS > 100, COLOUR, "got bool"),
    "complex": (PIXELS * 1j, COLOUR, "got complex128"),
    "texts": (np.full((40, 50), "a"), COLOUR, "got <U1"),
    "16 bits of colour": (PIXELS.astype(np.uint16) * 200, COLOUR, "16-bit pixels are read of grey pictures alone"),
    "more than 16 bits": (DEEP.astype(np.int64) * 1000, GREY, "up to 65535"),
    "fractions above 255": (DEEP / 3, GREY, "whole numbers up to 65535"),
    "colour for a grey task": (PIXELS, GREY, "is a colour picture"),
    "lists of different lengths": ([[1, 2], [3]], COLOUR, "lists of different lengths"),
    "no such file": ("/nowhere/picture.png", COLOUR, "no such image file"),
    "a folder": ("/", COLOUR, "cannot be read as an image"),
    "a text with a zero byte": ("a\0b", COLOUR, "zero byte"),
    "no picture": (b"hello", COLOUR, "neither JPEG nor PNG"),
    "no bytes": (b"", COLOUR, "no bytes in it"),
    "half a picture": (PNG[:900], COLOUR, "damaged or cut"),
    "a pickle": (b"\x80\x04\x95", COLOUR, "neither JPEG nor PNG"),
    "a colour file for a grey task": (PNG, GREY, "is a colour picture"),
    "no base64": ("data:image/png;base64,***", COLOUR, "base64 expected"),
}


@pytest.mark.parametrize(("given", "task", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_right_is_one_sentence(given: Any, task: TaskConfig, says: str) -> None:
    with pytest.raises(Unusable, match=says) as refusal:
        prepared(given, task, "image 0")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


def test_a_server_opens_none_of_its_files_for_whoever_asks(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(PNG)
    with pytest.raises(Unusable, match="base64 expected"):
        prepared(str(path), COLOUR, paths=False)


class Table:
    """What a pandas.DataFrame looks like."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns = list(columns)
        self._first = next(iter(columns.values()))
        self.iloc = self

    def __getitem__(self, _place: Any) -> list[Any]:
        return self._first


@pytest.mark.parametrize(("given", "task", "count"), [
    pytest.param(PNG, COLOUR, 1, id="one file"),
    pytest.param("a.png", COLOUR, 1, id="one path"),
    pytest.param(["a.png", Path("b.png"), PNG], COLOUR, 3, id="a list"),
    pytest.param(PIXELS, COLOUR, 1, id="one picture"),
    pytest.param(np.stack([PIXELS] * 4), COLOUR, 4, id="a batch"),
    pytest.param([PIXELS, PIXELS[:20]], COLOUR, 2, id="arrays of two sizes"),
    pytest.param(PIXELS.tolist(), COLOUR, 1, id="one as lists"),
    pytest.param([PIXELS.tolist()] * 3, COLOUR, 3, id="three as lists"),
    pytest.param(np.stack([DEEP] * 5), GREY, 5, id="a batch of grey ones"),
    pytest.param(DEEP, GREY, 1, id="one grey one"),
    pytest.param(np.array(["a.png", "b.png"]), COLOUR, 2, id="texts in an array, as MLflow's server has them"),
    pytest.param(Table(image=[PNG, PNG]), COLOUR, 2, id="a table"),
    pytest.param([], COLOUR, 0, id="none"),
    pytest.param({"voxels": 1, "spacing": 1}, TaskConfig(name="brain-segmentation", image_size=64), 1, id="one volume"),
])
def test_single_images_are_told_from_batches(given: Any, task: TaskConfig, count: int) -> None:
    assert len(images_in(given, task)) == count


def test_a_table_with_two_columns_is_refused() -> None:
    with pytest.raises(Unusable, match="one column expected, got image, label"):
        images_in(Table(image=[PNG], label=[1]), COLOUR)


@pytest.mark.slow
class TestVolumes:
    TASK = TaskConfig.model_validate({
        "name": "brain-segmentation", "image_size": 16, "volume": {"spacing": 4.0, "patch_size": 16, "window_size": 16}})
    VOXELS = np.random.default_rng(7).integers(0, 900, (24, 20, 18), np.int16)

    def nifti(self, folder: Path, affine: np.ndarray[Any, Any], name: str = "volume.nii.gz") -> Path:
        from fedhelp_core.data.phantom.fed_ixi import save_volume

        save_volume(self.VOXELS, affine, folder / name)
        return folder / name

    def test_files_bytes_and_arrays_are_prepared_as_training_does(self, tmp_path: Path) -> None:
        affine = np.diag([-2.5, 3.0, 2.0, 1.0])
        path = self.nifti(tmp_path, affine)
        mask = tmp_path / "mask.nii.gz"
        from fedhelp_core.data.phantom.fed_ixi import save_volume

        save_volume((self.VOXELS > 300).astype(np.uint8), affine, mask)
        (example,) = read_examples([Item(path, mask=mask)], self.TASK)
        assert not example.problem
        for given in (path, str(path), path.read_bytes(), {"voxels": self.VOXELS, "affine": affine}):
            assert np.array_equal(prepared(given, self.TASK), np.asarray(example.image_CHW))
        positive = self.nifti(tmp_path, np.diag([2.5, 3.0, 2.0, 1.0]), "positive.nii")
        assert np.array_equal(
            prepared({"voxels": self.VOXELS.tolist(), "spacing": [2.5, 3.0, 2.0]}, self.TASK), prepared(positive.read_bytes(), self.TASK))

    @pytest.mark.parametrize(("given", "says"), [
        (VOXELS, "an array alone, whose voxels' size nobody knows"),
        ({"voxels": VOXELS}, "got voxels"),
        ({"voxels": VOXELS, "spacing": -1.0}, "a spacing above 0 mm expected, got -1"),
        ({"voxels": VOXELS, "spacing": [1.0, 2.0]}, "a spacing of 1 or 3, expected, got 2 of float64"),
        ({"voxels": VOXELS, "spacing": "1 mm"}, "a spacing of 1 or 3"),
        ({"voxels": VOXELS, "affine": np.eye(3)}, "got 3 x 3"),
        ({"voxels": VOXELS, "affine": np.zeros((4, 4))}, "cannot be inverted"),
        ({"voxels": VOXELS, "spacing": 400.0}, "its voxels are"),
        ({"voxels": VOXELS[0], "spacing": 1.0}, "got 20 x 18 of int16"),
        ({"voxels": np.where(VOXELS > 800, np.nan, VOXELS), "spacing": 2.0}, "NaN or infinite"),
        ({"voxels": np.full((24, 20, 18), 7), "spacing": 2.0}, "every voxel is 7"),
        (b"hello", "image 0: cannot be read as NIfTI"),
        ("/nowhere/volume.nii.gz", "no such volume")])
    def test_what_cannot_be_right_is_one_sentence(self, given: Any, says: str) -> None:
        with pytest.raises(Unusable, match=says) as refusal:
            prepared(given, self.TASK, "image 0")
        assert "\n" not in str(refusal.value)

    def test_sequences_are_the_last_axis_of_an_array_as_of_a_file(self, tmp_path: Path) -> None:
        import nibabel

        task = TaskConfig.model_validate({
            "name": "two", "form": "regions", "dimensions": 3, "channels": 2, "classes": ["one"], "mask_values": [[1]], "image_size": 16,
            "volume": {"spacing": 4.0, "patch_size": 16, "window_size": 16}})
        both, affine = np.stack([self.VOXELS, self.VOXELS[::-1]], axis=-1), np.diag([2.5, 3.0, 2.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(both, affine), tmp_path / "both.nii.gz")
        expected = prepared(tmp_path / "both.nii.gz", task)
        assert expected.shape == (2, 16, 16, 16) and not np.array_equal(expected[0], expected[1])
        assert np.array_equal(prepared({"voxels": both, "spacing": [2.5, 3.0, 2.0]}, task), expected)
        for voxels, says in (
                (self.VOXELS, "X x Y x Z x 2 numbers of at most"), (np.stack([self.VOXELS] * 3, axis=-1), "X x Y x Z x 2 numbers"),
                (np.moveaxis(both, -1, 0), "sequences last expected .X x Y x Z x 2., got 2 x 24")):
            with pytest.raises(Unusable, match=says):
                prepared({"voxels": voxels, "spacing": 2.0}, task)
        assert np.array_equal(
            prepared({"voxels": self.VOXELS[..., None], "spacing": 2.0}, self.TASK), prepared({"voxels": self.VOXELS, "spacing": 2.0}, self.TASK))
