"""Valid files with a few bytes changed: a refusal or the right answer, never a traceback or another picture.

    python -m tests.core.data.mutations [--count 10000] [--first 0]

`make fuzz-files` runs ten thousand; test_mutations.py a few hundred. What a file without a checksum says after a change can only be taken at its
word: a JPEG's or a voxel's own bytes, a number that nothing else in the file contradicts. Everything else must be as before, or refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.config.silo import DatalistData
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.datalist import read_datalist
from fedhelp_core.data.decode import decode
from fedhelp_core.data.grid import Volume, spacing_of
from fedhelp_core.data.items import Item
from fedhelp_core.data.pictures import checked_pair
from fedhelp_core.data.public_layouts import Options, hospitals_of
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.data.volumes import opened
from fedhelp_core.errors import ConfigError, DataError
from tests.core.data.writers import UPRIGHT, canonical, write_multiframe, write_nifti, write_series

PNEUMONIA = TaskConfig(name="pneumonia", image_size=24)
VOXELS = np.random.default_rng(1).integers(1, 4000, (10, 9, 8)).astype(np.int16)


@dataclass(frozen=True)
class Kind:
    """One format: its files, which of them is changed, and what must be true of an answer. `accepted` raises AssertionError."""

    write: Callable[[Path], Path]
    """Writes into a folder; the file to change."""
    accepted: Callable[[Path, Path, int], None]
    """(folder, changed file, byte that was changed) -> nothing. Unusable and DataError mean that it was refused."""


def _same_volume(found: Volume, *, differing: int) -> None:
    voxels, affine = canonical(found.voxels_XYZ, found.affine)
    truth, right = canonical(VOXELS, UPRIGHT)
    assert voxels.shape == truth.shape, "another shape"
    assert np.allclose(spacing_of(affine), spacing_of(right), rtol=0.03), "another spacing"
    assert np.abs(affine[:3, :3] / spacing_of(affine) - np.eye(3)).max() < 0.02, "other directions"
    assert (voxels != truth).sum() <= differing, f"{(voxels != truth).sum()} voxels differ"


def _nifti(name: str, **options: Any) -> Kind:
    def accepted(folder: Path, path: Path, byte: int) -> None:
        found = opened(path)
        if 112 <= byte < 120:  # scl_slope, scl_inter: nothing contradicts them
            return
        _same_volume(found, differing=3 if byte >= 352 else 0)

    return Kind(lambda folder: write_nifti(folder / name, VOXELS, **options), accepted)


def _series() -> Kind:
    def accepted(folder: Path, path: Path, byte: int) -> None:
        pixels = path.stat().st_size - VOXELS[:, :, 0].nbytes
        _same_volume(opened(folder), differing=3 if byte >= pixels else 0)

    return Kind(lambda folder: write_series(folder, VOXELS, bits=16)[4], accepted)


def _multiframe() -> Kind:
    def accepted(folder: Path, path: Path, byte: int) -> None:
        found = opened(path)
        if byte >= path.stat().st_size - VOXELS.nbytes:
            _same_volume(found, differing=3)
        # shared spacing, orientation and scaling stand in the file once: nothing contradicts them

    return Kind(lambda folder: write_multiframe(folder / "one.dcm", VOXELS), accepted)


def _compressed(syntax: str) -> Kind:
    def write(folder: Path) -> Path:
        import gdcm

        from tests.core.data.test_dicom import compressed

        paths = write_series(folder, VOXELS)
        for path in paths:
            compressed(path, getattr(gdcm.TransferSyntax, syntax))
        return paths[4]

    def accepted(folder: Path, path: Path, byte: int) -> None:
        _same_volume(opened(folder), differing=VOXELS[:, :, 0].size)  # no checksum in the stream: one slice may say anything

    return Kind(write, accepted)


GREY = np.random.default_rng(2).integers(0, 255, (24, 24), np.uint8)
COLOURS = np.random.default_rng(3).integers(0, 255, (24, 24, 3), np.uint8)
MARKED = np.zeros((24, 24), np.uint8)
MARKED[4:15, 2:9] = 255


def _png(pixels: NDArray[Any], **options: Any) -> Kind:
    def write(folder: Path) -> Path:
        Image.fromarray(pixels).save(folder / "a.png", **options)
        return folder / "a.png"

    def accepted(folder: Path, path: Path, byte: int) -> None:
        found = decode(path, 24, 16)
        if found.pixels_SSC is None:
            raise Unusable(found.problem)
        truth = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
        assert (found.pixels_SSC == (truth if truth.ndim == 3 else truth[..., None])).all(), "another picture"

    return Kind(write, accepted)


def _jpeg() -> Kind:
    def write(folder: Path) -> Path:
        Image.fromarray(COLOURS).save(folder / "a.jpeg")
        return folder / "a.jpeg"

    def accepted(folder: Path, path: Path, byte: int) -> None:
        found = decode(path, 24)
        if found.pixels_SSC is None:
            raise Unusable(found.problem)
        with Image.open(path) as image:
            if image.size == (24, 24):
                assert (found.pixels_SSC == np.asarray(image.convert("RGB"))).all(), "not what the file says"

    return Kind(write, accepted)


def _mask() -> Kind:
    def write(folder: Path) -> Path:
        Image.fromarray(GREY).save(folder / "a.png")
        Image.fromarray(MARKED).convert("P").save(folder / "mask.png")
        return folder / "mask.png"

    def accepted(folder: Path, path: Path, byte: int) -> None:
        _, labels = checked_pair(Item(folder / "a.png", mask=path))
        assert ((labels != 0) == (MARKED != 0)).all(), "another mask"

    return Kind(write, accepted)


def _list() -> Kind:
    def write(folder: Path) -> Path:
        for number in range(4):
            (folder / f"{number}.png").write_bytes(b"")
        rows = "".join(f"{n}.png;{n % 2};{'test' if n > 2 else 'train'};Müller {n}\n" for n in range(4))
        (folder / "list.csv").write_text(f"image;label;split;patient\n{rows}", encoding="utf-8")
        return folder / "list.csv"

    def accepted(folder: Path, path: Path, byte: int) -> None:
        found = hospitals_of("csv", folder, PNEUMONIA, Options())
        items = [item for one in found.values() for _, members in one.manifest.splits() for item in members]
        problems = [problem for one in found.values() for problem in one.manifest.problems]
        assert len(items) + len(problems) >= min(4, path.read_bytes().count(b"\n") - 1) - 1, "rows are lost"
        right = {f"{n}.png": n % 2 for n in range(4)}
        wrong = [item for item in items if right.get(item.image.name, item.label) != item.label]
        assert len(wrong) <= 1, "labels of rows that were not touched"

    return Kind(write, accepted)


def _datalist() -> Kind:
    def write(folder: Path) -> Path:
        (folder / "list.json").write_text(
            '{"classes": ["normal", "pneumonia"], "training": [{"image": "0.png", "label": 0}, {"image": "1.png", "label": 1}],'
            ' "test": [{"image": "2.png", "label": 1}]}', encoding="utf-8")
        return folder / "list.json"

    def accepted(folder: Path, path: Path, byte: int) -> None:
        read_datalist(DatalistData(layout="datalist", datalist=path))

    return Kind(write, accepted)


KINDS: dict[str, Kind] = {
    "nifti": _nifti("a.nii"), "nifti.gz": _nifti("a.nii.gz"), "nifti-2": _nifti("a.nii", version=2),
    "big-endian nifti": _nifti("a.nii", big_endian=True), "dicom": _series(), "multiframe": _multiframe(),
    "jpeg lossless": _compressed("JPEGLosslessProcess14_1"), "jpeg-ls": _compressed("JPEGLSLossless"),
    "jpeg 2000": _compressed("JPEG2000Lossless"), "rle": _compressed("RLELossless"),
    "png": _png(COLOURS), "grey png": _png(GREY), "16-bit png": _png(GREY.astype(np.uint16) * 257), "jpeg": _jpeg(), "mask": _mask(),
    "csv": _list(), "datalist": _datalist()}


def mutate(seed: int, folder: Path) -> tuple[str, str]:
    """Writes, changes and reads one file; its kind, and what came of it: right, refused, or what is wrong."""
    rng = np.random.default_rng([9, seed])
    name = list(KINDS)[seed % len(KINDS)]
    kind = KINDS[name]
    path = kind.write(folder)
    body = bytearray(path.read_bytes())
    byte = int(rng.integers(min(len(body), 1500) if rng.random() < 0.6 else len(body)))  # heads are where the meaning is
    how = rng.integers(4)
    if how == 0:
        body[byte] ^= 1 << int(rng.integers(8))
    elif how == 1:
        body[byte] = int(rng.integers(256))
    elif how == 2:
        body[byte] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x2D, 0x30, 0x39]))
    else:
        del body[max(byte, 1):]
    if bytes(body) == path.read_bytes():
        return name, "right"
    path.write_bytes(body)
    try:
        kind.accepted(folder, path, byte)
    except (Unusable, DataError, ConfigError) as e:
        sentences = getattr(e, "problems", (str(e),))
        good = all(sentence.isprintable() and sentence for sentence in sentences)
        return name, "refused" if good else f"WRONG: refused without a sentence that can be printed: {sentences!r}"
    except AssertionError as e:
        return name, f"WRONG (byte {byte}, way {how}): {e}"
    except Exception as e:
        return name, f"TRACEBACK (byte {byte}, way {how}): {type(e).__name__}: {e}"
    return name, "right"


def main() -> int:
    """0 if nothing was wrong; each wrong seed is printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.core.data.mutations", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    found: Counter[tuple[str, str]] = Counter()
    wrong = 0
    for seed in range(arguments.first, arguments.first + arguments.count):
        with tempfile.TemporaryDirectory(prefix="fedhelp-fuzz-") as folder:
            name, outcome = mutate(seed, Path(folder))
        if outcome not in ("right", "refused"):
            wrong += 1
            print(f"seed {seed}: {name}: {outcome}", flush=True)
        found[name, outcome if outcome in ("right", "refused") else "wrong"] += 1
    for name in KINDS:
        print(f"{name:18} right {found[name, 'right']:5}  refused {found[name, 'refused']:5}  wrong {found[name, 'wrong']}")
    print(f"{arguments.count:,} files, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
