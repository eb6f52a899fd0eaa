"""What the pods' result must equal: the same federation simulated in this process, and the drawn input that both read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from fedhelp_core.algorithm.simulate import simulate
from fedhelp_core.config.federation import load_federation
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.decode import square
from fedhelp_core.data.phantom.dermoscopy import PUBLIC_LESIONS
from fedhelp_core.data.phantom.fed_isic import PUBLIC, SITES, write_fed_isic
from fedhelp_core.demo.teacher import save_teacher, train_teacher
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.softlabels.prefetch import prefetch
from fedhelp_core.store.open import open_store
from fedhelp_core.study.study import load_simulated_silos
from fedhelp_core.weights.file import fingerprint

IMAGE_SIZE = 32
TEACHER_CLASSES = len(PUBLIC_LESIONS)


def draw_input(folder: Path) -> None:
    """`hospitals/`: three centers in Fed-ISIC2019's layout; `public/`: unlabelled images, and the teacher that is asked about them."""
    write_fed_isic(folder / "hospitals", seed=1, sites=SITES[1:4])
    PUBLIC.write(folder / "public", count=48, seed=1)
    images, labels = PUBLIC.labelled(64, 1)
    images_NCHW = torch.stack([torch.from_numpy(square(image, IMAGE_SIZE)).permute(2, 0, 1) for image in images]).contiguous()
    task = TaskConfig(classes=PUBLIC.classes, image_size=IMAGE_SIZE)
    model = train_teacher("resnet8", images_NCHW, torch.tensor(labels), task=task, seed=1)
    save_teacher(model, folder / "public" / "teacher", architecture="resnet8", task=task)


def simulated_sha256(document: Mapping[str, Any], centers: Mapping[str, int], folder: Path) -> str:
    """The final model's sha256 when the federation of `document` runs in this process, on the drawn input in `folder`.

    `centers` says which drawn center is which silo's.
    """
    here = {**document, "store": {"url": str(folder / "store")}, "tracking": {}, "silos": []}
    teachers = [{**one, "uri": str(folder / "public" / "teacher")} for one in document["public_set"]["teachers"]]
    here["public_set"] = {"images": str(folder / "public"), "teachers": teachers}
    for silo in document["silos"]:
        name = silo["name"]
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({
            "version": 1, "name": name, "state": str(folder / "state" / name),
            "data": {"layout": "fed-isic2019", "images": str(folder / "hospitals" / "images"), "center": centers[name],
                     "split_csv": str(folder / "hospitals" / "train_test_split.csv"), "validation_fraction": 0.0}}))
        here["silos"].append({"name": name, "dispatch": {"kind": "process", "silo_config": str(path)}})
    written = folder / "simulated.yaml"
    written.write_text(yaml.safe_dump(here))
    federation = load_federation(written)
    assert federation.public_set is not None
    asked = prefetch(open_store(federation.store.url), federation.public_set, federation.task)
    silos = load_simulated_silos(federation, distillation_sha256=asked.distillation_set_sha256)
    return fingerprint(simulate(federation, objective_of(federation.task), silos).weights, str(federation.algorithm.proxy_model))
