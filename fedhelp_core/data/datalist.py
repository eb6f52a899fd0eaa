"""A silo's manifest: a MONAI datalist, JSON with lists `training`, `validation` and `test` of {"image": path, "label": answer}.

An image is a path, or a list of paths with a sequence each. An answer is a class number, the path of a mask, or a list with 0, 1 or null (not
labelled) of each finding.

`manifest_of` turns whatever layout silo.yaml names into one; `arrays` decodes it. The file is what MONAI's
`load_decathlon_datalist` reads, so a hospital can use the same list elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedhelp_core.budget import MOST_LIST_BYTES, json_in, regular_bytes
from fedhelp_core.config.silo import ChestXrayData, DatalistData, FedIsicData, FedIxiData, PicturesAndMasks, SiloConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data import chest_xray, fed_isic
from fedhelp_core.data.chest_xray import read_chest_xray
from fedhelp_core.data.fed_isic import read_fed_isic
from fedhelp_core.data.fed_ixi import read_fed_ixi
from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.data.names import Finder, plain
from fedhelp_core.data.picture_files import BITS
from fedhelp_core.data.pictures_and_masks import read_pictures_and_masks
from fedhelp_core.data.problems import told
from fedhelp_core.data.setting_aside import set_aside
from fedhelp_core.data.sharing import dealt
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.errors import ConfigError, DataError
from fedhelp_core.registry.tasks import NOT_LABELLED, Form

_ANSWERS: Mapping[Form, str] = {
    "classes": "class numbers", "labels": "lists of findings", "masks": "masks", "regions": "masks"}


@dataclass(frozen=True)
class Manifest:
    """Which images a silo has, and what they show. Paths are absolute."""

    source: str
    """Where it came from, for messages."""
    training: tuple[Item, ...] = ()
    validation: tuple[Item, ...] = ()
    test: tuple[Item, ...] = ()
    problems: tuple[str, ...] = field(default=(), compare=False)
    classes: tuple[str, ...] = ()
    """Names of the class numbers, of a mask: background, foreground; empty where the layout does not say."""
    numbered: tuple[str, ...] = field(default=(), compare=False)
    """How the layout itself numbers classes; a federation may call them otherwise, but not number them otherwise."""
    pixel_bits: int | None = None
    """How many bits are in use in the 16-bit pictures; None: as many as the largest pixel of all of them needs."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What was converted in reading lists, what was left alone and what was set aside for validation, for people to look at."""
    subjects: Mapping[Path, str] = field(default_factory=dict, compare=False)
    """Image -> the patient or lesion that it shows, where names or lists tell: images of one subject stay together."""
    aside: frozenset[Path] = field(default=frozenset(), compare=False)
    """Images set aside for validation, which the data set itself has in training."""
    splits_told: bool = field(default=True, compare=False)
    """Whether the list itself says which images are for validation, if only that there are none."""
    test_only: bool = field(default=False, compare=False)
    """Whether the hospital trains nothing."""

    def splits(self) -> Iterator[tuple[str, tuple[Item, ...]]]:
        """Name and items of each split."""
        for name in SPLITS:
            yield name, getattr(self, name)


def manifest_of(config: SiloConfig, task: TaskConfig | None) -> Manifest:
    """The manifest of the layout in silo.yaml, checked as far as it can be without opening images.

    `task` None: what the layout has, without regard to what a federation needs.

    Raises:
        ConfigError: the layout holds no such answers as the task's.
        DataError: with everything that is wrong.
    """
    data = config.data
    form = None if task is None else task.form
    theirs = ("masks", "regions") if isinstance(data, PicturesAndMasks | FedIxiData) else ("classes",)
    if task is not None and not isinstance(data, DatalistData) and task.form not in theirs:
        said = f"silo {config.name}: data.layout {data.layout!r} has no {_ANSWERS[task.form]}, which task {task.name} needs; choose another layout"
        raise ConfigError(said, public=said)
    found = read_layout(data, form=form)
    require_usable(config.name, found, task)
    return found


