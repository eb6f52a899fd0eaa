"""What every hub-side component opens first: the store, the run and its frozen federation. Called by the `__main__`s."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fedhelp_core.config.federation import Federation, federation_in
from fedhelp_core.config.trust import require_trusted
from fedhelp_core.printable import printable
from fedhelp_core.processes import exit_code_of
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from fedhelp_core.tracking.server import is_server, tracking_uri
from fedhelp_dispatch.request import Dispatcher
from fedhelp_dispatch.routing import RoutingDispatcher


@dataclass(frozen=True)
class Session:
    """A run that exists in a store."""

    store: Store
    run: Run
    federation: Federation


def open_session(store_url: str, run_id: str, endpoint_url: str = "") -> Session:
    """The run `run_id` in the store.

    Raises:
        NotFound: check has not frozen this run's federation yet.
        ConfigError: it names what this hub does not trust.
    """
    store = open_store(store_url, endpoint_url=endpoint_url or None)
    run = Run(store, run_id)
    federation = federation_in(run.federation_yaml(), source=f"run {run_id}'s federation.yaml")
    require_trusted(federation)
    return Session(store, run, federation)


def dispatcher_for(federation: Federation, run_id: str) -> Dispatcher:
    """The dispatcher of this federation's silos."""
    return RoutingDispatcher(run_id, logs_folder(federation, run_id))


def logs_folder(federation: Federation, run_id: str) -> Path:
    """Where this machine keeps the workers' logs of a run: beside a local store, else in $FEDHELP_LOGS or the working folder."""
    store = federation.store.folder
    return (Path(os.environ.get("FEDHELP_LOGS", "fedhelp-logs")) if store is None else store / "logs") / run_id


@contextmanager
def ends_in_mlflow(federation: Federation, run_id: str) -> Iterator[None]:
    """A run that an error or a signal ends in here has ended in MLflow's server, too; aggregation sees to that itself."""
    try:
        yield
    except BaseException as e:
        if is_server(tracking_uri(federation)):
            from fedhelp_core.tracking.runs import end_run

            end_run(federation, run_id, "FAILED" if isinstance(e, Exception) else "KILLED")
        raise


def say(message: str) -> None:
    """One line of progress for people."""
    print(printable(message), flush=True)


def run_component(
    component: str, description: str | None, run: Callable[..., Any], *, told: Callable[[Any], str] | None = str, **options: str,
) -> NoReturn:
    """The `__main__` of a component after check: call `run` with the command line's arguments, and print what is `told` of what it gives.

    `options`: those that this component takes beside the store and the run, and their help; one in brackets need not be given.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m fedhelp_components.{component}", description=(description or "").split("\n\n")[0],
        epilog="Exit codes: 0 done; 10-19 permanent, 30-39 worth trying again (docs/exit-codes.md).")
    parser.add_argument("--store", required=True, help="folder, file:///folder or s3://bucket/prefix")
    parser.add_argument("--run", required=True, dest="run_id", metavar="RUN", help="run id, as check made it")
    parser.add_argument("--endpoint-url", default="", help="S3 endpoint other than AWS; credentials come from the environment")
    for name, text in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", required=not text.startswith("["), default="", help=text.strip("[]"))
    given = vars(parser.parse_args())

    def work() -> None:
        found = run(**given)
        if told is not None:
            say(told(found))

    end(component, work)


def end(component: str, function: Callable[[], object]) -> NoReturn:
    """Run a component's `__main__`."""
    sys.exit(exit_code_of(function, program=component))
