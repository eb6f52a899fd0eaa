"""What hospitals read of a model after promotion and rollback, by gate and by hand, and when any of it is killed half-way."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedhelp_cli.promote import Decided, promote, rollback
from fedhelp_components.evaluation.candidate import drawn_image
from fedhelp_components.promotion import record as telling
from fedhelp_components.promotion.__main__ import run as decide
from fedhelp_core.algorithm.operating_point import prior_corrected
from fedhelp_core.config.federation import Federation, federation_in
from fedhelp_core.data.examples import preparation
from fedhelp_core.data.given import prepared
from fedhelp_core.errors import PermanentError, WeightsError
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.documents import SplitSizes, dump
from fedhelp_core.protocol.facts import Candidate, ClassShares, Promotion, SoftLabels
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.protocol.model_record import ModelRecord, fetch_norms, fetch_weights, read_records
from fedhelp_core.store.base import Store
from fedhelp_core.store.local import LocalStore
from fedhelp_core.store.open import open_store
from fedhelp_core.tracking.registry import Registry
from fedhelp_core.tracking.server import mlflow_at, tracking_uri
from fedhelp_core.weights.file import read_weights
from tests.tiny import SILOS, TinyFederation, processes, succeeded

pytestmark = pytest.mark.slow
NAME = "tiny"


@pytest.fixture(scope="module")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyFederation:
    """Two runs, of which nothing has been promoted; aachen agreed to be named."""
    tiny = TinyFederation.written(tmp_path_factory.mktemp("trained"), drawn, promotion__mode="manual")
    tiny.write_silo("aachen", named=True)
    with processes() as started:
        succeeded(started.fedhelp("run", tiny.path, "--run-id", "first"))
        succeeded(started.fedhelp("run", tiny.path, "--run-id", "second", "--set", "runtime.seed=6"))
    return tiny


@pytest.fixture
def make_copy(trained: TinyFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], TinyFederation]:
    """A copy of the two runs and of MLflow's file."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    numbers = itertools.count(1)

    def make() -> TinyFederation:
        return TinyFederation(shutil.copytree(trained.folder, tmp_path / f"copy-{next(numbers)}"), trained.drawn)

    return make


def decisions(tiny: TinyFederation) -> list[tuple[str, str]]:
    """(kind, version) of every record."""
    return [(record.kind, record.version) for record in read_records(open_store(str(tiny.store)), NAME)]


def champion(tiny: TinyFederation) -> str | None:
    return Registry.for_federation(tiny.load()).champion(NAME)


def test_a_promoted_models_record_has_all_that_a_hospital_needs_and_names_who_agreed(make_copy: Callable[[], TinyFederation], tmp_path: Path) -> None:
    tiny = make_copy()
    assert "hospitals read it as record 1 of tiny" in told(promote(tiny.path, "2", "looked at by three of us"))
    store = open_store(str(tiny.store))
    (record,) = read_records(store, NAME)
    frozen = federation_in(tiny.run("second").federation_yaml(), source="frozen")
    assert (record.version, record.run, record.kind, record.reason) == ("2", "second", "promoted", "looked at by three of us")
    assert (record.task, record.algorithm, record.evaluation) == (frozen.task, frozen.algorithm, frozen.evaluation)
    assert record.preprocessing == preparation(frozen.task)
    assert record.weights.sha256 == tiny.final_sha256("second") and record.lineage.federation_sha256 == frozen.digest()
    weights = read_weights(fetch_weights(store, record, tmp_path / "hospital"), expected=record.weights.spec, max_bytes=2**20, sha256=None)
    commit = tiny.run("second").commit(2)
    assert commit is not None
    trained = tiny.run("second").global_weights(commit, max_bytes=2**20)
    assert all((weights[name] == trained[name]).all() for name in trained)
    assert record.class_shares == tiny.run("second").fact(ClassShares).shares
    assert (record.lineage.training_images, record.lineage.test_images, record.lineage.hospitals) == (26, 20, 3)
    assert record.lineage.distillation_set_sha256 == tiny.run("second").fact(SoftLabels).sha256

    named, *others = record.hospitals
    assert named.name == "aachen" and named.images == SplitSizes(training=12, validation=0, test=8) and named.kind == "large"
    assert [(one.name, one.images, one.kind) for one in others] == [("", None, None)] * 2
    evaluations = [tiny.run("second").evaluation(silo) for silo in SILOS[1:]]
    scores = sorted((found.deployed_model.scores["balanced_accuracy"] for found in evaluations if found is not None), reverse=True)
    assert [one.scores for one in others] == [{"balanced_accuracy": score} for score in scores]
    low, high = named.interval or (1, 0)
    assert 0 <= low <= named.scores["balanced_accuracy"] <= high <= 1
    cards = [store.get(ModelKeys(NAME).card(sha256, suffix)) for sha256, suffix in ((record.card_sha256, "md"), (record.card_html_sha256, "html"))]
    assert [hashlib.sha256(card).hexdigest() for card in cards] == [record.card_sha256, record.card_html_sha256]
    assert b"| aachen | large | 12 | 0 | 8 |" in cards[0] and b"brno" not in cards[0] + cards[1]
    assert b'<a href="card.html">Model card</a>' in (tiny.store / "runs" / "second" / "report.html").read_bytes()
    assert set(record.lineage.software) == {"fedhelp", "torch", "numpy", "mlflow"}
    text = dump(record).decode()
    assert "aachen" in text and "brno" not in text and "coimbra" not in text


