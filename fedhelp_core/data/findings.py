"""What an ingested data set holds, in rows, remarks and as a JSON document. Called by `ingest`; report/data_page.py shows it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.datalist import Manifest
from fedhelp_core.data.examples import label_in_words
from fedhelp_core.data.inspection import Seen
from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.data.leakage import Group, Place
from fedhelp_core.registry.tasks import NOT_LABELLED

_SIZES = 8    # different sizes that are listed


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What was found; `places` is what is kept."""

    task: TaskConfig
    silos: tuple[str, ...]
    places: tuple[Place, ...]
    groups: tuple[Group, ...]
    unusable: tuple[str, ...]
    dropped: tuple[str, ...]
    refused: tuple[str, ...]
    origins: Mapping[str, str] = field(default_factory=dict)
    """Silo -> what the data set calls it, where it has a name."""
    bits: Mapping[str, int | None] = field(default_factory=dict)
    """Silo -> how many bits are in use in its 16-bit pictures."""
    leaks_kept: bool = False
    """Whether the data set's own split was kept although something is in more than one part of it."""
    notes: tuple[str, ...] = ()
    """What was converted in reading lists, what was left alone, and what was set aside for validation."""

    def called(self, silo: str) -> str:
        """The silo, with the data set's own name for it."""
        return called(silo, self.origins.get(silo, ""))


def called(silo: str, origin: str) -> str:
    """`silo (origin)`, where the data set has another name for it."""
    return f"{silo} ({origin})" if origin and origin != silo else silo


def summary(report: DataReport) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "version": 1, "task": report.task.name, "classes": list(report.task.classes),
        "origins": dict(report.origins), "bits_in_use": {silo: bits for silo, bits in report.bits.items() if bits},
        "silos": {silo: {split: _split(report, silo, split) for split in SPLITS} for silo in report.silos},
        "remarks": list(remarks(report)),
        "duplicates": [_group(group) for group in report.groups],
        "unusable": list(report.unusable), "dropped": list(report.dropped), "refused": list(report.refused),
    }


def rows_of(report: DataReport, *, short: bool = False) -> list[tuple[str, ...]]:
    """(silo, split, images, classes or foreground, sizes, intensities, grid) of every split that has images; `short`: classes without names."""
    rows: list[tuple[str, ...]] = []
    for silo in report.silos:
        for split in SPLITS:
            found = _split(report, silo, split)
            if found["images"]:
                answers = _counts(found["classes"], short) if "classes" in found else _foreground(found["foreground"])
                rows.append((
                    report.called(silo), split, f"{found['images']:,}", answers, _sizes(found), _intensities(found["intensity"]), _grid(found)))
    return rows


def remarks(report: DataReport) -> Iterator[str]:
    """What nobody has to mend, but should know before training."""
    yield from report.notes
    for silo in report.silos:
        kept = {split: [place.seen for place in report.places if (place.silo, place.split) == (silo, split)] for split in SPLITS}
        yield from _about_labels(silo, report.task, {split: [seen.item for seen in found] for split, found in kept.items()})
        everything = [seen for found in kept.values() for seen in found]
        yield from remarks_about(silo, everything, report.bits.get(silo))
    if report.leaks_kept:
        yield from _about_leaks(report.groups)
    within = [group for group in report.groups if not group.leaks]
    if within:
        yield f"{len(within)} pictures are there more than once in the same split, such as {within[0].places[0]} = {within[0].places[1]}"
    for group in report.groups:
        if group.contradicts:
            labels = sorted({label_in_words(place.seen.item, report.task) for place in group.places})
            yield f"the same picture is called {' and '.join(labels)}: {' = '.join(str(place) for place in group.places[:4])}"


def remarks_about(silo: str, everything: Sequence[Seen], bits: int | None) -> Iterator[str]:
    """What is odd about the files of one silo, or was converted in reading them; `bits` are in use in its 16-bit pictures."""
    deep = sum(seen.kind.startswith("I") for seen in everything)
    if deep:
        yield f"silo {silo}: {deep} of {len(everything)} images have 16 bits a pixel, {bits} of them in use; all are scaled by these {bits}"
    for note, count in Counter(note for seen in everything for note in seen.notes).items():
        yield f"silo {silo}: {count} of {len(everything)} images: {note}"
    inverted = sum(seen.corners for seen in everything)
    if inverted:
        yield f"silo {silo}: {inverted} of {len(everything)} masks mark every corner of their image; look whether they are inverted"
    grids = {(seen.spacing, seen.orientation) for seen in everything if not seen.problem}
    if len(grids) > 1:
        yield f"silo {silo}: volumes have {len(grids)} different spacings and orientations; all are brought to RAS and task.volume.spacing"


def remarks_about_labels(silo: str, manifest: Manifest, task: TaskConfig) -> Iterator[str]:
    """What a silo's lists lack: classes that no training image has, a split of one class alone, findings that nobody labels."""
    yield from _about_labels(silo, task, dict(manifest.splits()))


