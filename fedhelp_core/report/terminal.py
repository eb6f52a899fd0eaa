"""The closing table of a run for a terminal. Called by `fedhelp run`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from fedhelp_core.printable import printable
from fedhelp_core.report.facts import ReportFacts, SiloScores
from fedhelp_core.report.text import LONGEST, count, number

_LONGEST_NAME = 80  # characters


def render_summary_table(facts: ReportFacts) -> Table:
    """Final scores by silo, their means and the worst silo. Text from silos is never read as markup."""
    metric, rank = facts.headline, facts.beside
    table = Table(title=Text(f"{facts.federation} · {facts.method} · {metric.label}"), show_footer=False)
    for heading in ("silo", "kind", "training images", "deployed", *([rank.label] if rank is not None else []), "proxy"):
        table.add_column(heading, justify="left" if heading in ("silo", "kind") else "right")
    for silo in facts.silos:
        scores = facts.scores.get(silo.name, SiloScores(models={}))
        table.add_row(
            Text(printable(silo.name, _LONGEST_NAME)), facts.kind(silo), count(silo.training_samples), number(scores.deployed(metric.name)),
            *([number(scores.deployed(rank.name))] if rank is not None else []), number(scores.proxy(metric.name)))
    table.add_section()
    worst, worst_score = facts.worst_silo()
    table.add_row("small silos, mean", "", "", number(facts.small_silos_mean()), *_means(facts, "small"), style="bold")
    if any(silo.kind == "large" for silo in facts.silos):
        table.add_row("large silos, mean", "", "", number(facts.large_silos_mean()), *_means(facts, "large"))
    table.add_row("all silos, mean", "", "", number(facts.all_silos_mean()), *_means(facts))
    table.add_row(Text(f"worst silo: {printable(worst, _LONGEST_NAME) or '–'}"), "", "", number(worst_score), style="bold")
    if advice := facts.advice():
        table.caption, table.caption_justify = Text(printable(advice, LONGEST)), "left"
    return table


def _means(facts: ReportFacts, *kinds: str) -> list[str]:
    """The mean over silos of `kinds` by the score that stands beside the main one, where there is one."""
    return [] if facts.beside is None else [number(facts.mean_of(facts.beside, *kinds))]
