"""A silo whose state volume was lost, exchanged or set back in the middle of a run refuses to go on as if it began."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedhelp_core.config.silo import load_silo
from fedhelp_core.errors import NotFound
from fedhelp_core.protocol.closing import close_round
from fedhelp_core.protocol.facts import ClassShares, Kinds
from fedhelp_core.protocol.lease import Lease
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms
from fedhelp_core.silo.work import Silo, open_silo
from fedhelp_core.store.open import open_store
from tests.tiny import SILOS, TinyFederation


@pytest.mark.slow  # trains
def test_a_silo_without_its_state_refuses_and_one_that_never_took_part_begins(
    make_tiny: Callable[..., TinyFederation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tiny = make_tiny()
    federation = tiny.load().override(**{"algorithm.method": "fedavg", "algorithm.rounds": 3})
    run = Run(open_store(str(tiny.store)), "a-run")
    run.freeze(federation.to_yaml())
    terms = Terms(max_bytes=federation.protocol.max_update_bytes)

    def silo(name: str) -> Silo:
        return open_silo(load_silo(tiny.folder / f"{name}.yaml"), open_store(str(tiny.store)), "a-run")

    def answer(number: int, *names: str) -> None:
        for name in names:
            silo(name).train(last_round=3, only=number)
        close_round(run, number, dict.fromkeys(SILOS, 1), min_silos=1, deadline_s=1, terms=terms)

    for name in SILOS:
        silo(name).check()
    run.settle(Kinds(dict(zip(SILOS, ("large", "small", "small"), strict=True))))
    run.settle(ClassShares(shares=[0.125] * 8))
    first, second, late = SILOS
    states = {name: silo(name).state.folder for name in SILOS}
    with Lease(run.store, "a-run", 60):
        answer(1, first, second)
        shutil.copytree(states[first], tmp_path / "backup")
        answer(2, first, second)

        shutil.rmtree(states[second])
        with pytest.raises(NotFound, match=f"silo {second} took part in round 2, but its state volume has no state of this run; bring"):
            silo(second).train(last_round=3, only=3)
        shutil.rmtree(states[first])
        shutil.copytree(tmp_path / "backup", states[first])
        with pytest.raises(NotFound, match=f"silo {first} took part in round 2, but its state volume has nothing after round 1; bring") as refused:
            silo(first).train(last_round=3, only=3)
        assert refused.value.public is not None and str(states[first]) not in refused.value.public
        answer(3, late)
    assert set(run.commit(3).participants) == {late}  # type: ignore[union-attr]
    for name in (first, second):
        with pytest.raises(NotFound, match="took part in round 2"):
            silo(name).evaluate()
    assert silo(late).evaluate().round == 3
