"""`mlflow models serve` as a process of a test."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVE = "mlflow models serve --model-uri {uri} --env-manager local --port 5002"


def environment_for(tracking_uri: str) -> dict[str, str]:
    """Where the `mlflow` of these tests is found, and the registry."""
    return {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri, "NO_PROXY": "127.0.0.1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@contextmanager
def serving(command: str, tracking_uri: str, folder: Path) -> Iterator[int]:
    """The free port that `command` serves at, in place of its 5002, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            shlex.split(command.replace("5002", str(port))), cwd=folder, env=environment_for(tracking_uri), stdout=output, stderr=output,
            start_new_session=True)
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.2)
            yield port
        finally:
            os.killpg(server.pid, 15)
            server.wait()
