"""The tensors of a question as images that the model sees, and the model's answers as tensors. Called by `app`, on threads.

Files take the way of `fedhelp predict`, so that both give the same answer to the last bit; arrays in raw units become what the file with the same
pixels would. Shapes: N images, K classes, H, W and X, Y, Z an image's own sides, C 1 or 3 colours.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.budget import IN_FLIGHT
from fedhelp_core.data.given import bytes_in, picture_of, volume_ending, volumes_of
from fedhelp_core.data.grid import spacing_of
from fedhelp_core.data.picture_files import bytes_of_pixels
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.deployment.contract import Contract
from fedhelp_core.deployment.images_in import Prepared, Reader, Source, VolumeGrid
from fedhelp_core.deployment.results import decision_of
from fedhelp_core.deployment.scorer import Answer, ClassAnswer, FindingsAnswer, MaskAnswer, Scorer
from fedhelp_core.serving.open_inference import Question, Refused, Tensor

FILES, PIXELS, VOXELS = "files", "pixels", "voxels"
_PLACES = {"affine": 2, "spacing": 1}
"""Where voxels lie -> dimensions of one image's."""
_MOST_IMAGES = 1024  # of one question


def images_asked(question: Question, contract: Contract, reader: Reader) -> Iterator[Prepared]:
    """Each image of `question`, prepared for the model of `contract`, in order.

    Raises:
        Refused: there are no such images; one sentence, which names the input and the image.
    """
    arrays = VOXELS if contract.task.dimensions == 3 else PIXELS
    places = {name: tensor for name, tensor in question.inputs.items() if name in _PLACES and arrays == VOXELS}
    named = [name for name in question.inputs if name not in places]
    if named not in ([FILES], [arrays]) or (named == [FILES] and places) or (named == [VOXELS] and len(places) != 1):
        beside = " with affine or spacing" if arrays == VOXELS else ""
        raise Refused(f"inputs: {FILES} (BYTES), or {arrays} (numbers){beside} expected, got {', '.join(question.inputs)[:200]}")
    tensor = question.inputs[named[0]]
    if (tensor.datatype == "BYTES") != (tensor.name == FILES):
        expected = "BYTES" if tensor.name == FILES else "UINT8, UINT16 or FP32"
        raise Refused(f"input {tensor.name!r}: datatype {expected} expected, got {tensor.datatype}")
    if tensor.name == FILES and tensor.data.ndim != 1:
        raise Refused(f"input {FILES!r}: one dimension expected, the number of files, got {tensor.data.ndim}")
    channels = contract.task.channels
    sides = (3, 4) if arrays == PIXELS else (4, 5) if channels == 1 else (5,)
    if tensor.name != FILES and tensor.data.ndim not in sides:
        of_volumes = "images x X x Y x Z" if channels == 1 else f"images x X x Y x Z x {channels}"
        shape = of_volumes if arrays == VOXELS else "images x H x W, or images x H x W x C"
        raise Refused(f"input {tensor.name!r}: {shape} expected, got {' x '.join(map(str, tensor.data.shape))}")
    if len(tensor.data) > _MOST_IMAGES:
        raise Refused(f"input {tensor.name!r}: at most {_MOST_IMAGES} images in a question expected, got {len(tensor.data):,}")
    for number, one in enumerate(tensor.data):
        name = f"input {tensor.name!r}, image {number}"
        try:
            if tensor.name == FILES:
                yield _file(one, reader, arrays == VOXELS, name)
            elif arrays == PIXELS:
                yield reader.of_picture(picture_of(one, name), _digest(one), _source(name))
            else:
                yield _voxels(one, {field: _of_image(place, number, _PLACES[field]) for field, place in places.items()}, reader, channels, name)
        except Unusable as e:
            raise Refused(str(e), "image") from None


def outputs_of(scorer: Scorer, asked: Sequence[Prepared], answers: Sequence[Answer]) -> list[Tensor]:
    """The answers as tensors, one row an image.

    Raises:
        Refused: masks of images of different sizes were asked for together.
    """
    named = [Tensor.of_texts("decision", [decision_of(scorer, answer) for answer in answers]),
             Tensor.of_texts("sha256", [one.sha256 for one in asked])]
    classes = [answer for answer in answers if isinstance(answer, ClassAnswer)]
    if classes:
        return [
            Tensor("probabilities", np.stack([answer.calibrated_K for answer in classes])), *named,
            Tensor.of_texts("class", [scorer.class_name(answer) for answer in classes]),
            Tensor("margin", np.array([answer.margin for answer in classes], np.float64)),
            Tensor("model_probabilities", np.stack([answer.probabilities_K for answer in classes])),
            Tensor.of_texts("class_names", scorer.contract.task.classes)]
    findings = [answer for answer in answers if isinstance(answer, FindingsAnswer)]
    if findings:
        return [
            Tensor("probabilities", np.stack([answer.calibrated_K for answer in findings])), *named,
            Tensor("found", np.stack([answer.found_K for answer in findings]).astype(np.uint8)),
            Tensor("margin", np.array([answer.margin for answer in findings], np.float64)),
            Tensor("model_probabilities", np.stack([answer.probabilities_K for answer in findings])),
            Tensor.of_texts("class_names", scorer.contract.task.classes)]
    return _mask_outputs([answer for answer in answers if isinstance(answer, MaskAnswer)], asked, named)


