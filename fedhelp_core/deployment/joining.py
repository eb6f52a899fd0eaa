"""What the hub's weights become in one hospital: joined with its own batch norms, or its own large model, and evaluated as in training.

Called by `adoption`. `evaluated_models` of the algorithm chooses, fits and scores, on the very arrays that training evaluates on: where the run was
this hospital's, the scores are those of the run's evaluation to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fedhelp_core.algorithm.inference import Evaluated, EvaluationData, ModelName, evaluated_models, recompute_normalisation
from fedhelp_core.algorithm.local_update import SiloState, UpdateSettings, large_model_of, proxy_with
from fedhelp_core.algorithm.operating_point import OperatingPoint
from fedhelp_core.algorithm.randomness import fix_arithmetic
from fedhelp_core.config.silo import SiloConfig
from fedhelp_core.data.arrays import SiloArrays, load_silo_arrays
from fedhelp_core.data.datalist import manifest_of
from fedhelp_core.data.examples import preparation
from fedhelp_core.data.reading import bits_in_use
from fedhelp_core.deployment.contract import Contract, Norms
from fedhelp_core.deployment.reference import Reference, counted, seen
from fedhelp_core.deployment.scorer import Scorer, margins_of, network_with
from fedhelp_core.models.build import normalisation_keys
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.documents import utc_now
from fedhelp_core.protocol.model_record import ModelRecord
from fedhelp_core.registry.methods import METHOD_PARTS
from fedhelp_core.silo.state import StateFolder
from fedhelp_core.weights.file import fingerprint
from fedhelp_core.weights.header import Weights

_MOST_REFERENCE = 500  # test images: enough for shares of a few hundredths, and little beside the evaluation
_LARGE, _NORMS = "large/", "normalisation/"


@dataclass(frozen=True)
class Joined:
    """The model that this hospital would deploy: complete, with its scores."""

    contract: Contract
    weights: Weights
    evaluated: Evaluated

    def in_band(self, margin: float) -> tuple[int, int, int] | None:
        """Of the test images: how many a band of `margin` leaves undecided, how many of the others there are, and how many of those are right.

        None of findings and masks.
        """
        point, seen = self.evaluated.point, self.evaluated.test
        if not isinstance(point, OperatingPoint):
            return None
        decided_N = margins_of(point, seen["probabilities"]) >= margin
        right_N = point.decided(seen["probabilities"]) == seen["labels"]
        return int((~decided_N).sum()), int(decided_N.sum()), int((decided_N & right_N).sum())


def joined(
    config: SiloConfig, record: ModelRecord, weights: Weights, norms: Weights | None, *, threads: int, device: torch.device,
) -> Joined:
    """The model of `record` as the hospital of `config` deploys it.

    Args:
        config: silo.yaml.
        record: What the hub promoted.
        weights: As they travelled.
        norms: The registered model's batch norms, where `weights` has none.
        threads: CPU threads of the run.
        device: Where it is evaluated.

    Raises:
        ConfigError, DataError: the hospital's images are of another task, or cannot be used.
        WeightsError: the weights do not fit, or the hospital's state is damaged.
    """
    fix_arithmetic(threads)
    arrays = load_silo_arrays(config, record.task)
    state, notes = StateFolder(config.state, record.run).before(record.lineage.rounds + 1), []
    has_large = METHOD_PARTS[record.algorithm.method].large_model and any(name.startswith(_LARGE) for name in state.tensors)
    settings = UpdateSettings(
        algorithm=record.algorithm, objective=objective_of(record.task), seed=0, silo=config.name, kind="large" if has_large else "small",
        device=device)
    of_norms: Norms = "shared"
    if record.algorithm.normalisation == "silo":
        of_norms = "own"
        if not any(name.startswith(_NORMS) for name in state.tensors):
            state, of_norms = _with_norms(state, weights, norms, settings, arrays)
            notes.append(_SAID[of_norms])
    if not state.tensors and config.state.exists():
        notes.append(f"this hospital has no state of run {record.run}: it took no part, or its state is gone")
    found = evaluated_models(weights, state, settings, record.evaluation, _evaluation_data(record, arrays))
    which, evaluated = next(iter(found.items()))
    complete = _complete(which, weights, state, settings)
    network = record.algorithm.large_model if which == "large" else record.algorithm.proxy_model
    manifest = manifest_of(config, record.task)
    contract = Contract(
        name=record.name, version=record.version, number=record.number, run=record.run, silo=config.name, model=which, network=network,
        norms="own" if which == "large" else of_norms, global_sha256=record.weights.sha256, weights_sha256=fingerprint(complete, str(network)),
        task=record.task, preprocessing=preparation(record.task), threads=threads, operating_point=evaluated.point,
        pixel_bits=manifest.pixel_bits or bits_in_use((item for _, items in manifest.splits() for item in items), record.task),
        headline=settings.objective.headline.name, scores=evaluated.scored.scores, test_images=len(arrays.test.labels_N), made=utc_now(),
        notes=tuple(notes))
    scorer = Scorer(contract, complete, config.adoption, device)
    contract = replace(contract, reference=_reference(scorer, arrays.test.images_NCHW[:_MOST_REFERENCE].numpy()))
    return Joined(contract, complete, evaluated)


def _reference(scorer: Scorer, images_NCHW: NDArray[np.uint8]) -> Reference:
    """What the model sees and says on the first of the test images."""
    answers = scorer.answers(images_NCHW)
    found = (seen(image, answer.confidence, answer.decided) for image, answer in zip(images_NCHW, answers, strict=True))
    return counted(found, len(scorer.contract.task.classes))


def scores_now(config: SiloConfig, contract: Contract, weights: Weights, device: torch.device) -> dict[str, float]:
    """What a complete model scores on the hospital's test images as they are now."""
    fix_arithmetic(contract.threads)
    objective = objective_of(contract.task)
    test = load_silo_arrays(config, contract.task).test
    network = network_with(objective, contract.network, weights, device)
    return objective.scores_of(objective.results(network, test.images_NCHW, test.labels_N, device), contract.operating_point).scores


