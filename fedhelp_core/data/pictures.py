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
from fedhelp_core.data.examples import Example, Unusable, mask_problem
from fedhelp_core.data.items import Item

_FORMATS = ("JPEG", "PNG")


def read_picture(item: Item, size: int) -> Example:
    """Image (1, S, S) and mask (1, S, S) of `item`, cut and scaled alike, or what is wrong with them."""
    try:
        grey, labels = checked_pair(item)
        marked = Image.fromarray(((labels != 0) * 255).astype(np.uint8))
        target = _fitted(marked, size, Image.Resampling.NEAREST) // 255
    except Unusable as e:
        return Example(problem=str(e))
    if not target.any():
        return Example(problem=f"{item.mask}: nothing of the mask is left at {size} x {size} pixels; raise task.image_size, or remove the image")
    return Example(_fitted(grey, size, Image.Resampling.BICUBIC)[None], target[None])


def checked_pair(item: Item) -> tuple[Image.Image, NDArray[np.generic]]:
    """The grey picture and its mask's labels (H, W), as they lie on disk.

    Raises:
        Unusable: one of them cannot be used, or they do not belong together.
    """
    assert item.mask is not None
    image, mask = opened(item.image), opened(item.mask)
    grey, labels = _grey(image, item.image), _plane(mask, item.mask)
    problem = mask_problem(labels, (image.height, image.width), item.mask, "foreground")
    if problem:
        raise Unusable(problem)
    return grey, labels


def read_image(raw: bytes, path: Path, size: int) -> Example:
    """The image (1, S, S) in a file's bytes, without a mask: a public one."""
    try:
        return Example(_fitted(_grey(_decoded(raw, path), path), size, Image.Resampling.BICUBIC)[None])
    except Unusable as e:
        return Example(problem=str(e))


def grey_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Grey pixels (H, W) prepared as files are: (1, S, S)."""
    return _fitted(Image.fromarray(pixels), size, Image.Resampling.BICUBIC)[None]


def mask_square(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A mask (H, W) of 0 and 1 prepared as files are: (1, S, S)."""
    return _fitted(Image.fromarray(mask), size, Image.Resampling.NEAREST)[None]


def opened(path: Path) -> Image.Image:
    """The picture at `path`, upright, its pixels read.

    Raises:
        Unusable: no such file, or none that can be read.
    """
    try:
        return _decoded(path.read_bytes(), path)
    except FileNotFoundError:
        raise Unusable(f"{path}: no such image file; correct the list or the folder") from None
    except OSError as e:
        raise Unusable(f"{path}: cannot be read as an image ({e}); replace or remove it") from None


def _decoded(raw: bytes, path: Path) -> Image.Image:
    try:
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as image:
            upright = ImageOps.exif_transpose(image)
            upright.load()
    except BROKEN as e:
        raise Unusable(f"{path}: cannot be read as an image ({e}); replace or remove it") from None
    return upright


def _grey(image: Image.Image, path: Path) -> Image.Image:
    """8 bit grey; 16-bit grey keeps its upper 8 bits; a colour file whose channels are equal is grey."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode not in ("L", "LA", "1"):
        channels = np.asarray(image.convert("RGB"))
        if (channels != channels[..., :1]).any():
            raise Unusable(f"{path}: is a colour picture ({image.mode}), but this task's images are grey; convert it, or remove it")
    return image.convert("L")


def _plane(mask: Image.Image, path: Path) -> NDArray[np.generic]:
    """The mask's labels (H, W); of a colour file, where its channels are equal."""
    if mask.mode in ("L", "1", "P") or mask.mode.startswith("I"):
        return np.asarray(mask)
    channels = np.asarray(mask.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise Unusable(f"{path}: the mask is a colour picture ({mask.mode}); one label a pixel expected: background 0, foreground one other value")
    return channels[..., 0]


def _fitted(image: Image.Image, size: int, resampling: Image.Resampling) -> NDArray[np.uint8]:
    return np.array(ImageOps.fit(image, (size, size), resampling), dtype=np.uint8)
