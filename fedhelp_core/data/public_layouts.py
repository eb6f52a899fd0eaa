"""Every layout that `fedhelp data ingest` takes: where its files lie below one folder, and which hospitals it holds. Called by `ingest`.

The layouts of silo.yaml are read by the loaders that read them there; two more, which silo.yaml does not know, become datalists only:
a hospital's own CSV, and folders of volumes (DICOM or NIfTI) and masks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedhelp_core.config.section import SiloName
from fedhelp_core.config.silo import ChestXrayData, FedIsicData, FedIxiData, PicturesAndMasks, Share
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data import fed_isic, fed_ixi
from fedhelp_core.data.chest_xray import FOLDERS
from fedhelp_core.data.csv_files import head_of
from fedhelp_core.data.datalist import Manifest, manifest_from, read_layout
from fedhelp_core.data.names import is_text, not_text, plain
from fedhelp_core.data.own_csv import COLUMNS, Reading, read_own_csv
from fedhelp_core.data.volumes_and_masks import read_volumes_and_masks
from fedhelp_core.errors import ConfigError, DataError
from fedhelp_core.registry.tasks import TASKS, Answer


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says beside layout and folder; a layout takes those that it names."""

    images: Path | None = None
    masks: Path | None = None
    split_csv: Path | None = None
    csv: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    sizes: tuple[float, ...] = ()
    silos: tuple[str, ...] = ()
    """Names for the hospitals, as THEIRS=name; empty: the layout's own. Hospitals that the set itself does not name go by their order."""
    test_fraction: float | None = None
    validation_fraction: float | None = None

    def given(self) -> set[str]:
        """Names of the options that were given."""
        return {name for name in self.__dataclass_fields__ if getattr(self, name) not in (None, (), {})}


@dataclass(frozen=True)
class Hospital:
    """One hospital's images."""

    manifest: Manifest
    patients: Mapping[Path, str] = field(default_factory=dict)
    """The image's path -> its patient, where a list tells."""
    origin: str = ""
    """What the data set itself calls the hospital; '' where it names none."""


