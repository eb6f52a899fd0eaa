"""Whatever is wrong in federation.yaml or silo.yaml is said at once, by field, with what was expected and what was found."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhelp_core.config.federation import Federation, load_federation, parse_federation
from fedhelp_core.config.silo import load_silo
from fedhelp_core.errors import ConfigError

MISSING = object()
"""A field to be left out."""


def federation_document() -> dict[str, Any]:
    return {
        "name": "demo",
        "store": {"url": "store"},
        "public_set": {"images": "public", "teachers": [{"name": "teacher", "uri": "models:/teacher/1", "classes": 8}]},
        "silos": [
            {"name": "aachen", "dispatch": {"silo_config": "aachen/silo.yaml"}},
            {"name": "berlin", "dispatch": {"kind": "kubernetes"}},
        ],
    }


def silo_document() -> dict[str, Any]:
    return {"name": "aachen", "state": "state", "data": {"layout": "fed-isic2019", "images": "images", "split_csv": "split.csv", "center": 0}}


def changed(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`document` with dotted fields set, or left out."""
    document = copy.deepcopy(document)
    for dotted, value in changes.items():
        *parents, leaf = [int(part) if part.isdigit() else part for part in dotted.split(".")]
        node: Any = document
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else node[parent]
        if value is MISSING:
            del node[leaf]
        else:
            node[leaf] = value
    return document


