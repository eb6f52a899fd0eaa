"""A teacher behind the Open Inference Protocol v2 over HTTP: KServe, Triton, MLServer.

Opened by `open.open_teacher`. The model's own metadata (GET of its URI) is read and checked before anything is asked:
what its input is called, which type and size of images it takes and where the channels are, how many classes it answers
with, which version it is. Images go as bytes where the server can, else as JSON numbers; answers may be either, whatever was
sent. Shapes: N images, K channels of an image, S its side, C the teacher's classes.
"""

from __future__ import annotations

import email.utils
import json
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.budget import json_in
from fedhelp_core.config.teachers import TeacherConfig
from fedhelp_core.errors import AccessDenied, ConfigError, TeacherError
from fedhelp_core.printable import printable
from fedhelp_core.softlabels.credentials import Credentials
from fedhelp_core.softlabels.http import Response, Server, TooLong, checked_address
from fedhelp_core.softlabels.teachers import BatchTooLarge, MaybeAnswered, NotAnswered, Question, Readiness, changed_version

MAX_ANSWER_BYTES = 64 * 2**20  # a batch of 4096 images, 1000 classes, float32 is 16 MiB; JSON takes up to 4 times that
_BYTES_PER_NUMBER = 32  # of masks, whose answers are larger: a float64 in JSON takes 26
_MAX_METADATA_BYTES = 2**20
_BINARY_HEADER = "inference-header-content-length"
_BINARY_EXTENSION = "binary_tensor_data"
_CONFIG_EXTENSION = "model_configuration"
_DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_MALFORMED = (KeyError, IndexError, TypeError, ValueError, OverflowError)  # OverflowError: Infinity as a side, an integer beyond floats
_SHOWN = 300  # characters of what a server says
_LOOKED_AT = 64 * 1024  # characters of it that are searched for our secret
_LONGEST_VERSION, _MOST_VERSIONS = 80, 2000  # characters
_REFUSED = (429, 503)  # the server says that it did not answer; after another 5xx a model may well have run


@dataclass(frozen=True)
class _Model:
    """What the model's metadata says, checked."""

    input_name: str
    datatype: str
    channels_first: bool
    repeat: int
    """How often a grey image's channel is repeated for a model of colour images."""
    output_name: str
    batch_size: int
    answer_numbers: int
    """In the answer about one image."""
    binary: bool
    served_version: str


