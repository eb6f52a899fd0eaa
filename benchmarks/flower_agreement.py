"""FedAvg of `fedhelp simulate` beside Flower's, on the same arrays, first weights, order of batches and Adam: do they agree?

    python -m benchmarks.flower_agreement FEDERATION [--seeds 1,2,3] [--rounds 10] [--set FIELD=VALUE ...] [--out FILE]

FEDERATION names the silos' data and the network; the method, its weighting by images and no augmentation are set here. Flower runs in its own
environment (benchmarks/peers): its strategy averages, its simulation drives the rounds, and its clients train by a loop of their own. Both
global models are then scored by the same code on the same test images. One difference is expected: Flower sums float32, FedHelp float64. What
that rounding alone does to the scores after so many rounds is measured beside: FedHelp's own local updates, their mean taken in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml

from benchmarks.peers.__main__ import Peer, environment, run_to_its_end
from fedhelp_core.algorithm.local_update import SiloState, UpdateSettings, Weights, initial_weights, local_update, proxy_with
from fedhelp_core.algorithm.randomness import derive_seed, fix_arithmetic
from fedhelp_core.algorithm.simulate import SimulatedSilo, simulate
from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.study.study import load_simulated_silos

FEDAVG = {
    "algorithm.method": "fedavg", "algorithm.weighting": "samples", "algorithm.augmentation": "none", "algorithm.normalisation": "shared",
    "algorithm.aggregation": "mean", "runtime.threads": 1, "runtime.device": "cpu"}
FLOWER = Peer(
    "flwr-torch", ("flwr[simulation]==1.41.0", f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"), "flower_fedavg",
    "app.py", "")
_Found = TypeVar("_Found")
TIMEOUT_S = 1800  # of one seed: two minutes where the machine is idle
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Compared:
    """One seed: both ends."""

    seed: int
    ours: dict[str, float]
    """Score's name -> mean over the silos' test sets."""
    flowers: dict[str, float]
    rounded: dict[str, float]
    """Of FedHelp's local updates with a mean in float32."""
    after_first: float
    """Largest difference of any weight between FedHelp and Flower after round 1."""
    moved: float
    """Root mean square of what round 1 changed of a weight: what that difference is small beside."""


def compare(federation: Federation, silos: dict[str, SimulatedSilo], python: Path) -> Compared:
    """FedAvg twice, with the federation's seed."""
    objective = objective_of(federation.task)
    start = initial_weights(federation.algorithm, objective, seed=federation.runtime.seed)
    theirs = flowers_rounds(federation, silos, start, python)
    first = simulate(federation.override(**{"algorithm.rounds": 1}), objective, silos).weights
    last = simulate(federation, objective, silos).weights
    return Compared(
        seed=federation.runtime.seed, ours=scores(last, federation, silos), flowers=scores(theirs[-1], federation, silos),
        rounded=scores(with_rounded_means(federation, silos, start), federation, silos), after_first=_largest(first, theirs[0]),
        moved=_root_mean_square(start, first))


def with_rounded_means(federation: Federation, silos: dict[str, SimulatedSilo], start: Weights) -> Weights:
    """The last global weights of `simulate`, but for means that are summed in float32."""
    objective = objective_of(federation.task)
    samples = [len(silos[name].training.labels_N) for name in federation.silo_names]
    states, weights = {name: SiloState.empty() for name in silos}, start
    for number in range(1, federation.algorithm.rounds + 1):
        updates = []
        for name in federation.silo_names:
            settings = UpdateSettings(
                algorithm=federation.algorithm, objective=objective, seed=federation.runtime.seed, silo=name, kind=silos[name].kind)
            result = local_update(weights, states[name], silos[name].training, settings, round_number=number)
            states[name] = result.state
            updates.append(result.weights)
        weights = {name: sum(np.float32(n / sum(samples)) * update[name].astype(np.float32) for n, update in zip(samples, updates, strict=True))
                   .astype(array.dtype) for name, array in start.items()}  # type: ignore[union-attr]
    return weights


def flowers_rounds(federation: Federation, silos: dict[str, SimulatedSilo], start: Weights, python: Path) -> list[Weights]:
    """The global weights after every round of Flower's FedAvg."""
    algorithm, runtime = federation.algorithm, federation.runtime
    with tempfile.TemporaryDirectory(prefix="fedhelp-flower-") as name:
        folder = Path(name)
        for number, silo in enumerate(federation.silo_names):
            training = silos[silo].training
            np.savez(folder / f"silo-{number}.npz", images=training.images_NCHW.numpy(), labels=training.labels_N.numpy())
        np.savez(folder / "start.npz", **start)  # type: ignore[arg-type]
        (folder / "job.json").write_text(json.dumps({
            "silos": len(silos), "model": str(algorithm.proxy_model), "classes": len(federation.task.classes), "threads": runtime.threads,
            "batch_size": algorithm.batch_size, "local_epochs": algorithm.local_epochs,
            "learning_rate": algorithm.optimizer.learning_rate, "weight_decay": algorithm.optimizer.weight_decay,
            "orders": [[derive_seed(runtime.seed, silo, round_number, "private") for silo in federation.silo_names]
                       for round_number in range(1, algorithm.rounds + 1)]}), encoding="utf-8")
        run_to_its_end(
            [str(python.absolute()), str(Path(__file__).parent / "peers" / FLOWER.job / FLOWER.script), name], cwd=folder, folder=folder,
            timeout=TIMEOUT_S, PYTHONPATH=str(ROOT), RAY_worker_niceness="0")  # its 15 is never run on a busy machine
        return [_read(folder / f"round-{number}.npz", start) for number in range(1, algorithm.rounds + 1)]


