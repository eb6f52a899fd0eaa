"""The global model as a loadable PyTorch module, logged to MLflow and registered as a candidate. Called by evaluation.

Needs PyTorch (the silo image). What the version says of itself is in its tags: how it was made and from what.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedhelp_components.images import VERSION
from fedhelp_components.session import Session
from fedhelp_core.algorithm.inference import recompute_normalisation
from fedhelp_core.algorithm.local_update import SiloState, UpdateSettings, proxy_with
from fedhelp_core.algorithm.operating_point import OperatingPoint, likeliest, prior_corrected
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.examples import preparation
from fedhelp_core.data.given import prepared
from fedhelp_core.demo.tasks import drawn_task
from fedhelp_core.errors import NotFound
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.documents import Commit, SiloEvaluation
from fedhelp_core.protocol.facts import ClassShares, SoftLabels
from fedhelp_core.registry.tasks import TASKS, Metric
from fedhelp_core.softlabels.distillation_set import load_distillation_set
from fedhelp_core.tracking.models import ModelForUsers
from fedhelp_core.tracking.runs import Tracker

_PICTURES = ("pillow", "simplejpeg")
_VOLUMES = ("monai", "nibabel", "pydicom", "pyjpegls", "python-gdcm", "scipy")


def register_candidate(
    session: Session, final: Commit, evaluations: Mapping[str, SiloEvaluation], metrics: dict[str, float], left_out: Sequence[str] = (),
) -> str:
    """Log the global model and register it with alias `candidate`; the version. Doing it again finds the same version."""
    federation = session.federation
    point = operating_point_for_others(session)
    module, statistics = build_served(session, final, point)
    tracker = Tracker.for_run(federation, session.run.run_id)
    tracker.log_final(metrics)
    return tracker.log_and_register_model(
        model_for_users(module, federation.task, {"run": session.run.run_id, "global_sha256": final.global_sha256}),
        name=federation.registered_name,
        tags={
            "fedhelp.run": session.run.run_id,
            "fedhelp.task": federation.task.name,
            "fedhelp.classes": ",".join(federation.task.classes),
            "fedhelp.rounds": str(final.round),
            "fedhelp.method": federation.algorithm.method,
            "fedhelp.normalisation": federation.algorithm.normalisation,
            "fedhelp.normalisation_statistics": statistics,
            **({"fedhelp.operating_point": json.dumps(asdict(point), sort_keys=True)} if point is not None else {}),
            "fedhelp.global_sha256": final.global_sha256,
            "fedhelp.config_sha256": federation.digest(),
            "fedhelp.distillation_set_sha256": _distillation_sha256(session),
            "fedhelp.code_version": VERSION,
            "fedhelp.participants": ",".join(final.participants),
            "fedhelp.left_out": ",".join(left_out),
            "fedhelp.scores": json.dumps(silo_scores(evaluations, TASKS[federation.task.name].headline), sort_keys=True),
        })


def model_for_users(network: nn.Module, task: TaskConfig, settings: Mapping[str, Any]) -> ModelForUsers:
    """`network` with all that whoever loads it needs: what prepares images, the classes' names, a drawn image as example."""
    example = drawn_image(task)
    masks = TASKS[task.name].answer == "mask"
    return ModelForUsers(
        network=network, example=example, prepared=torch.from_numpy(prepared(example, task)[None]).float(),
        answers=task.classes[1:] if masks else task.classes, code=Path(__file__).with_name("mlflow_model.py"), source=["fedhelp_core.data.given"],
        settings={**settings, "task": task.model_dump(mode="json"), "preprocessing": preparation(task), "fedhelp": VERSION},
        requirements=[f"{package}=={version(package)}" for package in _PICTURES + (_VOLUMES if TASKS[task.name].dimensions == 3 else ())])


def drawn_image(task: TaskConfig) -> bytes:
    """A file with an image of the kind that the task knows, drawn by this code: no patient's."""
    with tempfile.TemporaryDirectory(prefix="fedhelp-drawn-") as folder:
        drawn_task(task.name).public.write(Path(folder), count=1, seed=0)
        return next(Path(folder).iterdir()).read_bytes()


def silo_scores(evaluations: Mapping[str, SiloEvaluation], metric: Metric) -> dict[str, dict[str, Any]]:
    """What the gate compares: silo -> score of its deployed model, kind, and which test images it is from."""
    return {
        silo: {
            metric.name: evaluation.deployed_model.scores[metric.name], "kind": evaluation.kind, "test_sha256": evaluation.test_sha256,
        }
        for silo, evaluation in evaluations.items()
    }


def operating_point_for_others(session: Session) -> OperatingPoint | None:
    """How those decide who load the registered model: they may have no images of their own, so all classes count as equally common. None of masks.

    The hub has no image to fit anything on. It knows how common classes were in training, and takes that out where the model has learnt it.
    """
    federation = session.federation
    if TASKS[federation.task.name].answer == "mask":
        return None
    classes = len(federation.task.classes)
    if federation.evaluation.operating_point == "argmax":
        return likeliest(classes)
    learnt = federation.algorithm.class_weights == "none"
    return prior_corrected(np.array(session.run.fact(ClassShares).shares) if learnt else None, classes=classes)


def build_served(session: Session, final: Commit, point: OperatingPoint | None) -> tuple[nn.Module, str]:
    """The final model, pixels in and probabilities out; and how its batch-norm statistics were made: 'averaged', 'public-images' or 'none'."""
    federation = session.federation
    settings = UpdateSettings(
        algorithm=federation.algorithm, objective=objective_of(federation.task), seed=federation.runtime.seed, silo="hub", kind="small")
    weights = session.run.global_weights(final, max_bytes=federation.protocol.max_update_bytes)
    proxy = proxy_with(weights, SiloState.empty(), settings).eval()
    statistics = "averaged"
    if federation.algorithm.normalisation == "silo":
        statistics = "none"
        sha256 = _distillation_sha256(session)
        if sha256:
            public = load_distillation_set(session.store, sha256, _cache(session))
            recompute_normalisation(proxy, public.images_NCHW, torch.device("cpu"))
            statistics = "public-images"
    return settings.objective.served(proxy, point).eval(), statistics


def _distillation_sha256(session: Session) -> str:
    try:
        return session.run.fact(SoftLabels).sha256
    except NotFound:
        return ""


def _cache(session: Session) -> Path | None:
    folder = session.federation.store.folder
    return None if folder is None else folder / "cache"
