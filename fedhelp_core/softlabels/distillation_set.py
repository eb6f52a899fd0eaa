"""The distillation set: public images and the teachers' mixed answers, one read-only object tree named by its content.

    softlabels/<sha256>/index.json                 written last; <sha256> is the sha256 of these bytes
    softlabels/<sha256>/images-00000.safetensors   images uint8 (N, 3, S, S)
    softlabels/<sha256>/answers-00000.safetensors  answers (N, ...): float16 class probabilities (N, C); the index says which form.
                                                   And sha256 uint8 (N, 32): of each image's content, its name in the ledger

`prefetch` writes it, silos load it. The index holds every shard's sha256, so whoever knows the set's name can check all of
it. The name is a function of images, answers and settings alone: who asked, when, and how many at once is not in it. Shapes:
N images, S side in pixels, C the teachers' classes, B batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedhelp_core.errors import ConfigError, DataError, NotFound
from fedhelp_core.softlabels.public_images import PublicImages
from fedhelp_core.softlabels.teachers import AnswerForm, TeacherIdentity
from fedhelp_core.softlabels.tensors import HEADER_ROOM, hash_rows, pack, unpack
from fedhelp_core.store import Store, is_local, release

if TYPE_CHECKING:
    import torch

IMAGES_PER_SHARD = 4096
_SHARD_BYTES = 64 * 2**20  # large images: fewer per shard, so that building one needs little memory
_MAX_INDEX_BYTES = 16 * 2**20

_INDEX = re.compile(r"softlabels/[0-9a-f]{64}/index\.json")
_Sha = Field(pattern=r"^[0-9a-f]{64}$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Shard(_Strict):
    images: int = Field(ge=1, le=2**24)
    images_sha256: str = _Sha
    answers_sha256: str = _Sha


class _Source(_Strict):
    """A teacher's identity and its share of the mix."""

    name: str
    version: str
    classes: int
    output: str
    preprocessing: str
    prompts: list[str]
    share: float


class Index(_Strict):
    """What index.json says."""

    format: Literal["fedhelp-distillation-set/3"] = "fedhelp-distillation-set/3"
    images: int = Field(ge=1, le=2**32)
    classes: int = Field(ge=2, le=2**20)
    answer_shape: list[int] = Field(min_length=1, max_length=4)
    answer_dtype: Literal["float16"] = "float16"
    image_size: int = Field(ge=1, le=2**14)
    teachers: list[_Source]
    shards: list[_Shard] = Field(min_length=1, max_length=100_000)

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same set, the same bytes."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()


