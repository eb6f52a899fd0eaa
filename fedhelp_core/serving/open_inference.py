"""The Open Inference Protocol's messages (version 2, REST), JSON and the binary tensor extension: bytes in, tensors out, and back. Pure.

Called by `app`. What cannot be read is one sentence (`Refused`). Nothing here knows models or images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["request", "image", "token", "size", "busy", "time", "model", "fault"]
"""Of what is wrong; Prometheus counts them."""

HEADER_LENGTH = "inference-header-content-length"
_STATUS: Mapping[Kind, int] = {
    "request": 400, "image": 400, "token": 401, "size": 413, "busy": 503, "time": 504, "model": 503, "fault": 500}
_DTYPES: Mapping[str, str] = {
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
_MOST_TENSORS = 16
_MOST_DIMENSIONS = 8
_MOST_ID = 1000  # characters of a request's id, which the answer repeats


class Refused(Exception):
    """A request that gets no answer: one sentence, and what kind of fault it is."""

    def __init__(self, sentence: str, kind: Kind = "request") -> None:
        super().__init__(sentence)
        self.kind: Kind = kind

    @property
    def status(self) -> int:
        """Of HTTP."""
        return _STATUS[self.kind]


@dataclass(frozen=True)
class Tensor:
    """Named numbers, or named texts and files (datatype BYTES, dtype object: str where they came as JSON, bytes else)."""

    name: str
    data: NDArray[Any]

    @property
    def datatype(self) -> str:
        """The protocol's word."""
        if self.data.dtype == object:
            return "BYTES"
        return next(name for name, dtype in _DTYPES.items() if np.dtype(dtype) == self.data.dtype)

    @staticmethod
    def of_texts(name: str, texts: Sequence[str]) -> Tensor:
        """One text an image."""
        found = np.empty(len(texts), object)
        found[:] = texts
        return Tensor(name, found)


@dataclass(frozen=True)
class Question:
    """What somebody asks."""

    inputs: Mapping[str, Tensor]
    id: str | None = None
    wanted: tuple[str, ...] = ()
    """Names of outputs; empty: all."""
    binary: frozenset[str] = field(default=frozenset())
    """Outputs that are to come as binary data."""
    all_binary: bool = False


def question_in(body: bytes, header_length: str | None) -> Question:
    """The question in a request's body; `header_length`: bytes of JSON before binary data, None: all of it.

    Raises:
        Refused: it is no request of the protocol.
    """
    length = _header_length(header_length, len(body))
    try:
        document = json.loads(body[:length])
    except (ValueError, RecursionError) as e:
        raise Refused(f"the request's body: JSON expected, got something else ({_first(e)})") from None
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list) or not document["inputs"]:
        raise Refused("the request's body: an object with a list `inputs` expected, as the Open Inference Protocol has it")
    if len(document["inputs"]) > _MOST_TENSORS:
        raise Refused(f"inputs: at most {_MOST_TENSORS} tensors expected, got {len(document['inputs'])}")
    rest, inputs = memoryview(body)[length:], dict[str, Tensor]()
    for given in document["inputs"]:
        tensor, used = _tensor_in(given, rest)
        if tensor.name in inputs:
            raise Refused(f"inputs: {tensor.name!r} is there twice")
        inputs[tensor.name] = tensor
        rest = rest[used:]
    if len(rest):
        raise Refused(f"the request's body: {len(rest):,} bytes after the last tensor; binary_data_size of the inputs must name all binary data")
    wanted, binary = _wanted(document.get("outputs"))
    identity = document.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > _MOST_ID):
        raise Refused(f"id: a text of at most {_MOST_ID} characters expected, got {_short(identity)}")
    return Question(inputs, identity, wanted, binary, _parameters(document, "the request").get("binary_data_output") is True)


def answer_of(model: str, version: str, question: Question, outputs: Sequence[Tensor]) -> tuple[bytes, int | None]:
    """The answer's body; and, where there is binary data in it, how many bytes of JSON come first.

    Raises:
        Refused: an output was asked for that there is not.
    """
    known = {tensor.name: tensor for tensor in outputs}
    unknown = [name for name in question.wanted if name not in known]
    if unknown:
        raise Refused(f"outputs: {_short(unknown[0])} is none of this model's ({', '.join(known)})")
    written: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor in [known[name] for name in question.wanted] or outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.data.shape)}
        if tensor.name in question.binary or (question.all_binary and not question.binary):
            parts.append(_raw_of(tensor))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = tensor.data.reshape(-1).tolist()
        written.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": written}
    if question.id is not None:
        document["id"] = question.id
    header = json.dumps(document, ensure_ascii=False).encode()
    return b"".join((header, *parts)), len(header) if parts else None


def _header_length(said: str | None, size: int) -> int:
    if said is None:
        return size
    if not said.isascii() or not said.isdigit() or int(said[:20]) > size:
        raise Refused(f"Inference-Header-Content-Length: bytes of JSON at the body's start expected, at most its {size:,}, got {said[:40]!r}")
    return int(said[:20])


