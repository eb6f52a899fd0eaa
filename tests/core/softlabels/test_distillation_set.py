"""The set holds what was asked, and nobody changes it unnoticed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhelp_core.errors import ConfigError, DataError, NotFound
from fedhelp_core.softlabels import distillation_set
from fedhelp_core.softlabels.distillation_set import load_distillation_set, read_answers, read_index
from fedhelp_core.softlabels.public_images import read_public_images
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.core.softlabels.helpers import PICTURES, SIDE, CountingTeacher, answer_to, draw, in_memory, run, spoil


def flip_last_byte(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


class TestDistillationSet:
    @pytest.fixture
    def written(self, local: Store, tmp_path: Path) -> str:
        return run(local, draw(tmp_path / "public", 0, 64, 128), CountingTeacher()).distillation_set_sha256

    def test_it_holds_images_and_answers_in_the_order_of_the_images_hashes(self, local: Store, written: str, tmp_path: Path) -> None:
        loaded = load_distillation_set(local, written)
        images = read_public_images(tmp_path / "public", PICTURES)
        images_NCHW, probabilities_NC = in_memory(loaded)
        assert str(images_NCHW.dtype) == "torch.uint8"
        assert tuple(loaded.images_NCHW.shape) == (3, 3, SIDE, SIDE)
        assert images_NCHW.permute(0, 2, 3, 1).numpy().tobytes() == images.pixels([0, 1, 2]).tobytes()
        np.testing.assert_array_equal(probabilities_NC.numpy(), answer_to(images.pixels([0, 1, 2])).astype(np.float32))
        assert (loaded.classes, loaded.sha256) == (2, written)

    def test_its_rows_carry_the_names_that_they_have_in_the_ledger(self, local: Store, written: str, tmp_path: Path) -> None:
        _, hashes = read_answers(local, written, read_index(local, written), 0)
        assert hashes == read_public_images(tmp_path / "public", PICTURES).hashes

    def test_a_set_of_several_shards_holds_the_same(
        self, local: Store, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(distillation_set, "IMAGES_PER_SHARD", 2)
        sharded = run(local, tmp_path / "public", CountingTeacher()).distillation_set_sha256
        assert [shard.images for shard in read_index(local, sharded).shards] == [2, 1]
        one, other = load_distillation_set(local, written), load_distillation_set(local, sharded)
        assert all(mine.equal(its) for mine, its in zip(in_memory(one), in_memory(other), strict=True))
        for index in ([2, 0], [1, 1, 2], [0], []):
            chosen = torch.tensor(index, dtype=torch.int64)
            assert one.images_NCHW[chosen].equal(other.images_NCHW[chosen])
            assert one.probabilities_NC[chosen].equal(other.probabilities_NC[chosen])

    @pytest.mark.parametrize("name", ["index.json", "images-00000.safetensors", "answers-00000.safetensors"])
    @pytest.mark.parametrize("change", [flip_last_byte, lambda body: body[:-1], lambda _: b""], ids=["flipped bit", "cut off", "empty"])
    def test_any_changed_file_is_noticed(self, local: Store, written: str, name: str, change: Callable[[bytes], bytes]) -> None:
        spoil(local, f"softlabels/{written}/{name}", change)
        with pytest.raises(DataError, match=rf"softlabels/{written}/{name}: has sha256 .*damaged or forged.*run soft_label_prefetch again"):
            load_distillation_set(local, written)

    def test_answers_swapped_with_another_sets_are_noticed(self, local: Store, written: str, tmp_path: Path) -> None:
        other = run(local, draw(tmp_path / "other", 10, 20, 30), CountingTeacher()).distillation_set_sha256
        name = "answers-00000.safetensors"
        spoil(local, f"softlabels/{written}/{name}", lambda _: local.get(f"softlabels/{other}/{name}"))
        with pytest.raises(DataError, match="has sha256"):
            load_distillation_set(local, written)

    @pytest.mark.parametrize("name", ["index.json", "images-00000.safetensors", "answers-00000.safetensors"])
    def test_a_missing_file_is_not_found(self, local: Store, written: str, name: str) -> None:
        local.delete(f"softlabels/{written}/{name}")
        with pytest.raises(NotFound, match=written):
            load_distillation_set(local, written)

    def test_a_set_that_was_never_written_says_what_to_run(self, local: Store) -> None:
        with pytest.raises(NotFound, match=f"distillation set {'0' * 64} is not in .*; run soft_label_prefetch again"):
            load_distillation_set(local, "0" * 64)

    @pytest.mark.parametrize(("change", "words"), [
        ({"images": 4}, "promises 4 images, but its shards hold 3"),
        ({"classes": 0}, "is not an index"),
        ({"classes": "2"}, "is not an index"),
        ({"image_shape": [3, 8, 2**21]}, "is not an index"),
        ({"shards": []}, "is not an index"),
        ({"surprise": 1}, "is not an index"),
        ({"format": "fedhelp-distillation-set/1"}, "is not an index"),
        ({"image_shape": [3, 16, 16]}, r"holds torch.uint8 of shape \(3, 3, 8, 8\), expected uint8 of shape \(3, 3, 16, 16\)"),
        ({"answer_shape": [3]}, r"holds torch.float16 of shape \(3, 2\), expected float16 of shape \(3, 3\)"),
        ({"answer_dtype": "float32"}, "is not an index"),
    ])
    def test_an_index_that_is_true_to_its_name_but_not_to_its_files_is_refused(
        self, local: Store, written: str, change: dict[str, Any], words: str,
    ) -> None:
        body = json.dumps(json.loads(local.get(f"softlabels/{written}/index.json")) | change).encode()
        sha256 = hashlib.sha256(body).hexdigest()
        for key in local.list(f"softlabels/{written}/"):
            local.put(key.replace(written, sha256), body if key.endswith(".json") else local.get(key))
        with pytest.raises(DataError, match=words):
            load_distillation_set(local, sha256)

    def test_another_class_count_than_the_configs_is_refused(self, local: Store, written: str) -> None:
        assert load_distillation_set(local, written, classes=2).classes == 2
        with pytest.raises(ConfigError, match="recorded with 2 classes, config says 8"):
            load_distillation_set(local, written, classes=8)

    def test_copies_of_a_bucket_are_kept_and_checked(self, s3_endpoint: str, tmp_path: Path) -> None:
        store = open_store(f"s3://federation/{os.getpid()}-cache", endpoint_url=s3_endpoint)
        written = run(store, draw(tmp_path / "public", 0, 64), CountingTeacher()).distillation_set_sha256
        cache, key = tmp_path / "cache", f"softlabels/{written}/images-00000.safetensors"
        first, _ = in_memory(load_distillation_set(store, written, cache))
        store.delete(key)
        assert in_memory(load_distillation_set(store, written, cache))[0].equal(first)
        (cache / key).write_bytes(flip_last_byte((cache / key).read_bytes()))
        with pytest.raises(NotFound):  # the copy is no good, so the bucket is asked
            load_distillation_set(store, written, cache)
