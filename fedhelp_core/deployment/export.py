"""The model in use as files for elsewhere: weights with their contract, or a program that PyTorch alone runs. Called by `fedhelp model export`.

It is a hospital's own model, batch norms or large model included: it goes where the hospital takes it, and nowhere by itself.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch

from fedhelp_core.config.silo import AdoptionConfig
from fedhelp_core.data.examples import image_shape
from fedhelp_core.deployment.adopted import Adopted
from fedhelp_core.deployment.scorer import scorer_in
from fedhelp_core.disk import atomic_write

_CPU = torch.device("cpu")


def export_weights(adopted: Adopted, out: Path) -> str:
    """The folder `out` with weights.safetensors, contract.json and the card; what is in it, for people.

    Raises:
        WeightsError: the weights were altered since they were adopted.
    """
    scorer_in(adopted.contract, adopted.weights, AdoptionConfig(), _CPU)
    with atomic_write(out) as scratch:
        shutil.copytree(adopted.folder, scratch)
    return (f"{out}: weights.safetensors (network {adopted.contract.network}, all of its tensors) and contract.json (task, classes, preparation,"
            " operating point)")


def export_program(adopted: Adopted, out: Path) -> str:
    """The file `out` as `torch.export` writes it; how to use it, for people. The likeliest class is the operating point's.

    Raises:
        WeightsError: the weights were altered since they were adopted.
    """
    scorer = scorer_in(adopted.contract, adopted.weights, AdoptionConfig(), _CPU)
    shape = image_shape(adopted.contract.task)
    served = scorer.objective.served(scorer.network, adopted.contract.operating_point).eval()
    example = torch.zeros((2, *shape))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of PyTorch's own ways to save
        program = torch.export.export(served, (example,), dynamic_shapes=({0: torch.export.Dim("images")},))
        with atomic_write(out) as scratch, scratch.open("wb") as file:
            torch.export.save(program, file)
    sides = " x ".join(map(str, shape))
    return (f"{out}: torch.export.load(PATH).module()(images), images float32 N x {sides} of 0 to 255, prepared as"
            f" {adopted.contract.preprocessing!r}; it answers with the probabilities of {', '.join(adopted.contract.task.classes)}")
