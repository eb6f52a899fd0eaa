"""Pipeline `fedhelp-compact` as plain calls: the components' own functions, one after another, in this process. Called by `fedhelp run`.

The same functions in the same order as the graph in graphs.py, so the model is the same to the bit; tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedhelp_components.check.__main__ import start
from fedhelp_components.evaluation.__main__ import run as evaluate
from fedhelp_components.federation.__main__ import run as federate
from fedhelp_components.left_out.__main__ import run as tell_left_out
from fedhelp_components.promotion.__main__ import run as decide
from fedhelp_components.soft_label_prefetch.__main__ import run as ask_teachers
from fedhelp_core.config.federation import Federation


def run_in_process(federation: Federation, run_id: str, artifacts: Path) -> str:
    """Run the pipeline for `federation`; what promotion decided. Progress and report lie under `artifacts`.

    Raises:
        FedHelpError: as the component that failed said it, with a note that names the component.
    """
    artifacts.mkdir(parents=True, exist_ok=True)
    with _named("check"):
        checked = start(federation, run_id)
    where = {"store": checked.store, "endpoint_url": checked.endpoint_url, "run_id": checked.run}
    with _named("soft_label_prefetch"):
        ask_teachers(**where)
    with _named("federation"):
        federate(**where, progress_file=str(artifacts / "progress.md"))
    with _named("evaluation"):
        evaluated = evaluate(**where, report_file=str(artifacts / "report.html"))
    if evaluated.left_out:
        with _named("left_out"):
            tell_left_out(**where, silos=", ".join(evaluated.left_out), reasons_file=str(artifacts / "left_out.md"))
    with _named("promotion"):
        return decide(**where, model_version=evaluated.model_version)


@contextmanager
def _named(component: str) -> Iterator[None]:
    try:
        yield
    except Exception as e:
        e.add_note(f"component {component} failed")
        raise
