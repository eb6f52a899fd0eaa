"""The global model as a loadable PyTorch module, logged to MLflow and registered as a candidate. Called by evaluation.

Needs PyTorch (the silo image). What the version says of itself is in its tags: how it was made and from what.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedhelp_components.evaluation.for_hospitals import hospital_scores, lineage_of, shared_model, without_names
from fedhelp_components.images import VERSION
from fedhelp_components.session import Session
from fedhelp_core.algorithm.inference import recompute_normalisation
from fedhelp_core.algorithm.local_update import SiloState, UpdateSettings, proxy_with
from fedhelp_core.algorithm.operating_point import Point, likeliest, prior_corrected
from fedhelp_core.config.card import CardConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.examples import preparation
from fedhelp_core.data.given import prepared
from fedhelp_core.data.phantom.tumours import with_sequences
from fedhelp_core.demo.tasks import drawn_like
from fedhelp_core.disk import digest_of
from fedhelp_core.errors import NotFound
from fedhelp_core.models.build import normalisation_keys
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.documents import Commit, ModelScores, SiloEvaluation, Statistics, StoredWeights
from fedhelp_core.protocol.facts import ClassShares, Served, SoftLabels
from fedhelp_core.protocol.pretrained import read_pretrained
from fedhelp_core.registry.metrics import Metric
from fedhelp_core.report.card import CardFacts, render_card
from fedhelp_core.softlabels.distillation_set import load_distillation_set
from fedhelp_core.tracking.models import ModelForUsers
from fedhelp_core.tracking.runs import Tracker
from fedhelp_core.weights.file import serialize_weights
from fedhelp_core.weights.header import Weights, WeightsSpec

_DECISIONS = {
    "argmax": "Its probabilities are the network's own; the likeliest class is the answer.",
    "prior-corrected": "What the network learnt of how common classes are was taken out: probabilities are those of equally common classes.",
    "labels argmax": "A finding is seen where its probability is above 0.5.",
    "labels prior-corrected": "What the network learnt of how common findings are was taken out: one is seen where its probability is above 0.5.",
    "regions": "A pixel or voxel is in a region where its probability is above 0.5.",
    "masks": "A pixel or voxel is foreground where its probability is above 0.5."}
_MOST_COUNTS = 5000  # in a tag of the version: MLflow takes 100,000 characters
_PICTURES = ("pillow", "simplejpeg")
_VOLUMES = ("monai", "nibabel", "pydicom", "pyjpegls", "python-gdcm", "scipy")


def register_candidate(
    session: Session, final: Commit, evaluations: Mapping[str, SiloEvaluation], metrics: dict[str, float], left_out: Sequence[str] = (),
) -> str:
    """Log the global model with its card and register it with alias `candidate`; the version. Doing it again finds the same version.

    What others need of it beside the weights, its batch norms and its card, lies in the run's folder in the store afterwards.
    """
    federation = session.federation
    point = operating_point_for_others(session)
    built = build_served(session, final, point)
    keep_for_others(session, built, *card_of(session, final, evaluations, metrics, point, built.statistics, len(left_out)))
    card = {suffix: session.store.get(session.run.keys.card(suffix)).decode() for suffix in ("md", "html")}
    tracker = Tracker.for_run(federation, session.run.run_id)
    registered = tracker.log_and_register_model(
        model_for_users(
            built.network, federation.task, {"run": session.run.run_id, "global_sha256": final.global_sha256},
            {f"card.{suffix}": text for suffix, text in card.items()}),
        name=federation.registered_name, description=card["md"],
        tags={
            "fedhelp.run": session.run.run_id,
            "fedhelp.task": federation.task.name,
            "fedhelp.classes": ",".join(federation.task.classes),
            "fedhelp.rounds": str(final.round),
            "fedhelp.method": federation.algorithm.method,
            "fedhelp.normalisation": federation.algorithm.normalisation,
            "fedhelp.normalisation_statistics": built.statistics,
            **({"fedhelp.operating_point": json.dumps(asdict(point), sort_keys=True)} if point is not None else {}),
            "fedhelp.global_sha256": final.global_sha256,
            "fedhelp.config_sha256": federation.digest(),
            "fedhelp.distillation_set_sha256": _distillation_sha256(session),
            "fedhelp.code_version": VERSION,
            "fedhelp.participants": ",".join(final.participants),
            "fedhelp.left_out": ",".join(left_out),
            "fedhelp.scores": json.dumps(silo_scores(evaluations, federation.task.headline), sort_keys=True),
        })
    tracker.log_final(metrics)  # afterwards: logging a model, MLflow asks for the history of each metric that the run has
    return registered


def keep_for_others(session: Session, built: Built, card: str, card_html: str) -> None:
    """Norms and card in the run's folder, and the fact that names them. What an earlier try wrote stays."""
    store, keys = session.store, session.run.keys
    stored = None
    if built.norms:
        architecture = str(session.federation.algorithm.proxy_model)
        body = serialize_weights(built.norms, architecture)
        sha256, size = digest_of(body)
        stored = StoredWeights(sha256=sha256, size_bytes=size, spec=WeightsSpec.from_weights(built.norms, architecture))
        store.put_new(keys.norms(sha256), body)
    store.put_new(keys.card("md"), card.encode())
    store.put_new(keys.card("html"), card_html.encode())
    session.run.settle(Served(
        statistics=built.statistics, norms=stored, software=software(), card_sha256=digest_of(store.get(keys.card("md")))[0],
        card_html_sha256=digest_of(store.get(keys.card("html")))[0]))


