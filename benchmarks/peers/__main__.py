"""NVFLARE's simulator and Flower's simulation on round_control's payload: four clients, identity update, eleven rounds.

    python -m benchmarks.peers [--repeat 3]

The first run makes a virtual environment for each under .cache/peers, versions pinned, from the default package index. The
first round is warm-up. All systems save their model every round. One BLAS thread; telemetry off; else as shipped.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure, run_alone, spread

CLIENTS, ROUNDS = 4, 11
ENVIRONMENTS = Path(".cache/peers")
TIMEOUT_S = 300


@dataclass(frozen=True)
class Peer:
    """One system: what to install, and the script that appends a time to `times` before each round and after the last."""

    name: str
    requirements: tuple[str, ...]
    job: str
    script: str
    times: str


NVFLARE = Peer("nvflare", ("nvflare==2.9.0", "torch==2.15.0"), "nvflare_job", "job.py", "site-1.txt")
FLOWER = Peer("flwr", ("flwr[simulation]==1.41.0", "numpy==2.3.4"), "flower_job", "app.py", "ticks.txt")


def figures(repeat: int) -> list[Figure]:
    """A round, and the end of round 1, of each; a peer that cannot be run says so and is left out."""
    found: list[Figure] = []
    for peer in (FLOWER, NVFLARE):
        try:
            python = environment(peer)
            found += _figures_of(peer, [measure(peer, python) for _ in range(repeat)])
        except (subprocess.SubprocessError, OSError) as e:
            print(f"{peer.name}: could not be measured: {e}", file=sys.stderr)
    return found


def _figures_of(peer: Peer, runs: list[tuple[list[float], float]]) -> list[Figure]:
    rounds = [1000 * seconds for run, _ in runs for seconds in run]
    first = [seconds for _, seconds in runs]
    what = f"{peer.requirements[0]}, simulation"
    return [
        Figure(name=f"{what}: a round", value=statistics.median(rounds), unit="ms",
               detail=f"quartiles {spread(rounds)} ms, medians by run {', '.join(f'{1000 * statistics.median(run):.0f}' for run, _ in runs)}"),
        Figure(name=f"{what}: command to end of round 1", value=statistics.median(first), unit="s",
               detail=f"by run {', '.join(f'{seconds:.1f}' for seconds in first)} s"),
    ]


def measure(peer: Peer, python: Path) -> tuple[list[float], float]:
    """(seconds of each round after the first, seconds from the command to the end of round 1).

    Raises:
        CalledProcessError, TimeoutExpired: its last messages are on standard error.
    """
    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as folder:
        job = shutil.copytree(Path(__file__).with_name(peer.job), Path(folder) / "job")
        started = time.time()
        run_to_its_end([str(python.absolute()), peer.script, str(CLIENTS), str(ROUNDS), folder], cwd=job, folder=Path(folder))
        times = [float(line) for line in (Path(folder) / peer.times).read_text(encoding="utf-8").split()]
    return [after - before for before, after in itertools.pairwise(times[1:])], times[1] - started


def run_to_its_end(command: list[str], *, cwd: Path, folder: Path, timeout: float = TIMEOUT_S, **variables: str) -> None:
    """`command` with a log in `folder`, to its end; then its whole process group is gone. `variables`: of its environment.

    Raises:
        CalledProcessError, TimeoutExpired: its last messages are on standard error.
    """
    environment = os.environ | variables | {
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0", "FLWR_HOME": str(folder / "flwr"), "PATH": f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}"}
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout=timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        print(log.read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr)
        raise subprocess.CalledProcessError(code, command)


def environment(peer: Peer) -> Path:
    """The Python of the peer's environment, which is made if it is not there with these very versions."""
    folder = ENVIRONMENTS / peer.name
    python, mark = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(peer.requirements)
    if mark.exists() and mark.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {' '.join(peer.requirements)} under {folder}", file=sys.stderr, flush=True)
    uv = shutil.which("uv") or (".uv/bin/uv" if Path(".uv/bin/uv").exists() else None)
    shutil.rmtree(folder, ignore_errors=True)
    if uv is not None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        subprocess.run([uv, "venv", "--quiet", "--python", version, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *peer.requirements], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *peer.requirements], check=True)
    mark.write_text(wanted, encoding="utf-8")
    return python


if __name__ == "__main__":
    run_alone(figures, __doc__, repeat=3)
