"""`fedhelp simulate`: a study in this process, its tables and figures. Called by main.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from fedhelp_cli.commands import print_json, warn
from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import FedHelpError
from fedhelp_core.store.open import open_store

if TYPE_CHECKING:
    from fedhelp_core.study.study import Cell, StudyResult

_console = Console(stderr=True)


def simulate_and_print(
    federation: Federation, *, methods: Sequence[str], seeds: Sequence[int], normalisations: Sequence[str], workers: int,
    evaluate_every: int, out: Path, dry_run: bool, as_json: bool,
) -> None:
    """Compute what `out` lacks of the study; print the tables, and the paths of all that was written.

    Raises:
        ConfigError: an unknown method or normalisation, or silos whose data is not on this machine.
    """
    from fedhelp_core.study.study import planned_cells

    cells = planned_cells(methods, seeds, normalisations)
    if dry_run:
        _print_plan(federation, cells, out, as_json)
        return
    from fedhelp_core.study.figures import has_curves, write_figures
    from fedhelp_core.study.study import run_study
    from fedhelp_core.study.table import rows_of, terminal_tables, write_tables

    result = run_study(
        federation, methods=methods, seeds=seeds, normalisations=normalisations, out=out, workers=workers, evaluate_every=evaluate_every,
        console=_console)
    _tell_reports(federation, result)
    written = [*write_tables(result, out), *write_figures(result, out)]
    if not has_curves(result):
        warn("simulate", f"no rounds.png: of these {federation.algorithm.rounds} rounds the last alone was scored;"
                         " --evaluate-every 1 scores all of them")
    if as_json:
        print_json({"metric": result.headline.name, "seeds": list(seeds), "rows": [asdict(row) for row in rows_of(result)],
                    "files": [str(path) for path in written]})
        return
    printed = Console(width=None if _console.is_terminal else 160)
    for table in terminal_tables(result):
        printed.print(table)
    for path in written:
        printed.print(Text(f"  {path}", style=f"link {path.resolve().as_uri()}"), soft_wrap=True)


def _print_plan(federation: Federation, cells: Sequence[Cell], out: Path, as_json: bool) -> None:
    if as_json:
        print_json({"cells": [asdict(cell) for cell in cells], "rounds": federation.algorithm.rounds, "out": str(out)})
        return
    for cell in cells:
        _console.print(f"{cell.method}, normalisation {cell.normalisation}, seed {cell.seed}", highlight=False)
    _console.print(f"{len(cells)} simulations of {federation.algorithm.rounds} rounds, {len(federation.silos)} silos; results under {out}")


def _tell_reports(federation: Federation, result: StudyResult) -> None:
    """Reports of runs with these settings show the study from now on; without a store to write to it is none the worse."""
    from fedhelp_core.study.for_reports import record_study

    try:
        record_study(open_store(federation.store.url, endpoint_url=federation.store.endpoint_url), federation, result)
    except FedHelpError as e:
        warn("simulate", f"reports of runs do not show this study: {e}")
