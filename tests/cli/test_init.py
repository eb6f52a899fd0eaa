"""`fedhelp init`, and the federation.yaml that `fedhelp data ingest` ends with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fedhelp_cli.init import federation_of_ingested
from fedhelp_cli.main import main
from fedhelp_core.config.federation import load_federation
from fedhelp_core.config.silo import load_silo
from fedhelp_core.config.starter import on_this_machine, starter
from fedhelp_core.config.task import task_asked_for, with_classes
from fedhelp_core.data.phantom.chest_xray import write_chest_xray
from fedhelp_core.registry.tasks import PRESETS


def fedhelp(*arguments: str | Path, typed: str | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], input=typed)
    return done.exit_code, done.output


def test_the_files_are_read_back_and_every_line_says_what_it_is(tmp_path: Path) -> None:
    code, printed = fedhelp("init", tmp_path / "chest", "--task", "pneumonia", "--silos", "north,south,west")
    assert code == 0
    federation = load_federation(tmp_path / "chest/federation.yaml")
    assert (federation.name, federation.silo_names, federation.algorithm.method) == ("chest", ("north", "south", "west"), "fedhelp-no-api")
    assert load_silo(tmp_path / "chest/silos/south.yaml").state == tmp_path / "chest/silos/south"
    for command in ("check", "run", "simulate"):
        assert f"fedhelp {command} {tmp_path}/chest/federation.yaml" in printed
    assert fedhelp("init", tmp_path / "chest", "--task", "pneumonia", "--silos", "north,south,west")[0] == 0  # nothing changes


def test_it_asks_for_what_no_option_says(tmp_path: Path) -> None:
    code, printed = fedhelp("init", tmp_path / "skin", typed="melanoma\nnorth, south\n")
    assert code == 0
    assert "Hospitals, comma-separated: " in printed
    assert load_federation(tmp_path / "skin/federation.yaml").silo_names == ("north", "south")


def test_hospitals_in_clusters_have_no_silo_yaml_here(tmp_path: Path) -> None:
    code, printed = fedhelp(
        "init", tmp_path / "chest", "--task", "pneumonia", "--silos", "north,south", "--clusters", "--store", "s3://federation/chest")
    assert code == 0
    federation = load_federation(tmp_path / "chest/federation.yaml")
    assert [(silo.dispatch.kind, silo.dispatch.context) for silo in federation.silos] == [("kubernetes", "north"), ("kubernetes", "south")]
    assert sorted(path.name for path in (tmp_path / "chest").iterdir()) == ["federation.yaml"]
    assert "fedhelp submit" in printed


@pytest.mark.parametrize("task", PRESETS)
@pytest.mark.parametrize("more", [0, 2])
def test_a_first_federation_of_every_task_and_number_of_classes_fits_the_schema(tmp_path: Path, task: str, more: int) -> None:
    if more and task_asked_for(task).per_pixel:
        pytest.skip("a mask has one foreground")
    classes = (*task_asked_for(task).classes, *(f"no, not {number}: \"o\"" for number in range(more)))
    (tmp_path / "federation.yaml").write_text(starter("a", with_classes(task_asked_for(task), classes), {"north": on_this_machine("north.yaml")}))
    federation = load_federation(tmp_path / "federation.yaml")
    assert federation.task.classes == classes
    assert federation.algorithm.rank_top_k < len(classes)


@pytest.mark.parametrize(("options", "sentence"), [
    (["--task", "pneumona", "--silos", "a"], "brain-segmentation; did you mean 'pneumonia'?; a task of one's own says its form"),
    (["--task", "pneumonia", "--silos", "North"], "silos.0.name: lower-case letters, digits and '-' expected"),
    (["--task", "pneumonia", "--silos", "a,a"], "--silos: each name once expected, got 'a' twice"),
    (["--task", "pneumonia", "--silos", ","], "silos"),
    (["--task", "lung-segmentation", "--silos", "a", "--classes", "x"], "--classes: classes: at least 2 names expected"),
    (["--task", "pneumonia", "--silos", "a", "--name", "Chest 1"], "name: lower-case letters"),
    (["--task", "pneumonia", "--silos", "a", "--store", "ftp://x"], "store.url"),
])
def test_a_wrong_option_is_one_sentence_and_nothing_is_written(tmp_path: Path, options: list[str], sentence: str) -> None:
    code, printed = fedhelp("init", tmp_path / "new", *options)
    assert code == 10
    assert sentence in printed and "Traceback" not in printed
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "silos").mkdir()
    (tmp_path / "silos/north.yaml").write_text("mine")
    code, printed = fedhelp("init", tmp_path, "--name", "chest", "--task", "pneumonia", "--silos", "north")
    assert (code, (tmp_path / "silos/north.yaml").read_text()) == (10, "mine")
    assert f"{tmp_path}/silos/north.yaml: is there with other content" in printed
    assert not (tmp_path / "federation.yaml").exists()


@pytest.mark.slow  # draws and looks at images, trains
def test_what_ingest_ends_with_runs_as_it_is(tmp_path: Path) -> None:
    write_chest_xray(tmp_path / "data", seed=1)
    out = tmp_path / "Chest X-rays"
    code, printed = fedhelp("data", "ingest", "chest-xray", tmp_path / "data", "--out", out, "--images-each", "40,16")
    assert code == 0
    federation = load_federation(out / "federation.yaml")
    assert (federation.name, federation.silo_names) == ("chest-x-rays", ("hospital-0", "hospital-1"))
    assert f"fedhelp check '{out}/federation.yaml'" in printed
    assert fedhelp("check", out / "federation.yaml")[0] == 0
    document = yaml.safe_load((out / "federation.yaml").read_text())
    document["algorithm"]["rounds"] = 9
    (out / "federation.yaml").write_text(yaml.safe_dump(document))  # a person's own change
    assert fedhelp("data", "ingest", "chest-xray", tmp_path / "data", "--out", out, "--images-each", "40,16")[0] == 0
    assert load_federation(out / "federation.yaml").algorithm.rounds == 9
    code, printed = fedhelp("simulate", out / "federation.yaml", "--methods", "local,fedavg", "--seeds", "1", "--set", "algorithm.rounds=1",
                            "--workers", "1", "--normalisation", "silo", "--out", tmp_path / "study")
    assert code == 0, printed


@pytest.mark.parametrize(("folder", "name"), [("Charité 2", "charit--2"), ("日本", "pneumonia"), ("-x-", "x")])
def test_a_federation_is_called_after_its_folder_where_that_can_be_a_name(tmp_path: Path, folder: str, name: str) -> None:
    path = federation_of_ingested(tmp_path / folder, task=task_asked_for("pneumonia"), silos={"north": tmp_path / folder / "n.yaml"})
    assert load_federation(path).name == name


def test_a_file_that_is_no_text_is_not_overwritten_either(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_bytes(b"\xff\xfe")
    code, printed = fedhelp("init", tmp_path, "--name", "chest", "--task", "pneumonia", "--silos", "north")
    assert (code, (tmp_path / "federation.yaml").read_bytes()) == (10, b"\xff\xfe")
    assert "is there with other content" in printed
