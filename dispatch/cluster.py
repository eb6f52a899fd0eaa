"""One Kubernetes API server: its address and credentials from a kubeconfig context or the pod's own account, and requests to it.

The only file that imports `kubernetes`; and only for that, since its typed models cost milliseconds an object. Objects are
the JSON that the server speaks. Used by remote.py, kubernetes.py, manifestwork.py and `fedhelp jobs`.
"""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.rest import ApiException
from kubernetes.config.config_exception import ConfigException

from fedhelp_core.errors import ClusterUnavailable, ConfigError
from fedhelp_dispatch.refusals import ApiRefusal
from fedhelp_dispatch.watch import Endpoint

_TIMEOUT = (5.0, 30.0)  # seconds: to connect, to answer
_RELOAD = 30.0  # seconds between two readings of credentials that the server no longer takes
_AGAIN_LATER = (429, 500, 502, 503, 504)
_UNAUTHORIZED = 401


class Cluster:
    """A connection that threads may share.

    Raises:
        ConfigError: no kubeconfig, no such context, or one that cannot be used.
    """

    def __init__(self, context: str | None, *, connections: int = 16) -> None:
        self.context = context
        self._connections = connections
        self._lock = threading.Lock()
        self._loaded = 0.0
        self._client, self._tls = self._load()
        self.requests = 0
        """How many were sent, watches not counted."""

    @property
    def name(self) -> str:
        """For messages."""
        where = f"context {self.context!r}" if self.context else "the cluster"
        return f"{where} ({self._client.configuration.host})"

    def call(self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None) -> Any:
        """The answer's JSON.

        Raises:
            ApiRefusal: the server refuses.
            ClusterUnavailable: it was not reached, or is in trouble.
            ConfigError: what answers there is not trusted.
        """
        return json.loads(self._data(method, path, query, body))

    def text(self, path: str, query: dict[str, str]) -> str:
        """The answer as text (logs). Raises as `call`."""
        return self._data("GET", path, query, None).decode(errors="replace")

    def endpoint(self) -> Endpoint:
        """For watches: asked anew for every connection, since tokens change."""
        settings = self._client.configuration
        address = urlsplit(settings.host)
        secure = address.scheme == "https"
        proxy = urlsplit(settings.proxy) if settings.proxy else None
        return Endpoint(
            host=address.hostname or "localhost", port=address.port or (443 if secure else 80), tls=self._tls if secure else None,
            server_name=settings.tls_server_name or address.hostname, prefix=address.path.rstrip("/"), headers=self._headers(),
            proxy=(proxy.hostname or "", proxy.port or 3128) if proxy else None)

    def renew(self) -> bool:
        """Read the credentials again, at most every half minute; whether that was done."""
        with self._lock:
            if time.monotonic() - self._loaded < _RELOAD:
                return False
            self._client, self._tls = self._load()
            return True

    def _load(self) -> tuple[client.ApiClient, ssl.SSLContext]:
        self._loaded = time.monotonic()
        settings = client.Configuration()
        _read_credentials(self.context, settings)
        settings.retries = False  # ours know what may be done twice
        settings.connection_pool_maxsize = self._connections
        return client.ApiClient(settings), _tls_of(settings)

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        self._client.update_params_for_auth(headers, [], ["BearerToken"])
        return headers

    def _data(self, method: str, path: str, query: dict[str, str] | None, body: Any) -> bytes:
        try:
            return self._send(method, path, query, body)
        except ApiRefusal as e:
            if e.status != _UNAUTHORIZED or not self.renew():
                raise
        return self._send(method, path, query, body)

    def _send(self, method: str, path: str, query: dict[str, str] | None, body: Any) -> bytes:
        headers = {"Accept": "*/*", "Content-Type": "application/json", **self._headers()}
        self.requests += 1
        try:
            answer = self._client.rest_client.request(
                method, self._client.configuration.host.rstrip("/") + path, query_params=list((query or {}).items()), headers=headers, body=body,
                _preload_content=False, _request_timeout=_TIMEOUT)
            data: bytes = answer.data
        except ApiException as e:
            if e.status == 0:  # how the package passes an SSLError on
                raise self._untrusted(e.reason) from e
            raise self._refusal(e) from e
        except urllib3.exceptions.SSLError as e:
            raise self._untrusted(e) from e
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise ClusterUnavailable(f"{self.name}: not reached ({type(e).__name__}); is the address right, and the server up?") from e
        if not 200 <= answer.status < 300:
            raise self._refusal(answer)
        return data

    def _untrusted(self, error: object) -> ConfigError:
        return ConfigError(f"{self.name}: its certificate is not trusted ({_first_line(error)}); ask the hospital for its current kubeconfig")

    def _refusal(self, answer: Any) -> ApiRefusal | ClusterUnavailable:
        text = getattr(answer, "body", None) or getattr(answer, "data", b"") or b""
        message = message_of(text)
        if answer.status in _AGAIN_LATER:
            return ClusterUnavailable(f"{self.name}: answered {answer.status} ({message})")
        return ApiRefusal(int(answer.status), message, self.name)


