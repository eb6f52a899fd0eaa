"""A silo's images decoded once and kept: uint8 tensors, memory-mapped from a cache file on the silo's volume.

Called by silo/work.py and by studies. The cache's name is a hash over paths, sizes, modification times, labels and preprocessing,
so a changed, added or relabelled image is decoded anew. Shapes: N images, S the side in pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedhelp_core.config.silo import SiloConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.datalist import Manifest, manifest_of
from fedhelp_core.data.examples import image_shape, preparation, target_shape
from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.data.problems import told
from fedhelp_core.data.reading import bits_in_use, read_examples
from fedhelp_core.disk import atomic_write, disk_errors
from fedhelp_core.errors import DataError
from fedhelp_core.registry.tasks import NOT_LABELLED
from fedhelp_core.weights.file import write_weights

_SHOWN = 5  # rows
_KEPT_CACHES = 2  # the one in use, and the one before it for a silo that goes back and forth between two configs


@dataclass(frozen=True)
class ImageArrays:
    """One split: images uint8 (N, C, S, S) (volumes: (N, 1, S, S, S)); labels int64 (N,), findings uint8 (N, K), or masks uint8
    (N, 1, S, S) of 0 and 1."""

    images_NCHW: Tensor
    labels_N: Tensor


@dataclass(frozen=True)
class SiloArrays:
    """All splits of one silo."""

    training: ImageArrays
    validation: ImageArrays
    test: ImageArrays


def load_silo_arrays(config: SiloConfig, task: TaskConfig, labelled: Sequence[bool] | None = None) -> SiloArrays:
    """Every image of the silo, from the cache where it is still true. `labelled`: which of the task's findings or regions the silo
    labels; None: all.

    Raises:
        ConfigError: a layout that this task has no use for.
        DataError: labels, lists or images cannot be used; everything wrong is listed.
        StorageFull: no room for the cache.
    """
    manifest = manifest_of(config, task)
    folder = config.state / "cache"
    path = folder / f"arrays-{_digest(config.name, manifest, task)}.safetensors"
    found = _read(path, manifest, task)
    if found is None:
        tensors = _decoded(config.name, manifest, task)
        with disk_errors(path):
            with atomic_write(path) as scratch:
                write_weights(scratch, {name: tensor.numpy() for name, tensor in tensors.items()}, "silo-images")
            _drop_old_caches(folder, path)
        found = _read(path, manifest, task)
        if found is None:
            raise DataError(f"{path}: could not be read back after it was written; check the silo's volume")
    return found if labelled is None or all(labelled) or task.form == "masks" else _only(found, labelled)


def _only(arrays: SiloArrays, labelled: Sequence[bool]) -> SiloArrays:
    """`arrays` with what the silo does not label marked as such."""
    away = [number for number, is_labelled in enumerate(labelled) if not is_labelled]

    def without(split: ImageArrays) -> ImageArrays:
        targets = split.labels_N.clone()
        targets[:, away] = NOT_LABELLED
        return replace(split, labels_N=targets)

    return SiloArrays(training=without(arrays.training), validation=without(arrays.validation), test=without(arrays.test))


def _decoded(silo: str, manifest: Manifest, task: TaskConfig) -> dict[str, Tensor]:
    """Images and targets of all splits, by name.

    Raises:
        DataError: with every file that cannot be used.
    """
    tensors: dict[str, Tensor] = {}
    problems: list[str] = []
    rows: dict[str, list[int]] = {}
    bits = manifest.pixel_bits or bits_in_use((item for _, _, item in _items(manifest)), task)
    for name, items in manifest.splits():
        images = np.zeros((len(items), *image_shape(task)), np.uint8)
        targets = np.zeros((len(items), *target_shape(task)), np.uint8 if target_shape(task) else np.int64)
        for i, example in enumerate(read_examples(items, task, bits)):
            if example.image_CHW is None:
                problems.append(f"silo {silo}: {example.problem}")
                rows.setdefault(name, []).append(i)
            else:
                images[i], targets[i] = example.image_CHW, example.target
        tensors[f"{name}.images"], tensors[f"{name}.labels"] = torch.from_numpy(images), torch.from_numpy(targets)
    if problems:
        raise DataError(told(problems), public=f"images that cannot be used: {_counted(rows)}")
    return tensors


def _read(path: Path, manifest: Manifest, task: TaskConfig) -> SiloArrays | None:
    """The cache at `path`; None where there is none, or a damaged one."""
    splits: dict[str, ImageArrays] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name, items in manifest.splits():
                images, labels = file.get_tensor(f"{name}.images"), file.get_tensor(f"{name}.labels")
                right = images.shape == (len(items), *image_shape(task)) and labels.shape == (len(items), *target_shape(task))
                if not right or images.dtype != torch.uint8:
                    return None
                splits[name] = ImageArrays(images, labels)
    except (FileNotFoundError, SafetensorError):
        return None
    return SiloArrays(**splits)


def _digest(silo: str, manifest: Manifest, task: TaskConfig) -> str:
    """Name of the cache.

    Raises:
        DataError: with every file that is not there.
    """
    facts: list[object] = ["arrays/2", preparation(task), manifest.pixel_bits]
    problems: list[str] = []
    rows: dict[str, list[int]] = {}
    for name, row, item in _items(manifest):
        for path in (item.image, *item.sequences, item.mask):
            if path is None:
                continue
            try:
                stat = path.stat()
                facts.append([name, str(path), list(item.findings) or item.label, stat.st_size, stat.st_mtime_ns])
            except OSError as e:
                problems.append(f"silo {silo}: {path}: no such image file ({e.strerror}); listed in {manifest.source}")
                rows.setdefault(name, []).append(row)
    if problems:
        raise DataError(told(problems), public=f"image files that are not there: {_counted(rows)}")
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _counted(rows: Mapping[str, Sequence[int]]) -> str:
    """How many of each split, and the first of their rows from 0: what a hub may know of files."""
    return ", ".join(
        f"{len(found)} {split} ({'rows' if len(found) > 1 else 'row'} {', '.join(map(str, found[:_SHOWN]))}{', ...' if len(found) > _SHOWN else ''})"
        for split, found in rows.items())


def _items(manifest: Manifest) -> Iterator[tuple[str, int, Item]]:
    """Split, row in it, and item, of all of them."""
    for name in SPLITS:
        for row, item in enumerate(getattr(manifest, name)):
            yield name, row, item


def _drop_old_caches(folder: Path, keep: Path) -> None:
    caches = sorted(folder.glob("arrays-*.safetensors"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    for path in [p for p in caches if p != keep][_KEPT_CACHES - 1 :]:
        path.unlink(missing_ok=True)