def require_usable(silo: str, found: Manifest, task: TaskConfig | None) -> None:
    """Nothing where `silo` can train and be tested on what was found.

    Raises:
        DataError: with everything that is wrong.
    """
    problems = [*found.problems, *_problems_of(found, sys.maxsize if task is None else len(task.classes), task)]
    problems += [] if task is None else _other_classes(found, task)
    if problems:
        few = len(found.training) < 2 or not found.test
        public = f"lists that cannot be used ({len(problems)} problems{', and too few images' if few else ''})"
        raise DataError([f"silo {silo}: {problem}" for problem in told(problems)], public=public)


def _other_classes(found: Manifest, task: TaskConfig) -> Iterator[str]:
    """Class numbers that mean something else in the federation: every label would be another, and nothing would show it."""
    ours = [plain(name).casefold() for name in task.classes]
    theirs = [plain(name).casefold() for name in found.classes]
    if theirs and theirs != ours:
        yield (f"{found.source}: its classes are {', '.join(found.classes)}, the federation's (task.classes) {', '.join(task.classes)};"
               " numbers would mean other classes: use the same names in the same order")
    layout = [name.casefold() for name in found.numbered]
    if layout != ours and sorted(layout) == sorted(ours):
        yield (f"{found.source}: the layout numbers classes {', '.join(found.numbered)}, the federation (task.classes) {', '.join(task.classes)};"
               " write task.classes in the layout's order")


def with_validation(found: Manifest, fraction: float | None = None) -> Manifest:
    """`found` with a share of its training images set aside for validation, as `setting_aside` says."""
    training, validation = set_aside(found.training, found.validation, found.subjects, fraction)
    moved = len(validation) - len(found.validation)
    note = f"{found.source}: {moved:,} of {len(found.training):,} training images are set aside for validation (docs/data.md)"
    aside = frozenset(item.image for item in validation[len(found.validation):])
    return replace(found, training=training, validation=validation, aside=aside, notes=(*found.notes, *([note] if moved else [])))


def read_layout(data: FedIsicData | DatalistData | ChestXrayData | PicturesAndMasks | FedIxiData, *, form: Form | None = None) -> Manifest:
    """The silo's images, with enough of them for validation; `problems` says what cannot be used. `form` as in `read_datalist`.

    Raises:
        DataError: a file or folder that all of it hangs on.
    """
    found = as_published(data, form=form)
    if isinstance(data, DatalistData):
        return found if found.splits_told else with_validation(found)
    share = getattr(data, "share", None)
    if share is not None:
        parts = dealt(dict(found.splits()), found.subjects, share.sizes)[share.number]
        found = replace(found, source=f"{found.source}, share {share.number}", **parts)
    return with_validation(found, data.validation_fraction)


def as_published(data: FedIsicData | DatalistData | ChestXrayData | PicturesAndMasks | FedIxiData, *, form: Form | None = None) -> Manifest:
    """What the layout holds, dealt out to nobody and in its own splits; `problems` says what cannot be used. `form` as in `read_datalist`.

    Raises:
        DataError: a file or folder that all of it hangs on.
    """
    if isinstance(data, FedIsicData):
        parts, subjects, problems = read_fed_isic(data)
        found = manifest_from(f"{data.split_csv}, center {data.center}", parts, problems, subjects=subjects)
        return replace(found, numbered=fed_isic.NUMBERED)
    if isinstance(data, ChestXrayData):
        parts, subjects, problems, notes = read_chest_xray(data.root)
        return replace(manifest_from(str(data.root), parts, problems, notes, subjects), numbered=chest_xray.NUMBERED)
    if isinstance(data, PicturesAndMasks):
        parts, problems, notes = read_pictures_and_masks(data)
        return manifest_from(str(data.images), parts, problems, notes)
    if isinstance(data, FedIxiData):
        parts, subjects, problems = read_fed_ixi(data)
        return manifest_from(f"{data.root}, hospital {data.hospital}", parts, problems, subjects=subjects)
    return read_datalist(data, form=form)


