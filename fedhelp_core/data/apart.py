"""GDCM in a process of its own: on some damaged JPEG streams it ends its process, and what it finds odd it only prints. Called by `dicom`.

    python -m fedhelp_core.data.apart          (started here; ends with its standard input, so with whoever started it)

A request is a line of JSON and a frame's compressed bytes, an answer a line of JSON and its pixels. Whatever was printed meanwhile is a problem.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray


class Apart:
    """Decodes by a process that is started when it is needed, and again after it has died. Not for several threads at once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, raw: bytes, syntax: str, options: dict[str, Any]) -> NDArray[Any]:
        """The frames of a PixelData element, as pydicom's decoder gives them for `options`.

        Raises:
            ValueError: it cannot be decoded, and why.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedhelp_core.data.apart"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"syntax": syntax, "options": options, "size": len(raw)}).encode() + b"\n" + raw)
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        if not line:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
            self._process = None
            raise ValueError("its stream is damaged")
        answer = json.loads(line)
        if "problem" in answer:
            raise ValueError(answer["problem"])
        return np.frombuffer(process.stdout.read(answer["size"]), answer["dtype"]).reshape(answer["shape"])


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until there is nothing more to read."""
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        while line := requests.readline():
            request = json.loads(line)
            raw = requests.read(request["size"])
            printed.seek(0)
            printed.truncate()
            try:
                pixels = _decoded(raw, request["syntax"], request["options"])
                printed.seek(0)
                said = printed.read(200).decode("utf-8", "replace").strip()
                head: dict[str, Any] = {"dtype": pixels.dtype.str, "shape": pixels.shape, "size": pixels.nbytes}
                head = {"problem": said.splitlines()[0]} if said else head
            except Exception as e:
                head, pixels = {"problem": (str(e) or type(e).__name__).splitlines()[0]}, np.empty(0)
            answers.write(json.dumps(head).encode() + b"\n" + (b"" if "problem" in head else pixels.tobytes()))
            answers.flush()


def _decoded(raw: bytes, syntax: str, options: dict[str, Any]) -> NDArray[Any]:
    import warnings

    from pydicom import pixels

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "The number of bytes of compressed pixel data matches")  # noise, which nothing makes smaller
    decoder: Any = pixels.get_decoder(syntax)  # type: ignore[attr-defined]  # pydicom offers it, but not to mypy
    found, _ = decoder.as_array(raw, raw=True, decoding_plugin="gdcm", **options)
    return np.ascontiguousarray(found)


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