_Find = Callable[[Path, TaskConfig, Options], dict[str, Hospital]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One layout."""

    holds: str
    """What lies in the folder, in words."""
    task: str
    """The task it is for, unless another is named."""
    answer: Answer | None
    """What it has; None: whichever the task asks for."""
    options: frozenset[str]
    find: _Find


def hospitals_of(layout: str, folder: Path, task: TaskConfig, options: Options) -> dict[str, Hospital]:
    """Silo name -> its images, in the layout's order. Opens no image.

    Raises:
        ConfigError: no such layout, an option that it does not take, or names that cannot be silos'.
        DataError: something that all of it hangs on is missing.
    """
    entry = layout_called(layout)
    surplus = sorted(options.given() - entry.options - {"silos"})
    if surplus:
        takes = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(entry.options | {"silos"}))
        raise ConfigError(f"--{surplus[0].replace('_', '-')}: layout {layout} does not take it; it takes {takes}")
    if entry.answer not in (None, TASKS[task.name].answer):
        fitting = ", ".join(name for name, one in TASKS.items() if one.answer == entry.answer)
        raise ConfigError(f"--task: layout {layout} has no answers of the kind that {task.name} needs; one of {fitting} expected")
    if not is_text(folder):
        raise DataError(not_text(folder))
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds {entry.holds}")
    return _named(entry.find(folder, task, options), options.silos)


def layout_called(name: str) -> Layout:
    """The layout `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"layout {name!r}: one of {', '.join(LAYOUTS)} expected")
    return LAYOUTS[name]


def _named(found: dict[str, Hospital], names: Sequence[str]) -> dict[str, Hospital]:
    """`found` under the names that were asked for."""
    chosen = _chosen(found, names) if names else list(found)
    for name in chosen:
        try:
            TypeAdapter(SiloName).validate_python(name)
        except ValidationError:
            raise ConfigError(
                f"silo name {name!r}: lower-case letters, digits and '-', at most 40, expected; name the hospitals with --silos") from None
    if len(set(chosen)) != len(chosen):
        raise ConfigError(f"--silos: names must differ from each other, got {', '.join(chosen)}")
    return dict(zip(chosen, found.values(), strict=True))


def _chosen(found: Mapping[str, Hospital], names: Sequence[str]) -> list[str]:
    """The name for each of `found`. By their order alone only where the set itself does not name them, or there is one."""
    called = {plain(one.origin or default): default for default, one in found.items()}
    pairs = {plain(theirs.strip()): ours.strip() for theirs, equals, ours in (name.rpartition("=") for name in names) if equals}
    if pairs:
        wrong = [*(name for name in pairs if name not in called), *(name for name in called if name not in pairs)]
        if wrong or len(pairs) != len(names):
            raise ConfigError(
                f"--silos: a name for each hospital expected, THEIRS=yours, and the hospitals are {', '.join(called)}; got {', '.join(names)}")
        return [pairs[name] for name in called]
    if len(names) != len(found):
        raise ConfigError(f"--silos: {len(names)} names given for {len(found)} hospitals ({', '.join(called)}); give one a hospital")
    if len(found) > 1 and any(one.origin for one in found.values()):
        example = ",".join(f"{theirs}={ours}" for theirs, ours in zip(called, names, strict=True))
        raise ConfigError(f"--silos: the data set has names for its hospitals; say which is which, for instance {example}, if that is right")
    return list(names)


def _fed_isic(folder: Path, _task: TaskConfig, options: Options) -> dict[str, Hospital]:
    split_csv = options.split_csv or _csv_with(folder, fed_isic.COLUMNS[:4], "--split-csv")
    images = options.images or _folder_of_jpegs(folder)
    more = _given(options, "validation_fraction")
    return {
        f"center-{center}": Hospital(
            read_layout(FedIsicData(layout="fed-isic2019", images=images, split_csv=split_csv, center=center, **more)), origin=f"center {center}")
        for center in fed_isic.centers_in(split_csv)}


def _chest_xray(folder: Path, _task: TaskConfig, options: Options) -> dict[str, Hospital]:
    roots = [root for root in (folder, *_subfolders(folder)) if all((root / name).is_dir() for name in FOLDERS.values())]
    root = roots[0] if roots else folder  # the archive has the set in a folder of its own
    return {
        f"hospital-{share.number}": Hospital(read_layout(ChestXrayData(layout="chest-xray", root=root, share=share)))
        for share in _shares(options.sizes)}


def _pictures(folder: Path, _task: TaskConfig, options: Options) -> dict[str, Hospital]:
    if options.prefixes and options.sizes:
        raise ConfigError("--prefixes, --sizes: hospitals are told by one or dealt out by the other; give one of them")
    images = options.images or _first_folder(folder, ("images", "CXR_png", "img"))
    masks = options.masks or _first_folder(folder, ("masks", "mask"))
    more = _given(options, "validation_fraction", "test_fraction")

    def read(prefix: str, share: Share | None) -> Hospital:
        return Hospital(
            read_layout(PicturesAndMasks(layout="pictures-and-masks", images=images, masks=masks, prefix=prefix, share=share, **more)), origin=prefix)

    if options.prefixes:
        return {_slug(prefix): read(prefix, None) for prefix in options.prefixes}
    if options.sizes:
        return {f"hospital-{share.number}": read("", share) for share in _shares(options.sizes)}
    return {"hospital-0": read("", None)}


def _fed_ixi(folder: Path, _task: TaskConfig, options: Options) -> dict[str, Hospital]:
    split_csv = options.split_csv or _csv_with(folder, (fed_ixi.PATIENT, fed_ixi.SPLIT), "--split-csv")
    root = options.images or next((one for one in (folder, *_subfolders(folder)) if any(one.glob("IXI*-*"))), folder)
    present = [hospital for hospital in ("Guys", "HH", "IOP") if any(root.glob(f"IXI*-{hospital}*"))]
    if not present:
        raise DataError(f"{root}: no subject folder like IXI002-Guys-0828; give the folder of the subjects' folders with --images")
    more = _given(options, "validation_fraction")
    return {
        hospital.lower(): Hospital(read_layout(
            FedIxiData(layout="fed-ixi", root=root, split_csv=split_csv, hospital=hospital, **more)), origin=hospital)
        for hospital in present}


def _volumes(folder: Path, _task: TaskConfig, options: Options) -> dict[str, Hospital]:
    images, masks = options.images or folder / "images", options.masks or folder / "masks"
    fractions = {"test": options.test_fraction, "validation": options.validation_fraction}
    found = read_volumes_and_masks(
        images, masks, sizes=options.sizes or (1.0,), **{name: value for name, value in fractions.items() if value is not None})
    return {f"hospital-{number}": Hospital(manifest_from(str(images), *one)) for number, one in enumerate(found)}


def _own_csv(folder: Path, task: TaskConfig, options: Options) -> dict[str, Hospital]:
    path = options.csv or _only_csv(folder)
    unknown = sorted(set(options.columns) - set(COLUMNS))
    if unknown:
        raise ConfigError(f"--columns: {unknown[0]!r} is none of {', '.join(COLUMNS)}; write ours=yours, e.g. image=File")
    fractions: dict[str, Any] = _given(options, "validation_fraction", "test_fraction")
    listed = read_own_csv(path, Reading(task=task, folder=folder, columns=options.columns, **fractions))
    if not listed:
        raise DataError(f"{path}: has no row; write a row an image")
    names = {theirs: _slug(theirs) or "hospital-0" for theirs in listed}
    if len(set(names.values())) != len(names):
        raise ConfigError(f"{path}: hospitals {', '.join(map(repr, names))} cannot be told apart as silo names; write them with letters and digits")
    return {
        names[theirs]: Hospital(
            manifest_from(
                f"{path}, {theirs}" if theirs else str(path), {split: tuple(items) for split, items in one.splits.items()}, one.problems, one.notes),
            one.patients, theirs)
        for theirs, one in listed.items()}


LAYOUTS: Mapping[str, Layout] = {
    "fed-isic2019": Layout(
        holds="Fed-ISIC2019: a folder of <image>.jpg and FLamby's split CSV (image, target, center, fold); a silo a center", task="melanoma",
        answer="classes", options=frozenset({"images", "split_csv", "validation_fraction"}), find=_fed_isic),
    "chest-xray": Layout(
        holds="the paediatric chest X-rays: train|val|test / NORMAL|PNEUMONIA / *.jpeg; dealt out to six silos, or by --sizes", task="pneumonia",
        answer="classes", options=frozenset({"sizes"}), find=_chest_xray),
    "pictures-and-masks": Layout(
        holds="pictures in images/ and masks of the same names in masks/; silos by --prefixes or --sizes", task="lung-segmentation", answer="mask",
        options=frozenset({"images", "masks", "prefixes", "sizes", "test_fraction", "validation_fraction"}), find=_pictures),
    "fed-ixi": Layout(
        holds="Fed-IXI: IXI002-Guys-0828/T1/*.nii.gz, /label/*.nii.gz and FLamby's split CSV; silos guys, hh, iop", task="brain-segmentation",
        answer="mask", options=frozenset({"images", "split_csv", "validation_fraction"}), find=_fed_ixi),
    "volumes-and-masks": Layout(
        holds="volumes in images/ and masks/: a folder of DICOM slices or a NIfTI file for each subject; silos by --sizes", task="brain-segmentation",
        answer="mask", options=frozenset({"images", "masks", "sizes", "test_fraction", "validation_fraction"}), find=_volumes),
    "csv": Layout(
        holds="a hospital's own CSV (image, label or mask, perhaps split, patient, hospital) and the images it lists", task="melanoma", answer=None,
        options=frozenset({"csv", "columns", "test_fraction", "validation_fraction"}), find=_own_csv),
}


def _given(options: Options, *names: str) -> dict[str, float]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _shares(sizes: tuple[float, ...]) -> Iterator[Share]:
    sizes = sizes or tuple(Share(number=0).sizes)
    return (Share(number=number, sizes=sizes) for number in range(len(sizes)))


def _slug(text: str) -> str:
    """`text` in a silo's letters: Süd Klinik -> sud-klinik."""
    letters = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", letters).strip("-")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _first_folder(folder: Path, names: Sequence[str]) -> Path:
    return next((folder / name for name in names if (folder / name).is_dir()), folder / names[0])


def _folder_of_jpegs(folder: Path) -> Path:
    """The folder itself or the one just below it that holds .jpg files."""
    found = [one for one in (folder, *_subfolders(folder)) if any(path.suffix.lower() == ".jpg" for path in one.iterdir())]
    if len(found) != 1:
        said = ", ".join(one.name for one in found) or "none"
        raise DataError(f"{folder}: one folder of .jpg files expected in it, found {said}; give it with --images")
    return found[0]


def _csv_with(folder: Path, columns: Sequence[str], option: str) -> Path:
    """The one CSV in `folder` (or just below it) whose head has `columns`; FLamby's of Fed-ISIC2019 has no suffix."""
    files = [path for one in (folder, *_subfolders(folder)) for path in sorted(one.iterdir())]
    found = [path for path in files if (_is_csv(path) or path.name == "train_test_split") and set(columns) <= set(head_of(path))]
    if len(found) != 1:
        said = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        raise DataError(f"{folder}: one CSV with columns {', '.join(columns)} expected in it, found {said}; give it with {option}")
    return found[0]


def _only_csv(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if _is_csv(path))
    if len(found) != 1:
        workbooks = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in (".xls", ".xlsx", ".ods"))
        hint = f"; save {workbooks[0]} as CSV UTF-8 in the spreadsheet" if workbooks and not found else "; give it with --csv"
        raise DataError(f"{folder}: one CSV expected in it, found {', '.join(path.name for path in found) or 'none'}{hint}")
    return found[0]


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and not path.name.startswith(".") and path.is_file()
