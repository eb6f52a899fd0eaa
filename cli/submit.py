"""`fedhelp submit`: start a pipeline on a Kubeflow endpoint through kfp's client. Called by main.py.

The run's form wins over the federation's file, so the form is filled in from the file, where this process can read it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhelp_cli.commands import quoted, warn
from fedhelp_cli.kubeflow_endpoint import kubeflow_errors, require_address
from fedhelp_cli.run_form import checked_settings, default_form, offered_form_of
from fedhelp_components.check.form import FIELDS
from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.errors import ConfigError, FedHelpError, JobFailed, NotFound, StoreUnavailable
from fedhelp_core.printable import without_passwords

_ADVICE = "where Kubeflow is multi-user, give your profile's --namespace"


class _OutOfSight(Exception):
    """The federation's file cannot be read from here; the message says why."""


def submit_to_kubeflow(
    federation: str, *, endpoint: str, pipeline: str, experiment: str, namespace: str | None, run_id: str, settings: Mapping[str, Any],
    wait: bool, dry_run: bool, service_account: str | None = None, compile_here: bool = False, ui: str | None = None,
    every: str | None = None,
) -> None:
    """Start the registered `pipeline`, or one compiled here, with its form filled in by the file and `settings`; print where to look.

    `ui`: address of Kubeflow's UI; None: `endpoint`, where that serves pages. `every`: a cron expression, for a recurring run.

    Raises:
        NotFound: `pipeline` is not registered there.
        ConfigError: a setting that the form does not take, a file that is wrong, an endpoint that is no address.
        AccessDenied, StoreUnavailable, PermanentError: Kubeflow refuses this account, was not reached, refuses the run.
        JobFailed: the run was waited for and failed.
    """
    require_address(endpoint)
    if ui is not None:
        require_address(ui, option="--ui")
    schedule = _schedule(every, run_id=run_id, wait=wait)
    form, seen = _filled_form(federation, checked_settings(settings), compile_here)
    arguments = {"federation": federation, "run_id": run_id, **form}
    if dry_run:
        version = "compiled here" if compile_here else "the newest registered"
        request = {"endpoint": endpoint, "pipeline": pipeline, "version": version, "experiment": experiment, "namespace": namespace,
                   "service_account": service_account, **({"every": schedule} if schedule is not None else {}), "arguments": arguments}
        print(json.dumps(request, indent=2))
        return
    from fedhelp_pipelines.submit import NotRegistered, start, wait_for
    from fedhelp_pipelines.versions import sentence_about_kfp, sentence_about_server

    if compile_here:
        warn("submit", sentence_about_kfp())
    try:
        with tempfile.TemporaryDirectory() as folder, kubeflow_errors(endpoint, wish="start the run", advice=_ADVICE):
            started = start(
                pipeline, arguments, Path(folder) if compile_here else None, endpoint=endpoint, experiment=experiment, namespace=namespace,
                service_account=service_account, silos=seen.silo_names if seen is not None else (), every=schedule)
    except NotRegistered as e:
        raise NotFound(
            f"Kubeflow endpoint {endpoint}: no version of pipeline {pipeline!r} is registered; install the hub's chart, register one"
            f" (fedhelp register --endpoint {quoted(endpoint)}), or add --compile; {_ADVICE}") from e
    warn("submit", sentence_about_server(started.server_version, endpoint))
    page = _page_of(started.run, ui or (endpoint if started.serves_ui else None), "recurringrun" if schedule is not None else "runs")
    if schedule is not None:
        print(f"recurring run {started.run} is on ({schedule}); see it, and switch it off, at {page}")
        return
    print(f"run {started.run} started; see it at {page}")
    if seen is not None and seen.tracking.uri:
        print(f"its rounds appear in MLflow at {without_passwords(seen.tracking.uri)}, experiment {seen.tracking.experiment}; its check node says"
              " the address")
    if not wait:
        return
    try:
        with kubeflow_errors(endpoint, wish="look at the run", advice=_ADVICE):
            state = wait_for(
                started.run, endpoint=endpoint, namespace=namespace, on_state=lambda state: print(f"run {started.run}: {state}", flush=True))
    except StoreUnavailable as e:
        raise StoreUnavailable(f"{e}; run {started.run} was started, and goes on unwatched") from e
    if state != "SUCCEEDED":
        raise JobFailed(f"run {started.run} ended as {state}; look at {page}")


