"""A run whose proxy begins with somebody's weights: every silo starts from them, and the model card says whose they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fedhelp_core.models.build import build_model
from tests.components.test_same_result import simulated
from tests.tiny import Processes, TinyFederation, succeeded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_a_run_begins_with_pretrained_weights_as_its_simulation_does_and_its_card_names_licence_and_source(
    make_tiny: Callable[..., TinyFederation], processes: Processes, tmp_path: Path,
) -> None:
    theirs = build_model("resnet8", outputs=1000, generator=torch.Generator().manual_seed(9))  # of other classes
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    file = tmp_path / "theirs.safetensors"
    save_file(tensors, file)
    said = {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "licence": "CC-BY-4.0",
            "source": "drawn pictures of a test"}
    tiny = make_tiny(algorithm__method="fedavg", algorithm__pretrained={"proxy": said})

    succeeded(processes.fedhelp("run", tiny.path, "--run-id", "pretrained"))
    output = (tiny.store / "local" / "pretrained" / "pipeline.log").read_text(encoding="utf-8")
    assert "begins with pretrained weights" in output and "from the seed: head.weight, head.bias" in output
    run = tiny.run("pretrained")
    start = run.commit(0)
    assert start is not None
    begun = run.global_weights(start, max_bytes=2**30)
    assert all(np.array_equal(begun[name], array) for name, array in tensors.items() if name.startswith("backbone."))
    card = (tiny.store / "runs" / "pretrained" / "card.md").read_text(encoding="utf-8")
    assert "drawn pictures of a test; licence CC-BY-4.0" in card.replace("\\", "") and said["sha256"] in card
    assert simulated(tiny, processes)["global_sha256"] == tiny.final_sha256("pretrained")
