"""The one validated schema of a federation (`federation.yaml`) and of a silo (`silo.yaml`).

`load_federation` and `load_silo` read YAML, report every problem at once in plain sentences, and return frozen objects.
A federation is what the hub knows; a silo's file is what the hospital knows and never sends. Each field's description
gives unit and source of its default ("paper" = arXiv 2412.19654, as written down in docs/algorithm.md).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from fedhelp_core.config.files import read_yaml, template_in, with_absolute_paths, with_changed
from fedhelp_core.config.sentences import models_in, nearest, sentences
from fedhelp_core.errors import ConfigError
from fedhelp_core.registry.models import Network, model_called
from fedhelp_core.registry.tasks import TASKS
from fedhelp_core.store.url import folder_of

Method = Literal[
    "local", "fedavg", "fedprox", "fedhelp",
    "fedhelp-no-api", "fedhelp-no-rank", "fedhelp-symmetric", "fedhelp-one-way",
]
METHODS: tuple[str, ...] = Method.__args__  # type: ignore[attr-defined]
Normalisation = Literal["shared", "silo"]
SiloKind = Literal["auto", "large", "small"]
_OBJECTS = ("abort", "commit", "federation", "global", "kinds", "lease")

# Kubernetes' rule for label values that are also used inside Job names: a DNS label, short enough to leave room.
SiloName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")]
NamespaceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
RunId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)


class VolumeConfig(_Model):
    """How volumes are prepared, cut and put together again; read by tasks of three dimensions only."""

    spacing: float = Field(1.0, gt=0, le=100, description="Side of a voxel in mm after resampling; FreeSurfer conforms to 1 mm too.")
    patch_size: int = Field(64, ge=8, le=512, description="Side in voxels of the patches that are trained on.")
    patches: int = Field(1, ge=1, le=1000, description="Patches of each volume in a local epoch.")
    window_size: int = Field(64, ge=8, le=512, description="Side in voxels of the sliding window that a whole volume is answered with.")
    window_overlap: float = Field(0.25, ge=0, lt=1, description="Share of a window that its neighbour covers too; MONAI's default.")
    windows: int = Field(4, ge=1, le=1024, description="Windows answered at a time; fewer need less memory.")


class TaskConfig(_Model):
    """What is learnt."""

    name: str = Field("melanoma", description="Key of the task registry (fedhelp_core/tasks).")
    classes: tuple[str, ...] = Field(
        (), description="Class names in the order of the integer labels, of a mask: background, foreground; default: the task's own.")
    image_size: int = Field(
        32, ge=8, le=1024, description="Side in pixels (of volumes: in voxels) that images are brought to before training.")
    volume: VolumeConfig = VolumeConfig()

    @model_validator(mode="before")
    @classmethod
    def _own_classes(cls, document: Any) -> Any:
        task = TASKS.get(str(document.get("name", "melanoma"))) if isinstance(document, dict) else None
        return {"classes": task.classes, **document} if task is not None else document

    @model_validator(mode="after")
    def _fields_make_sense(self) -> Self:
        if self.name not in TASKS:
            near = nearest(self.name, list(TASKS))
            raise ValueError(f"name: one of {', '.join(TASKS)} expected, got {self.name!r}" + (f"; did you mean {near!r}?" if near else ""))
        if len(self.classes) < 2:
            raise ValueError(f"classes: at least 2 names expected, got {len(self.classes)}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: names must differ from each other")
        task = TASKS[self.name]
        if task.form == "mask" and len(self.classes) != 2:
            raise ValueError(f"classes: {self.name} tells one foreground from its background, so 2 names expected, got {len(self.classes)}")
        if task.dimensions == 3:
            largest = max(self.volume.patch_size, self.volume.window_size)
            if largest > self.image_size:
                raise ValueError(f"volume: patch_size and window_size of at most image_size ({self.image_size}) expected, got {largest}")
        return self


class OptimizerConfig(_Model):
    """Adam, as the paper uses it."""

    learning_rate: float = Field(1e-3, gt=0, le=10, description="Step size; paper.")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="L2 penalty inside Adam's gradient; paper.")


class AlgorithmConfig(_Model):
    """Hyper-parameters of docs/algorithm.md; every default is the paper's unless said otherwise."""

    method: Method = Field("fedhelp", description="Which algorithm: FedHelp, a baseline or an ablation.")
    normalisation: Normalisation = Field(
        "shared", description="'shared' averages batch norms like the rest; paper. 'silo' keeps their weights and statistics at home"
                              " (FedBN): better without soft labels (docs/results.md).")
    rounds: int = Field(50, ge=1, le=100_000, description="Federated rounds R; paper.")
    local_epochs: int = Field(1, ge=1, le=1000, description="Passes over the private training data per round; paper.")
    batch_size: int = Field(4, ge=2, le=65536, description="Private images per step; paper.")
    public_batch_size: int = Field(4, ge=2, le=65536, description="Public images per step of Eq 2; paper.")
    public_steps: int = Field(1, ge=1, le=10_000, description="Public batches of Eq 2 after each private batch; paper: 1.")
    optimizer: OptimizerConfig = OptimizerConfig()
    persist_optimizer: bool = Field(True, description="Keep Adam's moments in the silo from round to round.")
    temperature: float = Field(1.0, gt=0, le=1000, description="T of Eq 2-4; paper.")
    distillation_weight: float = Field(1.0, ge=0, le=1e6, description="λ of Eq 2-4; paper.")
    rank_weight: float = Field(0.2, ge=0, le=1e6, description="γ of Eq 4; paper.")
    rank_top_k: int = Field(5, ge=1, description="k of Eq 5: how many of the proxy's favourites; paper: 5 of 8 classes, 1 of 2.")
    rank_margin: float = Field(0.0, ge=0, le=1e6, description="m of Eq 5.")
    proximal_weight: float = Field(0.01, ge=0, le=1e6, description="μ of FedProx (Li et al. 2020).")
    weighting: Literal["uniform", "samples"] = Field("uniform", description="a_k of Eq 7: 1/K (paper) or n_k/Σn.")
    large_silos: int = Field(2, ge=0, description="How many silos of kind `auto` with most training images are large; paper.")
    proxy_model: str = Field("resnet20", description="Key of the model registry: the model that travels; paper.")
    large_model: str = Field("resnet110", description="Key of the model registry: stays in large silos; paper.")
    augmentation: Literal["none", "mirror", "flips"] = Field("flips", description="Random flips: along every side, left-right alone, or none.")


