"""Supervise one silo's work for all rounds: start it, restart it after retryable ends, say why it was left out.

    python -m fedhelp_components.silo_training --store URL --run RUN --silo NAME

Runs beside `aggregation`; the two meet in the store.
"""

from __future__ import annotations

from fedhelp_components.session import dispatcher_for, open_session, run_component, say
from fedhelp_core.errors import ConfigError
from fedhelp_dispatch.supervisor import Supervisor, watch_one


def run(*, store: str, endpoint_url: str, run_id: str, silo: str, fixed_node: bool = False) -> str:
    """'trained', or 'left out: ' and the reason: a silo that the quorum can do without does not fail the run.

    `fixed_node`: the graph has a node for this silo whatever file the run names, so that the silo may be none of the run's.

    Raises:
        ConfigError: the silo is none of the run's.
        RunAborted: the run was ended for everyone.
    """
    session = open_session(store, run_id, endpoint_url)
    entry = next((s for s in session.federation.silos if s.name == silo), None)
    if entry is None and fixed_node:
        return f"not in this run: its federation.yaml lists {', '.join(session.federation.silo_names)}"
    if entry is None:
        raise ConfigError(f"silo {silo!r} is not in run {run_id!r}; its silos are {', '.join(session.federation.silo_names)}")
    dispatcher = dispatcher_for(session.federation, run_id)
    supervisor = Supervisor(entry, session.federation, session.run, dispatcher, say)
    try:
        watch_one(supervisor, silo, session.federation, session.run, say)
    finally:
        supervisor.stop()
        dispatcher.close()
    return f"left out: {supervisor.failure}" if supervisor.failure else "trained"


if __name__ == "__main__":
    run_component("silo_training", __doc__, run, silo="the silo's name in federation.yaml")
