"""The first and the strangest images of a hospital, drawn as the network will see them. Called by the page of pictures.

Each is read again by the functions that training reads with, so that nothing but what the network gets can be on the page. A volume is three slices
through the middle of its mask, with letters that say which way it lies.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.inspection import Seen, tinted
from fedhelp_core.data.items import Item
from fedhelp_core.data.reading import read_examples

FIRST = 6
_SHOWN_SIDE = 160  # pixels that a picture is enlarged to, so that single pixels of the network's view can be seen
# plane -> (axis that is cut, letters at the left, right, top and bottom of the slice as it is drawn; axes are right, anterior, superior)
_PLANES = {"axial": (2, "LRAP"), "coronal": (1, "LRSI"), "sagittal": (0, "PASI")}


@dataclass(frozen=True)
class Picked:
    """An image that a person should look at."""

    seen: Seen
    why: str


@dataclass(frozen=True)
class View:
    """PNG files of what the network sees of an image: without and with its mask."""

    plain: bytes
    overlaid: bytes = b""


def first_and_strangest(seen: Sequence[Seen]) -> tuple[list[Picked], list[Picked]]:
    """The first few, and those that are farthest from the others in one simple number; each of the strangest once."""
    usable = [one for one in seen if not one.problem]
    strangest: dict[Item, Picked] = {}
    for picked in _extremes(usable):
        strangest.setdefault(picked.seen.item, picked)
    return [Picked(one, "") for one in usable[:FIRST]], list(strangest.values())


def view_of(item: Item, task: TaskConfig, bits: int | None) -> View:
    """`item` as the network sees it; empty where it cannot be read any more."""
    example = next(iter(read_examples([item], task, bits)))
    image = example.image_CHW
    if image is None:
        return View(b"")
    mask = example.target if isinstance(example.target, np.ndarray) else None
    if task.dimensions == 3:
        marked = np.zeros_like(image[0]) if mask is None else mask[0]
        return volume_view(image[0], marked)
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0) if image.shape[0] == 3 else image[0])).convert("RGB")
    return View(_png(picture), b"" if mask is None else _png(tinted(picture, mask[0] != 0)))


def _extremes(usable: Sequence[Seen]) -> Iterator[Picked]:
    """The ends of each statistic, with what is usual."""
    numbers: list[tuple[str, Callable[[Seen], float | None]]] = [
        ("mean", lambda one: one.view_mean), ("entropy", lambda one: one.view_entropy), ("share of foreground", lambda one: one.foreground),
        ("spacing", lambda one: max(one.spacing, default=None)), ("unevenness of spacing", _unevenness)]
    for name, number in numbers:
        values = [(value, one) for one in usable if (value := number(one)) is not None]
        if len({value for value, _ in values}) < 2:
            continue
        usual = statistics.median(value for value, _ in values)
        for what, (value, one) in (("lowest", min(values, key=lambda pair: pair[0])), ("highest", max(values, key=lambda pair: pair[0]))):
            yield Picked(one, f"{what} {name}: {value:.3g}, usual {usual:.3g}")


def _unevenness(seen: Seen) -> float | None:
    return max(seen.spacing) / min(seen.spacing) if seen.spacing else None


def volume_view(volume_XYZ: NDArray[np.uint8], mask_XYZ: NDArray[np.uint8]) -> View:
    """Three slices of a cube, through the middle of its mask."""
    return View(_slices(volume_XYZ, np.zeros_like(mask_XYZ), mask_XYZ), _slices(volume_XYZ, mask_XYZ, mask_XYZ))


def _slices(volume_XYZ: NDArray[np.uint8], tint_XYZ: NDArray[np.uint8], mask_XYZ: NDArray[np.uint8]) -> bytes:
    """Three slices through the middle of the mask, beside each other."""
    drawn = []
    for axis, letters in _PLANES.values():
        others = tuple(other for other in range(3) if other != axis)
        level = int(mask_XYZ.sum(axis=others).argmax()) if mask_XYZ.any() else volume_XYZ.shape[axis] // 2
        plane, marked = (np.rot90(np.take(voxels, level, axis=axis)) for voxels in (volume_XYZ, tint_XYZ))
        drawn.append(_lettered(enlarged(tinted(Image.fromarray(np.ascontiguousarray(plane)).convert("RGB"), marked != 0)), letters))
    strip = Image.new("RGB", (sum(one.width for one in drawn), drawn[0].height))
    for number, one in enumerate(drawn):
        strip.paste(one, (number * one.width, 0))
    return _png(strip)


def _lettered(image: Image.Image, letters: str) -> Image.Image:
    pen, side = ImageDraw.Draw(image), image.width
    places = (4, side // 2 - 6), (side - 12, side // 2 - 6), (side // 2 - 3, 2), (side // 2 - 3, side - 14)
    for letter, (x, y) in zip(letters, places, strict=True):
        pen.text((x + 1, y + 1), letter, fill=(0, 0, 0))
        pen.text((x, y), letter, fill=(255, 220, 60))
    return image


def enlarged(image: Image.Image) -> Image.Image:
    """`image` so large that a person sees its single pixels."""
    factor = max(1, -(-_SHOWN_SIDE // image.width))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    enlarged(image).save(buffer, format="PNG")
    return buffer.getvalue()
