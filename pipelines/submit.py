"""Start a compiled pipeline through kfp's client, and wait for it. Called by `fedhelp submit`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedhelp_pipelines.client import kubeflow_client
from fedhelp_pipelines.compile import compiled

_ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", "ERROR")


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


def wait_for(run_id: str, *, endpoint: str, namespace: str | None, on_state: Callable[[str], object], every: float = 5.0) -> str:
    """The state that the run ended in, e.g. 'SUCCEEDED'; `on_state` hears each new one. Looks every so many seconds.

    kfp's own wait_for_run_completion does not know CANCELED, and would wait for ever.
    """
    client, state = kubeflow_client(endpoint, namespace), ""
    while True:
        found = str(client.get_run(run_id).state or "PENDING").upper()
        if found != state:
            state = found
            on_state(state)
        if state in _ENDED:
            return state
        time.sleep(every)
