"""Every layout that `fedhelp data ingest` takes: where its files lie below one folder, and which hospitals it holds. Called by `ingest`.

The layouts of silo.yaml are read by the loaders that read them there; more, which silo.yaml does not know, become datalists only: a hospital's own
CSV, and folders of volumes (DICOM or NIfTI) and masks. One hospital's images can be dealt out to several, whichever the layout.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedhelp_core.config.section import SiloName
from fedhelp_core.config.silo import PAPER_SIZES, ChestXrayData, FedIsicData, FedIxiData, PicturesAndMasks, Share
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data import fed_isic, fed_ixi
from fedhelp_core.data.chest_xray import FOLDERS
from fedhelp_core.data.csv_files import head_of
from fedhelp_core.data.datalist import Manifest, as_published, manifest_from, with_validation
from fedhelp_core.data.medmnist import MedMnist, read_medmnist
from fedhelp_core.data.names import is_text, not_text, plain
from fedhelp_core.data.own_csv import Reading, columns_of, read_own_csv
from fedhelp_core.data.sharing import dealt, skewed
from fedhelp_core.data.volumes_and_masks import read_volumes_and_masks
from fedhelp_core.errors import ConfigError, DataError
from fedhelp_core.registry.tasks import PRESETS, Form


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
    lesions: Path | None = None
    count: int | None = None
    """So many hospitals, for one hospital's images that are dealt out."""
    skew: float | None = None
    """How many times as large the largest of them is as the smallest; None: as in the paper."""
    images_each: tuple[int, ...] = ()
    """Their images for training and validation; the rest is left out."""
    unpacked: Path = Path("images")
    """Folder for the images of an archive: the datalists name files."""
    test_only: bool = False
    """All images are for the test: the hospital trains nothing."""
    silos: tuple[str, ...] = ()
    """Names for the hospitals, as THEIRS=name; empty: the layout's own. Hospitals that the set itself does not name go by their order."""
    test_fraction: float | None = None
    validation_fraction: float | None = None

    def given(self) -> set[str]:
        """Names of the options that were given."""
        return {name for name in self.__dataclass_fields__ if name != "unpacked" and getattr(self, name) not in (None, (), {}, False)}

    @property
    def hands(self) -> tuple[float, ...]:
        """Sizes of the hospitals that one hospital's images are dealt out to; empty: to nobody.

        Raises:
            ConfigError: said in two ways.
        """
        said = [f"--{name.replace('_', '-')}" for name in ("count", "sizes", "images_each") if getattr(self, name)]
        said = ["--silos N" if name == "--count" else name for name in said]
        if len(said) > 1 or (self.skew is not None and (self.sizes or self.images_each)):
            raise ConfigError(f"{', '.join(said if self.skew is None else [*said, '--skew'])}: each says how hospitals are dealt; give one of them")
        if self.count or self.skew is not None:
            return skewed(self.count or len(PAPER_SIZES), self.skew)
        return self.images_each or self.sizes


@dataclass(frozen=True)
class Hospital:
    """One hospital's images."""

    manifest: Manifest
    origin: str = ""
    """What the data set itself calls the hospital; '' where it names none."""


