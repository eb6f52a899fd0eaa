"""`fedhelp data ingest` as people type it: exit codes, one sentence, a report even where nothing is made, nothing on a dry run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedhelp_cli.ingest import ingest_and_print  # noqa: F401  # imported here, not in the first test's time
from fedhelp_cli.main import main
from fedhelp_core.config.silo import load_silo
from fedhelp_core.data.phantom import chest_xray
from fedhelp_core.data.public_layouts import LAYOUTS

CONFIG, DATA = 10, 11


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    chest_xray.write_chest_xray(tmp_path / "chest", seed=4, counts={"training": (14, 16), "validation": (2, 2), "test": (7, 7)})
    return tmp_path / "chest"


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["data", "ingest", *map(str, words)])


def test_a_set_becomes_silos_with_a_table_and_the_next_step(chest: Path, tmp_path: Path) -> None:
    done = typed("chest-xray", chest, "--out", tmp_path / "out", "--silos", "a,b,c,d,e,f")
    assert done.exit_code == 0, done.output
    assert "pneumonia: 48 images" in done.output
    assert "48 of 48 images looked at" in done.output
    assert f"{tmp_path / 'out'}: 6 silos, their silo.yaml files in {tmp_path / 'out/silos'}: " in done.output
    assert f"fedhelp check {tmp_path / 'out/federation.yaml'}" in done.output
    assert [load_silo(tmp_path / "out" / "silos" / f"{name}.yaml").name for name in "abcdef"] == list("abcdef")


@pytest.mark.parametrize(("layout", "said"), [
    ("chest-xray", "give the right FOLDER\n"), ("pictures-and-masks", "/images: no such folder; give the right FOLDER or --images\n"),
    ("fed-ixi", "give it with --split-csv\n")])
def test_of_a_folder_without_the_data_it_says_what_to_type(layout: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused = typed(layout, tmp_path / "empty", "--out", tmp_path / "out")
    assert refused.exit_code == DATA
    assert said in refused.output and "silo.yaml" not in refused.output


def test_a_leak_ends_with_exit_code_11_and_a_report_but_no_datalist(chest: Path, tmp_path: Path) -> None:
    shutil.copy(next((chest / "train" / "NORMAL").iterdir()), chest / "test" / "NORMAL" / "IM-9999-0001.jpeg")
    refused = typed("chest-xray", chest, "--out", tmp_path / "out")
    assert refused.exit_code == DATA
    assert "data ingest: error: the same picture is in training and test" in refused.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pictures", "report.html", "report.json"]

    assert typed("chest-xray", chest, "--out", tmp_path / "out", "--drop-leaked", "training").exit_code == 0
    assert (tmp_path / "out" / "datalists" / "hospital-0.json").exists()


def test_a_dry_run_says_what_would_be_written_and_opens_and_writes_nothing(chest: Path, tmp_path: Path) -> None:
    for path in chest.rglob("*.jpeg"):
        path.write_bytes(b"never opened")
    done = typed("chest-xray", chest, "--out", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "datalists/hospital-5.json" in done.output
    assert not (tmp_path / "out").exists()


def test_a_list_in_each_hospitals_own_folder_is_told_with_what_to_do(tmp_path: Path) -> None:
    for name in ("nord", "sued"):
        (tmp_path / "skin" / name).mkdir(parents=True)
        (tmp_path / "skin" / name / "labels.csv").write_text("image,label\n", encoding="utf-8")
    done = typed("csv", tmp_path / "skin", "--task", "pneumonia", "--out", tmp_path / "out")
    assert done.exit_code == DATA
    assert "found none, but nord/labels.csv below it; take in one hospital's folder at a time" in " ".join(done.output.split())


@pytest.mark.parametrize(("words", "code", "said"), [
    (["dicom", "{chest}"], CONFIG, "layout 'dicom': one of fed-isic2019"),
    (["chest-xray", "{chest}/none"], DATA, "no such folder"),
    (["chest-xray", "{chest}", "--task", "flu"], CONFIG, "--task: name: 'flu' is none of the presets melanoma"),
    (["chest-xray", "{chest}", "--prefixes", "A"], CONFIG, "--prefixes: layout chest-xray does not take it"),
    (["chest-xray", "{chest}", "--sizes", "1,-1"], 2, "positive numbers expected"),
    (["chest-xray", "{chest}", "--sizes", "one"], 2, "positive numbers expected"),
    (["chest-xray", "{chest}", "--drop-leaked", "validation"], 2, "'validation' is not one of"),
    (["csv", "{chest}", "--columns", "image"], 2, "OURS=YOURS expected"),
    (["csv", "{chest}", "--task", "pneumonia"], DATA, "one CSV expected in it, found none; give it with --csv"),
    (["csv", "{chest}"], CONFIG, "--task: what is learnt expected, for layout csv is of no task by itself"),
    (["chest-xray", "{chest}", "--test-fraction", "1"], 2, "is not in the range"),
])
def test_what_is_wrong_is_one_sentence_with_its_exit_code(words: list[str], code: int, said: str, chest: Path, tmp_path: Path) -> None:
    done = typed(*[word.format(chest=chest) for word in words], "--out", tmp_path / "out")
    assert done.exit_code == code, done.output
    assert said in done.output
    assert "Traceback" not in done.output


def test_help_teaches_every_layout() -> None:
    said = typed("--help").output
    assert re.findall(r"^    ([a-z0-9-]+)  +\S", said[said.index("Layouts"):said.index("Examples")], re.MULTILINE) == list(LAYOUTS)
    assert "fedhelp data ingest csv" in said
