"""MLflow for real: SQLite files and a server process; rounds logged once, models loadable elsewhere, champions that can be undone."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from fedhelp_components.evaluation.candidate import model_for_users
from fedhelp_components.promotion.__main__ import run as decide
from fedhelp_core.config.federation import Federation, parse_federation
from fedhelp_core.config.task import TaskConfig, task_asked_for
from fedhelp_core.errors import AccessDenied, ConfigError, FedHelpError, NotFound, PermanentError, StoreUnavailable, TeacherError
from fedhelp_core.models.build import build_model
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.open import open_store
from fedhelp_core.tracking.gate import gate
from fedhelp_core.tracking.models import ModelForUsers, load_pyfunc, save_pyfunc_from_code
from fedhelp_core.tracking.registry import Registry
from fedhelp_core.tracking.runs import AsyncTracker, Tracker, announce, end_run
from fedhelp_core.tracking.server import client_of, sqlite_path, tracking_uri

_KILLED_AMID_MIGRATIONS = """
import os, signal, sys
from alembic.ddl.impl import DefaultImpl
from fedhelp_core.config.federation import Federation
from fedhelp_core.tracking.runs import Tracker

DefaultImpl.drop_table = lambda *args, **kw: os.kill(os.getpid(), signal.SIGKILL)  # the new table is there, the old one not yet gone
Tracker.for_run(Federation.model_validate_json(sys.argv[2]), "r").log_final({"a": 0.5})
"""
NOBODY = "http://127.0.0.1:9"  # the discard port: connections are refused


def federation_in(store: str, **changes: Any) -> Federation:
    return parse_federation({
        "name": "tiny", "task": {"classes": ["x", "y", "z"], "image_size": 8}, "store": {"url": store},
        "algorithm": {"rounds": 3, "method": "fedavg", "rank_top_k": 1},
        "silos": [{"name": n, "dispatch": {"kind": "kubernetes"}} for n in ("a", "b")],
    }, source="test").override(**changes)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty MLflow database: making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("mlflow")
    client_of(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def federation(tmp_path: Path, database: bytes) -> Federation:
    """A federation whose store is a folder with a space in its name, and MLflow in it."""
    store = tmp_path / "the store"
    store.mkdir()
    (store / "mlflow.db").write_bytes(database)
    return federation_in(str(store))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, database: bytes) -> Iterator[str]:
    """The address of an MLflow server process of our own."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    (folder / "mlflow.db").write_bytes(database)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
         "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")],
        stdout=log, stderr=log, cwd=folder, start_new_session=True,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    try:
        deadline = time.monotonic() + 200
        while True:
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(10)
        log.close()


def runs_of(federation: Federation, run_id: str) -> list[Any]:
    client = client_of(tracking_uri(federation))
    experiment = client.get_experiment_by_name(federation.tracking.experiment)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id], f"tags.`fedhelp.run_id` = '{run_id}'"))


def history(federation: Federation, mlflow_run: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client_of(tracking_uri(federation)).get_metric_history(mlflow_run, key))


def log_rounds(federation: Federation, run_id: str, *numbers: int) -> None:
    with AsyncTracker.for_run(federation, run_id) as tracker:
        for number in numbers:
            tracker.log_round(number, {"mean_loss": 1 / number, "a.accuracy": number / 10})


class Scaled(torch.nn.Module):
    """Like evaluation's: pixels in, class probabilities out."""

    def __init__(self) -> None:
        super().__init__()
        self.proxy = build_model("resnet8", outputs=3, generator=torch.Generator().manual_seed(1))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        probabilities: torch.Tensor = self.proxy(images_BCHW / 255 - 0.5).softmax(dim=-1)
        return probabilities


TINY = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 3))
TASK = TaskConfig(name="pneumonia", classes=("clear", "cloudy", "unsure"), image_size=8)


def for_users(network: torch.nn.Module) -> ModelForUsers:
    """With all that evaluation gives it."""
    return model_for_users(network, TASK, {})
SCORES = {
    "a": {"balanced_accuracy": 0.5, "kind": "large", "test_sha256": "aa"},
    "b": {"balanced_accuracy": 0.4, "kind": "small", "test_sha256": "bb"},
}


def tags_of(run_id: str, sha: str, scores: str | None = None) -> dict[str, str]:
    return {"fedhelp.run": run_id, "fedhelp.global_sha256": sha, "fedhelp.scores": json.dumps(SCORES) if scores is None else scores}


def add_versions(federation: Federation, *scores: str | None) -> Registry:
    """A registry whose model `tiny` has one version per scores text; none is champion, the last is the candidate."""
    client = client_of(tracking_uri(federation))
    client.create_registered_model("tiny")
    for text in scores:
        made = client.create_model_version("tiny", source="/nowhere", tags={} if text is None else {"fedhelp.scores": text})
        client.set_registered_model_alias("tiny", "candidate", made.version)
    return Registry.for_federation(federation)


