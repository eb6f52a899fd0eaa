"""One Kubernetes API server: its address and credentials from a kubeconfig context or the pod's own account, and requests to it.

The only file that imports `kubernetes`; and only for credentials, since its typed models cost milliseconds an object. Objects
are the JSON that the server speaks. Used by create_and_delete.py, watch.py, the carriers, preflight.py, plan.py and `fedhelp jobs`.

Invariants: a request is answered within _WITHIN or counts as not reached; no answer and no line is larger than _LARGEST;
nothing is sent twice but after 401. Whether a request that was not answered took effect is for its caller to find out.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import yaml
from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException

from fedhelp_core.answers import untrusted
from fedhelp_core.errors import ClusterUnavailable, ConfigError
from fedhelp_core.printable import first_line
from fedhelp_core.proxies import proxy_for
from fedhelp_dispatch.refusals import ApiRefusal

_TIMES = httpx.Timeout(30.0, connect=5.0, pool=None)  # seconds; for a free connection a request waits as long as others need
_WITHIN = 60.0  # seconds for a whole answer: the listing of ten thousand Jobs takes a few
_WATCHED = httpx.Timeout(180.0, connect=15.0)  # seconds: a live watch brings a bookmark every minute
_AT_ONCE = 8  # requests on their way, and again so many watches being opened: enough for 100 Jobs/s; httpx slows down with more
_LARGEST = 256 * 2**20  # bytes: fifty times what ten thousand Jobs of one run take
_LARGEST_LINE = 4 * 2**20  # bytes of an event: an object has 1.5 MiB at the most
_LARGEST_TEXT = 2**20  # bytes of a log's end, or of what a server says when it refuses
_LONGEST_WATCH = 2100.0  # seconds; the server was asked to end it after 1800
_LONGEST_LINE = 180.0  # seconds that a line may take, which bookmarks keep short
_RELOAD = 30.0  # seconds between two readings of credentials that the server no longer takes
_AGAIN_LATER = (429, 500, 502, 503, 504)
_UNAUTHORIZED = 401
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "fedhelp"}


class Cluster:
    """A connection for one event loop.

    Raises:
        ConfigError: no kubeconfig, no such context, or one that cannot be used.
    """

    def __init__(self, context: str | None) -> None:
        self.context = context
        self._loaded = time.monotonic()
        self._settings, self._tls = _credentials(context)
        self._client = self._connections(_TIMES)
        self._sending, self._opening = asyncio.Semaphore(_AT_ONCE), asyncio.Semaphore(_AT_ONCE)

    @property
    def name(self) -> str:
        """For messages."""
        where = f"context {self.context!r}" if self.context else "the cluster"
        return f"{where} ({self._settings.host})"

    async def call(self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None) -> Any:
        """The answer's JSON.

        Raises:
            ApiRefusal: the server refuses.
            ClusterUnavailable: it was not reached, or is in trouble.
            ConfigError: what answers there is not trusted.
        """
        data = await self._data(method, path, query, body)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as e:
            raise ClusterUnavailable(f"{self.name}: answered with what is no JSON ({message_of(data)}); is the address right?") from e

    async def text(self, path: str, query: dict[str, str]) -> str:
        """The answer as text (logs). Raises as `call`."""
        return (await self._data("GET", path, query, None, _LARGEST_TEXT)).decode(errors="replace")

    async def lines(self, path: str, query: dict[str, str]) -> AsyncGenerator[bytes, None]:
        """An endless answer, line by line, over a connection of its own; first an empty line, when the server has taken the request.

        Raises as `call`.
        """
        with self._reached():
            async with self._connections(_WATCHED) as own:  # in a shared pool each request would look through all watches
                request = await self._request(own, "GET", path, query)
                async with self._opening:
                    answer = await own.send(request, stream=True)
                async with aclosing(answer):
                    await self._refuse(answer)
                    yield b""
                    rest, until = b"", time.monotonic() + _LONGEST_WATCH
                    begun = time.monotonic()  # of the line that is not whole yet
                    async for chunk in answer.aiter_bytes():
                        *whole, rest = (rest + chunk).split(b"\n")
                        begun = time.monotonic() if whole else begun
                        for line in whole:
                            yield line
                        if len(rest) > _LARGEST_LINE:
                            raise OSError(f"a line of more than {_LARGEST_LINE} bytes")
                        if time.monotonic() > (min(until, begun + _LONGEST_LINE) if rest else until):
                            raise OSError("a line or a watch without end")

    async def renew(self) -> bool:
        """Read the credentials again, at most every half minute; whether there are others now."""
        if time.monotonic() - self._loaded < _RELOAD:
            return False
        self._loaded = time.monotonic()
        try:
            self._settings, self._tls = await asyncio.to_thread(_credentials, self.context)
        except ConfigError:  # somebody may be writing the file just now
            return False
        before, self._client = self._client, self._connections(_TIMES)
        await before.aclose()
        return True

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _data(self, method: str, path: str, query: dict[str, str] | None, body: Any, most: int | None = None) -> bytes:
        try:
            return await self._send(method, path, query, body, most)
        except ApiRefusal as e:
            if e.status == _UNAUTHORIZED and await self.renew():
                return await self._send(method, path, query, body, most)
            raise

    async def _send(self, method: str, path: str, query: dict[str, str] | None, body: Any, most: int | None) -> bytes:
        async with self._sending:
            with self._reached():
                request = await self._request(self._client, method, path, query, body)
                async with asyncio.timeout(_WITHIN), aclosing(await self._client.send(request, stream=True)) as answer:
                    await self._refuse(answer)
                    return await _content(answer, _LARGEST if most is None else most)

    def _connections(self, times: httpx.Timeout) -> httpx.AsyncClient:
        """To this server alone: through the proxy that its kubeconfig names (proxy-url), else by the environment's."""
        proxy = self._settings.proxy or proxy_for(self._settings.host)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=_AT_ONCE)
        return httpx.AsyncClient(verify=self._tls, timeout=times, limits=limits, headers=_HEADERS, trust_env=False, proxy=proxy)

    async def _request(
        self, connections: httpx.AsyncClient, method: str, path: str, query: dict[str, str] | None, body: Any = None,
    ) -> httpx.Request:
        """With the token, renewed where it has expired: from a file, or by a program that the kubeconfig names."""
        settings, headers = self._settings, {}
        if "authorization" in settings.api_key:
            headers["Authorization"] = await asyncio.to_thread(settings.get_api_key_with_prefix, "authorization")
        expected = {"sni_hostname": settings.tls_server_name} if settings.tls_server_name else {}
        url = str(settings.host).rstrip("/") + path
        return connections.build_request(method, url, params=query, json=body, headers=headers, extensions=expected)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """What goes wrong between here and there, as our errors."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as e:
            if (fault := _tls_fault(e)) is not None:
                why = untrusted(fault, bundle="the kubeconfig") or f"its certificate is not trusted ({first_line(fault, 300)})"
                raise ConfigError(f"{self.name}: {why}; ask the hospital for its current kubeconfig") from e
            raise ClusterUnavailable(f"{self.name}: not reached ({type(e).__name__}); is the address right, and the server up?") from e

    async def _refuse(self, answer: httpx.Response) -> None:
        """Raises ApiRefusal or ClusterUnavailable where the answer is no success."""
        if not answer.is_success:
            raise self.refusal(answer.status_code, message_of(await _content(answer, _LARGEST_TEXT)))

    def refusal(self, status: int, message: str) -> ApiRefusal | ClusterUnavailable:
        """A server in trouble is asked again later; everything else is an answer."""
        if status in _AGAIN_LATER:
            return ClusterUnavailable(f"{self.name}: answered {status} ({message})")
        return ApiRefusal(status, message, self.name)


class Clusters:
    """One connection for every kubeconfig context that is asked for: `async with Clusters() as clusters`."""

    def __init__(self) -> None:
        self._known: dict[str | None, Cluster] = {}

    def of(self, context: str | None) -> Cluster:
        """Raises ConfigError where there is no such context."""
        if context not in self._known:
            self._known[context] = Cluster(context)
        return self._known[context]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for cluster in self._known.values():
            await cluster.aclose()


def token_of(context: str) -> str:
    """The bearer token of a kubeconfig's context; '' where it has none of its own, or cannot be used: then whoever connects says so."""
    try:
        settings, _ = _credentials(context)
    except ConfigError:
        return ""
    return str(settings.api_key.get("authorization", "")).removeprefix("Bearer ")