class ProtocolConfig(_Model):
    """The round protocol: who must answer, how long to wait, what is accepted."""

    min_silos: int = Field(1, ge=1, description="Fewest updates that close a round; fewer end the run.")
    round_deadline: float = Field(3600.0, gt=0, description="Seconds that a round waits for silos; the late are left out of it.")
    lease: float = Field(600.0, ge=1, le=86400, description="Seconds without a sign of the hub after which a silo's worker ends itself.")
    max_update_bytes: int = Field(4 * 2**30, ge=1024, description="Largest weights file accepted, bytes.")
    max_update_norm: float | None = Field(None, gt=0, description="Largest L2 norm of (update - global); null: unbounded.")


class RuntimeConfig(_Model):
    """What fixes the numbers."""

    seed: int = Field(1, ge=0, lt=2**63, description="All randomness comes from (seed, silo, round).")
    threads: int = Field(1, ge=1, le=256, description="CPU threads per silo; part of what makes results bit-identical.")
    device: Literal["cpu", "cuda", "auto"] = Field("auto", description="'auto': the GPU where there is one.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of training: 'auto' mixes in bfloat16 on GPUs that have it and is float32 on CPUs; weights travel as float32 always.")


class TeacherAuth(_Model):
    """How to log in at a teacher. The secret itself is never in this file: it is read from the environment or a mounted file."""

    kind: Literal["bearer", "basic"] = Field(description="'bearer': a token; 'basic': user name and password.")
    env: str | None = Field(None, min_length=1, description="Environment variable that holds the token or password.")
    file: Path | None = Field(None, description="File that holds it, e.g. of a mounted Secret; read for every request, so it may be rotated.")
    username: str | None = Field(None, min_length=1, description="basic: user name; null: the secret is 'user:password'.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("env: give either env or file, the place of the secret")
        if self.kind == "bearer" and self.username is not None:
            raise ValueError("username: belongs to kind 'basic', got kind 'bearer'")
        return self


class TeacherBudget(_Model):
    """What a teacher costs and may cost, over all runs that share a store."""

    price_per_image: float = Field(0.0, ge=0, description="Money per image asked, in `currency`.")
    price_per_request: float = Field(0.0, ge=0, description="Money per request, in `currency`.")
    currency: str = Field("EUR", min_length=1, max_length=8, description="For messages and reports.")
    max_cost: float | None = Field(None, ge=0, description="Stop before more than this is spent; null: no cap.")
    max_requests: int | None = Field(None, ge=0, description="Stop before more requests than this are sent; null: no cap.")

    @model_validator(mode="after")
    def _cap_needs_a_price(self) -> Self:
        if self.max_cost is not None and self.price_per_image == self.price_per_request == 0:
            raise ValueError("max_cost: needs price_per_image or price_per_request, or nothing is ever spent")
        return self


class TeacherConfig(_Model):
    """One foundation model behind an API, asked once per public image."""

    name: SiloName = Field(description="Name in the ledger and in reports.")
    kind: Literal["mlflow", "openinference"] = "mlflow"
    uri: str = Field(description="MLflow model URI (models:/… or a folder), or http(s)://host/v2/models/<model>.")
    version: str = Field("1", description="Asked again only when this or `prompts` changes.")
    classes: int = Field(
        ge=1, description="C_pub: number of probabilities per image; of masks per pixel, background first (1: the foreground's alone).")
    prompts: tuple[str, ...] = Field((), description="Zero-shot prompts that the server was set up with, one per class; also the classes' names.")
    output: Literal["probabilities", "logits"] = "probabilities"
    output_name: str | None = Field(None, description="openinference: which output tensor; null: the model's only one.")
    weight: float = Field(1.0, gt=0, description="Share in the mix of teachers; shares are normalised to sum 1.")
    batch_size: int = Field(64, ge=1, le=4096, description="Images per request; fewer where the server says that it takes fewer.")
    transport: Literal["auto", "binary", "json"] = Field(
        "auto", description="openinference: tensors as bytes or JSON; 'auto': bytes if the server lists the extension (KServe takes them unlisted).")
    concurrency: int = Field(4, ge=1, le=64, description="Requests in flight at once, over all shards.")
    requests_per_second: float | None = Field(None, gt=0, description="Rate limit over all shards; null: none.")
    timeout: float = Field(60.0, gt=0, le=3600, description="Seconds for one whole request, from connecting to the answer's last byte.")
    retries: int = Field(6, ge=0, le=100, description="Further tries of a request after 429, 5xx or a timeout.")
    budget: TeacherBudget = TeacherBudget()
    auth: TeacherAuth | None = Field(None, description="openinference: how to log in.")
    ca_file: Path | None = Field(None, description="openinference: PEM file of the authority that signed the server's certificate.")

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        problems = []
        if self.prompts and len(self.prompts) != self.classes:
            problems.append(f"prompts: one per class expected ({self.classes}), got {len(self.prompts)}")
        if self.kind == "openinference" and "@" in self.uri.partition("://")[2].partition("/")[0]:
            problems.append("uri: carries credentials, which must not be in this file; use auth")
        if self.kind == "mlflow" and (self.auth or self.ca_file or self.output_name):
            problems.append("kind: 'mlflow' takes no auth, ca_file or output_name (MLflow's own variables log in); did you mean 'openinference'?")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class PublicSetConfig(_Model):
    """The unlabelled public images that teachers are asked about."""

    images: Path = Field(description="Folder or file, see `layout`.")
    layout: Literal["folder", "cifar10", "cifar100", "tar", "datalist"] = Field(
        "folder", description="'folder': JPEG/PNG files (of volumes: NIfTI), searched recursively; 'cifar10', 'cifar100': their binary versions"
                              " (*.bin); 'tar': *.tar or *.tar.gz of JPEG/PNG files; 'datalist': a JSON file with lists of {image}.")
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    shards: int = Field(1, ge=1, le=64, description="Pipeline tasks that ask side by side, each about its share of the images.")


class StoreConfig(_Model):
    """Where everything is exchanged."""

    url: str = Field(description="file:///folder, a plain folder, or s3://bucket/prefix.")
    endpoint_url: str | None = Field(None, description="S3 endpoint other than AWS; credentials come from the environment.")

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


class TrackingConfig(_Model):
    """MLflow."""

    uri: str | None = Field(None, description="Tracking URI; null: $MLFLOW_TRACKING_URI, else SQLite beside the store.")
    experiment: str = "fedhelp"
    registered_model: str | None = Field(None, description="Name in the Model Registry; null: the federation's name.")


class PromotionConfig(_Model):
    """When a candidate becomes champion."""

    mode: Literal["gate", "manual"] = "gate"
    min_improvement: float = Field(0.0, ge=0, le=1, description="δ: small silos' mean score must rise by at least this.")
    max_regression: float = Field(0.05, ge=0, le=1, description="ε: no silo's score may fall by more than this.")


class DispatchConfig(_Model):
    """How a silo's work is started."""

    kind: Literal["process", "kubernetes", "manifestwork"] = "process"
    residency: Literal["round", "run"] = Field("run", description="'run': one warm worker for all rounds; 'round': a new one each.")
    retries: int = Field(3, ge=0, le=100, description="Restarts after a retryable end, per round.")
    silo_config: Path | None = Field(None, description="process: the silo.yaml on this machine.")
    context: str | None = Field(
        None, description="kubernetes: kubeconfig context of the silo's cluster; manifestwork: of the Open Cluster Management hub."
                          " null: the cluster that this process runs in, else the kubeconfig's current context.")
    namespace: NamespaceName | None = Field(
        None, description="kubernetes, manifestwork: the silo's own namespace, in its cluster; null: fedhelp-<silo>.")
    template: NamespaceName = Field("fedhelp-worker", description="kubernetes: the hospital's Job template, a suspended CronJob in that namespace.")
    cluster: NamespaceName | None = Field(None, description="manifestwork: the hospital's name as a managed cluster: its namespace on the hub.")
    job_template: dict[str, Any] | None = Field(
        None, description="manifestwork: that CronJob as the hospital exported it, since the hub cannot read it;"
                          " a path is replaced by the file's content.")
    executor: NamespaceName | None = Field(
        None, description="manifestwork: service account in the silo's namespace that must be allowed to create, get, update, patch and delete"
                          " jobs there before the hospital's agent makes the Job (as itself); null: not asked.")

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        needed = {
            "process": {"silo_config": "the path of the silo's silo.yaml"},
            "kubernetes": {},
            "manifestwork": {
                "cluster": "the hospital's managed cluster name",
                "job_template": "the file with the hospital's CronJob (kubectl get cronjob fedhelp-worker -o yaml)"},
        }[self.kind]
        problems = [f"{field}: dispatch kind {self.kind!r} needs {what}" for field, what in needed.items() if getattr(self, field) is None]
        for field, kinds in _DISPATCHED.items():
            if self.kind not in kinds and getattr(self, field) != type(self).model_fields[field].default:
                problems.append(f"{field}: belongs to dispatch kind {' or '.join(map(repr, kinds))}, got kind {self.kind!r}; correct one of them")
        if problems:
            raise ValueError("\n".join(problems))
        return self


_DISPATCHED = {
    "silo_config": ("process",), "context": ("kubernetes", "manifestwork"), "namespace": ("kubernetes", "manifestwork"),
    "template": ("kubernetes",), "cluster": ("manifestwork",), "job_template": ("manifestwork",), "executor": ("manifestwork",)}


class SiloEntry(_Model):
    """A hospital as the hub knows it."""

    name: SiloName
    kind: SiloKind = "auto"
    dispatch: DispatchConfig

    @property
    def namespace(self) -> str:
        """Where the silo's Jobs go, in its own cluster."""
        return self.dispatch.namespace or f"fedhelp-{self.name}"


class Federation(_Model):
    """One federation: `federation.yaml`."""

    version: Literal[1] = 1
    name: SiloName
    task: TaskConfig = TaskConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    public_set: PublicSetConfig | None = None
    store: StoreConfig
    tracking: TrackingConfig = TrackingConfig()
    promotion: PromotionConfig = PromotionConfig()
    silos: tuple[SiloEntry, ...] = Field(min_length=1)

    @property
    def silo_names(self) -> tuple[str, ...]:
        """Names in the order of the file: the order in which updates are summed."""
        return tuple(silo.name for silo in self.silos)

    @property
    def silos_here(self) -> tuple[SiloEntry, ...]:
        """Those that work as processes of this machine."""
        return tuple(silo for silo in self.silos if silo.dispatch.kind == "process")

    @property
    def silos_in_clusters(self) -> tuple[SiloEntry, ...]:
        """Those that work as Jobs, wherever that is."""
        return tuple(silo for silo in self.silos if silo.dispatch.kind != "process")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, document: Any) -> Any:
        """What the file leaves open in `algorithm`, as its task has it."""
        chosen = document.get("task") if isinstance(document, dict) else None
        task = TASKS.get(str(chosen.get("name", "melanoma"))) if isinstance(chosen, dict) else None
        algorithm = document.get("algorithm", {}) if task is not None else None
        return {**document, "algorithm": {**task.defaults, **algorithm}} if task is not None and isinstance(algorithm, dict) else document

    @property
    def registered_name(self) -> str:
        """Of its model in MLflow's registry."""
        return self.tracking.registered_model or self.name

    @property
    def uses_public_set(self) -> bool:
        """Whether the method runs Eq 2 and so needs soft labels."""
        return self.algorithm.method in ("fedhelp", "fedhelp-no-rank", "fedhelp-symmetric", "fedhelp-one-way")

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
        if self.algorithm.rank_top_k >= len(self.task.classes):
            problems.append(f"algorithm.rank_top_k: must be below the number of classes ({len(self.task.classes)}), got {self.algorithm.rank_top_k}")
        if self.uses_public_set and self.public_set is None:
            problems.append(f"public_set: method {self.algorithm.method!r} learns from soft labels, so public_set.images and public_set.teachers are"
                            " needed (or choose method: fedhelp-no-api)")
        if self.public_set is not None and TASKS[self.task.name].form == "classes":
            problems += [f"public_set.teachers.{number}.classes: at least 2 expected where teachers name classes, got {teacher.classes}"
                         for number, teacher in enumerate(self.public_set.teachers) if teacher.classes < 2]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _models_that_do_not_fit(self) -> list[str]:
        """A model that does not know this task's images, or an image whose sides a U-Net cannot halve level by level."""
        task, volume = TASKS[self.task.name], self.task.volume
        models: dict[str, Network] = {}
        problems = []
        for field, name in (("proxy_model", self.algorithm.proxy_model), ("large_model", self.algorithm.large_model)):
            try:
                models[name] = model_called(name, task.form, task.dimensions)
            except ConfigError as e:
                problems.append(f"algorithm.{field}: {e}")
        sides = {"task.image_size": self.task.image_size} if task.dimensions == 2 else {
            "task.volume.patch_size": volume.patch_size, "task.volume.window_size": volume.window_size}
        strictest = max(models, key=lambda name: models[name].sides_multiple_of, default=None)
        if strictest is not None:
            most = models[strictest].sides_multiple_of
            problems += [f"{field}: a multiple of {most} expected for {strictest}, got {side}" for field, side in sides.items() if side % most]
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


