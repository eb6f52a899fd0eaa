"""Start a run of a registered pipeline, or of one compiled here, through kfp's client, and wait for it. Called by `fedhelp submit`."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kfp import Client

from fedhelp_pipelines.client import kubeflow_client, pipelines_named, serves_ui
from fedhelp_pipelines.compile import compiled

_ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", "ERROR")


@dataclass(frozen=True)
class Started:
    """A run of Kubeflow."""

    run: str
    """Its id, or the recurring run's."""
    server_version: str
    serves_ui: bool
    """Whether the endpoint that was asked shows people the run too: the UI passes the API on, the API server knows no pages."""


class NotRegistered(LookupError):
    """Kubeflow has no version of the pipeline."""


def start(
    pipeline: str, arguments: Mapping[str, Any], scratch: Path | None, *, endpoint: str, experiment: str, namespace: str | None,
    service_account: str | None = None, silos: Sequence[str] = (), every: str | None = None,
) -> Started:
    """The run that was started; its pods use `service_account` (default: Kubeflow's).

    `every`: when runs are started from now on, as Kubeflow's cron expression (seconds first); None: one run, now. Of recurring runs one goes on at a
    time, and none makes up for those that were missed.

    `scratch`: a folder to compile the pipeline into, with a node for each of `silos`; None: the newest registered version
    runs, with the images and volumes that it names.

    Raises:
        NotRegistered: there is no such version.
    """
    client = kubeflow_client(endpoint, namespace)
    what = _compiled_into(scratch, pipeline, silos) if scratch is not None else _newest_version(client, pipeline, namespace)
    with redirect_stdout(io.StringIO()):  # kfp's client prints pages of the API server, which has none
        group = client.create_experiment(name=experiment, namespace=namespace)
        name = f"{pipeline} {datetime.now(UTC):%Y-%m-%d %H-%M-%S}"
        if every is None:
            started = client.run_pipeline(group.experiment_id, name, params=dict(arguments), service_account=service_account, **what).run_id
        else:
            started = client.create_recurring_run(
                group.experiment_id, name, cron_expression=every, max_concurrency=1, no_catchup=True, params=dict(arguments),
                service_account=service_account, **what).recurring_run_id
    return Started(str(started), client.server_version, serves_ui=serves_ui(client, endpoint))


def _compiled_into(folder: Path, pipeline: str, silos: Sequence[str]) -> dict[str, str]:
    package = folder / f"{pipeline}.yaml"
    package.write_text(compiled(pipeline, silos=silos), encoding="utf-8")
    return {"pipeline_package_path": str(package)}


def _newest_version(client: Client, pipeline: str, namespace: str | None) -> dict[str, str]:
    for where in dict.fromkeys((namespace, None)):  # a profile's own, else the one that all share
        for found in pipelines_named(client, pipeline, where):
            versions = client.list_pipeline_versions(found.pipeline_id, page_size=1, sort_by="created_at desc").pipeline_versions
            if versions:
                return {"pipeline_id": str(found.pipeline_id), "version_id": str(versions[0].pipeline_version_id)}
    raise NotRegistered(pipeline)


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
