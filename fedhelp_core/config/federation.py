"""What the hub knows: federation.yaml, read, validated and frozen. Each field's description gives unit and source of its default."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.card import CardConfig
from fedhelp_core.config.dispatch import SiloEntry
from fedhelp_core.config.files import mapping_in, read_yaml, template_in, with_absolute_paths, with_changed
from fedhelp_core.config.section import WORD_OR_MORE, GrownSection, Section, SiloName, validated
from fedhelp_core.config.sentences import MORE, WORD, models_in, sentences
from fedhelp_core.config.start import StartConfig
from fedhelp_core.config.task import TaskConfig, algorithm_for
from fedhelp_core.config.teachers import PublicSetConfig
from fedhelp_core.errors import ConfigError
from fedhelp_core.printable import nearest
from fedhelp_core.registry.methods import METHOD_PARTS
from fedhelp_core.registry.models import Network, model_called, smallest_trained_side
from fedhelp_core.registry.tasks import ENOUGH_VALIDATION, Form
from fedhelp_core.store.url import folder_of

OperatingRule = Literal["argmax", "prior-corrected", "validation"]
_OBJECTS = ("abort", "commit", "federation", "global", "kinds", "lease")


class ProtocolConfig(Section):
    """The round protocol: who must answer, how long to wait, what is accepted."""

    min_silos: int = Field(0, ge=0)
    """Fewest updates that close a round; fewer end the run. 0: more than half of the silos."""
    round_deadline: float = Field(3600.0, gt=0)
    """Seconds that a round waits for silos; the late are left out of it."""
    lease: float = Field(600.0, ge=1, le=86400)
    """Seconds without a sign of the hub after which a silo's worker ends itself."""
    max_update_bytes: int = Field(4 * 2**30, ge=1024)
    """Largest weights file accepted, bytes."""
    max_update_norm: float | None = Field(None, gt=0)
    """Largest L2 norm of (update - global); null: unbounded."""
    max_norm_ratio: float | None = Field(3.0, ge=2)
    """Largest L2 norm of (update - global) by the root of a silo's batches, in medians of the round's updates; of one tensor twice that.
    Who is beyond is refused and named (docs/decisions/0020). null: unbounded."""
    max_statistics_ratio: float | None = Field(20.0, ge=2)
    """The same for how far batch norms' running means (in standard deviations) and variances (in logarithms) lie from the round's median."""
    min_direction: float | None = Field(-0.3, ge=-1, lt=1)
    """Smallest cosine between an update's step and the round's median step; who is below is refused and named. null: any."""


class RuntimeConfig(Section):
    """What fixes the numbers."""

    seed: int = Field(1, ge=0, lt=2**63)
    """All randomness comes from (seed, silo, round)."""
    threads: int = Field(1, ge=1, le=256)
    """CPU threads per silo; part of what makes results bit-identical."""
    device: Literal["cpu", "cuda", "auto"] = "auto"
    """'auto': the GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of training: 'auto' mixes in bfloat16 on GPUs that have it and is float32 on CPUs; weights travel as float32 always."""


class StoreConfig(Section):
    """Where everything is exchanged."""

    url: str
    """file:///folder, a plain folder, or s3://bucket/prefix."""
    endpoint_url: str | None = None
    """S3 endpoint other than AWS; credentials come from the environment."""

    @model_validator(mode="after")
    def _is_a_place(self) -> Self:
        try:
            folder_of(self.url)
        except ValueError as e:
            raise ValueError(f"url: {e}") from e
        return self

    @property
    def folder(self) -> Path | None:
        """Of this machine; None for a bucket."""
        return folder_of(self.url)


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = None
    """Tracking URI; null: $MLFLOW_TRACKING_URI, else SQLite beside the store."""
    experiment: str = "fedhelp"
    """MLflow experiment that runs are logged in."""
    registered_model: str | None = None
    """Name in the Model Registry; null: the federation's name."""


class PromotionConfig(Section):
    """When a candidate becomes champion."""

    mode: Literal["gate", "manual"] = "gate"
    """'gate': by δ and ε below. 'manual': a person decides, with `fedhelp promote`."""
    min_improvement: float = Field(0.0, ge=0, le=1)
    """δ: small silos' mean score must rise by at least this."""
    max_regression: float = Field(0.05, ge=0, le=1)
    """ε: no silo's score may fall by more than this."""


