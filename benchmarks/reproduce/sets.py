"""The real sets as federations: which hospitals, whose images made the field's teacher, who is asked from outside, and the settings.

Read by prepare.py. Every set is what `fedhelp data ingest` makes of the published files. Sizes are scaled down for two cores; `--full` takes all
training images. Sources and licences: docs/reproduce/real-images.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedhelp_core.config.silo import PAPER_SIZES
from fedhelp_core.data.leakage import Side
from fedhelp_core.data.public_layouts import Options

_AS_PUBLISHED = Options()
_FIFTIETH = tuple(max(8, round(size / 50)) for size in PAPER_SIZES)  # 199, 63, 54, 36, 13, 8
_TEACHERS_HOSPITAL = 1000  # images that it has to be asked about, and as many that its teacher learnt from
_WITH_VALIDATION = 1.25  # a fifth of a hospital's images is set aside


@dataclass(frozen=True, kw_only=True)
class Source:
    """Hospitals of one published set, as `fedhelp data ingest LAYOUT FOLDER` reads them."""

    layout: str
    folder: str
    """Below DATA."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Options that name files, relative to the folder."""
    options: Options = _AS_PUBLISHED
    drop_leaked: Side | None = None

    def options_in(self, data: Path) -> Options:
        """The options, with files found below DATA."""
        return replace(self.options, **{name: data / self.folder / file for name, file in self.files.items()})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class RealSet:
    """One study."""

    name: str
    task: str
    title: str
    hospitals: Source
    full_hospitals: Source
    """With all training images."""
    names: Mapping[str, str]
    """Hospital as the layout calls it -> its name here. One that is not listed takes no part."""
    share: float = 1.0
    """Of each hospital's training images, patient by patient."""
    teacher_hospital: str = ""
    """As the layout calls it: half of its patients are labelled images that the field's teacher learnt from, the others are asked about."""
    outside: Mapping[str, Source] = field(default_factory=dict)
    """Hospitals that train nothing."""
    algorithm: Mapping[str, object] = field(default_factory=dict)
    image_size: int = 32
    volume: Mapping[str, object] | None = None


_CLASSIFICATION: Mapping[str, object] = {
    "rounds": 12, "proxy_model": "resnet8", "large_model": "resnet20", "large_silos": 2, "batch_size": 4, "public_batch_size": 32}

_CHEST = Source(layout="chest-xray", folder="pneumonia", drop_leaked="training", options=Options(
    images_each=tuple(round(size * _WITH_VALIDATION) for size in (*_FIFTIETH, 2 * _TEACHERS_HOSPITAL))))
PNEUMONIA = RealSet(
    name="pneumonia", task="pneumonia", title="Pneumonia on paediatric chest X-rays",
    hospitals=_CHEST, full_hospitals=replace(_CHEST, options=Options(sizes=(*PAPER_SIZES, 5000.0))),
    names={f"hospital-{number}": name for number, name in enumerate(("ada", "bell", "curie", "darwin", "euler", "franklin"))},
    teacher_hospital="hospital-6",
    outside={"nih": Source(layout="csv", folder="pneumonia-nih", files={"csv": "list.csv"}, options=Options(test_only=True))},
    algorithm={**_CLASSIFICATION, "rank_top_k": 1, "augmentation": "mirror"})

_SKIN = Source(layout="fed-isic2019", folder="skin", files={"split_csv": "split_six_lesions_whole.csv"}, drop_leaked="training")
MELANOMA = RealSet(
    name="melanoma", task="melanoma", title="Eight classes of skin lesions",
    hospitals=_SKIN, full_hospitals=_SKIN, share=0.1,
    names={"center-2": "vidir-modern", "center-0": "molemax-a", "center-1": "molemax-b", "center-4": "msk", "center-5": "vienna-dias"},
    teacher_hospital="center-3", algorithm=_CLASSIFICATION)

_BRAIN = Source(layout="fed-ixi", folder="brain", options=Options(images_each=(16, 8, 6)))
BRAIN = RealSet(
    name="brain", task="brain-segmentation", title="Brains on T1-weighted MR volumes", hospitals=_BRAIN, full_hospitals=_BRAIN,
    names={"hospital-0": "ada", "hospital-1": "bell", "hospital-2": "curie"}, teacher_hospital="", image_size=64,
    volume={"spacing": 3.0, "patch_size": 32, "window_size": 64, "patches": 2},
    algorithm={"rounds": 10, "proxy_model": "unet3d-tiny", "large_model": "unet3d", "large_silos": 1, "batch_size": 2})

SETS: Mapping[str, RealSet] = {one.name: one for one in (PNEUMONIA, MELANOMA, BRAIN)}
