"""Six drawn hospitals in the paediatric chest-X-ray set's own layout, and a drawn public set. Called by demo/tasks.py and by tests.

    <folder>/train|val|test/NORMAL|PNEUMONIA/*.jpeg     grey JPEG, named as in the set

Files carry no hospital's name, as in the set: sharing.py says who owns which, and its owner's scanner took it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedhelp_core.data.chest_xray import CLASS_FOLDERS, FOLDERS, patient_of
from fedhelp_core.data.phantom.chest import FINDINGS, PUBLIC_FINDINGS, Finding, Scanner, any_scanner, draw
from fedhelp_core.data.phantom.drawing import Progress, Public, chance, draw_all, save
from fedhelp_core.data.sharing import owners

SIZES = (9930, 3163, 2691, 1807, 655, 351)  # of Fed-ISIC2019's training sets: the paper's skew
SCANNERS: tuple[Scanner, ...] = (
    Scanner(),
    Scanner(exposure=1.15, contrast=0.85, noise=0.03, collimation=0.08),
    Scanner(exposure=0.85, contrast=1.2, zoom=1.08, marker=True),
    Scanner(exposure=1.05, tilt=0.15, blur=0.5, noise=0.015),
    Scanner(exposure=0.9, contrast=0.9, zoom=0.9, noise=0.05, marker=True),
    Scanner(exposure=1.1, contrast=1.3, tilt=-0.15, collimation=0.12, noise=0.035),
)
COUNTS = {"training": (66, 126), "validation": (12, 12), "test": (240, 360)}
"""Split -> images of NORMAL and of PNEUMONIA; the set has 1341 and 3875, 8 and 8, 234 and 390."""


def write_chest_xray(
    folder: Path, *, seed: int, counts: dict[str, tuple[int, int]] | None = None, sizes: Sequence[float] = SIZES, progress: Progress | None = None,
) -> None:
    """Draw the set below `folder`. The same seed draws the same pixels."""
    jobs = []
    for split, per_class in (counts or COUNTS).items():
        for label, count in enumerate(per_class):
            target = folder / FOLDERS[split] / CLASS_FOLDERS[label]
            target.mkdir(parents=True)
            names = [_name(split, label, number) for number in range(count)]
            owner = owners(map(patient_of, names), sizes, split)
            finding = list(FINDINGS.values())[label]
            jobs += [(target / name, finding, SCANNERS[owner[patient_of(name)] % len(SCANNERS)]) for name in names]
    entropy = {path: number for number, (path, _, _) in enumerate(jobs)}

    def one(job: tuple[Path, Finding, Scanner]) -> None:
        path, finding, scanner = job
        save(draw(finding, scanner, chance(seed, entropy[path]))[0], path)

    draw_all(one, jobs, "hospital", progress)


def _name(split: str, label: int, number: int) -> str:
    """As the set names its files; some patients have a second image."""
    first = {"training": 1, "validation": 5001, "test": 7001}[split] + number - (number % 5 == 4)
    return f"IM-{first:04d}-{number:04d}.jpeg" if label == 0 else f"person{first}_bacteria_{number + 1}.jpeg"


PUBLIC = Public(
    classes=tuple(PUBLIC_FINDINGS),
    draw=lambda number, rng: draw(list(PUBLIC_FINDINGS.values())[number % len(PUBLIC_FINDINGS)], any_scanner(rng), rng)[0])
