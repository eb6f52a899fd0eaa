"""What a threshold fitted on validation images brings: of findings balanced accuracy on test images, of masks and regions Dice.

    python -m benchmarks.thresholds FOLDER [--tasks chest-findings,lung-segmentation,brain-tumours] [--rounds 20] [--seed 1] [--normalisation silo]

Each task's demo is drawn into FOLDER and trained by FedAvg once. Findings are decided at a half, at `prior-corrected` and at `validation`; masks at
a half, and at the threshold of 0.1 to 0.9 with the best Dice on the hospital's own validation images. Scores are the shared model's on test images,
which have no say in a threshold.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedhelp_core.algorithm.inference import evaluated_models
from fedhelp_core.algorithm.local_update import CPU, UpdateSettings, proxy_with
from fedhelp_core.algorithm.objective import Objective
from fedhelp_core.algorithm.simulate import SimulatedSilo, SimulationResult, evaluation_data, simulate
from fedhelp_core.config.federation import EvaluationConfig, Federation, OperatingRule, load_federation
from fedhelp_core.demo.prepare import prepare_demo
from fedhelp_core.objectives.metrics import mean_of_defined
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.study.study import load_simulated_silos

TASKS = ("chest-findings", "lung-segmentation", "brain-tumours")
GRID = tuple(step / 20 for step in range(2, 19))


def of_findings(federation: Federation, objective: Objective, silos: Mapping[str, SimulatedSilo], trained: SimulationResult) -> None:
    """A row a hospital, a column a rule."""
    data = evaluation_data(federation, objective, silos)
    rules = get_args(OperatingRule)
    print(f"{'hospital':16} {'validation':>10} " + " ".join(f"{rule:>16}" for rule in rules))
    for name, silo in silos.items():
        settings, found = _settings(federation, objective, name), []
        for rule in rules:
            models = evaluated_models(trained.weights, trained.states[name], settings, EvaluationConfig(operating_point=rule), data[name])
            found.append(models["proxy"].scored.scores["balanced_accuracy"])
        print(f"{name:16} {len(silo.validation_labels_N):10} " + " ".join(f"{score:16.3f}" for score in found))


def of_masks(federation: Federation, objective: Objective, silos: Mapping[str, SimulatedSilo], trained: SimulationResult) -> None:
    """A row a hospital: Dice at a half, at the fitted threshold, and that threshold."""
    print(f"{'hospital':16} {'validation':>10} {'half':>8} {'fitted':>8} {'threshold':>9}")
    for name, silo in silos.items():
        model = proxy_with(trained.weights, trained.states[name], _settings(federation, objective, name))
        (at_validation, at_test) = (
            [_dice(objective.probabilities(model, images, CPU), labels, threshold) for threshold in GRID]
            for images, labels in ((silo.validation_images_NCHW, silo.validation_labels_N), (silo.test_images_NCHW, silo.test_labels_N)))
        best = int(np.nanargmax(at_validation))
        print(f"{name:16} {len(silo.validation_labels_N):10} {at_test[GRID.index(0.5)]:8.3f} {at_test[best]:8.3f} {GRID[best]:9.2f}")


def _dice(probabilities_NK: Tensor, targets_NK: Tensor, threshold: float) -> float:
    """Mean over images and foregrounds; 1 where nothing is and nothing is found."""
    said_NK: NDArray[np.bool_] = probabilities_NK.numpy() > threshold
    true_NK: NDArray[np.bool_] = targets_NK.numpy() == 1
    over = tuple(range(2, said_NK.ndim))
    both_NK, sizes_NK = (said_NK & true_NK).sum(axis=over), said_NK.sum(axis=over) + true_NK.sum(axis=over)
    return mean_of_defined(np.where(sizes_NK > 0, 2 * both_NK / np.maximum(sizes_NK, 1), 1.0).ravel().tolist())


def _settings(federation: Federation, objective: Objective, silo: str) -> UpdateSettings:
    return UpdateSettings(
        algorithm=federation.algorithm, objective=objective.labelling(federation.labelled_by(silo)), seed=federation.runtime.seed, silo=silo,
        kind="small")


def main() -> None:
    """A table a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--normalisation", default="shared", choices=("shared", "silo"))
    arguments = parser.parse_args()
    for task in arguments.tasks.split(","):
        demo = prepare_demo(arguments.folder / task, task=task)
        changes = {"algorithm.method": "fedavg", "algorithm.rounds": arguments.rounds, "runtime.seed": arguments.seed,
                   "algorithm.normalisation": arguments.normalisation}
        federation = load_federation(demo.federation, before=changes)
        objective, silos = objective_of(federation.task), load_simulated_silos(federation)
        trained = simulate(federation, objective, silos)
        print(f"\n{task}, FedAvg, {arguments.rounds} rounds, seed {arguments.seed}, normalisation {arguments.normalisation}")
        (of_masks if federation.task.per_pixel else of_findings)(federation, objective, silos, trained)


if __name__ == "__main__":
    main()
