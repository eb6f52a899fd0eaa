"""The pipelines with other releases of kfp than the lock's: compiled, registered and started by the newest of each version that counts as tried.

Each release is laid over this environment, from the package index that uv is set up for, and kept under .cache/kfp.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhelp_pipelines.graphs import PIPELINES
from fedhelp_pipelines.versions import NEWEST, OLDEST
from tests.pipelines.contract import FOLDER, SILOS, contract_of
from tests.pipelines.kubeflow import Kubeflow

ROOT = Path(__file__).parents[2]
RELEASES = {(2, 15): "2.15.2", (2, 16): "2.16.1", (2, 17): "2.17.3"}
TOO_OLD = "2.14.6"
_CLI = "import sys; from fedhelp_cli.main import main; main(prog_name='fedhelp')"

pytestmark = [pytest.mark.slow, pytest.mark.long]
With = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def python_with() -> With:
    """python_with(release, *arguments) -> what that call of Python did with this release of kfp."""

    def run(release: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(_installed(release)), "PYTHONWARNINGS": "ignore"}
        return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=250)

    return run


def _installed(release: str) -> Path:
    folder = ROOT / ".cache" / "kfp" / f"{release}-py{sys.version_info.major}{sys.version_info.minor}"
    if not folder.exists():
        making = folder.with_name(f"{folder.name}-{os.getpid()}")
        uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
        done = subprocess.run(
            [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", making, f"kfp=={release}", f"kfp-kubernetes=={release}"],
            capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            pytest.skip(f"kfp {release} cannot be installed here: {' '.join(done.stderr.split())[-300:]}")
        making.rename(folder)
    return folder


def test_every_version_that_counts_as_tried_is_tried() -> None:
    assert (min(RELEASES), max(RELEASES)) == (OLDEST, NEWEST)
    assert all(release.startswith(f"{major}.{minor}.") for (major, minor), release in RELEASES.items())


@pytest.mark.parametrize("release", RELEASES.values())
def test_pipelines_are_compiled_registered_and_started_as_with_the_locks_release(
    release: str, python_with: With, kubeflow: Kubeflow, tmp_path: Path,
) -> None:
    federation = tmp_path / "federation.yaml"
    federation.write_text(yaml.safe_dump({
        "name": "demo", "store": {"url": "s3://bucket/demo"},
        "silos": [{"name": name, "dispatch": {"kind": "kubernetes"}} for name in SILOS],
        "public_set": {"images": "/public", "teachers": [{"name": "one", "uri": "https://one.example", "kind": "openinference", "classes": 5}]}}),
        encoding="utf-8")

    registered = python_with(release, "-c", _CLI, "register", "--endpoint", kubeflow.address, "--federation", federation)
    submitted = python_with(
        release, "-c", _CLI, "submit", federation, "--endpoint", kubeflow.address, "--set", "rounds=3", "--service-account", "fedhelp-runs", "--wait")

    assert [(done.returncode, done.stderr) for done in (registered, submitted)] == [(0, ""), (0, "")]
    from fedhelp_pipelines.compile import compiled

    assert len(kubeflow.uploads) == len(PIPELINES)
    for version, text in kubeflow.uploads.items():
        name = version.rpartition("-")[0]
        assert f"sdkVersion: kfp-{release}\n" in text
        assert contract_of(text) == yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        assert _but_for_the_release(text) == _but_for_the_release(compiled(name, silos=SILOS)), "all else"
    (run,) = kubeflow.runs
    assert run["service_account"] == "fedhelp-runs"
    assert run["runtime_config"]["parameters"]["rounds"] == 3


def _but_for_the_release(text: str) -> list[Any]:
    spec, platform = yaml.safe_load_all(text)
    return [{**spec, "sdkVersion": ""}, platform]


def test_the_version_before_them_has_no_variables_from_a_secret_that_may_be_absent(python_with: With) -> None:
    done = python_with(TOO_OLD, "-c", "import fedhelp_pipelines.graphs")

    assert re.search(r"use_(secret|config_map)_as_env\(\) got an unexpected keyword argument 'optional'", done.stderr), done.stderr
