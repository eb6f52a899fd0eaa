"""What each file of a silo is, found by opening it: size, intensities, spacing, what it shows, or why it cannot be used. Called by `ingest`.

Every file is opened once, on a few threads, at its full size; what the loaders refuse is refused here in the same words.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.examples import Unusable
from fedhelp_core.data.items import Item
from fedhelp_core.data.pictures import checked_pair, opened
from fedhelp_core.registry.tasks import TASKS

_THUMBNAIL = 112  # pixels
_TINT = np.array((255, 60, 40), np.float32)  # what a mask marks


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One item, looked at; or `problem`, the sentence that says why it cannot be used."""

    item: Item
    problem: str = ""
    content: str = ""
    """sha256 of the pixels or voxels and their shape: the same picture under another name, or saved again without loss, has the same."""
    sides: tuple[int, ...] = ()
    """Width, height of a picture; voxels to the right, front and top of a volume, as the file has them."""
    kind: str = ""
    """Pillow's name of the pixels (L, RGB, I;16 ...), 'volume'."""
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    foreground: float | None = None
    """Share of the image that its mask marks."""
    spacing: tuple[float, ...] = ()
    """mm between voxels."""
    orientation: str = ""
    """Where a volume's axes point, such as RAS."""
    thumbnail: bytes = b""
    """PNG, of the items that one was asked for."""


def look_at(items: Sequence[Item], task: TaskConfig, *, thumbnails: Set[Item] = frozenset()) -> Iterator[Seen]:
    """Each of `items`, in order."""
    workers = min(8, os.cpu_count() or 1)
    block = 8 * workers  # so that nothing is opened far ahead of whoever reads
    one = partial(_seen, look=_look_of(task), thumbnails=thumbnails)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), block):
            yield from pool.map(one, items[start : start + block])


_Look = Callable[[Item, bool], Seen]


def _look_of(task: TaskConfig) -> _Look:
    entry = TASKS[task.name]
    if entry.answer == "classes":
        return _picture
    return _picture_and_mask if entry.dimensions == 2 else partial(_volume_and_mask, foreground=task.classes[1])


def _seen(item: Item, *, look: _Look, thumbnails: Set[Item]) -> Seen:
    try:
        return look(item, item in thumbnails)
    except Unusable as e:
        return Seen(item=item, problem=str(e))


def _picture(item: Item, thumbnail: bool) -> Seen:
    image = opened(item.image)
    return Seen(item=item, thumbnail=_png(_rgb(image)) if thumbnail else b"", **_facts(image))


def _picture_and_mask(item: Item, thumbnail: bool) -> Seen:
    grey, labels = checked_pair(item)
    marked = labels != 0
    return Seen(
        item=item, foreground=float(marked.mean()), thumbnail=_png(_tinted(_rgb(grey), marked)) if thumbnail else b"", **_facts(grey))


def _volume_and_mask(item: Item, thumbnail: bool, *, foreground: str) -> Seen:
    from fedhelp_core.data import volumes  # with MONAI, which classification never waits for

    voxels, mask, affine = volumes.checked_pair(item, foreground)
    marked = mask != 0
    return Seen(
        item=item, content=_digest(voxels), sides=voxels.shape, kind="volume", low=float(voxels.min()), high=float(voxels.max()),
        mean=float(voxels.mean(dtype=np.float64)), foreground=float(marked.mean()),
        spacing=tuple(round(float(side), 2) for side in np.linalg.norm(affine[:3, :3], axis=0)), orientation="".join(_axes().aff2axcodes(affine)),
        thumbnail=_slice(voxels, marked, affine) if thumbnail else b"")


def _facts(image: Image.Image) -> dict[str, Any]:
    pixels = np.asarray(image if image.mode.startswith("I") else _rgb(image))
    return {
        "content": _digest(pixels), "sides": image.size, "kind": image.mode, "low": float(pixels.min()), "high": float(pixels.max()),
        "mean": float(pixels.mean(dtype=np.float64))}


def _digest(array: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _tinted(image: Image.Image, marked: NDArray[np.bool_]) -> Image.Image:
    pixels = np.asarray(image).astype(np.float32)
    pixels[marked] = 0.65 * pixels[marked] + 0.35 * _TINT
    return Image.fromarray(pixels.astype(np.uint8))


def _slice(voxels: NDArray[np.float32], marked: NDArray[np.bool_], affine: NDArray[np.float64]) -> bytes:
    """The slice with most of the mask, seen from above, the nose up."""
    axes = _axes()
    upright = axes.io_orientation(affine)
    lying, mask = axes.apply_orientation(voxels, upright), axes.apply_orientation(marked, upright)
    level = int(mask.sum(axis=(0, 1)).argmax())
    plane, outline = lying[:, :, level], mask[:, :, level]
    low, high = np.percentile(plane, (0.5, 99.5))
    grey = ((plane - low) / max(float(high - low), 1e-9) * 255).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(np.rot90(grey)))
    return _png(_tinted(picture.convert("RGB"), np.rot90(outline)))


def _axes() -> Any:
    """nibabel's knowledge of axes, which has no types."""
    from nibabel import orientations

    return orientations


def _png(image: Image.Image) -> bytes:
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
