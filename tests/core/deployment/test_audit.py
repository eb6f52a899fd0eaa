"""Answers held against outcomes: of findings each by itself, where it is known; numbers by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.deployment.answer_record import Answered
from fedhelp_core.deployment.audit import FindingAudit, audited, outcomes_in
from fedhelp_core.errors import ConfigError, DataError

FINDINGS = TaskConfig.model_validate({"name": "chest", "form": "labels", "classes": ["effusion", "mass", "air"], "image_size": 16})
LESIONS = TaskConfig.model_validate({"name": "skin", "form": "classes", "classes": ["mole", "melanoma"], "image_size": 16})


def sha(number: int) -> str:
    return f"{number:064x}"


def answered(number: int, answer: str, *, undecided: bool = False, time: str = "2026-03-02T10:00:00Z") -> Answered:
    return Answered(
        time=time, by="serve", model="chest", version="3", weights_sha256=sha(0), sha256=sha(number), answer=answer, confidence=0.9,
        undecided=undecided)


def written(folder: Path, *lines: str) -> Path:
    path = folder / "outcomes.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_each_finding_is_judged_by_itself_over_the_images_in_which_it_is_known(tmp_path: Path) -> None:
    path = written(
        tmp_path, "sha256,mass,effusion,when,note", f"{sha(1)},1,0,2026-04,x", f"{sha(2)},0,0,,", f"{sha(3)},1,,,", f"{sha(4)},0,1,2026-04-30,",
        f"{sha(9)},1,1,,")
    lines = [
        answered(1, "effusion, mass"), answered(2, "no finding"), answered(3, "no finding"), answered(4, "effusion, air", undecided=True),
        answered(5, "mass"), answered(2, "mass")]
    found = audited(lines, outcomes_in(path, FINDINGS), "chest", FINDINGS)
    assert found.findings == (
        FindingAudit("effusion", there=1, found=1, absent=2, spared=1), FindingAudit("mass", there=2, found=1, absent=2, spared=1),
        FindingAudit("air", there=0, found=0, absent=0, spared=0))
    assert (found.unknown, found.open) == (1, 1)
    march, april = found.months
    assert (march.month, march.images, march.undecided, march.right) == ("2026-03", 2, 0, 0)
    assert march.score == 0.0  # of mass alone: missed in image 3, found in 2, whose last answer counts
    assert (april.month, april.images, april.undecided, april.right) == ("2026-04", 2, 1, 0)
    assert april.score == (0.5 + 1.0) / 2 and all(map(math.isnan, april.interval))


def test_classes_are_judged_as_ever(tmp_path: Path) -> None:
    path = written(tmp_path, "sha256,label", f"{sha(1)},mole", f"{sha(2)},melanoma", f"{sha(3)},melanoma")
    lines = [answered(1, "mole"), answered(2, "mole"), answered(3, "melanoma")]
    [month] = audited(lines, outcomes_in(path, LESIONS), "chest", LESIONS).months
    assert month.score == 0.75 and month.right == 2 and month.interval[0] < 0.75 < month.interval[1]


@pytest.mark.parametrize(("lines", "says"), [
    (("sha256,label", f"{sha(1)},mass"), "columns sha256 and a column for each of effusion, mass, air expected"),
    (("sha256,mass", f"{sha(1)},yes"), "line 2: mass: 1, 0 or nothing expected, got 'yes'"),
    (("sha256,mass", f"{sha(1)},1", f"{sha(1)},0"), "line 3: this image has another label further up"),
    (("sha256,mass", "12,1"), "line 2: sha256: 64 hexadecimal digits expected")])
def test_outcomes_that_cannot_be_used_name_their_line(lines: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        outcomes_in(written(tmp_path, *lines), FINDINGS)


def test_masks_are_not_judged_nor_findings_whose_names_run_together(tmp_path: Path) -> None:
    organs = TaskConfig.model_validate({"name": "organs", "form": "masks", "classes": ["background", "lungs", "heart"], "image_size": 16})
    with pytest.raises(ConfigError, match="its answers are masks, which need a true mask"):
        outcomes_in(written(tmp_path, "sha256,label"), organs)
    joined = TaskConfig.model_validate({"name": "chest", "form": "labels", "classes": ["mass, large", "air"], "image_size": 16})
    with pytest.raises(ConfigError, match="which stands between findings in the record"):
        audited([], [], "chest", joined)