class FedIsicData(_Model):
    """Fed-ISIC2019's own layout: a JPEG folder and FLamby's split CSV."""

    layout: Literal["fed-isic2019"]
    images: Path = Field(description="Folder of <image>.jpg files.")
    split_csv: Path = Field(description="CSV with columns image, target, center, fold, fold2.")
    center: int = Field(ge=0, description="Which rows are this hospital's.")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="Share of the training fold held out, chosen by hash of the image name.")


class DatalistData(_Model):
    """A MONAI datalist: JSON with lists training, validation, test of {image, label}."""

    layout: Literal["datalist"]
    datalist: Path
    root: Path | None = Field(None, description="Folder that image paths are relative to; null: the datalist's folder.")


class Share(_Model):
    """Which part of a public data set is this hospital's, where the data set itself knows no hospitals.

    Subjects are dealt out by the hash of their names, class by class, so that the same files always fall to the same hospital.
    """

    number: int = Field(ge=0, description="This hospital's place in `sizes`, from 0.")
    sizes: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (9930, 3163, 2691, 1807, 655, 351), min_length=1, max_length=1000,
        description="Relative sizes of all hospitals; default: Fed-ISIC2019's training sets, the paper's skew.")

    @model_validator(mode="after")
    def _number_is_a_place(self) -> Self:
        if self.number >= len(self.sizes):
            raise ValueError(f"number: 0 to {len(self.sizes) - 1} expected for {len(self.sizes)} sizes, got {self.number}")
        return self


