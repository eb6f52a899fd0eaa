"""Bodies of components that run in a process forked from the run's zygote, as under `fedhelp run`, and without one, as in a pod."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedhelp_components.forked import run_component
from fedhelp_core.errors import FedHelpError, NotFound
from fedhelp_core.protocol.facts import read_fact
from fedhelp_core.store.open import open_store
from fedhelp_dispatch.zygote_client import ZYGOTE_VARIABLE, ZygoteProcess, connected
from tests.tiny import TinyFederation, wait_until


@pytest.fixture(params=["zygote", "none"])
def zygote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ZygoteProcess | None]:
    if request.param == "none":
        monkeypatch.delenv(ZYGOTE_VARIABLE, raising=False)
        yield None
        return
    process = ZygoteProcess()
    wait_until(lambda: connected(process.path), "the zygote listening").close()
    monkeypatch.setenv(ZYGOTE_VARIABLE, process.path)
    yield process
    process.close()


def frozen(tiny: TinyFederation) -> dict[str, str]:
    """Arguments of a component, for a run that exists."""
    tiny.run("r").freeze(tiny.load().to_yaml())
    return {"store": str(tiny.store), "endpoint_url": "", "run_id": "r"}


def test_the_body_gives_its_value_and_prints_where_it_was_called(
    make_tiny: Callable[..., TinyFederation], zygote: ZygoteProcess | None, capfd: pytest.CaptureFixture[str],
) -> None:
    tiny = make_tiny()

    sha256 = run_component("soft_label_prefetch", **frozen(tiny))

    assert sha256 == read_fact(open_store(str(tiny.store)), "r", "distillation_set")["sha256"]
    assert "soft labels: 12 public images" in capfd.readouterr().out


def test_an_error_comes_back_with_its_sentence_and_exit_code(tmp_path: Path, zygote: ZygoteProcess | None) -> None:
    with pytest.raises(FedHelpError, match="no run 'missing'") as caught:
        run_component("soft_label_prefetch", store=str(tmp_path), endpoint_url="", run_id="missing")

    assert caught.value.exit_code == NotFound.exit_code


@pytest.mark.parametrize("zygote", ["zygote"], indirect=True)
def test_a_killed_body_is_said_to_be_killed(make_tiny: Callable[..., TinyFederation], zygote: ZygoteProcess) -> None:
    arguments = frozen(make_tiny())

    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.01):  # the zygote's own imports start processes too, so the first child need not be the body
            for pid in children_of(zygote.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(RuntimeError, match="soft_label_prefetch ended with code -9"):
            run_component("soft_label_prefetch", **arguments)
    finally:
        ended.set()
        killer.join()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_interrupts_from_its_start_on_leave_the_zygote_alone_and_reach_the_bodies(
    make_tiny: Callable[..., TinyFederation], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = make_tiny()
    arguments = frozen(tiny)
    process = ZygoteProcess()
    monkeypatch.setenv(ZYGOTE_VARIABLE, process.path)
    try:
        while (connection := connected(process.path)) is None:
            assert process.alive()
            os.kill(process.pid, signal.SIGINT)
        connection.close()
        os.kill(process.pid, signal.SIGINT)
        assert run_component("soft_label_prefetch", **arguments)
        assert "Traceback" not in capfd.readouterr().err

        def interrupt() -> None:
            wait_until((tiny.store / "mlflow.db").exists, "aggregation in its work")
            for pid in children_of(process.pid):
                os.kill(pid, signal.SIGINT)

        killer = threading.Thread(target=interrupt)
        killer.start()
        with pytest.raises(RuntimeError, match="aggregation ended with code 1 and no result"):
            run_component("aggregation", **arguments)
        killer.join()
        assert process.alive()
    finally:
        process.close()
