"""Metrics as Prometheus reads them: scraped and pushed over real HTTP, named and labelled as documented."""

from __future__ import annotations

import logging
import math
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fedhelp_core import telemetry
from fedhelp_core.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test counts from zero, and reaches its own servers whatever proxy is set."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    telemetry._metrics.cache_clear()
    yield
    telemetry._metrics.cache_clear()


def record_one_of_each() -> None:
    telemetry.round_committed(
        "run-1", 7, 2.5, accepted={"a": {"proxy_loss": 0.5, "large_loss": 9.0}, "b": {}}, refused={"c": "why"}, absent={"d": "why"})
    telemetry.phase_finished("a", "train", 1.5)
    telemetry.update_sent("a", 4096)
    telemetry.trained("b", loss=0.25, images=300, seconds=1.5)
    telemetry.teacher_asked("teacher", 64, 0.2)


def samples(text: str) -> dict[str, float]:
    """'name{labels}' -> value of an exposition, without the times at which counters were made."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#") and "_created" not in line]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.fixture(scope="module")
def scraped() -> str:
    """What a real scrape of `serve` gives after one of everything was recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        telemetry._metrics.cache_clear()
        record_one_of_each()
        port = telemetry.serve(0, "127.0.0.1")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain")
            text: str = answer.read().decode()
        return text


@pytest.mark.parametrize(("sample", "value"), [
    ('fedhelp_rounds_committed_total{run="run-1"}', 1),
    ('fedhelp_last_committed_round{run="run-1"}', 7),
    ('fedhelp_round_duration_seconds_sum{run="run-1"}', 2.5),
    ('fedhelp_round_duration_seconds_bucket{le="1.0",run="run-1"}', 0),
    ('fedhelp_round_duration_seconds_bucket{le="3.0",run="run-1"}', 1),
    ('fedhelp_updates_total{outcome="accepted",run="run-1",silo="a"}', 1),
    ('fedhelp_updates_total{outcome="accepted",run="run-1",silo="b"}', 1),
    ('fedhelp_updates_total{outcome="refused",run="run-1",silo="c"}', 1),
    ('fedhelp_updates_total{outcome="absent",run="run-1",silo="d"}', 1),
    ('fedhelp_silo_phase_duration_seconds_sum{phase="train",silo="a"}', 1.5),
    ('fedhelp_update_bytes_total{silo="a"}', 4096),
    ('fedhelp_silo_loss{silo="a"}', 0.5),
    ('fedhelp_silo_loss{silo="b"}', 0.25),
    ('fedhelp_silo_images_per_second{silo="b"}', 200),
    ('fedhelp_teacher_requests_total{teacher="teacher"}', 1),
    ('fedhelp_teacher_images_total{teacher="teacher"}', 64),
])
def test_a_scrape_finds_what_was_recorded(scraped: str, sample: str, value: float) -> None:
    assert samples(scraped)[sample] == value


def test_nothing_else_is_exposed_and_every_label_is_bounded(scraped: str) -> None:
    found = set(re.findall(r"^# TYPE (\w+) (\w+)", scraped, re.MULTILINE))
    assert {pair for pair in found if not pair[0].endswith("_created")} == {
        ("fedhelp_rounds_committed_total", "counter"), ("fedhelp_last_committed_round", "gauge"),
        ("fedhelp_round_duration_seconds", "histogram"), ("fedhelp_updates_total", "counter"),
        ("fedhelp_silo_phase_duration_seconds", "histogram"), ("fedhelp_update_bytes_total", "counter"), ("fedhelp_silo_loss", "gauge"),
        ("fedhelp_silo_images_per_second", "gauge"), ("fedhelp_teacher_requests_total", "counter"), ("fedhelp_teacher_images_total", "counter"),
        ("fedhelp_teacher_failures_total", "counter"), ("fedhelp_teacher_request_duration_seconds", "histogram"), ("fedhelp_teacher_cost", "gauge"),
        ("fedhelp_teacher_budget", "gauge"), ("fedhelp_last_commit_timestamp_seconds", "gauge"),
    }
    assert set(re.findall(r'(\w+)="', scraped)) == {"run", "silo", "phase", "teacher", "outcome", "le"}


