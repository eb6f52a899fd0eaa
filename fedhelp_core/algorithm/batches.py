"""Batches of images that already lie in memory as uint8: order, augmentation and scaling, all from one generator.

Called by the local updates and by evaluation. Images stay uint8 until their batch is made, so a silo's memory is its
images once. Shapes: N images, B batch, C channels, H height, W width, K anything per image (labels or probabilities).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

# Pixels 0..255 become (x / 255 - 0.5) / 0.25: zero for mid-grey and about unit variance for natural images.
_SCALE = 1.0 / (255.0 * 0.25)
_SHIFT = -2.0


def to_input(images_BCHW: Tensor, device: torch.device) -> Tensor:
    """uint8 [0, 255] -> float32 network input of about zero mean and unit variance, channels last in memory."""
    moved = images_BCHW.to(device, non_blocking=True)
    return moved.to(torch.float32, memory_format=torch.channels_last).mul_(_SCALE).add_(_SHIFT)


def flip_at_random(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image flipped left-right and top-bottom with probability one half each."""
    flips_2B = torch.rand((2, images_BCHW.shape[0]), generator=generator) < 0.5
    for dimension, flip_B in zip((3, 2), flips_2B, strict=True):
        images_BCHW = torch.where(flip_B[:, None, None, None], images_BCHW.flip(dimension), images_BCHW)
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

    The last, partial batch of a pass is kept: a silo of 351 images trains on 351. Every pass is a new order.
    """

    def __init__(
        self, images_NCHW: Rows, targets_NK: Rows, *, batch_size: int, flips: bool, generator: torch.Generator, device: torch.device,
    ) -> None:
        self._images = images_NCHW
        self._targets = targets_NK
        self._batch_size = batch_size
        self._flips = flips
        self._generator = generator
        self._device = device

    def one_pass(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in a new random order."""
        order_N = torch.randperm(self._images.shape[0], generator=self._generator)
        for index_B in torch.split(order_N, self._batch_size):
            images_BCHW = self._images[index_B]
            if self._flips:
                images_BCHW = flip_at_random(images_BCHW, self._generator)
            yield to_input(images_BCHW, self._device), self._targets[index_B].to(self._device)

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass after pass, for ever: the public images of Eq 2, whose set may be shorter than the private one."""
        while True:
            yield from self.one_pass()
