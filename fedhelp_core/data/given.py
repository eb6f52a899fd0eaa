"""An image as somebody hands it over, prepared as training prepares files: a path, a file's bytes, or an array in raw units.

Files take the readers' own way. Arrays have no header that says what they are, so what cannot be right is refused instead of guessed: pixels scaled
to 0..1, channels first, NaN, a volume without its spacing. Called by the model in MLflow's registry, which carries this file and those that it
imports. Shapes: N images, C channels, S the network's side.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.budget import MOST_PIXELS, MOST_VOXELS
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data import decode, pictures
from fedhelp_core.data.grid import Volume, require_plausible
from fedhelp_core.data.picture_files import Picture, eight_bits, fitted
from fedhelp_core.data.unusable import Unusable

_LEAST_SIDE = 8  # pixels: fewer are no picture of a patient
_FOR_FILES = "a path, a file's bytes, or an array expected"


def images_in(given: Any, task: TaskConfig) -> list[Any]:
    """The single images of what was handed over: a list, a batch in one array, the one column of a table, or one image alone."""
    if hasattr(given, "columns") and hasattr(given, "iloc"):  # a table of pandas, which need not be installed
        if len(given.columns) != 1:
            raise Unusable(f"images: one column expected, got {', '.join(map(str, given.columns))[:80]}")
        return list(given.iloc[:, 0])
    if isinstance(given, str | bytes | Path | Mapping):
        return [given]
    if isinstance(given, Sequence) and not _is_nested_numbers(given):
        return list(given)
    array = np.asarray(given)
    if array.dtype.kind in "USO":  # texts, as MLflow's server has them
        return list(array.ravel())
    return [array] if array.ndim <= _sides_of_one(array.shape, task) else list(array)


def prepared(given: Any, task: TaskConfig, name: str = "the image", *, paths: bool = True) -> NDArray[np.uint8]:
    """What the network sees of one image: uint8 (C, S, S), or (C, S, S, S).

    Args:
        given: Path; bytes of a JPEG, PNG, NIfTI or multi-frame DICOM file, or such in base64; or an array: pictures (H, W), (H, W, 1) or (H, W, 3),
            volumes {"voxels": (X, Y, Z), "affine": (4, 4) to mm} or with "spacing" in mm for "affine"; of several sequences (X, Y, Z, C).
        task: The model's.
        name: What messages call it.
        paths: Whether a text may be a path; else it is base64, since a server must not open its own files for whoever asks.

    Raises:
        Unusable: it cannot be what the model was trained for; one sentence.
    """
    if isinstance(given, str) and "\0" in given:
        raise Unusable(f"{name}: {_FOR_FILES}, got a text with a zero byte in it")
    if isinstance(given, str):
        given = Path(given) if paths and not given.startswith("data:") else bytes_in(given, name)
    if task.dimensions == 3:
        return _volume(given, task, name)
    if isinstance(given, Path | bytes | bytearray):
        return _picture_file(given, task, name)
    return _fitted(picture_of(_array_in(given, name), name), task, name)


def _picture_file(given: Path | bytes | bytearray, task: TaskConfig, name: str) -> NDArray[np.uint8]:
    if isinstance(given, Path):
        from fedhelp_core.data.picture_files import read_file

        given, name = read_file(given), str(given)
    if task.channels == 1:
        example = pictures.read_image(bytes(given), Path(name), task.image_size)
        if example.problem or example.image_CHW is None:
            raise Unusable(example.problem)
        return example.image_CHW
    decoded = decode.decode_bytes(bytes(given), task.image_size, name)
    if decoded.problem or decoded.pixels_SSC is None:
        raise Unusable(decoded.problem)
    return decoded.pixels_SSC.transpose(2, 0, 1)


def _fitted(picture: Picture, task: TaskConfig, name: str) -> NDArray[np.uint8]:
    """As files of this picture are prepared."""
    if task.channels == 1:
        plain = eight_bits(pictures.grey(picture, name), None, name)
        return fitted(plain.convert("L"), task.image_size)[None]
    return decode.prepared(picture, task.image_size, name).transpose(2, 0, 1)


def picture_of(array: NDArray[Any], name: str) -> Picture:
    """An array of raw pixels as the file that holds the same.

    Raises:
        Unusable: it cannot be a picture in raw units.
    """
    shape = array.shape
    said = " x ".join(map(str, shape))
    if array.ndim == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3):
        raise Unusable(f"{name}: channels last expected (H x W x 3), got {said}; transpose it")
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] != 3):
        raise Unusable(f"{name}: a picture of H x W (grey), H x W x 1 or H x W x 3 (RGB) expected, got {said or 'a number'}")
    if min(array.shape[:2]) < _LEAST_SIDE or array.shape[0] * array.shape[1] > MOST_PIXELS:
        raise Unusable(f"{name}: sides of at least {_LEAST_SIDE} and at most {MOST_PIXELS:,} pixels in all expected, got {said}")
    return Picture(Image.fromarray(_raw_pixels(array, name)))


def _raw_pixels(array: NDArray[Any], name: str) -> NDArray[Any]:
    """uint8, or uint16 of grey."""
    if array.dtype.kind not in "fui":
        raise Unusable(f"{name}: pixels as uint8, uint16 or float expected, got {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Unusable(f"{name}: holds NaN or infinite pixels")
    least, most = float(array.min()), float(array.max())
    if least < 0:
        raise Unusable(f"{name}: pixels of 0 to 255 expected, got values from {least:g} on; give the file's own pixels, not scaled or centred ones")
    if most <= 1:
        raise Unusable(
            f"{name}: pixels of 0 to 255 expected, got values from {least:g} to {most:g}; do not divide by 255, the model does what is needed")
    if most <= 255 and array.dtype != np.uint16:
        return np.asarray(np.rint(array), np.uint8)
    if most > 65535 or (array.dtype.kind == "f" and (array != np.rint(array)).any()):
        raise Unusable(f"{name}: pixels of 0 to 255, or whole numbers up to 65535 of 16-bit grey, expected, got values up to {most:g}")
    if array.ndim == 3:
        raise Unusable(f"{name}: 16-bit pixels are read of grey pictures alone, got {' x '.join(map(str, array.shape))} up to {most:g}")
    return array.astype(np.uint16)


def _volume(given: Any, task: TaskConfig, name: str) -> NDArray[np.uint8]:
    from fedhelp_core.data.volumes import VolumeReader, opened_channels  # with MONAI, which pictures never wait for

    reader = VolumeReader(task)
    if isinstance(given, bytes | bytearray):
        with tempfile.TemporaryDirectory(prefix="fedhelp-") as folder:
            path = Path(folder) / f"volume{volume_ending(bytes(given[:132]))}"
            path.write_bytes(given)
            try:
                return reader.placed(opened_channels((path,), task.channels), path).cube_CSSS
            except Unusable as e:
                raise Unusable(str(e).replace(str(path), name)) from None
    if isinstance(given, Path):
        return reader.placed(opened_channels((given,), task.channels), given).cube_CSSS
    return reader.placed(volumes_of(given, task.channels, name), Path(name)).cube_CSSS


def volume_ending(start: bytes) -> str:
    """What the name of a volume's file ends with, by its first bytes."""
    return ".dcm" if start[128:132] == b"DICM" else ".nii.gz" if start.startswith(b"\x1f\x8b") else ".nii"


