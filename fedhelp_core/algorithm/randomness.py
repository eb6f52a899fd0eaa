"""Where all randomness of a federation comes from: (seed, silo, round, purpose) -> a generator of its own.

Called by the local updates and by whoever draws the first global model. Two processes that agree on the four values
draw the same numbers, whatever ran before; nothing here touches PyTorch's global generator.
"""

from __future__ import annotations

import hashlib

import torch
import torch.utils.deterministic


def derive_seed(seed: int, silo: str, round_number: int, purpose: str) -> int:
    """63-bit seed from sha256 of the four values, so that neighbouring seeds share nothing."""
    digest = hashlib.sha256(f"fedhelp/{seed}/{silo}/{round_number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(seed: int, silo: str, round_number: int, purpose: str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, silo, round_number, purpose))


def fix_arithmetic(threads: int) -> None:
    """Set this process's thread count and forbid non-deterministic kernels: call once, before any model is built."""
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms does the same, but imports torch._inductor: 2 s of every process
    # nothing here reads what it did not write, and filling costs time in every step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
