"""Eq 7 against numbers worked out by hand; files and arrays agree bit for bit, with any pieces and threads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fedhelp_core.algorithm import averaging
from fedhelp_core.algorithm.averaging import average_arrays, average_files, shares_of
from fedhelp_core.errors import WeightsError
from fedhelp_core.weights.file import read_weights, serialize_weights, write_weights
from fedhelp_core.weights.header import Weights, WeightsSpec


def written(folder: Path, updates: Sequence[Weights]) -> list[Path]:
    paths = [folder / f"{n}.safetensors" for n in range(len(updates))]
    for path, update in zip(paths, updates, strict=True):
        write_weights(path, update, "net")
    return paths


def random_updates(count: int, seed: int = 0) -> list[Weights]:
    generator = np.random.default_rng(seed)
    return [
        {
            "conv": generator.standard_normal((7, 5, 3), dtype=np.float32), "wide": generator.standard_normal(300),
            "count": generator.integers(0, 99, ()),
            "half": generator.standard_normal(33).astype(np.float16), "byte": generator.integers(0, 255, 9, dtype=np.uint8),
            "empty": np.zeros((0, 2), np.float32),
        }
        for _ in range(count)
    ]


class TestByHand:
    def test_uniform_shares_give_the_mean(self) -> None:
        updates = [{"w": np.array([0, 1, 2], np.float32)}, {"w": np.array([1, 1, 4], np.float32)}, {"w": np.array([2, 4, 0], np.float32)}]
        assert average_arrays(updates, [1 / 3] * 3)["w"].tolist() == [1.0, 2.0, 2.0]

    def test_sample_shares_weigh(self) -> None:
        updates = [{"w": np.array([0, 8], np.float32)}, {"w": np.array([4, 0], np.float32)}]
        assert shares_of([30, 10], "samples") == [0.75, 0.25]
        assert average_arrays(updates, shares_of([30, 10], "samples"))["w"].tolist() == [1.0, 6.0]

    def test_uniform_shares_ignore_samples(self) -> None:
        assert shares_of([30, 10, 5, 5], "uniform") == [0.25] * 4

    def test_integers_and_truth_values_take_the_maximum(self) -> None:
        updates = [{"n": np.array([3, 9]), "b": np.array([False, False])}, {"n": np.array([5, 1]), "b": np.array([True, False])}]
        mean = average_arrays(updates, [0.5, 0.5])
        assert mean["n"].tolist() == [5, 9]
        assert mean["b"].tolist() == [True, False]
        assert mean["n"].dtype == np.int64

    def test_sums_are_in_float64(self) -> None:
        updates = [{"w": np.array([value], np.float32)} for value in (2**24, 1, -(2**24), 1)]
        assert average_arrays(updates, [0.25] * 4)["w"].tolist() == [0.5]  # float32 would lose the first one

    def test_unequal_shares_are_not_rounded_to_float32(self) -> None:
        updates = [{"w": np.array([1.0], np.float32)}, {"w": np.array([-1.0], np.float32)}]
        share = 0.5 + 2**-40
        assert average_arrays(updates, [share, 1 - share])["w"].tolist() == [2**-39]

    def test_one_update_is_its_own_average(self) -> None:
        update = random_updates(1)[0]
        mean = average_arrays([update], [1.0])
        assert all(mean[name].tobytes() == array.tobytes() and mean[name].shape == array.shape for name, array in update.items())

    def test_equal_updates_stay_what_they_are(self) -> None:
        update = {"w": np.random.default_rng(1).standard_normal(1000, dtype=np.float32)}
        assert average_arrays([update] * 7, [1 / 7] * 7)["w"].tobytes() == update["w"].tobytes()

    def test_inputs_are_left_alone(self) -> None:
        updates = [{"w": np.array([1.0, 2.0])}, {"w": np.array([3.0, 4.0])}]
        average_arrays(updates, [0.5, 0.5])
        assert updates[0]["w"].tolist() == [1.0, 2.0]


class TestFiles:
    @pytest.mark.parametrize("shares", [[0.2] * 5, [0.1, 0.2, 0.3, 0.15, 0.25]])
    @pytest.mark.parametrize(("piece", "threads"), [(2**16, 1), (64, 1), (64, 2), (17, 5)])
    def test_files_and_arrays_agree_bit_for_bit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: list[float], piece: int, threads: int,
    ) -> None:
        updates = random_updates(5)
        expected = serialize_weights(average_arrays(updates, shares), "net")
        monkeypatch.setattr(averaging, "PIECE_ELEMENTS", piece)
        monkeypatch.setattr(averaging, "_WORTH_THREADS", 0)
        sha256 = average_files(written(tmp_path, updates), shares, tmp_path / "mean", "net", threads=threads)
        assert (tmp_path / "mean").read_bytes() == expected
        assert sha256 == hashlib.sha256(expected).hexdigest()

    def test_files_laid_out_differently_are_averaged_by_name(self, tmp_path: Path) -> None:
        updates = random_updates(2)
        paths = written(tmp_path, updates)
        ours = paths[1].read_bytes()
        reordered = {name: updates[1][name] for name in ("wide", "count", "conv", "half", "byte", "empty")}
        safetensors.numpy.save_file(reordered, paths[1], metadata={"fedhelp_format": "1", "architecture": "net", "padding": "of another length"})
        assert paths[1].read_bytes() != ours
        average_files(paths, [0.5, 0.5], tmp_path / "mean", "net")
        assert (tmp_path / "mean").read_bytes() == serialize_weights(average_arrays(updates, [0.5, 0.5]), "net")

    def test_more_files_than_may_be_open_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(averaging, "_OPEN_AT_ONCE", 2)
        updates = random_updates(5)
        average_files(written(tmp_path, updates), [0.2] * 5, tmp_path / "mean", "net")
        assert (tmp_path / "mean").read_bytes() == serialize_weights(average_arrays(updates, [0.2] * 5), "net")

    def test_the_result_is_a_good_weights_file(self, tmp_path: Path) -> None:
        updates = random_updates(3)
        sha256 = average_files(written(tmp_path, updates), [1 / 3] * 3, tmp_path / "mean", "net")
        read_weights(tmp_path / "mean", expected=WeightsSpec.from_weights(updates[0], "net"), max_bytes=10**6, sha256=sha256)

    def test_memory_does_not_grow_with_the_model(self, tmp_path: Path, peak_memory: Callable[[Callable[[], object]], int]) -> None:
        paths = written(tmp_path, [{"w": np.full(4 * 2**20, n, np.float32)} for n in range(3)])  # 16 MiB each
        assert peak_memory(lambda: average_files(paths, [1 / 3] * 3, tmp_path / "mean", "net")) < 5 * 2**20

    def test_a_file_that_shrinks_meanwhile_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        paths = written(tmp_path, random_updates(2))
        plain = averaging.read_header

        def read_then_cut(path: Path) -> object:
            header = plain(path)
            path.write_bytes(path.read_bytes()[:-10])
            return header

        monkeypatch.setattr(averaging, "read_header", read_then_cut)
        with pytest.raises(WeightsError, match="became shorter"):
            average_files(paths, [0.5, 0.5], tmp_path / "mean", "net")


class TestFaults:
    def test_updates_of_different_shapes_are_named(self, tmp_path: Path) -> None:
        updates: list[Weights] = [{"a": np.zeros(2), "w": np.zeros(2)}, {"a": np.zeros(2), "w": np.zeros(3)}]
        with pytest.raises(WeightsError, match="update 2 of 2 differs from the first in tensor 'w'"):
            average_arrays(updates, [0.5, 0.5])
        with pytest.raises(WeightsError, match="update 2 of 2 differs from the first in tensor 'w'"):
            average_files(written(tmp_path, updates), [0.5, 0.5], tmp_path / "mean", "net")

    @pytest.mark.parametrize("shares", [[], [1.0], [0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0]])
    def test_shares_that_are_no_shares_are_refused(self, shares: list[float]) -> None:
        with pytest.raises(ValueError, match="averaging"):
            average_arrays([{"w": np.zeros(1)}] * 2, shares)
