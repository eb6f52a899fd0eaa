"""A public data set, or a hospital's own list, as a checked MONAI datalist for each silo. Called by `fedhelp data ingest`.

    <out>/datalists/<silo>.json    what silo.yaml's layout `datalist` reads, and MONAI's load_decathlon_datalist
    <out>/silos/<silo>.yaml        a silo.yaml that uses it; state under <out>/silos/<silo>/
    <out>/report.json, report.html counts, sizes, intensities, duplicates, files that cannot be used
    <out>/pictures/<silo>.html     the first and the strangest images as the network will see them

Every image is opened, unless a sample was asked for. What cannot be used, and what is in training and in test alike, is refused unless the
caller said to leave it out; the report is written all the same, for people to look.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fedhelp_core.config.silo import DatalistData, SiloConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.datalist import Manifest, manifest_from, manifest_of, require_usable, write_datalist
from fedhelp_core.data.findings import DataReport
from fedhelp_core.data.inspection import look_at
from fedhelp_core.data.items import Item
from fedhelp_core.data.leakage import Group, Place, Side, dropped_from, groups_of
from fedhelp_core.data.problems import told
from fedhelp_core.data.public_layouts import Hospital
from fedhelp_core.data.reading import bits_in_use
from fedhelp_core.disk import disk_errors
from fedhelp_core.errors import ConfigError, DataError

_THUMBNAILS = 8  # a silo
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Ingested:
    """What is left of each silo, the report, and why nothing may be made of it: a list for people, no longer than one can read."""

    manifests: Mapping[str, Manifest]
    report: DataReport
    refused: tuple[str, ...] = ()
    unseen: int = 0
    """Images that a sample left out."""


def ingest(
    hospitals: Mapping[str, Hospital], task: TaskConfig, *, drop_leaked: Side | None = None, keep_leaked: bool = False, drop_unusable: bool = False,
    sample: int | None = None, progress: Progress | None = None,
) -> Ingested:
    """Open every image (of each silo `sample`, if given) and decide. `progress` is called with (silo, images looked at, images in all)."""
    bits = {silo: one.manifest.pixel_bits or bits_in_use(all_items(one.manifest), task) for silo, one in hospitals.items()}
    looked = {silo: sampled(one.manifest, sample) for silo, one in hospitals.items()}
    places = _looked_at(looked, task, bits, progress or (lambda _silo, _done, _total: None))
    usable = [place for place in places if not place.seen.problem]
    unusable = [f"silo {silo}: {problem}" for silo, one in hospitals.items() for problem in one.manifest.problems]
    unusable += [f"silo {place.silo}: {place.seen.problem}" for place in places if place.seen.problem]
    hospitals, usable = _put_back(hospitals, usable)
    groups = groups_of(usable, _subjects(hospitals))
    gone = dropped_from(drop_leaked, groups) if drop_leaked else set()
    kept = [place for place in usable if place.key not in gone]
    gone |= {place.key for place in places if place.seen.problem}
    manifests = {
        silo: replace(_left(silo, one.manifest, gone), classes=task.classes, pixel_bits=bits[silo]) for silo, one in hospitals.items()}
    refused = [] if drop_unusable else _refused_for_files(unusable)
    refused += [] if drop_leaked or keep_leaked else _refused_for_leaks(groups)
    if not refused:
        refused += _refused_for_what_is_left(manifests, task)
    report = DataReport(
        task=task, silos=tuple(hospitals), places=tuple(kept), groups=tuple(groups), unusable=tuple(unusable),
        dropped=tuple(str(place) for place in usable if place.key in gone), refused=tuple(refused),
        origins={silo: one.origin for silo, one in hospitals.items() if one.origin}, bits=bits,
        leaks_kept=keep_leaked and not drop_leaked, notes=tuple(dict.fromkeys(note for one in hospitals.values() for note in one.manifest.notes)))
    unseen = sum(len(all_items(one.manifest)) - len(all_items(looked[silo])) for silo, one in hospitals.items())
    return Ingested(manifests, report, tuple(refused), unseen)


def sampled(manifest: Manifest, most: int | None) -> Manifest:
    """`manifest` with about `most` items, evenly spread, at least one of each split; all of them for None."""
    total = len(all_items(manifest))
    if most is None or total <= most:
        return manifest
    parts: dict[str, Any] = {}
    for split, items in manifest.splits():
        count = -(-len(items) * most // total)
        parts[split] = tuple(items[number * len(items) // count] for number in range(count))
    return replace(manifest, **parts)


def write_silos(out: Path, ingested: Ingested, task: TaskConfig) -> list[Path]:
    """A datalist and a silo.yaml for each silo, each read back as a silo would; the silo.yaml's paths.

    Raises:
        ConfigError: a silo.yaml of other content is there already.
        DataError: something is refused, or cannot be read back.
    """
    if ingested.refused:
        raise DataError(ingested.refused)
    root = _common_folder(ingested.manifests.values())
    documents = {
        silo: _silo_yaml(silo, root, ingested.report.origins.get(silo, ""), manifest.test_only) for silo, manifest in ingested.manifests.items()}
    paths = {silo: out / "silos" / f"{silo}.yaml" for silo in documents}
    for silo, path in paths.items():
        if path.exists() and path.read_text(encoding="utf-8") != documents[silo]:
            raise ConfigError(f"{path}: is there with other content; delete it, or give another folder with --out")
    with disk_errors(out):
        for folder in ("datalists", "silos"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        for silo, manifest in ingested.manifests.items():
            datalist = out / "datalists" / f"{silo}.json"
            write_datalist(datalist, manifest, root=root)
            _require_same(silo, manifest, datalist, root, task)
            paths[silo].write_text(documents[silo], encoding="utf-8")
    return list(paths.values())


def all_items(manifest: Manifest) -> list[Item]:
    """The items of all splits."""
    return [item for _, items in manifest.splits() for item in items]


def _put_back(hospitals: Mapping[str, Hospital], places: Sequence[Place]) -> tuple[Mapping[str, Hospital], list[Place]]:
    """Images that were set aside although a copy of them, or their subject, is in training go back there."""
    found = list(places)
    subjects = _subjects(hospitals)
    aside = {silo: set(one.manifest.aside) for silo, one in hospitals.items()}
    while back := {
            (place.silo, place.seen.item.image) for group in groups_of(found, subjects) if "training" in group.splits
            for place in group.places if place.split == "validation" and place.seen.item.image in aside[place.silo]}:
        found = [replace(place, split="training") if (place.silo, place.seen.item.image) in back else place for place in found]
        for silo, image in back:
            aside[silo].remove(image)
    return {silo: replace(one, manifest=_without_aside(one.manifest, aside[silo])) for silo, one in hospitals.items()}, found


def _without_aside(manifest: Manifest, aside: Set[Path]) -> Manifest:
    """`manifest` with `aside` alone set aside."""
    back = tuple(item for item in manifest.validation if item.image in manifest.aside - aside)
    return replace(
        manifest, training=manifest.training + back, validation=tuple(item for item in manifest.validation if item not in back),
        aside=frozenset(aside)) if back else manifest


def _subjects(hospitals: Mapping[str, Hospital]) -> dict[Path, str]:
    return {image: subject for one in hospitals.values() for image, subject in one.manifest.subjects.items()}


def _looked_at(looked: Mapping[str, Manifest], task: TaskConfig, bits: Mapping[str, int | None], progress: Progress) -> list[Place]:
    total = sum(len(all_items(manifest)) for manifest in looked.values())
    places: list[Place] = []
    for silo, manifest in looked.items():
        shown = frozenset(_shown(manifest.training))
        for split, items in manifest.splits():
            for seen in look_at(items, task, bits=bits[silo], thumbnails=shown):
                places.append(Place(silo, split, seen))
                progress(silo, len(places), total)
    return places


def _shown(items: Sequence[Item]) -> list[Item]:
    """A few for people to look at, of every class alike."""
    by_class: dict[int, list[Item]] = {}
    for item in items:
        by_class.setdefault(item.label, []).append(item)
    each = max(1, _THUMBNAILS // max(1, len(by_class)))
    return [item for label in sorted(by_class) for item in by_class[label][:each]][:_THUMBNAILS]


def _left(silo: str, manifest: Manifest, gone: Set[tuple[str, str, Path]]) -> Manifest:
    """`manifest` without what is `gone`, in its own order; its problems have been listed."""
    parts = {split: tuple(item for item in items if (silo, split, item.image) not in gone) for split, items in manifest.splits()}
    return replace(manifest_from(manifest.source, parts), test_only=manifest.test_only)


def _refused_for_files(unusable: Sequence[str]) -> list[str]:
    return [*told(unusable), "mend or replace these, or leave them out with --drop-unusable"] if unusable else []


def _refused_for_leaks(groups: Sequence[Group]) -> list[str]:
    leaks = [str(group) for group in groups if group.leaks]
    advice = ("validation images were put aside from training; a test on what was trained on measures memory: say which side to take these from with"
              " --drop-leaked training or --drop-leaked test, or keep the split as it was published with --published-split")
    return [*told(leaks), advice] if leaks else []


def _refused_for_what_is_left(manifests: Mapping[str, Manifest], task: TaskConfig) -> list[str]:
    problems: list[str] = []
    for silo, manifest in manifests.items():
        try:
            require_usable(silo, manifest, task)
        except DataError as e:
            problems += e.problems
    return told(problems)


def _common_folder(manifests: Iterable[Manifest]) -> Path:
    files = [path for manifest in manifests for _, items in manifest.splits() for item in items for path in (item.image, item.mask) if path]
    return Path(os.path.commonpath([path.parent for path in files]))


def _silo_yaml(silo: str, root: Path, origin: str, test_only: bool) -> str:
    data = {"layout": "datalist", "datalist": f"../datalists/{silo}.json", "root": str(root), **({"test_only": True} if test_only else {})}
    document = {"version": 1, "name": silo, "data": data, "state": silo}
    called = f"# In the data set it is called {' '.join(origin.split())}.\n" if origin and origin != silo else ""
    head = "# What this hospital knows about itself. Never leaves it. Made by fedhelp data ingest.\n"
    return head + called + yaml.safe_dump(document, sort_keys=False)


def _require_same(silo: str, manifest: Manifest, datalist: Path, root: Path, task: TaskConfig) -> None:
    data = DatalistData(layout="datalist", datalist=datalist, root=root, test_only=manifest.test_only)
    again = manifest_of(SiloConfig(name=silo, data=data, state=datalist.parent), task)
    if replace(again, source=manifest.source) != manifest:
        raise DataError(f"{datalist}: does not read back as it was written; are its files being changed?")
