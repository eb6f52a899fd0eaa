"""A grey picture and the mask beside it, JPEG or PNG, as square arrays. Called by `reading`. No MONAI: Pillow prepares pictures as it
does those of classification, so that public ones look to the proxy like private ones.

A mask says where it is what in one of two ways, in its colours or in its alpha channel; black, or transparent, is background. A palette's numbers
mean nothing by themselves: its colours do. Shapes: S the side in pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.budget import IN_FLIGHT
from fedhelp_core.data import decode
from fedhelp_core.data.examples import Example, target_of
from fedhelp_core.data.items import Item
from fedhelp_core.data.marks import ONE_FOREGROUND, Marks
from fedhelp_core.data.picture_files import Picture, alpha_of, bytes_of_pixels, eight_bits, fitted, opaque, picture_in, read_file
from fedhelp_core.data.unusable import Unusable


def read_picture(item: Item, size: int, bits: int | None = None, marks: Marks = ONE_FOREGROUND, *, colour: bool = False) -> Example:
    """Image (1, S, S), in colour (3, S, S), and target of `item`, cut and scaled alike, or what is wrong with them. `bits`: as in
    `decode.decode_all`.
    """
    try:
        return example(item, *checked_pair(item, marks, colour=colour), size, bits, marks, colour=colour)
    except Unusable as e:
        return Example(problem=str(e))


def example(
    item: Item, picture: Picture, labels_HW: NDArray[np.generic], size: int, bits: int | None = None, marks: Marks = ONE_FOREGROUND, *,
    colour: bool = False,
) -> Example:
    """As `read_picture`, of a pair that has been opened.

    Raises:
        Unusable: nothing of the mask is left.
    """
    target = mask_square(marks.target(labels_HW), size)
    if not target.any() and marks.must_be_somewhere():
        raise Unusable(f"{item.mask}: nothing of the mask is left at {size} x {size} pixels; raise task.image_size, or remove the image")
    image = decode.prepared(picture, size, str(item.image), bits).transpose(2, 0, 1) if colour else prepared(picture, size, str(item.image), bits)
    return Example(image, target)


def prepared(picture: Picture, size: int, name: str, bits: int | None = None) -> NDArray[np.uint8]:
    """What the network sees of the grey `picture`: (1, S, S).

    Raises:
        Unusable: it has more than `bits`.
    """
    return fitted(eight_bits(picture, bits, name).convert("L"), size)[None]


def checked_pair(item: Item, marks: Marks = ONE_FOREGROUND, *, colour: bool = False) -> tuple[Picture, NDArray[np.generic]]:
    """The picture, grey unless in `colour`, and its mask's labels (H, W), as they lie on disk.

    Raises:
        Unusable: one of them cannot be used, or they do not belong together.
    """
    assert item.mask is not None
    picture, mask = (opaque if colour else grey)(opened(item.image), str(item.image)), opened(item.mask)
    if picture.turned != mask.turned:
        raise Unusable(
            f"{item.image}: its EXIF orientation is {picture.turned}, its mask's {mask.turned}, so nobody knows whether the mask was drawn on the"
            " upright picture; save both upright")
    labels = _plane(mask.image, item.mask)
    problem = marks.problem(labels, (picture.image.height, picture.image.width), item.mask)
    if problem:
        raise Unusable(problem)
    return picture, labels


def read_grey(item: Item, size: int, bits: int | None = None) -> Example:
    """Grey image (1, S, S) of `item` with its class or findings, or what is wrong with it."""
    try:
        return Example(prepared(grey(opened(item.image), str(item.image)), size, str(item.image), bits), target_of(item))
    except Unusable as e:
        return Example(problem=str(e))


def read_image(raw: bytes, path: Path, size: int) -> Example:
    """The image (1, S, S) in a file's bytes, without a mask: a public one."""
    try:
        with IN_FLIGHT.reserved(bytes_of_pixels(raw)):
            picture = grey(picture_in(raw, str(path)), str(path))
            return Example(prepared(picture, size, str(path)))
    except Unusable as e:
        return Example(problem=str(e))


def grey_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Grey pixels (H, W) prepared as files are: (1, S, S)."""
    return fitted(Image.fromarray(pixels), size)[None]


def mask_square(target_KHW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A target prepared as files are: (K, S, S)."""
    return np.stack([fitted(Image.fromarray(plane), size, Image.Resampling.NEAREST) for plane in target_KHW])


def opened(path: Path) -> Picture:
    """The picture at `path`, upright, its pixels read.

    Raises:
        Unusable: no such file, or none that can be read.
    """
    return picture_in(read_file(path), str(path))


def grey(picture: Picture, name: str) -> Picture:
    """`picture` without colour and transparency; a colour file whose channels are equal is grey.

    Raises:
        Unusable: it has colours, or hides something.
    """
    picture = opaque(picture, name)
    mode = picture.image.mode
    if picture.deep or mode in ("L", "1"):
        return picture
    channels = np.asarray(picture.image.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise Unusable(f"{name}: is a colour picture ({mode}), but this task's images are grey; convert it, or remove it")
    return Picture(picture.image.convert("L"), picture.turned, picture.notes)


def _plane(mask: Image.Image, path: Path) -> NDArray[np.generic]:
    """The mask's labels (H, W); 0 is what is black, or transparent."""
    labels, opacity = _colour_labels(mask, path), alpha_of(mask)
    if opacity is None or opacity.min() == 255:
        return labels
    if opacity.max() == 0:
        raise Unusable(f"{path}: the mask is wholly transparent; save it without transparency")
    seen = labels[opacity > 0]
    if seen.min() == seen.max():  # what can be seen has one colour: the shape is in the alpha channel
        return opacity
    if np.array_equal(labels != 0, opacity != 0):
        return labels
    raise Unusable(f"{path}: the mask's colours say another shape than its alpha channel, so nobody knows which it is; save it without transparency")


def _colour_labels(mask: Image.Image, path: Path) -> NDArray[np.generic]:
    """Labels by colour, without regard to alpha: numbers of grey; of two colours, one of them black, 0 and 1."""
    if mask.mode in ("L", "1") or mask.mode.startswith("I"):
        return np.asarray(mask)
    if mask.mode == "LA":
        return np.asarray(mask.getchannel("L"))
    channels = np.asarray(mask.convert("RGB"))
    if (channels == channels[..., :1]).all():
        grey_HW: NDArray[np.generic] = channels[..., 0]
        return grey_HW
    packed = channels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colours = np.unique(packed)
    if len(colours) == 2 and colours[0] == 0:
        marked: NDArray[np.uint8] = (packed != 0).astype(np.uint8)
        return marked
    raise Unusable(
        f"{path}: the mask is a colour picture ({mask.mode}) of {len(colours)} colours; one label a pixel expected: background 0 (black), foreground"
        " one other value")
