"""`fedhelp open`: a run's report, or MLflow, in a browser where there is one; else the address is printed. Called by main.py and run.py."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

from fedhelp_cli.commands import quoted
from fedhelp_core.config.federation import load_federation
from fedhelp_core.errors import JobFailed, NotFound
from fedhelp_core.printable import without_passwords
from fedhelp_core.protocol.keys import NAME, RUNS, RunKeys, run_of_report
from fedhelp_core.protocol.run import Run
from fedhelp_core.proxies import opener_for
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from fedhelp_core.tracking.server import is_server, tracking_uri

_STARTS = 180.0  # seconds that MLflow's own server gets to answer: it needs ten, and many times that on a busy machine
_PLACES = ("federation.yaml", "demo/federation.yaml")  # where one is looked for when none is given: here, and where `make run` puts it


def open_report(what: Path | None, run_id: str | None) -> None:
    """Show the report of run `run_id` of the federation at `what` (a file, or its folder); None: of the newest run that has one.

    `what` may be the run's id itself, of the federation that is found here.

    Raises:
        NotFound: no federation, no such run, or none with a report.
    """
    if what is not None and run_id is None and re.fullmatch(NAME, str(what)) and not what.exists():
        what, run_id = None, str(what)
    path = federation_file(what)
    federation = load_federation(path)
    store = open_store(federation.store.url, endpoint_url=federation.store.endpoint_url)
    run = run_id or _newest_with_report(store)
    if run is None or store.size(RunKeys(run).report) is None:
        said = f"run {run_id!r} has no report" if run_id else "no run has a report"
        raise NotFound(f"{federation.store.url}: {said} yet; make one with: fedhelp run {quoted(path)}")
    show(local_report(store, run).as_uri(), f"report of run {run}")


def open_mlflow(what: Path | None) -> None:
    """Show MLflow: the federation's server, or one on this machine over its file, which runs until Ctrl-C.

    Raises:
        NotFound: no federation.
        JobFailed: MLflow does not start.
    """
    federation = load_federation(federation_file(what))
    uri = tracking_uri(federation)
    if is_server(uri):
        show(without_passwords(uri), "MLflow")
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).parent / "mlflow"), "ui", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    quiet = subprocess.DEVNULL
    print("MLflow is starting", flush=True)
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True) as server:
        try:
            _wait_for(address, server)
            show(address, "MLflow")
            print("Ctrl-C ends it", flush=True)
            server.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)  # its workers, too


def federation_file(what: Path | None) -> Path:
    """The federation.yaml that `what` names: itself, or the one in the folder; None: the one here, or the demo's.

    Raises:
        NotFound: there is none.
    """
    if what is None:
        found = next((Path(place) for place in _PLACES if Path(place).exists()), None)
        if found is None:
            raise NotFound(f"neither {' nor '.join(_PLACES)} is here; name a federation.yaml, or its folder")
        return found
    return what / "federation.yaml" if what.is_dir() else what


def local_report(store: Store, run_id: str) -> Path:
    """The report as a file that stays: in a folder the object itself, of a bucket a copy below fedhelp-runs/."""
    found = store.fetch(RunKeys(run_id).report)
    if store.is_local:
        return found.resolve()
    kept = Path("fedhelp-runs") / run_id / "report.html"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found, kept)
    store.release(found)
    return kept.resolve()


def show(address: str, what: str) -> None:
    """In a browser, or as an address to be opened by hand."""
    found = browser()
    if found is not None and found.open(address):
        print(f"{what}: opened {address}")
    else:
        print(f"{what}: {address}  (no browser here; open it where there is one)")


def browser() -> webbrowser.BaseBrowser | None:
    """The user's graphical browser, or what $BROWSER names; a text browser would take this terminal over."""
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        return None
    try:
        return webbrowser.get()
    except webbrowser.Error:
        return None


def _newest_with_report(store: Store) -> str | None:
    """The run whose report belongs to the newest commit."""
    runs = [run for run in map(run_of_report, store.list(RUNS)) if run is not None]
    made = {run: commit.created for run in runs if (commit := Run(store, run).latest_commit()) is not None}
    return max(made, key=lambda run: made[run], default=None)


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _STARTS
    while True:
        try:
            with opener_for(address).open(f"{address}/health", timeout=5):
                return
        except (URLError, OSError):
            if server.poll() is not None or time.monotonic() > until:
                raise JobFailed(f"MLflow does not answer at {address}; start it by hand and read what it says: mlflow ui --help") from None
            time.sleep(0.2)
