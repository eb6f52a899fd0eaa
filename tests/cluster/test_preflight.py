"""`fedhelp check` of silos in clusters: it tries whether their work would be taken, and leaves nothing there.

What it says where something is missing is looked at in test_dispatch_refusals.py, beside what a run would say.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fedhelp_cli.main import main
from fedhelp_core.errors import AccessDenied
from fedhelp_dispatch.preflight import preflight
from tests.cluster.control_plane import ControlPlane
from tests.cluster.hospital import Hospital, federation
from tests.s3_server import s3_server
from tests.tiny import TinyFederation, draw_input

pytestmark = pytest.mark.cluster


def test_hospitals_that_have_set_everything_up_are_in_order_and_no_job_is_left(control_plane: ControlPlane, account: str) -> None:
    hospitals = [Hospital(control_plane, silo, account) for silo in ("aachen", "brno", "coimbra")]
    assert preflight(federation(*hospitals)) == {"aachen": None, "brno": None, "coimbra": None}
    assert [hospital.jobs() for hospital in hospitals] == [[], [], []]


def test_rights_that_a_run_would_miss_later_are_all_named(control_plane: ControlPlane, account: str) -> None:
    hospital = Hospital(control_plane, "aachen", account)
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{hospital.namespace}/roles/fedhelp-hub"
    role = control_plane.request("GET", path)
    role["rules"] = [{**rule, "verbs": [verb for verb in rule["verbs"] if verb != "delete"]} for rule in role["rules"]
                     if rule["resources"] not in (["pods/log"], ["events"])]
    control_plane.request("PUT", path, role)
    problem = preflight(federation(hospital))["aachen"]
    assert isinstance(problem, AccessDenied)
    assert "the hub's account may not delete jobs, get pods/log, list events; ask the hospital" in str(problem)


def test_a_quota_that_is_used_up_just_now_is_no_fault(control_plane: ControlPlane, account: str) -> None:
    hospital = Hospital(control_plane, "aachen", account)
    hospital.quota(**{"count/jobs.batch": "0"})
    assert preflight(federation(hospital)) == {"aachen": None}


def test_one_silo_in_a_cluster_and_others_here(
    control_plane: ControlPlane, account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    hospital, nowhere = Hospital(control_plane, "aachen", account), Hospital(control_plane, "brno", account, install=False)
    for name, value in {
            "AWS_ACCESS_KEY_ID": "hub", "AWS_SECRET_ACCESS_KEY": "secret", "NO_PROXY": "127.0.0.1", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}.items():
        monkeypatch.setenv(name, value)
    draw_input(tmp_path / "drawn")
    with s3_server(tmp_path / "server.log") as endpoint:
        import boto3

        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="exchange")

        def check(**changes: object) -> str:
            tiny = TinyFederation.written(
                tmp_path / "federation", tmp_path / "drawn", store__url="s3://exchange/test", store__endpoint_url=endpoint,
                algorithm__method="fedavg", silos__0__dispatch={"kind": "kubernetes", "namespace": hospital.namespace}, **changes)
            result = CliRunner().invoke(main, ["check", str(tiny.path)])
            return f"{result.exit_code}\n{result.output}"

        said = check()
        assert said.startswith("0\n")
        assert "silo brno: 8 training images\n" in said and "silo coimbra: 6 training images\n" in said
        assert "silo aachen: its cluster takes the work\n" in said
        assert said.endswith("Not looked at yet: the images of aachen. A run does that before it trains.\n")

        refused = check(silos__1__dispatch={"kind": "kubernetes", "namespace": nowhere.namespace})
        assert refused.startswith("18\n")
        assert f"silo brno: namespace '{nowhere.namespace}'" in refused and "no CronJob 'fedhelp-worker'" in refused
    assert hospital.jobs() == []