def software() -> dict[str, str]:
    """Package -> version, of what the model was trained and registered with. The silo image has MLflow's client alone, `mlflow-skinny`."""
    try:
        mlflow = version("mlflow")
    except PackageNotFoundError:
        mlflow = version("mlflow-skinny")
    return {"fedhelp": VERSION, "torch": version("torch"), "numpy": version("numpy"), "mlflow": mlflow}


def card_of(
    session: Session, final: Commit, evaluations: Mapping[str, SiloEvaluation], metrics: Mapping[str, float], point: Point | None,
    statistics: Statistics, left_out: int,
) -> tuple[str, str]:
    """The model card, as Markdown and as HTML."""
    federation, run = session.federation, session.run
    labels = run.fact(SoftLabels) if run.has_fact(SoftLabels) else None
    return render_card(CardFacts(
        name=federation.registered_name, run=run.run_id, global_sha256=final.global_sha256, task=federation.task,
        network=str(federation.algorithm.proxy_model), method=federation.algorithm.method, preprocessing=preparation(federation.task),
        statistics=statistics, decision=_DECISIONS[_decision(federation.task, point)], own=federation.card or CardConfig(),
        class_shares=run.fact(ClassShares).shares if run.has_fact(ClassShares) else (),
        hospitals=hospital_scores(run, federation, evaluations), left_out=left_out, means=without_names(metrics, federation),
        recalls=_recalls([shared_model(evaluation) for evaluation in evaluations.values()], federation.task),
        public_images=labels.images if labels is not None else 0, teachers=tuple(labels.teachers) if labels is not None else (),
        lineage=lineage_of(run, federation, final, software())))


def _decision(task: TaskConfig, point: Point | None) -> str:
    """Which of `_DECISIONS`."""
    if point is None:
        return task.form
    return f"labels {point.rule}" if task.form == "labels" else point.rule


def _recalls(models: Sequence[ModelScores], task: TaskConfig) -> list[float]:
    """Of each class over all test images, of each finding over those that show it; of masks and regions, of the pixels of each."""
    if task.form in ("labels", "regions"):
        counts_K4 = np.sum([model.confusion for model in models], axis=0) if models else np.zeros((len(task.classes), 4))
        with np.errstate(invalid="ignore"):
            found: list[float] = (counts_K4[:, 3] / counts_K4[:, 2:].sum(axis=1)).tolist()
        return found
    counts = np.sum([model.confusion for model in models], axis=0) if models else np.zeros((len(task.classes),) * 2)
    with np.errstate(invalid="ignore"):
        recalls: list[float] = (np.diag(counts) / counts.sum(axis=1)).tolist()
    return recalls[1:] if task.per_pixel else recalls