class TestWhereMlflowIs:
    def test_the_config_comes_before_the_environment_which_comes_before_the_store(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = federation_in("/data/store")
        assert tracking_uri(plain) == "sqlite:////data/store/mlflow.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
        assert tracking_uri(plain) == "http://environment"
        assert tracking_uri(federation_in("/data/store", **{"tracking.uri": "http://config"})) == "http://config"

    def test_a_file_url_is_the_folder_it_names(self) -> None:
        assert tracking_uri(federation_in("file:///data/the%20store")) == "sqlite:////data/the store/mlflow.db"

    def test_a_bucket_needs_a_server_and_is_told_so_before_training(self) -> None:
        bucket = federation_in("s3://bucket/prefix")
        for ask in (tracking_uri, Registry.for_federation, lambda f: AsyncTracker.for_run(f, "r"), lambda f: Tracker.for_run(f, "r")):
            with pytest.raises(ConfigError, match=r"set tracking\.uri or \$MLFLOW_TRACKING_URI"):
                ask(bucket)


class TestRounds:
    def test_every_finite_metric_is_logged_with_the_round_as_its_step(self, federation: Federation) -> None:
        with AsyncTracker.for_run(federation, "r") as tracker:
            tracker.log_round(1, {"mean_loss": 0.5, "a.accuracy": float("nan")})
            tracker.log_round(2, {"mean_loss": float("inf"), "a.accuracy": 0.75, "a.odd=name": 1})
        [run] = runs_of(federation, "r")
        assert history(federation, run.info.run_id, "mean_loss") == [(1, 0.5)]
        assert history(federation, run.info.run_id, "a.accuracy") == [(2, 0.75)]
        assert history(federation, run.info.run_id, "a.odd_name") == [(2, 1.0)]

    def test_the_config_is_logged_as_short_parameters_without_passwords(self, federation: Federation) -> None:
        images = "/public/" + "x" * 600
        teacher = {"name": "big", "uri": "http://user:secret@teacher/v2/models/m", "classes": 5}
        log_rounds(federation.override(public_set={"images": images, "teachers": [teacher]}), "r", 1)
        [run] = runs_of(federation, "r")
        assert run.data.params["algorithm.rounds"] == "3"
        assert run.data.params["algorithm.optimizer.learning_rate"] == "0.001"
        assert run.data.params["silos"] == "a,b"
        assert len(run.data.params["public_set.images"]) == 500
        assert "secret" not in json.dumps(run.data.params)

    def test_a_restart_finds_the_run_and_logs_only_what_is_missing(self, federation: Federation) -> None:
        log_rounds(federation, "r", 1, 2)
        log_rounds(federation, "r", 1, 2, 3)
        [run] = runs_of(federation, "r")
        assert history(federation, run.info.run_id, "mean_loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
        assert history(federation, run.info.run_id, "a.accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]

    @pytest.mark.slow
    def test_a_process_killed_while_logging_leaves_nothing_that_a_restart_logs_twice(self, federation: Federation, tmp_path: Path) -> None:
        (tmp_path / "federation.yaml").write_text(federation.to_yaml())
        script = (
            "import sys, time\nfrom pathlib import Path\nfrom fedhelp_core.config.federation import load_federation\n"
            "from fedhelp_core.tracking.runs import AsyncTracker\n"
            "with AsyncTracker.for_run(load_federation(Path(sys.argv[1])), 'r') as tracker:\n"
            "    for number in range(1, 10**6):\n"
            "        tracker.log_round(number, {'mean_loss': 1 / number, 'a.accuracy': number / 10})\n        time.sleep(0.1)\n")
        process = subprocess.Popen([sys.executable, "-c", script, tmp_path / "federation.yaml"], cwd=Path(__file__).parents[3])
        try:
            deadline = time.monotonic() + 200
            while not any("mean_loss" in run.data.metrics for run in runs_of(federation, "r")):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
        [run] = runs_of(federation, "r")
        done = [step for step, _ in history(federation, run.info.run_id, "mean_loss")]
        everything = list(range(1, max(done) + 3))
        log_rounds(federation, "r", *everything)
        [run] = runs_of(federation, "r")
        for key in ("mean_loss", "a.accuracy"):
            assert [step for step, _ in history(federation, run.info.run_id, key)] == everything

    def test_federations_that_share_a_server_and_a_run_id_do_not_share_a_run(self, federation: Federation) -> None:
        other = federation.override(**{"algorithm.rounds": 7})
        log_rounds(federation, "r", 1)
        log_rounds(other, "r", 1)
        assert {run.data.params["algorithm.rounds"] for run in runs_of(federation, "r")} == {"3", "7"}

    def test_a_preset_run_is_used_and_keeps_its_own_parameters(self, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        client = client_of(tracking_uri(federation))
        preset = client.create_run(client.create_experiment("elsewhere", artifact_location="/nowhere")).info.run_id
        client.log_param(preset, "algorithm.rounds", "of its owner")
        monkeypatch.setenv("MLFLOW_RUN_ID", preset)
        log_rounds(federation, "r", 1)
        log_rounds(federation, "r", 1, 2)
        assert history(federation, preset, "mean_loss") == [(1, 1.0), (2, 0.5)]
        run = client.get_run(preset)
        assert run.data.params["algorithm.rounds"] == "of its owner" and run.data.params["algorithm.method"] == "fedavg"
        assert run.data.tags["fedhelp.run_id"] == "r"
        assert runs_of(federation, "r") == []

    def test_a_run_that_fails_is_marked_so_and_runs_again_after_a_restart(self, federation: Federation) -> None:
        def fail(error: BaseException) -> None:
            with AsyncTracker.for_run(federation, "r"):
                raise error

        for error, status in ((ValueError("a silo"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
            with pytest.raises(type(error)):
                fail(error)
            assert runs_of(federation, "r")[0].info.status == status
        log_rounds(federation, "r", 1)
        assert runs_of(federation, "r")[0].info.status == "RUNNING"

    def test_a_dead_server_costs_a_round_nothing_and_is_named_once_and_counted_at_the_end(
        self, federation: Federation, caplog: pytest.LogCaptureFixture,
    ) -> None:
        dead = federation.override(**{"tracking.uri": NOBODY.replace("://", "://user:secret@")})
        with caplog.at_level(logging.WARNING, "fedhelp.tracking"), AsyncTracker.for_run(dead, "r") as tracker:
            started = time.monotonic()
            for number in range(1, 101):
                tracker.log_round(number, {"mean_loss": 0.5})
            assert time.monotonic() - started < 1
            wait_until(lambda: bool(caplog.records))
            tracker.log_round(101, {"mean_loss": 0.5})
        first, last = [record.getMessage() for record in caplog.records]
        assert "training goes on" in first and "127.0.0.1:9" in first
        assert "rounds not logged to MLflow at http://127.0.0.1:9: 101 (" in last
        assert "secret" not in first + last

    def test_more_rounds_than_memory_is_meant_for_are_dropped_and_counted(
        self, federation: Federation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("fedhelp_core.tracking.runs._ROUNDS_KEPT", 5)
        with AsyncTracker.for_run(federation.override(**{"tracking.uri": NOBODY}), "r") as tracker:
            for number in range(1, 13):
                tracker.log_round(number, {"mean_loss": 0.5})
            assert len(tracker._waiting) == 5
        assert ": 12 (" in caplog.text

    def test_a_server_that_hangs_holds_the_end_no_longer_than_it_may(
        self, federation: Federation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("fedhelp_core.tracking.runs._CLOSING_WAIT", 0.5)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        with socket.socket() as deaf:  # accepts, never answers
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            tracker = AsyncTracker.for_run(federation.override(**{"tracking.uri": f"http://127.0.0.1:{deaf.getsockname()[1]}"}), "r")
            with tracker:
                tracker.log_round(1, {"mean_loss": 0.5})
                started = time.monotonic()
            assert time.monotonic() - started < 2
            assert ": 1 (" in caplog.text
            tracker._thread.join(30)
            assert not tracker._thread.is_alive()

    def test_what_an_absent_server_missed_is_logged_when_it_is_back(self, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fedhelp_core.tracking.runs._RETRY_AFTER", 0.2)
        database = Path(federation.store.url) / "mlflow.db"
        content = database.read_bytes()
        database.write_bytes(b"no database" * 1000)
        with AsyncTracker.for_run(federation, "r") as tracker:
            tracker.log_round(1, {"mean_loss": 1.0})
            wait_until(lambda: bool(tracker._said))
            database.write_bytes(content)
            tracker.log_round(2, {"mean_loss": 0.5})
            wait_until(lambda: not tracker._waiting)
        [run] = runs_of(federation, "r")
        assert history(federation, run.info.run_id, "mean_loss") == [(1, 1.0), (2, 0.5)]

    @pytest.mark.slow
    def test_mlflow_is_imported_in_the_background_and_never_by_importing_us(self, federation: Federation, tmp_path: Path) -> None:
        (tmp_path / "federation.yaml").write_text(federation.to_yaml())
        script = (
            "import sys, time, threading\nfrom pathlib import Path\nfrom fedhelp_core.config.federation import load_federation\n"
            "from fedhelp_core.tracking.runs import AsyncTracker\n"
            "assert 'mlflow' not in sys.modules and 'torch' not in sys.modules\n"
            "tracker = AsyncTracker.for_run(load_federation(Path(sys.argv[1])), 'r')\n"
            "assert 'mlflow' not in sys.modules\n"
            "with tracker:\n    started = time.monotonic()\n    tracker.log_round(1, {'mean_loss': 1.0})\n    took = time.monotonic() - started\n"
            "assert 'mlflow' in sys.modules and took < 0.2, took\n")
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "federation.yaml"], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=240)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert len(runs_of(federation, "r")) == 1


class TestModels:
    @pytest.mark.slow
    def test_a_registered_model_loads_in_another_process_by_its_alias_and_answers_the_same_for_any_batch(
        self, federation: Federation, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    ) -> None:
        module = Scaled()
        version = Tracker.for_run(federation, "r").log_and_register_model(for_users(module), name="tiny", tags=tags_of("r", "00"))
        assert version == "1"
        assert capfd.readouterr() == ("", "")
        assert list(Path.cwd().iterdir()) == [], "MLflow leaves things in the working folder"
        images = torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
        np.save(tmp_path / "images.npy", images.permute(0, 2, 3, 1).numpy())
        script = (
            "import sys, numpy as np, mlflow\nmodel = mlflow.pyfunc.load_model('models:/tiny@candidate')\n"
            "images = np.load(sys.argv[1])\nanswers = [model.predict(images[:1]), model.predict(images[1:])]\n"
            "assert [list(one.columns) for one in answers] == [['clear', 'cloudy', 'unsure']] * 2\n"
            "np.save(sys.argv[2], np.concatenate([one.to_numpy() for one in answers]))\n"
            "assert mlflow.pyfunc.load_model('models:/tiny/1').predict(images).shape == (5, 3)\n")
        subprocess.run(
            [sys.executable, "-c", script, tmp_path / "images.npy", tmp_path / "answers.npy"], check=True, timeout=240,
            env={**os.environ, "MLFLOW_TRACKING_URI": tracking_uri(federation), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"})
        with torch.inference_mode():
            np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), module(images.float()).numpy(), atol=1e-6)

    def test_registering_again_adopts_the_version_and_gives_it_the_alias_back(self, federation: Federation) -> None:
        def register(run_id: str, sha: str) -> str:
            return Tracker.for_run(federation, run_id).log_and_register_model(for_users(TINY), name="tiny", tags=tags_of(run_id, sha))

        assert [register("r", "00"), register("r", "00"), register("s", "00"), register("r", "00")] == ["1", "1", "2", "1"]
        client = client_of(tracking_uri(federation))
        assert str(client.get_model_version_by_alias("tiny", "candidate").version) == "1"
        assert len(client.search_model_versions("name='tiny'")) == 2
        [run] = runs_of(federation, "r")
        assert run.info.status == "FINISHED" and run.data.tags["fedhelp.global_sha256"] == "00"
        assert client.get_model_version("tiny", "1").run_id == run.info.run_id

    def test_a_metric_that_the_run_never_had_costs_no_request_of_its_own(self, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        real = MlflowClient.get_metric_history
        monkeypatch.setattr(MlflowClient, "get_metric_history", lambda self, run, key: asked.append(key) or real(self, run, key))
        Tracker.for_run(federation, "r").log_final({f"silo {number}": 0.5 for number in range(20)})
        assert asked == []
        Tracker.for_run(federation, "r").log_final({"silo 7": 0.5, "another": 0.5})
        assert asked == ["silo 7"], "a step of it may be there"

    def test_results_are_logged_once_beside_the_rounds(self, federation: Federation) -> None:
        log_rounds(federation, "r", 1, 2, 3)
        for _ in range(2):
            Tracker.for_run(federation, "r").log_final({"a": 0.5, "worst_silo": float("nan")})
        [run] = runs_of(federation, "r")
        assert history(federation, run.info.run_id, "a") == [(3, 0.5)]
        assert "worst_silo" not in run.data.metrics

    def test_a_model_that_cannot_be_exported_is_refused_in_a_sentence_and_not_registered(self, federation: Federation) -> None:
        class Branching(torch.nn.Module):
            def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
                return images_BCHW.mean(dim=(2, 3)) if images_BCHW.sum() > 0 else images_BCHW.amax(dim=(2, 3))

        with pytest.raises(PermanentError, match=r"cannot be exported by torch\.export"):
            Tracker.for_run(federation, "r").log_and_register_model(for_users(Branching()), name="tiny", tags=tags_of("r", "00"))
        assert Registry.for_federation(federation).champion("tiny") is None
        assert client_of(tracking_uri(federation)).search_model_versions("name='tiny'") == []

    @pytest.mark.parametrize("before", [None, "http://environment"])
    def test_the_environment_stays_as_it_is(self, federation: Federation, monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
        here = federation.override(**{"tracking.uri": tracking_uri(federation)})
        if before is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", before)
        Tracker.for_run(here, "r").log_and_register_model(for_users(TINY), name="tiny", tags={})
        assert os.environ.get("MLFLOW_TRACKING_URI") == before


@pytest.mark.slow
class TestWithAServer:
    def test_rounds_model_and_promotion_go_through_a_server(
        self, server: str, federation: Federation, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        there = federation.override(**{"tracking.uri": server})
        log_rounds(there, "r", 1, 2)
        log_rounds(there, "r", 1, 2, 3)
        [run] = runs_of(there, "r")
        assert history(there, run.info.run_id, "mean_loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
        tracker = Tracker.for_run(there, "r")
        tracker.log_final({"a": 0.5})
        versions = [tracker.log_and_register_model(for_users(TINY), name="tiny", tags=tags_of("r", "00")) for _ in range(2)]
        assert versions == ["1", "1"]
        registry = Registry.for_federation(there)
        assert registry.champion("tiny") is None
        assert registry.champion("unheard-of") is None
        assert registry.scores_of("tiny", "1") == SCORES
        assert registry.promote("tiny", None).version == "1"
        assert registry.champion("tiny") == "1"
        with pytest.raises(NotFound, match="no champion was there before"):
            registry.rollback("tiny")
        assert capfd.readouterr() == ("", "")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        answer, _ = load_pyfunc("models:/tiny@champion")
        assert answer(np.full((2, 8, 8, 3), 7, np.uint8)).shape == (2, 3)
        with pytest.raises(TeacherError, match="refuses a batch of uint8 images"):
            answer(np.zeros((2, 8, 8, 3), np.uint8))

    def test_what_speaks_http_but_is_no_mlflow_is_named(self, server: str, federation: Federation) -> None:
        with pytest.raises(FedHelpError, match=r"not-here"):
            Tracker.for_run(federation.override(**{"tracking.uri": f"{server}/not-here"}), "r").log_final({"a": 0.5})


def _of_another_version(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")


class TestErrors:
    def test_a_server_that_is_not_there_is_worth_another_try(self, federation: Federation) -> None:
        dead = federation.override(**{"tracking.uri": NOBODY.replace("://", "://user:secret@")})
        registry = Registry.for_federation(dead)
        calls: list[Callable[[], object]] = [
            lambda: Tracker.for_run(dead, "r").log_final({"a": 0.5}), lambda: registry.champion("tiny"), lambda: registry.promote("tiny", None),
            lambda: registry.rollback("tiny"), lambda: registry.scores_of("tiny", "1")]
        for call in calls:
            with pytest.raises(StoreUnavailable, match=r"MLflow at http://127\.0\.0\.1:9: .*try again") as raised:
                call()
            assert "secret" not in str(raised.value)

    def test_a_deleted_experiment_is_named(self, federation: Federation) -> None:
        client = client_of(tracking_uri(federation))
        client.delete_experiment(client.create_experiment("fedhelp", artifact_location="/nowhere"))
        with pytest.raises(ConfigError, match="'fedhelp' was deleted"):
            Tracker.for_run(federation, "r").log_final({"a": 0.5})

    def test_a_preset_run_that_does_not_exist_is_named(self, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
        with pytest.raises(NotFound, match=r"\$MLFLOW_RUN_ID"):
            Tracker.for_run(federation, "r").log_final({"a": 0.5})

    @pytest.mark.slow
    def test_a_process_killed_while_it_made_the_database_leaves_none_that_is_half_made(self, tmp_path: Path) -> None:
        federation = federation_in(str(tmp_path / "store"))
        killed = subprocess.run(
            [sys.executable, "-c", _KILLED_AMID_MIGRATIONS, tracking_uri(federation), federation.model_dump_json()], check=False, timeout=120)
        assert killed.returncode == -signal.SIGKILL
        Tracker.for_run(federation, "r").log_final({"a": 0.5})
        assert [path.name for path in (tmp_path / "store").iterdir()] == ["mlflow.db"]

    @pytest.mark.parametrize(("damage", "words"), [
        (_of_another_version, "tables are of another version of MLflow .schema ffffffffffff, this client's is .* mlflow db upgrade"),
        (lambda path: path.write_bytes(path.read_bytes()[:20_000]), "is no SQLite database .database disk image is malformed"),
        (lambda path: path.write_bytes(b"This is a letter, and no database at all.\n" * 500), "is no SQLite file"),
        (lambda path: (path.unlink(), path.mkdir()), "other.db cannot be read .Is a directory"),
    ], ids=["of a newer version", "cut off", "a text", "a folder"])
    def test_a_database_that_will_never_do_is_permanent(self, federation: Federation, damage: Callable[[Path], object], words: str) -> None:
        client_of(tracking_uri(federation)).search_experiments(max_results=1)
        good = sqlite_path(tracking_uri(federation))
        assert good is not None
        path = good.with_name("other.db")  # mlflow remembers the databases that a process has opened
        path.write_bytes(good.read_bytes())
        damage(path)
        with pytest.raises(PermanentError, match=words):
            Tracker.for_run(federation.override(**{"tracking.uri": f"sqlite:///{path}"}), "r").log_final({"a": 0.5})

    def test_a_folder_that_nothing_can_be_written_into_is_named(self, federation: Federation) -> None:
        blocked = federation.override(**{"tracking.uri": "sqlite:////proc/nowhere/mlflow.db"})
        with pytest.raises((AccessDenied, StoreUnavailable), match="/proc/nowhere"):
            Tracker.for_run(blocked, "r").log_final({"a": 0.5})


class TestWhatPeopleSeeFirst:
    def test_the_run_is_there_before_its_first_round_and_named_as_kubeflow_names_it(self, federation: Federation) -> None:
        address = announce(federation, "r", name="fedhelp 2026-03-01", tags={"fedhelp.kubeflow_run": "4711"})

        (run,) = runs_of(federation, "r")
        assert address.endswith(f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
        assert (run.info.run_name, run.data.tags["fedhelp.kubeflow_run"], run.info.status) == ("fedhelp 2026-03-01", "4711", "RUNNING")

    def test_a_run_that_was_stopped_is_no_longer_running(self, federation: Federation) -> None:
        announce(federation, "r", name="", tags={})
        end_run(federation, "r", "KILLED")

        (run,) = runs_of(federation, "r")
        assert (run.info.run_name, run.info.status) == ("r", "KILLED")


class TestRegistry:
    def test_the_candidate_is_promoted_and_the_champion_before_it_comes_back(self, federation: Federation) -> None:
        registry = add_versions(federation, "{}", "{}", "{}")
        assert registry.champion("tiny") is None
        assert registry.champion_before("tiny") is None
        assert registry.promote("tiny", "1") == ("1", None)
        assert registry.champion_before("tiny") is None
        assert registry.promote("tiny", None) == ("3", "1")
        assert registry.promote("tiny", "2") == ("2", "3")
        assert registry.promote("tiny", "2") == ("2", "2")
        assert registry.champion_before("tiny") == "3"
        assert registry.rollback("tiny") == "3"
        assert registry.rollback("tiny") == "1"
        assert registry.champion("tiny") == "1"
        with pytest.raises(NotFound, match="no champion was there before version 1"):
            registry.rollback("tiny")
        assert registry.champion("tiny") == "1"

    def test_the_champions_weights_trained_again_are_the_same_model_and_not_promoted(self, federation: Federation) -> None:
        registry, client = add_versions(federation, json.dumps(SCORES), json.dumps(SCORES), json.dumps(SCORES)), client_of(tracking_uri(federation))
        for version, sha256 in (("1", "a" * 64), ("2", "a" * 64), ("3", "b" * 64)):
            client.set_model_version_tag("tiny", version, "fedhelp.global_sha256", sha256)
        registry.promote("tiny", "1")
        gated = federation.override(**{"tracking.registered_model": "tiny", "promotion.mode": "gate"})
        Run(open_store(gated.store.url), "again").freeze(gated.to_yaml())

        said = decide(store=gated.store.url, endpoint_url="", run_id="again", model_version="2")

        assert said == "tiny version 2 has the same weights as the champion, version 1, which stays it"
        assert registry.champion("tiny") == "1"
        assert not registry.same_weights("tiny", "1", "3")

    def test_promoting_twice_changes_nothing(self, federation: Federation) -> None:
        registry = add_versions(federation, "{}", "{}")
        for version in ("1", "2", "2", "2"):
            registry.promote("tiny", version)
        assert registry.rollback("tiny") == "1"

    def test_a_promotion_killed_before_its_end_leaves_the_old_champion_and_can_be_done_again(
        self, federation: Federation, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        registry = add_versions(federation, "{}", "{}", "{}")
        registry.promote("tiny", "1")
        registry.promote("tiny", "2")
        with monkeypatch.context() as patch:
            patch.setattr("mlflow.MlflowClient.set_registered_model_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                registry.promote("tiny", "3")
        assert registry.champion("tiny") == "2"
        registry.promote("tiny", "3")
        assert [registry.rollback("tiny"), registry.rollback("tiny")] == ["2", "1"]

    def test_a_champion_that_was_deleted_cannot_come_back(self, federation: Federation) -> None:
        registry = add_versions(federation, "{}", "{}")
        registry.promote("tiny", "1")
        registry.promote("tiny", "2")
        client_of(tracking_uri(federation)).delete_model_version("tiny", "1")
        with pytest.raises(NotFound):
            registry.rollback("tiny")
        assert registry.champion("tiny") == "2"

    def test_what_does_not_exist_is_not_promoted(self, federation: Federation) -> None:
        registry = Registry.for_federation(federation)
        for act in (lambda: registry.promote("tiny", "1"), lambda: registry.rollback("tiny"), lambda: registry.scores_of("tiny", "1")):
            with pytest.raises(NotFound, match="tiny"):
                act()
        add_versions(federation)
        with pytest.raises(NotFound, match="no version has the alias 'candidate'"):
            registry.promote("tiny", None)
        with pytest.raises(NotFound, match="has no version '7'; run evaluation first"):
            registry.promote("tiny", "7")
        with pytest.raises(NotFound, match="no version is champion"):
            registry.rollback("tiny")

    def test_a_version_that_is_not_there_is_answered_with_those_that_are(self, federation: Federation) -> None:
        registry = add_versions(federation, "{}", "{}")
        for wrong in ("7", "x", "01"):
            with pytest.raises(NotFound, match=f"model 'tiny' has no version '{wrong}'; choose one of 1, 2: fedhelp promote"):
                registry.promote("tiny", wrong)
        assert registry.champion("tiny") is None

    def test_scores_are_read_back_and_what_is_no_scores_is_refused(self, federation: Federation) -> None:
        bad = ["{", "[]", "3", "{}", '{"a": 1}', '{"a": {"kind": "small", "test_sha256": "x"}}',
               '{"a": {"kind": "small", "test_sha256": "x", "balanced_accuracy": NaN}}',
               '{"a": {"kind": "small", "test_sha256": "x", "balanced_accuracy": "?"}}']
        counted = {silo: {**noted, "right": [3, 0]} for silo, noted in SCORES.items()}
        bad.append('{"a": {"kind": "small", "test_sha256": "x", "balanced_accuracy": 0.5, "right": [null]}}')
        registry = add_versions(federation, json.dumps(SCORES), None, *bad, json.dumps(counted))
        assert registry.scores_of("tiny", "1") == SCORES
        assert registry.scores_of("tiny", str(3 + len(bad))) == counted
        with pytest.raises(NotFound, match=r"version 2: no tag fedhelp\.scores"):
            registry.scores_of("tiny", "2")
        for number in range(3, 3 + len(bad)):
            with pytest.raises(PermanentError, match=rf"version {number}: tag fedhelp\.scores cannot be read"):
                registry.scores_of("tiny", str(number))


def scores(**values: tuple[float, str]) -> dict[str, dict[str, Any]]:
    return {silo: {"balanced_accuracy": value, "kind": kind, "test_sha256": f"images of {silo}"} for silo, (value, kind) in values.items()}


SCORE = TaskConfig(name="melanoma").headline
BEFORE = scores(a=(0.80, "large"), b=(0.50, "small"), c=(0.60, "small"))


class TestGate:
    @pytest.mark.parametrize(("candidate", "promoted", "reasons"), [
        # small silos' mean: 0.55 before; 0.02 more are asked for, 0.05 less are allowed
        (scores(a=(0.80, "large"), b=(0.54, "small"), c=(0.60, "small")), True,
         ["the small silos' mean rises by 0.020 to 0.570, at least 0.020 was asked for", "no silo falls"]),
        (scores(a=(0.99, "large"), b=(0.53, "small"), c=(0.60, "small")), False,
         ["the small silos' mean rises by 0.015 to 0.565, but at least 0.020 was asked for", "no silo falls"]),
        (scores(a=(0.75, "large"), b=(0.60, "small"), c=(0.60, "small")), True,
         ["the small silos' mean rises by 0.050 to 0.600, at least 0.020 was asked for",
          "no silo falls by more than 0.050 (most: a, by 0.050)"]),
        (scores(a=(0.74, "large"), b=(0.60, "small"), c=(0.60, "small")), False,
         ["the small silos' mean rises by 0.050 to 0.600, at least 0.020 was asked for",
          "a falls by 0.060 to 0.740, more than 0.050 is not allowed"]),
        (scores(a=(0.10, "large"), b=(0.40, "small"), c=(0.60, "small")), False,
         ["the small silos' mean falls by 0.050 to 0.500, but at least 0.020 was asked for",
          "a falls by 0.700 to 0.100, more than 0.050 is not allowed", "b falls by 0.100 to 0.400, more than 0.050 is not allowed"]),
    ])
    def test_the_small_must_gain_and_nobody_may_lose_much(self, candidate: dict[str, Any], promoted: bool, reasons: list[str]) -> None:
        verdict = gate(candidate, BEFORE, SCORE, min_improvement=0.02, max_regression=0.05)
        assert (verdict.promote, verdict.reasons) == (promoted, reasons)

    def test_the_first_candidate_needs_no_comparison(self) -> None:
        verdict = gate(BEFORE, None, SCORE, min_improvement=0.02, max_regression=0.05)
        assert verdict.promote and verdict.reasons == ["there was none to compare with"]

    def test_the_same_scores_pass_when_no_improvement_is_asked_for(self) -> None:
        assert gate(BEFORE, BEFORE, SCORE, min_improvement=0.0, max_regression=0.0).promote

    def test_other_test_images_and_other_silos_are_not_comparable_and_named(self) -> None:
        better = scores(a=(0.9, "large"), b=(0.9, "small"), c=(0.9, "small"))
        other_images = {**better, "b": {**better["b"], "test_sha256": "new images"}}
        joined = {**better, "d": better["c"]}
        left = {silo: better[silo] for silo in ("a", "b")}
        for candidate, reason in ((other_images, "test images of b"), (joined, "d took no part"), (left, "c took part in the champion's")):
            verdict = gate(candidate, BEFORE, SCORE, min_improvement=0.0, max_regression=1.0)
            assert not verdict.promote
            assert len(verdict.reasons) == 1 and reason in verdict.reasons[0]

    def test_a_fall_is_said_in_test_images_where_both_were_counted(self) -> None:
        before = scores(a=(0.80, "large"), b=(0.60, "small"))
        after = scores(a=(0.747, "large"), b=(0.70, "small"))
        before["a"]["right"], after["a"]["right"] = [5, 30, 9], [3, 29, 12]
        verdict = gate(after, before, SCORE, min_improvement=0.0, max_regression=0.05, classes=("melanoma", "nevus", "other"))
        assert verdict.reasons[1] == (
            "a falls by 0.053 to 0.747, more than 0.050 is not allowed: of its test images 3 fewer are right (2 of melanoma, 1 of nevus),"
            " and 3 more of other classes")
        del before["a"]["right"]  # a champion of an older version
        verdict = gate(after, before, SCORE, min_improvement=0.0, max_regression=0.05, classes=("melanoma", "nevus", "other"))
        assert verdict.reasons[1] == "a falls by 0.053 to 0.747, more than 0.050 is not allowed"

    def test_without_small_silos_all_count(self) -> None:
        verdict = gate(scores(a=(0.9, "large")), scores(a=(0.8, "large")), SCORE, min_improvement=0.05, max_regression=0.0)
        assert verdict.promote and verdict.reasons[0].startswith("the mean of all silos rises by 0.100")

    def test_a_score_that_is_no_number_is_never_promoted(self) -> None:
        nan = scores(a=(float("nan"), "large"), b=(0.9, "small"), c=(0.9, "small"))
        assert not gate(nan, BEFORE, SCORE, min_improvement=0.0, max_regression=0.05).promote

    def test_a_champion_of_another_task_is_not_comparable(self) -> None:
        verdict = gate(BEFORE, BEFORE, TaskConfig(name="lung-segmentation").headline, min_improvement=0.0, max_regression=1.0)
        assert not verdict.promote
        assert verdict.reasons == ["not comparable: the champion was not scored by Dice; was it made for another task?"]

    def test_a_distance_has_to_become_smaller(self) -> None:
        metric = task_asked_for("brain-segmentation").scored_by[1]
        before, after = ({silo: {"hausdorff95": value, "kind": "small", "test_sha256": silo} for silo, value in found.items()}
                         for found in ({"a": 8.0, "b": 4.0}, {"a": 5.0, "b": 4.5}))
        verdict = gate(after, before, metric, min_improvement=1.0, max_regression=0.5)
        assert verdict.promote
        assert verdict.reasons == [
            "the small silos' mean falls by 1.250 to 4.750, at least 1.000 was asked for", "no silo rises by more than 0.500 (most: b, by 0.500)"]
        assert not gate(before, after, metric, min_improvement=0.0, max_regression=9.0).promote


@pytest.mark.slow
class TestPyfuncTeachers:
    CODE = (
        "import json\nfrom pathlib import Path\nimport mlflow\nimport numpy as np\nfrom mlflow.pyfunc import PythonModel\n\n\n"
        "class Constant(PythonModel):\n"
        "    def load_context(self, context):\n"
        "        self.row = json.loads(Path(context.artifacts['row']).read_text())\n        self.classes = context.model_config['classes']\n\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        if len(model_input) > 2:\n            raise ValueError('too many')\n"
        "        assert model_input.dtype == np.uint8 and len(self.row) == self.classes\n"
        "        return np.tile(self.row, (len(model_input), 1))\n\n\n"
        "mlflow.models.set_model(Constant())\n")

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        (tmp_path / "code.py").write_text(self.CODE)
        (tmp_path / "row.json").write_text("[0.25, 0.75]")
        save_pyfunc_from_code(tmp_path / "teacher", code=tmp_path / "code.py", artifacts={"row": tmp_path / "row.json"}, settings={"classes": 2})
        (tmp_path / "row.json").unlink()
        return tmp_path / "teacher"

    def test_a_model_made_from_code_is_saved_loaded_and_asked(self, model: Path) -> None:
        ask, _ = load_pyfunc(str(model))
        np.testing.assert_array_equal(ask(np.zeros((2, 8, 8, 3), np.uint8)), [[0.25, 0.75], [0.25, 0.75]])
        with pytest.raises(TeacherError, match=r"refuses a batch of uint8 images \(3, 8, 8, 3\) \(ValueError: too many\)"):
            ask(np.zeros((3, 8, 8, 3), np.uint8))

    def test_a_model_that_is_not_there_or_none_is_named(self, tmp_path: Path, model: Path) -> None:
        (model / "row.json").write_text("")
        (model / "MLmodel").write_text("nonsense: [")
        for uri in (str(tmp_path / "absent"), str(model)):
            with pytest.raises(TeacherError, match=rf"teacher model {uri}: cannot be loaded .* check public_set.teachers' uri"):
                load_pyfunc(uri)


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not happened():
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
