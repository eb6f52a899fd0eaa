"""A whole run, each step with the packages of its image alone: the others are hidden from Python as if they were not installed.

test_requirements.py follows imports in our own code; here libraries import what they like, and would find out what they lack.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.steps import mlflow_server, steps
from tests.tiny import TinyFederation

ROOT = Path(__file__).resolve().parents[2]
LISTS = {"hub": ["images/hub/requirements.txt"], "silo": ["images/silo/torch-cpu.txt", "images/silo/torch.txt", "images/silo/requirements.txt"]}
OURS = {"fedhelp"}
NOBODYS = {"pyarrow", "scikit-learn", "matplotlib", "fonttools", "sqlalchemy", "mlflow", "pytest", "moto"}
"""Large, and imported by no component: MLflow's server, figures of studies, this project's own tools."""

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]  # eight processes, most of which import PyTorch


def installed(image: str) -> set[str]:
    """The distributions of an image."""
    text = "".join((ROOT / path).read_text(encoding="utf-8") for path in LISTS[image])
    return set(re.findall(r"^([a-z0-9-]+)==", text, flags=re.MULTILINE)) | OURS


def distributions() -> dict[str, set[str]]:
    """Package -> the distributions of this environment that have it."""
    found = importlib.metadata.packages_distributions()
    return {package: {re.sub(r"[-_.]+", "-", name).lower() for name in names} for package, names in found.items()}


@pytest.fixture(scope="module")
def run_with_images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinyFederation], dict[str, set[str]]]:
    folder = tmp_path_factory.mktemp("images")
    known = distributions()

    def environment(image: str) -> dict[str, str]:
        (folder / image / "imported").mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name("only_these.py"), folder / image / "sitecustomize.py")
        hidden = sorted(package for package, names in known.items() if not names & installed(image))
        return {**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(folder / image), "FEDHELP_TEST_HIDDEN": ",".join(hidden),
                "FEDHELP_TEST_IMPORTED": str(folder / image / "imported")}

    def run(tiny: TinyFederation) -> dict[str, set[str]]:
        """Image -> distributions that its steps imported."""
        tiny.run("r").freeze(tiny.load().to_yaml())
        for step in steps(tiny.path, str(tiny.store), tiny.folder / "aachen.yaml", run="r"):
            done = subprocess.run(
                [sys.executable, "-m", *step.command], capture_output=True, text=True, env=environment(step.image), cwd=folder, timeout=250)
            assert done.returncode == 0, f"{step.name}: {done.stdout}{done.stderr}"
        return {image: {name for noted in (folder / image / "imported").iterdir() for module in noted.read_text().splitlines()
                        for name in known.get(module.partition(".")[0], ())} for image in LISTS}

    return run


def test_a_run_needs_no_package_that_its_images_lack(
    make_tiny: Callable[..., TinyFederation], run_with_images: Callable[[TinyFederation], dict[str, set[str]]], tmp_path: Path,
) -> None:
    with mlflow_server(tmp_path) as (address, _log):
        tiny = make_tiny(
            algorithm__rounds=1, algorithm__large_silos=0, protocol__min_silos=1, tracking={"uri": address},
            silos=[{"name": "aachen", "dispatch": {"kind": "process", "silo_config": "aachen.yaml"}}])
        imported = run_with_images(tiny)
    assert {"torch", "pandas", "mlflow-skinny", "simplejpeg"} <= imported["silo"]
    assert "torch" not in imported["hub"]
    assert not (installed("hub") | installed("silo")) & NOBODYS
