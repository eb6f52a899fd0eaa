"""Segmentation in two or three dimensions, of classes that exclude each other or of regions that overlap: Eq 6, MONAI's transforms,
sliding windows and metrics.

Passed into the algorithm by whoever calls it. Volumes are trained on in patches and answered window by window; scores are taken image
by image, so that memory holds one volume's answer at a time. Shapes: N images, B batch, C channels, K foreground classes or regions, H and W
spatial sides (D, H, W of volumes); masks uint8 (N, 1, H, W) of class numbers, background 0, or of regions (N, K, H, W) of 0, 1 and NOT_LABELLED.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedhelp_core.algorithm.batches import Augment, to_input
from fedhelp_core.algorithm.class_shares import Shares
from fedhelp_core.algorithm.losses import with_labelled
from fedhelp_core.algorithm.objective import Results, Scored
from fedhelp_core.algorithm.operating_point import FloatArray, IntArray, OperatingPoint, Point
from fedhelp_core.algorithm.voxel_losses import REGIONS, foreground_probabilities, with_labelled_classes
from fedhelp_core.config.algorithm import AugmentationConfig
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.lean_monai import (
    RandFlipd,
    RandSpatialCropd,
    compute_dice,
    compute_hausdorff_distance,
    compute_importance_map,
    dense_patch_slices,
    set_track_meta,
    sliding_window_inference,
)
from fedhelp_core.models.build import build_model
from fedhelp_core.objectives.augmentation import steps_of, together
from fedhelp_core.objectives.metrics import mean_of_defined
from fedhelp_core.registry.tasks import NOT_LABELLED

_BATCH_PIXELS = 2**18  # a batch's images in evaluation
_KEYS = ("image", "target")
_SCORES = ("dice", "hausdorff95")
_Value = TypeVar("_Value")


class PixelClassifier(nn.Module):
    """Pixels in, probabilities of background and foreground classes of every pixel out: the softmax over a background of logit 0."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W), values 0..255 -> probabilities (B, 1 + K, H, W) float32."""
        logits_BKHW = self.network(to_input(images_BCHW, images_BCHW.device))
        return torch.cat((torch.zeros_like(logits_BKHW[:, :1]), logits_BKHW), dim=1).softmax(dim=1)


class RegionsOfPixels(nn.Module):
    """Pixels in, a probability of each region for every pixel out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W), values 0..255 -> probabilities (B, K, H, W) float32, each by itself."""
        logits_BKHW: Tensor = self.network(to_input(images_BCHW, images_BCHW.device))
        return logits_BKHW.sigmoid()


class Windows(nn.Module):
    """MONAI's Gaussian sliding window over cubes of one size, as a graph that torch.export can hold for any number of cubes.

    `sliding_window_inference` itself counts windows times images in Python, so that its exported form would take one number of
    images only. Places and weights of the windows are MONAI's.
    """

    weights: Tensor
    total: Tensor

    def __init__(self, network: nn.Module, outputs: int, side: int, window: int, overlap: float) -> None:
        super().__init__()
        self.network = network
        self._outputs = outputs
        step = max(1, int(window * (1 - overlap)))
        places = dense_patch_slices((side,) * 3, (window,) * 3, (window if window == side else step,) * 3)
        self._places = [tuple(slice(part.start, part.stop) for part in place) for place in places]
        weights = compute_importance_map((window,) * 3, mode="gaussian", sigma_scale=0.125)
        total = torch.zeros((side,) * 3)
        for place in self._places:
            total[place] += weights
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("total", total, persistent=False)

    def forward(self, input_BCDHW: Tensor) -> Tensor:
        """Network input (B, C, S, S, S) -> logits (B, K, S, S, S)."""
        logits = torch.zeros_like(input_BCDHW[:, :1]).repeat(1, self._outputs, 1, 1, 1)
        for place in self._places:
            everywhere = (slice(None), slice(None), *place)
            logits[everywhere] += self.network(input_BCDHW[everywhere]) * self.weights
        return logits / self.total


