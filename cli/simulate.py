"""`fedhelp simulate`: a study in this process, its tables and figures. Called by main.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedhelp_core.config.federation import Federation

_console = Console(stderr=True)


def simulate_and_print(
    federation: Federation, *, methods: Sequence[str], seeds: Sequence[int], normalisations: Sequence[str], workers: int,
    evaluate_every: int, out: Path, dry_run: bool,
) -> None:
    """Compute what `out` lacks of the study; print the tables, and the paths of all that was written.

    Raises:
        ConfigError: an unknown method or normalisation, or silos whose data is not on this machine.
    """
    from fedhelp_core.study.study import planned_cells

    cells = planned_cells(methods, seeds, normalisations)
    if dry_run:
        for cell in cells:
            _console.print(f"{cell.method}, normalisation {cell.normalisation}, seed {cell.seed}", highlight=False)
        _console.print(f"{len(cells)} simulations of {federation.algorithm.rounds} rounds, {len(federation.silos)} silos; results under {out}")
        return
    from fedhelp_core.study.figures import write_figures
    from fedhelp_core.study.study import run_study
    from fedhelp_core.study.table import terminal_tables, write_tables

    result = run_study(
        federation, methods=methods, seeds=seeds, normalisations=normalisations, out=out, workers=workers, evaluate_every=evaluate_every,
        console=_console)
    printed = Console(width=None if _console.is_terminal else 160)
    for table in terminal_tables(result):
        printed.print(table)
    for path in [*write_tables(result, out), *write_figures(result, out)]:
        printed.print(f"  {path}", highlight=False)
