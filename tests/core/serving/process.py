"""`fedhelp serve` as a process of its own, and what asks it: httpx with bodies as the protocol's specification has them."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests import warm
from tests.core.deployment.models import Hospital


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    url: str
    client: httpx.Client

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def infer(self, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
        return self.client.post("/v2/models/chest/infer", json={"inputs": list(inputs), **more})

    def answer(self, *inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Outputs by name, as flat lists."""
        said = self.infer(*inputs, **more)
        assert said.status_code == 200, said.text
        return {output["name"]: output["data"] for output in said.json()["outputs"]}

    def wait_for(self, version: str) -> None:
        """Until the served version is `version`."""
        while self.client.get("/v2/models/chest").json().get("versions") != [version]:
            assert self.process.poll() is None
            time.sleep(0.05)

    def stop(self, how: int = signal.SIGTERM) -> tuple[int, str]:
        """End it; exit code, and what it said on standard error."""
        self.process.send_signal(how)
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said


@contextmanager
def served(here: Hospital, *options: str, port: int = 0, scheme: str = "http", **client: Any) -> Iterator[Served]:
    """The server of `here`; ended at the end, whatever happens."""
    command = [Path(sys.executable).with_name("fedhelp"), "serve", "--silo", here.silo, "--port", port, "--device", "cpu", *options]
    environment = {name: value for name, value in os.environ.items() if name.lower() not in ("http_proxy", "https_proxy", "all_proxy")}
    process = warm.start(command, environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"at (https?://\S+)/v2$", line.strip())
        assert found, line + (process.communicate()[1] if process.poll() is not None or not line else "")
        assert found[1].startswith(f"{scheme}://")
        with httpx.Client(base_url=found[1], timeout=120, trust_env=False, **client) as asks:
            yield Served(process, found[1], asks)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def files(*paths: Path) -> dict[str, Any]:
    """Files as one input, in base64."""
    return {"name": "files", "datatype": "BYTES", "shape": [len(paths)], "data": [base64.b64encode(path.read_bytes()).decode() for path in paths]}


def numbers(name: str, datatype: str, array: Any) -> dict[str, Any]:
    """An array as an input."""
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.reshape(-1).tolist()}
