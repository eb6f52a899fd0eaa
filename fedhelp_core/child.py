"""A child process that is asked over a pipe, and may end at any question. For code that could end this process, or that should not see it: called by
data/gdcm_process.py and tracking/foreign_model.py.

A message is a head in JSON and an array's bytes. The parent trusts nothing in an answer. What else the child prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.printable import first_line

_LONGEST = 3600.0  # seconds for its start, and for one answer: as long as the longest `timeout` of a teacher that is asked over HTTP
_MOST_HEAD = 2**16  # bytes
_NUMBERS = re.compile(r"[<>|][biuf]\d{1,2}")  # numpy's names of types that are numbers alone
_NOTHING = np.empty(0, np.uint8)

Message = tuple[dict[str, Any], NDArray[Any]]
Work = Callable[[dict[str, Any], NDArray[Any]], NDArray[Any]]


class ChildEnded(Exception):
    """The process is gone, says nothing, or says something that is no answer."""


class ChildRefused(Exception):
    """The child's code raised an error: the message is what it says."""


class Child:
    """`python -m` with `arguments`, asked from one thread; it ends with this object. `folder`: its working folder, which ends with it.

    Raises:
        ChildRefused: it cannot start its work.
        ChildEnded: it ended before.
    """

    def __init__(self, *arguments: str, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=folder, env=environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._finalizer = weakref.finalize(self, _end, self._process, self._pipe, folder)
        self.greeting, _ = self._exchange(None, 0)

    def ask(self, head: Mapping[str, Any], array: NDArray[Any], *, most: int) -> NDArray[Any]:
        """The answer, an array of numbers of at most `most` bytes.

        Raises:
            ChildRefused, ChildEnded: there is none.
        """
        return self._exchange((head, array), most)[1]

    def _exchange(self, question: tuple[Mapping[str, Any], NDArray[Any]] | None, most: int) -> Message:
        watch = threading.Timer(_LONGEST, self._process.kill)
        watch.daemon = True
        watch.start()
        try:
            if question is not None:
                _send(self._pipe, *question)
            head, array = _received(self._pipe, most)
        except (EOFError, OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as e:
            why = "has ended" if isinstance(e, EOFError | ConnectionError) else f"answers with no array of at most {most:,} bytes ({first_line(e)})"
            self._finalizer()
            raise ChildEnded(f"its process {why}" if watch.is_alive() else f"its process has not answered within {_LONGEST:g} s") from None
        finally:
            watch.cancel()
        if "refused" in head:
            raise ChildRefused(str(head["refused"])[:400])
        return head, array


def serve(start: Callable[[], tuple[Mapping[str, Any], Work]], *, said: Callable[[BaseException], str] = first_line) -> None:
    """In the child: start, greet with what `start` gives, then answer until nobody asks. `said`: what an error says."""
    pipe = Connection(int(sys.argv[-1]))
    os.set_inheritable(pipe.fileno(), False)
    try:
        greeting, work = start()
    except BaseException as e:  # foreign code may raise anything
        return _send(pipe, {"refused": said(e)})
    _send(pipe, greeting)
    with suppress(EOFError, ConnectionError):  # nobody asks any more
        while True:
            head, array = _received(pipe)
            try:
                answer = work(head, array)
            except Exception as e:  # foreign code again
                _send(pipe, {"refused": said(e)})
            else:
                _send(pipe, {}, answer)


def _end(process: subprocess.Popen[bytes], pipe: Connection, folder: Path | None) -> None:
    process.kill()
    process.wait()
    pipe.close()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _send(pipe: Connection, head: Mapping[str, Any], array: NDArray[Any] = _NOTHING) -> None:
    pipe.send_bytes(json.dumps({**head, "dtype": array.dtype.str, "shape": array.shape}).encode())
    pipe.send_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _received(pipe: Connection, most: int | None = None) -> Message:
    """The next message, whose array has at most `most` bytes; raises whatever shows that it is none."""
    head, body = dict(json.loads(pipe.recv_bytes(_MOST_HEAD))), bytearray(pipe.recv_bytes(most))
    dtype, shape = str(head.pop("dtype")), tuple(head.pop("shape"))
    if not _NUMBERS.fullmatch(dtype):
        raise TypeError(f"numbers expected, got {dtype}")
    array: NDArray[Any] = np.ndarray(shape, np.dtype(dtype), body)
    if array.nbytes != len(body):
        raise ValueError(f"{array.nbytes:,} bytes announced, got {len(body):,}")
    return head, array
