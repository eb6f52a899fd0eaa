"""kfp's client for one endpoint. Called by register.py and submit.py."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

from kfp import Client
from kfp_server_api import V2beta1GetHealthzResponse

from fedhelp_core.answers import page_instead
from fedhelp_core.proxies import proxy_for


class NotKubeflow(Exception):
    """A web page answers where Kubeflow Pipelines was expected, mostly a login page; the message says what."""


class KubeflowClient(Client):
    """kfp's client, which would follow a login page's redirect and take the page for an empty answer: no pipelines, or registered ones."""

    server_version = ""
    """As the server names it, such as '2.17.0'; blank where it does not."""

    def get_kfp_healthz(self, sleep_duration: int = 5) -> V2beta1GetHealthzResponse:
        """Asked once, as the first request: kfp's own logs five tracebacks, and then says that it timed out. Its type has no version."""
        self.refuse_pages()
        said = self._healthz_api.api_client.call_api(
            "/apis/v2beta1/healthz", "GET", response_type="object", auth_settings=["Bearer"], _return_http_data_only=True)
        self.server_version = str(said.get("tag_name") or "")
        return V2beta1GetHealthzResponse(multi_user=said.get("multi_user"))

    def refuse_pages(self) -> None:
        """From now on, for all requests."""
        pool = self._healthz_api.api_client.rest_client.pool_manager
        if not hasattr(pool.request, "__wrapped__"):
            pool.request = _only_kubeflow(pool.request)


def _only_kubeflow(request: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(request)
    def checked(*args: Any, **kwargs: Any) -> Any:
        answer = request(*args, **kwargs, redirect=False)
        page = page_instead(answer.status, answer.headers, answer.data or b"")
        if page is not None:
            raise NotKubeflow(page)
        return answer

    return checked


def kubeflow_client(endpoint: str, namespace: str | None, *, credentials: Any = None) -> KubeflowClient:
    """A client of Kubeflow Pipelines at `endpoint`, which it asks for its health at once.

    Raises:
        NotKubeflow: a web page answers, now or at any later request.
    """
    with warnings.catch_warnings():  # of every client: it says that it is not for Kubeflow Pipelines 1
        warnings.filterwarnings("ignore", message="This client only works with Kubeflow Pipeline", category=FutureWarning)
        client = KubeflowClient(host=endpoint, namespace=namespace or "kubeflow", credentials=credentials, proxy=proxy_for(endpoint))
    client.refuse_pages()
    return client


def pipelines_named(client: Client, name: str, namespace: str | None) -> list[Any]:
    """The pipelines called `name` of a namespace (None: those that all share), as kfp's API describes them."""
    wanted = json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
    return list(client.list_pipelines(filter=wanted, namespace=namespace).pipelines or [])


def serves_ui(client: Client, endpoint: str) -> bool:
    """Whether pages are found at `endpoint` beside the API that `client` asks there."""
    try:
        client._healthz_api.api_client.rest_client.pool_manager.request("GET", f"{endpoint.rstrip('/')}/")
    except NotKubeflow:
        return True
    return False
