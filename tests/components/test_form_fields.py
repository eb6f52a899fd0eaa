"""What is wrong in a run's form is said by the form's own field, all at once, before anything is opened."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from fedhelp_components.check import __main__ as check_main
from fedhelp_components.check import account as account_module
from fedhelp_components.check.account import account_problems
from fedhelp_core.config.federation import parse_federation
from fedhelp_core.errors import ConfigError, FedHelpError

NOWHERE = "/no/federation/here.yaml"


@pytest.mark.parametrize(("form", "said"), [
    ({"rounds": 2.5}, "field rounds: algorithm.rounds: input should be a valid integer, got 2.5"),
    ({"rounds": 0}, "field rounds: algorithm.rounds: input should be greater than or equal to 1, got 0"),
    ({"learning_rate": "fast"}, "field learning_rate: algorithm.optimizer.learning_rate: input should be a valid number, got 'fast'"),
])
def test_a_value_that_its_field_does_not_take_is_named_by_the_field(form: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_main.run_form(NOWHERE, "r", form)
    assert refused.value.problems == (f"the run's form: {said}",)


def test_a_run_id_that_is_no_name_is_said_with_the_other_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as refused:
        check_main.run_form(NOWHERE, "March run", {"seed": -1})
    assert [problem.split(": ")[1] for problem in refused.value.problems] == ["field run_id", "field seed"]


def test_whole_numbers_may_come_as_kubeflow_writes_numbers() -> None:
    assert check_main.checked_form("r", {"rounds": 3.0, "learning_rate": 1, "method": "fedavg"}) == {
        "rounds": 3, "learning_rate": 1, "method": "fedavg"}


@pytest.mark.parametrize(("account", "problems"), [("fedhelp-runs", 0), ("pipeline-runner", 1)])
def test_a_blank_service_account_is_said_once_and_not_for_every_hospital(
    account: str, problems: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(account_module, "TOKEN", tmp_path / "token")
    assert account_problems() == []  # no pod
    payload = base64.urlsafe_b64encode(json.dumps({"sub": f"system:serviceaccount:fedhelp:{account}"}).encode()).decode().rstrip("=")
    (tmp_path / "token").write_text(f"e30.{payload}.c2ln")
    assert account_problems() == []  # no chart says which it should be
    monkeypatch.setenv("FEDHELP_SERVICE_ACCOUNT", "fedhelp-runs")
    found = account_problems()
    assert len(found) == problems
    assert all(said.startswith("the run's form: field Service account: fedhelp-runs expected") and "pipeline-runner" in said for said in found)
    here = {"kind": "kubernetes"}
    for silos, said in (([here, here], found), ([{**here, "context": "nord"}, {**here, "context": "sued"}], [])):
        federation = parse_federation({
            "name": "demo", "store": {"url": str(tmp_path / "store")}, "algorithm": {"method": "fedavg"},
            "silos": [{"name": f"h{number}", "dispatch": dispatch} for number, dispatch in enumerate(silos)]}, source="test")
        assert [str(problem) for problem in check_main.problems_of_looking(federation)] == said  # hospitals elsewhere know another account


def test_a_federation_in_another_s3_is_asked_for_where_the_chart_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDHELP_STORE_ENDPOINT", "no address")
    with pytest.raises(FedHelpError, match="store endpoint_url 'no address'"):
        check_main.downloaded("s3://bucket/demo/federation.yaml")
