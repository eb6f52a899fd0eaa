"""How long the paper's settings would take on a GPU: an estimate from counted operations, not a measurement.

    python -m benchmarks.gpu_estimate

One training step of a small and of a large silo is run here, small, on the CPU, and its operations (kernels to launch) and the
multiplications and additions of its convolutions are counted; the latter grow with the image and are scaled to the example's. A
step is taken to last what launching its kernels or computing its convolutions takes, whichever is longer, at the two rates below.
Evaluation, decoding, sending and the teacher's answers are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fedhelp_core.algorithm.local_update import SiloData, SiloState, UpdateSettings, initial_weights, local_update
from fedhelp_core.algorithm.randomness import fix_arithmetic
from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.data.examples import image_shape, target_shape
from fedhelp_core.data.sharing import hand_sizes
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.registry.tasks import PRESETS

SECONDS_A_KERNEL = 10e-6  # PyTorch's eager launches from one Python thread
FLOP_A_SECOND = 5e12      # float32 convolutions of few channels on a GPU of 20 TFLOP/s and more
_SIDE = 32                # of the images that are counted with: every U-Net can halve it
_FLAMBY = (9930, 3163, 2691, 1807, 655, 351)
TRAINING: Mapping[str, Sequence[int]] = {
    "melanoma": _FLAMBY, "pneumonia": hand_sizes(5216, _FLAMBY), "lung-segmentation": (453, 110, 198), "brain-segmentation": (249, 145, 58)}
"""Training images of each hospital of the real sets, as examples/ divide them."""


@dataclass(frozen=True)
class Step:
    """What one private batch (and what the method alternates with it) costs."""

    kernels: int
    flop: float

    @property
    def seconds(self) -> float:
        """On the assumed GPU."""
        return max(self.kernels * SECONDS_A_KERNEL, self.flop / FLOP_A_SECOND)


class _Counted(TorchDispatchMode):
    """Counts operations that compute something: views only rename memory."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.kernels += not function.is_view
        return function(*args, **(kwargs or {}))


def step_of(federation: Federation, kind: str) -> Step:
    """One step of a silo of `kind`, counted small and scaled to the federation's images."""
    side = federation.task.volume.patch_size if federation.task.dimensions == 3 else federation.task.image_size
    changes: dict[str, Any] = {"task.image_size": _SIDE}
    if federation.task.dimensions == 3:
        changes |= {"task.volume.patch_size": _SIDE, "task.volume.window_size": _SIDE, "task.volume.patches": 1}
    small = federation.override(**changes)
    settings = UpdateSettings(algorithm=small.algorithm, objective=objective_of(small.task), seed=1, silo="counted", kind=kind)
    data = _data(small)
    weights = initial_weights(small.algorithm, objective_of(small.task), seed=1)
    counted, flop = _Counted(), FlopCounterMode(display=False)
    with flop, counted:
        local_update(weights, SiloState.empty(), data, settings, round_number=1)
    return Step(counted.kernels, flop.get_total_flops() * (side / _SIDE) ** federation.task.dimensions)


def _data(federation: Federation) -> SiloData:
    """One batch of grey images; where Eq 2 runs, public ones beside it."""
    task, count = federation.task, federation.algorithm.batch_size
    images = torch.full((count, *image_shape(task)), 128, dtype=torch.uint8)
    masks = len(target_shape(task)) > 0
    labels = torch.zeros((count, *target_shape(task)), dtype=torch.uint8 if masks else torch.int64)
    if not federation.uses_public_set or federation.public_set is None:
        return SiloData(images_NCHW=images, labels_N=labels)
    answers = torch.full((count, 1, *images.shape[2:]) if masks else (count, federation.public_set.teachers[0].classes), 0.5)
    return SiloData(images_NCHW=images, labels_N=labels, public_images_MCHW=images, public_probabilities_MP=answers)


def line_of(task: str) -> list[str]:
    """The table's line of one task."""
    federation = load_federation(Path(__file__).parent.parent / "examples" / f"{task}.yaml")
    algorithm = federation.algorithm
    steps = {kind: step_of(federation, kind) for kind in ("small", "large")}
    ranked = sorted(TRAINING[task], reverse=True)
    rounds = [
        steps["large" if place < algorithm.large_silos else "small"].seconds * algorithm.local_epochs * math.ceil(images / algorithm.batch_size)
        for place, images in enumerate(ranked)]
    side_by_side, in_turn = (algorithm.rounds * found / 60 for found in (max(rounds), sum(rounds)))
    shown = [f"{step.kernels:,} kernels, {step.flop / 1e9:.1f} GFLOP: {1000 * step.seconds:.0f} ms" for step in steps.values()]
    return [task, *shown, f"{side_by_side:.0f} min", f"{in_turn:.0f} min"]


def main() -> None:
    """Print the table."""
    fix_arithmetic(1)
    print("| task | a small silo's step | a large silo's step | a GPU a silo | all silos on one GPU |\n| --- | ---: | ---: | ---: | ---: |")
    for task in PRESETS:
        print("| " + " | ".join(line_of(task)) + " |", flush=True)


if __name__ == "__main__":
    main()