class OpenInferenceTeacher:
    """Asks one model with one HTTP request per batch; no retries, that is the caller's.

    Raises:
        ConfigError: the URI is not http(s)://host/v2/models/<model>, or the CA file cannot be used.
    """

    def __init__(self, config: TeacherConfig) -> None:
        if not config.uri.startswith(("http://", "https://")) or "/v2/models/" not in config.uri:
            raise ConfigError(
                f"teacher {config.name!r}: kind 'openinference' expects uri http(s)://host/v2/models/<model>, got {config.uri!r}")
        checked_address(config.name, config.uri)
        self.config = config
        self._url = config.uri.rstrip("/").removesuffix("/infer")
        root, _, model = self._url.rpartition("/v2/models/")
        self._model_path = f"/models/{model}"
        self._server = Server(config.name, f"{root}/v2", timeout=config.timeout, ca_file=config.ca_file)
        self._credentials = Credentials(config.auth, config.name) if config.auth is not None else None
        self._model: _Model | None = None
        self._answered_as = ""  # the model version that the first answer named

    def prepare(self, question: Question) -> Readiness:
        """Read and check the metadata of server and model.

        Raises:
            NotAnswered, MaybeAnswered: not reached.
            AccessDenied: 401 or 403.
            TeacherError: it takes other images, or answers with other classes.
        """
        server = self._get("")
        extensions = server.get("extensions")
        extensions = extensions if isinstance(extensions, list) else []
        metadata = self._get(self._model_path)
        name, datatype, shape = self._image_input(metadata)
        channels_first, channels = self._channels(datatype, shape, question)
        limits = [self.config.batch_size, *([shape[0]] if shape[0] > 0 else [])]
        if _CONFIG_EXTENSION in extensions:
            limits += self._triton_limit()
        transport = self.config.transport
        self._model = _Model(
            input_name=name, datatype=datatype, channels_first=channels_first, repeat=channels // question.shape[0],
            output_name=self._output(metadata, question), batch_size=min(limits),
            answer_numbers=math.prod(question.answer_shape(self.config.classes)),
            binary=transport == "binary" or (transport == "auto" and _BINARY_EXTENSION in extensions),
            served_version=self._shown(_versions(metadata, self._url), _MOST_VERSIONS))
        return Readiness(
            batch_size=self._model.batch_size, concurrency=self.config.concurrency, served_version=self._model.served_version)

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> NDArray[Any]:
        """The model's answer to a batch, (N, C) or (N, C, S, ...). `prepare` comes first.

        Raises:
            NotAnswered: not reached, 429 or 503.
            MaybeAnswered: too slow, broken off, or another 5xx.
            AccessDenied: 401 or 403.
            BatchTooLarge: 413.
            TeacherError: any other refusal, an answer that is not the protocol's, or of another model version than before.
        """
        model = self._model
        assert model is not None, "prepare comes first"
        tensor = _input_tensor(images_NHWC, model)
        described: dict[str, Any] = {"name": model.input_name, "shape": list(tensor.shape), "datatype": model.datatype}
        wanted: dict[str, Any] = {"name": model.output_name}
        request: dict[str, Any] = {"id": request_id, "inputs": [described], **({"outputs": [wanted]} if model.output_name else {})}
        if model.binary:
            raw = tensor.tobytes()
            described["parameters"] = {"binary_data_size": len(raw)}
            wanted["parameters"] = {"binary_data": True}
            request["parameters"] = {"binary_data_output": True}
            head = json.dumps(request, separators=(",", ":")).encode()
            headers, body = {_BINARY_HEADER: str(len(head)), "Content-Type": "application/octet-stream"}, head + raw
        else:
            described["data"] = tensor.ravel().tolist()
            headers, body = {"Content-Type": "application/json"}, json.dumps(request, separators=(",", ":")).encode()
        most = max(MAX_ANSWER_BYTES, _BYTES_PER_NUMBER * len(images_NHWC) * model.answer_numbers)
        answer = self._exchange("POST", f"{self._model_path}/infer", headers, body, most)
        return self._output_tensor(answer, model, request_id)

    # ---- metadata

    def _image_input(self, metadata: dict[str, Any]) -> tuple[str, str, list[int]]:
        try:
            inputs = metadata["inputs"]
            first = inputs[0]
            name, datatype, shape = str(first["name"]), str(first["datatype"]), [int(side) for side in first["shape"]]
        except _MALFORMED as e:
            raise self._unusable("metadata with inputs of name, datatype and shape", str(metadata)) from e
        if len(inputs) != 1:
            raise self._unusable("a model with one input, the images", f"{len(inputs)} inputs")
        return name, datatype, shape

    def _channels(self, datatype: str, shape: list[int], question: Question) -> tuple[bool, int]:
        """Whether channels come first, and how many the model takes: the images' own, or three for grey ones."""
        channels, *sides = question.shape
        kinds = {1: "grey", 3: "RGB"}
        taken = [channels] if channels == 3 or len(sides) == 3 else [channels, 3]
        wanted = f"{kinds[channels]} images" if len(sides) == 2 else "volumes"
        if datatype not in _DTYPES or len(shape) != 2 + len(sides) or not {shape[1], shape[-1]} & set(taken):
            raise self._unusable(f"an input of {wanted} as one of {', '.join(_DTYPES)}", f"{datatype} of shape {shape}")
        channels_first = shape[1] in taken
        found = shape[2:] if channels_first else shape[1:-1]
        if any(side > 0 and side != want for side, want in zip(found, sides, strict=True)):
            size = " x ".join(str(side) for side in sides)
            unit = "pixels" if len(sides) == 2 else "voxels"
            raise self._unusable(f"a model of images of {size} {unit} (the teacher's or the task's image_size)", f"{datatype} of shape {shape}")
        return channels_first, shape[1] if channels_first else shape[-1]

    def _output(self, metadata: dict[str, Any], question: Question) -> str:
        """The name of the output to read; '' where the metadata lists none."""
        try:
            outputs = {str(output["name"]): [int(side) for side in output["shape"]] for output in metadata.get("outputs") or []}
        except _MALFORMED as e:
            raise self._unusable("metadata with outputs of name and shape", str(metadata.get("outputs"))) from e
        name = self.config.output_name
        if not outputs:
            return name or ""
        if name is None and len(outputs) > 1:
            raise self._unusable("output_name, since the model has several outputs", ", ".join(sorted(outputs)))
        if name is not None and name not in outputs:
            raise self._unusable(f"an output called {name!r}", ", ".join(sorted(outputs)))
        found, shape = next((key, shape) for key, shape in outputs.items() if name in (None, key))
        wanted = question.answer_shape(self.config.classes)
        fits = len(shape) == 1 + len(wanted) if question.masks else len(shape) >= 2
        if not fits or any(side > 0 and side != want for side, want in zip(shape[1:], wanted, strict=False)):
            unit = f"pixel, of shape [n, {', '.join(map(str, wanted))}]" if question.masks else "image"
            raise self._unusable(f"an output of {self.config.classes} classes per {unit}", f"{found!r} of shape {shape}; correct `classes`")
        return found

    def _triton_limit(self) -> list[int]:
        """Triton's max_batch_size; nothing where the model has none."""
        limit = self._get(f"{self._model_path}/config").get("max_batch_size")
        return [limit] if isinstance(limit, int) and limit > 0 else []

    def _get(self, path: str) -> dict[str, Any]:
        answer = self._exchange("GET", path, {}, None, _MAX_METADATA_BYTES)
        return self._json_of(answer.body)

    # ---- answers

    def _output_tensor(self, answer: Response, model: _Model, request_id: str) -> NDArray[Any]:
        json_bytes = answer.headers.get(_BINARY_HEADER)
        if json_bytes is not None and not (json_bytes.isdecimal() and int(json_bytes) <= len(answer.body)):
            raise self._unusable(f"a number up to the answer's length as {_BINARY_HEADER}", repr(json_bytes))
        end = len(answer.body) if json_bytes is None else int(json_bytes)
        document = self._json_of(answer.body[:end])
        self._check_sender(document, model, request_id)
        try:
            outputs = document["outputs"]
            binary_at = end
            for output in outputs:
                size = int((output.get("parameters") or {}).get("binary_data_size", 0))
                if not model.output_name or output.get("name") == model.output_name or (len(outputs) == 1 and "name" not in output):
                    return _array_of(output, answer.body[binary_at : binary_at + size])
                binary_at += size
            raise KeyError(f"no output {model.output_name!r}")
        except (*_MALFORMED, AttributeError) as e:
            raise self._unusable("an output with shape, datatype and data", f"{document} ({e})") from e

    def _check_sender(self, document: dict[str, Any], model: _Model, request_id: str) -> None:
        """Whether it is this question that the model answered, and the model that was looked at."""
        if document.get("error"):
            raise self._unusable("an answer", f"the error {document['error']!r}")
        said = document.get("id")
        if said not in (None, "", request_id):
            raise self._unusable(f"the answer to request {request_id[:16]}", f"that to {said!r}")
        version = self._shown(str(document.get("model_version") or ""), _LONGEST_VERSION)
        if not version:
            return
        if model.served_version and version not in model.served_version.split(","):
            raise changed_version(self.config.name, self.config.version, model.served_version, version)
        self._answered_as = self._answered_as or version
        if version != self._answered_as:
            raise changed_version(self.config.name, self.config.version, self._answered_as, version)

    def _exchange(self, method: str, path: str, headers: dict[str, str], body: bytes | None, max_bytes: int) -> Response:
        login = {} if self._credentials is None else {"Authorization": self._credentials.header()}
        try:
            answer = self._server.exchange(method, path, {**headers, **login}, body, max_bytes=max_bytes)
        except (NotAnswered, MaybeAnswered) as e:  # which quote what came instead of an answer
            raise type(e)(self._shown(str(e))) from None
        except TooLong as e:
            raise self._unusable(f"at most {max_bytes} bytes", "more; lower the teacher's batch_size") from e
        if answer.status != 200:
            raise self._refusal(answer)
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise self._unusable("an answer that is not compressed", f"Content-Encoding {answer.headers['content-encoding']!r}")
        return answer

    def _refusal(self, answer: Response) -> Exception:
        status, where = answer.status, f"teacher {self.config.name!r}: HTTP {answer.status} from {self._url}"
        said = self._shown(answer.body.decode(errors="replace"))
        if status in _REFUSED:
            return NotAnswered(f"{where} ({said}); try again later", _retry_after(answer.headers.get("retry-after", "")))
        if status >= 500:
            return MaybeAnswered(f"{where} ({said}); try again later")
        if status in (401, 403):
            return AccessDenied(f"{where}; check auth, and the credentials that this network or gateway expects")
        if status == 413:
            return BatchTooLarge(f"{where}: the request is too large; lower the teacher's batch_size")
        if 300 <= status < 400:
            target = self._shown(answer.headers.get("location", "nowhere"))
            return TeacherError(f"{where}: it sends elsewhere, to {target}; nobody else is asked: give the teacher's own address as uri")
        return TeacherError(f"{where}: {said}")

    def _json_of(self, body: bytes) -> dict[str, Any]:
        document = json_in(body, lambda _why: self._unusable("JSON", repr(body[:_LOOKED_AT])), most=len(body))
        if not isinstance(document, dict):
            raise self._unusable("a JSON object", type(document).__name__)
        return document

    def _unusable(self, expected: str, got: str) -> TeacherError:
        return TeacherError(f"teacher {self.config.name!r} at {self._url}: expected {expected}, got {self._shown(got)}")

    def _shown(self, text: str, most: int = _SHOWN) -> str:
        """What a server said, for messages and records: without our secret, then cut, then harmless."""
        text = text[:_LOOKED_AT]
        return printable(text if self._credentials is None else self._credentials.redacted(text), most)


