"""docs/your-own-data.md: every command is typed as it stands there, on a list and pictures like those that the page asks for."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny import Processes, ended

PAGE = (Path(__file__).parent.parent / "docs" / "your-own-data.md").read_text(encoding="utf-8")
HOSPITALS = {"north": 40, "south": 30, "west": 30}


def _write_data(folder: Path) -> None:
    """Pictures whose brightness tells the class, and the page's own columns."""
    [head] = re.findall(r"```csv\n(.*)\n", PAGE)
    generator = np.random.default_rng(1)
    (folder / "images").mkdir(parents=True)
    with (folder / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(head.split(","))
        number = 0
        for hospital, images in HOSPITALS.items():
            for _ in range(images):
                number += 1
                label = number % 2
                noise = generator.integers(0, 80, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(noise + np.uint8(100 * label)).save(folder / "images" / f"{number:04}.png")
                rows.writerow([f"images/{number:04}.png", ("normal", "pneumonia")[label], f"P{number}", hospital])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_command_of_the_page_works_and_the_report_ends_with_the_comparison(tmp_path: Path, processes: Processes) -> None:
    _write_data(tmp_path / "my-data")
    commands = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert [command.split()[1] for command in commands] == ["data", "data", "check", "simulate", "run", "open"]
    said = {}
    for command in commands:
        process = processes.fedhelp(*shlex.split(command)[1:], folder=tmp_path, DISPLAY="", WAYLAND_DISPLAY="", BROWSER="")
        code, output = ended(process)
        assert code == 0, f"{command}\n{output}"
        said[command.split()[1]] = output
        if command.startswith("fedhelp data") and "--dry-run" not in command:
            _fewer_rounds(tmp_path / "chest" / "federation.yaml")

    assert "everything is in order" in said["check"]
    report = Path(re.findall(r"file://(\S+)", said["open"])[0])
    page = report.read_text(encoding="utf-8")
    assert "mean over 3 seeds" in page
    assert all(f">{method}</th>" in page for method in ("training alone", "FedAvg", "fedhelp-no-api", "this run"))
    assert "Sensitivity and specificity for pneumonia" in page
    for name in ("report.html", "pictures/north.html", "study/rounds.csv", "study/table.csv"):
        assert (tmp_path / "chest" / name).stat().st_size > 0, name


def _fewer_rounds(path: Path) -> None:
    """Two instead of 20: the page's commands are what is tried, not what they learn."""
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^  rounds: 20 ", text, re.MULTILINE)
    path.write_text(re.sub(r"^  rounds: 20 ", "  rounds: 2 ", text, flags=re.MULTILINE), encoding="utf-8")