class EvaluationConfig(Section):
    """How hospitals decide with a model that names classes or findings; masks are cut at probability 0.5 (docs/algorithm.md, operating point)."""

    operating_point: OperatingRule = "validation"
    """'argmax': the likeliest class, findings above 0.5. 'prior-corrected': the likeliest one if all classes, or images with and without a
    finding, were equally common. 'validation': that, with temperature and offsets fitted on the hospital's validation images."""
    min_validation_images: int | None = Field(None, ge=1, le=1_000_000)
    """Fewest validation images that a hospital fits by, or chooses a model by; with fewer, 'validation' is 'prior-corrected'. Of a finding those
    count in which it is labelled. null: ten, of masks four."""
    every: int = Field(5, ge=0, le=100_000)
    """Rounds between scores of the global model on each hospital's validation images, which the report and MLflow show by round; 0: none."""

    def enough_validation(self, form: Form) -> int:
        """Validation images that a decision may stand on."""
        return self.min_validation_images or ENOUGH_VALIDATION[form]


class Federation(GrownSection):
    """One federation: `federation.yaml`."""

    newer: ClassVar[frozenset[str]] = frozenset({"start", "card"})

    version: Literal[1] = 1
    """Of this file's format."""
    name: SiloName
    """Lower-case letters, digits and '-', at most 40; run ids and the registered model begin with it."""
    task: TaskConfig = TaskConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    public_set: PublicSetConfig | None = None
    store: StoreConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    promotion: PromotionConfig = PromotionConfig()
    start: Annotated[Annotated[Literal["seed"], Tag(WORD)] | Annotated[StartConfig, Tag(MORE)], WORD_OR_MORE] = "seed"
    """What the first round starts from: the seed, or a model that was trained before (docs/operating.md)."""
    card: CardConfig | None = None
    """What the model card says beside numbers; null: what it says of itself."""
    silos: tuple[SiloEntry, ...] = Field(min_length=1)
    """The hospitals."""

    @property
    def silo_names(self) -> tuple[str, ...]:
        """Names in the order of the file: the order in which updates are summed."""
        return tuple(silo.name for silo in self.silos)

    @property
    def quorum(self) -> int:
        """Fewest updates that close a round, and evaluations that make a candidate."""
        return self.protocol.min_silos or len(self.silos) // 2 + 1

    def steps(self, samples: int) -> int:
        """Optimizer steps that a silo with so many training images takes in a round, on its proxy and on these images."""
        visits = self.task.volume.patches if self.task.dimensions == 3 else 1
        return math.ceil(samples * visits / self.algorithm.batch_size) * self.algorithm.local_epochs

    @property
    def silos_here(self) -> tuple[SiloEntry, ...]:
        """Those that work as processes of this machine."""
        return tuple(silo for silo in self.silos if silo.dispatch.how.carrier is None)

    @property
    def silos_in_clusters(self) -> tuple[SiloEntry, ...]:
        """Those that work as Jobs, wherever that is."""
        return tuple(silo for silo in self.silos if silo.dispatch.how.carrier is not None)

    @model_validator(mode="before")
    @classmethod
    def _champion_in_a_word(cls, document: Any) -> Any:
        """`start: champion` for `start: {model: champion}`."""
        return {**document, "start": {"model": "champion"}} if isinstance(document, dict) and document.get("start") == "champion" else document

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, document: Any) -> Any:
        """What the file leaves open in `algorithm`, as its task has it."""
        chosen = document.get("task") if isinstance(document, dict) else None
        algorithm = document.get("algorithm", {}) if isinstance(document, dict) else None
        if not isinstance(chosen, dict) or not isinstance(algorithm, dict):
            return document
        return {**document, "algorithm": {**algorithm_for(chosen), **algorithm}}

    @property
    def registered_name(self) -> str:
        """Of its model in MLflow's registry."""
        return self.tracking.registered_model or self.name

    @property
    def uses_public_set(self) -> bool:
        """Whether the method runs Eq 2 and so needs soft labels."""
        return METHOD_PARTS[self.algorithm.method].soft_labels

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        problems = []
        duplicates = sorted({n for n in self.silo_names if self.silo_names.count(n) > 1})
        if duplicates:
            problems.append(f"silos: name {duplicates[0]!r} is used twice, expected each once")
        for number, name in enumerate(self.silo_names):
            if name in _OBJECTS or name.startswith("global-"):  # with the store's policy in docs/security.md, others could read its objects
                problems.append(f"silos.{number}.name: {name!r} is what an object of each run is called; choose another name")
        if self.protocol.min_silos > len(self.silos):
            problems.append(f"protocol.min_silos: {self.protocol.min_silos} silos asked for, but only {len(self.silos)} are listed under silos")
        problems += self._models_that_do_not_fit()
        if self.task.ranks and self.algorithm.rank_top_k >= len(self.task.classes):
            problems.append(f"algorithm.rank_top_k: must be below the number of classes ({len(self.task.classes)}), got {self.algorithm.rank_top_k}")
        if self.algorithm.class_weights != "none" and self.task.form != "classes":
            why = "where soft Dice (Eq 6) balances foreground and background" if self.task.per_pixel else "where each finding is by itself"
            problems.append(f"algorithm.class_weights: 'none' expected for {self.task.name}, {why}, got {self.algorithm.class_weights!r}")
        if self.uses_public_set and self.public_set is None:
            problems.append(f"public_set: method {self.algorithm.method!r} learns from soft labels, so public_set.images and public_set.teachers are"
                            " needed (or choose method: fedhelp-no-api)")
        problems += self._teachers_that_do_not_fit()
        problems += self._silos_that_label_something_else()
        if self.algorithm.pretrained.proxy is not None and self.start != "seed":
            problems.append("algorithm.pretrained.proxy: the run starts from a model already (start); leave one of them out")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _teachers_that_do_not_fit(self) -> list[str]:
        """One that names no classes, or whose masks are of another grid than the task's."""
        teachers = list(enumerate(self.public_set.teachers if self.public_set is not None else ()))
        if self.task.form == "classes":
            return [f"public_set.teachers.{number}.classes: at least 2 expected where teachers name classes, got {teacher.classes}"
                    for number, teacher in teachers if teacher.classes < 2]
        if not self.task.per_pixel:
            return []
        side = self.task.image_size
        return [f"public_set.teachers.{number}.image_size: masks are learnt pixel by pixel, so task.image_size ({side}) expected, got"
                f" {teacher.image_size}; leave it out" for number, teacher in teachers if teacher.image_size not in (None, side)]

    def labelled_by(self, silo: str) -> tuple[bool, ...] | None:
        """Which of the task's answers the silo labels; None: all, as a silo that the federation does not know."""
        named = next((entry.labelled for entry in self.silos if entry.name == silo), None)
        return None if named is None else tuple(name in named for name in self.task.answered)

    def _silos_that_label_something_else(self) -> list[str]:
        """What is said to be labelled and is no finding of the task."""
        problems = []
        for number, silo in enumerate(self.silos):
            if silo.labelled is None:
                continue
            where = f"silos.{number} ({silo.name!r}).labelled"
            if self.task.form == "classes":
                problems.append(f"{where}: belongs to findings, masks and regions, got form 'classes'; leave it out")
                continue
            if not silo.labelled:
                problems.append(f"{where}: at least one finding expected, got none; leave the silo out, or leave the field out if it labels all")
            for name in silo.labelled:
                if name not in self.task.answered:
                    near = nearest(name, list(self.task.answered))
                    problems.append(f"{where}: one of {', '.join(self.task.answered)} expected, got {name!r}"
                                    + (f"; did you mean {near!r}?" if near else ""))
        return problems

    def _models_that_do_not_fit(self) -> list[str]:
        """A model that does not know this task's images, or an image with sides that it cannot be trained on."""
        task, volume = self.task, self.task.volume
        models: dict[str, Network] = {}
        problems = []
        for field, model in (("proxy_model", self.algorithm.proxy_model), ("large_model", self.algorithm.large_model)):
            if model.network is None:
                continue  # a plugin, which silos alone have: their check builds it
            try:
                models[model.network] = model_called(model.network, "mask" if task.per_pixel else "classes", task.dimensions)
            except ConfigError as e:
                problems.append(f"algorithm.{field}: {e}")
        sides = {"task.image_size": self.task.image_size} if task.dimensions == 2 else {
            "task.volume.patch_size": volume.patch_size, "task.volume.window_size": volume.window_size}
        strictest = max(models, key=lambda name: models[name].sides_multiple_of, default=None)
        if strictest is not None:
            most = models[strictest].sides_multiple_of
            problems += [f"{field}: a multiple of {most} expected for {strictest}, got {side}" for field, side in sides.items() if side % most]
        trained_on = next(iter(sides))  # windows are answered alone, where batch norms use what they know
        deepest = max(models, key=lambda name: smallest_trained_side(models[name]), default=None)
        if deepest is not None and sides[trained_on] < (least := smallest_trained_side(models[deepest])):
            problems.append(
                f"{trained_on}: at least {least} expected for {deepest}, got {sides[trained_on]}: it would leave maps of one pixel, of which a batch"
                " norm makes nothing")
        return problems

    def override(self, **changes: Any) -> Federation:
        """A copy with dotted fields replaced, e.g. `override(**{"algorithm.rounds": 3, "silos.0.kind": "large"})`, validated again.

        Raises:
            ConfigError: no such field, or a value that it does not take.
        """
        return self.changed(changes, source="--set")

    def changed(self, changes: Mapping[str, Any], *, source: str) -> Federation:
        """As `override`; `source` names in messages where the changes come from."""
        document = self.model_dump(mode="json")
        for dotted, value in changes.items():
            _replace(document, dotted, value, source)
        return parse_federation(document, source=source)

    def values_at(self, dotted_fields: Iterable[str]) -> dict[str, Any]:
        """Each of `dotted_fields`, such as 'silos.0.kind', with its value as JSON has it."""

        def below(node: Any, key: str) -> Any:
            return node[int(key)] if isinstance(node, list) else node[key]

        document = self.model_dump(mode="json")
        return {dotted: functools.reduce(below, dotted.split("."), document) for dotted in dotted_fields}

    def to_yaml(self) -> str:
        """Canonical text: same federation, same bytes."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=True, allow_unicode=True)

    def digest(self) -> str:
        """sha256 (hex) of the canonical text."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()


