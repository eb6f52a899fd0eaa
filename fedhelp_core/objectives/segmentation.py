"""Segmentation of one foreground, in two or three dimensions: Eq 6, MONAI's transforms, sliding windows and metrics.

Passed into the algorithm by whoever calls it. Volumes are trained on in patches and answered window by window; scores are taken image
by image, so that memory holds one volume's answer at a time. Shapes: N images, B batch, H and W spatial sides (D, H, W of
volumes); masks (N, 1, H, W) uint8 of 0 and 1.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedhelp_core.algorithm.batches import Augment, to_input
from fedhelp_core.algorithm.objective import Results, Scored
from fedhelp_core.algorithm.operating_point import OperatingPoint
from fedhelp_core.algorithm.voxel_losses import MASK
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.lean_monai import (
    Compose,
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

_BATCH_PIXELS = 2**18  # a batch's images in evaluation
_KEYS = ("image", "target")


class PixelClassifier(nn.Module):
    """Pixels in, probabilities of background and foreground of every pixel out: the softmax over a background of logit 0."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 1, H, W), values 0..255 -> probabilities (B, 2, H, W) float32."""
        logits_B1HW = self.network(to_input(images_BCHW, images_BCHW.device))
        return torch.cat((torch.zeros_like(logits_B1HW), logits_B1HW), dim=1).softmax(dim=1)


class Windows(nn.Module):
    """MONAI's Gaussian sliding window over cubes of one size, as a graph that torch.export can hold for any number of cubes.

    `sliding_window_inference` itself counts windows times images in Python, so that its exported form would take one number of
    images only. Places and weights of the windows are MONAI's.
    """

    weights: Tensor
    total: Tensor

    def __init__(self, network: nn.Module, side: int, window: int, overlap: float) -> None:
        super().__init__()
        self.network = network
        step = max(1, int(window * (1 - overlap)))
        places = dense_patch_slices((side,) * 3, (window,) * 3, (window if window == side else step,) * 3)
        self._places = [tuple(slice(part.start, part.stop) for part in place) for place in places]
        weights = compute_importance_map((window,) * 3, mode="gaussian", sigma_scale=0.125)
        total = torch.zeros((side,) * 3)
        for place in self._places:
            total[place] += weights
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("total", total, persistent=False)

    def forward(self, input_B1DHW: Tensor) -> Tensor:
        """Network input (B, 1, S, S, S) -> logits of the same shape."""
        logits = torch.zeros_like(input_B1DHW)
        for place in self._places:
            everywhere = (slice(None), slice(None), *place)
            logits[everywhere] += self.network(input_B1DHW[everywhere]) * self.weights
        return logits / self.total


class Segmentation:
    """One foreground probability per pixel or voxel."""

    terms = MASK
    ranks = False
    decides = False
    outputs = 1

    def __init__(self, task: TaskConfig) -> None:
        self.classes = task.classes
        self.dimensions: int = task.dimensions
        self.headline = task.headline
        self._task = task
        self._volumes = task.dimensions == 3
        self.trained_shape = (task.channels, *(task.volume.patch_size if self._volumes else task.image_size,) * task.dimensions)
        self.answered_shape = (task.channels, *(task.volume.window_size if self._volumes else task.image_size,) * task.dimensions)
        self.visits = task.volume.patches if self._volumes else 1
        set_track_meta(False)  # what the algorithm sees has been brought to one grid

    def build(self, model: ModelConfig | str, generator: torch.Generator | None = None) -> nn.Module:
        """The segmenter `model`."""
        return build_model(
            model, outputs=1, in_channels=self._task.channels, answer="mask", dimensions=self._task.dimensions,
            side=self.trained_shape[-1], generator=generator)

    def augmentation(self, kind: str) -> Augment | None:
        """Image and target changed together: a random patch of a volume, then flips, left-right (`mirror`) or along all sides (`flips`)."""
        sides = self._task.dimensions
        axes = {"none": (), "mirror": (self._left_right,), "flips": tuple(range(sides))}[kind]
        steps = [RandFlipd(_KEYS, prob=0.5, spatial_axis=axis) for axis in axes]
        if self._volumes:
            patch = (self._task.volume.patch_size,) * sides
            steps = [RandSpatialCropd(_KEYS, roi_size=patch, random_center=True, random_size=False), *steps]
        if not steps:
            return None
        together = Compose(steps)

        def augment(images_B: Tensor, targets_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            together.set_random_state(seed=int(torch.randint(0, 2**31, (), generator=generator)))
            changed = [together({"image": image, "target": target}) for image, target in zip(images_B, targets_B, strict=True)]
            images, targets = (torch.stack([one[key] for one in changed]) for key in _KEYS)
            return images, targets

        return augment

    @property
    def _left_right(self) -> int:
        """The left-right axis: the last of a picture, the first of a volume in RAS orientation."""
        return 0 if self._volumes else 1

    def answers(self, logits: Tensor) -> Tensor:
        """Foreground probabilities."""
        return logits.sigmoid()

    def served(self, model: nn.Module, point: OperatingPoint | None = None) -> nn.Module:
        """Images (B, 1, H, W), values 0..255 -> probabilities (B, 2, H, W) of background and foreground."""
        volume = self._task.volume
        windows = Windows(model, self._task.image_size, volume.window_size, volume.window_overlap) if self._volumes else model
        return PixelClassifier(windows)

    @torch.no_grad()
    def probabilities(self, model: nn.Module, images_NCHW: Tensor, device: torch.device) -> Tensor:
        """Foreground probabilities (N, 1, H, W)."""
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
        """`dice` (N,), 95th percentile Hausdorff distance `hausdorff95` (N,), and counts of pixels `confusion` (N, 2, 2).

        A missing prediction is as far away as the image is long, so that saying nothing never looks close.
        """
        rows = [self._compared(model, *pair, device) for pair in zip(images_NCHW, targets_NK, strict=True)]
        return {
            "dice": np.array([dice for dice, _, _ in rows]), "hausdorff95": np.array([distance for _, distance, _ in rows]),
            "confusion": np.array([confusion for _, _, confusion in rows], np.int64).reshape(-1, 2, 2)}

    def _compared(self, model: nn.Module, image_CHW: Tensor, mask_1HW: Tensor, device: torch.device) -> tuple[float, float, npt.NDArray[np.int64]]:
        """One image's row of `results`."""
        predicted = (self.probabilities(model, image_CHW[None], device) > 0.5).to(torch.uint8)
        truth = mask_1HW[None].to(torch.uint8)
        confusion = np.bincount((2 * truth + predicted).flatten().numpy(), minlength=4).reshape(2, 2)
        return float(compute_dice(predicted, truth, ignore_empty=False)), self._hausdorff(predicted, truth), confusion

    def scores_of(self, results: Results, point: OperatingPoint | None = None) -> Scored:
        """Mean Dice and mean 95th percentile Hausdorff distance over images, and counts of pixels (2, 2)."""
        means = {name: _mean(results[name].tolist()) for name in ("dice", "hausdorff95")}
        return Scored(means, results["confusion"].sum(axis=0))

    def merits(self, results: Results, point: OperatingPoint | None = None) -> npt.NDArray[np.float64]:
        """Dice."""
        dice_N: npt.NDArray[np.float64] = results["dice"]
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


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
