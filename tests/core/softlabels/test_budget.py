"""Budgets: asking stops before too much is spent, whoever asks, and goes on where it stopped once the cap is raised."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fedhelp_core.config.teachers import TeacherBudget, TeacherConfig
from fedhelp_core.softlabels.ledger import BudgetReached
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.core.softlabels.helpers import CountingTeacher, Killed, draw, killed_at, run, teacher_config

SHADES = (0, 40, 80, 120, 160)


def capped(**budget: Any) -> TeacherConfig:
    return teacher_config(budget=TeacherBudget(**budget))


def test_asking_stops_at_the_number_of_requests_and_goes_on_when_it_is_raised(store: Store, tmp_path: Path) -> None:
    public = draw(tmp_path / "public", *SHADES)
    first = CountingTeacher(capped(max_requests=2))
    sentence = (
        "teacher 'teacher': its budget (max_requests 2) allows no further request after 2 requests and 0.00 EUR; 1 of 5 images are left:"
        " raise the budget in public_set.teachers and run again, nothing that is answered is asked again")
    with pytest.raises(BudgetReached, match=f"^{re.escape(sentence)}$"):
        run(store, public, first)
    assert len(first.requests) == 2
    second = CountingTeacher(capped(max_requests=3))
    assert run(store, public, second).images == 5
    assert len(second.requests) == 1
    assert sorted(first.asked + second.asked) == list(SHADES)


def test_asking_stops_before_more_money_is_spent_than_allowed(store: Store, tmp_path: Path) -> None:
    public = draw(tmp_path / "public", *SHADES)
    prices = {"price_per_image": 0.05, "price_per_request": 0.5, "currency": "CHF"}  # so a request about two images costs 0.60
    teacher = CountingTeacher(capped(**prices, max_cost=1.79))
    with pytest.raises(BudgetReached, match=r"\(max_cost 1\.79 CHF\) allows no further request after 2 requests and 1\.20 CHF; 1 of 5 images"):
        run(store, public, teacher)
    assert len(teacher.requests) == 2
    report = run(store, public, CountingTeacher(capped(**prices, max_cost=1.80)))
    assert report.teachers["teacher"].ever.cost == pytest.approx(3 * 0.5 + 5 * 0.05)
    assert report.teachers["teacher"].run.cost == pytest.approx(0.55)  # this run's share: one request about one image


def test_a_request_that_may_have_been_answered_counts(local: Store, tmp_path: Path) -> None:
    public = draw(tmp_path / "public", *SHADES)
    with pytest.raises(Killed):
        run(local, public, CountingTeacher(capped(max_requests=3), then=killed_at(1)))
    teacher = CountingTeacher(capped(max_requests=3))
    with pytest.raises(BudgetReached, match="after 3 requests"):
        run(local, public, teacher)
    assert len(teacher.requests) == 1  # one was answered, one is in doubt


@pytest.mark.parametrize("processes", [1, 3])
def test_the_cap_holds_for_threads_and_for_those_who_ask_beside_them(tmp_path: Path, processes: int) -> None:
    public = draw(tmp_path / "public", *range(0, 240, 4))  # 30 requests
    asked: list[CountingTeacher] = []

    def ask(shard: int) -> None:
        slow = CountingTeacher(teacher_config(concurrency=8, budget=TeacherBudget(max_requests=10)), then=slowly)
        asked.append(slow)
        with pytest.raises(BudgetReached, match="max_requests 10"):
            run(open_store(str(tmp_path / "objects")), public, slow, shard=(shard, processes))

    def slowly(_number: int, answer: Any) -> Any:
        time.sleep(0.01)
        return answer

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(ask, range(1, processes + 1)))
    assert sum(len(teacher.requests) for teacher in asked) == 10


def test_a_used_up_budget_stops_nobody_who_asks_nothing(local: Store, tmp_path: Path) -> None:
    public = draw(tmp_path / "public", *SHADES)
    run(local, public, CountingTeacher())
    teacher = CountingTeacher(capped(max_requests=0))
    assert run(local, public, teacher).cached == len(SHADES)
    assert teacher.requests == []


def test_a_request_that_a_listing_misses_because_it_is_written_meanwhile_counts(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    public = draw(tmp_path / "public", *SHADES)
    run(local, public, CountingTeacher(capped(max_requests=2)), shard=(1, 2))
    whole = local.list

    def halfway(prefix: str) -> list[str]:
        """Request 1 and its answer appear after their folders were read, request 2's were there already."""
        return [key for key in whole(prefix) if "/00000001" not in key]

    assert len([key for key in whole("softlabels/ledger/") if "/requests/" in key]) == 2
    monkeypatch.setattr(local, "list", halfway)
    teacher = CountingTeacher(capped(max_requests=2))
    with pytest.raises(BudgetReached):
        run(local, public, teacher)
    assert teacher.requests == []
