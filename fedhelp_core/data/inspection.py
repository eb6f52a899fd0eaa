"""What each file of a silo is, found by opening it: size, intensities, spacing, what the network will see of it, or why it cannot be used.

Called by `ingest` and by `fedhelp check`. Every file is opened once, on a few threads, by the functions that training opens it with: what they refuse
is refused here in the same words, and what is told of the network's view is told of the very arrays that it would be given.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data import decode
from fedhelp_core.data.items import Item
from fedhelp_core.data.marks import Marks
from fedhelp_core.data.picture_files import Picture, eight_bits
from fedhelp_core.data.pictures import checked_pair, example, grey, opened, prepared
from fedhelp_core.data.unusable import Unusable

if TYPE_CHECKING:
    from fedhelp_core.data.grid import Volume
    from fedhelp_core.data.volumes import VolumeReader

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
    notes: tuple[str, ...] = ()
    """What was converted in reading."""
    corners: bool = False
    """Whether the mask marks every corner, as an inverted one does."""
    view_mean: float = 0.0
    """Of what the network sees, 0 to 255."""
    view_entropy: float = 0.0
    """Bits a pixel of the same: 0 where all are equal, 8 where all values are as frequent."""
    view_histogram: tuple[int, ...] = ()
    """Pixels of the same in 32 equal steps from black to white."""


def look_at(items: Sequence[Item], task: TaskConfig, *, bits: int | None = None, thumbnails: Set[Item] = frozenset()) -> Iterator[Seen]:
    """Each of `items`, in order. `bits`: in use in the hospital's 16-bit pictures."""
    workers = min(8, os.cpu_count() or 1)
    block = 8 * workers  # so that nothing is opened far ahead of whoever reads
    one = partial(_seen, look=_look_of(task, bits), thumbnails=thumbnails)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), block):
            yield from pool.map(one, items[start : start + block])


_Look = Callable[[Item, bool], Seen]


def _look_of(task: TaskConfig, bits: int | None) -> _Look:
    if not task.per_pixel and task.dimensions == 2:
        return partial(_picture, size=task.image_size, bits=bits, colour=task.channels == 3)
    if task.dimensions == 2:
        return partial(_picture_and_mask, size=task.image_size, bits=bits, marks=Marks.of(task), colour=task.channels == 3)
    from fedhelp_core.data.volumes import VolumeReader  # with MONAI, which classification never waits for

    return partial(_volume_and_mask if task.per_pixel else _volume, reader=VolumeReader(task))


def _seen(item: Item, *, look: _Look, thumbnails: Set[Item]) -> Seen:
    try:
        return look(item, item in thumbnails)
    except Unusable as e:
        return Seen(item=item, problem=str(e))


def _picture(item: Item, thumbnail: bool, *, size: int, bits: int | None, colour: bool) -> Seen:
    picture = decode.picture_at(item.image) if colour else grey(opened(item.image), str(item.image))
    view = (decode.prepared if colour else prepared)(picture, size, str(item.image), bits)
    shown = _png(eight_bits(picture, bits, str(item.image)).convert("RGB")) if thumbnail else b""
    return Seen(item=item, thumbnail=shown, **_facts(picture), **_of_view(view))


def _picture_and_mask(item: Item, thumbnail: bool, *, size: int, bits: int | None, marks: Marks, colour: bool) -> Seen:
    picture, labels = checked_pair(item, marks, colour=colour)
    marked = labels != 0
    found = example(item, picture, labels, size, bits, marks, colour=colour)
    shown = _png(tinted(eight_bits(picture, bits, str(item.image)).convert("RGB"), marked)) if thumbnail else b""
    return Seen(
        item=item, foreground=float(marked.mean()), corners=_marks_corners(marked), thumbnail=shown, **_facts(picture), **_of_view(found.image_CHW))


def _volume_and_mask(item: Item, thumbnail: bool, *, reader: VolumeReader) -> Seen:
    channels, mask = reader.checked_pair(item)
    found = reader.example(item, channels, mask)
    marked = mask != 0
    return _seen_volume(item, channels, found.image_CHW, marked, thumbnail, foreground=float(marked.mean()), corners=_marks_corners(marked))


def _volume(item: Item, thumbnail: bool, *, reader: VolumeReader) -> Seen:
    channels = reader.opened(item)
    view = reader.placed(channels, item.image).cube_CSSS
    return _seen_volume(item, channels, view, np.zeros(channels[0].voxels_XYZ.shape, bool), thumbnail)


def _seen_volume(
    item: Item, channels: Sequence[Volume], view: NDArray[np.uint8] | None, marked: NDArray[np.bool_], thumbnail: bool, **more: Any,
) -> Seen:
    """The first sequence stands for all of them, but for what says whether it is the same image."""
    voxels, affine = channels[0].voxels_XYZ, channels[0].affine
    content = _digest(voxels) if len(channels) == 1 else _digest(np.stack([one.voxels_XYZ for one in channels]))
    return Seen(
        item=item, content=content, sides=voxels.shape, kind="volume", low=float(voxels.min()), high=float(voxels.max()),
        mean=float(voxels.mean(dtype=np.float64)), notes=channels[0].notes,
        spacing=tuple(round(float(side), 2) for side in np.linalg.norm(affine[:3, :3], axis=0)), orientation="".join(_axes().aff2axcodes(affine)),
        thumbnail=_slice(voxels, marked, affine) if thumbnail else b"", **more, **_of_view(view))


def _facts(picture: Picture) -> dict[str, Any]:
    pixels = np.asarray(picture.image if picture.deep else picture.image.convert("RGB"))
    return {
        "content": _digest(pixels), "sides": picture.image.size, "kind": picture.image.mode, "low": float(pixels.min()), "high": float(pixels.max()),
        "mean": float(pixels.mean(dtype=np.float64)), "notes": picture.notes}


def _of_view(view: NDArray[np.uint8] | None) -> dict[str, Any]:
    assert view is not None
    counts = np.bincount(view.ravel(), minlength=256)
    shares = counts[counts > 0] / counts.sum()
    return {
        "view_mean": float(counts @ np.arange(256) / counts.sum()), "view_entropy": float((shares * np.log2(1 / shares)).sum()),
        "view_histogram": tuple(int(count) for count in counts.reshape(32, 8).sum(axis=1))}


def _marks_corners(marked: NDArray[np.bool_]) -> bool:
    return all(bool(marked[corner]) for corner in itertools.product((0, -1), repeat=marked.ndim))


def _digest(array: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def tinted(image: Image.Image, marked: NDArray[np.bool_]) -> Image.Image:
    """`image` (RGB) with what `marked` (H, W) says in red."""
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
    return _png(tinted(picture.convert("RGB"), np.rot90(outline)))


def _axes() -> Any:
    """nibabel's knowledge of axes, which has no types."""
    from nibabel import orientations

    return orientations


def _png(image: Image.Image) -> bytes:
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
