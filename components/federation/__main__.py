"""All rounds in one process: every silo supervised, every round aggregated.

    python -m fedhelp_components.federation --store URL --run RUN
"""

from __future__ import annotations

from fedhelp_components.aggregation.__main__ import close_rounds
from fedhelp_components.session import dispatcher_for, open_session, run_component, say
from fedhelp_core.errors import RunAborted
from fedhelp_dispatch.supervisor import Supervisor, SupervisorThread


def run(*, store: str, endpoint_url: str, run_id: str, progress_file: str = "") -> str:
    """sha256 of the final global model.

    Raises:
        QuorumLost: a round had fewer updates than min_silos.
    """
    session = open_session(store, run_id, endpoint_url)
    dispatcher = dispatcher_for(session.federation, run_id)
    supervisors = [Supervisor(silo, session.federation, session.run, dispatcher, say) for silo in session.federation.silos]
    thread = SupervisorThread(supervisors, session.federation, session.run, say)
    try:
        with thread:
            return close_rounds(session, progress_file=progress_file).global_sha256
    except RunAborted as e:
        raise thread.error or e from e
    finally:
        dispatcher.close()


if __name__ == "__main__":
    run_component("federation", __doc__, run)
