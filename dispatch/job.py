"""A hospital's own Job template and a request -> the Job. Pure: values in, values out.

The template is the suspended CronJob `fedhelp-worker` in the silo's namespace. Its jobTemplate's spec is taken over as it is;
the hub adds a name, four labels, the request's hash as an annotation, the worker's arguments, and a deadline where its own
is shorter. The hospital's admission policy (chart fedhelp-silo) compares exactly this. Called by kubernetes.py,
manifestwork.py and `fedhelp run --dry-run`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fedhelp_core.errors import ConfigError
from fedhelp_dispatch.request import WorkRequest

TEMPLATE_NAME = "fedhelp-worker"
CONTAINER = "worker"
RUN_LABEL = "fedhelp.io/run"
SILO_LABEL = "fedhelp.io/silo"
ACTION_LABEL = "fedhelp.io/action"
ROUND_LABEL = "fedhelp.io/round"
REQUEST_ANNOTATION = "fedhelp.io/request-sha256"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

_ALL_ROUNDS = "all"  # the round label's value where the work is not for one round
_LONGEST_NAME = 63  # of a Job: its pods carry its name as a label
_HASH = 12  # hex digits: of a namespace's Jobs no two ever share them

Object = Mapping[str, Any]
"""A Kubernetes object as its JSON says it."""


def job_name(request: WorkRequest) -> str:
    """Readable, legal, and the same for the same run, round, silo and action only: `<run>-<silo>-<action>[-r<round>]-<hash>`."""
    identity = [request.run_id, request.silo, request.action, request.only_round]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:_HASH]
    ending = f"-{request.action}" + ("" if request.only_round is None else f"-r{request.only_round}") + f"-{digest}"
    room = _LONGEST_NAME - len(ending) - 1
    silo = request.silo[: max(room // 2, room - len(request.run_id))].strip("-")
    run = request.run_id[: room - len(silo)].strip("-")
    return f"{run}-{silo}{ending}"


def request_sha256(request: WorkRequest) -> str:
    """What makes two requests the same piece of work: the worker's command line, and for how long."""
    return hashlib.sha256(json.dumps([request.silo, request.arguments(), request.deadline_s]).encode()).hexdigest()


def job_labels(request: WorkRequest) -> dict[str, str]:
    """The labels that the hub sets."""
    return {
        RUN_LABEL: request.run_id, SILO_LABEL: request.silo, ACTION_LABEL: request.action,
        ROUND_LABEL: _ALL_ROUNDS if request.only_round is None else str(request.only_round),
    }


def job_of(template: Object, request: WorkRequest, *, namespace: str) -> dict[str, Any]:
    """The Job of `request`, made from the CronJob `template` of the silo's `namespace`.

    Raises:
        ConfigError: the template is no CronJob of chart fedhelp-silo.
    """
    job_template = template.get("spec", {}).get("jobTemplate") if template.get("kind", "CronJob") == "CronJob" else None
    containers = (job_template or {}).get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
    if job_template is None or [container.get("name") for container in containers] != [CONTAINER]:
        raise ConfigError(
            f"silo {request.silo!r}: its Job template in namespace {namespace!r} should be a CronJob whose only container is {CONTAINER!r};"
            " ask the hospital to install chart fedhelp-silo as it is")
    spec = copy.deepcopy(dict(job_template["spec"]))
    spec["template"]["spec"]["containers"][0]["args"] = request.arguments()
    spec["activeDeadlineSeconds"] = min(spec.get("activeDeadlineSeconds", request.deadline_s), request.deadline_s)
    labels = {**job_template.get("metadata", {}).get("labels", {}), **job_labels(request)}
    if QUEUE_LABEL in labels:
        spec["suspend"] = True  # Kueue releases it once its quota allows; without its webhook nobody else would hold it back
    metadata = {"name": job_name(request), "namespace": namespace, "labels": labels, "annotations": {REQUEST_ANNOTATION: request_sha256(request)}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def is_of(found: Object, request: WorkRequest) -> bool:
    """Whether an object that has the request's name was made for the same request."""
    annotations = found.get("metadata", {}).get("annotations") or {}
    return bool(annotations.get(REQUEST_ANNOTATION) == request_sha256(request))
