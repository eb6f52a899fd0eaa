"""Reading 1,000 pictures for training, beside the same by Pillow alone: what the loader's looks at each file cost.

    python -m benchmarks.reading [--repeat 5]

The yardstick decodes, turns upright, scales and cuts as the loader does, on as many threads, and looks at nothing else: it was the loader before
it had to name what is wrong with a file. Both read the same files from the page cache, in turns; processor seconds are compared.
"""

from __future__ import annotations

import hashlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.figures import Figure, run_alone
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.items import Item
from fedhelp_core.data.reading import bits_in_use, read_examples

PICTURES = 1000
TARGET = 1.1
SIZE = 128  # pixels that pictures are brought to
KINDS: dict[str, tuple[str, tuple[int, int], str]] = {  # what -> (ending, sides, Pillow's mode)
    "JPEG in colour of 600 x 450": (".jpg", (600, 450), "RGB"),
    "grey JPEG of 1,000 x 800": (".jpg", (1000, 800), "L"),
    "grey PNG of 512 x 512 and its mask": (".png", (512, 512), "L"),
}


def figures(repeat: int) -> list[Figure]:
    """Time beside the yardstick's, for each kind of file."""
    return [_beside(what, repeat) for what in KINDS]


def _beside(what: str, repeat: int) -> Figure:
    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as folder:
        items = _drawn(what, Path(folder))
        _ours(items)  # into the page cache
        turns = [(_seconds(_ours, items), _seconds(_pillow, items)) for _ in range(repeat)]
    ratio = statistics.median(ours / plain for ours, plain in turns)
    ours, plain = (statistics.median(side) for side in zip(*turns, strict=True))
    return Figure(
        name=f"reading {PICTURES:,} files, {what}: time / Pillow alone", value=ratio, unit="", target=TARGET,
        yardstick=f"Pillow alone {plain:.2f} s of processors", detail=f"{ours:.2f} s")


def _drawn(what: str, folder: Path) -> list[Item]:
    """Fifty pictures with noise, as pictures have, each under twenty names."""
    ending, (width, height), mode = KINDS[what]
    rng = np.random.default_rng(1)
    items = []
    for number in range(PICTURES):
        image, mask = folder / f"{number}{ending}", folder / f"{number}-mask.png"
        if number < 50:
            coarse = Image.fromarray(rng.integers(40, 200, (12, 16, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
            noisy = np.clip(np.asarray(coarse).astype(np.int16) + rng.integers(-6, 7, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).convert(mode).save(image)
            marked = np.zeros((height, width), np.uint8)
            marked[height // 4 : height // 2, width // 5 : width // 2] = 255
            Image.fromarray(marked).save(mask)
        else:
            os.link(folder / f"{number % 50}{ending}", image)
            os.link(folder / f"{number % 50}-mask.png", mask)
        items.append(Item(image, mask=mask if mode == "L" and ending == ".png" else None))
    return items


def _seconds(read: Callable[[Sequence[Item]], None], items: Sequence[Item]) -> float:
    started = time.process_time()
    read(items)
    return time.process_time() - started


def _ours(items: Sequence[Item]) -> None:
    task = TaskConfig(name="melanoma" if items[0].mask is None else "lung-segmentation", image_size=SIZE)
    for example in read_examples(items, task, bits_in_use(items, task)):
        assert not example.problem, example.problem


def _pillow(items: Sequence[Item]) -> None:
    if items[0].mask is not None:  # pairs are read one after the other
        for item in items:
            assert item.mask is not None
            _fitted(_upright(item.image).convert("L"), Image.Resampling.BICUBIC)
            labels = np.asarray(_upright(item.mask))
            assert len(np.unique(labels)) == 2
            _fitted(Image.fromarray(((labels != 0) * 255).astype(np.uint8)), Image.Resampling.NEAREST)
        return
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), 64 * workers):
            list(pool.map(lambda item: _fitted(_upright(item.image).convert("RGB"), Image.Resampling.BICUBIC), items[start : start + 64 * workers]))


def _upright(path: Path) -> Image.Image:
    raw = path.read_bytes()
    hashlib.sha256(raw).hexdigest()
    with Image.open(io.BytesIO(raw), formats=("JPEG", "PNG")) as image:
        return ImageOps.exif_transpose(image)


def _fitted(image: Image.Image, resampling: Image.Resampling) -> None:
    np.array(ImageOps.fit(image, (SIZE, SIZE), resampling), dtype=np.uint8)


if __name__ == "__main__":
    run_alone(figures, __doc__, repeat=5)
