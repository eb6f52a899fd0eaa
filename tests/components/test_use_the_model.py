"""docs/use-the-model.md, executed: its Python in order, and its server beside it, with a registry that has a champion called chest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedhelp_components.evaluation.candidate import drawn_image, model_for_users
from fedhelp_core.config.federation import parse_federation
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.tracking.registry import Registry
from fedhelp_core.tracking.runs import Tracker
from fedhelp_core.tracking.server import tracking_uri
from tests.components.mlflow_serving import environment_for, serving

pytestmark = [pytest.mark.slow, pytest.mark.long]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "use-the-model.md").read_text(encoding="utf-8")


def test_every_command_of_the_page_works(tmp_path: Path) -> None:
    federation = parse_federation({
        "name": "chest", "task": {"name": "pneumonia", "image_size": 16}, "algorithm": {"method": "fedavg", "proxy_model": "resnet8"},
        "store": {"url": str(tmp_path / "store")}, "silos": [{"name": "aachen", "dispatch": {"silo_config": "silo.yaml"}}]}, source="test")
    objective = objective_of(federation.task)
    network = objective.served(objective.build("resnet8", torch.Generator().manual_seed(3)))
    Tracker.for_run(federation, "r").log_and_register_model(
        model_for_users(network, federation.task, {}), name="chest", tags={}, description="# Model card: chest")
    Registry.for_federation(federation).promote("chest", None)
    (tmp_path / "chest.jpg").write_bytes(drawn_image(federation.task))

    (command,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 5
    with serving(command, tracking_uri(federation), tmp_path) as port:
        (tmp_path / "page.py").write_text("\n".join(blocks).replace("5002", str(port)), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "page.py"], cwd=tmp_path, env=environment_for(tracking_uri(federation)), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert said.count("normal  pneumonia") == 2 and "do not divide by 255" in said
    assert "shorter side 16" in said and "# Model card: chest" in said
    assert '{"predictions": [{"normal": ' in said
