"""The routes of the Open Inference Protocol over the model in use: health, metadata, infer; and /metrics. Called by `server`.

A request is read up to a size, prepared on a few threads, computed on one, and answered within a time, or refused in one sentence with the
protocol's `error`. Whoever asks shows a bearer token; probes need none, since they tell nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fedhelp_core import telemetry
from fedhelp_core.crashes import as_error
from fedhelp_core.deployment.images_in import Prepared
from fedhelp_core.printable import printable
from fedhelp_core.serving.in_use import InUse, Loaded
from fedhelp_core.serving.open_inference import HEADER_LENGTH, Question, Refused, Tensor, answer_of, question_in
from fedhelp_core.serving.questions import images_asked, metadata_of, outputs_of
from fedhelp_core.serving.scoring import Scoring

PREPARING = 4  # threads that read images: more would take the cores of the one that computes
_LOOK_S = 1.0
_BODIES = 4  # of the largest size that may be held at once
_log = logging.getLogger("fedhelp.serving")


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them, may take."""

    most_bytes: int = 64 * 2**20
    """Of a request's body: a brain volume in base64 is 20 to 40 MB."""
    seconds: float = 60.0
    """From a request's first byte to its answer."""
    most_at_once: int = 256
    """Questions being answered; more are told to come again."""
    most_batch: int = 256
    """Images computed at once."""


