"""A model in use: prepared images in, answers out. Called by `fedhelp predict`, by adoption, and by whatever serves a model.

It reads no image and writes nothing. Preparation is training's own (`images_in`), and so is the arithmetic: an answer does not depend on which
images are asked about together, and the answers about a test set have exactly the scores of training's evaluation.

Shapes: N images, C channels, S the side in pixels or voxels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhelp_core.algorithm.batches import memory_format
from fedhelp_core.algorithm.objective import Objective
from fedhelp_core.algorithm.operating_point import FindingsPoint, OperatingPoint, at_half, likeliest
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.silo import AdoptionConfig
from fedhelp_core.data.examples import image_shape
from fedhelp_core.deployment.contract import Contract
from fedhelp_core.errors import DataError, WeightsError
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.weights.file import read_weights
from fedhelp_core.weights.header import Weights, WeightsSpec, canonical_header

_BATCH_PIXELS = 2**22  # of a GPU's batch, as the network sees it: 1,365 images of 32 x 32 x 3, 4 of 1024 x 1024
_MOST_BATCH = 256  # images
NO_FINDING = "no finding"
"""The decision about an image that shows none."""


@dataclass(frozen=True)
class ClassAnswer:
    """What a model says of an image that has a class."""

    probabilities_K: NDArray[np.float32]
    """The model's own."""
    calibrated_K: NDArray[np.float64]
    """Of this hospital's patients, at its operating point."""
    decided: int
    """The class, whether or not it is near another one."""
    margin: float
    """How far the likeliest class is before the second, in probability at the operating point, where classes count as equally common."""
    undecided: bool
    """Whether the margin lies in the band in which nothing should be decided."""

    @property
    def confidence(self) -> float:
        """Calibrated probability of the class."""
        return float(self.calibrated_K[self.decided])


@dataclass(frozen=True)
class MaskAnswer:
    """What a model says of each pixel or voxel of an image, on its own grid."""

    probabilities_KS: NDArray[np.float32]
    """Of each foreground or region, (K, S, S) or (K, S, S, S); of one foreground the mask is what is above a half."""
    regions: bool
    """Whether they overlap."""
    expected_dice: float
    """Dice that the mask would have, were the probabilities right, of several the mean of those that there are; 0 of an empty mask."""
    undecided: bool
    """Whether that is so low that nothing should be decided."""

    @property
    def confidence(self) -> float:
        """The expected Dice."""
        return self.expected_dice

    @property
    def decided(self) -> int:
        """1 where there is a mask, 0 of an empty one."""
        return int(self.expected_dice > 0)

    @property
    def probabilities_S(self) -> NDArray[np.float32]:
        """Of any foreground or region: of classes that exclude each other their sum, of regions the largest."""
        if len(self.probabilities_KS) == 1:
            return np.asarray(self.probabilities_KS[0])
        return np.asarray(self.probabilities_KS.max(axis=0) if self.regions else self.probabilities_KS.sum(axis=0), np.float32)

    def masks(self, back: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda one: one) -> NDArray[np.bool_]:
        """(K, ...) which pixels or voxels are each; `back` takes probabilities to the grid that is wanted."""
        found_K = np.stack([back(one_S) for one_S in self.probabilities_KS])
        if self.regions or len(found_K) == 1:
            return np.asarray(found_K > 0.5)
        background = 1 - found_K.sum(axis=0)
        return np.asarray((found_K == found_K.max(axis=0)) & (found_K > background))


@dataclass(frozen=True)
class FindingsAnswer:
    """What a model says of the findings of an image, each by itself."""

    probabilities_K: NDArray[np.float32]
    """The model's own."""
    calibrated_K: NDArray[np.float64]
    """Of this hospital's patients, at its operating point."""
    found_K: NDArray[np.bool_]
    """Which are decided to be there."""
    margin: float
    """How far the least sure finding is from a half, in probability of yes less that of no at the operating point, where both count as equally
    common."""
    undecided: bool
    """Whether that is so near that nothing should be decided."""

    @property
    def confidence(self) -> float:
        """Calibrated probability of what is said of the least sure finding."""
        return float(np.where(self.found_K, self.calibrated_K, 1 - self.calibrated_K).min())

    @property
    def found(self) -> tuple[int, ...]:
        """Numbers of the findings that are decided to be there."""
        return tuple(np.flatnonzero(self.found_K).tolist())

    @property
    def decided(self) -> int:
        """The likeliest finding, whether or not it is found."""
        return int(self.probabilities_K.argmax())


