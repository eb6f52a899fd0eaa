"""MONAI's networks at full size on a CPU: DenseNet121 at 224 pixels and SegResNet at 96^3 voxels, beside a plain loop, and their peak memory.

    python -m benchmarks.any_network [--repeat 2] [--steps 4] [--only densenet|segresnet]

Each measurement is a process of its own on one thread. A step's time is the processor's (CPU seconds), so that other work on the machine counts
little: the first step is left out, ours and the plain loop's turn by turn. Peak resident memory (VmHWM) has PyTorch and MONAI in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from benchmarks.averaging import peak_mib
from benchmarks.figures import Figure, add_options, show, write

TARGET_GIB = 8.0
TARGET_RATIO = 1.05
CASES: dict[str, dict[str, Any]] = {
    "densenet": {"name": "DenseNet121, 224 x 224 x 3, batch 4", "network": "DenseNet121", "side": 224, "batch": 4,
                 "task": {"name": "pneumonia", "image_size": 224}},
    "segresnet": {"name": "SegResNet of 16 filters, 96^3 voxels, batch 2", "network": {"network": "SegResNet", "arguments": {"init_filters": 16}},
                  "side": 96, "batch": 2, "task": {"name": "brain-segmentation", "image_size": 96, "volume": {"patch_size": 96, "window_size": 96}}},
}


def figures(cases: list[str], repeat: int, steps: int) -> list[Figure]:
    """Of each case: our step beside the plain loop's, and our peak memory."""
    found = []
    for case in cases:
        turns: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
        for _ in range(repeat):
            for who, measured in turns.items():
                measured.append(_measured(case, who, steps))
        ours, plain = (min(one["seconds"] for one in turns[who]) for who in ("ours", "plain"))
        found += [
            Figure(name=f"{CASES[case]['name']}: a step of Eq 1 by a plain loop's", value=ours / plain, unit="", target=TARGET_RATIO,
                   yardstick=f"{plain:.2f} CPU s of a plain PyTorch loop", detail=f"{ours:.2f} CPU s"),
            Figure(name=f"{CASES[case]['name']}: peak memory of a silo", value=max(one["mib"] for one in turns["ours"]) / 1024, unit="GiB",
                   target=TARGET_GIB, yardstick=f"{max(one['mib'] for one in turns['plain']) / 1024:.2f} GiB of the plain loop",
                   detail=f"estimated by check: {turns['ours'][0]['estimated_gib']:.2f} GiB beside the program")]
    return found


def _measured(case: str, who: str, steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.any_network", "--worker", who, "--only", case, "--steps", str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _work(case: dict[str, Any], who: str, steps: int) -> None:
    """The measured process: CPU seconds of a step, and its peak."""
    import torch

    from fedhelp_core.algorithm.local_update import SiloData, SiloState, UpdateSettings, initial_weights, local_update
    from fedhelp_core.algorithm.randomness import fix_arithmetic
    from fedhelp_core.config.algorithm import AlgorithmConfig
    from fedhelp_core.config.task import TaskConfig
    from fedhelp_core.models.sizes import size_of
    from fedhelp_core.objectives.open import objective_of

    fix_arithmetic(1)
    objective = objective_of(TaskConfig.model_validate(case["task"]))
    dimensions, images = objective.dimensions, (steps + 1) * case["batch"]
    channels = 3 if dimensions == 2 else 1
    generator = torch.Generator().manual_seed(0)
    shape = (images, channels, *(case["side"],) * dimensions)
    data = SiloData(
        images_NCHW=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        labels_N=torch.randint(0, 2, (images,) if dimensions == 2 else (images, 1, *shape[2:]), generator=generator).to(
            torch.int64 if dimensions == 2 else torch.uint8))
    algorithm = AlgorithmConfig.model_validate({
        "method": "fedavg", "proxy_model": case["network"], "batch_size": case["batch"], "augmentation": "none", "rank_top_k": 1})
    weights = initial_weights(algorithm, objective, seed=1)
    size = size_of(objective.build(algorithm.proxy_model), shape=shape[1:], batch=case["batch"])
    marks: list[float] = []
    if who == "ours":
        settings = UpdateSettings(algorithm=algorithm, objective=objective, seed=1, silo="a", kind="small")
        local_update(weights, SiloState.empty(), data, settings, round_number=1, progress=lambda done, total: marks.append(time.process_time()))
    else:
        _plain_loop(case, weights, data, marks)
    print(json.dumps({
        "seconds": (marks[-1] - marks[0]) / (len(marks) - 1), "mib": peak_mib(), "estimated_gib": size.training_bytes / 2**30}))


def _plain_loop(case: dict[str, Any], weights: Any, data: Any, marks: list[float]) -> None:
    """The same network, optimizer and batches, as one would write it."""
    import torch
    from monai.losses import DiceLoss
    from monai.networks.nets import DenseNet121, SegResNet
    from torch.nn import functional

    pictures = case["side"] == 224
    model = DenseNet121(2, 3, 2) if pictures else SegResNet(3, 16, 1, 1)
    order = torch.channels_last if pictures else torch.channels_last_3d
    model = model.to(memory_format=order).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    dice = DiceLoss(sigmoid=True)
    for index in torch.randperm(len(data.images_NCHW)).split(case["batch"]):
        images = data.images_NCHW[index].to(torch.float32, memory_format=order).div_(255 / 4).sub_(2)
        optimizer.zero_grad(set_to_none=True)
        logits, target = model(images), data.labels_N[index]
        if pictures:
            loss = functional.cross_entropy(logits, target)
        else:
            loss = functional.binary_cross_entropy_with_logits(logits, target.float()) + dice(logits, target.float())
        loss.backward()
        optimizer.step()
        marks.append(time.process_time())


def main() -> None:
    """Measure, or be the measured process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeat=2)
    parser.add_argument("--steps", type=int, default=4, help="steps that are timed, after a first one")
    parser.add_argument("--only", choices=CASES, help="one of the cases")
    parser.add_argument("--worker", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(CASES[arguments.only], arguments.worker, arguments.steps)
        return
    found = figures([arguments.only] if arguments.only else list(CASES), arguments.repeat, arguments.steps)
    show(found)
    if arguments.json is not None:
        write(found, arguments.json)


if __name__ == "__main__":
    main()
