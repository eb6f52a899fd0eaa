"""A round's deadline begins when its silos have been asked to start, not before their nodes run."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from fedhelp_components.aggregation.__main__ import wait_for_supervisors
from fedhelp_components.session import Session
from fedhelp_core.errors import RunAborted
from fedhelp_core.protocol.lease import Lease
from tests.tiny import TinyFederation


@pytest.fixture
def session(make_tiny: Callable[..., TinyFederation]) -> Session:
    tiny = make_tiny(algorithm__method="fedavg")
    run, federation = tiny.run("r"), tiny.load()
    run.freeze(federation.to_yaml())
    return Session(run.store, run, federation)


def test_aggregation_waits_until_every_silo_has_been_asked_or_given_up(session: Session) -> None:
    first, second, third = session.federation.silo_names
    waiting = threading.Thread(target=wait_for_supervisors, args=(session,))
    waiting.start()
    with Lease(session.store, "r", 30.0), Lease(session.store, "r", 30.0, silo=first), Lease(session.store, "r", 30.0, silo=second):
        waiting.join(1.0)
        assert waiting.is_alive()  # the run's own lease, which check and evaluation keep too, stands for no silo
        session.run.mark_absent(third, 1, "no GPU")
        waiting.join(30.0)
    assert not waiting.is_alive()


def test_it_does_not_wait_beside_a_run_that_was_ended(session: Session) -> None:
    session.run.abort("stopped")
    with pytest.raises(RunAborted):
        wait_for_supervisors(session)
