"""The drawn tasks (fedhelp_core/demo/tasks.py) with a handful of images each, as federations that tests can train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.phantom import chest_findings, chest_xray, fed_ixi, fundus, lungs, organs, tumours
from fedhelp_core.demo.prepare import federation_document, silo_document
from fedhelp_core.demo.tasks import DRAWN
from fedhelp_core.demo.teacher import save_teacher
from fedhelp_core.objectives.open import objective_of
from tests.tiny import TinyFederation, set_field

_SIZES = (3, 2, 1)  # of pneumonia's hospitals

_WRITERS: Mapping[str, Callable[[Path], None]] = {
    "pneumonia": lambda folder: chest_xray.write_chest_xray(  # ten validation images a hospital: enough to choose a model by
        folder, seed=7, counts={"training": (8, 10), "validation": (15, 15), "test": (6, 6)}, sizes=_SIZES),
    "lung-segmentation": lambda folder: lungs.write_lungs(folder, seed=7, counts={"CHNCXR": 16, "MCUCXR": 12, "JPCLN": 14}),
    "brain-segmentation": lambda folder: fed_ixi.write_fed_ixi(
        folder, seed=7, counts={"Guys": (4, 2), "HH": (2, 2), "IOP": (2, 2)}, spacing=10.0),
    "chest-findings": lambda folder: chest_findings.write_chest_findings(
        folder, seed=7, counts={"amsterdam": (12, 10, 8), "barcelona": (8, 10, 8), "coimbra": (6, 10, 8)}),
    "retinopathy": lambda folder: fundus.write_fundus(folder, seed=7, counts={"athens": (15, 10, 10), "basel": (10, 10, 10), "cork": (5, 10, 10)}),
    "chest-organs": lambda folder: organs.write_organs(folder, seed=7, counts={"north": (8, 4, 4), "south": (6, 4, 4), "west": (4, 4, 4)}),
    "brain-tumours": lambda folder: tumours.write_tumours(
        folder, seed=7, counts={"aachen": (4, 4, 2), "bonn": (2, 0, 2), "celle": (2, 0, 2)}, spacing=10.0),
}
_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "pneumonia": {"task.image_size": 16, "algorithm.large_model": "resnet8"},
    "lung-segmentation": {"task.image_size": 16, "algorithm.large_model": "unet2d-tiny"},
    "brain-segmentation": {
        "task.image_size": 16, "task.volume": {"spacing": 12.0, "patch_size": 8, "patches": 2, "window_size": 12},
        "algorithm.large_model": "unet3d-tiny"},
    "chest-findings": {"task.image_size": 16, "algorithm.large_model": "resnet8"},
    "retinopathy": {"task.image_size": 16, "algorithm.large_model": "resnet8"},
    "chest-organs": {"task.image_size": 16, "algorithm.large_model": "unet2d-tiny"},
    "brain-tumours": {
        "task.image_size": 16, "task.volume": {"spacing": 12.0, "patch_size": 8, "patches": 2, "window_size": 12},
        "algorithm.large_model": "unet3d-tiny", "silos.2.labelled": ["whole-tumour"]},
}


def write_task(task: str, folder: Path, **changes: Any) -> TinyFederation:
    """Three hospitals of `task` in their set's own layout, all in `folder`; `changes`: fields of federation.yaml with '__' for '.'."""
    silos = DRAWN[task].silos[:3]
    drawn = replace(DRAWN[task], silos=silos, labelled={silo: names for silo, names in DRAWN[task].labelled.items() if silo in silos})
    _WRITERS[task](folder / "data")
    document: dict[str, Any] = federation_document(drawn)
    set_field(document, "algorithm.rounds", 2)
    set_field(document, "algorithm.public_steps", 1)
    set_field(document, "algorithm.large_silos", 1)
    set_field(document, "runtime.device", "cpu")
    for field, value in [*_CHANGES[task].items(), *((name.replace("__", "."), value) for name, value in changes.items())]:
        set_field(document, field, value)
    drawn.public.write(folder / "public", count=12, seed=7)
    public = TaskConfig.model_validate({**document["task"], "classes": drawn.public.classes})
    save_teacher(
        objective_of(public).build(drawn.teacher, torch.Generator().manual_seed(7)), folder / "teacher", architecture=drawn.teacher, task=public)
    (folder / "silos").mkdir()
    for number, silo in enumerate(drawn.silos):
        own: dict[str, Any] = silo_document(drawn, number)
        if "share" in own["data"]:
            own["data"]["share"]["sizes"] = _SIZES
        (folder / "silos" / f"{silo}.yaml").write_text(yaml.safe_dump(_plain(own)), encoding="utf-8")
    (folder / "federation.yaml").write_text(yaml.safe_dump(_plain(document), sort_keys=False), encoding="utf-8")
    return TinyFederation(folder, folder)


def _plain(node: Any) -> Any:
    """YAML knows no tuples."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, list | tuple) else node