def manifest_from(
    source: str, parts: Mapping[str, tuple[Item, ...]], problems: Sequence[str] = (), notes: Sequence[str] = (),
    subjects: Mapping[Path, str] | None = None,
) -> Manifest:
    """A manifest of split -> items."""
    return Manifest(
        source, parts.get("training", ()), parts.get("validation", ()), parts.get("test", ()), tuple(problems), notes=tuple(notes),
        subjects=subjects or {})


def read_datalist(data: DatalistData, *, form: Form | None = None) -> Manifest:
    """The datalist as it is written; `problems` names every item that cannot be used.

    `form`: of the labels; None: any, as each row has it.

    Raises:
        DataError: no file, or not a JSON mapping.
    """
    document = _json(data.datalist)
    root = data.root or data.datalist.parent
    finder = Finder()
    problems: list[str] = []
    splits: dict[str, tuple[Item, ...]] = {}
    for split in SPLITS:
        rows = document.get(split, [])
        if not isinstance(rows, list):
            problems.append(f"{data.datalist}: {split} should be a list, got {type(rows).__name__}")
            continue
        items: list[Item] = []
        for i, row in enumerate(rows):
            try:
                items.append(_item(row, root, form, finder))
            except Unusable as e:
                problems.append(f"{data.datalist}: {split}[{i}]: {e}")
        splits[split] = tuple(items)
    classes, bits = document.get("classes", []), document.get("pixel_bits")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        problems.append(f"{data.datalist}: classes should be a list of names in the order of the labels, got {str(classes)[:80]}")
        classes = []
    if bits is not None and bits not in BITS:
        problems.append(f"{data.datalist}: pixel_bits should be one of {', '.join(map(str, BITS))}, got {str(bits)[:80]}")
        bits = None
    return replace(
        manifest_from(str(data.datalist), splits, problems), classes=tuple(classes), pixel_bits=bits, splits_told="validation" in document,
        test_only=data.test_only)


