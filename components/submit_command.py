"""`fedhelp submit`: start a pipeline on a Kubeflow endpoint through kfp's client. Called by cli.py."""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhelp_components.check.form import FIELDS
from fedhelp_core.errors import ConfigError, JobFailed, PermanentError, StoreUnavailable


def submit_to_kubeflow(
    federation: str, *, endpoint: str, pipeline: str, experiment: str, namespace: str | None, run_id: str, settings: Mapping[str, Any],
    wait: bool, dry_run: bool, service_account: str | None = None,
) -> None:
    """Compile `pipeline`, start it with `settings` for its form, print where to look.

    Raises:
        ConfigError: a setting that the form does not have.
        StoreUnavailable: the endpoint was not reached.
        JobFailed: the run was waited for and failed.
    """
    for name in settings:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(FIELDS)}"
            raise ConfigError(f"--set {name}: the form has no such parameter; {hint}")
    arguments = {"federation": federation, "run_id": run_id, **settings}
    if dry_run:
        request = {"endpoint": endpoint, "pipeline": pipeline, "experiment": experiment, "namespace": namespace, "service_account": service_account,
                   "arguments": arguments}
        print(json.dumps(request, indent=2))
        return
    from fedhelp_pipelines.submit import start, wait_for

    with tempfile.TemporaryDirectory() as folder:
        try:
            started = start(
                pipeline, arguments, Path(folder), endpoint=endpoint, experiment=experiment, namespace=namespace, service_account=service_account)
        except OSError as e:
            raise StoreUnavailable(
                f"Kubeflow endpoint {endpoint}: not reached ({type(e).__name__}); check --endpoint, or port-forward ml-pipeline") from e
        except Exception as e:
            raise PermanentError(f"Kubeflow endpoint {endpoint}: refused the run: {e}") from e
    print(f"run {started} started: {endpoint}/#/runs/details/{started}")
    if wait:
        state = wait_for(started, endpoint=endpoint, namespace=namespace)
        print(f"run {started} ended: {state}")
        if state != "SUCCEEDED":
            raise JobFailed(f"run {started} ended as {state}; look at {endpoint}/#/runs/details/{started}")
