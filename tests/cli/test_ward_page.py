"""docs/ward.md: every command on it runs, in the order of the page, in a hospital whose hub has promoted two versions."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml
from click.testing import CliRunner

from fedhelp_cli.main import main
from fedhelp_core.config.silo import AdoptionConfig
from tests.core.deployment.hub import Hub
from tests.core.deployment.test_images_in import picture
from tests.core.serving.process import files
from tests.tiny import TinyFederation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = (Path(__file__).parents[2] / "docs" / "ward.md").read_text(encoding="utf-8")
COMMANDS = [line.removeprefix("$ ") for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_every_command_of_the_page_runs(make_tiny: Callable[..., TinyFederation], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = make_tiny()
    hub = Hub(tiny.folder / "hub")
    tiny.write_silo("aachen", adoption={"store": "hub", "tolerance": 1.0})
    (tiny.folder / "aachen.yaml").rename(tiny.folder / "silo.yaml")
    picture(tiny.folder / "new-images" / "a.png")
    monkeypatch.chdir(tiny.folder)
    assert len(COMMANDS) > 7
    hub.promote("3")
    for command in COMMANDS:
        if "--force" in command:  # the page's hospital has a model in use, and the hub another
            hub.promote("4", seed=2)
            assert typed("fedhelp model fetch --silo silo.yaml") == 0
        if "audit" in command:
            (tiny.folder / "outcomes.csv").write_text(outcomes_of(tiny.folder / "answers" / "results.csv"))
        if command.startswith("fedhelp serve"):
            (tiny.folder / "token").write_text("secret\n")
            asked_of_server(command)
        else:
            assert typed(command) == 0, command
    for made in ("answers/results.csv", "answers/results.json", "answers/results.html", "my-model/weights.safetensors", "my-model/contract.json",
                 "my-model.pt2", "state/aachen/adoptions.jsonl"):
        assert (tiny.folder / made).is_file()
        assert Path(made).name in PAGE


def outcomes_of(results: Path) -> str:
    with results.open(encoding="utf-8", newline="") as file:
        return "sha256,label\n" + "".join(f"{row['sha256']},{row['class']}\n" for row in csv.DictReader(file))


def asked_of_server(command: str) -> None:
    """The server of `command`, at a free port, answers about the page's image whoever has the token."""
    program = [sys.executable, "-c", "from fedhelp_cli.main import main; main()"]
    process = subprocess.Popen([*program, *shlex.split(command)[1:], "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().rsplit(" ", 1)[-1].strip().removesuffix("/v2")
        question = {"inputs": [files(Path("new-images/a.png"))]}
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            [name] = [path.name for path in Path("state/aachen/models").iterdir()]
            assert client.post(f"/v2/models/{name}/infer", json=question).status_code == 401
            said = client.post(f"/v2/models/{name}/infer", json=question, headers={"Authorization": "Bearer secret"})
            assert said.status_code == 200 and all(f"`{output['name']}`" in PAGE for output in said.json()["outputs"])
    finally:
        process.terminate()
        process.communicate(timeout=60)


def typed(command: str) -> int:
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    print(done.output)
    return done.exit_code


def test_the_pages_section_of_silo_yaml_is_one_and_has_the_defaults() -> None:
    [block] = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if block.startswith("adoption:")]
    written = AdoptionConfig.model_validate(yaml.safe_load(block)["adoption"])
    assert written.model_copy(update={"store": None}) == AdoptionConfig()
    assert set(AdoptionConfig.model_fields) - set(yaml.safe_load(block)["adoption"]) == {"endpoint_url", "model"}