def write_datalist(path: Path, manifest: Manifest, *, root: Path) -> None:
    """Write `manifest` as a MONAI datalist, image paths relative to `root`, with the names of its class numbers."""
    document: dict[str, Any] = {"classes": list(manifest.classes)} if manifest.classes else {}
    document |= {"pixel_bits": manifest.pixel_bits} if manifest.pixel_bits else {}
    document |= {
        name: [{"image": _image_of(item, root),
                "label": _label_of(item, root)} for item in items]
        for name, items in manifest.splits()
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _image_of(item: Item, root: Path) -> str | list[str]:
    paths = [path.relative_to(root).as_posix() for path in (item.image, *item.sequences)]
    return paths if len(paths) > 1 else paths[0]


def _label_of(item: Item, root: Path) -> Any:
    if item.findings:
        return [None if found == NOT_LABELLED else found for found in item.findings]
    return item.label if item.mask is None else item.mask.relative_to(root).as_posix()


def _json(path: Path) -> Mapping[str, Any]:
    def wrong(why: str) -> DataError:
        return DataError(f"{path}: cannot be read as JSON ({why}); write it as MONAI datalists are, with lists training, validation, test")

    try:
        document = json_in(regular_bytes(path, MOST_LIST_BYTES, wrong), wrong)
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such datalist; correct data.datalist in silo.yaml") from e
    except OSError as e:
        raise wrong(str(e)) from e
    if not isinstance(document, dict):
        raise DataError(f"{path}: a mapping with lists training, validation and test expected, got {type(document).__name__}")
    return document


def _item(row: Any, root: Path, form: Form | None, finder: Finder) -> Item:
    """The item that `row` describes. Paths must stay below `root`.

    Raises:
        Unusable: it describes none.
    """
    what = {"masks": "mask's path", "regions": "mask's path", "labels": "0, 1 or null of each finding"}.get(form or "classes", "class number")
    images = _images_in(row)
    if not images:
        raise Unusable(f'{{"image": path, "label": {what}}} expected, got {str(row)[:80]}')
    label = row.get("label")
    if form is None:
        form = "masks" if isinstance(label, str) else "labels" if isinstance(label, list) else "classes"
    masks = form in ("masks", "regions")
    if masks and not isinstance(label, str):
        raise Unusable(f"label: the mask's path expected, got {label!r}")
    if form == "classes" and (isinstance(label, bool) or not isinstance(label, int)):
        raise Unusable(f"label: a whole number expected, got {label!r}")
    if form == "labels" and not (isinstance(label, list) and label and all(one is None or (type(one) is int and one in (0, 1)) for one in label)):
        raise Unusable(f"label: a list with 0, 1 or null of each finding expected, got {str(label)[:80]}")
    for name in (*images, *([label] if masks else [])):
        if "\0" in name or not _is_below(root / name, root):
            raise Unusable(f"image {name!r} lies outside {root}; keep images below data.root")
    image, *sequences = (finder.find(root, name) for name in images)
    if isinstance(label, list):
        return Item(image, sequences=tuple(sequences), findings=tuple(NOT_LABELLED if one is None else one for one in label))
    return Item(image, 0 if masks else int(str(label)), finder.find(root, str(label)) if masks else None, tuple(sequences))


def _images_in(row: Any) -> list[str]:
    """Paths of a row's image, or of its sequences; [] where it has none."""
    image = row.get("image") if isinstance(row, dict) else None
    if isinstance(image, str):
        return [image]
    return image if isinstance(image, list) and image and all(isinstance(one, str) for one in image) else []


def _is_below(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, which leads nowhere; a name that no file can have
        return False


def _problems_of(manifest: Manifest, classes: int, task: TaskConfig | None) -> Iterator[str]:
    """What no split may have: class numbers out of range, images twice, too few of them."""
    for name, items in manifest.splits():
        for item in items:
            if task is not None and task.form == "labels" and len(item.findings) != classes:
                yield f"{manifest.source}: {item.image.name} ({name}) has {len(item.findings)} findings, {classes} expected (task.classes)"
            if item.mask is None and not 0 <= item.label < classes:
                yield f"{manifest.source}: {item.image.name} ({name}) has label {item.label}, expected 0 to {classes - 1} (task.classes)"
    places: dict[Path, list[str]] = {}
    for name, items in manifest.splits():
        for item in items:
            places.setdefault(item.image, []).append(name)
    for path, found in places.items():
        if len(found) > 1:
            counts = ", ".join(f"{n}x in {name}" for name, n in Counter(found).items())
            yield f"{manifest.source}: {path.name} is listed {counts}; an image may be listed once, or the test split measures nothing"
    split_of: dict[str, set[str]] = {}
    for name, items in manifest.splits():
        for item in items:
            if item.image in manifest.subjects:
                split_of.setdefault(manifest.subjects[item.image], set()).add(name)
    torn = [subject for subject, splits in split_of.items() if len(splits) > 1]
    if torn:
        yield (f"{manifest.source}: {len(torn)} patients or lesions are in more than one split, the first {torn[0]}; a test on what was trained on"
               " measures memory: take the set in with fedhelp data ingest, which leaves them out of one side")
    if manifest.problems:
        return  # what could not be read explains what is missing
    if manifest.test_only and manifest.training:
        yield f"{manifest.source}: no training image expected of a hospital that trains nothing (data.test_only), got {len(manifest.training)}"
    if len(manifest.training) < 2 and not manifest.test_only:
        yield f"{manifest.source}: at least 2 training images expected, got {len(manifest.training)}"
    if not manifest.test:
        yield f"{manifest.source}: at least 1 test image expected, got none"
