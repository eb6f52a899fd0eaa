"""A hospital's folder of models: whole after whatever stops it, two kept, one at a time, and every decision in a chain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedhelp_core.config.silo import AdoptionConfig
from fedhelp_core.deployment.adopted import ModelFolder, model_meant, models_in
from fedhelp_core.deployment.adoption import roll_back, verdict
from fedhelp_core.deployment.decisions import Decision, DecisionLedger
from fedhelp_core.errors import ConfigError, NotFound, PermanentError, StateLocked, StorageFull, WeightsError
from tests.core.deployment.models import TASKS, contract_of, drawn, files_of_at_most, hospital, tree_of

NAN = float("nan")


@pytest.mark.parametrize(("new", "old", "tolerance", "passes", "said"), [
    (0.80, 0.80, 0.02, True, "equal, 0.02 below is allowed"),
    (0.81, 0.80, 0.0, True, "better, 0 below is allowed"),
    (0.79, 0.80, 0.02, True, "worse by 0.010, 0.02 below is allowed"),
    (0.77, 0.80, 0.02, False, "worse by 0.030, 0.02 below is allowed (adoption.tolerance)"),
    (0.799, 0.80, 0.0, False, "worse by 0.001"),
    (NAN, 0.80, 1.0, False, "the new score is not defined"),
    (0.10, NAN, 0.0, True, "nothing to fall behind"),
    (NAN, NAN, 0.0, True, "nothing to fall behind"),
])
def test_the_hospitals_rule(new: float, old: float, tolerance: float, passes: bool, said: str) -> None:
    task = TASKS["melanoma"]
    contract = contract_of(task, drawn(task), scores={"balanced_accuracy": new})
    found, reason = verdict(contract, {"balanced_accuracy": old}, "2", tolerance)
    assert found is passes
    assert said in reason and "balanced accuracy" in reason and "8 test images" in reason


def test_the_default_tolerance_is_stricter_than_the_hubs() -> None:
    assert AdoptionConfig().tolerance == 0.02


def test_the_last_two_are_kept_and_a_rollback_goes_to_and_fro(tmp_path: Path) -> None:
    here = hospital(tmp_path, in_use=False)
    with pytest.raises(NotFound, match="no model is in use; adopt one"):
        here.models.in_use()
    for seed in (1, 2, 3):
        here.put_in_use(seed, version=str(seed))
    assert len(list((here.models.folder / "adopted").iterdir())) == 2
    back, replaced = roll_back(here.models, "too many alarms")
    assert (back.version, replaced.version) == ("2", "3") and here.models.in_use().contract.version == "2"
    assert [back.version for back in roll_back(here.models)] == ["3", "2"]
    [first, second] = here.models.ledger.decisions()
    assert (first.action, first.version, first.before, first.reason) == ("rolled-back", "2", "3", "too many alarms")
    assert (second.action, second.version) == ("rolled-back", "3")


def test_there_is_nothing_to_go_back_to_after_the_first(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no model was in use before"):
        roll_back(hospital(tmp_path).models)


def test_nobody_goes_back_to_weights_that_were_altered(tmp_path: Path) -> None:
    here = hospital(tmp_path)
    here.put_in_use(2, version="4")
    before = here.models.before()
    assert before is not None
    body = bytearray(before.weights.read_bytes())
    body[-1] ^= 1
    before.weights.write_bytes(body)
    with pytest.raises(WeightsError, match="was altered since it was adopted; adopt version 3 again"):
        roll_back(here.models)
    assert here.models.in_use().contract.version == "4"


def test_the_same_model_again_changes_nothing(tmp_path: Path) -> None:
    here = hospital(tmp_path)
    before = tree_of(here.models.folder)
    here.put_in_use(made="2026-02-02T00:00:00.000+00:00")
    assert tree_of(here.models.folder) == before


def test_a_full_disk_amid_an_adoption_leaves_the_model_in_use_whole(tmp_path: Path) -> None:
    here = hospital(tmp_path)
    before = tree_of(here.models.folder)
    with files_of_at_most(10_000), pytest.raises(StorageFull, match="no space left"):
        here.put_in_use(2, version="4")
    assert tree_of(here.models.folder) == before
    assert here.models.in_use().contract.version == "3"
    here.put_in_use(2, version="4")
    assert here.models.in_use().contract.version == "4"


def test_two_adoptions_at_once_are_one_and_a_sentence(tmp_path: Path) -> None:
    here = hospital(tmp_path)
    with ModelFolder(tmp_path / "state", "chest").locked():
        with pytest.raises(StateLocked, match="another process fetches or adopts this model now"):
            here.put_in_use(2)
        with pytest.raises(StateLocked):
            roll_back(here.models)
    here.put_in_use(2)


@pytest.mark.parametrize(("name", "body", "error", "said"), [
    ("in-use.json", "{", PermanentError, "in-use.json: is damaged"),
    ("in-use.json", '{"in_use": 3}', NotFound, "is gone; adopt the model again"),
    ("in-use.json", '{"other": 3}', PermanentError, "in-use.json: is damaged"),
    ("newest.json", '{"number": "x"}', PermanentError, "newest.json: is damaged"),
    ("newest.json", "[]", PermanentError, "newest.json: is damaged"),
])
def test_damaged_notes_are_one_sentence(name: str, body: str, error: type[Exception], said: str, tmp_path: Path) -> None:
    here = hospital(tmp_path)
    (here.models.folder / name).write_text(body)
    with pytest.raises(error, match=said):
        here.models.in_use() if name == "in-use.json" else here.models.seen()


@pytest.mark.parametrize("body", [b"", b"{}", b"not json", b'{"format": 2}', b"\xff"])
def test_a_damaged_contract_is_one_sentence(body: bytes, tmp_path: Path) -> None:
    here = hospital(tmp_path)
    (here.models.in_use().folder / "contract.json").write_bytes(body)
    with pytest.raises(WeightsError, match=r"contract.json: .*adopt the model again"):
        here.models.in_use()


def test_a_models_name_is_no_path(tmp_path: Path) -> None:
    for name in ("../x", "a/b", "", ".", "a\nb"):
        with pytest.raises(PermanentError, match="registered model"):
            ModelFolder(tmp_path, name)


def test_the_only_model_is_meant_and_of_several_one_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="has no model yet"):
        model_meant(tmp_path, asked=None, configured=None)
    with pytest.raises(NotFound, match="the store has no record of a model"):
        model_meant(tmp_path, asked=None, configured=None, known=[])
    (tmp_path / "models" / "chest").mkdir(parents=True)
    assert models_in(tmp_path) == ["chest"] and model_meant(tmp_path, asked=None, configured=None) == "chest"
    (tmp_path / "models" / "skin").mkdir()
    with pytest.raises(ConfigError, match=r"several models are known \(chest, skin\); say which with --name"):
        model_meant(tmp_path, asked=None, configured=None)
    assert model_meant(tmp_path, asked=None, configured="skin") == "skin"
    assert model_meant(tmp_path, asked="other", configured="skin") == "other"


@pytest.mark.parametrize("change", [
    lambda lines: [lines[0].replace(b"0.7", b"0.9"), *lines[1:]], lambda lines: lines[1:], lambda lines: [lines[0], lines[2]],
    lambda lines: [lines[1], lines[0], lines[2]], lambda lines: [b"x", *lines[1:]], lambda lines: [b"[]", *lines[1:]]])
def test_a_ledger_that_was_altered_says_so_and_takes_no_more_lines(change: object, tmp_path: Path) -> None:
    ledger = DecisionLedger(tmp_path / "adoptions.jsonl")
    for version in "123":
        ledger.append(Decision(model="chest", action="adopted", version=version, new={"dice": 0.7}))
    assert [one.version for one in ledger.decisions()] == ["1", "2", "3"] and ledger.decisions()[0].time
    lines = ledger.path.read_bytes().splitlines()
    ledger.path.write_bytes(b"".join(line + b"\n" for line in change(lines)))  # type: ignore[operator]
    with pytest.raises(PermanentError, match=r"adoptions.jsonl: line \d .*restore the ledger"):
        ledger.decisions()
    with pytest.raises(PermanentError, match="restore the ledger"):
        ledger.append(Decision(model="chest", action="kept", version="4"))


def test_a_line_of_the_ledger_says_what_was_decided_and_by_whom(tmp_path: Path) -> None:
    ledger = DecisionLedger(tmp_path / "adoptions.jsonl")
    ledger.append(Decision(model="chest", action="forced", version="4", before="3", new={"dice": NAN}, reason="the old one is retired"))
    entry = json.loads(ledger.path.read_text())
    assert entry["by"] and entry["previous_sha256"] == "" and entry["reason"] == "the old one is retired"
