"""docs/teachers.md is typed as it stands: its files are written, its servers started, its models asked."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedhelp_core.config.teachers import TeacherConfig
from fedhelp_core.softlabels.answers import checked_probabilities
from fedhelp_core.softlabels.open import open_teacher
from tests.core.softlabels.helpers import about
from tests.core.softlabels.model_servers import NoEnvironment, environment, free_ports, serving

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]  # seconds; installing (once, some 30 s each) does not count

PAGE = Path(__file__).parents[3] / "docs" / "teachers.md"
SIDE, CLASSES = 32, 10
IMAGES = np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)


class Section:
    """What the page has under one heading: files, commands and the teacher's config."""

    def __init__(self, heading: str, ports: dict[str, int]) -> None:
        text = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
        for written, free in ports.items():
            assert written in text
            text = text.replace(written, str(free))
        self.files = dict(re.findall(r"File `([\w.-]+)`[^`]*```\w+\n(.*?)```", text, re.DOTALL))
        self.commands = re.findall(r"```console\n(.*?)```", text, re.DOTALL)[0].strip().splitlines()
        self.teacher = TeacherConfig(**yaml.safe_load(re.findall(r"```yaml\n(name:.*?)```", text, re.DOTALL)[0]))

    def write(self, folder: Path) -> None:
        assert self.files
        for name, body in self.files.items():
            (folder / name).write_text(body, encoding="utf-8")


def assert_answers(teacher: TeacherConfig) -> None:
    """The model is what its config says, and its answers are what its code computes."""
    client = open_teacher(teacher)
    client.prepare(about(SIDE))
    rows = checked_probabilities(client.ask(IMAGES, request_id="page"), teacher, len(IMAGES))
    logits = IMAGES.mean(axis=(1, 2)) / 64 @ np.random.default_rng(0).normal(size=(3, CLASSES))
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected, rtol=1e-4)


@contextlib.contextmanager
def installed(command: str) -> Iterator[Path]:
    """The environment that `pip install` of the page makes."""
    words = shlex.split(command)
    assert words[:2] == ["pip", "install"]
    try:
        yield environment(words[2].partition("==")[0], *words[2:])
    except NoEnvironment as e:
        pytest.skip(f"it could not be installed: {e}")


@pytest.mark.parametrize(("heading", "ports"), [("MLServer", ("8080", "8081", "8082")), ("KServe", ("8080",))])
def test_a_server_started_as_the_page_says_is_a_teacher(
    heading: str, ports: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    free = free_ports(len(ports))
    section = Section(heading, dict(zip(ports, free, strict=True)))
    section.write(tmp_path)
    install, start = section.commands
    with installed(install) as python:
        program, *arguments = shlex.split(start)
        with serving([str(python.with_name(program)), *arguments], free[0], "derma", tmp_path):
            assert_answers(section.teacher)


def test_a_model_registered_as_the_page_says_is_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = Section("MLflow", {})
    section.write(tmp_path)
    export, register = section.commands
    assert export.startswith("export MLFLOW_TRACKING_URI=")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", export.partition("=")[2])
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, *shlex.split(register)[1:]], capture_output=True, text=True, timeout=200, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    assert_answers(section.teacher)
