"""What is said of silos that wait: each reason once, its end where the wait ended well, and nothing twice where the silo is given up."""

from __future__ import annotations

from fedhelp_dispatch.request import Outcome, Waiting
from fedhelp_dispatch.supervisor import Waits


def test_a_wait_that_ends_in_work_is_said_to_be_over_and_one_that_is_given_up_is_not() -> None:
    said: list[str] = []
    waits = Waits(said.append)
    for silo in ("nord", "sued"):
        waits.report(silo, Waiting(reason="no pod yet"))
        waits.report(silo, Waiting(reason="no pod yet"))

    waits.ended("nord", Outcome(exit_code=None, late=True, reason="its Job ran into its deadline"))
    waits.ended("sued", Outcome(exit_code=0))

    assert [line.partition(" (")[0] for line in said] == [
        "silo nord: waiting: no pod yet", "silo sued: waiting: no pod yet", "silo sued: waits no longer"]
