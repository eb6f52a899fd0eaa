"""child.py with real processes: arrays there and back, and a child that ends, stalls, refuses or lies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhelp_core import child as child_module
from fedhelp_core.child import Child, ChildEnded, ChildRefused
from tests.tiny import wait_until

ROOT = Path(__file__).parents[2]
PROGRAM = "tests.core.child_program"
BYTES = np.arange(4, dtype=np.uint8)
pytestmark = pytest.mark.slow


def start(*arguments: str, **options: Any) -> Child:
    return Child(PROGRAM, *arguments, environment={**os.environ, "PYTHONPATH": str(ROOT), "SEEN": "yes"}, **options)


@pytest.fixture
def child() -> Iterator[Child]:
    started = start("echo")
    yield started
    started._finalizer()


@pytest.mark.parametrize("array", [
    np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(24, dtype="<i2").reshape(2, 3, 4).transpose(2, 0, 1), np.zeros((0, 3)), np.asarray(2.5),
    np.array([True, False]), np.zeros((1000, 1000), np.uint16)], ids=str)
def test_an_array_comes_back_as_it_was_sent(child: Child, array: np.ndarray[Any, Any]) -> None:
    found = child.ask({}, array, most=array.nbytes)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_what_the_childs_code_raises_is_its_refusal_and_it_goes_on(child: Child) -> None:
    with pytest.raises(ChildRefused, match=r"^not this one$"):
        child.ask({"do": "raise"}, BYTES, most=4)
    assert child.ask({}, BYTES, most=4).tolist() == [0, 1, 2, 3]


def test_a_child_that_cannot_start_says_why_in_one_line() -> None:
    with pytest.raises(ChildRefused, match=r"^nothing to start$"):
        start("no start")


def test_a_child_that_ends_is_said_to_have_ended_from_then_on(child: Child) -> None:
    for _ in range(2):
        with pytest.raises(ChildEnded, match=r"its process has ended|is closed"):
            child.ask({"do": "end"}, BYTES, most=4)


def test_a_child_that_says_nothing_is_ended(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "_LONGEST", 0.2)
    with pytest.raises(ChildEnded, match=r"has not answered within 0\.2 s"):
        child.ask({"do": "stall"}, BYTES, most=4)


def test_an_answer_larger_than_expected_is_none(child: Child) -> None:
    with pytest.raises(ChildEnded, match="answers with no array of at most 3 bytes"):
        child.ask({}, BYTES, most=3)


@pytest.mark.parametrize("head", [
    b"", b"{", b"[" * 60_000, b"[]", b"7", b"x" * 70_000, b'{"dtype": "|O8", "shape": [1]}', b'{"dtype": "<f4", "shape": [2]}',
    b'{"dtype": "<f9", "shape": [1]}', b'{"dtype": "<f4", "shape": [1e999]}', b'{"dtype": "<f4", "shape": "1"}', b'{"dtype": "|u1", "shape": [3]}',
    b'{"dtype": "|u1", "shape": [18446744073709551616]}', b'{"dtype": "|u1"}'], ids=lambda head: head[:40])
def test_whatever_is_no_array_is_an_end_in_one_sentence(child: Child, head: bytes) -> None:
    with pytest.raises(ChildEnded) as caught:
        child.ask({"do": "raw"}, np.frombuffer(head, np.uint8), most=2**20)
    assert str(caught.value).startswith("its process answers with no array") and str(caught.value).isprintable()


def test_a_childs_folder_is_its_own_and_ends_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    started = start("echo", folder=folder)
    assert started.greeting == {"cwd": str(folder), "seen": "yes"}
    del started
    assert not folder.exists()


def test_a_child_ends_with_the_process_that_asked_it() -> None:
    code = (
        "import json, time, numpy as np\nfrom fedhelp_core.child import Child\n"
        f"child = Child('{PROGRAM}', 'echo')\nprint(json.dumps(child._process.pid), flush=True)\ntime.sleep(1000)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as parent:
        assert parent.stdout is not None
        pid = json.loads(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z", "the child's end")
