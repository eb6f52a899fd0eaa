"""A teacher behind the Open Inference Protocol v2 over HTTP: KServe, Triton, MLServer. Standard library only.

Opened by `teachers.open_teacher`. The model's own metadata (GET of its URI) says what its input is called, which datatype
it takes and where the channels are; images go as JSON numbers, or as bytes where the server lists the binary extension.
Answers may be JSON or binary whatever was sent. Shapes: N images, H height, W width.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config import TeacherConfig
from fedhelp_core.errors import AccessDenied, ConfigError, TeacherError, TeacherUnavailable

TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 64 * 2**20  # a batch of 4096 images, 1000 classes, float32 is 16 MiB; JSON takes up to 4 times that
_BINARY_HEADER = "Inference-Header-Content-Length"
_BINARY_EXTENSION = "binary_tensor_data"
_DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_MALFORMED = (KeyError, IndexError, TypeError, ValueError, OverflowError)  # OverflowError: Infinity as a side, an integer beyond floats


class _OnlyGetsFollow(urllib.request.HTTPRedirectHandler):
    """urllib turns a redirected POST into a GET: its answer would be to a question that was never asked."""

    def redirect_request(self, req: urllib.request.Request, *arguments: Any) -> urllib.request.Request | None:
        return super().redirect_request(req, *arguments) if req.get_method() == "GET" else None


@dataclass(frozen=True)
class _Answer:
    body: bytes
    json_bytes: int  # where the JSON ends and binary tensors begin


@dataclass(frozen=True)
class _InputSpec:
    name: str
    datatype: str
    channels_first: bool


class OpenInferenceTeacher:
    """Asks one model with one HTTP request per batch; no retries, that is the caller's.

    Raises:
        ConfigError: the URI is not http(s)://host/v2/models/<model>.
    """

    def __init__(self, config: TeacherConfig) -> None:
        if not config.uri.startswith(("http://", "https://")) or "/v2/models/" not in config.uri:
            raise ConfigError(
                f"teacher {config.name!r}: kind 'openinference' expects uri http(s)://host/v2/models/<model>, got {config.uri!r}")
        try:
            _ = urlsplit(config.uri).port
        except ValueError as e:
            raise ConfigError(f"teacher {config.name!r}: uri {config.uri!r} is not an address ({e})") from e
        self.config = config
        self._opener = urllib.request.build_opener(_OnlyGetsFollow)
        self._url = config.uri.rstrip("/").removesuffix("/infer")

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> NDArray[Any]:
        """The model's first output, (N, C) for a classifier.

        Raises:
            TeacherUnavailable: not reached, too slow, 429 or 5xx.
            AccessDenied: 401 or 403.
            TeacherError: any other refusal, or an answer that is not the protocol's.
        """
        tensor = self._input_tensor(images_NHWC)
        described: dict[str, Any] = {"name": self._input.name, "shape": list(tensor.shape), "datatype": self._input.datatype}
        request: dict[str, Any] = {"id": request_id, "inputs": [described]}
        if self._takes_binary:
            raw = tensor.tobytes()
            described["parameters"] = {"binary_data_size": len(raw)}
            head = json.dumps(request).encode()
            answer = self._post(head + raw, {_BINARY_HEADER: str(len(head)), "Content-Type": "application/octet-stream"})
        else:
            described["data"] = tensor.ravel().tolist()
            answer = self._post(json.dumps(request).encode(), {"Content-Type": "application/json"})
        return self._first_output(answer)

    def _input_tensor(self, images_NHWC: NDArray[np.uint8]) -> NDArray[Any]:
        """The batch as the model takes it: its datatype (floats get [0, 1]) and its place for the channels."""
        images: NDArray[Any] = images_NHWC.transpose(0, 3, 1, 2) if self._input.channels_first else images_NHWC
        if self._input.datatype.startswith("FP"):
            images = images / np.float32(255)
        return np.ascontiguousarray(images.astype(_DTYPES[self._input.datatype]))

    @cached_property
    def _input(self) -> _InputSpec:
        metadata = self._json_of(self._exchange(urllib.request.Request(self._url)))  # the scheme is checked above
        try:
            first = metadata["inputs"][0]
            name, datatype, shape = str(first["name"]), str(first["datatype"]), [int(side) for side in first["shape"]]
        except _MALFORMED as e:
            raise self._unusable("metadata with inputs of name, datatype and shape", str(metadata)[:200]) from e
        if datatype not in _DTYPES or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise self._unusable(f"an input of RGB images as one of {', '.join(_DTYPES)}", f"{datatype} of shape {shape}")
        return _InputSpec(name, datatype, channels_first=shape[1] == 3)

    @cached_property
    def _takes_binary(self) -> bool:
        server = self._json_of(self._exchange(urllib.request.Request(self._url.split("/models/")[0])))
        extensions = server.get("extensions")
        return isinstance(extensions, list) and _BINARY_EXTENSION in extensions

    def _first_output(self, answer: _Answer) -> NDArray[Any]:
        document = self._json_of(answer)
        try:
            output = document["outputs"][0]
            shape, dtype = [int(side) for side in output["shape"]], _DTYPES[output["datatype"]]
            if "data" in output:
                return np.asarray(output["data"], dtype=np.float64).reshape(shape)
            size = int(output["parameters"]["binary_data_size"])
            return np.frombuffer(answer.body[answer.json_bytes : answer.json_bytes + size], dtype=dtype).reshape(shape)
        except _MALFORMED as e:
            raise self._unusable("an output with shape, datatype and data", f"{str(document)[:200]} ({e})") from e

    def _post(self, body: bytes, headers: dict[str, str]) -> _Answer:
        return self._exchange(urllib.request.Request(f"{self._url}/infer", data=body, headers=headers, method="POST"))

    def _exchange(self, request: urllib.request.Request) -> _Answer:
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                body = response.read(MAX_ANSWER_BYTES + 1)
                missing, json_bytes = response.length, response.headers.get(_BINARY_HEADER)
        except urllib.error.HTTPError as e:
            with e:
                raise self._refusal(e) from e
        except (OSError, HTTPException) as e:  # URLError and timeouts are OSErrors
            raise TeacherUnavailable(f"teacher {self.config.name!r}: {request.full_url} was not reached ({e}); try again later") from e
        if len(body) > MAX_ANSWER_BYTES:
            raise self._unusable(f"at most {MAX_ANSWER_BYTES} bytes", "more; lower the teacher's batch_size")
        if missing:
            raise TeacherUnavailable(f"teacher {self.config.name!r}: the answer of {request.full_url} broke off {missing} bytes early; try again")
        if json_bytes is not None and not json_bytes.isdecimal():
            raise self._unusable(f"a number as {_BINARY_HEADER}", repr(json_bytes))
        return _Answer(body, len(body) if json_bytes is None else int(json_bytes))

    def _refusal(self, answer: urllib.error.HTTPError) -> Exception:
        status, where = answer.code, f"teacher {self.config.name!r}: HTTP {answer.code} from {self._url}"
        try:
            said = answer.read(300).decode(errors="replace")
        except (OSError, HTTPException):
            said = str(answer.reason)
        if status == 429 or status >= 500:
            return TeacherUnavailable(f"{where} ({said}); try again later")
        if status in (401, 403):
            return AccessDenied(f"{where}; check the credentials that this network or gateway expects")
        if 300 <= status < 400:
            return TeacherError(f"{where}: it sends elsewhere, to {answer.headers.get('Location')}; give the teacher's own address as uri")
        return TeacherError(f"{where}: {said}")

    def _json_of(self, answer: _Answer) -> dict[str, Any]:
        try:
            document = json.loads(answer.body[: answer.json_bytes])
        except (ValueError, RecursionError) as e:
            raise self._unusable("JSON", repr(answer.body[:80])) from e
        if not isinstance(document, dict):
            raise self._unusable("a JSON object", type(document).__name__)
        return document

    def _unusable(self, expected: str, got: str) -> TeacherError:
        return TeacherError(f"teacher {self.config.name!r} at {self._url}: expected {expected}, got {got}")
