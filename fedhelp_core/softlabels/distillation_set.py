"""The distillation set: public images and the teachers' mixed answers, one read-only object tree named by its content.

    softlabels/<sha256>/index.json                       written last; <sha256> is the sha256 of these bytes
    softlabels/<sha256>/images-00000.safetensors         images uint8 (N, 3, S, S)
    softlabels/<sha256>/probabilities-00000.safetensors  probabilities float16 (N, C)

`prefetch` writes it, silos load it. The index holds every shard's sha256, so whoever knows the set's name can check all of
it. Shapes: N images, S side in pixels, C the teachers' classes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedhelp_core.errors import ConfigError, DataError, NotFound
from fedhelp_core.softlabels.public_images import PublicImages
from fedhelp_core.softlabels.teachers import TeacherIdentity
from fedhelp_core.softlabels.tensors import HEADER_ROOM, pack, unpack
from fedhelp_core.store import Store, is_local, release

if TYPE_CHECKING:
    import torch

IMAGES_PER_SHARD = 4096
_SHARD_BYTES = 256 * 2**20  # large images: fewer per shard, so that building one needs little memory
_MAX_INDEX_BYTES = 16 * 2**20

_Sha = Field(pattern=r"^[0-9a-f]{64}$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Shard(_Strict):
    images: int = Field(ge=1, le=2**24)
    images_sha256: str = _Sha
    probabilities_sha256: str = _Sha


class _Source(_Strict):
    """A teacher's identity and its share of the mix."""

    name: str
    version: str
    classes: int
    output: str
    preprocessing: str
    share: float


class Index(_Strict):
    """What index.json says."""

    format: Literal["fedhelp-distillation-set/1"] = "fedhelp-distillation-set/1"
    images: int = Field(ge=1, le=2**32)
    classes: int = Field(ge=2, le=2**20)
    image_size: int = Field(ge=1, le=2**14)
    teachers: list[_Source]
    shards: list[_Shard] = Field(min_length=1, max_length=100_000)

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same set, the same bytes."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class DistillationSet:
    """Images uint8 (N, 3, S, S) and probabilities float32 (N, C); rows sum to 1 within what float16 allows (1e-3)."""

    images_NCHW: torch.Tensor
    probabilities_NC: torch.Tensor
    classes: int
    sha256: str


def write_distillation_set(
    store: Store, images: PublicImages, probabilities_NC: NDArray[np.float16], teachers: Sequence[tuple[TeacherIdentity, float]],
) -> str:
    """Write the set unless it is there already; its sha256 (hex). `teachers`: identity and share of the mix.

    Shards are built twice, first to know the set's name, then to upload: no disk is needed, and a set that exists costs
    only the hashing.
    """
    shards = [
        _Shard(images=count, images_sha256=_sha(pixels), probabilities_sha256=_sha(rows))
        for count, pixels, rows in _built(images, probabilities_NC)
    ]
    index = Index(
        images=len(images.hashes), classes=probabilities_NC.shape[1], image_size=images.image_size, shards=shards,
        teachers=[_Source(**asdict(identity), share=share) for identity, share in teachers])
    body = index.to_bytes()
    sha256 = _sha(body)
    if store.size(_key(sha256, "index.json")) is None:
        for number, (_count, pixels, rows) in enumerate(_built(images, probabilities_NC)):
            store.put_new(_key(sha256, _shard_name("images", number)), pixels)
            store.put_new(_key(sha256, _shard_name("probabilities", number)), rows)
        store.put_new(_key(sha256, "index.json"), body)
    return sha256


