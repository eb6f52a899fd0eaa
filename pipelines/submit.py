"""Start a compiled pipeline through kfp's client, and wait for it. Called by `fedhelp submit`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhelp_pipelines.client import kubeflow_client
from fedhelp_pipelines.compile import compiled

_LONGEST_RUN = 30 * 24 * 3600  # seconds


def start(
    pipeline: str, arguments: Mapping[str, Any], scratch: Path, *, endpoint: str, experiment: str, namespace: str | None,
    service_account: str | None = None,
) -> str:
    """The id of the run that was started; its pods use `service_account` (default: Kubeflow's)."""
    package = scratch / f"{pipeline}.yaml"
    package.write_text(compiled(pipeline), encoding="utf-8")
    result = kubeflow_client(endpoint, namespace).create_run_from_pipeline_package(
        str(package), arguments=dict(arguments), experiment_name=experiment, namespace=namespace, service_account=service_account)
    return str(result.run_id)


def wait_for(run_id: str, *, endpoint: str, namespace: str | None) -> str:
    """The state that the run ended in, e.g. 'SUCCEEDED'."""
    finished = kubeflow_client(endpoint, namespace).wait_for_run_completion(run_id, timeout=_LONGEST_RUN)
    return str(finished.state)
