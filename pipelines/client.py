"""kfp's client for one endpoint. Called by register.py and submit.py."""

from __future__ import annotations

import json
import warnings
from typing import Any

from kfp import Client


def kubeflow_client(endpoint: str, namespace: str | None, *, credentials: Any = None) -> Client:
    """A client of Kubeflow Pipelines at `endpoint`, which it asks for its health at once."""
    with warnings.catch_warnings():  # of every client: it says that it is not for Kubeflow Pipelines 1
        warnings.filterwarnings("ignore", message="This client only works with Kubeflow Pipeline", category=FutureWarning)
        return Client(host=endpoint, namespace=namespace or "kubeflow", credentials=credentials)


def pipelines_named(client: Client, name: str, namespace: str | None) -> list[Any]:
    """The pipelines called `name` of a namespace (None: those that all share), as kfp's API describes them."""
    wanted = json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
    return list(client.list_pipelines(filter=wanted, namespace=namespace).pipelines or [])
