"""What a silo can do to rounds that count steps or remember: nothing beside its weights is believed, and few steps make nobody loud."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedhelp_core.algorithm.averaging import Rule
from fedhelp_core.config.algorithm import ServerOptimizerConfig
from fedhelp_core.protocol.closing import close_round
from fedhelp_core.protocol.documents import Commit
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms
from fedhelp_core.registry.methods import METHOD_PARTS
from fedhelp_core.store.local import LocalStore
from fedhelp_core.weights.header import Weights

SILOS = ("a", "b", "c", "d", "e", "f")
ELEMENTS = 256
TERMS = Terms(max_bytes=10**6, max_norm_ratio=3.0, batch_size=4, metrics=METHOD_PARTS["scaffold"].metrics)
SCAFFOLD, FEDNOVA = Rule(control_variates_of=0.1), Rule("fednova")
STEPS = dict.fromkeys(SILOS, 400)


def honest(silo: str, steps: int) -> Weights:
    """Steps in ever other directions, as trained ones are: their length grows with the root of their number."""
    generator = np.random.default_rng(ord(silo))
    return {"conv.weight": (np.sqrt(steps) * 0.001 * generator.standard_normal(ELEMENTS)).astype(np.float32)}


def closed(
    folder: Path, rule: Rule, forged: Weights, *, steps: dict[str, int] = STEPS, terms: Terms = TERMS, metrics: dict[str, float] | None = None,
) -> tuple[Run, Commit]:
    """Round 1 with five honest silos, and `forged` in the name of f."""
    run = Run(LocalStore(folder, durable=False), "r")
    start = run.initialise({"conv.weight": np.zeros(ELEMENTS, np.float32)}, "net")
    for silo in SILOS:
        run.submit_update(
            silo, 1, forged if silo == "f" else honest(silo, steps[silo]), trained_from=start.global_sha256, architecture="net", samples=10, loss=0.5,
            metrics=metrics or {} if silo == "f" else {})
    samples = {silo: 4 * count for silo, count in steps.items()}
    return run, close_round(run, 1, samples, min_silos=4, deadline_s=0, terms=terms, rule=rule, steps=steps)


CONTROL = "control/conv.weight"
SENT_BESIDE: dict[str, Weights] = {
    "a control variate": {CONTROL: np.zeros(ELEMENTS, np.float32)}, "one that is not a number": {CONTROL: np.full(ELEMENTS, np.nan, np.float32)},
    "a huge one": {CONTROL: np.full(ELEMENTS, 3e38, np.float32)}, "one of another shape": {CONTROL: np.zeros((1, 1), np.float32)},
    "a number of steps": {"steps": np.array(1)}}


@pytest.mark.parametrize("what", SENT_BESIDE)
def test_control_variates_and_steps_beside_the_weights_are_refused_whatever_they_hold(what: str, tmp_path: Path) -> None:
    _, commit = closed(tmp_path, SCAFFOLD, {**honest("f", 400), **SENT_BESIDE[what]})
    assert commit.refused.keys() == {"f"} and "not expected" in commit.refused["f"]


@pytest.mark.parametrize("metrics", [{"steps": 1.0}, {"local_steps": 1e300}])
def test_a_silo_cannot_say_how_many_steps_it_took(metrics: dict[str, float], tmp_path: Path) -> None:
    _, commit = closed(tmp_path, FEDNOVA, honest("f", 400), metrics=metrics)
    assert commit.refused.keys() == {"f"} and "metrics: one of " in commit.refused["f"]


@pytest.mark.parametrize("rule", [FEDNOVA, SCAFFOLD], ids=["fednova", "scaffold"])
def test_who_says_at_check_that_it_has_one_image_does_not_become_as_loud_as_all_others(rule: Rule, tmp_path: Path) -> None:
    """One batch, and a step as long as its bound of lengths allows: in a step that is thirty times what is usual."""
    forged = honest("f", 1)
    forged["conv.weight"] *= np.float32(2.5)
    run, commit = closed(tmp_path, rule, forged, steps={**STEPS, "f": 1})
    assert commit.refused.keys() == {"f"}
    assert "times as far in a step as is usual in this round, at most 15 times" in commit.refused["f"] and "it has 1 a round" in commit.refused["f"]
    moved = np.linalg.norm(run.global_weights(commit, max_bytes=10**6)["conv.weight"])
    assert moved < 2 * np.linalg.norm(honest("a", 400)["conv.weight"])


@pytest.mark.parametrize("rule", [FEDNOVA, SCAFFOLD], ids=["fednova", "scaffold"])
@pytest.mark.parametrize("steps", [{"f": 20}, {"f": 20_000}, {"e": 10, "f": 4_000}], ids=str)
def test_honest_hospitals_of_few_and_of_many_images_are_all_taken(rule: Rule, steps: dict[str, int], tmp_path: Path) -> None:
    _, commit = closed(tmp_path, rule, honest("f", steps["f"]), steps={**STEPS, **steps})
    assert commit.refused == {}


@pytest.mark.parametrize("change", [
    lambda w: w * np.float32(np.nan), lambda w: np.full_like(w, np.inf), lambda w: w * np.float32(100), lambda w: np.full_like(w, 3e38)])
def test_a_control_variate_can_only_be_poisoned_through_weights_which_are_refused(
    change: Callable[[np.ndarray], np.ndarray], tmp_path: Path,
) -> None:
    run, commit = closed(tmp_path, SCAFFOLD, {"conv.weight": change(honest("f", 400)["conv.weight"])})
    assert commit.refused.keys() == {"f"}
    control = run.server_state(commit, "control", max_bytes=10**6)
    assert control is not None and np.linalg.norm(control["conv.weight"]) <= max(
        np.linalg.norm(honest(silo, 400)["conv.weight"]) / (400 * 0.1) for silo in SILOS)


@pytest.mark.parametrize("kind", ["momentum", "adam", "yogi"])
def test_without_bounds_the_largest_numbers_leave_a_hub_that_can_still_write_its_state(kind: str, tmp_path: Path) -> None:
    rule = Rule(optimizer=ServerOptimizerConfig.model_validate({"kind": kind, "learning_rate": 0.01}))
    forged: Weights = {"conv.weight": np.full(ELEMENTS, 3e38, np.float32)}
    run, commit = closed(tmp_path, rule, forged, terms=Terms(max_bytes=10**6))
    assert all(np.isfinite(array).all() for array in run.global_weights(commit, max_bytes=10**6).values())
    for part in commit.server_state:
        kept = run.server_state(commit, part, max_bytes=10**6)
        assert kept is not None and np.isfinite(kept["conv.weight"]).all()
