"""The study's command, on a drawn set in a real set's layout that has no teacher."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest

from benchmarks.reproduce import __main__ as command
from benchmarks.reproduce.sets import RealSet, Source
from fedhelp_core.data.phantom.fed_ixi import write_fed_ixi

SOURCE = Source(layout="fed-ixi", folder="brain")
DRAWN = RealSet(
    name="drawn", task="brain-segmentation", title="Drawn heads", hospitals=SOURCE, full_hospitals=SOURCE,
    names={"guys": "ada", "hh": "bell", "iop": "curie"}, image_size=32,
    volume={"spacing": 8.0, "patch_size": 16, "patches": 1, "window_size": 32},
    algorithm={"rounds": 1, "proxy_model": "unet3d-tiny", "large_model": "unet3d-tiny", "large_silos": 1, "batch_size": 2})
PAGES = ("scores.csv", "differences.csv", "tables.md", "report.html")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_fed_ixi(folder / "brain", seed=1, counts={"Guys": (6, 2), "HH": (4, 2), "IOP": (4, 2)}, spacing=12.0)
    return folder


def reproduce(data: Path, out: Path, *options: str) -> int:
    return command.main([str(data), "--out", str(out), "--only", "drawn", "--workers", "1", "--rows", "2", "--normalisations", "silo", *options])


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / "drawn" / name).read_bytes()).hexdigest() for name in ("scores.csv", "differences.csv")}


@pytest.mark.slow
def test_the_same_seeds_give_the_same_tables_and_what_is_there_is_not_computed_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "SETS", {"drawn": DRAWN})
    assert reproduce(data, tmp_path / "one", "--seeds", "1") == 0
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "one/drawn/cells").iterdir()}
    assert reproduce(data, tmp_path / "one", "--seeds", "1,2") == 0
    assert cells.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "one/drawn/cells").iterdir()}.items()
    assert reproduce(data, tmp_path / "other", "--seeds", "1,2") == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "other")
    assert all((tmp_path / "one/drawn" / name).stat().st_size for name in PAGES)
    with (tmp_path / "one/drawn/scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {(line["method"], line["seed"], line["hospital"]) for line in lines} == {
        (method, seed, hospital) for method in ("FedHelp without soft labels", "alone") for seed in "12" for hospital in ("ada", "bell", "curie")}
    assert all(0 <= float(line["dice"]) <= 1 for line in lines)
    with (tmp_path / "one/drawn/differences.csv").open() as file:
        assert {(line["hospitals"], line["against"]) for line in csv.DictReader(file)} == {("small", "alone"), ("large", "alone")}
    assert "row 2 of 2, alone, silo: small silos' dice" in capsys.readouterr().out


def test_a_missing_set_and_wrong_options_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path), "--out", str(tmp_path / "out"), "--only", "brain"]) == 11
    assert capsys.readouterr().err == (
        f"reproduce: {tmp_path / 'brain'}: no such folder; DATA is where the real sets lie (docs/reproduce/real-images.md)\n")
    for options, sentence in ((["--only", "heart"], "--only: one of pneumonia, melanoma, brain expected, got 'heart'"),
                              (["--seeds", "1,x"], "whole numbers, comma-separated, expected, got '1,x'"),
                              (["--rows", "0"], "a whole number of at least 1 expected, got '0'")):
        with pytest.raises(SystemExit):
            command.main([str(tmp_path), *options])
        assert sentence in capsys.readouterr().err
