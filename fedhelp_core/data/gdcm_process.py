"""GDCM in a process of its own: on some damaged JPEG streams it ends its process, and what it finds odd it only prints. Called by `dicom`.

Whatever was printed while a frame was decoded is a problem of that frame.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.child import Child, ChildEnded, ChildRefused, Work, serve

_LARGEST = 8  # bytes of a pixel


class GdcmProcess:
    """Decodes by a process that is started when it is needed, and again after it has died. Not for several threads at once."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def decode(self, raw: bytes, syntax: str, options: dict[str, Any]) -> NDArray[Any]:
        """The frames of a PixelData element, as pydicom's decoder gives them for `options`.

        Raises:
            ValueError: it cannot be decoded, and why.
        """
        most = _LARGEST * int(options["number_of_frames"] * options["rows"] * options["columns"])
        try:
            self._child = self._child or Child(__name__)
            return self._child.ask({"syntax": syntax, "options": options}, np.frombuffer(raw, np.uint8), most=most)
        except ChildRefused as e:
            raise ValueError(str(e)) from None
        except ChildEnded:
            self._child = None
            raise ValueError("its stream is damaged") from None


def _start() -> tuple[dict[str, Any], Work]:
    """In the child."""
    printed = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process is
    os.dup2(printed.fileno(), 2)

    def decoded(head: dict[str, Any], raw: NDArray[Any]) -> NDArray[Any]:
        printed.seek(0)
        printed.truncate()
        found = _decoded(raw.tobytes(), head["syntax"], head["options"])
        printed.seek(0)
        if said := printed.read(200).decode("utf-8", "replace").strip():
            raise ValueError(said)
        return found

    return {}, decoded


def _decoded(raw: bytes, syntax: str, options: dict[str, Any]) -> NDArray[Any]:
    import warnings

    from pydicom import pixels

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "The number of bytes of compressed pixel data matches")  # noise, which nothing makes smaller
    decoder: Any = pixels.get_decoder(syntax)  # type: ignore[attr-defined]  # pydicom offers it, but not to mypy
    found, _ = decoder.as_array(raw, raw=True, decoding_plugin="gdcm", **options)
    return np.ascontiguousarray(found)


if __name__ == "__main__":
    serve(_start)
