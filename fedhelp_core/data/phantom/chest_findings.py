"""Drawn chest X-rays with several findings at once: hospitals with a CSV of their own, and a public set. Called by demo/tasks.py and by tests.

    <folder>/images/*.png, <folder>/findings.csv     a row an image: image, patient, hospital, split, and a column a finding: 0, 1 or empty
    <folder>/<hospital>.json                         the same as a datalist

The findings are ChestX-ray14's by name; what they look like is made of the signs of chest.py. A hospital's cells are empty where it does not label.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.decode import square
from fedhelp_core.data.items import Item
from fedhelp_core.data.phantom.chest import Finding, Scanner, any_scanner, draw
from fedhelp_core.data.phantom.chest_xray import SCANNERS
from fedhelp_core.data.phantom.drawing import PUBLIC_STREAM, TEACHER_STREAM, Prepared, Progress, chance, draw_all, save
from fedhelp_core.data.phantom.hospitals import write_datalists
from fedhelp_core.registry.tasks import NOT_LABELLED

FINDINGS: Mapping[str, Finding] = {
    "atelectasis": Finding(bases=0.4, effusion=0.2), "cardiomegaly": Finding(heart=0.95), "effusion": Finding(effusion=0.8),
    "infiltration": Finding(consolidation=0.45, bases=0.3), "mass": Finding(nodules=1.0), "nodule": Finding(nodules=0.6),
    "pneumonia": Finding(consolidation=0.7, interstitial=0.4), "pneumothorax": Finding(air=0.9), "consolidation": Finding(consolidation=0.95),
    "oedema": Finding(interstitial=0.85, vessels=0.9), "emphysema": Finding(air=0.4, vessels=0.0), "fibrosis": Finding(bases=0.9),
    "pleural-thickening": Finding(effusion=0.4), "hernia": Finding(heart=0.7, bases=0.35)}
"""Of the task, in its order."""
_PUBLIC: Mapping[str, Finding] = {
    "fluid": Finding(effusion=0.75), "spots": Finding(nodules=0.85), "air": Finding(air=0.85), "large-heart": Finding(heart=0.9),
    "net": Finding(bases=0.85), "lines": Finding(interstitial=0.8), "clouds": Finding(consolidation=0.75)}
_HEALTHY = Finding(heart=0.25, vessels=0.4)
_SHARE = 0.16  # of images that show a finding, each by itself: two or three of fourteen in an image, and about a tenth show none
COUNTS = {"amsterdam": (70, 16, 60), "barcelona": (50, 14, 60), "coimbra": (28, 12, 50), "dresden": (20, 12, 50)}
"""Hospital -> images for training, validation and test."""
LABELLED: Mapping[str, Sequence[str]] = {"coimbra": ("cardiomegaly", "effusion", "mass", "pneumothorax", "oedema", "fibrosis")}
"""Who does not label all of them."""


@dataclass(frozen=True)
class _Job:
    path: Path
    shown: tuple[int, ...]
    scanner: Scanner
    number: int


def together(signs: Sequence[Finding]) -> Finding:
    """What an image with all of `signs` shows: of each sign the most."""
    return Finding(**{field.name: max(getattr(one, field.name) for one in (_HEALTHY, *signs)) for field in fields(Finding)})


def write_chest_findings(
    folder: Path, *, seed: int, counts: Mapping[str, tuple[int, int, int]] | None = None, progress: Progress | None = None,
) -> None:
    """Draw the hospitals below `folder`. The same seed draws the same pixels."""
    (folder / "images").mkdir(parents=True)
    signs = tuple(FINDINGS.values())
    hospitals: dict[str, dict[str, tuple[Item, ...]]] = {}
    jobs: list[_Job] = []
    for place, (hospital, sizes) in enumerate((counts or COUNTS).items()):
        for split, size in zip(("training", "validation", "test"), sizes, strict=True):
            items = []
            for _ in range(size):
                shown = tuple((chance(seed, len(jobs), 1).uniform(size=len(signs)) < _SHARE).astype(int).tolist())
                path = folder / "images" / f"{hospital}_{len(jobs):05d}.png"
                jobs.append(_Job(path, shown, SCANNERS[place % len(SCANNERS)], len(jobs)))
                items.append(Item(path, findings=_as_labelled(shown, LABELLED.get(hospital))))
            hospitals.setdefault(hospital, {})[split] = tuple(items)

    def one(job: _Job) -> None:
        seen = [sign for sign, is_shown in zip(signs, job.shown, strict=True) if is_shown]
        save(draw(together(seen), job.scanner, chance(seed, job.number))[0], job.path)

    draw_all(one, jobs, "hospital", progress)
    write_datalists(folder, hospitals, tuple(FINDINGS))
    _write_csv(folder, hospitals)


def _as_labelled(shown: Sequence[int], labelled: Sequence[str] | None) -> tuple[int, ...]:
    return tuple(found if labelled is None or name in labelled else NOT_LABELLED for name, found in zip(FINDINGS, shown, strict=True))


def _write_csv(folder: Path, hospitals: Mapping[str, Mapping[str, Sequence[Item]]]) -> None:
    with (folder / "findings.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["image", "patient", "hospital", "split", *FINDINGS])
        for hospital, splits in hospitals.items():
            for split, items in splits.items():
                rows.writerows([item.image.relative_to(folder).as_posix(), item.image.stem, hospital, split,
                                *("" if found == NOT_LABELLED else found for found in item.findings)] for item in items)


class PublicFindings:
    """Drawn X-rays with other findings than the task's: the unlabelled public set, and what a teacher learnt from."""

    classes = tuple(_PUBLIC)
    answers = len(_PUBLIC)

    def write(self, folder: Path, *, count: int, seed: int, progress: Progress | None = None) -> None:
        """`count` unlabelled files."""
        folder.mkdir(parents=True, exist_ok=True)
        draw_all(
            lambda number: save(self._drawn(seed, PUBLIC_STREAM, number)[0], folder / f"public_{number:05d}.png"), range(count), "public", progress)

    def prepared(self, count: int, seed: int, task: TaskConfig) -> Prepared:
        """Images (N, C, S, S), and findings (N, K)."""
        drawn = [self._drawn(seed, TEACHER_STREAM, number) for number in range(count)]
        images = np.stack([square(image, task.image_size).transpose(2, 0, 1) for image, _ in drawn])
        return images[:, : task.channels], np.array([shown for _, shown in drawn], np.uint8)

    def _drawn(self, seed: int, stream: int, number: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        rng = chance(seed, stream, number)
        shown = (rng.uniform(size=len(_PUBLIC)) < 2 * _SHARE).astype(np.int64)
        seen = [sign for sign, is_shown in zip(_PUBLIC.values(), shown, strict=True) if is_shown]
        return draw(together(seen), any_scanner(rng), rng)[0], shown
