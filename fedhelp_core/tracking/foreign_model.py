"""An MLflow model in a process of its own: its author's code runs there, without our credentials. Called by `models.load_pyfunc`.

The process has a few harmless variables of the environment, a home of its own, and no way to read ours. It is the same user, so it can read that
user's files: docs/security.md says what that means.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.child import Child, Work, serve
from fedhelp_core.printable import first_line
from fedhelp_core.processes import die_with_parent

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES", "TZ")
_PASSED_ON_BEGINNINGS = ("OMP_", "MKL_", "OPENBLAS_", "FEDHELP_TEST_MARK")
_SET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "ERROR"}
_MOST_ANSWER = 2**30  # bytes: a batch of 4096 volumes' masks of 64^3
_PR_SET_DUMPABLE = 4  # of Linux's prctl: 0 keeps other processes of the same user from reading this one's memory and environment


class ForeignModel:
    """A loaded model, asked from one thread.

    Raises:
        ChildRefused: it cannot be loaded; the message is its error's class and first line.
        ChildEnded: loading ended the process.
    """

    def __init__(self, folder: Path) -> None:
        home = Path(tempfile.mkdtemp(prefix="fedhelp-model-"))
        _hide_from_others()
        environment = {
            name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_BEGINNINGS)}
        self._child = Child(
            __name__, str(folder.absolute()), folder=home, environment={**environment, **_SET, "HOME": str(home), "TMPDIR": str(home)})
        self.uuid = str(self._child.greeting.get("uuid") or "")[:80]

    def predict(self, images_NHWC: NDArray[np.uint8]) -> NDArray[Any]:
        """The model's answer to a batch, as an array of numbers.

        Raises:
            ChildRefused, ChildEnded: there is none.
        """
        return self._child.ask({}, images_NHWC, most=_MOST_ANSWER)


def _hide_from_others() -> None:
    """The child is of our user, and could read /proc/<parent>/environ."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0)


def _load(folder: str) -> tuple[dict[str, Any], Work]:
    """In the child: the model's uuid, and what it does with a batch."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(folder)

    def answer(_head: dict[str, Any], images_NHWC: NDArray[Any]) -> NDArray[Any]:
        found = np.asarray(model.predict(images_NHWC))
        if found.dtype.kind not in "fiu":
            raise TypeError(f"an array of numbers expected, got {found.dtype}")
        return found

    return {"uuid": str(getattr(model.metadata, "model_uuid", None) or "")}, answer


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


if __name__ == "__main__":
    die_with_parent()
    serve(partial(_load, sys.argv[1]), said=_said)
