"""What is installed is whole: every package is listed and says what it is, and the small path stays small."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from fedhelp_components.images import VERSION

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def folder_of(package: str) -> Path:
    top, *rest = package.split(".")
    return ROOT.joinpath(SETUPTOOLS["package-dir"][top], *rest)


def test_every_folder_with_modules_is_a_listed_package() -> None:
    found = set()
    for top, folder in SETUPTOOLS["package-dir"].items():
        for module in (ROOT / folder).rglob("*.py"):
            found.add(".".join([top, *module.parent.relative_to(ROOT / folder).parts]))
    assert found == set(SETUPTOOLS["packages"])


@pytest.mark.parametrize("chart", ["fedhelp-hub", "fedhelp-silo"])
def test_package_images_and_charts_have_one_version(chart: str) -> None:
    described = yaml.safe_load((ROOT / "helm" / chart / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {described["version"], described["appVersion"], project["version"]} == {VERSION}


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_package_says_what_it_is(package: str) -> None:
    first = (folder_of(package) / "__init__.py").read_text(encoding="utf-8").lstrip()
    assert first.startswith('"""')


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_workers_imports_hold_no_monai_and_nothing_of_the_hub() -> None:
    program = "import sys, fedhelp_dispatch.worker; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    imported = set(done.stdout.split())
    assert "torch" in imported, done.stderr
    assert imported.isdisjoint({"monai", "mlflow", "kfp", "kubernetes", "boto3", "matplotlib", "fedhelp_pipelines"})