def kubeconfig() -> str:
    """The file (or files, with ':' between) that kubectl would read; `kubernetes` looks at the variable when it is imported only."""
    return os.environ.get("KUBECONFIG") or "~/.kube/config"


def contexts() -> list[str]:
    """The kubeconfig's contexts; none without a kubeconfig.

    Raises:
        ConfigError: it is there, and no kubeconfig.
    """
    return _names(_kubeconfigs())


def _names(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(context["name"]) for document in documents for context in document["contexts"]]


def _kubeconfigs() -> list[dict[str, Any]]:
    """Content of the files that are there, as far as everybody needs it: a mapping with a list of named contexts."""
    found = []
    for path in kubeconfig().split(os.pathsep):
        try:
            document = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8")) or {}
            document = {**document, "contexts": [dict(context) for context in document.get("contexts") or []]}
            if not all("name" in context for context in document["contexts"]):
                raise ValueError("a context without a name")
        except FileNotFoundError:
            continue
        except (yaml.YAMLError, OSError, ValueError, TypeError, AttributeError) as e:
            raise ConfigError(
                f"kubeconfig {path}: no file with clusters, users and contexts ({_first_line(e)}); ask the hospital for a new one") from e
        found.append(document)
    return found


def message_of(text: bytes | str) -> str:
    """The sentence in a Kubernetes Status, or the beginning of whatever came instead."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return (text.decode(errors="replace") if isinstance(text, bytes) else text)[:300]


def _read_credentials(context: str | None, settings: client.Configuration) -> None:
    """A named context; else the pod's own account; else the kubeconfig's current context.

    Raises:
        ConfigError: none of these.
    """
    inside = context is None and "KUBERNETES_SERVICE_HOST" in os.environ
    documents = [] if inside else _kubeconfigs()
    try:
        if inside:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(kubeconfig(), context=context or _current_context(documents), client_configuration=settings)
    except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        if inside:
            raise ConfigError(f"this pod's own account cannot be used ({_first_line(e)}); does its service account mount a token?") from e
        known = _names(documents)
        if context is not None and known and context not in known:
            raise ConfigError(
                f"dispatch.context: the kubeconfig has no context {context!r}, only {', '.join(known)}; correct it, or ask the hospital for its"
                " kubeconfig") from e
        if not documents:
            raise ConfigError(
                f"no kubeconfig at {kubeconfig()} ($KUBECONFIG), and this process runs in no cluster; set KUBECONFIG to the file with the hospitals'"
                " contexts") from e
        raise ConfigError(f"kubeconfig {kubeconfig()}: cannot be used ({_first_line(e)}); ask the hospital for a new one") from e


def _current_context(documents: Sequence[Mapping[str, Any]]) -> str | None:
    """The first that a kubeconfig names, as kubectl has it; of several files the package would take the last one's."""
    return next((str(document["current-context"]) for document in documents if document.get("current-context")), None)


def _tls_of(settings: client.Configuration) -> ssl.SSLContext:
    """One context for all watches of a cluster."""
    tls = ssl.create_default_context(cafile=settings.ssl_ca_cert or None)
    if not settings.verify_ssl:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    if settings.cert_file:
        tls.load_cert_chain(settings.cert_file, settings.key_file)
    return tls


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
