"""What a served model sees and says is counted, compared with its adoption, recorded, and judged once the truth is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedhelp_cli.main import main
from fedhelp_core.deployment.answer_record import AnswerRecord
from fedhelp_core.deployment.reference import Reference
from tests.core.deployment.models import Hospital, hospital
from tests.core.deployment.test_images_in import picture
from tests.core.serving.process import Served, files, numbers, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def value(server: Served, metric: str) -> float:
    [found] = re.findall(rf"^{re.escape(metric)} (\S+)$", server.client.get("/metrics").text, re.MULTILINE)
    return float(found)


def noise(count: int, most: int) -> dict[str, object]:
    return numbers("pixels", "UINT8", np.random.default_rng(1).integers(0, most, (count, 20, 20, 3)).astype(np.uint8))


def test_the_figures_are_those_of_the_version_that_answers(tmp_path: Path) -> None:
    here = hospital(tmp_path / "here", in_use=False, undecided_margin=1.0)
    spread = Reference(confidence=(0, 0, 10, 30, 40, 20, 0, 0, 0, 0), decision=(20,) * 5, intensity=(0,) * 7 + (50, 50) + (0,) * 7)
    contract_classes = len(here.task.classes)
    here.put_in_use(reference=Reference(confidence=spread.confidence, decision=(20,) * contract_classes, intensity=spread.intensity))
    with served(here) as server:
        assert value(server, 'fedhelp_serving_model_info{model="chest",version="3"}') == 1 and value(server, "fedhelp_serving_behind") == 0
        assert value(server, 'fedhelp_serving_adoption_share{bin="07",of="intensity"}') == 0.5
        server.answer(noise(30, 256))
        assert "fedhelp_serving_psi{" not in server.client.get("/metrics").text, "too few images to compare"
        server.answer(noise(70, 256))
        assert value(server, 'fedhelp_serving_answers_total{decision="do not decide"}') == 100
        assert value(server, "fedhelp_serving_confidence_count") == value(server, "fedhelp_serving_intensity_count") == 100
        bright = value(server, 'fedhelp_serving_psi{of="intensity"}')
        for _ in range(3):
            server.answer(noise(100, 60))
        assert value(server, 'fedhelp_serving_psi{of="intensity"}') > max(bright, 0.25), "darker pictures than at adoption"
        assert 0 < value(server, 'fedhelp_serving_psi_by_chance{of="intensity"}') < 0.25
        server.infer(noise(1, 2))
        here.put_in_use(2, version="4")
        server.wait_for("4")
        text = server.client.get("/metrics").text
        assert 'version="4"} 1.0' in text and 'version="3"' not in text and "fedhelp_serving_psi{" not in text


def test_answers_are_recorded_by_hash_without_names_and_a_record_that_cannot_be_written_keeps_none_back(tmp_path: Path) -> None:
    here, image = hospital(tmp_path / "here"), picture(tmp_path / "Mrs Miller.png")
    record = AnswerRecord(here.folder / "state")
    with served(here) as server:
        found = server.answer(files(image))
        [line], damaged = record.read()
        assert (line.by, line.sha256, line.answer, line.version, damaged) == ("serve", found["sha256"][0], found["class"][0], "3", 0)
        assert line.confidence == max(found["probabilities"]) or line.confidence in found["probabilities"]
        [path] = record.folder.iterdir()
        assert "Miller" not in path.read_text()
        with path.open("ab") as handle:
            handle.write(b'{"time": "2026-')  # a kill amid a line
        server.answer(files(image))
        lines, damaged = record.read()
        assert len(lines) == 2 and damaged == 1
        record.folder.rename(tmp_path / "away")
        record.folder.write_text("no folder")
        assert server.answer(files(image))["class"] == found["class"]
        assert value(server, "fedhelp_serving_unrecorded_total") == 1
        assert "answers are given, but not recorded" in server.stop()[1]


def typed(here: Hospital, outcomes: Path) -> Result:
    return CliRunner().invoke(main, ["model", "audit", "--silo", str(here.silo), str(outcomes)])


def test_audit_gives_the_score_by_month_of_what_predict_recorded(tmp_path: Path) -> None:
    here, rows = hospital(tmp_path / "here", "pneumonia", undecided_margin=0.0), []
    for number in range(12):
        picture(tmp_path / "in" / f"{number:02d}.png", seed=number, mode="L")
    done = CliRunner().invoke(main, ["predict", str(tmp_path / "in"), "--silo", str(here.silo), "--out", str(tmp_path / "out"), "--no-pictures"])
    assert done.exit_code == 0, done.output
    for number, answer in enumerate(json.loads((tmp_path / "out" / "results.json").read_text())["answers"][:10]):
        wrong = next(name for name in here.task.classes if name != answer["class"])
        rows.append(f"{answer['sha256']},{answer['class'] if number < 8 else wrong},{'2026-03-07' if number < 4 else '2026-04'}")
    outcomes = tmp_path / "outcomes.csv"
    outcomes.write_text("\n".join(["sha256,label,when", *rows, f"{'0' * 64},{here.task.classes[0]},"]))
    said = typed(here, outcomes)
    assert said.exit_code == 0, said.output
    assert re.search(r"2026-03 .* 4 .*4 of 4 .*1\.000", said.output) and re.search(r"2026-04 .* 6 .*4 of 6 ", said.output)
    assert "2 images whose outcome is not known, 1 outcomes of images that nobody asked about" in said.output
    for text, code, sentence in (
        ("a,b\n1,2", 11, "columns sha256 and label expected"),
        ("sha256,label\nabc,normal", 11, "line 2: sha256: 64 hexadecimal digits expected"),
        (f"sha256,label\n{'0' * 64},ill", 11, "line 2: label: one of normal, pneumonia expected, got 'ill'"),
        (f"sha256,label,when\n{'0' * 64},normal,May", 11, "line 2: when: YYYY-MM-DD or YYYY-MM expected"),
        (f"sha256,label\n{'0' * 64},normal\n{'0' * 64},pneumonia", 11, "line 3: this image has another label further up"),
    ):
        outcomes.write_text(text)
        said = typed(here, outcomes)
        assert said.exit_code == code and sentence in said.output, said.output
    assert typed(here, tmp_path / "gone.csv").exit_code == 18
    lungs = hospital(tmp_path / "lungs", "lung-segmentation")
    outcomes.write_text(f"sha256,label\n{'0' * 64},lung")
    assert "audit judges classes" in typed(lungs, outcomes).output