def _tensor_in(given: Any, rest: memoryview) -> tuple[Tensor, int]:
    """One of `inputs`, and how many bytes of `rest` it took."""
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise Refused("inputs: objects with name, datatype, shape and data expected")
    name = given["name"][:100]
    datatype, shape = given.get("datatype"), given.get("shape")
    if not isinstance(datatype, str) or (datatype != "BYTES" and datatype not in _DTYPES):
        raise Refused(f"input {name!r}, datatype: BYTES or one of {', '.join(_DTYPES)} expected, got {_short(datatype)}")
    if not isinstance(shape, list) or not 0 < len(shape) <= _MOST_DIMENSIONS or not all(type(side) is int and 0 < side < 2**31 for side in shape):
        raise Refused(f"input {name!r}, shape: a list of positive whole numbers expected, got {_short(shape)}")
    size = _parameters(given, f"input {name!r}").get("binary_data_size")
    if size is None:
        return Tensor(name, _from_json(given.get("data"), name, datatype, shape)), 0
    if type(size) is not int or not 0 <= size <= len(rest):
        raise Refused(f"input {name!r}, binary_data_size: at most the {len(rest):,} bytes that are left expected, got {_short(size)}")
    return Tensor(name, _from_raw(rest[:size], name, datatype, shape)), size


def _from_json(data: Any, name: str, datatype: str, shape: list[int]) -> NDArray[Any]:
    if not isinstance(data, list):
        raise Refused(f"input {name!r}, data: a list expected, got {_short(data)}")
    if datatype == "BYTES":
        if not all(isinstance(text, str) for text in data):
            raise Refused(f"input {name!r}, data: texts expected, each a file's bytes in base64")
        found = np.empty(len(data), object)
        found[:] = data
        return _shaped(found, name, shape)
    try:
        numbers = np.asarray(data)
    except (ValueError, OverflowError, RecursionError) as e:
        raise Refused(f"input {name!r}, data: numbers in lists of equal lengths expected ({_first(e)})") from None
    target = np.dtype(_DTYPES[datatype])
    if numbers.dtype.kind not in ("b" if target.kind == "b" else "iuf" if target.kind == "f" else "iu"):
        what = {"b": "true and false", "f": "numbers"}.get(target.kind, "whole numbers")
        raise Refused(f"input {name!r}, data: {what} expected for {datatype}, got {'other values' if numbers.dtype == object else numbers.dtype}")
    if target.kind in "iu" and numbers.size and not np.iinfo(target).min <= int(numbers.min()) <= int(numbers.max()) <= np.iinfo(target).max:
        raise Refused(f"input {name!r}, data: numbers that {datatype} holds expected, got {numbers.min()} to {numbers.max()}")
    with np.errstate(over="ignore"):  # infinite then, which whoever prepares images refuses
        return _shaped(numbers.astype(target), name, shape)


def _from_raw(raw: memoryview, name: str, datatype: str, shape: list[int]) -> NDArray[Any]:
    if datatype == "BYTES":
        return _shaped(_elements(raw, name), name, shape)
    dtype = np.dtype(_DTYPES[datatype])
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise Refused(f"input {name!r}: {math.prod(shape) * dtype.itemsize:,} bytes of {datatype} expected for its shape, got {len(raw):,}")
    return np.frombuffer(raw, dtype).reshape(shape)


def _elements(raw: memoryview, name: str) -> NDArray[Any]:
    """Of binary BYTES: each element after its length, four bytes, little-endian."""
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if at + 4 > len(raw) or end > len(raw):
            raise Refused(f"input {name!r}: its binary data ends amid an element; each has its length before it, in four bytes")
        found.append(bytes(raw[at + 4 : end]))
        at = end
    array = np.empty(len(found), object)
    array[:] = found
    return array


def _raw_of(tensor: Tensor) -> bytes:
    if tensor.data.dtype != object:
        return np.ascontiguousarray(tensor.data).tobytes()
    encoded = [text.encode() for text in tensor.data.reshape(-1)]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def _shaped(array: NDArray[Any], name: str, shape: list[int]) -> NDArray[Any]:
    if array.size != math.prod(shape):
        raise Refused(f"input {name!r}: shape {' x '.join(map(str, shape))} has {math.prod(shape):,} elements, data has {array.size:,}")
    return array.reshape(shape)


def _wanted(given: Any) -> tuple[tuple[str, ...], frozenset[str]]:
    if given is None:
        return (), frozenset()
    if not isinstance(given, list) or not all(isinstance(output, dict) and isinstance(output.get("name"), str) for output in given):
        raise Refused("outputs: a list of objects with a name expected")
    names = tuple(dict.fromkeys(output["name"] for output in given))
    return names, frozenset(output["name"] for output in given if _parameters(output, "outputs").get("binary_data") is True)


def _parameters(holder: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    found = holder.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise Refused(f"{what}, parameters: an object expected, got {_short(found)}")
    return found or {}


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:60]}..."


def _first(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]