def written(folder: Path, document: Any, name: str = "federation.yaml") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def problems_of(load: Any, path: Path) -> list[str]:
    """What `load` says, without the path that every sentence begins with."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == 10
    assert all(problem.startswith(f"{path}: ") for problem in caught.value.problems)
    return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]


def federation(changes: dict[str, Any] | None = None) -> Federation:
    return parse_federation(changed(federation_document(), changes or {}), source="test")


# changes -> words that the one sentence must hold, the field first
BAD_FEDERATIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no name": ({"name": MISSING}, ("name: missing", "no default")),
    "no store": ({"store": MISSING}, ("store: missing",)),
    "no silos": ({"silos": MISSING}, ("silos: missing",)),
    "no teacher uri": ({"public_set.teachers.0.uri": MISSING}, ("public_set.teachers.0.uri ('teacher'): missing",)),
    "a model that nobody knows": (
        {"algorithm.proxy_model": "resnet21"}, ("algorithm.proxy_model: ", "classes of 2D images expected", "resnet20", "got 'resnet21'")),
    "a model for masks where classes are asked": ({"algorithm.large_model": "unet2d"}, ("algorithm.large_model: ", "resnet110", "got 'unet2d'")),
    "a blank store": ({"store.url": " "}, ("store.url: ", "s3://bucket/prefix expected")),
    "a store with one slash": ({"store.url": "s3:/bucket/x"}, ("store.url: ", "s3://bucket/prefix expected", "got 's3:/bucket/x'")),
    "a store of another kind": ({"store.url": "gs://bucket/x"}, ("store.url: ", "got 'gs://bucket/x'")),
    "silos empty": ({"silos": []}, ("silos: ", "list should have at least 1 item", "got []")),
    "silos as text": ({"silos": "aachen"}, ("silos: ", "list", "got 'aachen'")),
    "a silo as text": ({"silos.0": "aachen"}, ("silos.0: ", "mapping", "got 'aachen'")),
    "a section as number": ({"algorithm": 3}, ("algorithm: ", "mapping", "got 3")),
    "a section as list": ({"store": ["a"]}, ("store: ", "mapping", "got ['a']")),
    "name with capitals": ({"name": "Demo"}, ("name: ", "lower-case letters, digits and '-' expected", "got 'Demo'")),
    "name too long": ({"name": "a" * 41}, ("name: ", "at most 40 long", "a" * 41)),
    "name ends with dash": ({"silos.1.name": "berlin-"}, ("silos.1.name: ", "ending with a letter or digit", "got 'berlin-'")),
    "another version": ({"version": 2}, ("version: ", "1 expected", "got 2")),
    "no rounds": ({"algorithm.rounds": 0}, ("algorithm.rounds: ", "greater than or equal to 1", "got 0")),
    "rounds as text": ({"algorithm.rounds": "many"}, ("algorithm.rounds: ", "valid integer", "got 'many'")),
    "half a round": ({"algorithm.rounds": 2.5}, ("algorithm.rounds: ", "integer", "got 2.5")),
    "batch of one": ({"algorithm.batch_size": 1}, ("algorithm.batch_size: ", "greater than or equal to 2", "got 1")),
    "temperature zero": ({"algorithm.temperature": 0}, ("algorithm.temperature: ", "greater than 0", "got 0")),
    "temperature infinite": ({"algorithm.temperature": float("inf")}, ("algorithm.temperature: ", "finite number", "got inf")),
    "weight NaN": ({"algorithm.rank_weight": float("nan")}, ("algorithm.rank_weight: ", "finite number", "got nan")),
    "negative weight": ({"algorithm.distillation_weight": -1}, ("algorithm.distillation_weight: ", "greater than or equal to 0", "got -1")),
    "learning rate too large": ({"algorithm.optimizer.learning_rate": 11}, ("algorithm.optimizer.learning_rate: ", "equal to 10", "got 11")),
    "unknown method": ({"algorithm.method": "fedhlp"}, ("algorithm.method: ", "'fedavg'", "got 'fedhlp'", "did you mean 'fedhelp'?")),
    "unknown weighting": ({"algorithm.weighting": "equal"}, ("algorithm.weighting: ", "'uniform' or 'samples' expected", "got 'equal'")),
    "k as large as classes": ({"algorithm.rank_top_k": 8}, ("algorithm.rank_top_k: ", "below the number of classes (8)", "got 8")),
    "one class": ({"task.classes": ["nevus"]}, ("task.classes: ", "at least 2", "got 1")),
    "a class twice": ({"task.classes": ["nevus", "nevus"], "algorithm.rank_top_k": 1}, ("task.classes: ", "differ")),
    "tiny images": ({"task.image_size": 4}, ("task.image_size: ", "greater than or equal to 8", "got 4")),
    "too many asked for": ({"protocol.min_silos": 3}, ("protocol.min_silos: ", "3 silos asked for", "only 2")),
    "deadline as text": ({"protocol.round_deadline": "1h"}, ("protocol.round_deadline: ", "valid number", "got '1h'")),
    "norm zero": ({"protocol.max_update_norm": 0}, ("protocol.max_update_norm: ", "greater than 0", "got 0")),
    "seed negative": ({"runtime.seed": -1}, ("runtime.seed: ", "greater than or equal to 0", "got -1")),
    "unknown device": ({"runtime.device": "gpu"}, ("runtime.device: ", "'cpu', 'cuda' or 'auto' expected", "got 'gpu'")),
    "no public set": ({"public_set": None}, ("public_set: ", "method 'fedhelp' learns from soft labels", "fedhelp-no-api")),
    "no teachers": ({"public_set.teachers": []}, ("public_set.teachers: ", "at least 1 item", "got []")),
    "teacher of one class": ({"public_set.teachers.0.classes": 1}, ("public_set.teachers.0.classes: ", "at least 2 expected", "got 1")),
    "teacher of no class": (
        {"public_set.teachers.0.classes": 0},
        ("public_set.teachers.0.classes ('teacher'): ", "greater than or equal to 1", "got 0")),
    "teacher of tiny images": (
        {"public_set.teachers.0.image_size": 4}, ("public_set.teachers.0.image_size ('teacher'): ", "greater than or equal to 8", "got 4")),
    "masks of another size than the task's": (
        {"task": {"name": "lung-segmentation", "image_size": 64}, "public_set.teachers.0.image_size": 128},
        ("public_set.teachers.0.image_size: ", "pixel by pixel", "task.image_size (64) expected", "got 128")),
    "teacher without weight": ({"public_set.teachers.0.weight": 0}, ("public_set.teachers.0.weight ('teacher'): ", "greater than 0", "got 0")),
    "version as number": ({"public_set.teachers.0.version": 2}, ("public_set.teachers.0.version ('teacher'): ", "string", "got 2")),
    "teacher's kind": (
        {"public_set.teachers.0.kind": "openinferense"},
        ("public_set.teachers.0.kind ('teacher'): ", "got 'openinferense'", "did you mean 'openinference'?")),
    "a silo twice": ({"silos.1.name": "aachen"}, ("silos: ", "'aachen' is used twice", "expected each once")),
    "dispatch kind": (
        {"silos.1.dispatch.kind": "kubernets"},
        ("silos.1.dispatch.kind ('berlin'): ", "got 'kubernets'", "did you mean 'kubernetes'?")),
    "process without file": ({"silos.0.dispatch": {}}, ("silos.0.dispatch ('aachen'): ", "silo_config", "'process' needs the path")),
    "a field of another dispatch kind": (
        {"silos.1.dispatch": {"kind": "kubernetes", "cluster": "clinic-berlin"}},
        ("silos.1.dispatch ('berlin'): ", "cluster: belongs to dispatch kind 'manifestwork', got kind 'kubernetes'")),
    "a silo called like an object": ({"silos.1.name": "global-klinik"}, ("silos.1.name: ", "'global-klinik' is what an object of each run is")),
    "scaffold with adam": (
        {"algorithm.method": "scaffold"},
        ("algorithm.optimizer: kind 'sgd' without momentum expected for method 'scaffold', got kind 'adam'", "algorithm.optimizer.kind=sgd")),
    "scaffold with momentum": (
        {"algorithm.method": "scaffold", "algorithm.optimizer": {"kind": "sgd", "momentum": 0.9}},
        ("algorithm.optimizer: kind 'sgd' without momentum expected", "with momentum 0.9")),
    "scaffold of a median": (
        {"algorithm.method": "scaffold", "algorithm.optimizer": {"kind": "sgd"}, "algorithm.aggregation": "median"},
        ("algorithm.aggregation: 'mean' expected for method 'scaffold'", "got 'median'")),
    "momentum of adam": ({"algorithm.optimizer": {"momentum": 0.9}}, ("algorithm.optimizer.momentum: Adam has its own, so 0 expected", "got 0.9")),
    "fednova with momentum that stays": (
        {"algorithm.aggregation": "fednova", "algorithm.optimizer": {"kind": "sgd", "momentum": 0.9}},
        ("algorithm.persist_optimizer: false expected with aggregation 'fednova' and optimizer.momentum",)),
    "server optimizer": (
        {"algorithm.server_optimizer": {"kind": "adan"}}, ("algorithm.server_optimizer.kind: ", "got 'adan'", "did you mean 'adam'?")),
    "augmentation that is no word of it": (
        {"algorithm.augmentation": "miror"}, ("algorithm.augmentation: one of", "got 'miror'; did you mean 'mirror'?")),
    "augmentation by a transform that is none": (
        {"algorithm.augmentation": [{"transform": "RandFilp"}]}, ("algorithm.augmentation.0.transform: one of", "did you mean 'RandFlip'?")),
    "start that is no word of it": ({"start": "sed"}, ("start: 'seed' expected, got 'sed'",)),
    "start from a version that is none": ({"start": {"version": "v3"}}, ("start.version: the number of a version expected", "got 'v3'")),
    "start from half a hash": ({"start": {"file": "x", "sha256": "ab"}}, ("start.sha256: a sha256 expected, 64 lower-case", "got 'ab'")),
    "licence in two lines": (
        {"algorithm.pretrained": {"proxy": {"sha256": "0" * 64, "licence": "a\nb", "source": "c"}}},
        ("algorithm.pretrained.proxy.licence: plain text expected",)),
    "promotion out of range": ({"promotion.max_regression": 1.5}, ("promotion.max_regression: ", "less than or equal to 1", "got 1.5")),
    "url as number": ({"store.url": 5}, ("store.url: ", "string", "got 5")),
    "key that is a number": ({"algorithm": {3: 4}}, ("algorithm.3: ", "keys should be strings", "got 3")),
}

UNKNOWN_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "section": ({"algoritm": {}}, "algoritm: unknown field; did you mean 'algorithm'?"),
    "same level": ({"algorithm.local_epoch": 1}, "algorithm.local_epoch: unknown field; did you mean 'local_epochs'?"),
    "one level too high": ({"algorithm.lerning_rate": 1}, "algorithm.lerning_rate: unknown field; did you mean 'algorithm.optimizer.learning_rate'?"),
    "at the top": ({"rounds": 3}, "rounds: unknown field; did you mean 'algorithm.rounds'?"),
    "in a sister section": ({"algorithm.min_silos": 1}, "algorithm.min_silos: unknown field; did you mean 'protocol.min_silos'?"),
    "in a list's item": ({"silos.0.knd": "large"}, "silos.0.knd ('aachen'): unknown field; did you mean 'kind'?"),
    "in a list's item, too high": (
        {"silos.0.residence": "run"},
        "silos.0.residence ('aachen'): unknown field; did you mean 'silos.*.dispatch.residency'?"),
    "in a list's item, too deep": ({"silos.0.dispatch.name": "x"}, "silos.0.dispatch.name ('aachen'): unknown field; did you mean 'silos.*.name'?"),
    "inside a teacher": (
        {"public_set.teachers.0.batchsize": 4},
        "public_set.teachers.0.batchsize ('teacher'): unknown field; did you mean 'batch_size'?"),
    "like nothing": ({"tracking.xyzzy": 4}, "tracking.xyzzy: unknown field; remove it"),
}

BAD_SILOS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no state": ({"state": MISSING}, ("state: missing",)),
    "no data": ({"data": MISSING}, ("data: missing",)),
    "data as text": ({"data": "images"}, ("data: ", "mapping", "got 'images'")),
    "no layout": ({"data.layout": MISSING}, ("data.layout: missing", "one of 'fed-isic2019', 'datalist', ")),
    "unknown layout": (
        {"data.layout": "datalst"}, ("data.layout: ", "one of 'fed-isic2019', 'datalist', ", "got 'datalst'", "did you mean 'datalist'?")),
    "no datalist": ({"data": {"layout": "datalist"}}, ("data.datalist: missing",)),
    "datalist as number": ({"data": {"layout": "datalist", "datalist": 3}}, ("data.datalist: ", "path", "got 3")),
    "no center": ({"data.center": MISSING}, ("data.center: missing",)),
    "negative center": ({"data.center": -1}, ("data.center: ", "greater than or equal to 0", "got -1")),
    "all for validation": ({"data.validation_fraction": 1}, ("data.validation_fraction: ", "less than 1", "got 1")),
    "misspelt": ({"data.splitcsv": "x"}, ("data.splitcsv: unknown field", "did you mean 'split_csv'?")),
    "of the other layout": ({"data.datalist": "x"}, ("data.datalist: unknown field; remove it",)),
    "silo name": ({"name": "Aachen Hospital"}, ("name: ", "lower-case letters", "got 'Aachen Hospital'")),
    "another version": ({"version": "1.0"}, ("version: ", "1 expected", "got '1.0'")),
}


@pytest.mark.parametrize(("changes", "words"), BAD_FEDERATIONS.values(), ids=BAD_FEDERATIONS.keys())
def test_a_bad_federation_is_refused_in_one_sentence(tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    problems = problems_of(load_federation, written(tmp_path, changed(federation_document(), changes)))
    assert len(problems) == 1
    assert problems[0].startswith(words[0])
    assert [word for word in words if word not in problems[0]] == []


@pytest.mark.parametrize(("changes", "sentence"), UNKNOWN_FIELDS.values(), ids=UNKNOWN_FIELDS.keys())
def test_an_unknown_field_is_answered_with_what_was_probably_meant(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    assert problems_of(load_federation, written(tmp_path, changed(federation_document(), changes))) == [sentence]


@pytest.mark.parametrize(("changes", "words"), BAD_SILOS.values(), ids=BAD_SILOS.keys())
def test_a_bad_silo_file_is_refused_in_one_sentence(tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    problems = problems_of(load_silo, written(tmp_path, changed(silo_document(), changes), "silo.yaml"))
    assert len(problems) == 1
    assert problems[0].startswith(words[0])
    assert [word for word in words if word not in problems[0]] == []


@pytest.mark.parametrize(("text", "words"), [
    ("", ("is empty", "expected a mapping of fields")),
    ("name: a\nsilos: []\nname: b\n", ("not valid YAML at line 3, column 1", "field 'name' is given twice")),
    ("store: {url: a, url: b}\n", ("line 1, column 17", "field 'url' is given twice")),
    ("- a\n- b\n", ("expected a mapping of fields", "list")),
    ("name: demo\nstore: [1, 2\n", ("is not valid YAML", "line 3, column 1")),
    ("name: !!python/object/apply:os.system ['true']\n", ("is not valid YAML", "line 1")),
    ("name: a: b\n", ("is not valid YAML", "line 1, column 8", "mapping values are not allowed here")),
    ("name: x\nstore: {url: 2020-13-45}\n", ("is not valid YAML", "line 2, column 14", "'2020-13-45' is no timestamp", "put it in quotes")),
    ("rounds: " + "9" * 5000, ("is not valid YAML", "line 1, column 9", "is no int")),
    ("x: !!float many\n", ("line 1, column 4", "'many' is no float")),
    ("x: !!timestamp soon\n", ("line 1, column 4", "'soon' is no timestamp")),
    ("a: " + "[" * 5000, ("is nested deeper than any configuration",)),
    ("a: " + "{a: " * 3000, ("is nested deeper than any configuration",)),
    ('store: {url: "a\\0b"}\n', ("store.url: holds '\\x00'",)),
    ('silos: [{name: "\\ud800"}]\n', ("silos.0.name: holds '\\ud800'",)),
], ids=["empty", "a field twice", "a nested field twice", "a list", "unclosed", "python object", "two colons", "no date", "too long a number",
        "no number", "no time", "deep lists", "deep mappings", "a zero byte", "half a character"])
def test_a_file_that_is_no_mapping_says_where_it_breaks(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (problem,) = problems_of(load_federation, written(tmp_path, text))
    assert [word for word in words if word not in problem] == []


def test_levels_are_counted_before_python_runs_out_of_them(tmp_path: Path) -> None:
    """Libraries raise Python's limit; recursion as deep as a file says would then end the process."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        (problem,) = problems_of(load_federation, written(tmp_path, "a: " + "[" * 10_000))
    finally:
        sys.setrecursionlimit(before)
    assert "is nested deeper than any configuration" in problem


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin1.yaml").write_bytes("name: Köln".encode("latin-1"))
    assert "no such file" in problems_of(load_federation, tmp_path / "nothing.yaml")[0]
    assert "is a folder" in problems_of(load_federation, tmp_path)[0]
    assert "UTF-8" in problems_of(load_silo, tmp_path / "latin1.yaml")[0]


