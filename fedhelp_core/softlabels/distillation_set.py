"""The distillation set: public images and the teachers' mixed answers, one read-only object tree named by its content.

    softlabels/<sha256>/index.json                 written last; <sha256> is the sha256 of these bytes
    softlabels/<sha256>/images-00000.safetensors   images uint8 (N, K, S, S), of volumes (N, K, S, S, S)
    softlabels/settled/<sha256>.txt                which set it is for these images and teachers, whatever the answers
    softlabels/<sha256>/answers-00000.safetensors  answers: float16 class probabilities (N, C), or masks, deflated (answers.py);
                                                   sha256 uint8 (N, 32): of each image's content, its name in the ledger

`prefetch` writes it, silos load it. The index holds every shard's sha256, so whoever knows the set's name can check all of
it. The name is a function of images, answers and settings alone: who asked, when, and how many at once is not in it. (Of masks
also of the zlib that deflated them, whose builds differ; what is in them does not.) Shapes: N images, K channels, S side in
pixels or voxels, C the teachers' classes, F foregrounds, B batch.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from fedhelp_core.disk import atomic_write, digest_of, disk_errors
from fedhelp_core.errors import ConfigError, DataError, NotFound
from fedhelp_core.protocol.keys import SOFT_LABELS, set_object, set_of_index, settled_set
from fedhelp_core.softlabels.answers import AnswerEncoding, bounds
from fedhelp_core.softlabels.public_images import PublicImages
from fedhelp_core.softlabels.teachers import TeacherIdentity
from fedhelp_core.softlabels.tensors import HEADER_ROOM, hash_rows, pack, unpack
from fedhelp_core.store.base import Store

if TYPE_CHECKING:
    import torch

    from fedhelp_core.algorithm.batches import Rows

IMAGES_PER_SHARD = 2048
_SHARD_BYTES = 32 * 2**20  # large images: fewer per shard, so that building one needs little memory
_MAX_INDEX_BYTES = 16 * 2**20

_Sha = Field(pattern=r"^[0-9a-f]{64}$")
_Side = Annotated[int, Field(ge=1, le=2**20)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Shard(_Strict):
    images: int = Field(ge=1, le=2**24)
    images_sha256: str = _Sha
    answers_stored: int = Field(ge=0, le=2**40)
    """Length of the array `answers`."""
    answers_sha256: str = _Sha


class _Source(_Strict):
    """A teacher's identity and its share of the mix."""

    name: str
    version: str
    classes: int
    output: str
    preprocessing: str
    prompts: list[str]
    mask: list[int]
    share: float
    each: bool = False

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Of classes and masks the index is as it was before there were findings, and so is its name."""
        return {name: value for name, value in handler(self).items() if name != "each" or value}


class Index(_Strict):
    """What index.json says."""

    format: Literal["fedhelp-distillation-set/3"] = "fedhelp-distillation-set/3"
    images: int = Field(ge=1, le=2**32)
    classes: int = Field(ge=1, le=2**20)
    answer_shape: list[_Side] = Field(min_length=1, max_length=4)
    answer_dtype: Literal["float16", "uint8"]
    image_shape: list[_Side] = Field(min_length=3, max_length=4)
    teachers: list[_Source]
    shards: list[_Shard] = Field(min_length=1, max_length=100_000)

    @property
    def encoding(self) -> AnswerEncoding:
        """Of an answer."""
        return AnswerEncoding(tuple(self.answer_shape), self.answer_dtype, any(teacher.each for teacher in self.teachers))

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same set, the same bytes."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()


class _Shards:
    """Where a row lies among shards."""

    def __init__(self, lengths: Sequence[int]) -> None:
        import torch  # prefetch on the hub has no torch

        self.ends = torch.tensor(lengths).cumsum(0)

    def of(self, index_B: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """(shard, places in the batch, rows in the shard) of every shard that is needed."""
        import torch

        part_B = torch.bucketize(index_B, self.ends, right=True)
        for part in torch.unique(part_B).tolist():
            chosen = part_B == part
            yield part, chosen, index_B[chosen] - (0 if part == 0 else int(self.ends[part - 1]))


class MappedRows:
    """Rows of memory-mapped shards: only the rows of a batch are read, and converted to `dtype`."""

    def __init__(self, parts: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
        import torch  # prefetch on the hub has no torch

        self._parts = list(parts)
        self._dtype = dtype
        self._shards = _Shards([part.shape[0] for part in parts])
        self.shape = torch.Size((int(self._shards.ends[-1]), *parts[0].shape[1:]))

    def __getitem__(self, index_B: torch.Tensor, /) -> torch.Tensor:
        """The rows at `index_B`, (B, ...) of `dtype`."""
        import torch

        if len(self._parts) == 1:
            return self._parts[0][index_B].to(self._dtype)
        rows = torch.empty((len(index_B), *self.shape[1:]), dtype=self._dtype)
        for part, chosen, local in self._shards.of(index_B):
            rows[chosen] = self._parts[part][local].to(self._dtype)
        return rows


class DeflatedRows:
    """Masks of memory-mapped shards: only the rows of a batch are inflated, to float32."""

    def __init__(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], encoding: AnswerEncoding) -> None:
        """`parts`: (deflated bytes, where each row ends) of every shard.

        Raises:
            ValueError: rows do not end where it says.
        """
        import torch  # prefetch on the hub has no torch

        self._parts = [(stored.numpy(), *bounds(ends.numpy(), len(stored))) for stored, ends in parts]
        self._encoding = encoding
        self._shards = _Shards([len(ends) for _, _, ends in self._parts])
        self.shape = torch.Size((int(self._shards.ends[-1]), *encoding.shape))

    def __getitem__(self, index_B: torch.Tensor, /) -> torch.Tensor:
        """The rows at `index_B`, (B, F, S, ...) float32 in [0, 1].

        Raises:
            DataError: one cannot be inflated.
        """
        import torch

        rows = torch.empty((len(index_B), *self.shape[1:]), dtype=torch.float32)
        for part, chosen, local in self._shards.of(index_B):
            stored, starts, ends = self._parts[part]
            for place, row in zip(torch.nonzero(chosen).flatten().tolist(), local.tolist(), strict=True):
                try:
                    inflated = self._encoding.inflated(stored[starts[row] : ends[row]].tobytes())
                except ValueError as e:
                    raise DataError(f"distillation set: {e}; delete its folder in the store and run soft_label_prefetch again") from e
                rows[place] = torch.from_numpy(inflated.copy()).to(torch.float32).div_(255)
        return rows


@dataclass(frozen=True)
class DistillationSet:
    """Images uint8 (N, K, S, ...) and probabilities float32: (N, C) of classes, rows summing to 1 within what float16 allows (1e-3); or
    (N, F, S, ...) of foregrounds. Nothing is copied into memory before its batch is made."""

    images_NCHW: Rows
    probabilities_NC: Rows
    classes: int
    sha256: str


def write_distillation_set(
    store: Store, images: PublicImages, answers: Callable[[range], NDArray[Any]], encoding: AnswerEncoding, classes: int,
    teachers: Sequence[tuple[TeacherIdentity, float]],
) -> str:
    """Write the set unless it is there already; its sha256 (hex). Memory is one shard and its copies, whatever the number of images.

    Shards are built twice, first to know the set's name, then to upload: no disk is needed, and a set that exists costs
    only the hashing.

    Args:
        store: Gets the set.
        images: All of its images.
        answers: The mixed answers about the images at these positions, (n, *encoding.shape).
        encoding: Of one answer.
        classes: C, the teachers' classes.
        teachers: Identity and share of the mix.
    """
    ranges = _shard_ranges(images, encoding)
    shards = [_described(_built(images, answers(chosen), encoding, chosen)) for chosen in ranges]
    index = Index(
        images=len(images.hashes), classes=classes, image_shape=list(images.shape), shards=shards, answer_shape=list(encoding.shape),
        answer_dtype=encoding.dtype, teachers=[_source(identity, share) for identity, share in teachers])  # type: ignore[arg-type]
    body = index.to_bytes()
    sha256 = _sha(body)
    if store.size(set_object(sha256, "index.json")) is None:
        for number, chosen in enumerate(ranges):
            _put(store, sha256, number, _built(images, answers(chosen), encoding, chosen))
        store.put_new(set_object(sha256, "index.json"), body)
    return _settled(store, index, sha256)


def _settled(store: Store, index: Index, sha256: str) -> str:
    """The one set of these images and teachers: of two prefetches at the same time, which may have read different answers about
    an image, the first that is done decides for both, and for all later ones."""
    question = index.model_dump(mode="json", exclude={"shards": {"__all__": {"answers_sha256", "answers_stored"}}})
    key = settled_set(_sha(json.dumps(question, sort_keys=True).encode()))
    if store.put_new(key, sha256.encode()):
        return sha256
    first = store.get(key, 64).decode(errors="replace")
    return first if store.size(set_object(first, "index.json")) is not None else sha256


def _source(identity: TeacherIdentity, share: float) -> _Source:
    return _Source(**asdict(identity) | {"prompts": list(identity.prompts), "mask": list(identity.mask)}, share=share)


@dataclass(frozen=True)
class _Built:
    """One shard's files."""

    images: int
    pixels: bytes
    answers: bytes
    answers_stored: int


