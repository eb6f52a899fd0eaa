"""A silo's images decoded once and kept: uint8 tensors, memory-mapped from a cache file on the silo's volume.

Called by silo.py and by studies. The cache's name is a hash over paths, sizes, modification times, labels and preprocessing,
so a changed, added or relabelled image is decoded anew. Shapes: N images, S the side in pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedhelp_core.config import SiloConfig, TaskConfig
from fedhelp_core.data.datalist import Manifest, manifest_of
from fedhelp_core.data.decode import decode_all, preprocessing
from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.disk import explained
from fedhelp_core.errors import ConfigError, DataError, listed
from fedhelp_core.tasks import TASKS
from fedhelp_core.weights import write_weights

_KEPT_CACHES = 2  # the one in use, and the one before it for a silo that goes back and forth between two configs


@dataclass(frozen=True)
class ImageArrays:
    """One split: images uint8 (N, 3, S, S), labels int64 (N,)."""

    images_NCHW: Tensor
    labels_N: Tensor


@dataclass(frozen=True)
class SiloArrays:
    """All splits of one silo."""

    training: ImageArrays
    validation: ImageArrays
    test: ImageArrays


def load_silo_arrays(config: SiloConfig, task: TaskConfig) -> SiloArrays:
    """Every image of the silo, from the cache where it is still true.

    Raises:
        ConfigError: a task whose files cannot be read.
        DataError: labels, lists or images cannot be used; everything wrong is listed.
        StorageFull: no room for the cache.
    """
    if TASKS[task.name].form != "classes":
        raise ConfigError(f"task.name: this version reads no files of {task.name}; its mathematics runs on arrays (algorithm/simulate.py) only")
    manifest = manifest_of(config, len(task.classes))
    folder = config.state / "cache"
    path = folder / f"arrays-{_digest(config.name, manifest, task.image_size)}.safetensors"
    found = _read(path, manifest, task.image_size)
    if found is None:
        tensors = _decoded(config.name, manifest, task.image_size)
        with explained(path):
            folder.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(f".{os.getpid()}.tmp")
            try:
                write_weights(scratch, {name: tensor.numpy() for name, tensor in tensors.items()}, "silo-images")
                os.replace(scratch, path)
            finally:
                scratch.unlink(missing_ok=True)
            _drop_old_caches(folder, path)
        found = _read(path, manifest, task.image_size)
        if found is None:
            raise DataError(f"{path}: could not be read back after it was written; check the silo's volume")
    return found


def _decoded(silo: str, manifest: Manifest, size: int) -> dict[str, Tensor]:
    """Images and labels of all splits, by name.

    Raises:
        DataError: with every image that cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, items in manifest.splits():
        pixels_NSSC = np.zeros((len(items), size, size, 3), np.uint8)
        for i, image in enumerate(decode_all([item.image for item in items], size)):
            if image.pixels_SSC is None:
                problems.append(f"silo {silo}: {image.problem}")
            else:
                pixels_NSSC[i] = image.pixels_SSC
        tensors[f"{name}.images"] = torch.from_numpy(pixels_NSSC).permute(0, 3, 1, 2).contiguous()
        tensors[f"{name}.labels"] = torch.tensor([item.label for item in items], dtype=torch.int64)
    if problems:
        raise DataError(listed(problems))
    return tensors


def _read(path: Path, manifest: Manifest, size: int) -> SiloArrays | None:
    """The cache at `path`; None where there is none, or a damaged one."""
    splits: dict[str, ImageArrays] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name, items in manifest.splits():
                images, labels = file.get_tensor(f"{name}.images"), file.get_tensor(f"{name}.labels")
                if tuple(images.shape) != (len(items), 3, size, size) or images.dtype != torch.uint8 or labels.shape != (len(items),):
                    return None
                splits[name] = ImageArrays(images, labels)
    except (FileNotFoundError, SafetensorError):
        return None
    return SiloArrays(**splits)


def _digest(silo: str, manifest: Manifest, size: int) -> str:
    """Name of the cache.

    Raises:
        DataError: with every file that is not there.
    """
    facts: list[object] = ["arrays/1", preprocessing(size)]
    problems: list[str] = []
    for name, item in _items(manifest):
        try:
            stat = item.image.stat()
            facts.append([name, str(item.image), item.label, stat.st_size, stat.st_mtime_ns])
        except OSError as e:
            problems.append(f"silo {silo}: {item.image}: no such image file ({e.strerror}); listed in {manifest.source}")
    if problems:
        raise DataError(listed(problems))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _items(manifest: Manifest) -> Iterator[tuple[str, Item]]:
    for name in SPLITS:
        for item in getattr(manifest, name):
            yield name, item


def _drop_old_caches(folder: Path, keep: Path) -> None:
    caches = sorted(folder.glob("arrays-*.safetensors"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    for path in [p for p in caches if p != keep][_KEPT_CACHES - 1 :]:
        path.unlink(missing_ok=True)
