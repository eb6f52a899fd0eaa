"""The distillation set in numbers and examples, kept beside the run, so that the hub's report shows it without reading the set.

Called by evaluation, whose image has what reading a set needs; report.py reads what is kept.
"""

from __future__ import annotations

import base64
import json

from fedhelp_components.session import say
from fedhelp_core.errors import FedHelpError, NotFound
from fedhelp_core.protocol.facts import read_fact
from fedhelp_core.protocol.keys import RunKeys
from fedhelp_core.softlabels.report import FACT
from fedhelp_core.softlabels.summary import Example, summarise
from fedhelp_core.store.base import Store

_EXAMPLES = 12


def keep_summary(store: Store, run_id: str) -> None:
    """Write what the report shows of the run's distillation set, once; nothing where it has none or the set cannot be read."""
    key = RunKeys(run_id).soft_label_summary
    if store.size(key) is not None:
        return  # an evaluation that goes on where it was
    try:
        sha256 = str(read_fact(store, run_id, FACT)["sha256"])
        found = summarise(store, sha256, examples=_EXAMPLES)
    except NotFound:
        return
    except FedHelpError as e:
        say(f"the report shows nothing of the distillation set: {e}")
        return
    document = {
        "teachers": [name for name, _ in found.teachers], "entropies": [round(float(value), 5) for value in found.entropies_N],
        "most_entropy": found.most_entropy, "favourites": list(zip(found.classes, found.favourites_C, found.mean_C, strict=True)),
        "agreements": [(a.one, a.other, a.same_favourite, a.divergence) for a in found.agreements],
        "examples": [_example(example) for example in found.examples]}
    store.put_new(key, json.dumps(document).encode())


def _example(example: Example) -> dict[str, object]:
    """Pixels as base64 of their bytes."""
    return {
        "shape": list(example.image_HWC.shape), "pixels": base64.b64encode(example.image_HWC.tobytes()).decode(),
        "favourites": list(example.favourites)}