def _about_labels(silo: str, task: TaskConfig, found: Mapping[str, Sequence[Item]]) -> Iterator[str]:
    if task.form == "classes":
        yield from _about_classes(silo, task.classes, {split: {item.label for item in items} for split, items in found.items()})
    if task.form == "labels":
        yield from _about_findings(silo, task.classes, found["training"])


def _about_classes(silo: str, classes: Sequence[str], found: Mapping[str, set[int]]) -> Iterator[str]:
    missing = [name for number, name in enumerate(classes) if number not in found["training"]]
    if found["training"] and missing:
        yield f"silo {silo}: no training image of {', '.join(missing)}"
    for split in ("validation", "test"):
        if len(found[split]) == 1:
            alone = classes[next(iter(found[split]))]
            yield f"silo {silo}: {split} has images of {alone} alone; AUROC is undefined there, and balanced accuracy is of that class"


def _about_findings(silo: str, findings: Sequence[str], training: Sequence[Item]) -> Iterator[str]:
    labelled = {name: [item.findings[number] for item in training if item.findings[number] != NOT_LABELLED] for number, name in enumerate(findings)}
    nowhere, unseen = [name for name, found in labelled.items() if not found], [name for name, found in labelled.items() if found and not any(found)]
    if training and nowhere:
        yield f"silo {silo}: no training image is labelled for {', '.join(nowhere)}; it learns nothing of it, and is not scored by it"
    if unseen:
        yield f"silo {silo}: no training image shows {', '.join(unseen)}"


def _about_leaks(groups: Sequence[Group]) -> Iterator[str]:
    leaking = [group for group in groups if group.leaks]
    known = {place.key for group in leaking if "test" in group.splits for place in group.places if place.split == "test"}
    if leaking:
        yield (f"the published split is kept although it leaks: {len(known):,} test images show a picture, patient or lesion that is in training or"
               f" validation too, so their score is of memory; such as {leaking[0].places[0]} = {leaking[0].places[1]}")


def _split(report: DataReport, silo: str, split: str) -> dict[str, Any]:
    found = [place.seen for place in report.places if (place.silo, place.split) == (silo, split)]
    document: dict[str, Any] = {"images": len(found)}
    if not found:
        return document
    if report.task.form == "labels":
        document["classes"] = {name: sum(seen.item.findings[number] == 1 for seen in found) for number, name in enumerate(report.task.classes)}
        document["labelled"] = {
            name: sum(seen.item.findings[number] != NOT_LABELLED for seen in found) for number, name in enumerate(report.task.classes)}
    elif report.task.form == "classes":
        counts = Counter(seen.item.label for seen in found)
        document["classes"] = {name: counts[number] for number, name in enumerate(report.task.classes)}
        present = [count for count in document["classes"].values() if count]
        document["balance"] = round(min(present) / max(present), 4) if len(present) == len(report.task.classes) else 0.0
    else:
        document["foreground"] = _spread([seen.foreground or 0.0 for seen in found])
    sizes = Counter(" x ".join(map(str, seen.sides)) for seen in found)
    document["sizes"] = dict(sizes.most_common(_SIZES))
    document["different_sizes"] = len(sizes)
    document["kinds"] = dict(Counter(seen.kind for seen in found))
    document["intensity"] = {
        "lowest": min(seen.low for seen in found), "highest": max(seen.high for seen in found), "mean": _spread([seen.mean for seen in found])}
    if found[0].orientation:
        document["spacings_mm"] = dict(Counter(" x ".join(f"{side:g}" for side in seen.spacing) for seen in found).most_common(_SIZES))
        document["orientations"] = dict(Counter(seen.orientation for seen in found))
    return document


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"least": round(min(values), 4), "median": round(statistics.median(values), 4), "most": round(max(values), 4)}


def _group(group: Group) -> dict[str, Any]:
    return {
        "what": group.what, "key": group.key, "leaks": group.leaks,
        "places": [{"silo": place.silo, "split": place.split, "image": str(place.seen.item.image)} for place in group.places]}


def _counts(classes: Mapping[str, int], short: bool) -> str:
    return " ".join(map(str, classes.values())) if short else ", ".join(f"{name} {count:,}" for name, count in classes.items())


def _foreground(spread: Mapping[str, float]) -> str:
    return f"{spread['least']:.1%} to {spread['most']:.1%}, median {spread['median']:.1%}"


def _sizes(found: Mapping[str, Any]) -> str:
    listed = [f"{size} ({count:,})" if len(found["sizes"]) > 1 else size for size, count in found["sizes"].items()]
    rest = found["different_sizes"] - len(listed)
    return ", ".join(listed[:3]) + (f" and {rest + len(listed) - 3} more" if len(listed) > 3 or rest else "")


def _intensities(intensity: Mapping[str, Any]) -> str:
    mean = intensity["mean"]
    return f"{intensity['lowest']:g} to {intensity['highest']:g}, means {mean['least']:.4g} to {mean['most']:.4g}"


def _grid(found: Mapping[str, Any]) -> str:
    if "spacings_mm" not in found:
        return ", ".join(found["kinds"])
    spacings = list(found["spacings_mm"])
    return f"{', '.join(found['orientations'])}; {', '.join(spacings[:2])}{' ...' if len(spacings) > 2 else ''} mm"