_FEDERATION_FILES = ("silos.*.dispatch.job_template",)
_FEDERATION_PATHS = (
    "public_set.images", "public_set.teachers.*.uri", "public_set.teachers.*.ca_file", "public_set.teachers.*.auth.file",
    "silos.*.dispatch.silo_config", "algorithm.pretrained.*.file", "start.file", "store.url", *_FEDERATION_FILES)


def load_federation(path: str | Path, *, before: Mapping[str, Any] | None = None) -> Federation:
    """Read and validate federation.yaml, or the `federation` of the hub chart's values. Relative paths in it are taken from the file's folder.

    `before`: dotted fields that are replaced before anything is validated: what a method needs depends on the method.

    Raises:
        ConfigError: with every problem found.
    """
    path = Path(path)
    document = read_yaml(path)
    if _of_chart(document):
        document = document["federation"]
    for dotted, value in (before or {}).items():
        _replace(document, dotted, value, str(path))
    document = with_absolute_paths(document, path.parent, _FEDERATION_PATHS)
    return parse_federation(with_changed(document, _FEDERATION_FILES, lambda file: template_in(Path(file), source=str(path))), source=str(path))


def is_values_of_chart(path: str | Path) -> bool:
    """Whether the file holds values of the hub's chart, whose paths are those of its pods.

    Raises:
        ConfigError: it cannot be read.
    """
    return _of_chart(read_yaml(Path(path)))


