"""`fedhelp submit`: what it sends for a federation's file and `--set`, through kfp's own client to a stand-in of Kubeflow's REST interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from fedhelp_cli.main import main
from fedhelp_components.check.form import FIELDS
from fedhelp_core.errors import AccessDenied, ConfigError, JobFailed, NotFound, StoreUnavailable
from tests.pipelines.kubeflow import Kubeflow
from tests.s3_server import s3_server

IN_THE_CLUSTER = "/etc/fedhelp-of-no-machine/federation.yaml"
FEDERATION: dict[str, Any] = {
    "name": "demo", "store": {"url": "s3://bucket/demo"}, "runtime": {"seed": 17}, "protocol": {"min_silos": 2},
    "algorithm": {"method": "fedavg", "rounds": 3, "public_steps": 8, "optimizer": {"learning_rate": 0.02}},
    "silos": [{"name": name, "dispatch": {"kind": "kubernetes"}} for name in ("aachen", "berlin")],
}
THE_FILES_FORM = {
    "method": "fedavg", "normalisation": "shared", "rounds": 3, "local_epochs": 1, "learning_rate": 0.02, "seed": 17, "promotion_mode": "gate"}


@pytest.fixture
def federation(tmp_path: Path) -> str:
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump(FEDERATION), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of FEDERATION in a real S3 server, and of broken.yaml beside it; credentials in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ACCESS_KEY_ID": "hub", "AWS_SECRET_ACCESS_KEY": "secret", "NO_PROXY": "127.0.0.1"}.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        with s3_server(tmp_path_factory.mktemp("s3") / "server.log") as endpoint:
            import boto3

            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
            client.create_bucket(Bucket="bucket")
            client.put_object(Bucket="bucket", Key="demo/federation.yaml", Body=yaml.safe_dump(FEDERATION).encode())
            client.put_object(Bucket="bucket", Key="demo/broken.yaml", Body=b"name: Demo")
            yield "s3://bucket/demo/federation.yaml"


def submit(federation: str, *arguments: str, endpoint: str = "http://localhost:8888") -> Result:
    return CliRunner().invoke(main, ["submit", federation, "--endpoint", endpoint, *arguments])


def sent(result: Result) -> dict[str, Any]:
    """The form that `--dry-run` shows: standard output is JSON and nothing else."""
    assert result.exit_code == 0, result.output
    arguments: dict[str, Any] = json.loads(result.stdout)["arguments"]
    return {name: value for name, value in arguments.items() if name in FIELDS}


def test_the_file_fills_in_the_whole_form(federation: str) -> None:
    result = submit(federation, "--dry-run")

    assert sent(result) == THE_FILES_FORM
    assert result.stderr == ""


def test_set_replaces_what_the_file_says(federation: str) -> None:
    result = submit(federation, "--set", "rounds=10", "--set", "learning_rate=1", "--set", "method=fedprox", "--dry-run")

    assert sent(result) == {**THE_FILES_FORM, "rounds": 10, "learning_rate": 1.0, "method": "fedprox"}


def test_a_file_in_s3_fills_in_the_form_too(uploaded: str) -> None:
    result = submit(uploaded, "--set", "seed=5", "--dry-run")

    assert sent(result) == {**THE_FILES_FORM, "seed": 5}
    assert result.stderr == ""


def test_a_federation_of_this_machine_is_not_sent_where_no_pod_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "here.yaml"
    here = {"name": "aachen", "dispatch": {"kind": "process", "silo_config": "aachen.yaml"}}
    path.write_text(yaml.safe_dump({**FEDERATION, "store": {"url": "store"}, "protocol": {}, "silos": [here]}), encoding="utf-8")

    result = submit(str(path), "--dry-run")

    assert result.exit_code == ConfigError.exit_code
    assert f"no pod sees silo 'aachen', a process of this machine, nor store '{tmp_path / 'store'}'" in result.stderr
    assert f"fedhelp run {path}" in result.stderr


def test_a_file_that_is_wrong_is_refused_under_its_own_name(uploaded: str) -> None:
    result = submit(uploaded.replace("federation.yaml", "broken.yaml"), "--dry-run")

    assert result.exit_code == ConfigError.exit_code
    assert [line.split("error: ")[1].split(": ")[:2] for line in result.stderr.splitlines()] == [
        ["s3://bucket/demo/broken.yaml", field] for field in ("name", "store", "silos")]


def test_where_the_file_is_out_of_sight_the_form_is_as_the_registered_pipeline_opens_it(kubeflow: Kubeflow) -> None:
    result = submit(IN_THE_CLUSTER, "--set", "rounds=3", "--dry-run")

    assert sent(result) == {"rounds": 3}
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"fedhelp submit: {IN_THE_CLUSTER} is not read here (no file here that may be read), so the form is as the registered")


def test_where_the_file_is_out_of_sight_and_the_pipeline_is_compiled_here_what_replaces_it_is_listed(kubeflow: Kubeflow) -> None:
    result = submit(IN_THE_CLUSTER, "--set", "rounds=3", "--compile", "--dry-run")

    assert sent(result) == {"rounds": 3}
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"fedhelp submit: {IN_THE_CLUSTER} is not read here (no file here that may be read), so the form's defaults replace")
    assert "method=fedhelp, normalisation=shared, local_epochs=1, learning_rate=0.001, seed=1, promotion_mode=gate;" in line
    assert line.endswith("promotion_mode=gate; replace them with --set NAME=VALUE")
    assert "rounds=" not in line


def test_a_file_in_s3_that_this_process_may_not_read_is_out_of_sight(uploaded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)

    result = submit(uploaded, "--compile", "--dry-run")

    assert sent(result) == {}
    assert "no credentials found" in result.stderr
    assert "so the form's defaults replace what it says of these fields: method=fedhelp, normalisation=shared, rounds=50," in result.stderr


def test_what_a_dry_run_shows_is_what_kubeflow_gets(kubeflow: Kubeflow, federation: str) -> None:
    kubeflow.add("another")
    kubeflow.add("fedhelp", versions=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="This client only works")
        result = submit(federation, "--run-id", "mine", "--service-account", "fedhelp-runs", "--wait", endpoint=kubeflow.address)

    assert (result.exit_code, result.stderr) == (0, "")
    (run,) = kubeflow.runs
    assert run["runtime_config"]["parameters"] == {"federation": federation, "run_id": "mine", **THE_FILES_FORM}
    assert run["service_account"] == "fedhelp-runs"
    assert run["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v2"}, "the newest, with the images that it names"
    assert "run r0: SUCCEEDED" in result.stdout


def test_a_pipeline_that_is_not_registered_is_not_replaced_by_one_with_other_images(kubeflow: Kubeflow, federation: str) -> None:
    kubeflow.add("fedhelp", versions=0)

    result = submit(federation, endpoint=kubeflow.address)

    assert result.exit_code == NotFound.exit_code
    assert "no version of pipeline 'fedhelp' is registered; install the hub's chart, register one (fedhelp register --endpoint" in result.stderr
    assert kubeflow.runs == []


def test_a_pipeline_can_be_compiled_here(kubeflow: Kubeflow, federation: str) -> None:
    result = submit(federation, "--compile", endpoint=kubeflow.address)

    assert (result.exit_code, result.stderr) == (0, "")
    (run,) = kubeflow.runs
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "fedhelp"
    assert run["runtime_config"]["parameters"]["rounds"] == 3


@pytest.mark.parametrize(("serves_ui", "arguments", "page"), [
    (True, [], "{endpoint}/#/runs/details/r0"),
    (False, ["--ui", "https://kubeflow.example/pipeline/"], "https://kubeflow.example/pipeline/#/runs/details/r0"),
    (False, [], "http://localhost:8080/#/runs/details/r0 after: kubectl port-forward -n kubeflow service/ml-pipeline-ui 8080:80"
                " (or give the UI's address as --ui)"),
])
def test_the_page_that_is_named_is_one_of_the_ui(serves_ui: bool, arguments: list[str], page: str, kubeflow: Kubeflow, federation: str) -> None:
    kubeflow.add("fedhelp")
    kubeflow.serves_ui = serves_ui

    result = submit(federation, *arguments, endpoint=kubeflow.address)

    assert result.stdout == f"run r0 started; see it at {page.format(endpoint=kubeflow.address)}\n"


def test_a_server_that_is_newer_than_any_that_runs_were_tried_on_is_named_in_one_sentence(kubeflow: Kubeflow, federation: str) -> None:
    kubeflow.add("fedhelp")
    kubeflow.version = "2.18.1"

    result = submit(federation, endpoint=kubeflow.address)

    assert result.exit_code == 0
    assert result.stderr == (
        f"fedhelp submit: warning: Kubeflow Pipelines 2.18.1 answers at {kubeflow.address}, which is newer than 2.17, the newest that FedHelp was"
        " tried with; try pipeline fedhelp-compact there first\n")


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_run_that_did_not_succeed_is_named(state: str, kubeflow: Kubeflow, federation: str) -> None:
    kubeflow.add("fedhelp")
    kubeflow.state = state

    result = submit(federation, "--wait", endpoint=kubeflow.address)

    assert result.exit_code == JobFailed.exit_code
    assert f"run r0 ended as {state}" in result.stderr


def test_a_run_that_cannot_be_looked_at_is_said_to_go_on(kubeflow: Kubeflow, federation: str) -> None:
    kubeflow.add("fedhelp")
    kubeflow.state = None

    result = submit(federation, "--wait", endpoint=kubeflow.address)

    assert result.exit_code == StoreUnavailable.exit_code
    assert result.stderr.endswith("; run r0 was started, and goes on unwatched\n")


@pytest.mark.parametrize(("setting", "said"), [
    ("rounds=three", "--set rounds: algorithm.rounds: input should be a valid integer, got 'three'"),
    ("rounds=0", "--set rounds: algorithm.rounds: input should be greater than or equal to 1, got 0"),
    ("rounds=true", "--set rounds: algorithm.rounds: input should be a valid integer, got True"),
    ("learning_rate=NaN", "--set learning_rate: algorithm.optimizer.learning_rate: input should be a finite number, got nan"),
    ("method=foo", "--set method: one of fedhelp, fedavg, fedprox, scaffold, fedhelp-no-api, fedhelp-no-rank, fedhelp-symmetric,"
                   " fedhelp-one-way expected, got 'foo'"),
    ("method=local", "fedhelp-one-way expected, got 'local'"),
    ("promotion_mode=manuel", "--set promotion_mode: one of gate, manual expected, got 'manuel'; did you mean 'manual'?"),
    ("round=3", "--set round: the form has no such parameter; did you mean 'rounds'?"),
    ("min_silos=3", "--set min_silos: the form has no such parameter; it has method, normalisation, rounds, local_epochs, learning_rate, seed,"
                    " promotion_mode; other settings are the federation's file's"),
])
@pytest.mark.parametrize("seen", [True, False])
def test_a_value_that_its_field_does_not_take_is_refused(setting: str, said: str, seen: bool, federation: str) -> None:
    result = submit(federation if seen else IN_THE_CLUSTER, "--set", setting, "--dry-run")

    assert result.exit_code == ConfigError.exit_code
    (line,) = result.stderr.splitlines()
    assert said in line


def test_all_wrong_values_are_listed(federation: str) -> None:
    result = submit(federation, "--set", "rounds=three", "--set", "seed=-1", "--dry-run")

    assert [line.split(": ")[2] for line in result.stderr.splitlines()] == ["--set rounds", "--set seed"]


def test_values_that_do_not_fit_the_file_are_refused_before_anything_starts(federation: str) -> None:
    result = submit(federation, "--set", "method=fedhelp", "--dry-run")

    assert result.exit_code == ConfigError.exit_code
    assert "public_set: method 'fedhelp' learns from soft labels" in result.stderr


def test_an_endpoint_that_is_no_address_is_refused_by_a_dry_run_too(federation: str) -> None:
    result = submit(federation, "--dry-run", endpoint="localhost")

    assert result.exit_code == ConfigError.exit_code
    assert "--endpoint: an address such as http://localhost:8888 expected, with http:// or https://, got 'localhost'" in result.stderr


def test_an_endpoint_that_is_not_reached_is_one_sentence_and_may_be_tried_again(federation: str, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("fedhelp"), "submit", federation, "--endpoint", "http://127.0.0.1:9"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "NO_PROXY": "127.0.0.1", "HOME": str(tmp_path)})

    assert done.returncode == StoreUnavailable.exit_code
    assert done.stderr == ("fedhelp submit: error: Kubeflow endpoint http://127.0.0.1:9: not reached (Connection refused);"
                           " check --endpoint, or port-forward ml-pipeline\n")


@pytest.mark.parametrize(("status", "code", "said"), [
    (403, AccessDenied.exit_code, "does not let this account start the run"),
    (503, StoreUnavailable.exit_code, "cannot answer now"),
    (400, 10, "refused to start the run"),
])
def test_a_refusal_is_one_sentence_with_its_exit_code(status: int, code: int, said: str, kubeflow: Kubeflow, federation: str) -> None:
    kubeflow.refuse = status

    result = submit(federation, endpoint=kubeflow.address)

    assert result.exit_code == code
    (line,) = result.stderr.splitlines()
    assert said in line


def test_a_recurring_run_starts_the_newest_version_with_the_files_form_one_at_a_time(kubeflow: Kubeflow, federation: str) -> None:
    kubeflow.add("fedhelp", versions=2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = submit(federation, "--every", "0 3 1 * *", "--service-account", "fedhelp-runs", endpoint=kubeflow.address)

    assert result.exit_code == 0, result.output
    assert "recurring run m0 is on (0 0 3 1 * *)" in result.stdout and "#/recurringrun/details/m0" in result.stdout
    assert kubeflow.runs == []
    (recurring,) = kubeflow.recurring
    assert recurring["trigger"]["cron_schedule"]["cron"] == "0 0 3 1 * *"
    assert (recurring["max_concurrency"], recurring["no_catchup"], recurring["service_account"]) == (1, True, "fedhelp-runs")
    assert recurring["pipeline_version_reference"] == {"pipeline_id": "p0", "pipeline_version_id": "v1"}
    assert recurring["runtime_config"]["parameters"] == {"federation": federation, "run_id": "", **THE_FILES_FORM}


@pytest.mark.parametrize(("arguments", "says"), [
    (["--every", "monthly"], "a cron expression of 5 or 6 fields expected"),
    (["--every", "0 3 1 * * ; rm -rf"], "a cron expression"),
    (["--every", "0 3 1 * *", "--run-id", "mine"], "take --run-id out"),
    (["--every", "0 3 1 * *", "--wait"], "take --wait out")])
def test_a_schedule_that_makes_no_sense_is_a_sentence(kubeflow: Kubeflow, federation: str, arguments: list[str], says: str) -> None:
    kubeflow.add("fedhelp")

    result = submit(federation, *arguments, endpoint=kubeflow.address)

    assert result.exit_code == ConfigError.exit_code and says in result.output
    assert kubeflow.recurring == kubeflow.runs == []
