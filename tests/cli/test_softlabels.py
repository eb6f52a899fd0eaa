"""`fedhelp softlabels show`: which set is meant, and what is printed of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhelp_cli.softlabels import chosen_set, show_set
from fedhelp_core.errors import ConfigError, NotFound
from fedhelp_core.protocol.facts import SoftLabels
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.core.softlabels.helpers import CountingTeacher, draw, run, teacher_config
from tests.tiny import TinyFederation


@pytest.fixture
def tiny(tmp_path: Path) -> TinyFederation:
    return TinyFederation.written(tmp_path / "tiny", tmp_path)


@pytest.fixture
def store(tiny: TinyFederation) -> Store:
    return open_store(str(tiny.store))


def made(store: Store, folder: Path, *shades: int) -> str:
    return run(store, draw(folder, *shades), CountingTeacher()).distillation_set_sha256


class TestChoice:
    def test_the_only_one_needs_no_name(self, store: Store, tmp_path: Path) -> None:
        sha256 = made(store, tmp_path / "one", 0, 64)
        assert chosen_set(store, None, None) == sha256

    def test_one_of_several_is_named_by_its_beginning_or_its_run(self, store: Store, tmp_path: Path) -> None:
        one, other = made(store, tmp_path / "one", 0, 64), made(store, tmp_path / "other", 64, 128)
        Run(store, "r").settle(SoftLabels(sha256=other, images=2, duplicates=0, asked=2, cached=0, seconds=0.0, classes=2, teachers={}))
        assert chosen_set(store, None, one[:8]) == one
        assert chosen_set(store, "r", None) == other
        with pytest.raises(ConfigError, match=r"holds 2 distillation sets, [0-9a-f]{12}, [0-9a-f]{12}; name one with --set or --run-id"):
            chosen_set(store, None, None)

    def test_none_says_what_makes_one(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="holds no distillation set; soft_label_prefetch"):
            chosen_set(store, None, None)
        made(store, tmp_path / "one", 0)
        with pytest.raises(NotFound, match="holds no distillation set that begins with xyz"):
            chosen_set(store, None, "xyz")
        with pytest.raises(NotFound, match="run 'r' has no distillation_set yet"):
            chosen_set(store, "r", None)


def test_classes_entropies_examples_and_agreement_are_printed(
    tiny: TinyFederation, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    def says(row: list[float]) -> Any:
        return lambda _, answer: np.array([row] * len(answer))

    prompts = ("a [bold]mole[/bold]", "a melanoma\x1b[31m")
    teachers = [CountingTeacher(teacher_config(name=name, weight=weight, prompts=prompts), then=says(row))
                for name, weight, row in (("one", 1, [1, 0]), ("other", 3, [0, 1]))]
    sha256 = run(store, draw(tmp_path / "public", 0, 64, 128), *teachers).distillation_set_sha256
    show_set(tiny.path, run_id=None, sha256=None, examples=2)
    text = capsys.readouterr().out
    for expected in (
        f"distillation set {sha256}", "3 public images of 8 x 8 pixels, 2 classes", "teacher one version 1: 25% of every answer",
        "a [bold]mole[/bold]", "(0: certain, 0.69: no opinion)", "a melanoma�[31m 0.75", "0.0%", "0.693",
    ):
        assert expected in text, expected
    assert text.count(" 0.75, ") == 2  # as many examples as were asked for
    assert "\x1b" not in text