def _input_tensor(images_NHWC: NDArray[np.uint8], model: _Model) -> NDArray[Any]:
    """The batch as the model takes it: its datatype (floats get [0, 1]) and its place for the channels."""
    images: NDArray[Any] = images_NHWC if model.repeat == 1 else np.repeat(images_NHWC, model.repeat, axis=-1)
    images = np.moveaxis(images, -1, 1) if model.channels_first else images
    if model.datatype.startswith("FP"):
        images = images / np.float32(255)
    return np.ascontiguousarray(images.astype(_DTYPES[model.datatype], copy=False))


def _array_of(output: dict[str, Any], binary: bytes) -> NDArray[Any]:
    shape, dtype = [int(side) for side in output["shape"]], _DTYPES[output["datatype"]]
    if "data" in output:
        return np.asarray(output["data"], dtype=np.float64).reshape(shape)
    return np.frombuffer(binary, dtype=dtype).reshape(shape)


def _versions(metadata: dict[str, Any], url: str) -> str:
    """The version named in the URI, else those that the server lists, comma-separated; '' where it lists none."""
    if "/versions/" in url:
        return url.rpartition("/versions/")[2]
    found = metadata.get("versions")
    return ",".join(sorted(str(version)[:80] for version in found[:20])) if isinstance(found, list) else ""


def _retry_after(text: str) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None where it says nothing usable."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
