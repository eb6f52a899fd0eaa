"""The distillation set in numbers and examples, kept beside the run, so that the hub's report shows it without reading the set.

Called by evaluation, whose image has what reading a set needs; report.py reads what is kept.
"""

from __future__ import annotations

from fedhelp_components.session import say
from fedhelp_core.errors import FedHelpError, NotFound
from fedhelp_core.protocol.facts import SoftLabels, SoftLabelSummary, SummaryExample
from fedhelp_core.protocol.run import Run
from fedhelp_core.softlabels.summary import summarise

_EXAMPLES = 12


def keep_summary(run: Run) -> None:
    """Write what the report shows of the run's distillation set, once; nothing where it has none or the set cannot be read."""
    if run.has_fact(SoftLabelSummary):
        return  # an evaluation that goes on where it was
    try:
        found = summarise(run.store, run.fact(SoftLabels).sha256, examples=_EXAMPLES)
    except NotFound:
        return
    except FedHelpError as e:
        say(f"the report shows nothing of the distillation set: {e}")
        return
    run.settle(SoftLabelSummary(
        teachers=tuple(name for name, _ in found.teachers), entropies=tuple(round(float(value), 5) for value in found.entropies_N),
        most_entropy=found.most_entropy, favourites=tuple(zip(found.classes, found.favourites_C, found.mean_C, strict=True)),
        agreements=tuple((a.one, a.other, a.same_favourite, a.divergence) for a in found.agreements),
        examples=tuple(SummaryExample.of(example.image_HWC, example.favourites) for example in found.examples)))
