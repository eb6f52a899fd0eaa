"""Training on a GPU: images a second beside the plain loop and beside separate forward passes, and scores beside float32's.

    python -m benchmarks.gpu [--repeat 3] [--device cuda] [--batch 64] [--only melanoma] [--epochs 10] [--seeds 3]

Speed: a large silo's epoch (Eq 3 to 6) in mixed precision, channels last: ours; the plain loop with the same bfloat16; the plain loop with
the two steps apart, four forward passes a batch; ours in float32. Scores: a pneumonia task is drawn, and FedAvg on one hospital is trained
with each seed in both precisions; the difference counts against the spread of float32's seeds. `--device cpu` runs the same, slowly.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.figures import Figure, add_options, show, spread, write
from benchmarks.local_update import CASES, SEED, SILO, TARGET, Case, Plain, silo_data, without_determinism
from fedhelp_core.algorithm.local_update import SiloData, SiloState, UpdateSettings, initial_weights, local_update, proxy_with
from fedhelp_core.algorithm.precision import Precision
from fedhelp_core.algorithm.randomness import fix_arithmetic
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.silo import SiloConfig
from fedhelp_core.config.task import TaskConfig

_EPOCHS_OF_IMAGES = 4  # the CPU's sets are small: a GPU gets as many times more


def speed(name: str, *, device: torch.device, batch: int, repeat: int) -> list[Figure]:
    """Time of ours against three others, turn by turn; images a second in the detail."""
    case = CASES[name]
    small = 4 if case.volumes else batch
    case = replace(case, images=case.images * _EPOCHS_OF_IMAGES if device.type == "cuda" else case.images, algorithm=case.algorithm.model_copy(
        update={"batch_size": min(small, case.images)}))
    data = silo_data(case)
    plain = Plain(case, data, device=device, precision="bfloat16")
    others = {
        "the plain loop": without_determinism(plain.large), "separate forward passes": without_determinism(plain.large_apart),
        "ours in float32": _ours(case, data, device, "float32")}
    mine = _ours(case, data, device, "bfloat16")
    for run in (mine, *others.values()):
        run()
    turns = [(_seconds(mine, device), {other: _seconds(run, device) for other, run in others.items()}) for _ in range(repeat)]
    visits = case.images * (case.task.volume.patches if case.volumes else 1)
    rate = visits / statistics.median(ours for ours, _ in turns)
    found = []
    for other in others:
        ratios = [ours / theirs[other] for ours, theirs in turns]
        their_rate = visits / statistics.median(theirs[other] for _, theirs in turns)
        found.append(Figure(
            name=f"{name}, large silo, bfloat16 on {device.type}: ours / {other}", value=statistics.median(ratios), unit="", target=TARGET,
            yardstick=f"{other} {their_rate:,.0f} images/s",
            detail=f"ours {rate:,.0f} images/s; batch {case.algorithm.batch_size}; {spread(ratios)}"))
    return found


def scores(*, device: torch.device, epochs: int, seeds: int) -> Figure:
    """How far mixed precision's scores lie from float32's, in standard deviations over float32's seeds."""
    from fedhelp_core.data.arrays import load_silo_arrays
    from fedhelp_core.data.phantom.chest_xray import write_chest_xray
    from fedhelp_core.objectives.open import objective_of

    task = TaskConfig(name="pneumonia", image_size=48)
    algorithm = AlgorithmConfig(method="fedavg", local_epochs=epochs, rank_top_k=1, augmentation="mirror", proxy_model="resnet8")
    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as folder:
        write_chest_xray(Path(folder) / "set", seed=1)
        silo = SiloConfig.model_validate({"name": SILO, "state": folder, "data": {
            "layout": "chest-xray", "root": f"{folder}/set", "share": {"number": 0, "sizes": [1]}}})
        arrays = load_silo_arrays(silo, task)
        data = SiloData(images_NCHW=arrays.training.images_NCHW, labels_N=arrays.training.labels_N)

        def score(seed: int, precision: Precision) -> float:
            settings = UpdateSettings(
                algorithm=algorithm, objective=objective_of(task), seed=seed, silo=SILO, kind="small", device=device, precision=precision)
            trained = local_update(initial_weights(algorithm, objective_of(task), seed=seed), SiloState.empty(), data, settings, round_number=1)
            model = proxy_with(trained.weights, trained.state, settings)
            return objective_of(task).scored(model, arrays.test.images_NCHW, arrays.test.labels_N, device).scores["balanced_accuracy"]

        full = [score(seed, "float32") for seed in range(seeds)]
        mixed = [score(seed, "bfloat16") for seed in range(seeds)]
    noise = statistics.stdev(full) if seeds > 1 else 0.0
    difference = abs(statistics.mean(mixed) - statistics.mean(full))
    return Figure(
        name="balanced accuracy, bfloat16 against float32: difference / spread over seeds", value=difference / max(noise, 1e-9), unit="", target=1.0,
        yardstick=f"float32 {statistics.mean(full):.3f} +-{noise:.3f}",
        detail=f"bfloat16 {statistics.mean(mixed):.3f}; {seeds} seeds, {epochs} epochs")


def _ours(case: Case, data: SiloData, device: torch.device, precision: Precision) -> Callable[[], object]:
    from fedhelp_core.objectives.open import objective_of

    settings = UpdateSettings(
        algorithm=case.algorithm, objective=objective_of(case.task), seed=SEED, silo=SILO, kind="large", device=device, precision=precision)
    weights = initial_weights(case.algorithm, objective_of(case.task), seed=SEED)
    return lambda: local_update(weights, SiloState.empty(), data, settings, round_number=1)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_options(parser, repeat=3)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images a step (volumes: at most 4; default 64)")
    parser.add_argument("--only", action="append", choices=list(CASES), metavar="TASK", help=f"this task alone: {', '.join(CASES)} (repeatable)")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="of the comparison of scores (default 10)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of the comparison of scores (default 3)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "benchmarks.gpu: PyTorch sees no GPU here; run it where there is one, or --device cpu to try the program\n")
    device = torch.device(arguments.device)
    fix_arithmetic(torch.get_num_threads())
    found = [figure for name in arguments.only or CASES for figure in speed(name, device=device, batch=arguments.batch, repeat=arguments.repeat)]
    found.append(scores(device=device, epochs=arguments.epochs, seeds=arguments.seeds))
    show(found)
    if arguments.json is not None:
        write(found, arguments.json)


if __name__ == "__main__":
    main()
