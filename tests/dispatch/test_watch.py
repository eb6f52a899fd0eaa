"""cluster.py and watch.py against a real HTTP server that answers what each test has scripted: requests, refusals, watches that end."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from fedhelp_core.errors import ClusterUnavailable, ConfigError
from fedhelp_dispatch import cluster as cluster_module
from fedhelp_dispatch import watch as watch_module
from fedhelp_dispatch.cluster import Cluster
from fedhelp_dispatch.kubernetes import JobCarrier
from fedhelp_dispatch.refusals import ApiRefusal
from fedhelp_dispatch.watch import Watches
from tests.cluster.certificates import Authority

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answered(status: int, body: object, *, promised: int | None = None) -> Answer:
    """A whole answer; `promised`: more bytes than are sent before the connection closes."""

    async def write(to: asyncio.StreamWriter) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        to.write(f"HTTP/1.1 {status} Said\r\nContent-Length: {promised or len(content)}\r\n\r\n".encode() + content)

    return write


def streamed(*events: object, ends: bool = True, piece: int = 7) -> Answer:
    """A watch: one event a line, in pieces that end anywhere; without an end the connection stays open."""

    async def write(to: asyncio.StreamWriter) -> None:
        to.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        content = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        for start in range(0, len(content), piece):
            part = content[start:start + piece]
            to.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await to.drain()
        if ends:
            to.write(b"0\r\n\r\n")
        else:
            await asyncio.sleep(60)

    return write


def status(code: int, message: str) -> Answer:
    return answered(code, {"kind": "Status", "message": message})


def listing(version: str, *names: str) -> Answer:
    return answered(200, {"metadata": {"resourceVersion": version}, "items": [job(name) for name in names]})


def job(name: str, version: str = "1") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "fedhelp-aachen", "uid": name, "resourceVersion": version}}


def event(kind: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": found}


class Server:
    """Answers the n-th request with the n-th of `answers`, each on a connection of its own; keeps the request lines."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[str] = []
        self._answers = iter(answers)
        self._tls = tls
        self._server: asyncio.Server
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            self.asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode())
            await next(self._answers, status(500, "nothing is scripted any more"))(writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            writer.close()


class Told:
    """watch.Handler: what it was told, in order."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, ...]] = []

    def listed(self, namespace: str | None, objects: list[dict[str, Any]]) -> None:
        self.all.append(("listed", *(found["metadata"]["name"] for found in objects)))

    def reached(self, namespace: str | None) -> None:
        if self.all[-1:] != [("reached",)]:
            self.all.append(("reached",))

    def changed(self, kind: str, found: dict[str, Any]) -> None:
        self.all.append((kind, found["metadata"]["name"]))

    def refused(self, namespace: str | None, refusal: ApiRefusal) -> None:
        self.all.append(("refused", refusal.status))

    def unreachable(self, namespace: str | None, message: str) -> None:
        self.all.append(("unreachable",))


@pytest.fixture
def connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    """A cluster at a URL, by a kubeconfig with a token and further fields of its cluster."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(watch_module, "_PAUSES", (0.0, 0.0))

    def connect(url: str, **fields: str) -> Cluster:
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump({
            "current-context": "a", "contexts": [{"name": "a", "context": {"cluster": "b", "user": "c"}}],
            "clusters": [{"name": "b", "cluster": {"server": url, **fields}}], "users": [{"name": "c", "user": {"token": "t"}}]}))
        return Cluster(None)

    return connect


