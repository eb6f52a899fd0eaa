"""What fixes the arithmetic of a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import torch
from fedhelp_core.algorithm.randomness import fix_arithmetic
fix_arithmetic(1)
print(torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory, torch.get_num_threads())
"""


@pytest.mark.slow  # a process of its own that imports PyTorch
def test_kernels_are_deterministic_on_one_thread_and_nothing_is_filled_that_is_written_anyway() -> None:
    """Filling every new tensor costs time in every step and changes no bit of a result."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["True", "False", "1"]