def test_a_values_file_of_the_hubs_chart_is_read_for_its_federation(tmp_path: Path) -> None:
    values = {"federation": federation_document(), "image": {"repository": "registry.example/hub"}}
    assert load_federation(written(tmp_path, values)).silo_names == ("aachen", "berlin")
    values["federation"]["rouns"] = 3
    assert problems_of(load_federation, written(tmp_path, values)) == ["rouns: unknown field; did you mean 'algorithm.rounds'?"]


@pytest.mark.parametrize(("content", "said"), [
    (None, "dispatch.job_template: no file "), ("kind: Job\n", "holds 'Job', expected the hospital's CronJob"),
    ("kind: CronJob\nspec: 3\n", "holds 'CronJob', expected the hospital's CronJob")])
def test_an_exported_template_that_is_none_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "worker.yaml").write_text(content)
    dispatch = {"kind": "manifestwork", "cluster": "clinic", "job_template": "worker.yaml"}
    [problem] = problems_of(load_federation, written(tmp_path, changed(federation_document(), {"silos.1.dispatch": dispatch})))
    assert said in problem and str(tmp_path / "worker.yaml") in problem and "kubectl get cronjob fedhelp-worker -o yaml" in problem


def test_everything_wrong_is_listed_at_once(tmp_path: Path) -> None:
    document = changed(federation_document(), {
        "name": "Demo", "algorithm.rounds": 0, "algorithm.lerning_rate": 1, "protocol.round_deadline": "1h",
        "silos.0.dispatch": {}, "silos.1.dispatch.kind": "cloud", "public_set.teachers.0.weight": 0,
    })
    problems = problems_of(load_federation, written(tmp_path, document))
    assert sorted(problem.partition(":")[0] for problem in problems) == [
        "algorithm.lerning_rate", "algorithm.rounds", "name", "protocol.round_deadline", "public_set.teachers.0.weight ('teacher')",
        "silos.0.dispatch ('aachen')", "silos.1.dispatch.kind ('berlin')"]