def scores(weights: Weights, federation: Federation, silos: dict[str, SimulatedSilo]) -> dict[str, float]:
    """Mean over the silos of each score of the global model on their test images."""
    objective = objective_of(federation.task)
    found: list[dict[str, float]] = []
    for name, silo in silos.items():
        settings = UpdateSettings(algorithm=federation.algorithm, objective=objective, seed=0, silo=name, kind="small")
        model = proxy_with(weights, SiloState.empty(), settings)
        found.append(dict(objective.scored(model, silo.test_images_NCHW, silo.test_labels_N, settings.device).scores))
    return {score: float(np.mean([one[score] for one in found])) for score in found[0]}


def page(found: list[Compared], federation: Federation, silos: dict[str, SimulatedSilo], command: str) -> str:
    """The result as Markdown."""
    algorithm = federation.algorithm
    names = list(found[0].ours)
    images = ", ".join(str(len(silo.training.labels_N)) for silo in silos.values())
    lines = [
        "# FedAvg beside Flower's", "",
        f"{len(silos)} hospitals with {images} training images, {federation.task.name}, {federation.task.image_size} pixels, {algorithm.proxy_model},"
        f" {algorithm.rounds} rounds.",
        f"Flower ({FLOWER.requirements[0]}) has a training loop of its own, the same arrays, first weights, order of batches and Adam.",
        "Both weight hospitals by their images. The scores are means over the hospitals' test images, by the same code.",
        "The third score is FedHelp's with means in float32, as Flower's are: the difference that rounding alone makes.", "",
        "```console", command, "```", "",
        "| seed | " + " | ".join(f"{name.replace('_', ' ')}: FedHelp | Flower | FedHelp, float32" for name in names)
        + " | a weight after round 1: largest difference | moved by |",
        "| --- |" + " ---: |" * (3 * len(names) + 2)]
    lines += [
        f"| {one.seed} | " + " | ".join(f"{one.ours[name]:.4f} | {one.flowers[name]:.4f} | {one.rounded[name]:.4f}" for name in names)
        + f" | {one.after_first:.1e} | {one.moved:.1e} |" for one in found]
    lines += ["", "Largest differences from FedHelp over the seeds:", ""]
    lines += [f"- {name.replace('_', ' ')}: Flower {_farthest(found, 'flowers', name):.4f}, rounding alone {_farthest(found, 'rounded', name):.4f}"
              for name in names]
    return "\n".join(lines) + "\n"


def _farthest(found: list[Compared], other: str, score: str) -> float:
    return max(abs(one.ours[score] - getattr(one, other)[score]) for one in found)


def _read(path: Path, like: Weights) -> Weights:
    with np.load(path) as found:
        return {name: found[name].astype(array.dtype) for name, array in like.items()}


def _largest(one: Weights, other: Weights) -> float:
    """Of floating tensors: counters of batches take the maximum here, the mean in Flower, and no network looks at them."""
    return max(float(np.abs(one[name] - other[name]).max()) for name in one if one[name].dtype.kind == "f")  # type: ignore[operator]


def _root_mean_square(one: Weights, other: Weights) -> float:
    moved = [(one[name] - other[name]).ravel() for name in one if one[name].dtype.kind == "f" and "running" not in name]  # type: ignore[operator]
    return float(np.sqrt(np.mean(np.concatenate(moved) ** 2)))


def parser_of(program: str, text: str | None) -> argparse.ArgumentParser:
    """What both comparisons with Flower are asked; `text`: the module's docstring."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=(text or "").split("\n\n")[0])
    parser.add_argument("federation", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="changes")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page there too")
    return parser


def compare_and_print(
    program: str, arguments: argparse.Namespace, variants: Iterable[dict[str, Any]],
    compare: Callable[[Federation, dict[str, SimulatedSilo], Path], _Found],
    page: Callable[[list[_Found], Federation, dict[str, SimulatedSilo], str], str],
) -> None:
    """`compare` the federation with each of `variants`, fields that change; print the page of all, and write it where that is asked."""
    changes: dict[str, Any] = {key: yaml.safe_load(value) for key, _, value in (change.partition("=") for change in arguments.changes)}
    federation = load_federation(arguments.federation).override(**{**changes, **FEDAVG, "algorithm.rounds": arguments.rounds})
    fix_arithmetic(federation.runtime.threads)
    silos = load_simulated_silos(federation)
    python = environment(FLOWER)
    found = []
    for variant in variants:
        found.append(compare(federation.override(**variant), silos, python))
        print(found[-1], file=sys.stderr, flush=True)
    text = page(found, federation, silos, f"python -m {program} {' '.join(sys.argv[1:])}")
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


def main() -> int:
    """Compare, print, write."""
    program = "benchmarks.flower_agreement"
    parser = parser_of(program, __doc__)
    parser.add_argument("--seeds", default="1,2,3")
    arguments = parser.parse_args()
    compare_and_print(program, arguments, [{"runtime.seed": int(seed)} for seed in arguments.seeds.split(",")], compare, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
