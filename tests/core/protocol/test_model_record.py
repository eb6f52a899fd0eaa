"""The record of champions: what is read is the whole chain as it was written, or one sentence says what was done to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhelp_core.errors import NotFound, PermanentError, WeightsError
from fedhelp_core.protocol.documents import dump
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.protocol.model_record import (
    ModelRecord,
    append_record,
    champion_record,
    fetch_norms,
    fetch_weights,
    model_names,
    read_chain,
    read_records,
)
from fedhelp_core.store.local import LocalStore
from fedhelp_core.weights.file import serialize_weights
from tests.core.protocol.records import BODY, NORMS_BODY, RECORD, SHA, STORED, WEIGHTS
from tests.tiny import set_field


def written(store: LocalStore, records: int = 3) -> list[ModelRecord]:
    """A chain of `records` in `store`, versions from 3 on, and the weights of each."""
    before, made = "", []
    for number in range(1, records + 1):
        record = replace(RECORD, number=number, previous_sha256=before, version=str(number + 2))
        assert append_record(store, record)
        before = hashlib.sha256(dump(record)).hexdigest()
        made.append(record)
    store.put_new(ModelKeys("chest").weights(STORED.sha256), BODY)
    return made


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def path_of(store: LocalStore, number: int) -> Path:
    return Path(store.url) / ModelKeys("chest").record(number)


def altered(store: LocalStore, number: int, /, **changes: Any) -> None:
    """Record `number` with fields replaced ('__' for '.'), as somebody who may write to the folder would."""
    document = json.loads(path_of(store, number).read_bytes())
    for name, value in changes.items():
        set_field(document, name.replace("__", "."), value)
    path_of(store, number).write_text(json.dumps(document), encoding="utf-8")


def test_the_chain_is_read_as_it_was_written_and_the_newest_is_champion(store: LocalStore) -> None:
    records = written(store)
    assert read_records(store, "chest") == records
    assert champion_record(read_records(store, "chest")).version == "5"
    assert champion_record(records).classes == ("normal", "pneumonia")
    chain = read_chain(store, "chest")
    assert chain.champion == records[-1]
    assert chain.newest == (3, hashlib.sha256(dump(records[-1])).hexdigest())
    assert model_names(store) == ["chest"]


def test_without_a_record_there_is_no_champion(store: LocalStore) -> None:
    assert read_records(store, "chest") == [] == model_names(store)
    assert read_chain(store, "chest").champion is None
    assert read_chain(store, "chest").newest == (0, "")
    with pytest.raises(NotFound, match="no model was promoted yet"):
        champion_record([])


def test_a_record_is_written_once(store: LocalStore) -> None:
    records = written(store)
    assert not append_record(store, replace(records[1], version="9"))
    assert read_records(store, "chest") == records


TAMPERED: dict[str, tuple[Callable[[LocalStore], Any], str]] = {
    "the first is altered": (lambda store: altered(store, 1, version="9"), r"000002\.json: previous_sha256: .* was altered"),
    "one amid is altered": (lambda store: altered(store, 2, weights__sha256=SHA), r"000003\.json: previous_sha256: .* was altered"),
    "one is missing": (lambda store: path_of(store, 2).unlink(), r"000003\.json: .*000002\.json expected next"),
    "the first is missing": (lambda store: path_of(store, 1).unlink(), r"000002\.json: .*000001\.json expected next"),
    "an older one is played back as the newest": (
        lambda store: store.put_new(ModelKeys("chest").record(4), path_of(store, 2).read_bytes()),
        r"000004\.json: number 4 of model 'chest' expected, got number 2 of 'chest'"),
    "an older one is numbered anew": (
        lambda store: (store.put_new(ModelKeys("chest").record(4), path_of(store, 2).read_bytes()), altered(store, 4, number=4)),
        r"000004\.json: previous_sha256: "),
    "two change places": (
        lambda store: (path_of(store, 2).rename(path_of(store, 9)), path_of(store, 3).rename(path_of(store, 2)),
                       path_of(store, 9).rename(path_of(store, 3))), r"000002\.json: number 2 .* expected, got number 3"),
    "one of another model": (
        lambda store: altered(store, 3, name="skin"), r"000003\.json: number 3 of model 'chest' expected, got number 3 of 'skin'"),
    "a foreign object": (lambda store: store.put_new("models/chest/records/notes.txt", b"hi"), r"records/notes\.txt: .*000004\.json expected next"),
    "a number with too few digits": (
        lambda store: store.put_new("models/chest/records/4.json", path_of(store, 3).read_bytes()), r"records/4\.json: .*000004\.json expected next"),
    "one that is no text": (lambda store: path_of(store, 3).write_bytes(b"\xff\xfe\x00{"), r"000003\.json: document: invalid JSON"),
    "one that is no JSON": (lambda store: path_of(store, 3).write_bytes(b"{"), r"000003\.json: document: invalid JSON"),
    "one that is empty": (lambda store: path_of(store, 3).write_bytes(b""), r"000003\.json: document: invalid JSON"),
    "a field that nobody knows": (lambda store: altered(store, 3, run_this="rm"), r"000003\.json: run_this: no such field"),
    "a setting that nobody knows": (lambda store: altered(store, 3, algorithm__turbo=1), r"000003\.json: algorithm\.turbo: "),
    "a network that nobody knows": (lambda store: altered(store, 3, algorithm__proxy_model="gpt"), r"000003\.json: algorithm: .*got 'gpt'"),
    "a task that nobody knows": (lambda store: altered(store, 3, task__name="knees"), r"000003\.json: task: "),
    "a number as text": (lambda store: altered(store, 3, task__image_size="32"), r"000003\.json: task: .*as FedHelp writes them"),
    "another kind of decision": (lambda store: altered(store, 3, kind="demoted"), r"000003\.json: kind: "),
    "a version that is no number": (lambda store: altered(store, 3, version="3; rm"), r"000003\.json: version: "),
    "a spec of the impossible": (lambda store: altered(store, 3, weights__spec__tensors={"w": ["F32", [2**50]]}), r"000003\.json: weights\.spec: "),
    "a reason that redraws the screen": (lambda store: altered(store, 3, reason="\x1b[2J"), r"000003\.json: reason: "),
}


@pytest.mark.parametrize(("tamper", "says"), TAMPERED.values(), ids=TAMPERED)
def test_a_record_that_was_tampered_with_is_one_sentence(store: LocalStore, tamper: Callable[[LocalStore], Any], says: str) -> None:
    written(store)
    tamper(store)
    with pytest.raises(PermanentError, match=says) as refusal:
        read_records(store, "chest")
    assert "\n" not in str(refusal.value)


def test_a_record_of_a_gigabyte_is_not_read(store: LocalStore) -> None:
    written(store)
    with path_of(store, 3).open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(PermanentError, match=rf"holds {2**30} bytes, at most {ModelRecord.max_bytes} expected"):
        read_records(store, "chest")


def test_a_chain_that_was_seen_before_must_go_on(store: LocalStore) -> None:
    written(store)
    seen = read_chain(store, "chest")
    number, sha256 = seen.newest
    seen.require_seen(0, "")
    seen.require_seen(number, sha256)
    record = replace(RECORD, number=4, previous_sha256=sha256, kind="rolled-back")
    append_record(store, record)
    read_chain(store, "chest").require_seen(number, sha256)


def test_a_shorter_chain_and_one_written_anew_are_refused(store: LocalStore, tmp_path: Path) -> None:
    written(store)
    number, sha256 = read_chain(store, "chest").newest
    path_of(store, 3).unlink()
    with pytest.raises(PermanentError, match="the record ends at number 2, but number 3 was seen here before"):
        read_chain(store, "chest").require_seen(number, sha256)
    other = LocalStore(tmp_path / "other")
    append_record(other, replace(RECORD, version="8"))
    append_record(other, replace(RECORD, number=2, previous_sha256=read_chain(other, "chest").newest[1]))
    append_record(other, replace(RECORD, number=3, previous_sha256=read_chain(other, "chest").newest[1]))
    with pytest.raises(PermanentError, match=r"000003\.json: sha256 .* was seen here before, got .*written anew"):
        read_chain(other, "chest").require_seen(number, sha256)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a" * 101, "lung\n", "ü", ".hidden", "end."])
def test_a_name_that_is_no_models_is_refused(store: LocalStore, name: str) -> None:
    with pytest.raises(PermanentError, match=r"registered model .* expected"):
        read_records(store, name)


class TestWeights:
    def test_they_are_fetched_once_and_verified(self, store: LocalStore, tmp_path: Path) -> None:
        (record,) = written(store, 1)
        store.put_new(ModelKeys("chest").weights(hashlib.sha256(NORMS_BODY).hexdigest()), NORMS_BODY)
        path = fetch_weights(store, record, tmp_path / "here")
        norms = fetch_norms(store, record, tmp_path / "here")
        assert path.read_bytes() == BODY and norms is not None and norms.read_bytes() == NORMS_BODY
        (Path(store.url) / ModelKeys("chest").weights(STORED.sha256)).unlink()
        assert fetch_weights(store, record, tmp_path / "here") == path
        assert fetch_norms(store, replace(record, norms=None), tmp_path / "here") is None

    def test_a_file_that_a_power_loss_spoilt_is_fetched_again(self, store: LocalStore, tmp_path: Path) -> None:
        (record,) = written(store, 1)
        path = fetch_weights(store, record, tmp_path / "here")
        path.write_bytes(b"\0" * len(BODY))
        assert fetch_weights(store, record, tmp_path / "here").read_bytes() == BODY

    @pytest.mark.parametrize(("body", "says"), [
        pytest.param(BODY[:-1] + b"\1", "sha256", id="one byte altered"),
        pytest.param(BODY[:-4], "truncated", id="cut off"),
        pytest.param(BODY + b"\0", "at most", id="a byte too many"),
        pytest.param(serialize_weights({"v": WEIGHTS["w"]}, "resnet20"), "tensor 'w' missing", id="of another network"),
        pytest.param(serialize_weights({"w": WEIGHTS["w"].T.copy()}, "resnet20"), r"got F32 \[3, 2\]", id="of another shape"),
        pytest.param(serialize_weights(WEIGHTS, "resnet14"), "architecture 'resnet14'", id="of another architecture"),
        pytest.param(serialize_weights({"w": np.full((2, 3), np.nan, np.float32)}, "resnet20"), "sha256", id="NaN"),
        pytest.param(b"PK\3\4" + BODY[4:], "zip archive", id="a checkpoint with pickles"),
    ])
    def test_others_are_refused_and_nothing_is_left(self, store: LocalStore, tmp_path: Path, body: bytes, says: str) -> None:
        (record,) = written(store, 1)
        (Path(store.url) / ModelKeys("chest").weights(STORED.sha256)).write_bytes(body)
        with pytest.raises(PermanentError, match=says):
            fetch_weights(store, record, tmp_path / "here")
        assert list(tmp_path.glob("here/*")) == list(tmp_path.glob("here/.*")) == []

    def test_a_record_that_announces_nan_by_its_sha256_is_refused_too(self, store: LocalStore, tmp_path: Path) -> None:
        body = serialize_weights({"w": np.full((2, 3), np.nan, np.float32)}, "resnet20")
        stored = replace(STORED, sha256=hashlib.sha256(body).hexdigest())
        store.put_new(ModelKeys("chest").weights(stored.sha256), body)
        with pytest.raises(WeightsError, match="not finite"):
            fetch_weights(store, replace(RECORD, weights=stored), tmp_path / "here")

    def test_missing_ones_are_named(self, store: LocalStore, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="no such object"):
            fetch_weights(store, RECORD, tmp_path / "here")
