"""The process that works inside a hospital: checks data, trains rounds, evaluates models.

    python -m fedhelp_dispatch.worker train --run RUN --store URL --silo-config silo.yaml

Started by a dispatcher: as a forked process, or as the container of a Job made from the hospital's own template. It prints
one JSON object a line (round_started, progress, round_finished) and ends with an exit code of fedhelp_core.errors. What it says of an error is what
may leave the hospital; the rest is in its own log (fedhelp_core/silo/disclosure.py).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fedhelp_core import telemetry
from fedhelp_core.config.silo import load_silo
from fedhelp_core.crashes import crashes_kept_in
from fedhelp_core.places import require_temporary_folder
from fedhelp_core.processes import exit_code_of
from fedhelp_core.protocol.lease import end_without_hub
from fedhelp_core.silo.disclosure import Disclosure
from fedhelp_core.silo.work import open_silo
from fedhelp_core.store.open import open_store
from fedhelp_dispatch.request import SILO_CONFIG_VARIABLE


def parser() -> argparse.ArgumentParser:
    """The worker's command line."""
    parser = argparse.ArgumentParser(
        prog="fedhelp-worker", description="A silo's side of a federated run. Started by the hub's dispatcher, or by hand to look for a fault.")
    parser.add_argument(
        "action", choices=["check", "train", "evaluate"], help="check: decode and count the data; train: answer rounds; evaluate: score")
    parser.add_argument("--run", required=True, help="run id")
    parser.add_argument("--store", required=True, help="where the run's objects are: a folder, file:///folder or s3://bucket/prefix")
    parser.add_argument("--endpoint-url", help="S3 endpoint other than AWS")
    configured = os.environ.get(SILO_CONFIG_VARIABLE)
    parser.add_argument(
        "--silo-config", required=not configured, default=configured, type=Path, help=f"this hospital's silo.yaml (default: ${SILO_CONFIG_VARIABLE})")
    parser.add_argument("--round", type=int, help="train: answer this round only, then end (default: all rounds that are left)")
    parser.add_argument("--lease", type=float, metavar="SECONDS", help="end after so long without a sign of the hub (default: never)")
    return parser


def main(argv: Sequence[str] | None = None, *, own_machine: bool = False) -> int:
    """Parse, read, call, end. `own_machine`: whoever started this process may see everything that it says."""
    arguments = parser().parse_args(argv)
    program = f"fedhelp-worker {arguments.action}"
    with Disclosure(program, own_machine=own_machine) as disclosure:
        return exit_code_of(lambda: _work(arguments, disclosure), program=program, say=disclosure.error)


def _work(arguments: argparse.Namespace, disclosure: Disclosure) -> None:
    config = load_silo(arguments.silo_config)
    disclosure.belongs_to(config)
    served = telemetry.serve_if_configured() is not None

    def on_event(event: dict[str, object]) -> None:
        disclosure.event(event)
        if served and event["event"] == "round_finished":
            telemetry.round_finished(event)

    store = open_store(arguments.store, endpoint_url=arguments.endpoint_url)
    require_temporary_folder(config.state / "tmp")
    if arguments.lease is not None:
        end_without_hub(store, arguments.run, config.name, arguments.lease, disclosure.error)
    with crashes_kept_in(config.state / "crashes", f"fedhelp-worker {arguments.action}"):
        silo = open_silo(config, store, arguments.run, on_event=on_event)
        if arguments.action == "check":
            disclosure.event({"event": "checked", **asdict(silo.check())})
        elif arguments.action == "train":
            silo.train(last_round=silo.federation.algorithm.rounds, only=arguments.round)
        else:
            disclosure.event({"event": "evaluated", **{k: v for k, v in asdict(silo.evaluate()).items() if k != "models"}})


if __name__ == "__main__":
    sys.exit(main())