def test_fields_that_do_not_fit_together_are_listed_at_once(tmp_path: Path) -> None:
    document = changed(federation_document(), {
        "silos.1.name": "aachen", "protocol.min_silos": 3, "algorithm.rank_top_k": 9, "public_set": None})
    problems = problems_of(load_federation, written(tmp_path, document))
    assert [problem.partition(":")[0] for problem in problems] == ["silos", "protocol.min_silos", "algorithm.rank_top_k", "public_set"]


def test_wrong_entries_are_not_also_called_missing(tmp_path: Path) -> None:
    document = changed(federation_document(), {"silos.0.name": "A", "silos.1.name": "B", "public_set.teachers.0.classes": 0})
    problems = problems_of(load_federation, written(tmp_path, document))
    assert [problem.partition(":")[0] for problem in problems] == ["public_set.teachers.0.classes ('teacher')", "silos.0.name", "silos.1.name"]


def test_a_long_wrong_value_is_cut_short(tmp_path: Path) -> None:
    (problem,) = problems_of(load_federation, written(tmp_path, changed(federation_document(), {"algorithm": "x" * 5000})))
    assert len(problem) < 200
    assert problem.endswith("...")


def test_the_methods_without_eq_2_need_no_public_set() -> None:
    for method in ("local", "fedavg", "fedprox", "fedhelp-no-api"):
        assert not federation({"public_set": None, "algorithm.method": method}).uses_public_set
    assert federation({"algorithm.method": "fedhelp-one-way"}).uses_public_set


