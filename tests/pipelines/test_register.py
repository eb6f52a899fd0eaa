"""`fedhelp register` through kfp's own client, against a server that keeps pipelines as Kubeflow's REST interface describes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from fedhelp_cli.main import main
from fedhelp_components.check.form import FIELDS
from fedhelp_core.errors import AccessDenied, ConfigError, StoreUnavailable
from tests.http_server import LOGIN_PAGE, answering
from tests.pipelines.kubeflow import Kubeflow


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "fedhelp.yaml"
    path.write_text("pipelineInfo: {name: fedhelp}\nschemaVersion: 2.1.0\n")
    return path


def register(server: Kubeflow | str, *arguments: str | Path) -> Result:
    endpoint = server if isinstance(server, str) else server.address
    return CliRunner().invoke(main, ["register", "--endpoint", endpoint, *map(str, arguments)])


def test_the_same_content_is_registered_once_and_another_content_is_another_version(kubeflow: Kubeflow, package: Path) -> None:
    first = register(kubeflow, package)
    again = register(kubeflow, package)
    package.write_text(package.read_text() + "# changed\n")
    changed = register(kubeflow, package)

    assert [r.exit_code for r in (first, again, changed)] == [0, 0, 0], first.output
    assert "registered" in first.output
    assert "is there already" in again.output
    assert len(kubeflow.pipelines) == 1
    assert len(kubeflow.names("fedhelp")) == 2
    assert register(kubeflow, package).output.count("is there already") == 1  # found on the second page


def test_this_products_own_pipelines_are_registered_without_a_package(kubeflow: Kubeflow) -> None:
    assert register(kubeflow).exit_code == 0

    assert {p["display_name"] for p in kubeflow.pipelines.values()} == {"fedhelp", "fedhelp-compact"}
    for identity, pipeline in kubeflow.pipelines.items():
        (version,) = kubeflow.versions[identity].values()
        line, _, table = version["description"].partition("\n\n")
        assert pipeline["description"] == line and line.startswith("FedHelp with ") and "\n" not in line  # a cell of the UI's list
        assert "| rounds | Federated rounds R. |" in table and table.endswith("\n\nEvery other setting is the file's.")
        assert all(f"\n| {name} | " in table for name in ("federation", "run_id", *FIELDS))


def test_a_description_that_kubeflow_keeps_from_before_is_said_and_replaced_by_registering_again(kubeflow: Kubeflow, package: Path) -> None:
    """Its API changes a pipeline's name and tags alone; here it was registered without a description."""
    package.write_text("pipelineInfo: {name: fedhelp, description: \"One line.\\n\\nA table.\"}\nschemaVersion: 2.1.0\n")
    kubeflow.add("fedhelp")

    said, _, again = register(kubeflow, package), register(kubeflow, package, "--remove"), register(kubeflow, package)

    assert (said.exit_code, again.exit_code, again.stderr) == (0, 0, "")
    assert said.stderr == (
        "fedhelp register: warning: Kubeflow's list keeps the description that pipeline fedhelp was first given; the version's own is complete."
        " To replace it, take the pipeline out with its versions (--remove) and register it again\n")
    assert [pipeline["description"] for pipeline in kubeflow.pipelines.values()] == ["One line."]


@pytest.mark.parametrize(("version", "said"), [
    ("2.18.0", "newer than 2.17, the newest"), ("v3.0.0", "newer than 2.17, the newest"), ("2.14.6", "older than 2.15, the oldest"),
    ("2.15.2", ""), ("2.17.3", ""), ("unknown", ""), ("", "")])
def test_a_kubeflow_that_this_was_not_tried_with_is_named_in_one_sentence(version: str, said: str, kubeflow: Kubeflow, package: Path) -> None:
    kubeflow.version = version

    result = register(kubeflow, package)

    assert result.exit_code == 0
    warnings = [line for line in result.stderr.splitlines() if "was tried with" in line]
    assert len(warnings) == bool(said)
    assert all(line.startswith(f"fedhelp register: warning: Kubeflow Pipelines {version} answers at {kubeflow.address}, which is {said}")
               for line in warnings)