def _of_chart(document: Mapping[str, Any]) -> bool:
    return isinstance(document.get("federation"), dict) and "silos" not in document


def parse_federation(document: Any, *, source: str) -> Federation:
    """Validate an already parsed document; `source` names it in messages.

    Raises:
        ConfigError: with every problem found.
    """
    return validated(Federation, document, source)


def federation_in(text: str, *, source: str) -> Federation:
    """The federation of a YAML `text` that nobody vouches for.

    Raises:
        ConfigError: with every problem found.
    """
    return parse_federation(mapping_in(text, source), source=source)


def checked_value(dotted: str, value: Any, *, source: str) -> Any:
    """`value` as the federation's field at `dotted` takes it, judged alone and by its own type: '3' and true are no numbers.

    Raises:
        ConfigError: the field does not take it; `source` names it in the message.
    """
    field = _field_at(dotted)
    bounded: Any = Annotated[field.annotation, field]
    try:
        return TypeAdapter(bounded, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError as e:
        errors: list[Any] = [{**error, "loc": tuple(dotted.split("."))} for error in e.errors(include_url=False)]
        raise ConfigError([f"{source}: {line}" for error in errors for line in sentences(Federation, error, None)]) from None


def default_of(dotted: str) -> Any:
    """What the federation's field at `dotted` is where neither file nor task says anything."""
    return _field_at(dotted).get_default(call_default_factory=True)


def _field_at(dotted: str) -> FieldInfo:
    *sections, name = dotted.split(".")
    model: type[BaseModel] = Federation
    for section in sections:
        (model,) = models_in(model.model_fields[section].annotation)
    return model.model_fields[name]


def _replace(document: Any, dotted: str, value: Any, source: str) -> None:
    """Set the field at `dotted` inside `document`; a name that the schema lacks is left for validation to explain."""
    *parents, leaf = dotted.split(".")
    node = document
    for number, parent in enumerate([*parents, leaf]):
        key: Any = int(parent) if isinstance(node, list) and parent.isdecimal() else parent
        fits = key < len(node) if isinstance(node, list) and isinstance(key, int) else isinstance(node, dict)
        if not fits:
            raise ConfigError(f"{source}: {dotted}: {'.'.join(parents[:number])} has nothing called {parent!r}; correct the dotted path")
        if number == len(parents):
            node[key] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = {}  # an optional section that was left out
        node = node[key]
