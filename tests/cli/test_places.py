"""Where a run's traces lie on this machine: beside the store while that is a folder, however its URL is written; a check leaves none in a silo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedhelp_cli.check import check_and_print
from fedhelp_cli.run import run_locally, work_folder
from fedhelp_components.session import logs_folder
from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import ConfigError
from tests.tiny import TinyFederation

pytestmark = pytest.mark.slow


@pytest.fixture
def stored_at(make_tiny: Callable[..., TinyFederation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Federation]:
    """The tiny federation with its store at a URL; the working folder is an empty one."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return lambda url: make_tiny().load().override(**{"store.url": url})


@pytest.mark.parametrize("scheme", ["", "file://", "file://localhost"])
def test_logs_lie_beside_a_store_that_is_a_folder(stored_at: Callable[[str], Federation], tmp_path: Path, scheme: str) -> None:
    federation = stored_at(f"{scheme}{tmp_path}/store")
    assert logs_folder(federation, "r") == tmp_path / "store" / "logs" / "r"
    assert work_folder(federation, "r") == tmp_path / "store" / "local" / "r"
    assert list(Path.cwd().iterdir()) == []


def test_logs_of_a_run_in_a_bucket_lie_in_the_working_folder(stored_at: Callable[[str], Federation]) -> None:
    federation = stored_at("s3://bucket/prefix")
    assert logs_folder(federation, "r") == Path("fedhelp-logs/r")
    assert work_folder(federation, "r") == Path("fedhelp-runs/r")


def test_a_dry_run_refuses_what_cannot_run_and_makes_nothing(stored_at: Callable[[str], Federation], tmp_path: Path) -> None:
    path = tmp_path / "local.yaml"
    path.write_text(stored_at(str(tmp_path / "store")).to_yaml(), encoding="utf-8")
    with pytest.raises(ConfigError, match="'local' has no federation to run"):
        run_locally(path, run_id=None, changes={"algorithm.method": "local"}, dry_run=True)
    run_locally(path, run_id=None, changes={}, dry_run=True)
    assert not (tmp_path / "store").exists()


def test_a_check_leaves_no_run_in_a_silo(make_tiny: Callable[..., TinyFederation]) -> None:
    tiny = make_tiny()
    check_and_print(tiny.path, {})
    states = sorted((tiny.path.parent / "state").iterdir())
    assert [state.name for state in states] == ["aachen", "brno", "coimbra"]
    assert not [state for state in states if (state / "runs").exists()]
