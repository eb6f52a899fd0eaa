"""What all processes of FedHelp do with the machine's memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_AGAIN = """
import resource, threading
import numpy as np
from fedhelp_core.processes import keep_freed_memory

def pages():
    for number in range(20):
        if number == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        [np.ones(2**20, np.float32) for _ in range(8)]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

for keep in (False, True):
    if keep:
        keep_freed_memory()
    thread = threading.Thread(target=pages)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_is_kept_is_not_mapped_anew() -> None:
    said = subprocess.run([sys.executable, "-c", _AGAIN], check=True, capture_output=True, text=True).stdout
    given_back, kept = map(int, said.split())
    assert kept < 100 < given_back  # pages of 4 KiB, of ten times eight arrays of 1,024
