"""Model servers that are not ours, each in a virtual environment of its own under .cache/model_servers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENTS = Path(__file__).parents[4] / ".cache" / "model_servers"
_HERE = Path(__file__).parent
_NEW_AS_OF = "2026-11-01T00:00:00Z"  # nothing newer is installed, so that an environment made later is the same one
_INSTALL_S, _START_S = 600, 240  # seconds; some 30 and 5 on an idle machine
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class ModelServer:
    """A running one."""

    uri: str
    metrics_url: str

    def requests_answered(self, counter: str) -> int:
        """Its own count, of which Prometheus would call the metric `counter`."""
        text = _DIRECT.open(self.metrics_url, timeout=30).read().decode()
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in text.splitlines() if line.startswith(counter + "{") and "shades" in line)


class NoEnvironment(Exception):
    """It could not be installed, e.g. without a network."""


@contextlib.contextmanager
def mlserver(folder: Path) -> Iterator[ModelServer]:
    """MLServer with model `shades` version 7; `folder` gets its settings and log."""
    python = environment("mlserver", "mlserver==1.7.1")
    models = shutil.copytree(_HERE / "mlserver", folder / "models", ignore=shutil.ignore_patterns("__pycache__"))
    http, grpc, metrics = free_ports(3)
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0, "debug": False}
    (models / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    with serving([str(python.with_name("mlserver")), "start", str(models)], http, "shades", folder):
        yield ModelServer(f"http://127.0.0.1:{http}/v2/models/shades", f"http://127.0.0.1:{metrics}/metrics")


@contextlib.contextmanager
def kserve(folder: Path, *, side: int = 8, classes: int = 2) -> Iterator[ModelServer]:
    """KServe's model server with model `shades` of images of `side` pixels; `folder` gets its log."""
    python = environment("kserve", "kserve==0.21.0")
    (http,) = free_ports(1)
    with serving([str(python), str(_HERE / "kserve_shades.py"), str(http), str(side), str(classes)], http, "shades", folder):
        yield ModelServer(f"http://127.0.0.1:{http}/v2/models/shades", f"http://127.0.0.1:{http}/metrics")


def environment(name: str, *requirements: str) -> Path:
    """The Python of a virtual environment with `requirements`, made the first time.

    Raises:
        NoEnvironment: they could not be installed.
    """
    folder = ENVIRONMENTS / name
    done = folder / "installed.txt"
    if not done.is_file() or done.read_text(encoding="utf-8").splitlines() != list(requirements):
        uv = shutil.which("uv") or str(Path(__file__).parents[4] / ".uv" / "bin" / "uv")
        for command in ([uv, "venv", "--clear", "--python", sys.executable, str(folder)],
                        [uv, "pip", "install", "--exclude-newer", _NEW_AS_OF, "--python", str(folder), *requirements]):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)
            except (OSError, subprocess.SubprocessError) as e:
                said = getattr(e, "stderr", None)
                raise NoEnvironment(f"{' '.join(command)}: {said or e}") from e
        done.write_text("\n".join(requirements), encoding="utf-8")
    return folder / "bin" / "python"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


@contextlib.contextmanager
def serving(command: list[str], port: int, model: str, folder: Path) -> Iterator[None]:
    """`command` runs in `folder`, which gets its log, and serves `model` at `port`."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=os.environ | {"NO_PROXY": "127.0.0.1"}, start_new_session=True)
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}/v2/models/{model}/ready", log)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            if _DIRECT.open(url, timeout=5).status == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"the model server was not ready:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
