"""Rounds closed by the hub's own optimizer, FedNova and SCAFFOLD: files end as arrays do, whatever is killed or lied about in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from fedhelp_core.algorithm import kernels
from fedhelp_core.algorithm.averaging import Rule
from fedhelp_core.algorithm.server import Answers, Part, next_round
from fedhelp_core.config.algorithm import ServerOptimizerConfig
from fedhelp_core.errors import PermanentError, WeightsError
from fedhelp_core.protocol import averaging, closing
from fedhelp_core.protocol.closing import close_round
from fedhelp_core.protocol.documents import Commit
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms
from fedhelp_core.store.local import LocalStore
from fedhelp_core.weights.file import fingerprint
from fedhelp_core.weights.header import Weights

SAMPLES = {"a": 40, "b": 12, "c": 8, "d": 20}
STEPS = {"a": 10, "b": 3, "c": 2, "d": 5}
TERMS = Terms(max_bytes=10**7, batch_size=4)
RULES = {
    "mean": Rule(), "trimmed mean": Rule("trimmed-mean"),
    "momentum": Rule(optimizer=ServerOptimizerConfig(kind="momentum")), "adam": Rule(optimizer=ServerOptimizerConfig(kind="adam")),
    "yogi of the median": Rule("median", optimizer=ServerOptimizerConfig(kind="yogi")), "fednova": Rule("fednova", momentum=0.5),
    "fednova and adam": Rule("fednova", optimizer=ServerOptimizerConfig(kind="adam")), "scaffold": Rule(control_variates_of=0.1),
    "scaffold and momentum": Rule(control_variates_of=0.1, optimizer=ServerOptimizerConfig(kind="momentum"))}


Labelled = Mapping[str, Sequence[bool] | None]
LABELLED: Labelled = {"a": (True, True, False, False, False), "b": (False, False, True, True, False), "c": (True, False, False, True, True),
                      "d": (True, True, False, True, True)}
"""In the second round, which `b` misses, nobody labels the third output."""


def start() -> Weights:
    generator = np.random.default_rng(0)
    return {
        "conv.weight": generator.standard_normal((40, 9), dtype=np.float32), "head.bias": generator.standard_normal(5, dtype=np.float32),
        "head.weight": generator.standard_normal((7, 5, 3, 3), dtype=np.float32),
        "norm.running_mean": np.zeros(40, np.float32), "norm.running_var": np.ones(40, np.float32), "norm.num_batches_tracked": np.array(0)}


def update_of(silo: str, round: int, model: Weights) -> Weights:
    """What `silo` makes of `model`."""
    generator = np.random.default_rng([ord(silo), round])
    moved = {name: (array + 0.01 * generator.random(array.shape)).astype(array.dtype) for name, array in model.items() if array.dtype.kind == "f"}
    return {**moved, "norm.num_batches_tracked": model["norm.num_batches_tracked"] + STEPS[silo]}


def send(run: Run, silo: str, round: int, weights: Weights, commit: Commit) -> None:
    run.submit_update(silo, round, weights, trained_from=commit.global_sha256, architecture="net", samples=5, loss=0.5, metrics={})


def answered(run: Run, round: int, *, without: str = "") -> None:
    """All silos but `without` send their updates; it says that it will not."""
    commit = run.commit(round - 1)
    assert commit is not None
    model = run.global_weights(commit, max_bytes=10**7)
    for silo in SAMPLES:
        if silo == without:
            run.mark_absent(silo, round, "away")
        else:
            send(run, silo, round, update_of(silo, round, model), commit)


def weighting_for(rule: Rule) -> Literal["uniform", "samples"]:
    return "uniform" if rule.aggregation in ("median", "trimmed-mean") else "samples"


def closed(run: Run, round: int, rule: Rule, *, terms: Terms = TERMS, labelled: Labelled | None = None) -> Commit:
    return close_round(
        run, round, SAMPLES, min_silos=2, deadline_s=0, terms=terms, weighting=weighting_for(rule), rule=rule, steps=STEPS, labelled=labelled)


def opened(folder: Path) -> Run:
    run = Run(LocalStore(folder, durable=False), "r")
    run.initialise(start(), "net")
    return run


def expected(rule: Rule, rounds: int, *, without: dict[int, str], labelled: Labelled | None = None) -> tuple[Weights, dict[Part, Weights]]:
    """The same on arrays, as `simulate` has it."""
    model, remembered = start(), dict[Part, Weights]()
    for round in range(1, rounds + 1):
        silos = [silo for silo in SAMPLES if silo != without.get(round)]
        answers = Answers.of(silos, SAMPLES, STEPS, weighting_for(rule), labelled)
        model, remembered = next_round(rule, answers, model, remembered, [update_of(silo, round, model) for silo in silos])
    return model, remembered


@pytest.mark.parametrize("labelled", [None, LABELLED], ids=["all label all", "some label some"])
@pytest.mark.parametrize("what", RULES)
def test_files_end_with_the_bits_of_arrays_silos_that_are_absent_included(
    what: str, labelled: Labelled | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    rule, run, without = RULES[what], opened(tmp_path), {2: "b"}
    model, remembered = expected(rule, 3, without=without, labelled=labelled)
    monkeypatch.setattr(kernels, "PIECE_ELEMENTS", 64)
    monkeypatch.setattr(averaging, "_WORTH_THREADS", 0)
    for round in (1, 2, 3):
        answered(run, round, without=without.get(round, ""))
        commit = closed(run, round, rule, labelled=labelled)
    assert commit.global_sha256 == fingerprint(model, "net")
    assert commit.server_state == {part: fingerprint(found, "net") for part, found in remembered.items()}
    for part, found in remembered.items():
        kept = run.server_state(commit, part, max_bytes=10**7)
        assert kept is not None and all(np.array_equal(kept[name], found[name]) for name in found)


@pytest.mark.timeout(120)  # some fifteen federations, of two rounds each
@pytest.mark.parametrize("what", ["adam", "fednova and adam", "scaffold and momentum"])
def test_a_hub_that_is_killed_and_started_again_ends_with_the_same_bits(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed wherever it writes: before each computation, and before each object that it gives to the store."""
    rule = RULES[what]
    model, remembered = expected(rule, 2, without={})
    kills = 0
    for kill_at in range(1, 40):
        folder, moment = tmp_path / str(kill_at), iter(range(1, 1000))

        def killed(plain: Callable[..., object], moment: object = moment, kill_at: int = kill_at) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                if next(moment) == kill_at:  # type: ignore[call-overload]
                    raise KeyboardInterrupt
                return plain(*arguments, **options)

            return call

        run = opened(folder)
        with monkeypatch.context() as patch:
            patch.setattr(closing, "compute_file", killed(closing.compute_file))
            patch.setattr(LocalStore, "give", killed(LocalStore.give))
            patch.setattr(Run, "make_real", killed(Run.make_real))
            for round in (1, 2):
                answered(run, round)
                try:
                    closed(run, round, rule)
                except KeyboardInterrupt:
                    kills += 1
                    run = Run(LocalStore(folder, durable=False), "r")  # another process: nothing is remembered but what lies in the store
                    closed(run, round, rule)
        commit = run.commit(2)
        assert commit is not None
        assert (commit.global_sha256, commit.server_state) == (fingerprint(model, "net"), {p: fingerprint(w, "net") for p, w in remembered.items()})
        if kills < kill_at:
            break
    assert kills >= 9, "a round has computations, objects and a commit"


