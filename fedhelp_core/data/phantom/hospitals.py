"""Drawn hospitals that have no public data set's own layout: their items and datalists. Called by its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from fedhelp_core.data.datalist import manifest_from, write_datalist
from fedhelp_core.data.items import SPLITS, Item


def items_of(counts: Mapping[str, tuple[int, int, int]], item: Callable[[str], Item]) -> dict[str, dict[str, tuple[Item, ...]]]:
    """Hospital -> split -> items, named after the hospital and numbered through; `counts`: images for training, validation and test."""
    hospitals: dict[str, dict[str, tuple[Item, ...]]] = {}
    for hospital, sizes in counts.items():
        numbers = iter(range(sum(sizes)))
        hospitals[hospital] = {
            split: tuple(item(f"{hospital}-{next(numbers):04d}") for _ in range(size)) for split, size in zip(SPLITS, sizes, strict=True)}
    return hospitals


def write_datalists(folder: Path, hospitals: Mapping[str, Mapping[str, tuple[Item, ...]]], classes: tuple[str, ...]) -> None:
    """`<folder>/<hospital>.json` of hospital -> split -> items, all of which lie below `folder`."""
    for hospital, splits in hospitals.items():
        write_datalist(folder / f"{hospital}.json", replace(manifest_from(hospital, splits), classes=classes), root=folder)


def datalist_of(hospital: str) -> dict[str, object]:
    """The `data` section of a drawn hospital's silo.yaml; paths are relative to <demo>/silos."""
    return {"layout": "datalist", "datalist": f"../data/{hospital}.json", "root": "../data"}
