"""What is learnt: the `task` section of federation.yaml, a whole document that every consumer reads as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer, model_validator

from fedhelp_core.config.files import read_yaml
from fedhelp_core.config.section import Section, validated
from fedhelp_core.config.sentences import SHORT_NAME
from fedhelp_core.printable import nearest
from fedhelp_core.registry.metrics import Metric, metrics_of
from fedhelp_core.registry.tasks import DEFAULT_PRESET, PRESETS, Form, Preset, algorithm_of

TaskName = Annotated[str, StringConstraints(pattern=SHORT_NAME)]
_NEWER = ("preset", "form", "dimensions", "channels", "intensity", "mask_values", "metrics")  # fields that files of the first version do not have
_ENDS = {"percentiles": (0.5, 99.5), "window": (0.0, 255.0), "z-score": (-3.0, 3.0), "none": (0.0, 255.0)}
_MOST_MASK_VALUE = 65535  # of a 16-bit file
_FIRST_SIDE = 64  # pixels: enough to see something by, and seconds a round on two cores
_OWN = "a task of one's own says its form and classes too, for instance form: classes, classes: [none, mild, severe] (docs/tasks.md)"


class VolumeConfig(Section):
    """How volumes are prepared, cut and put together again; read by tasks of three dimensions only."""

    spacing: float = Field(1.0, gt=0, le=100)
    """Side of a voxel in mm after resampling; FreeSurfer conforms to 1 mm too."""
    patch_size: int = Field(64, ge=8, le=512)
    """Side in voxels of the patches that are trained on."""
    patches: int = Field(1, ge=1, le=1000)
    """Patches of each volume in a local epoch."""
    window_size: int = Field(64, ge=8, le=512)
    """Side in voxels of the sliding window that a whole volume is answered with."""
    window_overlap: float = Field(0.25, ge=0, lt=1)
    """Share of a window that its neighbour covers too; MONAI's default."""
    windows: int = Field(4, ge=1, le=1024)
    """Windows answered at a time; fewer need less memory."""


class IntensityConfig(Section):
    """How a channel's intensities, in the scanner's units, become 0 to 255."""

    how: Literal["percentiles", "window", "z-score", "none"] = "percentiles"
    """By 'percentiles' of the volume, a 'window' of values such as Hounsfield units, or 'z-score', in standard deviations of what is not 0.
    'none': they are 0 to 255 already."""
    lower: float | None = None
    """What becomes 0: a percentile (0.5), a value, or standard deviations (-3)."""
    upper: float | None = None
    """What becomes 255: a percentile (99.5), a value, or standard deviations (3)."""

    @property
    def ends(self) -> tuple[float, float]:
        """What becomes 0 and what 255."""
        low, high = _ENDS[self.how]
        return low if self.lower is None else self.lower, high if self.upper is None else self.upper

    @model_validator(mode="after")
    def _ends_make_sense(self) -> Self:
        low, high = self.ends
        if self.how == "window" and None in (self.lower, self.upper):
            raise ValueError("lower: a window needs lower and upper, in the scanner's units")
        if self.how == "none" and (self.lower, self.upper) != (None, None):
            raise ValueError("how: 'none' takes no lower and no upper; leave them out")
        if not low < high or (self.how == "percentiles" and not 0 <= low < high <= 100):
            raise ValueError(f"lower: below upper{', both percentiles from 0 to 100,' if self.how == 'percentiles' else ''} expected, got {low:g} and"
                             f" {high:g}")
        return self


