"""A component's body in a process forked from the run's zygote, which has imported PyTorch: 2 s less for each of them.

Called by the kfp components that need PyTorch. On Kubernetes there is no zygote, and the body runs where it is called.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from fedhelp_core.errors import FedHelpError
from fedhelp_core.processes import end_with_owner, ends_on_sigterm
from fedhelp_dispatch.zygote_client import ZYGOTE_VARIABLE, ZygoteClient, connected

_GRACE = 10.0  # seconds that a stopped body has to stop the silos' work


def run_component(component: str, **arguments: str) -> Any:
    """`fedhelp_components.<component>.__main__.run(**arguments)`; a dataclass that it gives comes back as a dict.

    Raises:
        FedHelpError: as the body said it, with its exit code.
        RuntimeError: the body was killed, or ended with a traceback, which is on standard error.
    """
    probe = connected(os.environ.get(ZYGOTE_VARIABLE, ""))
    if probe is None:
        return _plain(_body_of(component)(**arguments))
    probe.close()
    with tempfile.TemporaryDirectory(prefix="fedhelp-forked-") as folder:
        return _forked(component, arguments, Path(folder) / "result.json")


def body(message: dict[str, Any]) -> int:
    """In the forked process: what `run_component` asked for, in the asking process's folder and environment."""
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(message["folder"])
    end_with_owner()
    ends_on_sigterm()
    try:
        result = {"value": _plain(_body_of(message["component"])(**message["arguments"]))}
    except FedHelpError as e:
        result = {"error": str(e), "exit_code": e.exit_code}
    Path(message["result"]).write_text(json.dumps(result), encoding="utf-8")
    return 0


def _forked(component: str, arguments: dict[str, str], result: Path) -> Any:
    zygote = ZygoteClient()
    sys.stdout.flush()
    identity = zygote.fork(
        {"component": component, "arguments": arguments, "result": str(result), "environment": dict(os.environ), "folder": os.getcwd()},
        (sys.stdout.fileno(), sys.stderr.fileno()))
    try:
        code = zygote.wait(identity)
    except KeyboardInterrupt:
        zygote.signal(identity, signal.SIGTERM)
        zygote.wait(identity, _GRACE)
        raise
    finally:
        zygote.close()
    if not result.exists():
        raise RuntimeError(f"{component} ended with code {code} and no result; what it said is above")
    document = json.loads(result.read_text(encoding="utf-8"))
    if "error" in document:
        error = FedHelpError(document["error"])
        error.exit_code = int(document["exit_code"])
        raise error
    return document["value"]


def _body_of(component: str) -> Any:
    return importlib.import_module(f"fedhelp_components.{component}.__main__").run


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
