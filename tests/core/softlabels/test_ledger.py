"""The ledger keeps what was asked and answered, and knows when it was tampered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save

from fedhelp_core.errors import TeacherError
from fedhelp_core.softlabels.ledger import batch_sha
from fedhelp_core.softlabels.public_images import read_public_images
from fedhelp_core.store.base import Store
from tests.core.softlabels.helpers import PICTURES, CountingTeacher, draw, run, spoil


def answers_in(store: Store) -> list[str]:
    return [key for key in store.list("softlabels/ledger/") if "/answers/" in key]


def forged(tensors: dict[str, NDArray[Any]]) -> Callable[[bytes], bytes]:
    return lambda body: save({**load(body), **tensors}, {"fedhelp": json.dumps({"run": "", "tries": 1, "seconds": 0.1})})


DAMAGED_BATCHES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut off": (lambda body: body[:-3], "is not a safetensors file"),
    "empty": (lambda _: b"", "is not a safetensors file"),
    "something else": (lambda _: b"<html>no such bucket</html>", "is not a safetensors file"),
    "other names": (
        lambda body: save({"rows": load(body)["answers"]}), r"expected the arrays \['answers', 'images'\], got \['rows'\]"),
    "another dtype": (forged({"answers": np.full((2, 2), 0.5, np.float32)}), "expected answers as float16"),
    "other classes": (forged({"answers": np.full((2, 3), 1 / 3, np.float16)}), r"shape \(None, 2\), got float16 of shape \(2, 3\)"),
    "fewer answers": (forged({"answers": np.full((1, 2), 0.5, np.float16)}), "2 images but 1 answers"),
    "other images": (forged({"images": np.zeros((2, 32), np.uint8)}), "the images in it are not those of its name"),
    "no probabilities": (forged({"answers": np.full((2, 2), 0.75, np.float16)}), "rows that are not probabilities"),
    "negative": (forged({"answers": np.array([[1.5, -0.5]] * 2, np.float16)}), "rows that are not probabilities"),
    "NaN": (forged({"answers": np.full((2, 2), np.nan, np.float16)}), "rows that are not probabilities"),
}


class TestDamagedLedger:
    @pytest.mark.parametrize(("change", "words"), DAMAGED_BATCHES.values(), ids=DAMAGED_BATCHES.keys())
    def test_a_damaged_batch_is_named_and_never_used(self, local: Store, tmp_path: Path, change: Callable[[bytes], bytes], words: str) -> None:
        public = draw(tmp_path / "public", 0, 50)
        run(local, public, CountingTeacher())
        (key,) = answers_in(local)
        spoil(local, key, change)
        with pytest.raises(TeacherError, match=rf"{key}: .*{words}.*delete it to ask again"):
            run(local, public, CountingTeacher())

    def test_a_deleted_batch_is_asked_again_alone(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50, 100)
        before, after = CountingTeacher(), CountingTeacher()
        first = run(local, public, before)
        hashes = read_public_images(public, PICTURES).hashes
        (key,) = [key for key in answers_in(local) if batch_sha(hashes[2:])[:16] in key]
        local.delete(key)
        assert run(local, public, after).distillation_set_sha256 == first.distillation_set_sha256
        assert after.requests == before.requests[1:]

    def test_a_batch_under_another_name_is_refused(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50)
        run(local, public, CountingTeacher())
        (key,) = answers_in(local)
        local.put(key.rpartition("/")[0] + "/00000002-" + "0" * 16 + ".safetensors", local.get(key))
        with pytest.raises(TeacherError, match="not those of its name"):
            run(local, public, CountingTeacher())

    @pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff"])
    def test_a_damaged_card_is_named(self, local: Store, tmp_path: Path, body: bytes) -> None:
        public = draw(tmp_path / "public", 0)
        run(local, public, CountingTeacher())
        (card,) = local.list("softlabels/teachers/")
        local.put(card, body)
        with pytest.raises(TeacherError, match=f"{card}: .*delete it to go on"):
            run(local, public, CountingTeacher())
