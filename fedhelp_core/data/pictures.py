"""A grey picture and the mask beside it, JPEG or PNG, as square arrays. Called by `examples`. No MONAI: Pillow prepares pictures as it
does those of classification, so that public ones look to the proxy like private ones.

Shapes: S the side in pixels.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedhelp_core.data.decode import BROKEN
from fedhelp_core.data.examples import Example, mask_problem
from fedhelp_core.data.items import Item

_FORMATS = ("JPEG", "PNG")


class _Unusable(Exception):
    """The sentence that says why."""


def read_picture(item: Item, size: int) -> Example:
    """Image (1, S, S) and mask (1, S, S) of `item`, cut and scaled alike, or what is wrong with them."""
    assert item.mask is not None
    try:
        image, mask = _opened(item.image), _opened(item.mask)
        grey = _grey(image, item.image)
        labels = _plane(mask, item.mask)
        problem = mask_problem(labels, (image.height, image.width), item.mask, "foreground")
        if problem:
            return Example(problem=problem)
        marked = Image.fromarray(((labels != 0) * 255).astype(np.uint8))
        target = _fitted(marked, size, Image.Resampling.NEAREST) // 255
    except _Unusable as e:
        return Example(problem=str(e))
    if not target.any():
        return Example(problem=f"{item.mask}: nothing of the mask is left at {size} x {size} pixels; raise task.image_size, or remove the image")
    return Example(_fitted(grey, size, Image.Resampling.BICUBIC)[None], target[None])


def grey_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Grey pixels (H, W) prepared as files are: (1, S, S)."""
    return _fitted(Image.fromarray(pixels), size, Image.Resampling.BICUBIC)[None]


def mask_square(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A mask (H, W) of 0 and 1 prepared as files are: (1, S, S)."""
    return _fitted(Image.fromarray(mask), size, Image.Resampling.NEAREST)[None]


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=_FORMATS) as image:
            upright = ImageOps.exif_transpose(image)
            upright.load()
    except FileNotFoundError:
        raise _Unusable(f"{path}: no such image file; correct the list or the folder") from None
    except BROKEN as e:
        raise _Unusable(f"{path}: cannot be read as an image ({e}); replace or remove it") from None
    return upright


def _grey(image: Image.Image, path: Path) -> Image.Image:
    """8 bit grey; 16-bit grey keeps its upper 8 bits; a colour file whose channels are equal is grey."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode not in ("L", "LA", "1"):
        channels = np.asarray(image.convert("RGB"))
        if (channels != channels[..., :1]).any():
            raise _Unusable(f"{path}: is a colour picture ({image.mode}), but this task's images are grey; convert it, or remove it")
    return image.convert("L")


def _plane(mask: Image.Image, path: Path) -> NDArray[np.generic]:
    """The mask's labels (H, W); of a colour file, where its channels are equal."""
    if mask.mode in ("L", "1", "P") or mask.mode.startswith("I"):
        return np.asarray(mask)
    channels = np.asarray(mask.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise _Unusable(f"{path}: the mask is a colour picture ({mask.mode}); one label a pixel expected: background 0, foreground one other value")
    return channels[..., 0]


def _fitted(image: Image.Image, size: int, resampling: Image.Resampling) -> NDArray[np.uint8]:
    return np.array(ImageOps.fit(image, (size, size), resampling), dtype=np.uint8)
