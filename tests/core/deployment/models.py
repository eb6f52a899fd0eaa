"""A hospital with a model in use, as tests need one: a small network of drawn weights, its contract, a silo.yaml. No run was ever made."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from fedhelp_core.algorithm.operating_point import FindingsPoint, OperatingPoint
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.silo import AdoptionConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.examples import preparation
from fedhelp_core.deployment.adopted import Adopted, ModelFolder
from fedhelp_core.deployment.contract import Contract
from fedhelp_core.deployment.scorer import Scorer
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.weights.file import fingerprint
from fedhelp_core.weights.header import Weights

SHA = "0123456789abcdef" * 4
TASKS: Mapping[str, TaskConfig] = {
    "melanoma": TaskConfig(name="melanoma", image_size=16),
    "pneumonia": TaskConfig(name="pneumonia", image_size=16),
    "lung-segmentation": TaskConfig(name="lung-segmentation", image_size=16),
    "chest-findings": TaskConfig.model_validate({
        "name": "chest-findings", "form": "labels", "classes": ["effusion", "mass", "air"], "image_size": 16}),
    "chest-organs": TaskConfig.model_validate({
        "name": "chest-organs", "form": "masks", "classes": ["background", "lungs", "heart"], "image_size": 16}),
    "skin-regions": TaskConfig.model_validate({
        "name": "skin-regions", "form": "regions", "channels": 3, "classes": ["lesion", "network"], "image_size": 16}),
    "brain-tumours": TaskConfig.model_validate({
        "name": "brain-tumours", "form": "regions", "dimensions": 3, "channels": 2, "classes": ["whole", "core"], "mask_values": [[1, 2], [2]],
        "image_size": 16, "volume": {"spacing": 4.0, "patch_size": 16, "window_size": 16}}),
    "brain-segmentation": TaskConfig.model_validate({
        "name": "brain-segmentation", "image_size": 16, "volume": {"spacing": 4.0, "patch_size": 16, "window_size": 16}}),
}
_NETWORKS = {
    "melanoma": "resnet8", "pneumonia": "resnet8", "lung-segmentation": "unet2d-tiny", "chest-findings": "resnet8",
    "chest-organs": "unet2d-tiny", "skin-regions": "unet2d-tiny",
    "brain-segmentation": "unet3d-tiny", "brain-tumours": "unet3d-tiny"}


def drawn(task: TaskConfig, seed: int = 1) -> Weights:
    """All weights of the task's network, its batch norms included."""
    model = objective_of(task).build(_NETWORKS[task.name], torch.Generator().manual_seed(seed))
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def contract_of(task: TaskConfig, weights: Weights, **changes: Any) -> Contract:
    """Of a model that a run would have made."""
    point: OperatingPoint | FindingsPoint | None = None
    if objective_of(task).decides:
        nothing = (0.0,) * (2 if task.form == "labels" else len(task.classes))
        point = OperatingPoint(rule="validation", temperature=1.5, offsets_C=nothing, log_prior_C=nothing, log_occurrence_C=nothing)
    if point is not None and task.form == "labels":
        point = FindingsPoint(of_each=(point,) * len(task.classes))
    headline = objective_of(task).headline.name
    made = Contract(
        name="chest", version="3", number=1, run="a-run", silo="aachen", model="proxy", network=ModelConfig(network=_NETWORKS[task.name]),
        norms="shared",
        global_sha256=SHA, weights_sha256=fingerprint(weights, _NETWORKS[task.name]), task=task, preprocessing=preparation(task), pixel_bits=None,
        threads=1, operating_point=point, headline=headline, scores={headline: 0.5}, test_images=8)
    return replace(made, **changes)


def scorer_for(task: TaskConfig, *, seed: int = 1, band: AdoptionConfig | None = None, **changes: Any) -> Scorer:
    """A model that is in no folder."""
    weights = drawn(task, seed)
    return Scorer(contract_of(task, weights, **changes), weights, band or AdoptionConfig(), torch.device("cpu"))


@dataclass(frozen=True)
class Hospital:
    """A silo.yaml and a state with a model in use."""

    folder: Path
    task: TaskConfig

    @property
    def silo(self) -> Path:
        return self.folder / "silo.yaml"

    @property
    def models(self) -> ModelFolder:
        return ModelFolder(self.folder / "state", "chest")

    def put_in_use(self, seed: int = 1, **changes: Any) -> Adopted:
        """Another model, drawn from `seed`."""
        weights = drawn(self.task, seed)
        with self.models.locked():
            adopted = self.models.keep(contract_of(self.task, weights, **changes), weights, None)
            self.models.put_in_use(adopted)
        return adopted


def hospital(folder: Path, task: str = "melanoma", *, in_use: bool = True, **adoption: Any) -> Hospital:
    """A hospital of `task`; `adoption`: the section of silo.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"name": "aachen", "state": "state", "adoption": adoption, "data": {"layout": "datalist", "datalist": "list.json"}}
    (folder / "silo.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    made = Hospital(folder, TASKS[task])
    if in_use:
        made.put_in_use()
    return made


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes inside, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def tree_of(folder: Path) -> dict[str, str]:
    """Path below `folder` -> sha256 of the file, of everything there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