def volumes_of(given: Any, channels: int, name: str) -> list[Volume]:
    """Voxels and where they lie, a volume for each of the task's channels.

    Raises:
        Unusable: one of both is missing, or cannot be, or there are more or fewer sequences.
    """
    shape = "X x Y x Z" if channels == 1 else f"X x Y x Z x {channels}"
    fields = set(given) if isinstance(given, Mapping) else set()
    if fields not in ({"voxels", "affine"}, {"voxels", "spacing"}):
        got = ", ".join(sorted(map(str, fields)))[:80] or "an array alone, whose voxels' size nobody knows"
        raise Unusable(f"{name}: a NIfTI file, a DICOM series, or voxels ({shape}) with their affine or spacing in mm expected, got {got}")
    voxels = _array_in(given["voxels"], f"{name}, voxels")
    if channels == 1 and voxels.ndim == 3:
        voxels = voxels[..., None]
    if voxels.ndim == 4 and voxels.shape[0] == channels != voxels.shape[3]:
        raise Unusable(f"{name}: sequences last expected ({shape}), got {_said(voxels)}; transpose it")
    if voxels.ndim != 4 or voxels.shape[3] != channels or voxels.size > channels * MOST_VOXELS or voxels.dtype.kind not in "fui":
        raise Unusable(f"{name}: {shape} numbers of at most {MOST_VOXELS:,} voxels expected, got {_said(voxels)}")
    affine = _affine_of(given, name)
    found = [Volume(np.ascontiguousarray(voxels[..., number], np.float32), affine) for number in range(channels)]
    for volume in found:
        require_plausible(volume, Path(name))
    return found


def _affine_of(given: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """As given, or with the axes right, anterior, superior."""
    field, shapes = ("affine", [(4, 4)]) if "affine" in given else ("spacing", [(), (3,)])
    where = _array_in(given[field], f"{name}, {field}")
    if where.dtype.kind not in "fui" or where.shape not in shapes:
        raise Unusable(f"{name}: an affine of 4 x 4 numbers, or a spacing of 1 or 3, expected, got {_said(where)}")
    if field == "spacing" and not (where > 0).all():
        raise Unusable(f"{name}: a spacing above 0 mm expected, got {where.min():g}")
    return np.asarray(where, np.float64) if field == "affine" else np.diag([*np.broadcast_to(where, 3).astype(np.float64), 1.0])


def _said(array: NDArray[Any]) -> str:
    return f"{' x '.join(map(str, array.shape)) or 'one'} of {array.dtype}"


def _array_in(given: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(given)
    except ValueError as e:  # rows of different lengths
        raise Unusable(f"{name}: {_FOR_FILES}, got lists of different lengths ({e})"[:300]) from None


def bytes_in(text: str, name: str) -> bytes:
    """A file's bytes, of base64.

    Raises:
        Unusable: it is none.
    """
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise Unusable(f"{name}: a file's bytes in base64 expected, got {text[:40]!r}") from None


def _is_nested_numbers(given: Sequence[Any]) -> bool:
    """Whether lists stand for an array, as JSON has it."""
    first: Any = given
    while isinstance(first, list | tuple) and first:
        first = first[0]
    return isinstance(first, int | float) and not isinstance(first, bool)


def _sides_of_one(shape: tuple[int, ...], task: TaskConfig) -> int:
    """Dimensions of one image in an array of this shape."""
    if task.dimensions == 3:
        return len(shape)
    channels_first = len(shape) == 3 and shape[0] in (1, 3) and task.channels == 3  # or so few grey pictures: nobody knows
    return 3 if channels_first or (len(shape) >= 3 and shape[-1] in (1, 3)) else 2
