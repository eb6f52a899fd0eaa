"""What each step of a run costs beside its work: processor time to the end, to have imported everything, and requests to MLflow.

    python -m benchmarks.steps [--repeat 3]

One hospital of 12 pictures, one round of FedAvg, a real MLflow server: so little work that starting is what is measured. Each step is a
process of its own, as in its pod. `tests/images/test_installed.py` runs the same steps with the images' packages alone.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.figures import Figure, run_alone, spread

RUN, SILO = "steps", "amsterdam"
_REQUEST = "/api/2.0/"  # in a line of the server's log
SHOWN = ("check", "evaluation", "promotion", "worker check", "worker evaluate")
_IMPORTS = "import sys; sys.argv[1:] = ['--help']; import runpy; runpy.run_module({module!r}, run_name='__main__')"


@dataclass(frozen=True)
class Step:
    """One step of a run, as one pod of one image does it."""

    name: str
    image: str
    command: tuple[str, ...]


def steps(federation: Path, store: str, silo_file: Path, run: str = RUN, endpoint_url: str = "") -> list[Step]:
    """A run of one round and one silo, in order. The silo's work is asked for by the steps' own commands, as its Jobs' are."""
    where = ("--store", store, "--run", run, *(("--endpoint-url", endpoint_url) if endpoint_url else ()))
    of_silo = ("fedhelp_dispatch.worker", "{action}", *where, "--silo-config", str(silo_file))

    def worker(action: str, *more: str) -> Step:
        return Step(f"worker {action}", "silo", tuple(part.format(action=action) for part in of_silo) + more)

    def component(name: str, image: str, *arguments: str) -> Step:
        return Step(name, image, (f"fedhelp_components.{name}", *(arguments or where)))

    return [
        worker("check"), component("check", "hub", "--federation", str(federation), "--run-id", run), component("soft_label_prefetch", "silo"),
        worker("train", "--round", "1"), component("aggregation", "hub"), worker("evaluate"), component("evaluation", "silo"),
        component("promotion", "hub", *where, "--model-version", "1")]


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, Path]]:
    """A real MLflow server: its address, and the log that has a line for each request."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
             "--uvicorn-opts", "--log-level info"],
            stdout=output, stderr=output, cwd=folder, start_new_session=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
        try:
            deadline = time.monotonic() + 200
            while not _answers(f"{address}/health"):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"MLflow's server did not start: {log.read_text(encoding='utf-8')}")
                time.sleep(0.2)
            yield address, log
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # what it keeps is thrown away with the folder
            server.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=1).close()
    except OSError:
        return False
    return True


def prepared(folder: Path, tracking: str) -> tuple[Path, str, Path]:
    """A drawn hospital's federation in `folder`: its file, its store, the hospital's file."""
    from dataclasses import replace

    from fedhelp_core.config.federation import parse_federation
    from fedhelp_core.data.phantom.fed_isic import SITES, write_fed_isic
    from fedhelp_core.protocol.run import Run
    from fedhelp_core.store.open import open_store

    write_fed_isic(folder / "data", seed=3, sites=[replace(SITES[0], train=12, test=8)])
    silo_file, path, store = folder / "silo.yaml", folder / "federation.yaml", str(folder / "store")
    silo_file.write_text(yaml.safe_dump({
        "name": SILO, "state": str(folder / "state"), "data": {
            "layout": "fed-isic2019", "images": str(folder / "data" / "images"), "split_csv": str(folder / "data" / "train_test_split.csv"),
            "center": 0}}), encoding="utf-8")
    federation = parse_federation({
        "name": "steps", "task": {"image_size": 32}, "store": {"url": store}, "tracking": {"uri": tracking},
        "algorithm": {"method": "fedavg", "rounds": 1, "large_silos": 0}, "runtime": {"threads": 1, "device": "cpu"},
        "silos": [{"name": SILO, "dispatch": {"kind": "process", "silo_config": str(silo_file)}}]}, source="the benchmark")
    path.write_text(federation.to_yaml(), encoding="utf-8")
    Run(open_store(store), RUN).freeze(federation.to_yaml())  # before the first Job, as check does it
    return path, store, silo_file


def figures(repeat: int) -> list[Figure]:
    """Per step: processor seconds, those of its imports, and requests."""
    whole: dict[str, list[float]] = defaultdict(list)
    imports: dict[str, list[float]] = defaultdict(list)
    requests: dict[str, int] = {}
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as scratch, mlflow_server(Path(scratch)) as (address, log):
            for step in steps(*prepared(Path(scratch), address)):
                before = log.read_text(encoding="utf-8").count(_REQUEST)
                whole[step.name].append(processor_seconds(["-m", *step.command]))
                requests[step.name] = log.read_text(encoding="utf-8").count(_REQUEST) - before
                imports[step.name].append(processor_seconds(["-c", _IMPORTS.format(module=step.command[0])]))
    return [figure for name in SHOWN for figure in (
        Figure(name=f"{name}: processor time", value=statistics.median(whole[name]), unit="s",
               yardstick=f"until it has printed its --help {statistics.median(imports[name]):.2f} s", detail=f"quartiles {spread(whole[name])} s"),
        *([Figure(name=f"{name}: requests to MLflow", value=requests[name], unit="")] if requests[name] else []))]


def processor_seconds(arguments: list[str], environment: Mapping[str, str] | None = None) -> float:
    """Of a call of Python and of all processes that it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    run_alone(figures, __doc__, repeat=3)
