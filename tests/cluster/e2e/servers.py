"""The servers that a federation needs and that are no Kubernetes: an S3 object store and MLflow, real ones, on this machine."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.cluster.processes import Processes, free_ports


def start_s3(processes: Processes, bucket: str) -> int:
    """Start an S3 server that pods reach too, with `bucket` in it; its port."""
    port = free_ports(1)[0]
    processes.start("s3", [Path(sys.executable).with_name("moto_server"), "-H", "0.0.0.0", "-p", str(port)],
        {"S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"})  # it would take `host` of host.fedhelp.test for a bucket
    processes.wait("s3", lambda: _answers(f"http://127.0.0.1:{port}/moto-api/"), 60)
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT"), timeout=10).close()
    return port


def start_mlflow(processes: Processes, folder: Path) -> int:
    """Start an MLflow server that pods reach too and that keeps their artifacts; its port."""
    port = free_ports(1)[0]
    processes.start("mlflow", [
        sys.executable, "-m", "mlflow", "server", "--host", "0.0.0.0", "--port", str(port), "--workers", "1", "--allowed-hosts", "*",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts")],
        {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})  # else it starts processes that nobody needs here
    processes.wait("mlflow", lambda: _answers(f"http://127.0.0.1:{port}/health"), 600)
    return port


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
