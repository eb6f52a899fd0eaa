"""Say which hospitals missed rounds or the evaluation, and why, on a page of their own.

    python -m fedhelp_components.left_out --store URL --run RUN --silos NAMES

Evaluation found that out; a run whose hospitals all took part in everything has no such step.
"""

from __future__ import annotations

from pathlib import Path

from fedhelp_components.session import open_session, run_component, say
from fedhelp_core.protocol.facts import LeftOut


def run(*, store: str, endpoint_url: str, run_id: str, silos: str, reasons_file: str = "") -> str:
    """'left out: ' and `silos`, their names; a table of reasons in `reasons_file`."""
    missed = open_session(store, run_id, endpoint_url).run.fact(LeftOut).root
    for silo, reason in missed.items():
        say(f"silo {silo}: {reason}")
    if reasons_file:
        rows = [f"| {silo} | {_in_a_cell(reason)} |" for silo, reason in missed.items()]
        Path(reasons_file).write_text("\n".join(["| silo | left out |", "| --- | --- |", *rows]) + "\n", encoding="utf-8")
    return f"left out: {silos}"


def _in_a_cell(text: str) -> str:
    """As one cell of a Markdown table; a reason is in the words of a silo, and no markup."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|!" else letter for letter in text)
    return " ".join(escaped.split())


if __name__ == "__main__":
    run_component("left_out", __doc__, run, silos="names of the silos, as evaluation printed them", reasons_file="[where to write the table]")
