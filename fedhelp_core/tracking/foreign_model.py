"""An MLflow model in a process of its own: its author's code runs there, without our credentials. Called by `models.load_pyfunc`.

    python -m fedhelp_core.tracking.foreign_model FOLDER

Standard input brings images, standard output takes answers: frames of a length and that many bytes, which are a NumPy array, or JSON. The process
has a few harmless variables of the environment, a home of its own, and no way to read ours. It is the same user, so it can read that user's files:
docs/security.md says what that means.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.printable import first_line
from fedhelp_core.processes import die_with_parent

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES", "TZ")
_PASSED_ON_BEGINNINGS = ("OMP_", "MKL_", "OPENBLAS_", "FEDHELP_TEST_MARK")
_SET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "ERROR"}
_LONGEST = 3600.0  # seconds for loading, and for one answer: as long as the longest `timeout` of a teacher that is asked over HTTP
_MOST_ANSWER = 2**30  # bytes: a batch of 4096 volumes' masks of 64^3
_PR_SET_DUMPABLE = 4  # of Linux's prctl: 0 keeps other processes of the same user from reading this one's memory and environment


class ModelEnded(Exception):
    """The process is gone, says nothing, or says something that is no answer."""


class ModelRefused(Exception):
    """The model's own code raised an error: the message is its class and first line."""


class ForeignModel:
    """A loaded model, asked from one thread.

    Raises:
        ModelRefused: it cannot be loaded.
        ModelEnded: loading ended the process.
    """

    def __init__(self, folder: Path) -> None:
        home = tempfile.mkdtemp(prefix="fedhelp-model-")
        _hide_from_others()
        environment = {
            name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_BEGINNINGS)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder.absolute())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=home, env={**environment, **_SET, "HOME": home, "TMPDIR": home}, close_fds=True)
        weakref.finalize(self, _end, self._process, home)
        self.uuid = str(json.loads(self._answer(2**16)).get("uuid") or "")[:80]

    def predict(self, images_NHWC: NDArray[np.uint8]) -> NDArray[Any]:
        """The model's answer to a batch, as an array of numbers.

        Raises:
            ModelRefused, ModelEnded: there is none.
        """
        body = io.BytesIO()
        np.save(body, images_NHWC, allow_pickle=False)
        assert self._process.stdin is not None
        try:
            _write(self._process.stdin, b"A", body.getvalue())
        except OSError:
            raise ModelEnded("its process has ended") from None
        try:
            answer: NDArray[Any] = np.load(io.BytesIO(self._answer(_MOST_ANSWER)), allow_pickle=False)
        except (ValueError, EOFError, SyntaxError) as e:
            raise ModelEnded(f"its process answers with no array ({first_line(e)})") from None
        return answer

    def _answer(self, most: int) -> bytes:
        assert self._process.stdout is not None
        kind, body = _read(self._process.stdout, most, time.monotonic() + _LONGEST)
        if kind == b"E":
            raise ModelRefused(body.decode(errors="replace")[:400])
        return body


def _hide_from_others() -> None:
    """The child is of our user, and could read /proc/<parent>/environ."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0)


def _end(process: subprocess.Popen[bytes], home: str) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    shutil.rmtree(home, ignore_errors=True)


def _write(pipe: IO[bytes], kind: bytes, body: bytes) -> None:
    pipe.write(kind + len(body).to_bytes(8, "little") + body)
    pipe.flush()


def _read(pipe: IO[bytes], most: int, until: float) -> tuple[bytes, bytes]:
    """Kind and body of the next frame.

    Raises:
        ModelEnded: there is none until then, or it is too long.
    """
    head = _exactly(pipe, 9, until)
    length = int.from_bytes(head[1:], "little")
    if head[:1] not in (b"A", b"E") or length > most:
        raise ModelEnded(f"its process answers with {length:,} bytes, at most {most:,} expected")
    return head[:1], _exactly(pipe, length, until)


def _exactly(pipe: IO[bytes], length: int, until: float) -> bytes:
    found = bytearray()
    while len(found) < length:
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise ModelEnded(f"its process has not answered within {_LONGEST:g} s")
        piece = os.read(pipe.fileno(), min(length - len(found), 2**20))
        if not piece:
            raise ModelEnded("its process has ended")
        found += piece
    return bytes(found)


def _serve(folder: str) -> None:
    """In the child: load, then answer until nobody asks."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    questions = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)  # what the model prints is no answer
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        import mlflow.pyfunc

        model = mlflow.pyfunc.load_model(folder)
        uuid = str(getattr(model.metadata, "model_uuid", None) or "")
    except BaseException as e:  # loading runs the model's own code, which may raise anything
        _write(answers, b"E", _said(e))
        return
    _write(answers, b"A", json.dumps({"uuid": uuid}).encode())
    while head := questions.read(9):
        images = np.load(io.BytesIO(questions.read(int.from_bytes(head[1:], "little"))), allow_pickle=False)
        try:
            answer = np.asarray(model.predict(images))
            if answer.dtype.kind not in "fiu":
                raise TypeError(f"an array of numbers expected, got {answer.dtype}")
            body = io.BytesIO()
            np.save(body, answer, allow_pickle=False)
        except Exception as e:  # the model's own code
            _write(answers, b"E", _said(e))
        else:
            _write(answers, b"A", body.getvalue())


def _said(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {first_line(error)}".encode()


if __name__ == "__main__":
    _serve(sys.argv[1])
