"""A silo of SCAFFOLD: what it reads from the hub, and that it takes back a round which the hub did not take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedhelp_core.algorithm.averaging import rule_of
from fedhelp_core.algorithm.local_update import SiloState
from fedhelp_core.algorithm.scaffold import OWN
from fedhelp_core.config.silo import load_silo
from fedhelp_core.errors import PermanentError
from fedhelp_core.protocol.closing import close_round
from fedhelp_core.protocol.documents import Commit, dump
from fedhelp_core.protocol.facts import ClassShares, Kinds
from fedhelp_core.protocol.lease import Lease
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms
from fedhelp_core.silo.work import Silo, open_silo
from fedhelp_core.store.open import open_store
from tests.tiny import SILOS, TinyFederation


def variates(state: SiloState) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.tensors.items() if name.startswith(OWN)}


@pytest.mark.slow  # trains
def test_a_silo_goes_on_from_the_last_round_that_the_hub_took(
    make_tiny: Callable[..., TinyFederation], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tiny = make_tiny()
    federation = tiny.load().override(**{
        "algorithm.method": "scaffold", "algorithm.rounds": 3, "algorithm.optimizer.kind": "sgd", "algorithm.optimizer.learning_rate": 0.05})
    run = Run(open_store(str(tiny.store)), "a-run")
    run.freeze(federation.to_yaml())
    samples = dict.fromkeys(SILOS, 12)

    def silo(name: str) -> Silo:
        return open_silo(load_silo(tiny.folder / f"{name}.yaml"), open_store(str(tiny.store)), "a-run")

    def closed(number: int) -> Commit:
        return close_round(
            run, number, samples, min_silos=2, deadline_s=0, terms=Terms(max_bytes=federation.protocol.max_update_bytes),
            rule=rule_of(federation.algorithm), steps={name: federation.steps(count) for name, count in samples.items()})

    for name in SILOS:
        silo(name).check()
    run.settle(Kinds(dict.fromkeys(SILOS, "small")))
    run.settle(ClassShares(shares=[0.125] * 8))
    _, left_out, _ = SILOS
    with Lease(run.store, "a-run", 60):
        for name in SILOS:
            silo(name).train(last_round=3, only=1)
        first = closed(1)
        assert first.server_state.keys() == {"control"}
        taken = variates(silo(left_out)._state_after(first))
        for name in SILOS:
            silo(name).train(last_round=3, only=2)
        run.take_back_update(left_out, 2)  # as if it had come too late
        second = closed(2)
        assert left_out in second.absent
        newest, resumed = silo(left_out).state.latest(), silo(left_out)._state_after(second)
        assert newest.round == resumed.round == 2
        assert all(torch.equal(variates(resumed)[name], value) for name, value in taken.items())
        assert not all(torch.equal(variates(newest)[name], value) for name, value in taken.items())
        silo(left_out).train(last_round=3, only=3)

        run.store.put(run.keys.commit(2), dump(Commit(
            round=2, global_key=second.global_key, global_sha256=second.global_sha256, spec=second.spec, participants=second.participants,
            shares=second.shares, previous_sha256=second.previous_sha256)))
        other = silo(SILOS[0])
        with pytest.raises(PermanentError, match="the commit of round 2 has no control variate, which SCAFFOLD needs; ask the hub"):
            other.train(last_round=3, only=3)