_EVERYWHERE = frozenset({"silos", "count", "skew", "sizes", "images_each", "test_only", "validation_fraction"})
_Find = Callable[[Path, TaskConfig, Options], dict[str, Hospital]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One layout."""

    holds: str
    """What lies in the folder, in words."""
    task: str | None
    """The preset it is for, unless another is named; None: its files say, or nobody."""
    form: Form | None
    """What its answers are; None: whichever the task asks for."""
    options: frozenset[str]
    """Beside those that every layout takes."""
    find: _Find
    hands: tuple[float, ...] = ()
    """Sizes of the hospitals that it is dealt out to where nobody says others."""
    archive: Callable[[Path, Options], MedMnist] | None = None
    """Opens the archive whose images have to be written as files, and that names task and classes."""


def hospitals_of(layout: str, folder: Path, task: TaskConfig, options: Options) -> dict[str, Hospital]:
    """Silo name -> its images, in the layout's order. Opens no image.

    Raises:
        ConfigError: no such layout, an option that it does not take, or names that cannot be silos'.
        DataError: something that all of it hangs on is missing.
    """
    entry = layout_called(layout)
    surplus = sorted(options.given() - entry.options - _EVERYWHERE)
    if surplus:
        takes = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(entry.options | _EVERYWHERE - {"count"}))
        raise ConfigError(f"--{surplus[0].replace('_', '-')}: layout {layout} does not take it; it takes {takes}")
    if entry.form not in (None, "masks" if task.per_pixel else task.form):
        fitting = ", ".join(name for name, preset in PRESETS.items() if preset.task["form"] == entry.form)
        raise ConfigError(f"--task: layout {layout} has no answers of the kind that {task.name} needs; one of {fitting} expected")
    if not is_text(folder):
        raise DataError(not_text(folder))
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds {entry.holds}")
    found = entry.find(folder, task, options)
    hands = options.hands or entry.hands
    if hands:
        found = _dealt(found, hands, images=bool(options.images_each))
    finish = _as_a_test if options.test_only else with_validation
    return _named({silo: replace(one, manifest=finish(one.manifest, options.validation_fraction)) for silo, one in found.items()}, options.silos)


def _dealt(found: Mapping[str, Hospital], hands: Sequence[float], *, images: bool) -> dict[str, Hospital]:
    """The one hospital's images, dealt out; what is wrong with them is nobody's in particular, and told of the first."""
    if len(found) > 1:
        called = ", ".join(one.origin or silo for silo, one in found.items())
        raise ConfigError(f"--silos, --sizes: images of one hospital can be dealt out, and the set names {len(found)}: {called}; leave it out")
    whole = next(iter(found.values())).manifest
    if images:
        whole = replace(whole, training=(*whole.training, *whole.validation), validation=())
    if images and sum(hands) > len(whole.training):
        raise ConfigError(f"--images-each: at most {len(whole.training):,} in all expected, for so many are not for the test; got {sum(hands):,.0f}")
    parts: list[dict[str, Any]] = [*dealt(dict(whole.splits()), whole.subjects, hands, images=images)]
    return {
        f"hospital-{number}": Hospital(replace(
            whole, source=f"{whole.source}, share {number}", problems=() if number else whole.problems, notes=() if number else whole.notes, **hand))
        for number, hand in enumerate(parts)}


def _as_a_test(whole: Manifest, fraction: float | None) -> Manifest:
    """All images for the test, but for a `fraction` for validation: an operating point is chosen by them, nothing is trained."""
    everything = replace(whole, training=(*whole.training, *whole.validation, *whole.test), validation=(), test=(), test_only=True)
    parted = with_validation(everything, fraction or 0.0)
    return replace(parted, training=(), test=parted.training)


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
    beside = [place / name for place in dict.fromkeys((folder, split_csv.parent)) for name in fed_isic.METADATA if (place / name).is_file()]
    lesions = options.lesions or next(iter(beside), None)
    return {
        f"center-{center}": Hospital(as_published(
            FedIsicData(layout="fed-isic2019", images=images, split_csv=split_csv, center=center, lesions=lesions)), origin=f"center {center}")
        for center in fed_isic.centers_in(split_csv)}


def _chest_xray(folder: Path, _task: TaskConfig, options: Options) -> dict[str, Hospital]:
    roots = [root for root in (folder, *_subfolders(folder)) if all((root / name).is_dir() for name in FOLDERS.values())]
    root = roots[0] if roots else folder  # the archive has the set in a folder of its own
    return {"hospital-0": Hospital(as_published(ChestXrayData(layout="chest-xray", root=root, share=Share(number=0))))}


def _pictures(folder: Path, _task: TaskConfig, options: Options) -> dict[str, Hospital]:
    if options.prefixes and options.hands:
        raise ConfigError("--prefixes, --sizes: hospitals are told by one or dealt out by the other; give one of them")
    images = options.images or _first_folder(folder, ("images", "CXR_png", "img"))
    masks = options.masks or _first_folder(folder, ("masks", "mask"))
    more = _given(options, "test_fraction")
    return {
        _slug(prefix) or "hospital-0": Hospital(
            as_published(PicturesAndMasks(layout="pictures-and-masks", images=images, masks=masks, prefix=prefix, **more)), origin=prefix)
        for prefix in options.prefixes or ("",)}


def _fed_ixi(folder: Path, _task: TaskConfig, options: Options) -> dict[str, Hospital]:
    split_csv = options.split_csv or _csv_with(folder, (fed_ixi.PATIENT, fed_ixi.SPLIT), "--split-csv")
    root = options.images or next((one for one in (folder, *_subfolders(folder)) if any(one.glob("IXI*-*"))), folder)
    present = [hospital for hospital in ("Guys", "HH", "IOP") if any(root.glob(f"IXI*-{hospital}*"))]
    if not present:
        raise DataError(f"{root}: no subject folder like IXI002-Guys-0828; give the folder of the subjects' folders with --images")
    return {
        hospital.lower(): Hospital(as_published(FedIxiData(layout="fed-ixi", root=root, split_csv=split_csv, hospital=hospital)), origin=hospital)
        for hospital in present}


def _volumes(folder: Path, _task: TaskConfig, options: Options) -> dict[str, Hospital]:
    images, masks = options.images or folder / "images", options.masks or folder / "masks"
    more = {} if options.test_fraction is None else {"test": options.test_fraction}
    return {"hospital-0": Hospital(manifest_from(str(images), *read_volumes_and_masks(images, masks, **more)))}


def _own_csv(folder: Path, task: TaskConfig, options: Options) -> dict[str, Hospital]:
    path = options.csv or _only_csv(folder)
    unknown = sorted(set(options.columns) - set(columns_of(task)))
    if unknown:
        raise ConfigError(f"--columns: {unknown[0]!r} is none of {', '.join(columns_of(task))}; write ours=yours, e.g. image=File")
    fractions: dict[str, Any] = _given(options, "test_fraction")
    listed = read_own_csv(path, Reading(task=task, folder=folder, columns=options.columns, **fractions))
    if not listed:
        raise DataError(f"{path}: has no row; write a row an image")
    names = {theirs: _slug(theirs) or "hospital-0" for theirs in listed}
    if len(set(names.values())) != len(names):
        raise ConfigError(f"{path}: hospitals {', '.join(map(repr, names))} cannot be told apart as silo names; write them with letters and digits")
    return {
        names[theirs]: Hospital(
            manifest_from(
                f"{path}, {theirs}" if theirs else str(path), {split: tuple(items) for split, items in one.splits.items()}, one.problems, one.notes,
                one.subjects),
            theirs)
        for theirs, one in listed.items()}


def _archive(folder: Path, options: Options) -> MedMnist:
    found = [options.images] if options.images else sorted(folder.glob("*.npz"))
    if len(found) != 1:
        said = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{folder}: one .npz of MedMNIST expected in it, found {said}; give its path with --images")
    return read_medmnist(found[0])


def _medmnist(folder: Path, _task: TaskConfig, options: Options) -> dict[str, Hospital]:
    archive = _archive(folder, options)
    return {"hospital-0": Hospital(manifest_from(str(archive.path), archive.items(options.unpacked)))}


LAYOUTS: Mapping[str, Layout] = {
    "fed-isic2019": Layout(
        holds="Fed-ISIC2019: a folder of <image>.jpg and FLamby's split CSV (image, target, center, fold); a silo a center", task="melanoma",
        form="classes", options=frozenset({"images", "split_csv", "lesions"}), find=_fed_isic),
    "chest-xray": Layout(
        holds="the paediatric chest X-rays: train|val|test / NORMAL|PNEUMONIA / *.jpeg; dealt out to six silos, or by --silos N, --sizes",
        task="pneumonia", form="classes", options=frozenset(), find=_chest_xray, hands=PAPER_SIZES),
    "pictures-and-masks": Layout(
        holds="pictures in images/ and masks of the same names in masks/; silos by --prefixes or --sizes", task="lung-segmentation", form="masks",
        options=frozenset({"images", "masks", "prefixes", "test_fraction"}), find=_pictures),
    "fed-ixi": Layout(
        holds="Fed-IXI: IXI002-Guys-0828/T1/*.nii.gz, /label/*.nii.gz and FLamby's split CSV; silos guys, hh, iop", task="brain-segmentation",
        form="masks", options=frozenset({"images", "split_csv"}), find=_fed_ixi),
    "volumes-and-masks": Layout(
        holds="volumes in images/ and masks/: a folder of DICOM slices or a NIfTI file for each subject; silos by --sizes", task="brain-segmentation",
        form="masks", options=frozenset({"images", "masks", "test_fraction"}), find=_volumes),
    "medmnist": Layout(
        holds="MedMNIST: one .npz with train, val and test _images and _labels; a silo, or dealt out by --silos N, --sizes", task=None,
        form="classes", options=frozenset({"images"}), find=_medmnist, archive=_archive),
    "csv": Layout(
        holds="a hospital's own CSV (image, label or mask, perhaps split, patient, lesion, hospital) and the images it lists", task=None,
        form=None, options=frozenset({"csv", "columns", "test_fraction"}), find=_own_csv),
}


def _given(options: Options, *names: str) -> dict[str, float]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


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
        below = [] if found else [path.relative_to(folder) for one in _subfolders(folder) for path in sorted(one.iterdir()) if _is_csv(path)]
        if below:
            hint = f", but {below[0]} below it; take in one hospital's folder at a time, or name a list of all with a column hospital (--csv)"
        raise DataError(f"{folder}: one CSV expected in it, found {', '.join(path.name for path in found) or 'none'}{hint}")
    return found[0]


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and not path.name.startswith(".") and path.is_file()
