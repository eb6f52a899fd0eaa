"""A hospital's API server and a teacher that answer without end, slowly, nested, with nulls, or with our own secret: nobody waits, nothing leaks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import html
import json
import random
import string
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import yaml

from fedhelp_core.errors import ClusterUnavailable
from fedhelp_core.printable import printable
from fedhelp_core.softlabels.credentials import redacted
from fedhelp_dispatch import cluster as cluster_module
from fedhelp_dispatch import watch as watch_module
from fedhelp_dispatch.cluster import Cluster
from fedhelp_dispatch.kubernetes import JobCarrier
from fedhelp_dispatch.refusals import ApiRefusal
from fedhelp_dispatch.watch import Watches

pytestmark = [pytest.mark.attack, pytest.mark.slow, pytest.mark.timeout(60)]
SECRET = "eyJhbGciOi+Qq/9\\\"<&>'é =pqRstuv"
Writes = Callable[[asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(body: bytes) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


@pytest.mark.parametrize("form", [
    lambda s: s, json.dumps, repr, lambda s: repr(s.encode()), quote, lambda s: quote(s, safe=""), quote_plus, html.escape, str.upper, str.lower,
    lambda s: s.encode().hex(), lambda s: s[::-1], lambda s: base64.b64encode(s.encode()).decode(), lambda s: f"Bearer {s}",
    lambda s: base64.b64encode(f"user:{s}".encode()).decode(), lambda s: base64.b64encode(f"Bearer {s}".encode()).decode(),
    lambda s: base64.urlsafe_b64encode(f"x{s}y".encode()).decode(), lambda s: s[:12], lambda s: s[5:17], lambda s: s[-10:],
    lambda s: json.dumps(json.dumps(s)), lambda s: " ".join([s] * 3)])
def test_a_secret_is_taken_out_in_every_form_in_which_it_comes_back(form: Callable[[str], str]) -> None:
    said = redacted(f"you sent <{form(SECRET)}>, which is wrong", [SECRET])
    assert "[secret]" in said and said.startswith("you sent <")
    left = said.replace("[secret]", "")
    for coded in (SECRET, base64.b64encode(SECRET.encode()).decode(), SECRET.encode().hex()):
        assert not any(coded[i:i + 10] in left for i in range(len(coded) - 9) if coded[i:i + 10] not in "you sent <>, which is wrong")


def test_no_cut_of_a_long_answer_shows_a_part_of_the_secret() -> None:
    random.seed(1)
    secret = "".join(random.choices(string.ascii_letters + string.digits, k=64))
    for before in range(230, 300):
        said = printable(redacted("." * before + secret + "." * 50, [secret]), 300)
        assert not any(secret[i:i + 8] in said for i in range(57))


def test_words_that_hold_no_secret_stay_as_they_are() -> None:
    assert redacted("model derma: not found", ["S3cr3tS3cr3t"]) == "model derma: not found"
    assert redacted("pin 1234, not 12345", ["1234"]) == "pin [secret], not [secret]5"


@pytest.fixture
def connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Cluster]:
    def connect(url: str) -> Cluster:
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [{"name": "c", "cluster": {"server": url}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {"token": "t"}}]}))
        monkeypatch.setenv("KUBECONFIG", str(path))
        return Cluster(None)

    return connect


async def served(answers: Iterator[Writes], use: Callable[[str], Awaitable[None]]) -> None:
    """`use` a server that gives the n-th of `answers` to the n-th request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await next(answers)(writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, StopIteration, RuntimeError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


def whole(body: bytes, status: int = 200) -> Writes:
    async def write(to: asyncio.StreamWriter) -> None:
        to.write(f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)

    return write


def endless(piece: bytes, pause: float = 0.0) -> Writes:
    async def write(to: asyncio.StreamWriter) -> None:
        to.write(HEAD)
        while True:
            to.write(chunk(piece))
            await to.drain()
            await asyncio.sleep(pause)

    return write


NESTED = b"[" * 100_000 + b"]" * 100_000
NONSENSE: dict[str, bytes] = {
    "nested": NESTED, "nothing": b"", "null": b"null", "a list": b"[]", "nulls": b'{"metadata": null, "items": null}', "no utf-8": b"\xff\xfe\xff",
    "infinity": b'{"metadata": {"resourceVersion": 1e999}, "items": [null]}', "digits": b'{"metadata": {"resourceVersion": ' + b"9" * 9999 + b"}}",
    "items of nothing": b'{"metadata": {"resourceVersion": "1"}, "items": [{}, null, 3, {"metadata": null}]}'}


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("status", [200, 403, 500])
def test_nonsense_is_an_error_of_ours(connected: Callable[[str], Cluster], name: str, status: int) -> None:
    async def use(url: str) -> None:
        cluster = connected(url)
        with contextlib.suppress(ClusterUnavailable, ApiRefusal):
            await cluster.call("GET", "/apis/batch/v1/jobs")
        await cluster.aclose()

    asyncio.run(served(iter([whole(NONSENSE[name], status)]), use))


async def read_all(cluster: Cluster) -> None:
    async for _ in cluster.lines("/x", {}):
        pass


@pytest.mark.parametrize(("piece", "pause"), [(b"x" * 2**16, 0.0), (b"x", 0.01)], ids=["fast", "slow"])
@pytest.mark.parametrize("what", ["call", "text", "lines"])
def test_an_answer_without_end_is_given_up(
    connected: Callable[[str], Cluster], monkeypatch: pytest.MonkeyPatch, what: str, piece: bytes, pause: float,
) -> None:
    for limit, value in (("_WITHIN", 1.0), ("_LARGEST", 2**21), ("_LONGEST_LINE", 1.0), ("_LONGEST_WATCH", 5.0)):
        monkeypatch.setattr(cluster_module, limit, value)

    async def use(url: str) -> None:
        cluster = connected(url)
        asked = {"call": lambda: cluster.call("GET", "/x"), "text": lambda: cluster.text("/x", {}), "lines": lambda: read_all(cluster)}
        with pytest.raises(ClusterUnavailable, match="not reached"):
            await asked[what]()
        await cluster.aclose()

    started = time.monotonic()
    asyncio.run(served(iter([endless(piece, pause)]), use))
    assert time.monotonic() - started < 40


class Told:
    """watch.Handler that counts."""

    def __init__(self) -> None:
        self.lists = 0

    def listed(self, namespace: str | None, objects: list[dict[str, Any]]) -> None:
        self.lists += 1

    def reached(self, namespace: str | None) -> None: ...

    def changed(self, kind: str, found: dict[str, Any]) -> None:
        str(found["metadata"]["name"])

    def refused(self, namespace: str | None, refusal: ApiRefusal) -> None: ...

    def unreachable(self, namespace: str | None, message: str) -> None: ...


def events(*lines: bytes) -> Writes:
    async def write(to: asyncio.StreamWriter) -> None:
        to.write(HEAD + b"".join(chunk(line + b"\n") for line in lines) + b"0\r\n\r\n")

    return write


LINES: dict[str, bytes] = {
    **NONSENSE, "no object": b'{"type": "ADDED"}', "an object of null": b'{"type": "MODIFIED", "object": null}',
    "an error of infinity": b'{"type": "ERROR", "object": {"code": 1e999}}', "an error of words": b'{"type": "ERROR", "object": {"code": "gone"}}',
    "a type of null": b'{"type": null, "object": {"metadata": null}}'}


@pytest.mark.parametrize("name", LINES)
def test_no_event_ends_a_watch_for_good(connected: Callable[[str], Cluster], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """After any nonsense the same namespace is listed again."""
    monkeypatch.setattr(watch_module, "_PAUSES", (0.01, 0.05))
    list_of = whole(b'{"metadata": {"resourceVersion": "5"}, "items": []}')
    gone = events(b'{"type": "ERROR", "object": {"code": 410, "message": "too old"}}')
    answers = iter([list_of, events(LINES[name]), gone, list_of, *[endless(b"", 10)] * 5])

    async def use(url: str) -> None:
        cluster, told = connected(url), Told()
        watches = Watches(cluster, JobCarrier().path, "fedhelp.io/run=run-1", told)
        await watches.follow("fedhelp-aachen")
        until = time.monotonic() + 20
        while told.lists < 2 and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert told.lists >= 2
        await watches.close()
        await cluster.aclose()

    asyncio.run(served(answers, use))