class Serving:
    """What the routes share."""

    def __init__(self, in_use: InUse, limits: Limits, token_file: Path | None) -> None:
        self.in_use = in_use
        self.limits = limits
        self.draining = False
        self._token_file = token_file
        self._scoring = Scoring(limits.most_batch)
        self._readers = ThreadPoolExecutor(PREPARING, thread_name_prefix="preparing")
        self._questions = 0
        self._bytes = 0

    def close(self) -> None:
        """End the threads; all requests have ended."""
        self._readers.shutdown()
        self._scoring.close()

    def require_token(self, request: Request) -> None:
        """Nothing where the request may ask. The file is read each time, so that a new token needs no restart; every line of it is one.

        Raises:
            Refused: no token, or another one.
        """
        if self._token_file is None:
            return
        try:
            known = [line.strip() for line in self._token_file.read_bytes().splitlines() if line.strip()]
        except OSError as e:
            raise Refused(f"this server's tokens cannot be read ({e.strerror}), so nobody is answered; tell whoever runs it", "fault") from None
        said = request.headers.get("authorization", "")
        shown = said[7:].strip().encode() if said[:7].lower() == "bearer " else b""
        if not any(hmac.compare_digest(shown, token) for token in known):
            raise Refused("a bearer token expected (Authorization: Bearer ...) that this server knows", "token")

    def model(self, request: Request) -> Loaded:
        """The model that the request's path names.

        Raises:
            Refused: none is in use.
            HTTPException: another is.
        """
        loaded = self.in_use.loaded
        if loaded is None:
            raise Refused(self.in_use.problem or "the model is being loaded; ask again in a few seconds", "model")
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != loaded.name or version not in (None, loaded.version):
            raise HTTPException(404, f"model {loaded.name!r} version {loaded.version!r} is served here, not {name[:100]!r}"
                                + (f" version {version[:100]!r}" if version else ""))
        return loaded

    @contextlib.contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Room for one question of `size` bytes, as long as it is answered."""
        if self._questions >= self.limits.most_at_once or self._bytes + size > _BODIES * self.limits.most_bytes:
            raise Refused("this server answers as many questions as it can hold; ask again in a second", "busy")
        self._take(1, size)
        try:
            yield
        finally:
            self._take(-1, -size)

    def _take(self, questions: int, size: int) -> None:
        self._questions, self._bytes = self._questions + questions, self._bytes + size
        telemetry.serving_now(self._questions)

    async def infer(self, request: Request) -> Response:
        """The answer to a question.

        Raises:
            Refused: there is none.
        """
        self.require_token(request)
        loaded = self.model(request)
        with self._room(self._size_of(request)):
            try:
                async with asyncio.timeout(self.limits.seconds):
                    body = await self._body(request)
                    return await self._answer(loaded, body, request.headers.get(HEADER_LENGTH))
            except TimeoutError:
                raise Refused(f"no answer within {self.limits.seconds:g} seconds; ask about fewer images at once, or again later", "time") from None

    def _size_of(self, request: Request) -> int:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refused("content-encoding: a body without compression expected")
        said = request.headers.get("content-length", "")
        size = int(said) if said.isascii() and said.isdigit() else self.limits.most_bytes
        if size > self.limits.most_bytes:
            raise self._too_large()
        return size

    def _too_large(self) -> Refused:
        return Refused(f"the request's body: at most {self.limits.most_bytes:,} bytes expected; ask about fewer images at once", "size")

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self.limits.most_bytes:
                raise self._too_large()
        return bytes(body)

    async def _answer(self, loaded: Loaded, body: bytes, header_length: str | None) -> Response:
        loop = asyncio.get_running_loop()

        def prepare() -> tuple[Question, list[Prepared]]:
            question = question_in(body, header_length)
            return question, list(images_asked(question, loaded.adopted.contract, loaded.reader))

        question, asked = await loop.run_in_executor(self._readers, prepare)
        answers = await asyncio.gather(*(
            asyncio.wrap_future(answer) for answer in self._scoring.ask(loaded.scorer, [one.image_CS for one in asked if one.image_CS is not None])))

        def encode() -> tuple[bytes, int | None]:
            outputs: list[Tensor] = outputs_of(loaded.scorer, asked, answers)
            encoded = answer_of(loaded.name, loaded.version, question, outputs)
            loaded.watch.saw(asked, answers)
            return encoded

        encoded, length = await loop.run_in_executor(self._readers, encode)
        if length is None:
            return Response(encoded, media_type="application/json")
        return Response(encoded, media_type="application/octet-stream", headers={HEADER_LENGTH: str(length)})


def application(serving: Serving) -> Starlette:
    """The ASGI application; it follows the pointer as long as it runs."""

    async def server(_: Request) -> Response:
        from importlib.metadata import version

        return JSONResponse({"name": "fedhelp", "version": version("fedhelp"), "extensions": ["binary_tensor_data"]})

    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        is_ready = serving.in_use.loaded is not None and not serving.draining
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def metadata(request: Request) -> Response:
        serving.require_token(request)
        return JSONResponse(metadata_of(serving.model(request).adopted.contract))

    async def model_ready(request: Request) -> Response:
        loaded = serving.model(request)
        return JSONResponse({"name": loaded.name, "ready": not serving.draining}, 503 if serving.draining else 200)

    async def metrics(request: Request) -> Response:
        serving.require_token(request)
        return Response(telemetry.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(_follow(serving.in_use))
        yield
        following.cancel()

    paths = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    return Starlette(lifespan=lifespan, exception_handlers={Refused: _refused, HTTPException: _http}, routes=[
        Route("/v2", server), Route("/v2/health/live", live), Route("/v2/health/ready", ready), Route("/metrics", metrics),
        *(Route(path, metadata) for path in paths), *(Route(f"{path}/ready", model_ready) for path in paths),
        *(Route(f"{path}/infer", _counted(serving.infer), methods=["POST"]) for path in paths)])


async def _follow(in_use: InUse) -> None:
    while True:
        try:
            await asyncio.to_thread(in_use.look)
        except Exception as e:  # what nobody foresaw in following must not end it
            _log.warning("the model in use could not be looked at (%s)", printable(as_error(e, "fedhelp serve")))
        await asyncio.sleep(_LOOK_S)


def _counted(infer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """`infer`, its end and time counted."""

    async def counted(request: Request) -> Response:
        began, outcome = time.monotonic(), "fault"
        try:
            answer = await infer(request)
            outcome = "answered"
            return answer
        except Refused as e:
            outcome = e.kind
            raise
        except ClientDisconnect:
            outcome = "gone"
            return Response(status_code=499)
        except HTTPException:
            outcome = "request"
            raise
        except Exception as e:  # Starlette would answer too, and raise it again for a log with its trace
            return _fault(e)
        finally:
            telemetry.served(outcome, time.monotonic() - began)

    return counted


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": printable(sentence)}, status, headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {"busy": {"Retry-After": "1"}, "model": {"Retry-After": "5"}, "token": {"WWW-Authenticate": "Bearer"}}.get(error.kind)
    return _error(error.status, str(error), headers)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


def _fault(error: Exception) -> Response:
    _log.warning("%s", printable(as_error(error, "fedhelp serve")))
    return _error(500, "this server met an error that nobody foresaw; its log names the file with the trace")