class TaskConfig(Section):
    """What is learnt: what an image shows, what a model answers with, what it is scored by.

    The name of a preset (fedhelp_core/registry/tasks.py) fills in all the rest. A task of one's own says `form` and `classes` too (docs/tasks.md).
    """

    name: TaskName = DEFAULT_PRESET
    """A preset's, or one's own: lower-case letters, digits and '-', at most 40."""
    preset: str | None = None
    """The preset that fills in what this section leaves open, under another name; null: the one that `name` names, if it does."""
    form: Form = "classes"
    """What a model answers with. A task of one's own has to say it."""
    dimensions: Literal[2, 3] = 2
    """Of an image: 2 pictures, 3 volumes."""
    channels: int = Field(3, ge=1, le=8)
    """Of pictures 3: colour (grey files are shown as colour), or 1: grey, colour files are refused. Of volumes the sequences of an image, registered
    to each other: a file each, or one file of four dimensions. Default: 3 where pictures are classified, else 1."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the integer labels; names of findings or regions; of masks: background, then each
    foreground. Default: the preset's."""
    image_size: int = Field(32, ge=8, le=1024)
    """Side in pixels (of volumes: in voxels) that images are brought to before training. Of a picture the centre square is taken, so that its longer
    side loses both ends."""
    volume: VolumeConfig = VolumeConfig()
    intensity: tuple[IntensityConfig, ...] = ()
    """Of volumes: how intensities become 0 to 255, for all channels or one each. Default: between the 0.5th and the 99.5th percentile."""
    mask_values: tuple[tuple[int, ...], ...] = ()
    """Of each foreground or region, the values in a mask's file that lie inside it, such as [[1, 2, 3], [1, 3], [3]]. Default: 1, 2, 3 and so on;
    of one foreground, whichever value is there."""
    metrics: tuple[str, ...] = ()
    """Scores, of those of the form (docs/tasks.md); tables, report and gate go by the first. Default: all of the form."""

    @property
    def per_pixel(self) -> bool:
        """Whether a model answers about every pixel or voxel of an image, rather than about the image."""
        return self.form in ("masks", "regions")

    @property
    def answered(self) -> tuple[str, ...]:
        """What a model has an output for: the classes but for a mask's background, the findings, the regions."""
        return self.classes[1:] if self.form == "masks" else self.classes

    @property
    def intensity_of_each(self) -> tuple[IntensityConfig, ...]:
        """Of each channel."""
        given = self.intensity or (IntensityConfig(),)
        return given * self.channels if len(given) == 1 else given

    @property
    def values_inside(self) -> tuple[tuple[int, ...], ...]:
        """Of each of `answered`, the values in a mask's file that lie inside it."""
        return self.mask_values or tuple((number,) for number in range(1, len(self.answered) + 1))

    @property
    def ranks(self) -> bool:
        """Whether there are classes or findings for Eq 5 to order."""
        return not self.per_pixel and len(self.classes) > 1

    @property
    def scored_by(self) -> tuple[Metric, ...]:
        """The scores that `metrics` names."""
        known = metrics_of(self.form, self.dimensions)
        return tuple(known[name] for name in self.metrics)

    @property
    def headline(self) -> Metric:
        """The score that tables, report and gate go by."""
        return self.scored_by[0]

    @model_validator(mode="before")
    @classmethod
    def _with_what_is_left_open(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        if _preset(document) is None and document.get("preset") is not None:
            raise ValueError(f"preset: {_unknown(document['preset'])}")
        if _preset(document) is None and document.get("form") is None and isinstance(document.get("name"), str):
            raise ValueError(f"name: {_unknown(document['name'])}; {_OWN}")
        return filled(document)

    @model_validator(mode="after")
    def _fields_make_sense(self) -> Self:
        own = PRESETS.get(self.name)
        if own is not None and self.preset not in (None, self.name):
            raise ValueError(f"name: {self.name!r} is a preset itself; give the task that begins with preset {self.preset!r} another name")
        if own is not None and (self.form, self.dimensions) != (form := own.task["form"], own.task.get("dimensions", 2)):
            raise ValueError(f"form: {form!r} expected of preset {self.name!r}, in its own dimensions; give another task a name of its own")
        if len(self.classes) < (least := 1 if self.form in ("labels", "regions") else 2):
            raise ValueError(f"classes: at least {least} {'names' if least > 1 else 'name'} expected, got {len(self.classes)}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: names must differ from each other")
        if self.dimensions == 2 and self.channels not in (1, 3):
            raise ValueError(f"channels: pictures have 1 (grey) or 3 (colour), got {self.channels}; several sequences are for volumes")
        self._require_mask_values_of_each()
        if self.intensity and (self.dimensions == 2 or len(self.intensity) not in (1, self.channels)):
            what = f"one for all channels or one for each of {self.channels}" if self.dimensions == 3 else "none for pictures, whose bits say it,"
            raise ValueError(f"intensity: {what} expected, got {len(self.intensity)}")
        if self.dimensions == 3:
            largest = max(self.volume.patch_size, self.volume.window_size)
            if largest > self.image_size:
                raise ValueError(f"volume: patch_size and window_size of at most image_size ({self.image_size}) expected, got {largest}")
        self._require_known_metrics()
        return self

    def _require_mask_values_of_each(self) -> None:
        if not self.mask_values:
            return
        if not self.per_pixel:
            raise ValueError(f"mask_values: belongs to masks and regions, got form {self.form!r}; leave it out")
        if len(self.mask_values) != len(self.answered) or not all(self.mask_values):
            raise ValueError(f"mask_values: a list of values for each of {', '.join(self.answered)} expected, got {len(self.mask_values)} lists")
        values = [value for inside in self.mask_values for value in inside]
        if min(values) < 1 or max(values) > _MOST_MASK_VALUE:
            raise ValueError(f"mask_values: whole numbers from 1 to {_MOST_MASK_VALUE:,} expected, got {min(values)} to {max(values)}")
        if self.form == "masks" and len(set(values)) != len(values):
            raise ValueError("mask_values: each value once expected of masks, whose classes exclude each other; regions may share values")

    def _require_known_metrics(self) -> None:
        known = list(metrics_of(self.form, self.dimensions))
        for number, name in enumerate(self.metrics):
            if name not in known:
                near = nearest(name, known)
                raise ValueError(f"metrics.{number}: one of {', '.join(known)} expected of form {self.form!r}, got {name!r}"
                                 + (f"; did you mean {near!r}?" if near else ""))
        if not self.metrics or len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"metrics: at least one, each once, expected, got {', '.join(self.metrics) or 'none'}")

    @model_serializer(mode="wrap")
    def _without_what_the_preset_says(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A preset's newer fields are not in the text where they are as the preset has them, so that older configs keep their sha256."""
        document: dict[str, Any] = handler(self)
        if self.name not in PRESETS:
            return document
        plain = {field: type(self).model_fields[field].default for field in _NEWER} | filled({"name": self.name})
        return {field: value for field, value in document.items() if field not in _NEWER or getattr(self, field) != plain[field]}


def filled(document: Mapping[str, Any]) -> dict[str, Any]:
    """A `task` section with what its preset, and then its form, has for the fields that it leaves open."""
    preset = _preset(document)
    said = {"name": DEFAULT_PRESET, **(preset.task if preset is not None else {}), **document}
    form, dimensions = said.get("form"), said.get("dimensions", 2)
    of_form: dict[str, Any] = {"channels": 3 if form in ("classes", "labels") and dimensions == 2 else 1}
    if form is not None and form in get_args(Form) and dimensions in (2, 3):  # else their own fault is told
        of_form["metrics"] = tuple(metrics_of(form, dimensions))
    return {**of_form, **said}


def algorithm_for(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a file that leaves fields of `algorithm` open gets for this `task` section: its preset's, and then what suits its form."""
    preset, said = _preset(document), filled(document)
    classes = said.get("classes")
    return {
        **algorithm_of(said.get("form"), said.get("dimensions", 2), len(classes) if isinstance(classes, list | tuple) else 0),
        **(preset.algorithm if preset is not None else {})}


def task_asked_for(said: str) -> TaskConfig:
    """The task that option --task names: a preset, or a YAML file with a `task` section, alone in it or beside others; with a small side.

    Raises:
        ConfigError: there is neither, or the section is wrong.
    """
    if not said.endswith((".yaml", ".yml")):
        return validated(TaskConfig, {"name": said, "image_size": _FIRST_SIDE}, "--task")
    document = read_yaml(Path(said))
    return validated(TaskConfig, {"image_size": _FIRST_SIDE, **(document["task"] if isinstance(document.get("task"), dict) else document)}, said)


def with_classes(task: TaskConfig, classes: Sequence[str]) -> TaskConfig:
    """`task` with other classes, where there are any: no longer the preset, and no longer called it.

    Raises:
        ConfigError: they cannot be its classes.
    """
    if not classes or tuple(classes) == task.classes:
        return task
    named = {"name": f"{task.name}-{len(classes)}", "preset": task.name} if task.name in PRESETS else {}
    return validated(TaskConfig, {**task.model_dump(exclude_unset=True), **named, "classes": tuple(classes)}, "--classes")


def _preset(document: Mapping[str, Any]) -> Preset | None:
    """The one that a section goes on from."""
    return PRESETS.get(str(document.get("preset") or document.get("name", DEFAULT_PRESET)))


def _unknown(name: object) -> str:
    """That there is no preset of this name."""
    near = nearest(str(name), list(PRESETS))
    return f"{str(name)[:60]!r} is none of the presets {', '.join(PRESETS)}" + (f"; did you mean {near!r}?" if near else "")