class Segmentation:
    """A probability of each foreground class or region for every pixel or voxel. `labelled`: which of these a silo labels; None: all."""

    ranks = False
    decides = False

    def __init__(self, task: TaskConfig, labelled: tuple[bool, ...] | None = None) -> None:
        self.form = task.form
        self.classes = task.classes
        self.dimensions: int = task.dimensions
        self.headline = task.headline
        self.outputs = len(task.answered)
        self._labelled = labelled or (True,) * self.outputs
        self.terms = with_labelled(REGIONS, self._labelled) if self._regions else with_labelled_classes(self._labelled)
        self._task = task
        self._volumes = task.dimensions == 3
        self.trained_shape = (task.channels, *(task.volume.patch_size if self._volumes else task.image_size,) * task.dimensions)
        self.answered_shape = (task.channels, *(task.volume.window_size if self._volumes else task.image_size,) * task.dimensions)
        self.visits = task.volume.patches if self._volumes else 1
        set_track_meta(False)  # what the algorithm sees has been brought to one grid

    @property
    def _regions(self) -> bool:
        return self.form == "regions"

    def labelling(self, labelled: tuple[bool, ...] | None) -> Segmentation:
        """The same for a silo that labels these alone."""
        return self if labelled is None or all(labelled) else Segmentation(self._task, labelled)

    def build(self, model: ModelConfig | str, generator: torch.Generator | None = None) -> nn.Module:
        """The segmenter `model`."""
        return build_model(
            model, outputs=self.outputs, in_channels=self._task.channels, answer="mask", dimensions=self._task.dimensions,
            side=self.trained_shape[-1], generator=generator)

    def augmentation(self, kind: str | tuple[AugmentationConfig, ...]) -> Augment | None:
        """Image and target changed together: a random patch of a volume, then flips, left-right (`mirror`) or along all sides (`flips`), or the
        transforms that are listed.
        """
        sides = self._task.dimensions
        if isinstance(kind, str):
            axes = {"none": (), "mirror": (self._left_right,), "flips": tuple(range(sides))}[kind]
            steps = [RandFlipd(_KEYS, prob=0.5, spatial_axis=axis) for axis in axes]
        else:
            steps = steps_of(kind, sides, per_pixel=True)
        if self._volumes:
            patch = (self._task.volume.patch_size,) * sides
            steps = [RandSpatialCropd(_KEYS, roi_size=patch, random_center=True, random_size=False), *steps]
        return together(steps, per_pixel=True) if steps else None

    @property
    def _left_right(self) -> int:
        """The left-right axis: the last of a picture, the first of a volume in RAS orientation."""
        return 0 if self._volumes else 1

    def counts(self, targets_NK: Tensor) -> list[int]:
        """Pixels of background and of each foreground; of each region those inside."""
        if self._regions:
            inside: list[int] = (targets_NK == 1).flatten(2).sum(dim=(0, 2)).tolist()
            return inside
        found: list[int] = torch.bincount(targets_NK.flatten(), minlength=len(self.classes)).tolist()
        return found

    def counts_of_decisions(self, targets_NK: Tensor) -> list[list[int]]:
        """None: masks are cut at 0.5."""
        return []

    def learnt_shares(self, class_shares: Sequence[float]) -> list[Shares]:
        """None."""
        return []

    def decisions(self, results: Results) -> list[tuple[IntArray, FloatArray]]:
        """None."""
        return []

    def point_of(self, points: Sequence[OperatingPoint]) -> Point:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.form}: no operating point expected, which only classes and findings have")

    def answers(self, logits: Tensor) -> Tensor:
        """Probabilities of the foreground classes or regions."""
        return logits.sigmoid() if self._regions else foreground_probabilities(logits)

    def served(self, model: nn.Module, point: Point | None = None) -> nn.Module:
        """Images (B, C, H, W), values 0..255 -> probabilities (B, 1 + K, H, W) of background and classes, or (B, K, H, W) of regions."""
        volume = self._task.volume
        whole = Windows(model, self.outputs, self._task.image_size, volume.window_size, volume.window_overlap) if self._volumes else model
        return RegionsOfPixels(whole) if self._regions else PixelClassifier(whole)

    @torch.no_grad()
    def probabilities(self, model: nn.Module, images_NCHW: Tensor, device: torch.device) -> Tensor:
        """Probabilities (N, K, H, W) of the foreground classes or regions."""
        model.eval()
        at_once = 1 if self._volumes else max(1, _BATCH_PIXELS // images_NCHW[0, 0].numel())
        return torch.cat([self._answer(model, to_input(part, device)).cpu() for part in torch.split(images_NCHW, at_once)])

    def _answer(self, model: nn.Module, input_B: Tensor) -> Tensor:
        if not self._volumes:
            return self.answers(model(input_B).float())
        volume = self._task.volume
        logits_B: Tensor = sliding_window_inference(
            input_B, (volume.window_size,) * 3, volume.windows, model, overlap=volume.window_overlap, mode="gaussian")
        return self.answers(logits_B.float())

    def results(self, model: nn.Module, images_NCHW: Tensor, targets_NK: Tensor, device: torch.device) -> Results:
        """`dice` (N,), 95th percentile Hausdorff distance `hausdorff95` (N,), both of several foregrounds their means; these of each (N, K);
        and counts of pixels `confusion` (N, 1 + K, 1 + K), of regions (N, K, 4). NaN of what is not labelled.

        A missing prediction is as far away as the image is long, so that saying nothing never looks close.
        """
        rows = [self._compared(model, *pair, device) for pair in zip(images_NCHW, targets_NK, strict=True)]
        of_each = {name: np.array([row[place] for row in rows]).reshape(-1, self.outputs) for place, name in enumerate(_SCORES)}
        shape = (self.outputs, 4) if self._regions else (len(self.classes),) * 2
        return {
            **{name: np.array([mean_of_defined(row) for row in values_NK.tolist()]) for name, values_NK in of_each.items()},
            **{f"{name}_of_each": values_NK for name, values_NK in of_each.items()},
            "confusion": np.array([confusion for _, _, confusion in rows], np.int64).reshape(-1, *shape)}

    def _compared(
        self, model: nn.Module, image_CHW: Tensor, target_KHW: Tensor, device: torch.device,
    ) -> tuple[list[float], list[float], npt.NDArray[np.int64]]:
        """One image's row of `results`."""
        probabilities = self.probabilities(model, image_CHW[None], device)
        if self._regions:
            return self._compared_regions((probabilities > 0.5).to(torch.uint8), target_KHW[None])
        predicted, truth = self._decided(probabilities), target_KHW[None].to(torch.uint8)
        confusion = np.bincount((len(self.classes) * truth.long() + predicted.long()).flatten().numpy(), minlength=len(self.classes) ** 2)
        pairs = [((predicted == number).to(torch.uint8), (truth == number).to(torch.uint8)) for number in range(1, len(self.classes))]
        return *self._distances(pairs, self._labelled), confusion.reshape((len(self.classes),) * 2)

    def _decided(self, probabilities_1K: Tensor) -> Tensor:
        """The number of each pixel's likeliest class (1, 1, ...); one that the silo does not label is background to it."""
        numbers = decided_classes(probabilities_1K)
        for number, is_labelled in enumerate(self._labelled, start=1):
            numbers[numbers == (number if not is_labelled else -1)] = 0
        return numbers.to(torch.uint8)

    def _compared_regions(self, predicted_1K: Tensor, target_1K: Tensor) -> tuple[list[float], list[float], npt.NDArray[np.int64]]:
        known = [bool((target_1K[:, number] != NOT_LABELLED).all()) for number in range(self.outputs)]
        pairs = [(predicted_1K[:, number : number + 1], (target_1K[:, number : number + 1] == 1).to(torch.uint8)) for number in range(self.outputs)]
        confusion = np.array([
            np.bincount((2 * truth + predicted).flatten().numpy(), minlength=4) if is_known else np.zeros(4, np.int64)
            for is_known, (predicted, truth) in zip(known, pairs, strict=True)])
        return *self._distances(pairs, known), confusion

    def _distances(self, pairs: Sequence[tuple[Tensor, Tensor]], known: Sequence[bool]) -> tuple[list[float], list[float]]:
        """Dice and Hausdorff distance of each (predicted, true) pair (1, 1, ...) of masks of 0 and 1; NaN of those that are not known."""
        return (
            [float(compute_dice(*pair, ignore_empty=False)) if is_known else math.nan for pair, is_known in zip(pairs, known, strict=True)],
            [self._hausdorff(*pair) if is_known else math.nan for pair, is_known in zip(pairs, known, strict=True)])

    def scores_of(self, results: Results, point: Point | None = None) -> Scored:
        """Mean Dice and mean 95th percentile Hausdorff distance over images, of several foregrounds the means of theirs, and counts of pixels."""
        confusion = results["confusion"].sum(axis=0)
        if self.outputs == 1:
            return Scored(self._chosen({name: _mean(results[name].tolist()) for name in _SCORES}), confusion)
        of_each = {name: [mean_of_defined(column) for column in results[f"{name}_of_each"].T.tolist()] for name in _SCORES}
        return Scored(self._chosen({name: mean_of_defined(values) for name, values in of_each.items()}), confusion, of_each=self._chosen(of_each))

    def _chosen(self, scores: dict[str, _Value]) -> dict[str, _Value]:
        """Those that the task is scored by, in its order."""
        return {name: scores[name] for name in self._task.metrics}

    def merits(self, results: Results, point: Point | None = None) -> npt.NDArray[np.float64]:
        """Dice; 0 where nothing is labelled."""
        dice_N: npt.NDArray[np.float64] = results["dice"] if self.outputs == 1 else np.nan_to_num(results["dice"])
        return dice_N

    def scored(self, model: nn.Module, images_NCHW: Tensor, targets_NK: Tensor, device: torch.device) -> Scored:
        """`scores_of` its results."""
        return self.scores_of(self.results(model, images_NCHW, targets_NK, device))

    def _hausdorff(self, predicted_1: Tensor, truth_1: Tensor) -> float:
        """In pixels, or in mm for volumes."""
        spacing = self._task.volume.spacing if self._volumes else 1.0
        if not predicted_1.any() or not truth_1.any():
            return 0.0 if not predicted_1.any() and not truth_1.any() else math.dist((0,) * (truth_1.dim() - 2), truth_1.shape[2:]) * spacing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI's, about an argument that it passes to itself
            return float(compute_hausdorff_distance(
                predicted_1, truth_1, include_background=True, percentile=95, spacing=[spacing] * self._task.dimensions))


def decided_classes(probabilities_NK: Tensor) -> Tensor:
    """The number of the likeliest class of each pixel (N, 1, ...), 0 where none of the K is likelier than the background."""
    if probabilities_NK.shape[1] == 1:
        return (probabilities_NK > 0.5).long()
    background_N1 = 1 - probabilities_NK.sum(dim=1, keepdim=True)
    return torch.cat((background_N1, probabilities_NK), dim=1).argmax(dim=1, keepdim=True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