def test_other_silos_are_another_version(kubeflow: Kubeflow, tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    for silos in (("aachen", "berlin"), ("aachen", "berlin"), ("aachen", "berlin", "celle")):
        path.write_text(yaml.safe_dump({
            "name": "demo", "store": {"url": "s3://bucket/demo"}, "algorithm": {"method": "fedavg"},
            "silos": [{"name": name, "dispatch": {"kind": "kubernetes"}} for name in silos]}), encoding="utf-8")
        assert register(kubeflow, "--federation", path).exit_code == 0

    assert len(kubeflow.names("fedhelp")) == 2
    assert len(kubeflow.names("fedhelp-compact")) == 1  # it draws no silo


def test_a_federation_beside_packages_is_refused(package: Path) -> None:
    result = register("http://localhost:8888", package, "--federation", package)

    assert result.exit_code == 2
    assert "PACKAGES are compiled already" in result.output


def test_removing_takes_versions_and_pipeline_and_may_be_repeated(kubeflow: Kubeflow, package: Path) -> None:
    register(kubeflow, package)

    removed, again = register(kubeflow, package, "--remove"), register(kubeflow, package, "--remove")

    assert "removed" in removed.output
    assert "was not there" in again.output
    assert (removed.exit_code, again.exit_code) == (0, 0)
    assert kubeflow.pipelines == {}


@pytest.mark.parametrize(("status", "location", "body"), [
    (200, None, LOGIN_PAGE), (302, "/dex/auth?state=x", b""), (302, "https://login.example/oidc", LOGIN_PAGE), (401, None, LOGIN_PAGE),
    (401, None, b"{}"), (403, None, b'{"error": "denied"}'),
])
@pytest.mark.parametrize("command", [["register"], ["submit", "/etc/no-file-here.yaml"], ["register", "--namespace", "team"]])
def test_an_endpoint_behind_a_login_is_told_as_such_and_asked_once(
    command: list[str], status: int, location: str | None, body: bytes, package: Path,
) -> None:
    with answering(status, body, {} if location is None else {"Location": location}) as endpoint:
        packages = [str(package)] if command[0] == "register" else []
        done = CliRunner().invoke(main, [*command, *packages, "--endpoint", endpoint])
    assert done.exit_code == AccessDenied.exit_code, done.output
    assert "kubectl port-forward -n kubeflow service/ml-pipeline 8888:8888" in done.stderr
    assert "Traceback" not in done.stderr and "registered" not in done.stdout


def test_a_token_is_shown_where_one_is_mounted(kubeflow: Kubeflow, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("of-this-pod")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))

    register(kubeflow, package)

    assert kubeflow.tokens == {"Bearer of-this-pod"}


@pytest.mark.parametrize(("status", "code", "said"), [
    (401, AccessDenied.exit_code, "does not let this account register pipelines"),
    (403, AccessDenied.exit_code, "pipelines.tokenAudience"),
    (503, StoreUnavailable.exit_code, "cannot answer now"),
    (400, 10, "refused to register pipelines"),
])
def test_a_refusal_is_one_sentence_with_its_exit_code(status: int, code: int, said: str, kubeflow: Kubeflow, package: Path) -> None:
    kubeflow.refuse = status

    result = register(kubeflow, package)

    assert result.exit_code == code
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_file_that_is_no_pipeline_is_refused_before_anything_is_asked(kubeflow: Kubeflow, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("kind: ConfigMap\n")

    result = register(kubeflow, tmp_path / "other.yaml")

    assert result.exit_code == ConfigError.exit_code
    assert "is no compiled pipeline" in result.output


def test_an_endpoint_that_does_not_answer_is_named(package: Path) -> None:
    result = register("http://127.0.0.1:9", package)

    assert result.exit_code == StoreUnavailable.exit_code
    assert "http://127.0.0.1:9: not reached (Connection refused); check --endpoint" in result.output


@pytest.mark.parametrize("endpoint", ["localhost", "localhost:8888", "http://", "ftp://kubeflow", "http://localhost:port"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str, package: Path) -> None:
    result = register(endpoint, package)

    assert result.exit_code == ConfigError.exit_code
    assert f"--endpoint: an address such as http://localhost:8888 expected, with http:// or https://, got {endpoint!r}" in result.output