def model_for_users(
    network: nn.Module, task: TaskConfig, settings: Mapping[str, Any], card: Mapping[str, str] | None = None,
) -> ModelForUsers:
    """`network` with all that whoever loads it needs: what prepares images, the classes' names, a drawn image as example."""
    example = drawn_image(task)
    return ModelForUsers(
        network=network, example=example, prepared=torch.from_numpy(prepared(example, task)[None]).float(),
        form=task.form, answers=task.answered, code=Path(__file__).with_name("mlflow_model.py"), source=["fedhelp_core.data.given"],
        settings={**settings, "task": task.model_dump(mode="json"), "preprocessing": preparation(task), "fedhelp": VERSION},
        requirements=[f"{package}=={version(package)}" for package in _PICTURES + (_VOLUMES if task.dimensions == 3 else ())],
        card=card or {})


def drawn_image(task: TaskConfig) -> bytes:
    """A file with an image of the kind that the task knows, drawn by this code: no patient's."""
    with tempfile.TemporaryDirectory(prefix="fedhelp-drawn-") as folder:
        drawn_like(task).public.write(Path(folder), count=1, seed=0)
        file = next(Path(folder).iterdir())
        return file.read_bytes() if task.dimensions == 2 else with_sequences(file, task.channels).read_bytes()


def silo_scores(evaluations: Mapping[str, SiloEvaluation], metric: Metric) -> dict[str, dict[str, Any]]:
    """What the gate compares: silo -> score of its deployed model, kind, which test images it is from, and how many of each class are right."""
    return {
        silo: {
            metric.name: evaluation.deployed_model.scores[metric.name], "kind": evaluation.kind, "test_sha256": evaluation.test_sha256,
            **({"right": [row[label] for label, row in enumerate(evaluation.deployed_model.confusion)]}
               if evaluation.deployed_model.argmax_confusion and len(evaluations) * len(evaluation.deployed_model.confusion) <= _MOST_COUNTS
               else {}),  # a mask's counts are pixels, which nobody can picture
        }
        for silo, evaluation in evaluations.items()
    }


def operating_point_for_others(session: Session) -> Point | None:
    """How those decide who load the registered model: they may have no images of their own, so all classes count as equally common, and each
    finding as common as its absence. None of masks and regions.

    The hub has no image to fit anything on. It knows how common classes were in training, and takes that out where the model has learnt it.
    """
    federation = session.federation
    if federation.task.per_pixel:
        return None
    objective, asked = objective_of(federation.task), federation.evaluation.operating_point != "argmax"
    if not asked or federation.algorithm.class_weights != "none":
        answers = [2] * objective.outputs if federation.task.form == "labels" else [objective.outputs]
        return objective.point_of([prior_corrected(None, classes=count) if asked else likeliest(count) for count in answers])
    shares = objective.learnt_shares(session.run.fact(ClassShares).shares)
    return objective.point_of([prior_corrected(of_one, classes=len(of_one)) for of_one in shares])


@dataclass(frozen=True)
class Built:
    """The final model for those who did not train it."""

    network: nn.Module
    """Pixels in, probabilities out."""
    statistics: Statistics
    norms: Weights
    """Its batch norms, where they were made for it alone; else empty."""


def build_served(session: Session, final: Commit, point: Point | None) -> Built:
    """The final model, with batch norms whatever the hospitals do with theirs."""
    federation = session.federation
    settings = UpdateSettings(
        algorithm=federation.algorithm, objective=objective_of(federation.task), seed=federation.runtime.seed, silo="hub", kind="small",
        pretrained=read_pretrained(federation, session.store))
    weights = session.run.global_weights(final, max_bytes=federation.protocol.max_update_bytes)
    proxy = proxy_with(weights, SiloState.empty(), settings).eval()
    statistics: Statistics = "averaged"
    norms: Weights = {}
    if federation.algorithm.normalisation == "silo":
        statistics = "none"
        sha256 = _distillation_sha256(session)
        if sha256:
            public = load_distillation_set(session.store, sha256, _cache(session))
            recompute_normalisation(proxy, public.images_NCHW, torch.device("cpu"))
            statistics = "public-images"
            tensors = proxy.state_dict()
            norms = {name: tensors[name].numpy() for name in sorted(normalisation_keys(proxy))}
    return Built(settings.objective.served(proxy, point).eval(), statistics, norms)


def _distillation_sha256(session: Session) -> str:
    try:
        return session.run.fact(SoftLabels).sha256
    except NotFound:
        return ""


def _cache(session: Session) -> Path | None:
    folder = session.federation.store.folder
    return None if folder is None else folder / "cache"
