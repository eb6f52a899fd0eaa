"""Eq 7 on files: the arrays' result bit for bit, with any pieces and threads, in flat memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fedhelp_core.algorithm import kernels as arithmetic
from fedhelp_core.algorithm.averaging import Rule, average_arrays
from fedhelp_core.errors import StorageFull, WeightsError
from fedhelp_core.protocol import averaging
from fedhelp_core.protocol.averaging import average_files
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


@pytest.mark.parametrize("shares", [[0.2] * 5, [0.1, 0.2, 0.3, 0.15, 0.25]])
@pytest.mark.parametrize(("piece", "threads"), [(2**16, 1), (64, 1), (64, 2), (17, 5)])
def test_files_and_arrays_agree_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: list[float], piece: int, threads: int,
) -> None:
    updates = random_updates(5)
    expected = serialize_weights(average_arrays(updates, shares), "net")
    monkeypatch.setattr(arithmetic, "PIECE_ELEMENTS", piece)
    monkeypatch.setattr(averaging, "_WORTH_THREADS", 0)
    sha256 = average_files(written(tmp_path, updates), shares, tmp_path / "mean", "net", threads=threads)
    assert (tmp_path / "mean").read_bytes() == expected
    assert sha256 == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize(("rule", "expected"), [
    (Rule("median"), 3.0), (Rule("trimmed-mean", 0.2), 10 / 3), (Rule("trimmed-mean", 0.45), 3.0), (Rule("mean"), 22.0)])
def test_other_rules_than_the_mean_by_hand(rule: Rule, expected: float) -> None:
    values = [2.0, 100.0, 1.0, 3.0, 5.0] if rule.aggregation != "mean" else [2.0, 100.0, 1.0, 3.0, 4.0]
    updates: list[Weights] = [{"w": np.array([value], np.float32), "n": np.array(int(value))} for value in values]
    found = average_arrays(updates, [0.2] * 5, rule)
    assert found["w"][0] == pytest.approx(expected) and found["n"] == 100


def test_the_median_of_an_even_number_is_between_the_two_in_the_middle() -> None:
    assert average_arrays([{"w": np.array([value])} for value in (1.0, 9.0, 2.0, 4.0)], [0.25] * 4, Rule("median"))["w"] == 3.0


@pytest.mark.parametrize(("updates", "trimmed"), [(1, 0), (2, 0), (3, 1), (6, 1), (10, 2), (4, 1)])
def test_at_least_one_is_trimmed_while_any_is_left(updates: int, trimmed: int) -> None:
    assert Rule("trimmed-mean", 0.2).trimmed(updates) == trimmed


@pytest.mark.parametrize("rule", [Rule("median"), Rule("trimmed-mean")])
@pytest.mark.parametrize(("piece", "threads"), [(2**16, 1), (64, 2)])
def test_files_and_arrays_agree_under_every_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: Rule, piece: int, threads: int,
) -> None:
    updates = random_updates(5)
    expected = serialize_weights(average_arrays(updates, [0.2] * 5, rule), "net")
    monkeypatch.setattr(arithmetic, "PIECE_ELEMENTS", piece)
    monkeypatch.setattr(arithmetic, "_SHORTEST_PIECE", 7)
    monkeypatch.setattr(averaging, "_WORTH_THREADS", 0)
    average_files(written(tmp_path, updates), [0.2] * 5, tmp_path / "found", "net", rule=rule, threads=threads)
    assert (tmp_path / "found").read_bytes() == expected


def test_files_laid_out_differently_are_averaged_by_name(tmp_path: Path) -> None:
    updates = random_updates(2)
    paths = written(tmp_path, updates)
    ours = paths[1].read_bytes()
    reordered = {name: updates[1][name] for name in ("wide", "count", "conv", "half", "byte", "empty")}
    safetensors.numpy.save_file(reordered, paths[1], metadata={"fedhelp_format": "1", "architecture": "net", "padding": "of another length"})
    assert paths[1].read_bytes() != ours
    average_files(paths, [0.5, 0.5], tmp_path / "mean", "net")
    assert (tmp_path / "mean").read_bytes() == serialize_weights(average_arrays(updates, [0.5, 0.5]), "net")


def test_more_files_than_may_be_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "_OPEN_AT_ONCE", 2)
    updates = random_updates(5)
    average_files(written(tmp_path, updates), [0.2] * 5, tmp_path / "mean", "net")
    assert (tmp_path / "mean").read_bytes() == serialize_weights(average_arrays(updates, [0.2] * 5), "net")


def test_the_result_is_a_good_weights_file(tmp_path: Path) -> None:
    updates = random_updates(3)
    sha256 = average_files(written(tmp_path, updates), [1 / 3] * 3, tmp_path / "mean", "net")
    read_weights(tmp_path / "mean", expected=WeightsSpec.from_weights(updates[0], "net"), max_bytes=10**6, sha256=sha256)


def test_memory_does_not_grow_with_the_model(tmp_path: Path, peak_memory: Callable[[Callable[[], object]], int]) -> None:
    paths = written(tmp_path, [{"w": np.full(4 * 2**20, n, np.float32)} for n in range(3)])  # 16 MiB each
    assert peak_memory(lambda: average_files(paths, [1 / 3] * 3, tmp_path / "mean", "net")) < 5 * 2**20


def test_a_file_that_shrinks_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = written(tmp_path, random_updates(2))
    plain = averaging.read_header

    def read_then_cut(path: Path) -> object:
        header = plain(path)
        path.write_bytes(path.read_bytes()[:-10])
        return header

    monkeypatch.setattr(averaging, "read_header", read_then_cut)
    with pytest.raises(WeightsError, match="became shorter"):
        average_files(paths, [0.5, 0.5], tmp_path / "mean", "net")


def test_files_of_different_shapes_are_named(tmp_path: Path) -> None:
    updates: list[Weights] = [{"a": np.zeros(2), "w": np.zeros(2)}, {"a": np.zeros(2), "w": np.zeros(3)}]
    with pytest.raises(WeightsError, match="update 2 of 2 differs from the first in tensor 'w'"):
        average_files(written(tmp_path, updates), [0.5, 0.5], tmp_path / "mean", "net")


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full here")
    with pytest.raises(StorageFull, match="/dev/full: no space left"):
        average_files(written(tmp_path, random_updates(2)), [0.5, 0.5], Path("/dev/full"), "net")