def _schedule(every: str | None, *, run_id: str, wait: bool) -> str | None:
    """Kubeflow's cron expression, seconds first; None where there is none.

    Raises:
        ConfigError: it is none, or a run id or --wait stands beside it.
    """
    if every is None:
        return None
    fields = every.split()
    if len(fields) not in (5, 6) or not all(re.fullmatch(r"[0-9A-Za-z*/,?-]+", field) for field in fields):
        raise ConfigError(f"--every {every!r}: a cron expression of 5 or 6 fields expected, such as '0 3 1 * *', 3 o'clock on the first of a month")
    if run_id or wait:
        raise ConfigError(f"--every: each of its runs has an id of its own, and nobody waits for them; take {'--run-id' if run_id else '--wait'} out")
    return " ".join(fields if len(fields) == 6 else ["0", *fields])


def _page_of(run: str, ui: str | None, kind: str) -> str:
    """Where people see the run: the API server itself answers 404 to every page."""
    page = f"#/{kind}/details/{run}"
    if ui is not None:
        return f"{ui.rstrip('/')}/{page}"
    return f"http://localhost:8080/{page} after: kubectl port-forward -n kubeflow service/ml-pipeline-ui 8080:80 (or give the UI's address as --ui)"


def _filled_form(source: str, settings: Mapping[str, Any], compile_here: bool) -> tuple[dict[str, Any], Federation | None]:
    """All of the form, by the federation at `source` with `settings` on top, and that; `settings` alone where that is out of sight, which is said."""
    try:
        federation = _seen_here(source)
    except _OutOfSight as e:
        _say_what_replaces(source, settings, str(e), compile_here)
        return dict(settings), None
    if unseen := _only_here(federation):
        raise ConfigError(
            f"{source}: no pod sees {unseen}: give silos dispatch kubernetes or manifestwork and a store s3://bucket/prefix, or run it on this"
            f" machine: fedhelp run {quoted(source)}")
    changed = federation.override(**{FIELDS[parameter]: value for parameter, value in settings.items()})
    return offered_form_of(changed, source=source), federation


def _only_here(federation: Federation) -> str:
    """What of a federation exists on this machine alone; '' where that is nothing."""
    here = [f"silo {silo.name!r}, a process of this machine" for silo in federation.silos_here[:1]]
    store = [] if federation.store.folder is None else [f"store {federation.store.url!r}, a folder of this machine"]
    return ", nor ".join([*here, *store])


def _seen_here(source: str) -> Federation:
    """The federation at a path or s3:// URL.

    Raises:
        _OutOfSight: it cannot be read from here.
        ConfigError: it can, and is wrong (every problem listed).
    """
    if not source.startswith("s3://"):
        if not os.access(source, os.R_OK):
            raise _OutOfSight("no file here that may be read")
        return load_federation(source)
    from fedhelp_components.check.__main__ import downloaded, federation_in

    try:
        body = downloaded(source)
    except FedHelpError as e:
        raise _OutOfSight(str(e)) from e
    return federation_in(body, source)


def _say_what_replaces(source: str, settings: Mapping[str, Any], why: str, compile_here: bool) -> None:
    unread = f"fedhelp submit: {source} is not read here ({why})"
    if not compile_here:
        print(f"{unread}, so the form is as the registered pipeline opens it: as the hub's chart installs it, with its own federation's settings;"
              " replace them with --set NAME=VALUE", file=sys.stderr)
        return
    left = ", ".join(f"{parameter}={value}" for parameter, value in default_form().items() if parameter not in settings)
    print(f"{unread}, so the form's defaults replace what it says of these fields: {left};"
          " replace them with --set NAME=VALUE", file=sys.stderr)