Answer = ClassAnswer | FindingsAnswer | MaskAnswer


class Scorer:
    """A complete model with its contract.

    Raises:
        WeightsError: the weights are not those of the contract's network, or images are prepared in another way by this software.
    """

    def __init__(self, contract: Contract, weights: Weights, band: AdoptionConfig, device: torch.device) -> None:
        contract.require_prepared_as_here()
        self.contract = contract
        self.band = band
        self.device = device
        self.objective: Objective = objective_of(contract.task)
        self.network = network_with(self.objective, contract.network, weights, device)
        point, outputs = contract.operating_point, self.objective.outputs
        self._point = point if isinstance(point, OperatingPoint) else likeliest(outputs)
        self._findings_point = point if isinstance(point, FindingsPoint) else at_half(outputs)

    @cached_property
    def batch(self) -> int:
        """How many images are best asked about at once: on a CPU, and of masks, they are computed one by one, as in evaluation."""
        pixels = int(np.prod(image_shape(self.contract.task)))
        return 1 if self.device.type == "cpu" or self.contract.task.per_pixel else max(1, min(_MOST_BATCH, _BATCH_PIXELS // pixels))

    def answers(self, images_NCS: NDArray[np.uint8]) -> list[Answer]:
        """Of prepared images, uint8 (N, C, S, S) or (N, C, S, S, S), in order.

        Raises:
            DataError: these are no such images.
        """
        self.require_images(images_NCS)
        if not len(images_NCS):
            return []
        images = torch.from_numpy(np.ascontiguousarray(images_NCS))
        if self.objective.decides:
            probabilities_NK = self.objective.probabilities(self.network, images, self.device).numpy()
            return self._classes(probabilities_NK) if self.objective.form == "classes" else self._findings(probabilities_NK)
        return [self._mask(self.objective.probabilities(self.network, one[None], self.device).numpy()[0]) for one in images]

    def require_images(self, images_NCS: NDArray[Any]) -> None:
        """Nothing where the array holds images as this model sees them.

        Raises:
            DataError: dtype, channels or sides are others; the sentence says which are expected.
        """
        shape = image_shape(self.contract.task)
        if images_NCS.dtype != np.uint8:
            scaled = " in 0..1" if images_NCS.dtype.kind == "f" and bool((images_NCS <= 1).all()) else ""
            raise DataError(f"images: uint8 of 0 to 255 expected, got {images_NCS.dtype}{scaled}; do not scale pixels, the model does")
        if images_NCS.shape[1:] != shape or images_NCS.ndim == 0:
            sides, got = (" x ".join(map(str, sides)) for sides in (("N", *shape), images_NCS.shape))
            raise DataError(f"images: {sides} (channels first) expected, got {got or 'one number'}; let files be prepared here, or do it so")

    def class_name(self, answer: ClassAnswer) -> str:
        """Of the decision."""
        return self.contract.task.classes[answer.decided]

    def _classes(self, probabilities_NK: NDArray[np.float32]) -> list[Answer]:
        calibrated_NK, decided_N = self._point.calibrated(probabilities_NK), self._point.decided(probabilities_NK)
        margin_N = margins_of(self._point, probabilities_NK)
        return [
            ClassAnswer(probabilities, calibrated, int(decided), float(margin), bool(margin < self.band.undecided_margin))
            for probabilities, calibrated, decided, margin in zip(probabilities_NK, calibrated_NK, decided_N, margin_N, strict=True)]

    def names_of(self, answer: Answer) -> str:
        """The class of the decision, or the findings that are found; of a mask its foreground."""
        classes = self.contract.task.classes
        if isinstance(answer, FindingsAnswer):
            return ", ".join(classes[number] for number in answer.found) or NO_FINDING
        if isinstance(answer, ClassAnswer):
            return classes[answer.decided]
        answered = self.contract.task.answered
        if len(answered) == 1:
            return answered[0]
        return ", ".join(name for name, mask in zip(answered, answer.masks(), strict=True) if mask.any()) or NO_FINDING

    def _findings(self, probabilities_NK: NDArray[np.float32]) -> list[Answer]:
        point = self._findings_point
        margin_N = np.abs(2 * point.equally_common(probabilities_NK) - 1).min(axis=1)
        return [
            FindingsAnswer(probabilities, calibrated, found, float(margin), bool(margin < self.band.undecided_margin))
            for probabilities, calibrated, found, margin in zip(
                probabilities_NK, point.calibrated(probabilities_NK), point.decided(probabilities_NK), margin_N, strict=True)]

    def _mask(self, probabilities_KS: NDArray[np.float32]) -> Answer:
        answer = MaskAnswer(probabilities_KS, self.contract.task.form == "regions", 0.0, undecided=False)
        expected = [value for one_S, mask in zip(probabilities_KS, answer.masks(), strict=True) if (value := expected_dice(one_S, mask))]
        dice = sum(expected) / len(expected) if expected else 0.0
        return replace(answer, expected_dice=dice, undecided=dice < self.band.undecided_dice)


def margins_of(point: OperatingPoint, probabilities_NK: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far each image's likeliest class is before the second, in probability at the operating point, (N,)."""
    best_N2 = np.sort(point.equally_common(probabilities_NK), axis=1)[:, -2:]
    margins_N: NDArray[np.float64] = best_N2[:, 1] - best_N2[:, 0]
    return margins_N


def expected_dice(probabilities: NDArray[np.float32], mask: NDArray[np.bool_] | None = None) -> float:
    """Twice the probable foreground inside the mask, by the mask and all probable foreground; 0 of an empty mask. None: what is above a half."""
    mask = probabilities > 0.5 if mask is None else mask
    if not mask.any():
        return 0.0
    return float(2 * probabilities[mask].sum(dtype=np.float64) / (mask.sum() + probabilities.sum(dtype=np.float64)))


def network_with(objective: Objective, model: ModelConfig | str, weights: Weights, device: torch.device) -> nn.Module:
    """The network `model` with `weights`, all of them, on `device`, as training evaluates it.

    Raises:
        WeightsError: the weights are another network's.
    """
    network, name = objective.build(model), str(model)
    expected = spec_of(network, name).tensors
    got = WeightsSpec.from_weights(weights, name).tensors
    if expected != got:
        names = sorted(set(expected) ^ set(got)) or [tensor for tensor in expected if expected[tensor] != got[tensor]]
        raise WeightsError(f"the weights do not fit network {name!r} with {objective.outputs} outputs: {len(names)} tensors differ, the first"
                           f" {names[0]}; they are of another task or network")
    network.load_state_dict({tensor: torch.from_numpy(np.array(array)) for tensor, array in weights.items()})
    return network.to(device).to(memory_format=memory_format(objective.dimensions)).eval()


def spec_of(network: nn.Module, name: str) -> WeightsSpec:
    """Of all of the network's weights, batch norms included."""
    return WeightsSpec.from_weights({tensor: value.numpy() for tensor, value in network.state_dict().items()}, name)


def scorer_in(contract: Contract, weights: Path, band: AdoptionConfig, device: torch.device) -> Scorer:
    """The model of `contract` whose weights are the file `weights`, verified by its sha256.

    Raises:
        WeightsError: another file, or another network's.
        NotFound: no such file.
    """
    spec = spec_of(objective_of(contract.task).build(contract.network), str(contract.network))
    arrays = read_weights(weights, expected=spec, max_bytes=canonical_header(spec)[1].end, sha256=contract.weights_sha256)
    return Scorer(contract, arrays, band, device)