def test_the_defaults_are_the_papers() -> None:
    algorithm = federation().algorithm
    assert (algorithm.method, algorithm.rounds, algorithm.batch_size, algorithm.rank_weight, algorithm.rank_top_k) == ("fedhelp", 50, 4, 0.2, 5)
    assert (algorithm.optimizer.learning_rate, algorithm.optimizer.weight_decay) == (1e-3, 1e-4)


def test_relative_paths_are_taken_from_the_files_folder(tmp_path: Path) -> None:
    loaded = load_federation(written(tmp_path, federation_document()))
    assert loaded.store.url == str(tmp_path / "store")
    assert loaded.public_set is not None
    assert loaded.public_set.images == tmp_path / "public"
    assert loaded.silos[0].dispatch.silo_config == tmp_path / "aachen" / "silo.yaml"
    silo = load_silo(written(tmp_path, silo_document(), "silo.yaml"))
    assert silo.state == tmp_path / "state"
    assert silo.data.layout == "fed-isic2019"
    assert silo.data.split_csv == tmp_path / "split.csv"


def test_urls_and_absolute_paths_stay_as_they_are(tmp_path: Path) -> None:
    document = changed(federation_document(), {"store.url": "s3://bucket/prefix", "public_set.images": "/data/public"})
    loaded = load_federation(written(tmp_path, document))
    assert loaded.public_set is not None
    assert (loaded.store.url, str(loaded.public_set.images)) == ("s3://bucket/prefix", "/data/public")


