"""PyTorch and NumPy count with one thread in tests: imported before them, by conftest.py first of all.

A second thread gains nothing on a test's few numbers. It waits for work in a loop that takes a whole core from the other tests: where two processes
shared two cores, a training step of a millisecond took fifteen. What a test starts inherits the setting; FedHelp's own processes set their threads.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
