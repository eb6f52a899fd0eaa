"""What a step that asks every silo once makes of those that failed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fedhelp_core.errors import FedHelpError, JobFailed, StateLocked, StorageFull
from fedhelp_dispatch.request import Outcome
from fedhelp_dispatch.supervisor import require_none_failed, unanswered

FULL = Outcome(exit_code=32, reason="/state: no space left")
LOCKED = Outcome(exit_code=33, reason="another process works on it")
WRONG = Outcome(exit_code=11, reason="data that cannot be used")
LATE = Outcome(exit_code=None, late=True, reason="its Job ran into its deadline of 3600 s")


@pytest.mark.parametrize(("failed", "kind"), [
    ({"a": FULL}, StorageFull), ({"a": FULL, "b": FULL}, StorageFull), ({"a": LOCKED}, StateLocked), ({"a": FULL, "b": LOCKED}, JobFailed),
    ({"a": FULL, "b": WRONG}, JobFailed), ({"a": WRONG}, JobFailed), ({"a": LATE}, JobFailed), ({"a": unanswered("no report")}, JobFailed)])
def test_a_step_ends_as_its_silos_did_where_all_that_failed_may_be_tried_again(failed: Mapping[str, Outcome], kind: type[FedHelpError]) -> None:
    with pytest.raises(FedHelpError) as caught:
        require_none_failed(failed, "check")
    assert type(caught.value) is kind


def test_silos_that_failed_alike_are_named_together() -> None:
    with pytest.raises(JobFailed) as caught:
        require_none_failed({"a": WRONG, "b": LATE, "c": WRONG}, "check")
    assert str(caught.value).splitlines() == [f"silos a, c: check failed: {WRONG.reason}", f"silo b: check failed: {LATE.reason}"]


def test_none_that_failed_is_no_error() -> None:
    require_none_failed({}, "check")
