"""Peak memory of a silo with volumes of 128 x 128 x 128 voxels: reading them, a local update, and answering whole volumes.

    python -m benchmarks.volumes [--repeat 1] [--side 128] [--patch 64] [--window 64] [--windows 4] [--batch 4]

Drawn heads in Fed-IXI's layout (NIfTI) are brought to the cube once; then each action is a process of its own, so that its peak resident
memory (VmHWM) is its own, PyTorch and MONAI included. The networks are those of examples/brain-segmentation.yaml.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.averaging import peak_mib
from benchmarks.figures import Figure, add_options, show, write

TARGET_GIB = 8.0
SUBJECTS = (6, 2)  # training, test
FIELD = 256.0      # mm that the cube covers: a head, whatever the number of voxels
ACTIONS = {
    "read": "reading NIfTI files",
    "small": "an epoch of a small silo (Eq 1)",
    "large": "an epoch of a large silo (Eq 3, 4, 6)",
    "evaluate": "answering and scoring whole volumes with the large model",
}


def figures(repeat: int, settings: dict[str, int]) -> list[Figure]:
    """Peak memory of each action; the largest of `repeat` counts."""
    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as folder:
        _draw(Path(folder))
        found = {action: [_measure(action, folder, settings) for _ in range(repeat)] for action in ACTIONS}
    what = f"{settings['side']}^3 volumes, patch {settings['patch']}, batch {settings['batch']}, window {settings['window']} x {settings['windows']}"
    return [
        Figure(name=f"{what}: {ACTIONS[action]}, peak memory", value=max(one["mib"] for one in turns) / 1024, unit="GiB", target=TARGET_GIB,
               yardstick=f"{turns[0]['idle_mib'] / 1024:.2f} GiB before it began", detail=f"{turns[0]['seconds']:.1f} s; {turns[0]['what']}")
        for action, turns in found.items()]


def _draw(folder: Path) -> None:
    from fedhelp_core.data.phantom.fed_ixi import write_fed_ixi

    write_fed_ixi(folder / "data", seed=1, counts={"Guys": SUBJECTS}, spacing=2.0)


def _measure(action: str, folder: str, settings: dict[str, int]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.volumes", "--worker", action, folder, *(f"--{name}={value}" for name, value in settings.items())]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _work(action: str, folder: Path, settings: dict[str, int]) -> None:
    """The measured process: prints its seconds and its peak."""
    import os

    from fedhelp_core.algorithm.local_update import SiloData, SiloState, UpdateSettings, initial_weights, large_model_of, local_update
    from fedhelp_core.algorithm.randomness import fix_arithmetic
    from fedhelp_core.config.algorithm import AlgorithmConfig
    from fedhelp_core.config.silo import SiloConfig
    from fedhelp_core.config.task import TaskConfig
    from fedhelp_core.data.arrays import load_silo_arrays
    from fedhelp_core.objectives.open import objective_of

    fix_arithmetic(len(os.sched_getaffinity(0)))
    task = TaskConfig.model_validate({
        "name": "brain-segmentation", "image_size": settings["side"],
        "volume": {"spacing": FIELD / settings["side"], "patch_size": settings["patch"], "window_size": settings["window"],
                   "windows": settings["windows"]}})
    algorithm = AlgorithmConfig(
        method="fedhelp-no-api", proxy_model="unet3d", large_model="unet3d-large", batch_size=settings["batch"], rank_top_k=1, rank_weight=0.0)
    silo = SiloConfig.model_validate({"name": "guys", "state": folder / "state", "data": {
        "layout": "fed-ixi", "root": folder / "data" / "subjects", "split_csv": folder / "data" / "metadata_tiny.csv", "hospital": "Guys"}})
    update = UpdateSettings(algorithm=algorithm, objective=objective_of(task), seed=1, silo="guys", kind="large" if action == "large" else "small")
    objective_of(task)  # imports MONAI
    idle, started = peak_mib(), time.perf_counter()
    arrays = load_silo_arrays(silo, task)
    what = f"{len(arrays.training.labels_N)} training and {len(arrays.test.labels_N)} test volumes"
    if action in ("small", "large"):
        data = SiloData(images_NCHW=arrays.training.images_NCHW, labels_N=arrays.training.labels_N)
        found = local_update(initial_weights(algorithm, objective_of(task), seed=1), SiloState.empty(), data, update, round_number=1)
        what = f"{found.steps} steps"
    elif action == "evaluate":
        scored = objective_of(task).scored(
            large_model_of(SiloState.empty(), update), arrays.test.images_NCHW, arrays.test.labels_N, update.device)
        what = f"{len(arrays.test.labels_N)} volumes, scores {', '.join(scored.scores)}"
    print(json.dumps({"seconds": time.perf_counter() - started, "mib": peak_mib(), "idle_mib": idle, "what": what}))


def main() -> None:
    """Measure, or be the measured process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_options(parser, repeat=1)
    for name, default, meaning in (
        ("side", 128, "voxels along a side of the cube"), ("patch", 64, "voxels along a side of what is trained on"),
        ("window", 64, "voxels along a side of the sliding window"), ("windows", 4, "windows answered at a time"), ("batch", 4, "patches a step"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{meaning} (default {default})")
    parser.add_argument("--worker", nargs=2, metavar=("ACTION", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in ("side", "patch", "window", "windows", "batch")}
    if arguments.worker:
        _work(arguments.worker[0], Path(arguments.worker[1]), settings)
        return
    found = figures(arguments.repeat, settings)
    show(found)
    if arguments.json is not None:
        write(found, arguments.json)


if __name__ == "__main__":
    main()