def test_what_the_hub_no_longer_needs_is_removed_and_the_models_stay(tmp_path: Path) -> None:
    run = opened(tmp_path)
    for round in (1, 2, 3, 4, 5):
        answered(run, round)
        closed(run, round, RULES["adam"])
    names = [key.removeprefix("runs/r/rounds/") for key in run.store.list(run.keys.rounds())]
    assert sorted({name.split("/")[0] for name in names if "global-scale" in name}) == ["4", "5", "6"]
    assert {name.split("/")[0] for name in names if "global-" in name} == {"1", "2", "3", "4", "5", "6"}


def test_a_federation_without_any_of_it_has_commits_as_before(tmp_path: Path) -> None:
    run = opened(tmp_path)
    answered(run, 1)
    closed(run, 1, Rule())
    assert b"server_state" not in run.store.get(run.keys.commit(1))
    assert not [key for key in run.store.list(run.keys.round(2)) if "global-" in key and "-" in key.split("global-")[1]]


@pytest.mark.parametrize("part", ["model", "scale"])
def test_what_the_hub_itself_wrote_is_not_believed_either_once_it_was_changed(part: str, tmp_path: Path) -> None:
    run = opened(tmp_path)
    answered(run, 1)
    commit = closed(run, 1, RULES["adam"])
    answered(run, 2)
    key = commit.global_key if part == "model" else run.keys.server_state(2, "scale", commit.server_state["scale"])
    path = tmp_path / key
    body = bytearray(path.read_bytes())
    body[-300] ^= 1  # in a float
    path.unlink()
    path.write_bytes(bytes(body))
    with pytest.raises(WeightsError, match="tampered with or damaged"):
        closed(run, 2, RULES["adam"])


def test_the_start_has_no_state(tmp_path: Path) -> None:
    run = opened(tmp_path)
    forged = run.store.get(run.keys.commit(0)).replace(b'"previous_sha256"', b'"server_state":{"control":"' + b"0" * 64 + b'"},"previous_sha256"')
    run.store.put(run.keys.commit(0), forged)
    with pytest.raises(PermanentError, match="and no state; the store was tampered with"):
        Run(run.store, "r").commit(0)


def test_memory_does_not_grow_with_the_model(tmp_path: Path, peak_memory: Callable[[Callable[[], object]], int]) -> None:
    run = Run(LocalStore(tmp_path, durable=False), "r")
    first = run.initialise({"w": np.zeros(4 * 2**20, np.float32)}, "net")  # 16 MiB
    for silo in SAMPLES:
        send(run, silo, 1, {"w": np.full(4 * 2**20, 0.1, np.float32)}, first)
    terms = Terms(max_bytes=2**30, batch_size=4)
    assert peak_memory(lambda: closed(run, 1, RULES["fednova and adam"], terms=terms)) < 12 * 2**20
