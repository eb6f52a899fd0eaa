"""Batches of images that already lie in memory as uint8: order, augmentation and scaling, all from one generator.

Called by the local updates and by evaluation. Images stay uint8 until their batch is made, so a silo's memory is its
images once. Shapes: N images, B batch, C channels, H height, W width (volumes have D, H, W in their place), K anything per
image (labels, masks or probabilities).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

# Pixels 0..255 become (x / 255 - 0.5) / 0.25: zero for mid-grey and about unit variance for natural images.
_SCALE = 1.0 / (255.0 * 0.25)
_SHIFT = -2.0

Augment = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""(images uint8, targets, generator) -> both, changed together."""


def memory_format(dimensions: int) -> torch.memory_format:
    """Channels last, for images of 2 or volumes of 3 spatial dimensions: what convolutions are fastest with."""
    return torch.channels_last if dimensions == 2 else torch.channels_last_3d


def to_input(images_BCHW: Tensor, device: torch.device) -> Tensor:
    """uint8 [0, 255] -> float32 network input of about zero mean and unit variance, channels last in memory."""
    moved = images_BCHW.to(device, non_blocking=True)
    return moved.to(torch.float32, memory_format=memory_format(images_BCHW.dim() - 2)).mul_(_SCALE).add_(_SHIFT)


def flip_at_random(images_BCHW: Tensor, generator: torch.Generator, dimensions: Sequence[int] = (3, 2)) -> Tensor:
    """Each image flipped along each of `dimensions` (of a picture 3: left-right, 2: top-bottom) with probability one half."""
    flips_FB = torch.rand((len(dimensions), images_BCHW.shape[0]), generator=generator) < 0.5
    for dimension, flip_B in zip(dimensions, flips_FB, strict=True):
        images_BCHW = torch.where(flip_B.view(-1, *(1,) * (images_BCHW.dim() - 1)), images_BCHW.flip(dimension), images_BCHW)
    return images_BCHW


class Rows(Protocol):
    """Something per image, (N, ...): a tensor, or rows of files that are read when their batch is made."""

    @property
    def shape(self) -> torch.Size:
        """(N, ...)."""

    def __getitem__(self, index_B: Tensor, /) -> Tensor:
        """The rows at `index_B`, (B, ...)."""


class Batches:
    """Batches of (images float32 (B, C, H, W), targets (B, ...)) drawn without replacement, pass after pass.

    The last, partial batch of a pass is kept: a silo of 351 images trains on 351. Every pass is a new order. `visits` is how
    often a pass comes to each image: more than once where a visit sees a patch of it only.
    """

    def __init__(
        self, images_NCHW: Rows, targets_NK: Rows, *, batch_size: int, augment: Augment | None, generator: torch.Generator,
        device: torch.device, visits: int = 1,
    ) -> None:
        self._images = images_NCHW
        self._targets = targets_NK
        self._batch_size = batch_size
        self._augment = augment
        self._generator = generator
        self._device = device
        self._visits = visits

    def __len__(self) -> int:
        """Batches in a pass."""
        return math.ceil(self._images.shape[0] * self._visits / self._batch_size)

    def one_pass(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image `visits` times, in a new random order."""
        images = self._images.shape[0]
        order = torch.randperm(images * self._visits, generator=self._generator)
        for index_B in torch.split(order % images if self._visits > 1 else order, self._batch_size):
            images_BCHW, targets_BK = self._images[index_B], self._targets[index_B]
            if self._augment is not None:
                images_BCHW, targets_BK = self._augment(images_BCHW, targets_BK, self._generator)
            yield to_input(images_BCHW, self._device), targets_BK.to(self._device)

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass after pass, for ever: the public images of Eq 2, whose set may be shorter than the private one."""
        while True:
            yield from self.one_pass()
