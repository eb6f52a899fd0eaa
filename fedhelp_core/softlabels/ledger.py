"""The ledger: every answer a teacher ever gave, one write-once object per batch, recorded before the next request is sent.

    softlabels/ledger/<teacher key>/<batch sha>.safetensors     images uint8 (N, 32), probabilities float16 (N, C)
    softlabels/teachers/<name>/<version sha16>.json             the class count that this name and version answered with

`prefetch` asks only about images that no batch holds. A kill loses at most the one request that was in flight. Two
prefetches of the same images at the same time may both ask; the first record of a batch counts for both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.errors import ConfigError, NotFound, TeacherError
from fedhelp_core.softlabels.teachers import SUM_TOLERANCE, TeacherIdentity
from fedhelp_core.softlabels.tensors import pack, unpack
from fedhelp_core.store import Store

_READERS = 8  # objects fetched at a time: a bucket answers in tens of ms, and a set of 100 000 images has 1600 batches
_MAX_BATCH_BYTES = 256 * 2**20


def batch_sha(hashes: Sequence[str]) -> str:
    """sha256 (hex) that names the batch with these image hashes: also the id of the request that asks about it."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


class Ledger:
    """What one teacher has answered so far.

    Raises:
        ConfigError: this name and version answered with another class count before.
    """

    def __init__(self, store: Store, teacher: TeacherIdentity) -> None:
        self._store = store
        self._teacher = teacher
        self._folder = f"softlabels/ledger/{teacher.key}/"
        self._card = f"softlabels/teachers/{teacher.name}/{hashlib.sha256(teacher.version.encode()).hexdigest()[:16]}.json"
        self._card_is_written = self._check_card()

    def answers(self) -> dict[str, NDArray[np.float16]]:
        """Image hash -> probabilities (C,) float16, of every recorded batch. Of two answers the one in the first object's name counts.

        Raises:
            TeacherError: a recorded batch is damaged or forged.
        """
        found: dict[str, NDArray[np.float16]] = {}
        with ThreadPoolExecutor(_READERS) as pool:
            for batch in pool.map(self._read, self._store.list(self._folder)):
                for image, row_C in batch.items():
                    found.setdefault(image, row_C)
        return found

    def record(self, hashes: Sequence[str], probabilities_NC: NDArray[np.float32]) -> None:
        """Keep the answer to one request, whose rows are in the order of `hashes`."""
        self._write_card()
        images = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(len(hashes), 32)
        self._store.put_new(
            f"{self._folder}{batch_sha(hashes)}.safetensors",
            pack({"images": images, "probabilities": probabilities_NC.astype(np.float16)}))

    def _read(self, key: str) -> dict[str, NDArray[np.float16]]:
        body = self._store.get(key, _MAX_BATCH_BYTES)
        try:
            arrays = unpack(body, {"images": (np.uint8, (None, 32)), "probabilities": (np.float16, (None, self._teacher.classes))})
            hashes = [row.tobytes().hex() for row in arrays["images"]]
            rows_NC = arrays["probabilities"]
            _check_batch(key, hashes, rows_NC)
        except ValueError as e:
            raise TeacherError(f"recorded answers {key}: {e}; the object is damaged or forged, delete it to ask again") from e
        return dict(zip(hashes, rows_NC, strict=True))

    def _check_card(self) -> bool:
        try:
            recorded = json.loads(self._store.get(self._card, 4096))["classes"]
        except NotFound:
            return False
        except (ValueError, KeyError, TypeError) as e:
            raise TeacherError(f"{self._card}: is not what was written there; delete it to go on") from e
        if recorded != self._teacher.classes:
            raise ConfigError(
                f"teacher {self._teacher.name!r} version {self._teacher.version!r}: config says {self._teacher.classes} classes, but it"
                f" answered with {recorded} before; correct `classes`, or give the new teacher another version")
        return True

    def _write_card(self) -> None:
        if not self._card_is_written:
            document = {"name": self._teacher.name, "version": self._teacher.version, "classes": self._teacher.classes}
            self._store.put_new(self._card, json.dumps(document, sort_keys=True).encode())
            self._card_is_written = True


def _check_batch(key: str, hashes: list[str], rows_NC: NDArray[np.float16]) -> None:
    """ValueError where the batch is not what `record` wrote under this name."""
    if len(hashes) != len(rows_NC):
        raise ValueError(f"{len(hashes)} images but {len(rows_NC)} answers")
    if batch_sha(hashes) != key.rpartition("/")[2].removesuffix(".safetensors"):
        raise ValueError("the images in it are not those of its name")
    rows_NC = rows_NC.astype(np.float64)
    # float16 has moved each row's sum by up to 2^-11 of itself on top of what was tolerated when it was recorded
    if not np.isfinite(rows_NC).all() or (rows_NC < 0).any() or (np.abs(rows_NC.sum(axis=1) - 1) > 2 * SUM_TOLERANCE).any():
        raise ValueError("rows that are not probabilities")
