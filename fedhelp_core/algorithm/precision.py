"""Mixed precision: convolutions in bfloat16 where a GPU does that, everything that adds up in float32. Called by the local updates.

Weights, Adam's moments, batch-norm statistics, logits and losses stay float32, so what is uploaded and averaged has the same dtype either
way; bfloat16 has float32's range, so no loss needs scaling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def is_mixed(precision: Precision, device: torch.device) -> bool:
    """Whether models run in bfloat16 on `device`: 'auto' means on GPUs that have it, never on a CPU."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Run a model's forward pass inside; backward passes follow it."""
    return torch.autocast(device.type, torch.bfloat16) if is_mixed(precision, device) else nullcontext()


def kernels(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Run forward and backward passes inside. A CPU in bfloat16, a rehearsal of what GPUs do, is right rather than fast: without oneDNN.

    Its gradients of a 3D convolution's weights are wrong, or NaN, where an image is two voxels wide, as at the bottom of a U-Net
    (oneDNN 3.13 in PyTorch 2.15, on processors with AVX512-BF16; tests/core/algorithm/test_precision.py).
    """
    return _without_onednn() if device.type == "cpu" and is_mixed(precision, device) else nullcontext()


@contextmanager
def _without_onednn() -> Iterator[None]:
    before, *_ = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before, _fp32_precision=None)  # type: ignore[no-untyped-call]