def _built(images: PublicImages, probabilities_NC: NDArray[np.float16]) -> Iterator[tuple[int, bytes, bytes]]:
    """(images in it, images file, probabilities file) of every shard."""
    per_shard = min(IMAGES_PER_SHARD, max(1, _SHARD_BYTES // (3 * images.image_size**2)))
    for start in range(0, len(images.hashes), per_shard):
        chosen = range(start, min(start + per_shard, len(images.hashes)))
        pixels_NCHW = images.pixels(chosen).transpose(0, 3, 1, 2)
        yield len(chosen), pack({"images": pixels_NCHW}), pack({"probabilities": probabilities_NC[chosen.start : chosen.stop]})


def read_index(store: Store, sha256: str) -> Index:
    """The index of the set `sha256`, checked against its name.

    Raises:
        NotFound: no such set.
        DataError: damaged or forged.
    """
    key = _key(sha256, "index.json")
    try:
        body = store.get(key, _MAX_INDEX_BYTES)
    except NotFound as e:
        raise NotFound(f"distillation set {sha256} is not in {store.url}; run soft_label_prefetch again") from e
    if _sha(body) != sha256:
        raise _damaged(key, f"has sha256 {_sha(body)}, expected {sha256}")
    try:
        index = Index.model_validate_json(body)
    except ValidationError as e:
        raise _damaged(key, f"is not an index ({e.errors()[0]['msg']})") from e
    if sum(shard.images for shard in index.shards) != index.images:
        raise _damaged(key, f"promises {index.images} images, but its shards hold {sum(shard.images for shard in index.shards)}")
    return index


def load_distillation_set(store: Store, sha256: str, cache_dir: Path | None = None, *, classes: int | None = None) -> DistillationSet:
    """The set `sha256`, every file checked against its name and the index.

    Files of a bucket are kept in `cache_dir` between calls; files of a folder are used in place. The images of a set of one
    shard are memory-mapped, so silos on one machine share their pages.

    Args:
        store: Where prefetch wrote the set.
        sha256: The set's name, as prefetch reported it.
        cache_dir: Local folder for copies; None keeps none.
        classes: C that the caller's config expects; None accepts what is recorded.

    Raises:
        NotFound: no such set, or a shard is gone.
        DataError: a file is damaged or forged.
        ConfigError: the set was recorded with another number of classes.
    """
    index = read_index(store, sha256)
    if classes is not None and classes != index.classes:
        raise ConfigError(
            f"distillation set {sha256[:12]} was recorded with {index.classes} classes, config says {classes}; prefetch again")
    side = index.image_size
    images = [_images(store, sha256, number, shard, side, cache_dir) for number, shard in enumerate(index.shards)]
    rows = [_probabilities(store, sha256, number, shard, index.classes) for number, shard in enumerate(index.shards)]
    import torch  # prefetch on the hub has no torch

    return DistillationSet(
        images_NCHW=images[0] if len(images) == 1 else torch.cat(images), probabilities_NC=torch.from_numpy(np.concatenate(rows)),
        classes=index.classes, sha256=sha256)


def _images(store: Store, sha256: str, number: int, shard: _Shard, side: int, cache_dir: Path | None) -> torch.Tensor:
    from safetensors import SafetensorError, safe_open  # with torch only

    key = _key(sha256, _shard_name("images", number))
    with _local_file(store, key, shard.images_sha256, shard.images * 3 * side**2, cache_dir) as path:
        try:
            with safe_open(path, framework="pt") as file:
                if set(file.keys()) != {"images"}:
                    raise _damaged(key, f"holds {sorted(file.keys())[:8]}, expected images")
                tensor: torch.Tensor = file.get_tensor("images")
        except SafetensorError as e:
            raise _damaged(key, f"is not a safetensors file ({e})") from e
    if str(tensor.dtype) != "torch.uint8" or tuple(tensor.shape) != (shard.images, 3, side, side):
        raise _damaged(key, f"holds {tensor.dtype} of shape {tuple(tensor.shape)}, expected uint8 of shape {(shard.images, 3, side, side)}")
    return tensor


def _probabilities(store: Store, sha256: str, number: int, shard: _Shard, classes: int) -> NDArray[np.float32]:
    key = _key(sha256, _shard_name("probabilities", number))
    body = store.get(key, shard.images * classes * 2 + HEADER_ROOM)
    if _sha(body) != shard.probabilities_sha256:
        raise _damaged(key, f"has sha256 {_sha(body)}, expected {shard.probabilities_sha256}")
    try:
        rows_NC = unpack(body, {"probabilities": (np.float16, (shard.images, classes))})["probabilities"]
    except ValueError as e:
        raise _damaged(key, str(e)) from e
    return rows_NC.astype(np.float32)


@contextmanager
def _local_file(store: Store, key: str, sha256: str, payload: int, cache_dir: Path | None) -> Iterator[Path]:
    """A local file with the object's bytes, checked; a copy in `cache_dir` where the store is not a folder."""
    cached = None if cache_dir is None or is_local(store) else cache_dir / key
    if cached is not None and cached.is_file() and _file_sha(cached) == sha256:
        yield cached
        return
    path = store.fetch(key, payload + HEADER_ROOM)
    try:
        if _file_sha(path) != sha256:
            raise _damaged(key, f"has sha256 {_file_sha(path)}, expected {sha256}")
        yield path if cached is None else _kept(path, cached)
    finally:
        release(store, path)  # a mapping outlives its file's name


def _kept(path: Path, cached: Path) -> Path:
    """Copy into the cache under a name of our own first: another silo process may be doing the same."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    scratch = cached.with_name(f"{cached.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        shutil.copyfile(path, scratch)
        scratch.replace(cached)
    finally:
        scratch.unlink(missing_ok=True)
    return cached


def _key(sha256: str, name: str) -> str:
    return f"softlabels/{sha256}/{name}"


def _shard_name(kind: str, number: int) -> str:
    return f"{kind}-{number:05d}.safetensors"


def _sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _file_sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(key: str, what: str) -> DataError:
    return DataError(f"{key}: {what}; the object is damaged or forged: delete its folder in the store and run soft_label_prefetch again")
