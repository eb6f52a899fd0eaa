"""The benchmark's yardstick does the mathematics that it stands beside: a faster one that computed less would prove nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import speed
from benchmarks.local_update import CASES, SEED, SILO, Case, Plain, silo_data
from fedhelp_core.algorithm.local_update import SiloState, UpdateSettings, initial_weights, local_update
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.registry.tasks import PRESETS


def tiny(name: str) -> Case:
    """The whole set is one batch, so that its order changes nothing; volumes are one patch."""
    case = CASES[name]
    whole = {"name": name, "image_size": 16, "volume": {"patch_size": 16, "window_size": 16}}
    changes = {"batch_size": 4, "public_batch_size": 4, "augmentation": "none"}
    if name == "melanoma":
        changes |= {"proxy_model": "resnet8", "large_model": "resnet8"}
    return replace(case, task=TaskConfig.model_validate(whole), images=4, algorithm=case.algorithm.model_copy(update=changes))


def test_every_task_is_measured() -> None:
    assert set(CASES) == set(PRESETS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("name", CASES)
def test_the_plain_loop_ends_in_our_loss(name: str, kind: str) -> None:
    case = tiny(name)
    data = silo_data(case)
    settings = UpdateSettings(algorithm=case.algorithm, objective=objective_of(case.task), seed=SEED, silo=SILO, kind=kind)
    ours = local_update(initial_weights(case.algorithm, objective_of(case.task), seed=SEED), SiloState.empty(), data, settings, round_number=1)
    plain = Plain(case, data)
    if kind == "small":
        assert plain.small() == pytest.approx(ours.metrics["public_loss"], rel=1e-4)
    else:
        assert plain.large() == pytest.approx(ours.metrics["large_loss"], rel=1e-4)


@pytest.mark.slow  # the first step of an optimizer imports 900 modules
def test_the_gpu_benchmark_can_be_tried_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "melanoma", tiny("melanoma"))
    found = speed("melanoma", device=torch.device("cpu"), batch=4, repeat=1)
    assert [figure.name.partition(": ")[2] for figure in found] == [
        "ours / the plain loop", "ours / separate forward passes", "ours / ours in float32"]
    assert all(figure.value > 0 for figure in found)
