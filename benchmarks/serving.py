"""A served model beside MLServer with the same network: time of an answer, and a soak.

    python -m benchmarks.serving [--repeat 200]

One client asks about one picture, then about sixteen at once, as PNG files in base64; both servers take turns, request by request, so that noise is
noise for both. MLServer (.cache/model_servers) decodes them and runs the program that `fedhelp model export --form program` writes; ours checks,
prepares, decides, compares and records too. The soak is sixteen clients for a minute.
"""

from __future__ import annotations

import base64
import io
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from benchmarks.figures import Figure, run_alone, spread
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.deployment.export import export_program
from tests.core.deployment import models
from tests.core.deployment.models import Hospital, hospital
from tests.core.serving.process import Served, served
from tests.core.softlabels.model_servers import environment, free_ports, serving

SIDE, BATCHES, TARGET = 224, (1, 16), 1.1
_SOAK_S, _CLIENTS, _MEMORY_TARGET = 60.0, 16, 1.1  # seconds; how much larger the memory may be at the end than at a quarter of the time


@contextmanager
def mlserver(program: Path, folder: Path) -> Iterator[str]:
    """Where MLServer answers with `program`."""
    python = environment("mlserver", "mlserver==1.7.1")
    http, grpc, metrics = free_ports(3)
    folder.mkdir()
    (folder / "serving_on_mlserver.py").write_text(Path(__file__).with_name("serving_on_mlserver.py").read_text())
    (folder / "settings.json").write_text(json.dumps({
        "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0, "debug": False}))
    (folder / "model-settings.json").write_text(json.dumps({"name": "chest", "implementation": "serving_on_mlserver.Program"}))
    os.environ |= {"PROGRAM": str(program), "TORCH_PACKAGES": str(Path(torch.__file__).parents[1])}
    with serving([str(python.with_name("mlserver")), "start", str(folder)], http, "chest", folder):
        yield f"http://127.0.0.1:{http}"


def question(count: int) -> dict[str, Any]:
    """What httpx sends: `count` pictures of noise."""
    files = []
    for pixels in np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        files.append(base64.b64encode(file.getvalue()).decode())
    return {"json": {"inputs": [
        {"name": "files", "datatype": "BYTES", "shape": [count], "data": files, "parameters": {"content_type": "base64"}}]}}


def asked(client: httpx.Client, sent: dict[str, Any]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    said = client.post("/v2/models/chest/infer", **sent)
    assert said.status_code == 200, said.text
    return (time.perf_counter() - began) * 1000


def figures(repeat: int) -> list[Figure]:
    """Of this machine."""
    models.TASKS = {**models.TASKS, "large": TaskConfig(name="melanoma", image_size=SIDE)}
    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as name:
        folder = Path(name)
        here = hospital(folder / "here", "large")
        export_program(here.models.in_use(), folder / "program.pt2")
        with served(here) as ours, mlserver(folder / "program.pt2", folder / "mlserver") as theirs, httpx.Client(base_url=theirs, timeout=60) as peer:
            found = [_beside(ours.client, peer, batch, repeat) for batch in BATCHES]
        return [*found, *_soak(here)]


def _beside(ours: httpx.Client, peer: httpx.Client, batch: int, repeat: int) -> Figure:
    sent = question(batch)
    pairs = [(asked(ours, sent), asked(peer, sent)) for _ in range(repeat + 10)][10:]
    mine, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    return Figure(
        name=f"an answer about {batch} image{'s' if batch > 1 else ''} of {SIDE} pixels", value=statistics.median(mine) / statistics.median(theirs),
        unit="", target=TARGET, yardstick=f"MLServer, {statistics.median(theirs):.1f} ms",
        detail=f"{statistics.median(mine):.1f} ms; {spread(mine)}, MLServer {spread(theirs)}")


def _soak(here: Hospital) -> list[Figure]:
    sent = question(1)
    with served(here) as server:
        ends = time.monotonic() + _SOAK_S
        counts = [0, 0]

        def ask() -> None:
            with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
                while time.monotonic() < ends:
                    status = client.post("/v2/models/chest/infer", **sent).status_code
                    counts[status != 200] += 1

        clients = [threading.Thread(target=ask) for _ in range(_CLIENTS)]
        for one in clients:
            one.start()
        time.sleep(_SOAK_S / 4)
        early = _memory(server)
        for one in clients:
            one.join()
        late = _memory(server)
    return [
        Figure(name="faults in a minute of 16 clients", value=counts[1], unit="", target=0, detail=f"{counts[0]:,} answers"),
        Figure(name="memory at its end", value=late / early, unit="", target=_MEMORY_TARGET, yardstick=f"after a quarter, {early:.0f} MiB")]


def _memory(server: Served) -> float:
    """MiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    run_alone(figures, __doc__, repeat=200)