class ChestXrayData(_Model):
    """Paediatric chest X-rays in their own layout: train|val|test / NORMAL|PNEUMONIA / *.jpeg, shared out to hospitals."""

    layout: Literal["chest-xray"]
    root: Path = Field(description="Folder with train, val and test.")
    share: Share


class PicturesAndMasks(_Model):
    """Grey pictures in one folder and their masks in another, as the public lung sets are published, shared out to hospitals.

    The mask of `<name>.png` is `<name>.png` or `<name>_mask.png`. Test and validation pictures are chosen by the hash of their names.
    """

    layout: Literal["pictures-and-masks"]
    images: Path = Field(description="Folder of PNG or JPEG pictures.")
    masks: Path = Field(description="Folder of PNG masks: background 0, foreground one other value.")
    prefix: str = Field("", description="Only pictures whose names begin so: sets that were merged keep their sources' prefixes.")
    share: Share | None = Field(None, description="Which part is this hospital's; null: all of it.")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="Share of the pictures held out for the test.")
    validation_fraction: float = Field(0.0, ge=0, lt=1, description="Share of the others held out for validation.")


class FedIxiData(_Model):
    """Fed-IXI's own layout: a folder a subject (IXI002-Guys-0828) with T1/*.nii.gz and label/*.nii.gz, and FLamby's split CSV."""

    layout: Literal["fed-ixi"]
    root: Path = Field(description="Folder of the subjects' folders.")
    split_csv: Path = Field(description="CSV with columns Patient ID and Split (train or test).")
    hospital: Literal["Guys", "HH", "IOP"] = Field(description="Which subjects are this hospital's.")
    validation_fraction: float = Field(0.0, ge=0, lt=1, description="Share of the training subjects held out, chosen by hash of the subject.")


