"""`fedhelp softlabels show`: what is in a distillation set, as text. Called by main.py; the run's report shows the same with pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from fedhelp_core.config.federation import load_federation
from fedhelp_core.errors import ConfigError, NotFound
from fedhelp_core.printable import printable
from fedhelp_core.protocol.facts import SoftLabels
from fedhelp_core.protocol.run import Run
from fedhelp_core.softlabels.distillation_set import known_sets
from fedhelp_core.softlabels.summary import SetSummary, summarise
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store

_BARS, _WIDTH = 12, 40  # of the histogram
_CLASSES_SHOWN = 30


def show_set(path: Path, *, run_id: str | None, sha256: str | None, examples: int) -> None:
    """Print the set `sha256`, or that of run `run_id`, or the only one in the federation's store.

    Raises:
        NotFound: there is none.
        ConfigError: there are several, and none was named.
        DataError: a file is damaged or forged.
    """
    federation = load_federation(path)
    store = open_store(federation.store.url, endpoint_url=federation.store.endpoint_url)
    found = summarise(store, chosen_set(store, run_id, sha256), examples=examples)
    console = Console(width=None if Console().is_terminal else 120)
    for part in _parts(found):
        console.print(part, highlight=False, markup=False) if isinstance(part, str) else console.print(part)


def chosen_set(store: Store, run_id: str | None, sha256: str | None) -> str:
    """The sha256 of the set that is meant; `sha256` may be its beginning.

    Raises:
        NotFound: there is none.
        ConfigError: several could be meant.
    """
    if run_id is not None:
        return Run(store, run_id).fact(SoftLabels).sha256
    sets = [name for name in known_sets(store) if name.startswith(sha256 or "")]
    if not sets:
        named = f" that begins with {sha256}" if sha256 else ""
        raise NotFound(f"{store.url}: holds no distillation set{named}; soft_label_prefetch, a part of `fedhelp run`, makes one")
    if len(sets) > 1:
        listed = ", ".join(name[:12] for name in sets)
        raise ConfigError(f"{store.url}: holds {len(sets)} distillation sets, {listed}; name one with --set or --run-id")
    return sets[0]


def _parts(found: SetSummary) -> Iterator[str | Table]:
    yield f"distillation set {found.sha256}"
    sides, what = " x ".join(map(str, found.image_sides)), "foregrounds" if found.masks else "classes"
    yield f"{found.images:,} public images of {sides} {'voxels' if len(found.image_sides) == 3 else 'pixels'}, {len(found.classes)} {what}"
    yield from (f"teacher {name}: {share:.0%} of every answer" for name, share in found.teachers)
    yield _classes(found)
    yield f"Entropy of an answer in nats (0: certain, {math.log(len(found.classes)):.2f}: no opinion)"
    yield histogram(found)
    yield _examples(found)
    if found.agreements:
        yield _agreements(found)
    elif len(found.teachers) > 1:
        yield "How far the teachers agree is not known: the ledger no longer has all of their answers."


def histogram(found: SetSummary) -> str:
    """Entropies from none to the most there can be, a line a bar."""
    top = found.most_entropy
    counts, edges = np.histogram(np.clip(found.entropies_N, 0.0, top), bins=_BARS, range=(0.0, top))
    most = max(int(counts.max()), 1)
    return "\n".join(f"  {low:5.2f} {'#' * math.ceil(_WIDTH * count / most):{_WIDTH}} {count:,}" for count, low in zip(counts, edges, strict=False))


def _classes(found: SetSummary) -> Table:
    table = Table("class of the teacher", box=box.SIMPLE_HEAD)
    for heading in ("images that favour it", "mean probability"):
        table.add_column(heading, justify="right")
    order = sorted(range(len(found.classes)), key=lambda c: -found.favourites_C[c])
    for c in order[:_CLASSES_SHOWN]:
        table.add_row(_printable(found.classes[c]), f"{found.favourites_C[c]:,}", f"{found.mean_C[c]:.3f}")
    if len(order) > _CLASSES_SHOWN:
        table.add_row(f"{len(order) - _CLASSES_SHOWN} more", f"{sum(found.favourites_C[c] for c in order[_CLASSES_SHOWN:]):,}", "")
    return table


def _examples(found: SetSummary) -> Table:
    table = Table("image (sha256)", "likeliest classes", box=box.SIMPLE_HEAD)
    for example in found.examples:
        table.add_row(example.sha256[:16], ", ".join(f"{_printable(name)} {probability:.2f}" for name, probability in example.favourites))
    return table


def _agreements(found: SetSummary) -> Table:
    table = Table("teacher", "and", box=box.SIMPLE_HEAD)
    for heading in ("same favourite", "divergence (nats, 0 to 0.69)"):
        table.add_column(heading, justify="right")
    for pair in found.agreements:
        table.add_row(pair.one, pair.other, f"{pair.same_favourite:.1%}", f"{pair.divergence:.3f}")
    return table


def _printable(text: str) -> str:
    """For a terminal, and without what rich would take for markup."""
    return printable(text).replace("[", "\\[")