def test_norms_that_hospitals_keep_are_made_of_public_images_for_others_and_travel_beside_the_weights(
    finished: Callable[..., TinyFederation], tmp_path: Path,
) -> None:
    tiny = finished(algorithm__normalisation="silo")
    store = open_store(str(tiny.store))
    (record,) = read_records(store, NAME)
    assert record.statistics == "public-images" and record.norms is not None
    norms = fetch_norms(store, record, tmp_path / "hospital")
    weights = fetch_weights(store, record, tmp_path / "hospital")
    assert norms is not None
    tensors = {**load_file(norms), **load_file(weights)}
    assert not set(load_file(norms)) & set(load_file(weights))
    objective = objective_of(record.task)
    network = objective.build(record.algorithm.proxy_model)
    network.load_state_dict(tensors)  # complete
    raw = drawn_image(record.task)
    served = mlflow_model(tiny).predict([raw]).to_numpy()
    with torch.inference_mode():
        point = prior_corrected(np.array(record.class_shares), classes=len(record.classes))
        answers = objective.served(network.eval(), point)(torch.from_numpy(np.stack([prepared(raw, record.task)] * 2)).float())
    np.testing.assert_allclose(served, answers[:1].numpy(), atol=1e-5)


def mlflow_model(tiny: TinyFederation) -> Any:
    """The registered champion."""
    import mlflow

    with mlflow_at(tracking_uri(tiny.load())):
        return mlflow.pyfunc.load_model("models:/tiny@champion")


def test_promotion_and_rollback_by_hand_are_a_record_each_and_what_changes_nothing_is_none(make_copy: Callable[[], TinyFederation]) -> None:
    tiny = make_copy()
    promote(tiny.path, "1")
    assert "record" not in told(promote(tiny.path, "1"))
    promote(tiny.path, None)
    assert "hospitals read it as record 3 of tiny" in told(rollback(tiny.path, "worse at night"))
    assert decisions(tiny) == [("promoted", "1"), ("promoted", "2"), ("rolled-back", "1")]
    first, _, third = read_records(open_store(str(tiny.store)), NAME)
    assert replace(third, number=1, previous_sha256="", kind="promoted", time=first.time, reason=first.reason) == first
    assert third.reason == "worse at night"


def test_the_gate_writes_a_record_of_what_it_promotes_alone(make_copy: Callable[[], TinyFederation]) -> None:
    tiny = make_copy()
    for run_id, settings, expected in (("first", {}, "1"), ("second", {"runtime.seed": 6, "promotion.min_improvement": 1.0}, None)):
        (tiny.store / "runs" / run_id / "federation.yaml").write_text(
            tiny.load().override(**{"promotion.mode": "gate", **settings}).to_yaml(), encoding="utf-8")
        (tiny.store / "runs" / run_id / "promotion.json").unlink()
        decide(store=str(tiny.store), endpoint_url="", run_id=run_id, model_version=tiny.run(run_id).fact(Candidate).version)
        assert tiny.run(run_id).fact(Promotion).outcome == ("promoted" if expected else "kept")
    (record,) = read_records(open_store(str(tiny.store)), NAME)
    assert (record.version, record.decided_by) == ("1", "gate") and "there was none to compare with" in record.reason


def test_a_rollback_to_a_version_whose_run_is_gone_takes_its_record_and_weights_from_before(
    make_copy: Callable[[], TinyFederation], tmp_path: Path,
) -> None:
    tiny = make_copy()
    promote(tiny.path, "1")
    promote(tiny.path, "2")
    shutil.rmtree(tiny.store / "runs")
    rollback(tiny.path)
    store = open_store(str(tiny.store))
    records = read_records(store, NAME)
    assert records[-1].version == "1" and fetch_weights(store, records[-1], tmp_path / "hospital").exists()


def test_a_version_of_whose_run_nothing_is_known_is_promoted_and_the_hospitals_not_told(make_copy: Callable[[], TinyFederation]) -> None:
    tiny = make_copy()
    shutil.rmtree(tiny.store / "runs" / "second")
    said = told(promote(tiny.path, "2"))
    assert "champion is now version 2" in said and "hospitals were not told, and go on with what they read last: no run 'second'" in said
    assert decisions(tiny) == []


