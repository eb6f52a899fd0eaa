"""Mixed precision: convolutions in bfloat16 where a GPU does that, everything that adds up in float32. Called by the local updates.

Weights, Adam's moments, batch-norm statistics, logits and losses stay float32, so what is uploaded and averaged has the same dtype either
way; bfloat16 has float32's range, so no loss needs scaling.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
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