def test_names_carry_base_units_and_every_metric_has_help(scraped: str) -> None:
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)", scraped, re.MULTILINE):
        assert f"# HELP {name} " in scraped
        assert re.search(rf"^# HELP {name} \S+", scraped, re.MULTILINE)
        assert (kind == "counter") == name.endswith("_total") or name.endswith("_created")
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|megabytes)(_|$)", name)


def test_counters_add_up_and_gauges_keep_the_last_value() -> None:
    telemetry.update_sent("a", 10)
    telemetry.update_sent("a", 5)
    telemetry.trained("a", loss=2.0, images=10, seconds=1.0)
    telemetry.trained("a", loss=1.0, images=10, seconds=0.0)  # no time passed: no rate to report, and no division by zero
    found = samples(telemetry.exposition())
    assert found['fedhelp_update_bytes_total{silo="a"}'] == 15
    assert found['fedhelp_silo_loss{silo="a"}'] == 1.0
    assert found['fedhelp_silo_images_per_second{silo="a"}'] == 10


def test_a_label_value_cannot_break_the_format() -> None:
    telemetry.update_sent('a"\n} 1', 1)
    assert 'fedhelp_update_bytes_total{silo="a\\"\\n} 1"} 1.0' in telemetry.exposition()


class Gateway:
    """A Pushgateway's HTTP side: keeps what it is sent, answers with `status`."""

    def __init__(self, status: int = 202) -> None:
        self.requests: list[tuple[str, str, str]] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
                gateway.requests.append((self.command, self.path, body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


def test_a_push_adds_to_what_other_jobs_pushed(gateway: Gateway) -> None:
    record_one_of_each()
    telemetry.push(gateway.address, "soft_label_prefetch", "run-1")
    ((method, path, body),) = gateway.requests
    assert (method, path) == ("POST", "/metrics/job/soft_label_prefetch/run/run-1")  # PUT would drop what the job pushed before
    assert samples(body)['fedhelp_teacher_images_total{teacher="teacher"}'] == 64


def test_pushing_happens_only_where_a_gateway_is_configured(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDHELP_PUSHGATEWAY", raising=False)
    telemetry.push_if_configured("check", "run-1")
    assert gateway.requests == []
    monkeypatch.setenv("FEDHELP_PUSHGATEWAY", f"http://{gateway.address}")
    telemetry.push_if_configured("check", "run-1")
    assert [path for _, path, _ in gateway.requests] == ["/metrics/job/check/run/run-1"]


def test_runs_and_tasks_have_groups_of_their_own_and_an_ended_run_takes_its_own_away_alone(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDHELP_PUSHGATEWAY", gateway.address)
    groups: dict[str, str] = {}
    telemetry.push_if_configured("aggregation", "run-1")
    telemetry.push_if_configured("aggregation", "run-2")
    telemetry.push_if_configured("prefetch", "run-1")
    telemetry.delete_if_configured(["aggregation", "prefetch"], "run-1")
    for method, path, body in gateway.requests:  # what a Pushgateway makes of them
        if method == "DELETE":
            del groups[path]
        else:
            groups[path] = body
    assert list(groups) == ["/metrics/job/aggregation/run/run-2"]


def test_scores_and_the_ends_of_tokens_outlive_runs_in_the_federations_own_group(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHELP_PUSHGATEWAY", gateway.address)
    record_one_of_each()
    telemetry.scored("skin", {"a": 0.75}, {"a": {"mass": 0.5, "effusion": math.nan}})
    telemetry.token_ends("skin", "a", 1.8e9)
    telemetry.keep_if_configured(telemetry.EVALUATION, "skin")
    telemetry.push_if_configured(telemetry.AGGREGATION, "run-1")
    (_, kept_at, kept), (_, _, of_the_run) = gateway.requests
    assert kept_at == "/metrics/job/fedhelp_evaluation/federation/skin"
    assert samples(kept) == {
        'fedhelp_silo_score{federation="skin",silo="a"}': 0.75,
        'fedhelp_silo_score_of_each{answer="mass",federation="skin",silo="a"}': 0.5,
        'fedhelp_token_expiry_timestamp_seconds{federation="skin",silo="a"}': 1.8e9}
    assert "fedhelp_silo_score" not in of_the_run and 'run="run-1"' not in kept


def test_a_gateway_that_fails_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    broken = Gateway(status=500)
    with caplog.at_level(logging.WARNING, "fedhelp.telemetry"):
        telemetry.push(broken.address, "check", "run-1")
    broken.close()
    assert len(broken.requests) == 1
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [f"metrics were not pushed to {broken.address}"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:port", "no such host", "gopher://x"])
def test_a_gateway_that_is_not_there_is_one_warning(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedhelp.telemetry"):
        telemetry.push(address, "check", "run-1")
    assert len(caplog.records) == 1
    assert address in caplog.records[0].getMessage()


def test_a_gateway_that_never_answers_is_given_up(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_PUSH_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, caplog.at_level(logging.WARNING, "fedhelp.telemetry"):
        telemetry.push(f"127.0.0.1:{silent.getsockname()[1]}", "check", "run-1")
    assert len(caplog.records) == 1


def test_a_gateway_that_speaks_no_http_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with caplog.at_level(logging.WARNING, "fedhelp.telemetry"):
            telemetry.push(f"127.0.0.1:{server.getsockname()[1]}", "check", "run-1")
    assert len(caplog.records) == 1


def test_a_taken_port_is_a_config_error() -> None:
    port = telemetry.serve(0, "127.0.0.1")
    with pytest.raises(ConfigError, match=f"FEDHELP_METRICS_PORT.*127.0.0.1:{port}.*choose a free port"):
        telemetry.serve(port, "127.0.0.1")


def test_an_impossible_port_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, words in (("9090a", "a port number expected, got '9090a'"), ("99999", "99999"), ("-1", "got '-1'")):
        monkeypatch.setenv("FEDHELP_METRICS_PORT", value)
        with pytest.raises(ConfigError, match=f"FEDHELP_METRICS_PORT.*{words}"):
            telemetry.serve_if_configured()


def test_serving_happens_only_where_a_port_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDHELP_METRICS_PORT", raising=False)
    assert telemetry.serve_if_configured() is None
    monkeypatch.setenv("FEDHELP_METRICS_PORT", "0")
    port = telemetry.serve_if_configured()
    telemetry.update_sent("served", 3)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert 'fedhelp_update_bytes_total{silo="served"} 3.0' in answer.read().decode()


def test_prometheus_client_is_imported_at_the_first_recording_and_not_before() -> None:
    program = """
import os, sys
os.environ.pop("FEDHELP_METRICS_PORT", None), os.environ.pop("FEDHELP_PUSHGATEWAY", None)
from fedhelp_core import telemetry
telemetry.serve_if_configured()
telemetry.push_if_configured("check", "run-1")
print("prometheus_client" in sys.modules)
telemetry.update_sent("a", 1)
print("prometheus_client" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "True"]


def test_a_round_that_a_worker_finished_becomes_its_metrics() -> None:
    event = {
        "event": "round_finished", "silo": "from-an-event", "round": 3, "seconds": 5.0, "loss": 0.25, "images": 80, "update_bytes": 4096,
        "phases": {"load": 0.5, "train": 4.0, "save": 0.25, "upload": 0.25}}

    telemetry.round_finished(event)

    said = telemetry.exposition()
    assert 'fedhelp_silo_loss{silo="from-an-event"} 0.25' in said
    assert 'fedhelp_silo_images_per_second{silo="from-an-event"} 20.0' in said
    assert 'fedhelp_update_bytes_total{silo="from-an-event"} 4096.0' in said
    assert 'fedhelp_silo_phase_duration_seconds_sum{phase="train",silo="from-an-event"} 4.0' in said