@pytest.mark.parametrize("tamper", [
    pytest.param(lambda path: path.write_bytes(path.read_bytes().replace(b'"version": "1"', b'"version": "7"')), id="altered"),
    pytest.param(lambda path: path.unlink(), id="taken away")])
def test_nothing_is_decided_while_the_record_is_not_what_the_hub_wrote(
    make_copy: Callable[[], TinyFederation], tamper: Callable[[Path], object],
) -> None:
    tiny = make_copy()
    promote(tiny.path, "1")
    tamper(tiny.store / ModelKeys(NAME).record(1))
    for act in (lambda: promote(tiny.path, "2"), lambda: rollback(tiny.path)):
        with pytest.raises(PermanentError, match="was seen here before"):
            act()
    assert champion(tiny) == "1"


def test_weights_that_were_tampered_with_in_the_run_are_not_handed_on(make_copy: Callable[[], TinyFederation]) -> None:
    tiny = make_copy()
    (path,) = (tiny.store / "runs" / "first" / "rounds" / "3").glob("global-*")
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(WeightsError, match="tampered with or damaged"):
        promote(tiny.path, "1")
    assert decisions(tiny) == []


class Killed(BaseException):
    """Stands for kill -9: no handler of ours catches it."""


@contextmanager
def killed_at(write: int, *, after: bool) -> Iterator[Callable[[], bool]]:
    """Everything that writes to MLflow's registry or to the store, ended before or after its write number `write`; says whether it came so far."""
    import mlflow

    count = itertools.count(1)
    reached = False
    with pytest.MonkeyPatch.context() as patch:
        mlflows = [(mlflow.MlflowClient, f"set_registered_model_{what}") for what in ("alias", "tag")]
        for owner, name in (*mlflows, (LocalStore, "put_new")):
            original = getattr(owner, name)

            def writes(*arguments: Any, original: Any = original, **named: Any) -> Any:
                nonlocal reached
                if next(count) != write:
                    return original(*arguments, **named)
                reached = True
                if after:
                    original(*arguments, **named)
                raise Killed

            patch.setattr(owner, name, writes)
        yield lambda: reached


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("command", ["promote", "rollback", "gate"])
def test_killed_at_any_write_and_run_again_there_is_one_decision_and_one_record(
    make_copy: Callable[[], TinyFederation], command: str, after: bool,
) -> None:
    for write in itertools.count(1):
        tiny = make_copy()
        promote(tiny.path, "1")
        act: Callable[[], object] = partial(promote, tiny.path, "2")
        expected = [("promoted", "1"), ("promoted", "2")]
        if command == "rollback":
            act()
            act, expected = partial(rollback, tiny.path), [*expected, ("rolled-back", "1")]
        elif command == "gate":
            lenient = tiny.load().override(**{"promotion.mode": "gate", "promotion.max_regression": 1.0, "runtime.seed": 6})
            Registry.for_federation(lenient)._client().set_model_version_tag(NAME, "2", "fedhelp.scores", _better(lenient))
            (tiny.store / "runs" / "second" / "federation.yaml").write_text(lenient.to_yaml(), encoding="utf-8")
            (tiny.store / "runs" / "second" / "promotion.json").unlink()
            act = partial(decide, store=str(tiny.store), endpoint_url="", run_id="second", model_version="2")
        with killed_at(write, after=after) as reached, suppress(Killed):
            act()
        if not reached():
            assert write > 3
            return
        if decisions(tiny) != expected or command != "rollback":  # a rollback that came to its end is not known by the next one
            act()
        assert decisions(tiny) == expected
        assert champion(tiny) == expected[-1][1]
        if command == "promote":
            assert Registry.for_federation(tiny.load()).champion_before(NAME) == "1"


def _better(federation: Federation) -> str:
    """Scores of version 2, each the best that there is."""
    noted = Registry.for_federation(federation).scores_of(NAME, "2")
    return json.dumps({silo: {**scores, "balanced_accuracy": 1.0} for silo, scores in noted.items()})


def test_two_hubs_that_decide_at_once_leave_a_whole_chain(make_copy: Callable[[], TinyFederation], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = make_copy()
    other = [partial(promote, tiny.path, "2")]
    original = telling.append_record

    def after_the_other(store: Store, record: ModelRecord) -> bool:
        if other:
            other.pop()()
        return original(store, record)

    monkeypatch.setattr(telling, "append_record", after_the_other)
    promote(tiny.path, "1")
    assert decisions(tiny)[-1][1] == champion(tiny)


def told(decided: Decided) -> str:
    """What a person reads of it."""
    return "\n".join(decided.said)
