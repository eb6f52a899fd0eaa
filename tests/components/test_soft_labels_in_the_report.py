"""What the report shows of a distillation set: evaluation keeps it beside the run, the hub's promotion reads only that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedhelp_components.evaluation.report import facts_of_run
from fedhelp_components.evaluation.soft_labels import keep_summary
from fedhelp_components.soft_label_prefetch.__main__ import run as prefetch
from fedhelp_core.softlabels.summary import summarise
from fedhelp_core.store.open import open_store
from tests.tiny import TinyFederation


def test_the_kept_summary_is_the_sets(make_tiny: Callable[..., TinyFederation]) -> None:
    tiny = make_tiny()
    federation, store = tiny.load(), open_store(str(tiny.store))
    tiny.run("r").freeze(federation.to_yaml())
    sha256 = prefetch(store=str(tiny.store), endpoint_url="", run_id="r")
    before = facts_of_run(store, "r", federation).soft_labels

    keep_summary(tiny.run("r"))

    shown, wanted = facts_of_run(store, "r", federation).soft_labels, summarise(store, sha256, examples=12)
    assert before is not None and shown is not None
    assert (before.images, before.examples) == (12, ())
    assert shown.favourites == tuple(zip(wanted.classes, wanted.favourites_C, wanted.mean_C, strict=True))
    assert np.allclose(shown.entropies, wanted.entropies_N, atol=1e-4)
    assert len(shown.examples) == len(wanted.examples) == 12
    assert all((one.image_HWC == other.image_HWC).all() and one.favourites == other.favourites for one, other in zip(
        shown.examples, wanted.examples, strict=True))