def test_override_replaces_validates_and_leaves_the_original_alone() -> None:
    before = federation()
    after = before.override(**{
        "algorithm.rounds": 3, "algorithm.optimizer.learning_rate": 0.01, "silos.1.kind": "large", "public_set.teachers.0.weight": 2.5})
    assert (after.algorithm.rounds, after.algorithm.optimizer.learning_rate, after.silos[1].kind) == (3, 0.01, "large")
    assert after.public_set is not None
    assert after.public_set.teachers[0].weight == 2.5
    assert (before.algorithm.rounds, before.silos[1].kind) == (50, "auto")
    assert before.override() == before


def test_override_fills_a_section_that_was_left_out() -> None:
    without = federation({"public_set": None, "algorithm.method": "fedavg"})
    with pytest.raises(ConfigError, match=r"public_set\.teachers: missing"):
        without.override(**{"public_set.images": "/public"})


@pytest.mark.parametrize(("dotted", "value", "sentence"), [
    ("algorithm.rounds", 0, r"algorithm\.rounds: .*greater than or equal to 1, got 0"),
    ("algoritm.rounds", 3, r"algoritm: unknown field; did you mean 'algorithm'\?"),
    ("algorithm.round", 3, r"algorithm\.round: unknown field; did you mean 'rounds'\?"),
    ("algorithm.rounds.x", 3, r"algorithm\.rounds\.x: algorithm\.rounds has nothing called 'x'"),
    ("silos.2.kind", "large", r"silos\.2\.kind: silos has nothing called '2'"),
    ("silos.first.kind", "large", r"silos\.first\.kind: silos has nothing called 'first'"),
    ("protocol.min_silos", 9, r"protocol\.min_silos: 9 silos asked for, but only 2"),
])
def test_a_wrong_override_is_explained(dotted: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        federation().override(**{dotted: value})


def test_the_digest_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    document = changed(federation_document(), {"algorithm.rounds": 3, "algorithm.batch_size": 8})

    def reversed_keys(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: reversed_keys(node[key]) for key in reversed(node)}
        return [reversed_keys(item) for item in node] if isinstance(node, list) else node

    one = load_federation(written(tmp_path, document))
    other = load_federation(written(tmp_path, reversed_keys(document), "other.yaml"))
    assert one.to_yaml() == other.to_yaml()
    assert one.digest() == other.digest()


def test_a_default_written_out_gives_the_same_digest_and_a_changed_value_another() -> None:
    assert federation({"algorithm.rounds": 50}).digest() == federation().digest()
    assert federation({"algorithm.rounds": 51}).digest() != federation().digest()
    for field, default in {
        "server_optimizer": {"kind": "none"}, "optimizer": {"kind": "adam", "momentum": 0.0}}.items():  # fields that older versions did not have
        assert federation({f"algorithm.{field}": default}).digest() == federation().digest()
    assert "server_optimizer" not in federation().to_yaml() and "momentum" not in federation().to_yaml()
    assert federation({"algorithm.server_optimizer": {"kind": "adam"}}).digest() != federation().digest()
    swapped = federation_document()
    swapped["silos"].reverse()
    assert parse_federation(swapped, source="test").digest() != federation().digest()  # the order in which updates are summed


def test_canonical_text_is_read_back_as_the_same_federation(tmp_path: Path) -> None:
    before = load_federation(written(tmp_path, changed(federation_document(), {"task.classes": ["Nävus", "Melanom"], "algorithm.rank_top_k": 1})))
    after = load_federation(written(tmp_path, before.to_yaml(), "frozen.yaml"))
    assert after == before
    assert after.digest() == before.digest()


@pytest.mark.parametrize("url", ["file:///data/store", "file://localhost/data/store", "/data/store", "s3://bucket/prefix"])
def test_every_url_that_a_store_opens_may_stand_in_the_file(url: str) -> None:
    assert federation({"store.url": url}).store.url == url


def test_changes_are_named_by_where_they_come_from() -> None:
    with pytest.raises(ConfigError, match=r"^the form: algorithm\.rounds: .*, got 0$"):
        federation().changed({"algorithm.rounds": 0}, source="the form")
    with pytest.raises(ConfigError, match=r"^--set: rounds: unknown field; did you mean 'algorithm\.rounds'\?$"):
        federation().override(rounds=3)
