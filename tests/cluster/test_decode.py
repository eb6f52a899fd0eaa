"""Every chart variant, decoded strictly with the Go types of each Kubernetes release that the charts are meant for."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from tests.cluster.build import RELEASES, binary
from tests.cluster.releases import CHARTS
from tests.cluster.test_charts import APIS, FOREIGN, VARIANTS

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def decoded(release: str, manifests: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary(f"decode-{release}")], input=manifests, capture_output=True, text=True)


def manifests(chart: str, variant: str, release: str) -> str:
    command = [
        binary("helm"), "template", chart, CHARTS / chart, "--namespace", "hospital", "--kube-version", f"v{release}.0",
        "--values", CHARTS / chart / "ci" / f"{variant}-values.yaml", *(word for api in APIS for word in ("--api-versions", api))]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def since(chart: str) -> str:
    """The oldest release that the chart installs on, such as '1.31'."""
    found = re.fullmatch(r">=(1\.\d+)\.0-0", yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())["kubeVersion"])
    assert found is not None
    return found[1]


@pytest.mark.parametrize("release", RELEASES)
def test_every_variant_is_made_of_fields_that_the_release_has(release: str) -> None:
    for chart, variant in [(chart, variant) for chart, variant in VARIANTS if since(chart) <= release]:
        answer = decoded(release, manifests(chart, variant, release))

        assert answer.returncode == 0, f"{chart}, {variant}: {answer.stderr}"
        lines = [line.split() for line in answer.stdout.splitlines()]
        assert {name.split("/")[0] for verdict, name in lines if verdict == "skipped"} <= FOREIGN
        assert sum(verdict == "decoded" for verdict, _ in lines) >= 3, answer.stdout


def test_a_field_of_a_later_release_is_refused() -> None:
    pod = """
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  resources: {limits: {cpu: "1"}}
  containers: [{name: c, image: i}]
"""
    early, late = decoded(RELEASES[0], pod), decoded(RELEASES[-1], pod)

    assert early.returncode == 1 and 'unknown field "spec.resources"' in early.stderr
    assert late.returncode == 0 and late.stdout == "decoded Pod/p\n"
