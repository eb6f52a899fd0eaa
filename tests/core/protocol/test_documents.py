"""What may stand in each document, and what is refused with the names of object and field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhelp_core.errors import PermanentError
from fedhelp_core.protocol.documents import (
    Commit,
    Document,
    ModelScores,
    ModelSize,
    Moved,
    Notice,
    Sign,
    SiloEvaluation,
    SiloReport,
    SplitSizes,
    UpdateManifest,
    dump,
    parse,
    read,
)
from fedhelp_core.protocol.facts import (
    Account,
    Candidate,
    ClassShares,
    Kinds,
    Promotion,
    Served,
    SoftLabels,
    SoftLabelSummary,
    StartedFrom,
    SummaryExample,
    TeacherReport,
)
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.local import LocalStore
from fedhelp_core.weights.header import WeightsSpec
from tests.core.protocol.records import RECORD
from tests.tiny import DELETE, set_field

SHA = "0123456789abcdef" * 4
EVALUATION = SiloEvaluation(
    silo="brno", kind="large", round=3, global_sha256=SHA, test_samples=4, test_sha256=SHA, deployed="proxy",
    models={"large": ModelScores(scores={"dice": 0.5, "hausdorff95": math.nan}, confusion=[[7, 1], [0, 4]]),
            "proxy": ModelScores(scores={"dice": 0.75, "hausdorff95": 2.5}, confusion=[[8, 0], [0, 4]])})
REPORT = SiloReport(
    silo="brno", samples=SplitSizes(training=12, validation=0, test=4), training_class_counts=[6, 6], test_sha256=SHA, start_sha256=SHA,
    models={"proxy": ModelSize(parameters=9, travelling_bytes=36, flops=18, training_bytes=200, batch_norms=1, pretrained="9 of 9 tensors")})


KEY = "runs/r/object.json"
DOCUMENTS: tuple[Document, ...] = (
    EVALUATION, REPORT,
    UpdateManifest(
        silo="brno", round=1, trained_from=SHA, weights="runs/r/w", sha256=SHA, size_bytes=100, samples=12, loss=0.5, metrics={"loss": 0.5},
        architecture="net", created="2026-01-01T00:00:00.000+00:00"),
    Commit(
        round=1, global_key="runs/r/g", global_sha256=SHA, spec=WeightsSpec("net", {"w": ("F32", (2, 3)), "n": ("I64", ())}), participants=("brno",),
        shares={"brno": 1.0}, absent={"cadiz": "late"}, refused={"delft": "NaN"}, metrics={"brno": {"loss": 0.5, "samples": 12.0}},
        norms={"brno": Moved(trainable=0.5, statistics=0.25)},
        previous_sha256=SHA, created="2026-01-01T00:00:00.000+00:00"),
    Notice(reason="stopped", created="2026-01-01T00:00:00.000+00:00"),
    Sign(counter=1, seconds=2.0, renewed=datetime(2026, 1, 1, tzinfo=UTC)),
    Kinds({"aachen": "large", "brno": "small"}), ClassShares(shares=[0.25, 0.75]),
    SoftLabels(
        sha256=SHA, images=12, duplicates=0, asked=12, cached=0, seconds=1.5, classes=5,
        teachers={"drawn": TeacherReport(
            asked=12, cached=0, currency="EUR", run=Account(requests=1, images=12), ever=Account(requests=1, images=12, cost=0.5))}),
    SoftLabelSummary(
        teachers=("drawn version 1",), entropies=(0.5,), most_entropy=1.6, favourites=(("a mole", 1, 0.5),),
        agreements=(("one", "two", 1.0, -1e-17),), examples=(SummaryExample.of(np.full((1, 2, 3), 7, np.uint8), (("a mole", 0.5),)),)),
    Candidate(version="3", global_sha256=SHA, metrics={"worst_silo": math.nan}),
    Promotion(decision="version 3 became the champion", outcome="promoted", reasons="better", before=None),
    RECORD,
    StartedFrom(weights=RECORD.weights, model="chest", version="3", run="a-run", carry_over=True),
    Served(statistics="public-images", norms=RECORD.norms, software={"fedhelp": "0.1.0"}, card_sha256=SHA, card_html_sha256=SHA),
)
OPTIONAL = {  # what an older or a shorter document may lack
    "UpdateManifest": {"code_version", "image_digest", "created"}, "Notice": {"created"},
    "Kinds": {"aachen", "brno"}, "Commit": {"participants", "shares", "absent", "refused", "metrics", "norms", "previous_sha256", "created"},
    "SiloEvaluation": {"named"}, "SiloReport": {"models", "training_labelled_counts"}, "ModelRecord": {"card_sha256", "card_html_sha256"}}
FAULTS: dict[str, Any] = {
    "an object": {"x": {}}, "a list": [[]], "true": True, "a text without end": "x" * 2**21, "a number without end": 10**400,
    "below": -10**400, "deep": "DEEP", "infinite": math.inf, "minus infinite": -math.inf}

STILL_GOOD = {("SiloEvaluation", "confusion", "a list"), ("SiloEvaluation", "argmax_confusion", "a list"), ("Commit", "metrics", "an object"),
              ("Commit", "norms", "an object"), ("ModelRecord", "class_shares", "a list"), ("SiloEvaluation", "named", "true"),
              ("StartedFrom", "carry_over", "true"),
              ("ModelRecord", "persist_optimizer", "true")}  # as far as the form goes


def fields(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of every value in a JSON document, at any depth."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield (*place, name)
        yield from fields(child, (*place, name))


def spoilt(document: Document, place: tuple[str | int, ...], fault: str) -> bytes:
    """`document` as JSON with a fault at `place`."""
    plain = json.loads(dump(document))
    parent = plain
    for name in place[:-1]:
        parent = parent[name]
    parent[place[-1]] = FAULTS[fault]
    return json.dumps(plain).replace('"DEEP"', "[" * 5000 + "]" * 5000).encode()


PLACES = [
    pytest.param(document, place, id=f"{type(document).__name__}-{'.'.join(map(str, place))}")
    for document in DOCUMENTS for place in fields(json.loads(dump(document)))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
class TestEveryDocument:
    def test_it_is_read_as_it_was_written(self, document: Document) -> None:
        assert dump(parse(type(document), dump(document), KEY)) == dump(document)

    def test_a_field_that_is_missing_is_named(self, document: Document) -> None:
        plain = json.loads(dump(document))
        for name in set(plain) - OPTIONAL.get(type(document).__name__, set()):
            with pytest.raises(PermanentError, match=rf"^{KEY}: {name}: "):
                parse(type(document), json.dumps({field: value for field, value in plain.items() if field != name}).encode(), KEY)

    def test_an_unknown_field_is_refused_at_every_depth(self, document: Document) -> None:
        for place in [(), *fields(json.loads(dump(document)))]:
            changed = json.loads(dump(document))
            parent = changed
            for name in place:
                parent = parent[name]
            if isinstance(parent, dict):
                parent["Unknown Field"] = []  # which no metric, silo or teacher may be either
                with pytest.raises(PermanentError, match=rf"^{KEY}: .*Unknown Field"):
                    parse(type(document), json.dumps(changed).encode(), KEY)

    def test_a_repeated_field_is_refused(self, document: Document) -> None:
        plain = json.loads(dump(document))
        name = next(iter(plain))
        twice = dump(document).rstrip()[:-1] + f',"{name}":{json.dumps(plain[name])}}}'.encode()
        with pytest.raises(PermanentError, match=rf"^{KEY}: document: .*{name}.* used twice"):
            parse(type(document), twice, KEY)

    @pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b"\xef\xbb\xbf{}", b'{"silo": ' * 3000, b"[" * 100_000, b"{" * 100_000])
    def test_what_is_no_document_at_all_is_refused(self, document: Document, body: bytes) -> None:
        with pytest.raises(PermanentError, match=rf"^{KEY}: document: "):
            parse(type(document), body, KEY)

    def test_a_larger_object_is_not_even_read(self, document: Document, tmp_path: Path) -> None:
        store, kind = LocalStore(tmp_path), type(document)
        store.put_new(KEY, dump(document).ljust(kind.max_bytes + 1))
        with pytest.raises(PermanentError, match=rf"{KEY}: holds {kind.max_bytes + 1} bytes, at most {kind.max_bytes} expected"):
            read(store, kind, KEY)

    def test_a_million_faults_are_one_sentence(self, document: Document) -> None:
        body = b"{" + b",".join(b'"f%d":1' % number for number in range(60_000)) + b"}"
        with pytest.raises(PermanentError, match=rf"^{KEY}: f\d+: ") as found:
            parse(type(document), body, KEY)
        assert len(str(found.value)) < 700


@pytest.mark.parametrize(("document", "place"), PLACES)
def test_a_value_with_a_fault_is_refused_wherever_it_stands(document: Document, place: tuple[str | int, ...]) -> None:
    """In one sentence that names the object and the field on the way to the fault."""
    for fault in FAULTS:
        if (type(document).__name__, place[-1], fault) in STILL_GOOD:
            continue
        with pytest.raises(PermanentError) as refusal:
            parse(type(document), spoilt(document, place, fault), KEY)
        found, field, _ = str(refusal.value).split(": ", 2)
        assert found == KEY and field.split(".")[0] == ("document" if fault == "deep" else str(place[0])), fault
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000, fault


def hostile(document: Document, field: str, value: Any) -> bytes:
    """`document` as JSON, `field` replaced or deleted."""
    plain = json.loads(dump(document))
    set_field(plain, field, value)
    return json.dumps(plain).encode()


def test_what_is_written_is_read_back_with_its_undefined_scores() -> None:
    assert parse(SiloReport, dump(REPORT), "key") == REPORT
    found = parse(SiloEvaluation, dump(EVALUATION), "key")
    assert math.isnan(found.models["large"].scores["hausdorff95"])
    assert found.deployed_model == EVALUATION.models["proxy"]


@pytest.mark.parametrize(("field", "value"), [
    ("silo", 3), ("kind", "huge"), ("kind", DELETE), ("round", -1), ("round", 2.5), ("global_sha256", SHA[:-1] + "G"), ("test_samples", "4"),
    ("test_sha256", None), ("deployed", "other"), ("deployed", ["proxy"]), ("models", []), ("models.best", {}), ("models.proxy.scores", None),
    ("models.proxy.scores.dice", "high"), ("models.proxy.confusion", {"0": 1}), ("models.proxy.confusion.0", 3), ("models.proxy.confusion.0.0", -1),
    ("models.proxy.confusion.0.0", 1.5), ("models.proxy.confusion.0.0", 2**60), ("models.proxy", "none")])
def test_an_evaluation_of_another_form_is_refused_and_the_field_named(field: str, value: object) -> None:
    with pytest.raises(PermanentError, match=rf"^runs/r/evaluation/brno\.json: {field.split('.')[0]}"):
        parse(SiloEvaluation, hostile(EVALUATION, field, value), "runs/r/evaluation/brno.json")


@pytest.mark.parametrize(("field", "value"), [
    ("samples", DELETE), ("samples.training", "12"), ("samples.training", -1), ("training_class_counts", 12), ("start_sha256", "abc")])
def test_a_report_of_another_form_is_refused_and_the_field_named(field: str, value: object) -> None:
    with pytest.raises(PermanentError, match=rf"^key: {field.split('.')[0]}"):
        parse(SiloReport, hostile(REPORT, field, value), "key")


@pytest.mark.parametrize(("field", "value"), [
    ("created", "2026-01-01T00:00:00"), ("created", "2026-13-01T00:00:00+00:00"), ("created", "now"), ("spec.tensors.w", ["F33", [2]]),
    ("spec.tensors.w", ["F32", [-1]]), ("spec.tensors.w", ["F32", [2**50]]), ("shares.brno", 1.5), ("previous_sha256", "abc"), ("global_sha256", "")])
def test_a_commit_that_no_hub_writes_is_refused_and_the_field_named(field: str, value: object) -> None:
    commit = next(document for document in DOCUMENTS if isinstance(document, Commit))
    with pytest.raises(PermanentError, match=rf"^key: {field.split('.')[0]}"):
        parse(Commit, hostile(commit, field, value), "key")


def test_an_example_whose_pixels_are_not_of_its_shape_is_refused() -> None:
    summary = next(document for document in DOCUMENTS if isinstance(document, SoftLabelSummary))
    assert parse(SoftLabelSummary, dump(summary), "key").examples[0].image_HWC.tolist() == [[[7, 7, 7], [7, 7, 7]]]
    with pytest.raises(PermanentError, match=r"^key: examples\.0: .*9 bytes of pixels expected, got 6"):
        parse(SoftLabelSummary, hostile(summary, "examples.0.shape", [1, 3, 3]), "key")


def test_facts_manifests_and_notices_keep_their_bytes() -> None:
    """Runs that were begun before an upgrade go on after it, and sha256s that were written down stay true."""
    found = {type(document).__name__: dump(document).decode() for document in DOCUMENTS}
    assert found["UpdateManifest"] == (
        f'{{"silo":"brno","round":1,"trained_from":"{SHA}","weights":"runs/r/w","sha256":"{SHA}","size_bytes":100,"samples":12,"loss":0.5,"metrics":{{"loss":0.5}},'
        '"architecture":"net","code_version":"","image_digest":"","created":"2026-01-01T00:00:00.000+00:00"}')
    assert found["Commit"] == (
        f'{{"round":1,"global_key":"runs/r/g","global_sha256":"{SHA}","spec":{{"architecture":"net","tensors":{{"w":["F32",[2,3]],"n":["I64",[]]}}}},'
        '"participants":["brno"],"shares":{"brno":1.0},"absent":{"cadiz":"late"},"refused":{"delft":"NaN"},'
        f'"metrics":{{"brno":{{"loss":0.5,"samples":12.0}}}},"norms":{{"brno":{{"trainable":0.5,"statistics":0.25,"direction":null}}}},"previous_sha256":"{SHA}","created":"2026-01-01T00:00:00.000+00:00"}}')
    without = found["Commit"].replace(',"direction":null', "")  # as a hub of before wrote it
    assert dump(parse(Commit, without.encode(), "key")).decode() == found["Commit"]
    assert found["Kinds"] == '{"aachen": "large", "brno": "small"}'
    assert found["Notice"] == '{"created": "2026-01-01T00:00:00.000+00:00", "reason": "stopped"}'
    assert found["Candidate"] == f'{{"global_sha256": "{SHA}", "metrics": {{"worst_silo": NaN}}, "version": "3"}}'
    assert found["Promotion"] == '{"before": null, "decision": "version 3 became the champion", "outcome": "promoted", "reasons": "better"}'


def test_a_silo_that_the_fact_leaves_out_has_no_kind() -> None:
    with pytest.raises(PermanentError, match=r"kinds\.json: silo 'cadiz' expected, got aachen, brno"):
        Kinds({"aachen": "large", "brno": "small"}).of("cadiz")


def test_the_second_of_two_that_settle_a_fact_adopts_the_first(tmp_path: Path) -> None:
    run = Run(LocalStore(tmp_path), "r")
    first = Kinds({"aachen": "large"})
    assert not run.has_fact(Kinds)
    assert run.settle(first) == first
    assert run.settle(Kinds({"aachen": "small"})) == first == run.fact(Kinds)
    assert run.has_fact(Kinds)
