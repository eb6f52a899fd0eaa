"""Charts installed with real helm on a test's own control plane."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.build import binary
from tests.cluster.control_plane import ControlPlane

CHARTS = Path(__file__).resolve().parents[2] / "helm"


def helm(cluster: ControlPlane, *arguments: str | Path, input: str | None = None) -> str:
    """Run helm as administrator and return what it prints; a failure raises RuntimeError with its words."""
    done = subprocess.run(
        [binary("helm"), f"--kubeconfig={cluster.kubeconfig()}", *map(str, arguments)], input=input, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"helm {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout


def install(cluster: ControlPlane, chart: str, namespace: str, variant: str, values: dict[str, Any] | None = None) -> str:
    """Install or upgrade a chart's ci variant, with `values` laid over it; the release is called like the chart."""
    return helm(
        cluster, "upgrade", "--install", chart, CHARTS / chart, "--namespace", namespace,
        "--values", CHARTS / chart / "ci" / f"{variant}-values.yaml", "--values", "-", input=yaml.safe_dump(values or {}))


def uninstall(cluster: ControlPlane, chart: str, namespace: str) -> str:
    """Remove a release that `install` made."""
    return helm(cluster, "uninstall", chart, "--namespace", namespace)