class MappedRows:
    """Rows of memory-mapped shards as if they were one tensor (N, ...): only the rows of a batch are read, and converted to `dtype`."""

    def __init__(self, parts: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
        import torch  # prefetch on the hub has no torch

        self._parts = list(parts)
        self._dtype = dtype
        self._ends = torch.tensor([part.shape[0] for part in parts]).cumsum(0)
        self.shape = torch.Size((int(self._ends[-1]), *parts[0].shape[1:]))

    def __getitem__(self, index_B: torch.Tensor) -> torch.Tensor:
        """The rows at `index_B`, (B, ...) of `dtype`."""
        import torch

        if len(self._parts) == 1:
            return self._parts[0][index_B].to(self._dtype)
        part_B = torch.bucketize(index_B, self._ends, right=True)
        rows = torch.empty((len(index_B), *self.shape[1:]), dtype=self._dtype)
        for part in torch.unique(part_B).tolist():
            chosen = part_B == part
            first = 0 if part == 0 else int(self._ends[part - 1])
            rows[chosen] = self._parts[part][index_B[chosen] - first].to(self._dtype)
        return rows


@dataclass(frozen=True)
class DistillationSet:
    """Images uint8 (N, 3, S, S) and probabilities float32 (N, C); rows sum to 1 within what float16 allows (1e-3). Nothing is copied
    into memory before its batch is made."""

    images_NCHW: MappedRows
    probabilities_NC: MappedRows
    classes: int
    sha256: str


def write_distillation_set(
    store: Store, images: PublicImages, answers: Callable[[range], NDArray[Any]], form: AnswerForm, classes: int,
    teachers: Sequence[tuple[TeacherIdentity, float]],
) -> str:
    """Write the set unless it is there already; its sha256 (hex). Memory is a few shards, whatever the number of images.

    Shards are built twice, first to know the set's name, then to upload: no disk is needed, and a set that exists costs
    only the hashing.

    Args:
        store: Gets the set.
        images: All of its images.
        answers: The mixed answers about the images at these positions, (n, *form.shape).
        form: Of one answer.
        classes: C, the teachers' classes.
        teachers: Identity and share of the mix.
    """
    shards = [
        _Shard(images=count, images_sha256=_sha(pixels), answers_sha256=_sha(rows)) for count, pixels, rows in _built(images, answers, form)]
    index = Index(
        images=len(images.hashes), classes=classes, image_size=images.image_size, shards=shards, answer_shape=list(form.shape),
        teachers=[_Source(**asdict(identity) | {"prompts": list(identity.prompts)}, share=share) for identity, share in teachers])
    body = index.to_bytes()
    sha256 = _sha(body)
    if store.size(_key(sha256, "index.json")) is None:
        for number, (_count, pixels, rows) in enumerate(_built(images, answers, form)):
            store.put_new(_key(sha256, shard_name("images", number)), pixels)
            store.put_new(_key(sha256, shard_name("answers", number)), rows)
        store.put_new(_key(sha256, "index.json"), body)
    return sha256


def _built(images: PublicImages, answers: Callable[[range], NDArray[Any]], form: AnswerForm) -> Iterator[tuple[int, bytes, bytes]]:
    """(images in it, images file, answers file) of every shard."""
    per_shard = min(IMAGES_PER_SHARD, max(1, _SHARD_BYTES // (3 * images.image_size**2 + form.bytes_per_image)))
    for start in range(0, len(images.hashes), per_shard):
        chosen = range(start, min(start + per_shard, len(images.hashes)))
        pixels_NCHW = images.pixels(chosen).transpose(0, 3, 1, 2)
        yield len(chosen), pack({"images": pixels_NCHW}), pack({"answers": answers(chosen), "sha256": hash_rows(images.hashes[start : chosen.stop])})


def known_sets(store: Store) -> list[str]:
    """sha256 (hex) of every set in the store."""
    return [key.split("/")[1] for key in store.list("softlabels/") if _INDEX.fullmatch(key)]


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

    Files of a bucket are kept in `cache_dir` between calls; files of a folder are used in place. All are memory-mapped, so
    silos on one machine share their pages.

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
    images, answers = [], []
    for number, shard in enumerate(index.shards):
        images.append(_mapped(store, sha256, ("images", number, shard.images_sha256), cache_dir, _image_arrays(index, shard))["images"])
        answers.append(_mapped(store, sha256, ("answers", number, shard.answers_sha256), cache_dir, _answer_arrays(index, shard))["answers"])
    import torch  # prefetch on the hub has no torch

    return DistillationSet(
        images_NCHW=MappedRows(images, torch.uint8), probabilities_NC=MappedRows(answers, torch.float32), classes=index.classes, sha256=sha256)


def read_images(store: Store, sha256: str, index: Index, number: int) -> NDArray[np.uint8]:
    """The images (n, 3, S, S) of one shard, checked; numpy alone.

    Raises:
        NotFound: the shard is gone.
        DataError: it is damaged or forged.
    """
    shard = index.shards[number]
    return _arrays(store, _key(sha256, shard_name("images", number)), shard.images_sha256, _image_arrays(index, shard))["images"]


def read_answers(store: Store, sha256: str, index: Index, number: int) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The answers (n, ...) of one shard and the sha256 (hex) of the images that they are about, checked; numpy alone.

    Raises:
        NotFound: the shard is gone.
        DataError: it is damaged or forged.
    """
    shard = index.shards[number]
    found = _arrays(store, _key(sha256, shard_name("answers", number)), shard.answers_sha256, _answer_arrays(index, shard))
    return found["answers"], tuple(row.tobytes().hex() for row in found["sha256"])


_Expected = dict[str, tuple[str, tuple[int, ...]]]
"""Array's name -> dtype's name and shape."""


def _image_arrays(index: Index, shard: _Shard) -> _Expected:
    return {"images": ("uint8", (shard.images, 3, index.image_size, index.image_size))}


def _answer_arrays(index: Index, shard: _Shard) -> _Expected:
    return {"answers": (index.answer_dtype, (shard.images, *index.answer_shape)), "sha256": ("uint8", (shard.images, 32))}


def _bytes_of(expected: _Expected) -> int:
    return HEADER_ROOM + sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for dtype, shape in expected.values())


def _arrays(store: Store, key: str, sha256: str, expected: _Expected) -> dict[str, NDArray[Any]]:
    body = store.get(key, _bytes_of(expected))
    if _sha(body) != sha256:
        raise _damaged(key, f"has sha256 {_sha(body)}, expected {sha256}")
    try:
        return unpack(body, {name: (np.dtype(dtype).type, shape) for name, (dtype, shape) in expected.items()})
    except ValueError as e:
        raise _damaged(key, str(e)) from e


def _mapped(
    store: Store, sha256: str, file: tuple[str, int, str], cache_dir: Path | None, expected: _Expected,
) -> dict[str, torch.Tensor]:
    """The tensors of a shard's file (kind, number, sha256), mapped."""
    from safetensors import SafetensorError, safe_open  # with torch only

    kind, number, file_sha256 = file
    key = _key(sha256, shard_name(kind, number))
    with _local_file(store, key, file_sha256, _bytes_of(expected), cache_dir) as path:
        try:
            with safe_open(path, framework="pt") as opened:
                if set(opened.keys()) != set(expected):
                    raise _damaged(key, f"holds {sorted(opened.keys())[:8]}, expected {sorted(expected)}")
                tensors: dict[str, torch.Tensor] = {name: opened.get_tensor(name) for name in expected}
        except SafetensorError as e:
            raise _damaged(key, f"is not a safetensors file ({e})") from e
    for name, (dtype, shape) in expected.items():
        tensor = tensors[name]
        if str(tensor.dtype) != f"torch.{dtype}" or tuple(tensor.shape) != shape:
            raise _damaged(key, f"holds {tensor.dtype} of shape {tuple(tensor.shape)}, expected {dtype} of shape {shape}")
    return tensors


@contextmanager
def _local_file(store: Store, key: str, sha256: str, max_bytes: int, cache_dir: Path | None) -> Iterator[Path]:
    """A local file with the object's bytes, checked; a copy in `cache_dir` where the store is not a folder."""
    cached = None if cache_dir is None or is_local(store) else cache_dir / key
    if cached is not None and cached.is_file() and _file_sha(cached) == sha256:
        yield cached
        return
    path = store.fetch(key, max_bytes)
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


def shard_name(kind: str, number: int) -> str:
    """A shard's file in the set's folder."""
    return f"{kind}-{number:05d}.safetensors"


def _sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _file_sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(key: str, what: str) -> DataError:
    return DataError(f"{key}: {what}; the object is damaged or forged: delete its folder in the store and run soft_label_prefetch again")
