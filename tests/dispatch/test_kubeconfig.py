"""A kubeconfig that is none is said in one sentence, with its path."""

from __future__ import annotations

from pathlib import Path

import pytest

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
