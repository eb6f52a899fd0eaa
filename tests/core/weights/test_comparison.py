"""Updates beside each other: numbers that can be checked by hand, and the same from files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fedhelp_core.weights.comparison import compare, directions, distances
from fedhelp_core.weights.file import write_weights
from fedhelp_core.weights.header import Weights, WeightsSpec


def test_a_direction_is_the_cosine_with_the_median_of_steps_of_length_one() -> None:
    found = directions(np.array([[2.0, 0.0], [5.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, 0.0]]))
    assert found.tolist() == [0, 0, 0, 0, 0]  # the median step is none
    found = directions(np.array([[2.0, 0.0], [5.0, 0.0], [3.0, 4.0], [-1.0, 0.0], [7.0, 0.0]]))
    assert found == pytest.approx([1, 1, 0.6, -1, 1])


@pytest.mark.parametrize("opponents", [1, 2])
def test_who_opposes_one_silo_cannot_have_it_refused(opponents: int) -> None:
    generator = np.random.default_rng(0)
    honest = generator.standard_normal((4, 4096))
    found = directions(np.concatenate([honest, -np.tile(honest[0], (opponents, 1))]))
    assert found[0] >= -0.05


def test_who_opposes_the_mean_of_the_others_is_seen_even_where_they_have_little_in_common() -> None:
    honest = np.random.default_rng(0).standard_normal((5, 4096))
    found = directions(np.concatenate([honest, -honest.mean(axis=0, keepdims=True)]))
    assert found[5] < -0.5
    assert min(found[:5]) > 0.2


def test_statistics_are_compared_in_their_own_units() -> None:
    known = {
        "norm.running_mean": np.array([[0.0], [0.0], [6.0]]), "norm.running_var": np.array([[4.0], [4.0], [4.0 * math.e]]), "w": np.zeros((3, 1))}
    found = distances(known, lambda name: known[name])
    assert found.keys() == {"norm.running_mean", "norm.running_var"}
    assert found["norm.running_mean"] == pytest.approx([0, 0, 3], abs=1e-4)
    assert found["norm.running_var"] == pytest.approx([0, 0, 1], abs=1e-4)


def test_files_are_compared_as_arrays_are(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def drawn() -> Weights:
        return {
            "conv.weight": generator.standard_normal((30, 10)).astype(np.float32), "head.bias": generator.standard_normal(3).astype(np.float32),
            "norm.running_mean": generator.random(4).astype(np.float32), "norm.running_var": generator.random(4).astype(np.float32),
            "norm.num_batches_tracked": np.array(3)}

    start, updates = drawn(), {silo: drawn() for silo in "abc"}
    for name, weights in {"start": start, **updates}.items():
        write_weights(tmp_path / name, weights, "net")
    spec = WeightsSpec.from_weights(start, "net")
    found = compare({silo: tmp_path / silo for silo in updates}, tmp_path / "start", spec, ["0" * 64])
    steps = np.stack([np.concatenate([(update[name].astype(float) - start[name]).ravel() for name in ("conv.weight", "head.bias")])
                      for update in updates.values()])
    assert [one.direction for one in found.values()] == pytest.approx(directions(steps))
    far = distances(start, lambda name: np.stack([update[name] for update in updates.values()]).astype(float))
    assert [one.statistics["norm.running_var"] for one in found.values()] == pytest.approx(far["norm.running_var"])


def test_of_a_large_model_as_much_is_looked_at_as_of_a_small_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    start: Weights = {"w": np.zeros(400_000, np.float32)}
    common = generator.standard_normal(400_000)
    for silo in "abc":
        write_weights(tmp_path / silo, {"w": (common + generator.standard_normal(400_000)).astype(np.float32)}, "net")
    write_weights(tmp_path / "start", start, "net")
    spec = WeightsSpec.from_weights(start, "net")
    files = {silo: tmp_path / silo for silo in "abc"}
    drawn = [compare(files, tmp_path / "start", spec, [digest]) for digest in ("0", "0", "1")]
    assert drawn[0] == drawn[1] != drawn[2]
    steps = np.stack([np.fromfile(path, np.float32, offset=path.stat().st_size - 1_600_000).astype(float) for path in files.values()])
    assert [one.direction for one in drawn[2].values()] == pytest.approx(directions(steps), abs=0.03)