_SAID = {
    "registered": "batch norms are the registered model's, made from public images: this hospital has none of its own, and no training images",
    "recomputed": "batch norms have the statistics of this hospital's training images: it has trained none of its own",
}


def _with_norms(
    state: SiloState, weights: Weights, norms: Weights | None, settings: UpdateSettings, arrays: SiloArrays,
) -> tuple[SiloState, Norms]:
    """`state` with batch norms for a hospital that has trained none: the registered model's, their statistics taken anew where it has images."""
    registered = {f"{_NORMS}{name}": torch.from_numpy(np.array(array)) for name, array in (norms or {}).items()}
    state = SiloState(round=state.round, tensors={**state.tensors, **registered})
    images = arrays.training.images_NCHW
    if not len(images):
        return state, "registered"
    model = proxy_with(weights, state, settings)
    recompute_normalisation(model, images, settings.device)
    tensors = model.state_dict()
    own = {f"{_NORMS}{name}": tensors[name].cpu() for name in normalisation_keys(model)}
    return SiloState(round=state.round, tensors={**state.tensors, **own}), "recomputed"


def _evaluation_data(record: ModelRecord, arrays: SiloArrays) -> EvaluationData:
    objective = objective_of(record.task)
    return EvaluationData(
        test_images_NCHW=arrays.test.images_NCHW, test_labels_N=arrays.test.labels_N, validation_images_NCHW=arrays.validation.images_NCHW,
        validation_labels_N=arrays.validation.labels_N, decision_counts=objective.counts_of_decisions(arrays.training.labels_N),
        federation_shares=objective.learnt_shares(record.class_shares) if record.class_shares else None)


def _complete(which: ModelName, weights: Weights, state: SiloState, settings: UpdateSettings) -> Weights:
    model = large_model_of(state, settings) if which == "large" else proxy_with(weights, state, settings)
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in model.state_dict().items()}


def answers_alike(one: Contract, other: Contract) -> bool:
    """Whether two models answer the same question: the same task, and the same classes in the same order."""
    return (one.task.form, one.task.name, one.task.classes) == (other.task.form, other.task.name, other.task.classes)