async def watched(cluster: Cluster, until: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """What a handler is told, up to `until`."""
    told = Told()
    watches = Watches(cluster, JobCarrier().path, "fedhelp.io/run=run-1", told)
    await watches.follow("fedhelp-aachen")
    async with asyncio.timeout(30):
        while until not in told.all:
            await asyncio.sleep(0.01)
    await watches.close()
    await cluster.aclose()
    return told.all[:told.all.index(until) + 1]


def test_a_watch_lists_then_follows_and_lists_anew_after_410_gone(connected: Callable[..., Cluster]) -> None:
    async def story() -> None:
        gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
        async with Server(
                listing("5", "one"), streamed(event("MODIFIED", job("one", "6")), event("BOOKMARK", job("", "8"))),
                streamed(gone), listing("20"), streamed(event("ADDED", job("two", "21")), ends=False)) as server:
            told = await watched(connected(server.url), ("ADDED", "two"))
        assert told == [("listed", "one"), ("reached",), ("MODIFIED", "one"), ("reached",), ("listed",), ("reached",), ("ADDED", "two")]
        watches = [line for line in server.asked if "watch=true" in line]
        assert [line.split("resourceVersion=")[1].split("&")[0] for line in watches] == ["5", "8", "20"], "it goes on where it was"

    asyncio.run(story())


def test_a_watch_outlives_refusals_outages_and_answers_that_are_no_api_servers(connected: Callable[..., Cluster]) -> None:
    async def story() -> None:
        async with Server(
                status(403, "jobs is forbidden"), status(503, "starting"), answered(200, "<html>a proxy's page</html>"), answered(200, {"items": []}),
                answered(200, [1]), listing("5"), streamed("no event"), answered(200, "", promised=9),
                streamed(event("ADDED", job("one", "6")), ends=False)) as server:
            told = await watched(connected(server.url), ("ADDED", "one"))
        away = ("unreachable",)
        assert told == [
            ("refused", 403), *[away] * 4, ("listed",), ("reached",), away, ("reached",), away, ("reached",), ("ADDED", "one")]

    asyncio.run(story())


def test_one_watch_serves_all_namespaces_where_the_account_may(connected: Callable[..., Cluster]) -> None:
    async def story() -> None:
        told = Told()
        async with Server(listing("5"), streamed(ends=False), listing("6"), listing("6"), streamed(ends=False)) as server:
            cluster = connected(server.url)
            watches = Watches(cluster, JobCarrier().path, "fedhelp.io/run=run-1", told)
            await watches.follow("fedhelp-aachen")
            while len(server.asked) < 2:
                await asyncio.sleep(0.01)
            await asyncio.gather(*(watches.follow(f"fedhelp-{silo}") for silo in ("aachen", "bonn", "celle")))
            while len(server.asked) < 5:
                await asyncio.sleep(0.01)
            assert watches.connections == 1
            assert "/apis/batch/v1/jobs?" in server.asked[-1]
            await watches.close()
            await cluster.aclose()

    asyncio.run(story())


@pytest.mark.parametrize(("answer", "error", "said"), [
    (status(403, "jobs is forbidden"), ApiRefusal, "403 jobs is forbidden"),
    (status(409, "already exists"), ApiRefusal, "409"),
    (status(429, "slow down"), ClusterUnavailable, r"answered 429 \(slow down\)"),
    (status(503, "starting"), ClusterUnavailable, r"answered 503 \(starting\)"),
    (answered(302, "<html>a proxy's log-in</html>"), ApiRefusal, "302 <html>"),
    (answered(200, "<html>a proxy's page</html>"), ClusterUnavailable, "no JSON"),
    (answered(200, '{"items": [', promised=99), ClusterUnavailable, "not reached"),
    (answered(200, {"items": ["x" * 2000]}), ClusterUnavailable, "not reached"),
])
def test_what_an_answer_means(
    answer: Answer, error: type[Exception], said: str, connected: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_module, "_LARGEST", 1000)

    async def ask() -> None:
        async with Server(answer) as server:
            cluster = connected(server.url)
            try:
                await cluster.call("GET", "/apis/batch/v1/jobs")
            finally:
                await cluster.aclose()

    with pytest.raises(error, match=said):
        asyncio.run(ask())


def test_an_answer_that_never_ends_counts_as_not_reached(connected: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_WITHIN", 0.2)

    async def ask() -> None:
        async with Server(streamed(*["x"] * 100, ends=False)) as server:
            cluster = connected(server.url)
            with pytest.raises(ClusterUnavailable, match=r"not reached \(TimeoutError\)"):
                await cluster.call("GET", "/apis/batch/v1/jobs")
            await cluster.aclose()

    asyncio.run(ask())


def test_a_token_that_is_refused_is_read_again_once(connected: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_RELOAD", -1.0)

    async def ask() -> None:
        async with Server(status(401, "Unauthorized"), listing("5"), status(401, "Unauthorized"), status(401, "Unauthorized")) as server:
            cluster = connected(server.url)
            assert (await cluster.call("GET", "/apis/batch/v1/jobs"))["metadata"]["resourceVersion"] == "5"
            with pytest.raises(ApiRefusal, match="401"):
                await cluster.call("GET", "/apis/batch/v1/jobs")
            await cluster.aclose()
            assert len(server.asked) == 4

    asyncio.run(ask())


# ---- TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def certified(authority: Authority, *hosts: str) -> ssl.SSLContext:
    """A server's side, with a certificate for `hosts`."""
    pair = authority.server("server", hosts)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pair.certificate, pair.key)
    return tls


async def version_at(cluster: Cluster) -> str:
    try:
        return str((await cluster.call("GET", "/apis/batch/v1/jobs"))["metadata"]["resourceVersion"])
    finally:
        await cluster.aclose()


def test_a_certificate_is_trusted_by_the_kubeconfigs_authority_alone(
    authority: Authority, tmp_path: Path, connected: Callable[..., Cluster],
) -> None:
    async def story() -> None:
        async with Server(listing("5"), tls=certified(authority, "127.0.0.1")) as server:
            assert await version_at(connected(server.url, **{"certificate-authority": str(authority.pair.certificate)})) == "5"
            stranger = Authority(tmp_path / "stranger")
            with pytest.raises(ConfigError, match=r"its certificate is not trusted \("):
                await version_at(connected(server.url, **{"certificate-authority": str(stranger.pair.certificate)}))

    asyncio.run(story())


def test_a_servers_name_is_the_one_that_the_kubeconfig_gives(authority: Authority, connected: Callable[..., Cluster]) -> None:
    async def story() -> None:
        async with Server(listing("5"), tls=certified(authority, "api.clinic.example")) as server:
            fields = {"certificate-authority": str(authority.pair.certificate)}
            assert await version_at(connected(server.url, **fields, **{"tls-server-name": "api.clinic.example"})) == "5"
            with pytest.raises(ConfigError, match="IP address mismatch"):
                await version_at(connected(server.url, **fields))

    asyncio.run(story())


@pytest.mark.parametrize("answer", [answered(200, "{", promised=99), streamed("x" * 100, ends=False)], ids=["cut off", "stalled"])
def test_a_connection_that_breaks_inside_tls_is_an_outage_and_no_distrust(
    answer: Answer, authority: Authority, connected: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_module, "_TIMES", httpx.Timeout(0.3))

    async def story() -> None:
        async with Server(answer, tls=certified(authority, "127.0.0.1")) as server:
            with pytest.raises(ClusterUnavailable, match="not reached"):
                await version_at(connected(server.url, **{"certificate-authority": str(authority.pair.certificate)}))

    asyncio.run(story())