def _shard_ranges(images: PublicImages, encoding: AnswerEncoding) -> list[range]:
    """Positions of each shard's images."""
    per_shard = min(IMAGES_PER_SHARD, max(1, _SHARD_BYTES // (math.prod(images.shape) + encoding.bytes_per_image)))
    return [range(start, min(start + per_shard, len(images.hashes))) for start in range(0, len(images.hashes), per_shard)]


def _built(images: PublicImages, answers: NDArray[Any], encoding: AnswerEncoding, chosen: range) -> _Built:
    arrays = encoding.packed(answers)
    rows = pack(arrays | {"sha256": hash_rows(images.hashes[chosen.start : chosen.stop])})
    return _Built(len(chosen), pack({"images": np.moveaxis(images.pixels(chosen), -1, 1)}), rows, len(arrays["answers"]))


def _described(built: _Built) -> _Shard:
    return _Shard(images=built.images, images_sha256=_sha(built.pixels), answers_sha256=_sha(built.answers), answers_stored=built.answers_stored)


def _put(store: Store, sha256: str, number: int, built: _Built) -> None:
    store.put_new(set_object(sha256, shard_name("images", number)), built.pixels)
    store.put_new(set_object(sha256, shard_name("answers", number)), built.answers)


def known_sets(store: Store) -> list[str]:
    """sha256 (hex) of every set in the store."""
    return [sha256 for sha256 in map(set_of_index, store.list(SOFT_LABELS)) if sha256]


def read_index(store: Store, sha256: str) -> Index:
    """The index of the set `sha256`, checked against its name.

    Raises:
        NotFound: no such set.
        DataError: damaged or forged.
    """
    key = set_object(sha256, "index.json")
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
        answers.append(_mapped(store, sha256, ("answers", number, shard.answers_sha256), cache_dir, _answer_arrays(index, shard)))
    import torch  # prefetch on the hub has no torch

    return DistillationSet(
        images_NCHW=MappedRows(images, torch.uint8), probabilities_NC=_answer_rows(sha256, answers, index.encoding), classes=index.classes,
        sha256=sha256)


def _answer_rows(sha256: str, shards: list[dict[str, torch.Tensor]], encoding: AnswerEncoding) -> Rows:
    import torch

    if not encoding.masks:
        return MappedRows([shard["answers"] for shard in shards], torch.float32)
    try:
        return DeflatedRows([(shard["answers"], shard["ends"]) for shard in shards], encoding)
    except ValueError as e:
        raise _damaged(set_object(sha256, "answers"), str(e)) from e


def read_images(store: Store, sha256: str, index: Index, number: int) -> NDArray[np.uint8]:
    """The images (n, K, S, ...) of one shard, checked; numpy alone.

    Raises:
        NotFound: the shard is gone.
        DataError: it is damaged or forged.
    """
    shard = index.shards[number]
    return _arrays(store, set_object(sha256, shard_name("images", number)), shard.images_sha256, _image_arrays(index, shard))["images"]


def read_answers(store: Store, sha256: str, index: Index, number: int) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The answers (n, ...) of one shard, as they are kept, and the sha256 (hex) of the images that they are about, checked; numpy alone.

    Raises:
        NotFound: the shard is gone.
        DataError: it is damaged or forged.
    """
    shard = index.shards[number]
    key = set_object(sha256, shard_name("answers", number))
    found = _arrays(store, key, shard.answers_sha256, _answer_arrays(index, shard))
    try:
        return index.encoding.unpacked(found), tuple(row.tobytes().hex() for row in found["sha256"])
    except ValueError as e:
        raise _damaged(key, str(e)) from e


_Expected = dict[str, tuple[str, tuple[int, ...]]]
"""Array's name -> dtype's name and shape."""


def _image_arrays(index: Index, shard: _Shard) -> _Expected:
    return {"images": ("uint8", (shard.images, *index.image_shape))}


def _answer_arrays(index: Index, shard: _Shard) -> _Expected:
    expected = index.encoding.expected(shard.images, shard.answers_stored) | {"sha256": ("uint8", (shard.images, 32))}
    return {name: (dtype, tuple(side or 0 for side in shape)) for name, (dtype, shape) in expected.items()}


def _bytes_of(expected: _Expected) -> int:
    return HEADER_ROOM + sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for dtype, shape in expected.values())


def _arrays(store: Store, key: str, sha256: str, expected: _Expected) -> dict[str, NDArray[Any]]:
    body = store.get(key, _bytes_of(expected))
    if _sha(body) != sha256:
        raise _damaged(key, f"has sha256 {_sha(body)}, expected {sha256}")
    try:
        return unpack(body, dict(expected))
    except ValueError as e:
        raise _damaged(key, str(e)) from e


def _mapped(
    store: Store, sha256: str, file: tuple[str, int, str], cache_dir: Path | None, expected: _Expected,
) -> dict[str, torch.Tensor]:
    """The tensors of a shard's file (kind, number, sha256), mapped."""
    from safetensors import SafetensorError, safe_open  # with torch only

    kind, number, file_sha256 = file
    key = set_object(sha256, shard_name(kind, number))
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
    cached = None if cache_dir is None or store.is_local else cache_dir / key
    if cached is not None and cached.is_file() and digest_of(cached)[0] == sha256:
        yield cached
        return
    path = store.fetch(key, max_bytes)
    try:
        if (found := digest_of(path)[0]) != sha256:
            raise _damaged(key, f"has sha256 {found}, expected {sha256}")
        yield path if cached is None else _kept(path, cached)
    finally:
        store.release(path)  # a mapping outlives its file's name


def _kept(path: Path, cached: Path) -> Path:
    """Copy into the cache under a name of our own first: another silo process may be doing the same."""
    with disk_errors(cached), atomic_write(cached) as scratch:
        shutil.copyfile(path, scratch)
    return cached


def shard_name(kind: str, number: int) -> str:
    """A shard's file in the set's folder."""
    return f"{kind}-{number:05d}.safetensors"


def _sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _damaged(key: str, what: str) -> DataError:
    return DataError(f"{key}: {what}; the object is damaged or forged: delete its folder in the store and run soft_label_prefetch again")