def _mask_outputs(answers: Sequence[MaskAnswer], asked: Sequence[Prepared], named: list[Tensor]) -> list[Tensor]:
    each = [answer.masks(one.grid.back) for one, answer in zip(asked, answers, strict=True) if one.grid is not None]
    masks = [masks_K.any(axis=0) for masks_K in each]
    if len({mask.shape for mask in masks}) > 1:
        sides = " and ".join(sorted({" x ".join(map(str, mask.shape)) for mask in masks})[:2])
        raise Refused(f"inputs: images of one size expected, since their masks are one tensor, got {sides}; ask about them one by one")
    found = [
        Tensor("mask", np.stack([_numbers(answer, masks_K) for answer, masks_K in zip(answers, each, strict=True)])), *named,
        Tensor("expected_dice", np.array([answer.expected_dice for answer in answers], np.float64)),
        Tensor("foreground", np.array([float(mask.mean()) for mask in masks], np.float64))]
    affines = [one.grid.volume.affine for one in asked if isinstance(one.grid, VolumeGrid)]
    if affines:
        litres = [float(mask.sum() * math.prod(spacing_of(affine)) / 1000) for mask, affine in zip(masks, affines, strict=True)]
        found += [Tensor("affine", np.stack(affines)), Tensor("millilitres", np.array(litres, np.float64))]
    return found


def _numbers(answer: MaskAnswer, masks_K: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Of classes their numbers, background 0; of regions (K, ...) 0 and 1."""
    if answer.regions:
        return masks_K.astype(np.uint8)
    return np.asarray(np.tensordot(np.arange(1, len(masks_K) + 1, dtype=np.uint8), masks_K.astype(np.uint8), axes=1), np.uint8)


def metadata_of(contract: Contract) -> dict[str, Any]:
    """What the protocol says of a model: name, version, inputs, outputs."""
    task = contract.task
    many = [-1] * task.dimensions
    inputs = [("files", "BYTES", [-1])]
    sequences = [task.channels] if task.channels > 1 else []
    inputs += [("voxels", "FP32", [-1, *many, *sequences]), ("affine", "FP64", [-1, 4, 4])] if task.dimensions == 3 else [
        ("pixels", "UINT8", [-1, *many, task.channels])]
    outputs: list[tuple[str, str, list[int]]] = [("decision", "BYTES", [-1]), ("sha256", "BYTES", [-1])]
    if task.form == "classes":
        classes = len(contract.task.classes)
        outputs = [("probabilities", "FP64", [-1, classes]), *outputs, ("class", "BYTES", [-1]), ("margin", "FP64", [-1]),
                   ("model_probabilities", "FP32", [-1, classes]), ("class_names", "BYTES", [classes])]
    elif task.form == "labels":
        findings = len(contract.task.classes)
        outputs = [("probabilities", "FP64", [-1, findings]), *outputs, ("found", "UINT8", [-1, findings]), ("margin", "FP64", [-1]),
                   ("model_probabilities", "FP32", [-1, findings]), ("class_names", "BYTES", [findings])]
    else:
        regions = [len(task.answered)] if task.form == "regions" else []
        outputs = [("mask", "UINT8", [-1, *regions, *many]), *outputs, ("expected_dice", "FP64", [-1]), ("foreground", "FP64", [-1])]
        outputs += [("affine", "FP64", [-1, 4, 4]), ("millilitres", "FP64", [-1])] if task.dimensions == 3 else []
    return {"name": contract.name, "versions": [contract.version], "platform": "fedhelp", "inputs": _described(inputs),
            "outputs": _described(outputs)}


def _described(tensors: Sequence[tuple[str, str, list[int]]]) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in tensors]


def _file(given: str | bytes, reader: Reader, of_volumes: bool, name: str) -> Prepared:
    raw = bytes_in(given, name) if isinstance(given, str) else given
    if not of_volumes and raw[128:132] != b"DICM":
        with IN_FLIGHT.reserved(bytes_of_pixels(raw)):
            return reader.picture_in(raw, _source(name))
    with tempfile.TemporaryDirectory(prefix="fedhelp-") as folder:  # DICOM's and NIfTI's libraries read files
        path = Path(folder) / f"image{volume_ending(raw[:132])}"
        path.write_bytes(raw)
        [found] = reader.read([Source(path, name)])
    if found.problem:
        raise Unusable(found.problem.replace(str(path), name))
    return found


def _voxels(voxels: NDArray[Any], place: Mapping[str, Any], reader: Reader, channels: int, name: str) -> Prepared:
    volumes = volumes_of({"voxels": voxels, **place}, channels, name)
    return reader.of_volumes(volumes, _digest(voxels, *place.values()), _source(name))


def _of_image(place: Tensor, number: int, dimensions: int) -> NDArray[Any]:
    """Of a batch's affines or spacings that of one image; there may be one for all."""
    if place.data.ndim > dimensions and number >= len(place.data):
        raise Refused(f"input {place.name!r}: one for all images or one for each expected, got {len(place.data)}")
    found: NDArray[Any] = place.data[number] if place.data.ndim > dimensions else place.data
    return found[0] if place.name == "spacing" and found.shape == (1,) else found


def _source(name: str) -> Source:
    return Source(Path(name), name)


def _digest(*arrays: NDArray[Any]) -> str:
    """sha256 (hex) of an image that came as numbers: of their types, shapes and bytes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
