"""A kubeconfig that is none is said in one sentence, with its path; a token that ends, in time."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fedhelp_components.check import account
from fedhelp_core import telemetry
from fedhelp_core.errors import ConfigError
from fedhelp_dispatch.cluster import Cluster

POINTS_NOWHERE = "{current-context: a, contexts: [{name: a, context: {cluster: b, user: c}}], clusters: [], users: []}"


@pytest.mark.parametrize(("text", "said"), [
    ("kubeconfig junk", "no file with clusters, users and contexts"), ("a: [", "no file with clusters, users and contexts"),
    ("- a", "no file with clusters, users and contexts"), ("contexts: 3", "no file with clusters, users and contexts"),
    ("contexts: [{}]", "a context without a name"), ("", "cannot be used"), (POINTS_NOWHERE, "cannot be used")])
@pytest.mark.parametrize("context", [None, "a"])
def test_what_is_no_kubeconfig_is_named(text: str, said: str, context: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError) as caught:
        Cluster(context)
    (problem,) = caught.value.problems
    assert said in problem and str(path) in problem and "ask the hospital" in problem and "\n" not in problem


def test_the_contexts_of_several_files_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"contexts: [{{name: {name}, context: {{}}}}]")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'a'}:{tmp_path / 'gone'}:{tmp_path / 'b'}")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="no context 'c', only a, b"):
        Cluster("c")


def test_the_end_of_a_token_is_told_a_week_before_and_to_prometheus_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    ends = {"soon": 2.5, "late": 60.0, "over": -1.0, "opaque": None}
    users = [{"name": name, "user": {"token": "no-jwt" if days is None else _token(time.time() + days * 86_400)}} for name, days in ends.items()]
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    (tmp_path / "config").write_text(yaml.safe_dump({
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}], "users": users,
        "contexts": [{"name": name, "context": {"cluster": "c", "user": name}} for name in ends]}))
    federation = SimpleNamespace(name="skin", silos=[
        SimpleNamespace(name=f"silo-{name}", dispatch=SimpleNamespace(context=name)) for name in [*ends, "unknown"]])
    account.say_which_tokens_end(federation)  # type: ignore[arg-type]
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(";")[0] for line in said] == [
        "silo silo-soon: the hub's token for context 'soon' ends in 2.5 days",
        "silo silo-over: the hub's token for context 'over' ended 1.0 days ago"]
    told = {line.split('silo="')[1].split('"')[0] for line in telemetry.exposition().splitlines() if line.startswith("fedhelp_token_expiry")}
    assert {"silo-soon", "silo-late", "silo-over"} <= told and not {"silo-opaque", "silo-unknown"} & told


def _token(ends: float) -> str:
    return "e30." + base64.urlsafe_b64encode(json.dumps({"exp": int(ends)}).encode()).decode().rstrip("=") + ".c2ln"