def kubeconfig() -> str:
    """The file (or files, with ':' between) that kubectl would read; `kubernetes` looks at the variable when it is imported only."""
    return os.environ.get("KUBECONFIG") or "~/.kube/config"


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
                f"kubeconfig {path}: no file with clusters, users and contexts ({first_line(e, 300)}); ask the hospital for a new one") from e
        found.append(document)
    return found


def message_of(text: bytes | str) -> str:
    """The sentence in a Kubernetes Status, or the beginning of whatever came instead."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return (text.decode(errors="replace") if isinstance(text, bytes) else text)[:300]


def _credentials(context: str | None) -> tuple[client.Configuration, ssl.SSLContext]:
    """Those of a named context; else of the pod's own account; else of the kubeconfig's current context.

    Raises:
        ConfigError: none of these.
    """
    settings = client.Configuration()
    inside = context is None and "KUBERNETES_SERVICE_HOST" in os.environ
    documents = [] if inside else _kubeconfigs()
    try:
        if inside:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(kubeconfig(), context=context or _current_context(documents), client_configuration=settings)
        return settings, _tls_of(settings)
    except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        if inside:
            raise ConfigError(f"this pod's own account cannot be used ({first_line(e, 300)}); does its service account mount a token?") from e
        known = _names(documents)
        if context is not None and known and context not in known:
            raise ConfigError(
                f"dispatch.context: the kubeconfig has no context {context!r}, only {', '.join(known)}; correct it, or ask the hospital for its"
                " kubeconfig") from e
        if not documents:
            raise ConfigError(
                f"no kubeconfig at {kubeconfig()} ($KUBECONFIG), and this process runs in no cluster; set KUBECONFIG to the file with the hospitals'"
                " contexts") from e
        raise ConfigError(f"kubeconfig {kubeconfig()}: cannot be used ({first_line(e, 300)}); ask the hospital for a new one") from e


def _current_context(documents: Sequence[Mapping[str, Any]]) -> str | None:
    """The first that a kubeconfig names, as kubectl has it; of several files the package would take the last one's."""
    return next((str(document["current-context"]) for document in documents if document.get("current-context")), None)


def _tls_of(settings: client.Configuration) -> ssl.SSLContext:
    """One context for all connections to a server."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not the stricter default: clusters' own authorities lack what it asks for
    if not settings.verify_ssl:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    elif settings.ssl_ca_cert:
        tls.load_verify_locations(cafile=settings.ssl_ca_cert)
    else:
        tls.load_default_certs()
    if settings.cert_file:
        tls.load_cert_chain(settings.cert_file, settings.key_file)
    return tls


async def _content(answer: httpx.Response, most: int) -> bytes:
    content = bytearray()
    async for chunk in answer.aiter_bytes():
        content += chunk
        if len(content) > most:
            raise OSError(f"an answer of more than {most} bytes")
    return bytes(content)


def _tls_fault(error: BaseException | None) -> ssl.SSLError | None:
    """What TLS did not like, under whatever the libraries in between wrapped it in; a connection that just ended is no such fault."""
    while error is not None and type(error) not in (ssl.SSLError, ssl.SSLCertVerificationError):  # not SSLWantReadError: waiting is no fault
        error = error.__cause__ or error.__context__
    return error if isinstance(error, ssl.SSLError) else None
