"""The demo's input: six drawn hospitals, drawn public images, a trained teacher, and the files that describe them.

    <folder>/data/             Fed-ISIC2019's layout (see data/phantom/fed_isic.py)
    <folder>/public/           unlabelled images of other classes
    <folder>/teacher/          MLflow pyfunc
    <folder>/federation.yaml   what the hub knows
    <folder>/silos/*.yaml      what each hospital knows; state under <folder>/silos/<name>/
    <folder>/store/            made by runs: models, MLflow, report

Made once; what is there is used again. Called by `fedhelp run --demo` and `fedhelp simulate --demo`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from fedhelp_core.data.phantom.dermoscopy import PUBLIC_LESIONS
from fedhelp_core.data.phantom.fed_isic import SITES, labelled_public_images, write_fed_isic, write_public_images
from fedhelp_core.errors import ConfigError

SILOS = ("amsterdam", "barcelona", "coimbra", "dresden", "espoo", "faro")
IMAGE_SIZE, PUBLIC_IMAGES, TEACHER_IMAGES = 32, 600, 1800
_FORMAT = "fedhelp-demo/3"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class DemoPaths:
    """Where the demo lies."""

    folder: Path

    @property
    def federation(self) -> Path:
        """federation.yaml."""
        return self.folder / "federation.yaml"


def prepare_demo(folder: Path, *, seed: int = 1, progress: Progress | None = None) -> DemoPaths:
    """Make what is missing of the demo in `folder`; each part appears whole or not at all.

    Raises:
        ConfigError: `folder` holds something else.
    """
    say = progress or (lambda _what: None)
    paths, mark = DemoPaths(folder), folder / ".fedhelp-demo"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise ConfigError(f"{folder}: is not empty and no demo of this version; give --demo another folder, or delete this one")
    folder.mkdir(parents=True, exist_ok=True)
    if mark.exists() and mark.read_text(encoding="utf-8") != _FORMAT:
        raise ConfigError(f"{folder}: holds the demo of another FedHelp version; delete the folder, or give --demo another")
    mark.write_text(_FORMAT, encoding="utf-8")
    _once(folder / "data", lambda path: write_fed_isic(path, seed=seed, progress=say))
    _once(folder / "public", lambda path: write_public_images(path, count=PUBLIC_IMAGES, seed=seed, progress=say))
    _once(folder / "teacher", lambda path: _write_teacher(path, seed, say))
    (folder / "silos").mkdir(exist_ok=True)
    for center, silo in enumerate(SILOS):
        _once(folder / "silos" / f"{silo}.yaml", partial(_write_yaml, head=_SILO_HEAD, document=silo_document(silo, center)))
    _once(paths.federation, partial(_write_yaml, head=_FEDERATION_HEAD, document=federation_document()))
    return paths


def federation_document() -> dict[str, object]:
    """federation.yaml of the demo: the paper's algorithm, scaled to a laptop's two cores and a few minutes."""
    return {
        "version": 1,
        "name": "demo",
        "task": {"name": "melanoma", "image_size": IMAGE_SIZE},
        "algorithm": {
            "method": "fedhelp", "rounds": 20, "batch_size": 4, "public_batch_size": 8,
            "public_steps": 8,  # a hospital of 8 images has 2 private batches a round, the paper's smallest 88: docs/results.md
            "proxy_model": "resnet8", "large_model": "resnet20", "large_silos": 2,
            "optimizer": {"learning_rate": 2e-3},  # fewer and longer steps than the paper's 50 rounds at 1e-3
        },
        "protocol": {"min_silos": 4, "round_deadline": 300.0},
        "runtime": {"seed": 1, "threads": 1, "device": "auto"},
        "public_set": {
            "images": "public",
            "teachers": [{"name": "drawn", "kind": "mlflow", "uri": "teacher", "version": "1", "classes": len(PUBLIC_LESIONS)}],
        },
        "store": {"url": "store"},
        "silos": [{"name": silo, "dispatch": {"kind": "process", "silo_config": f"silos/{silo}.yaml"}} for silo in SILOS],
    }


def silo_document(silo: str, center: int) -> dict[str, object]:
    """silo.yaml of one drawn hospital."""
    return {
        "version": 1,
        "name": silo,
        "data": {"layout": "fed-isic2019", "images": "../data/images", "split_csv": "../data/train_test_split.csv", "center": center,
                 "validation_fraction": 0.0},  # nothing is tuned in the demo, and every training image counts
        "state": silo,
    }


_FEDERATION_HEAD = "# What the hub knows of the demo. Every field and its default: fedhelp_core/config.py. Change and run again.\n"
_SILO_HEAD = "# What this hospital knows about itself. Never leaves it.\n"


def _once(path: Path, make: Callable[[Path], None]) -> None:
    """`make` under another name, then rename: a demo that was interrupted goes on here."""
    if path.exists():
        return
    scratch = path.with_name(f".{path.name}.tmp")
    if scratch.is_dir():
        shutil.rmtree(scratch)
    make(scratch)
    scratch.rename(path)


def _write_yaml(path: Path, *, head: str, document: dict[str, object]) -> None:
    path.write_text(head + yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def _write_teacher(path: Path, seed: int, say: Progress) -> None:
    import torch

    from fedhelp_core.data.decode import square
    from fedhelp_core.softlabels.demo_teacher import save_teacher, train_teacher

    say("teacher's labelled images")
    images_NHWC, labels = labelled_public_images(TEACHER_IMAGES, seed)
    images_NCHW = torch.stack([torch.from_numpy(square(image, IMAGE_SIZE)).permute(2, 0, 1) for image in images_NHWC])
    model = train_teacher(
        images_NCHW.contiguous(), torch.tensor(labels), classes=len(PUBLIC_LESIONS), seed=seed, progress=say)
    save_teacher(model, path, classes=len(PUBLIC_LESIONS))


assert len(SILOS) == len(SITES)
