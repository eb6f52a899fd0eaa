"""A silo's state on its own volume: two versions, one writer, whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedhelp_core.algorithm.local_update import SiloState
from fedhelp_core.algorithm.operating_point import OperatingPoint
from fedhelp_core.errors import StateLocked, StorageFull, WeightsError
from fedhelp_core.silo import state as module
from fedhelp_core.silo.state import StateFolder


def state(round: int, value: float = 0.0) -> SiloState:
    return SiloState(round=round, tensors={"large.weight": torch.full((3, 2), value), "optimizer.step": torch.tensor(round)})


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state", "run-1")


def test_a_state_comes_back_as_it_was(folder: StateFolder) -> None:
    folder.save(state(3, 0.5))
    found = folder.latest()
    assert found.round == 3
    assert {name: tensor.tolist() for name, tensor in found.tensors.items()} == {"large.weight": [[0.5, 0.5]] * 3, "optimizer.step": 3}


def test_a_silo_without_a_past_starts_empty_and_has_no_folder(folder: StateFolder) -> None:
    assert folder.versions() == [] and folder.latest().tensors == {} and folder.before(1).tensors == {}
    assert not folder.folder.exists()


def test_the_last_two_versions_are_kept(folder: StateFolder) -> None:
    for round in range(1, 6):
        folder.save(state(round))
    assert folder.versions() == [4, 5]


def test_a_round_starts_from_the_newest_state_before_it_even_if_it_had_ended_once(folder: StateFolder) -> None:
    for round in (1, 2, 3):
        folder.save(state(round, float(round)))
    assert folder.before(3).round == 2  # round 3 is run again
    assert folder.before(4).round == folder.before(9).round == 3  # rounds 4 to 8 went by without this silo
    assert folder.before(2).tensors == {}


def test_a_round_run_again_does_not_cost_the_version_that_it_started_from(folder: StateFolder) -> None:
    for round in (1, 2, 3):
        folder.save(state(round))
    folder.save(state(3, 1.0))
    assert folder.versions() == [2, 3]
    assert folder.latest().tensors["large.weight"][0, 0] == 1.0


def test_a_full_disk_leaves_the_old_state_and_no_rest(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full here")
    folder.save(state(1, 1.0))
    before = sorted(path.name for path in folder.folder.iterdir())
    write = module.write_weights

    def on_a_full_disk(path: Path, *arguments: object) -> str:
        path.symlink_to("/dev/full")
        return write(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_weights", on_a_full_disk)
    with pytest.raises(StorageFull, match="no space left"):
        folder.save(state(2, 2.0))
    assert sorted(path.name for path in folder.folder.iterdir()) == before
    assert folder.latest().tensors["large.weight"][0, 0] == 1.0


def test_a_writer_killed_in_the_middle_leaves_the_old_state_and_the_next_one_clears_up(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.save(state(1, 1.0))
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(module, "write_weights", lambda path, *_: (path.write_bytes(b"half"), os.kill(os.getpid(), 9)))
        folder.save(state(2, 2.0))
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 9
    assert folder.latest().round == 1
    assert len(list(folder.folder.glob(".*.tmp"))) == 1
    monkeypatch.undo()
    folder.save(state(2, 2.0))
    assert folder.latest().round == 2
    assert list(folder.folder.glob(".*.tmp")) == []


def test_a_damaged_state_is_named(folder: StateFolder) -> None:
    folder.save(state(1))
    path = folder.folder / "round-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WeightsError, match=r"round-00001\.safetensors: truncated"):
        folder.latest()


@pytest.fixture
def holder(folder: StateFolder) -> Iterator[Callable[[], None]]:
    """Another process that holds the run's lock; called, it is killed."""
    program = (
        "import sys, time; from pathlib import Path; from fedhelp_core.silo.state import StateFolder\n"
        "with StateFolder(Path(sys.argv[1]), 'run-1').locked():\n    print('held', flush=True); time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-c", program, str(folder.folder.parents[1])], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"

    def kill() -> None:
        process.kill()
        process.wait()

    yield kill
    kill()
    process.stdout.close()


@pytest.mark.timeout(120)  # seconds: another process imports PyTorch
def test_another_process_at_work_is_said_and_its_lock_ends_with_it(folder: StateFolder, holder: Callable[[], None]) -> None:
    with pytest.raises(StateLocked, match="another process is working on this silo's state") as refusal, folder.locked():
        pytest.fail("both are at work")
    assert refusal.value.exit_code == 33
    with StateFolder(folder.folder.parents[1], "run-2").locked():
        pass  # another run's state is another lock
    holder()
    with folder.locked():
        folder.save(state(1))


def test_an_error_of_the_work_is_not_taken_for_one_of_the_lock(folder: StateFolder) -> None:
    with pytest.raises(PermissionError, match="an image"), folder.locked():
        raise PermissionError(13, "an image")


def test_how_the_hospital_decides_is_written_down_for_it_the_deployed_model_first(folder: StateFolder) -> None:
    point = OperatingPoint(rule="validation", temperature=1.5, offsets_C=(0.25, -0.25), log_prior_C=(-0.5, -1.0), log_occurrence_C=(0.0, -0.5))
    folder.keep_operating_points({"proxy": point, "large": replace(point, temperature=2.0)})
    found = json.loads((folder.folder / "operating-points.json").read_text(encoding="utf-8"))
    assert list(found) == ["proxy", "large"]
    assert found["proxy"] == {
        "rule": "validation", "temperature": 1.5, "offsets_C": [0.25, -0.25], "log_prior_C": [-0.5, -1.0], "log_occurrence_C": [0.0, -0.5]}
    assert folder.versions() == []