class SiloConfig(_Model):
    """What a hospital knows about itself: `silo.yaml`. Never leaves the silo."""

    version: Literal[1] = 1
    name: SiloName
    data: Annotated[FedIsicData | DatalistData | ChestXrayData | PicturesAndMasks | FedIxiData, Field(discriminator="layout")]
    state: Path = Field(description="Folder on the silo's own volume: large model, heads, optimizer, caches, egress ledger.")


def load_federation(path: str | Path) -> Federation:
    """Read and validate federation.yaml, or the `federation` of the hub chart's values. Relative paths in it are taken from the file's folder.

    Raises:
        ConfigError: with every problem found.
    """
    path = Path(path)
    document = read_yaml(path)
    if isinstance(document.get("federation"), dict) and "silos" not in document:  # values of the hub's chart
        document = document["federation"]
    document = with_absolute_paths(document, path.parent, _FEDERATION_PATHS)
    return parse_federation(with_changed(document, _FEDERATION_FILES, lambda file: template_in(Path(file), source=str(path))), source=str(path))


def load_silo(path: str | Path) -> SiloConfig:
    """Read and validate silo.yaml. Relative paths in it are taken from the file's folder.

    Raises:
        ConfigError: with every problem found.
    """
    path = Path(path)
    document = with_absolute_paths(read_yaml(path), path.parent, _SILO_PATHS)
    return _validate(SiloConfig, document, str(path))


def parse_federation(document: Any, *, source: str) -> Federation:
    """Validate an already parsed document; `source` names it in messages.

    Raises:
        ConfigError: with every problem found.
    """
    return _validate(Federation, document, source)


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


_FEDERATION_FILES = ("silos.*.dispatch.job_template",)
_FEDERATION_PATHS = (
    "public_set.images", "public_set.teachers.*.uri", "public_set.teachers.*.ca_file", "public_set.teachers.*.auth.file",
    "silos.*.dispatch.silo_config", "store.url", *_FEDERATION_FILES)
_SILO_PATHS = ("data.images", "data.split_csv", "data.datalist", "data.root", "data.masks", "state")


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


_M = TypeVar("_M", bound=BaseModel)


def _validate(model: type[_M], document: Any, source: str) -> _M:
    try:
        return model.model_validate(document)
    except ValidationError as e:
        raise ConfigError([f"{source}: {line}" for error in e.errors(include_url=False) for line in sentences(model, error, document)]) from None


