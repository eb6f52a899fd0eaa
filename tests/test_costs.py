"""What the suite says of itself: which tests took most, and an order that can be had again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = {
    "test_a.py": "def test_busy():\n    x = 0\n    for n in range(3_000_000):\n        x += n\n\ndef test_idle():\n    pass\n",
    "test_b.py": "import subprocess, sys\n\ndef test_child():\n    subprocess.run([sys.executable, '-c', 'sum(range(20_000_000))'], check=True)\n"
                 "\n\ndef test_other():\n    pass\n",
}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of four tests with our hooks; its folder."""
    for name, text in _TESTS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def run(suite: Path, *options: str | Path) -> str:
    root = Path(__file__).parents[1]
    hooks = suite / "conftest.py"
    hooks.write_text("from tests.costs import *\nfrom tests.costs import shuffle\n\ndef pytest_collection_modifyitems(config, items):\n"
                     "    if config.option.shuffle:\n        shuffle(items, config.option.shuffle)\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-c", os.devnull, f"--rootdir={suite}", "-p", "no:cacheprovider", suite, *options],
        capture_output=True, text=True, cwd=suite, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_dearest_tests_come_first_and_what_their_processes_took_is_counted(suite: Path) -> None:
    said = run(suite, "--slowest", "2", "--costs", suite / "costs.csv")
    table = said[said.index("slowest 2"):]
    assert {"test_a.py::test_busy", "test_b.py::test_child"} == {line.rsplit(" ", 1)[1] for line in table.splitlines() if "::" in line}
    assert "all 4 tests" in table
    assert len((suite / "costs.csv").read_text(encoding="utf-8").splitlines()) == 5


@pytest.mark.slow
def test_a_seed_gives_the_same_order_again_in_several_processes_too(suite: Path) -> None:
    orders = []
    for options in (["--shuffle", "7"], ["--shuffle", "7"], ["--shuffle", "any"]):
        said = run(suite, *options)
        assert "order: --shuffle " in said
        orders.append([line.split(" ")[0] for line in said.splitlines() if "PASSED" in line])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(orders[2]) and len(orders[2]) == 4
    assert "4 passed" in run(suite, "--shuffle", "any", "-n", "2")  # xdist refuses processes that do not agree on an order
