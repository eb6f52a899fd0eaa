"""What a hospital knows about itself and never sends: silo.yaml, with a section for each layout of data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedhelp_core.config.files import read_yaml, with_absolute_paths
from fedhelp_core.config.section import Section, SiloName, validated
from fedhelp_core.errors import ConfigError

PAPER_SIZES = (9930, 3163, 2691, 1807, 655, 351)
"""Fed-ISIC2019's training images, the paper's skew."""


class _Layout(Section):
    """What every public data set's layout has."""

    validation_fraction: float | None = Field(None, ge=0, lt=1)
    """Share of each class's training images that is set aside for validation, whole patients at a time, beside the set's own.
    Null: a fifth or so where the set has fewer than ten (docs/data.md). 0: none."""


class FedIsicData(_Layout):
    """Fed-ISIC2019's own layout: a JPEG folder and FLamby's split CSV."""

    layout: Literal["fed-isic2019"]
    images: Path
    """Folder of <image>.jpg files."""
    split_csv: Path
    """CSV with columns image, target, center, fold, fold2, perhaps lesion or patient."""
    center: int = Field(ge=0)
    """Which rows are this hospital's."""
    lesions: Path | None = None
    """CSV with columns image_id, lesion_id, as HAM10000_metadata.csv; null: only the split CSV says which images show the same."""


class DatalistData(Section):
    """A MONAI datalist: JSON with lists training, validation, test of {image, label}."""

    layout: Literal["datalist"]
    datalist: Path
    """The JSON file, as `fedhelp data ingest` writes it."""
    root: Path | None = None
    """Folder that image paths are relative to; null: the datalist's folder."""
    test_only: bool = False
    """Whether the hospital trains nothing: it may have test images alone, and no run that trains takes it in."""


class Share(Section):
    """Which part of a public data set is this hospital's, where the data set itself knows no hospitals.

    Subjects are dealt out by the hash of their names, class by class, so that the same files always fall to the same hospital.
    """

    number: int = Field(ge=0)
    """This hospital's place in `sizes`, from 0."""
    sizes: tuple[Annotated[float, Field(gt=0)], ...] = Field(PAPER_SIZES, min_length=1, max_length=1000)
    """Relative sizes of all hospitals; default: Fed-ISIC2019's training sets, the paper's skew."""

    @model_validator(mode="after")
    def _number_is_a_place(self) -> Self:
        if self.number >= len(self.sizes):
            raise ValueError(f"number: 0 to {len(self.sizes) - 1} expected for {len(self.sizes)} sizes, got {self.number}")
        return self


class ChestXrayData(_Layout):
    """Paediatric chest X-rays in their own layout: train|val|test / NORMAL|PNEUMONIA / *.jpeg, shared out to hospitals."""

    layout: Literal["chest-xray"]
    root: Path
    """Folder with train, val and test."""
    share: Share


class PicturesAndMasks(_Layout):
    """Grey pictures in one folder and their masks in another, as the public lung sets are published, shared out to hospitals.

    The mask of `<name>.png` is `<name>.png` or `<name>_mask.png`. Test pictures are chosen by the hash of their names.
    """

    layout: Literal["pictures-and-masks"]
    images: Path
    """Folder of PNG or JPEG pictures."""
    masks: Path
    """Folder of PNG masks: background 0, foreground one other value."""
    prefix: str = ""
    """Only pictures whose names begin so: sets that were merged keep their sources' prefixes."""
    share: Share | None = None
    """Which part is this hospital's; null: all of it."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the pictures held out for the test."""


class FedIxiData(_Layout):
    """Fed-IXI's own layout: a folder a subject (IXI002-Guys-0828) with T1/*.nii.gz and label/*.nii.gz, and FLamby's split CSV."""

    layout: Literal["fed-ixi"]
    root: Path
    """Folder of the subjects' folders."""
    split_csv: Path
    """CSV with columns Patient ID and Split (train or test)."""
    hospital: Literal["Guys", "HH", "IOP"]
    """Which subjects are this hospital's."""


class AdoptionConfig(Section):
    """How the hospital takes a model into use, and what it makes of its answers: docs/ward.md."""

    store: str | None = None
    """Where the hub keeps the record of its models: a folder, file:///folder or s3://bucket/prefix; null: --store names it."""
    endpoint_url: str | None = None
    """S3 endpoint other than AWS."""
    model: str | None = None
    """Registered name of the model; null: the only one that there is."""
    tolerance: float = Field(0.02, ge=0, le=1)
    """How far below the model in use a new one may score on the hospital's own test images, to be adopted. 0.02: two of a hundred answers.
    The hub's gate lets each hospital fall by 0.05."""
    announce: bool = False
    """Whether the store may hear that this hospital adopted a version, and nothing else; false: nothing leaves."""
    undecided_margin: float = Field(0.2, ge=0, le=1)
    """An image whose two likeliest classes are nearer than this, in probability at the operating point, is not decided. 0.2: of two classes, between
    0.4 and 0.6, where a calibrated model is wrong in four to five of ten images. 0: always decided."""
    undecided_dice: float = Field(0.7, ge=0, le=1)
    """A mask whose expected Dice, by the model's own probabilities, is below this is not decided. 0.7: below it, two raters' masks are
    not called alike (Zijdenbos et al. 1994). 0: always decided."""


class SiloConfig(Section):
    """What a hospital knows about itself: `silo.yaml`. Never leaves the silo."""

    version: Literal[1] = 1
    """Of this file's format."""
    name: SiloName
    """The hospital's, as federation.yaml has it."""
    data: Annotated[FedIsicData | DatalistData | ChestXrayData | PicturesAndMasks | FedIxiData, Field(discriminator="layout")]
    """Where the hospital's images are, by `layout`."""
    state: Path
    """Folder on the silo's own volume: large model, heads, optimizer, caches, egress ledger, adopted models."""
    named: bool = False
    """Whether the hospital's name and numbers of images may stand beside its scores in the model's record and card, which all hospitals read."""
    adoption: AdoptionConfig = AdoptionConfig()


_SILO_PATHS = ("data.images", "data.split_csv", "data.lesions", "data.datalist", "data.root", "data.masks", "state", "adoption.store")


def load_silo(path: str | Path) -> SiloConfig:
    """Read and validate silo.yaml. Relative paths in it are taken from the file's folder.

    Raises:
        ConfigError: with every problem found.
    """
    path = Path(path)
    try:
        return validated(SiloConfig, with_absolute_paths(read_yaml(path), path.parent, _SILO_PATHS), str(path))
    except ConfigError as e:
        raise ConfigError(e.problems, public=f"silo.yaml cannot be used ({len(e.problems)} problems)") from e
