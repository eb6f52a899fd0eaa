"""FedAvgM, FedAdam and FedYogi of the hub beside Flower's, on the same silos' updates, round after round: do they agree?

    python -m benchmarks.flower_optimizers FEDERATION [--rounds 10] [--set FIELD=VALUE ...] [--out FILE]

FEDERATION names the silos' data and the network. Its rounds are simulated once for each optimizer, and every update is kept. Flower's
strategies then get the same updates, in an environment of their own (benchmarks/peers), so that nothing but the hub's arithmetic differs.
Flower's FedAdam and FedYogi start otherwise than their paper, so they run a second time with the paper's start.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.flower_agreement import TIMEOUT_S, compare_and_print, parser_of
from benchmarks.peers.__main__ import FLOWER, run_to_its_end
from fedhelp_core.algorithm.averaging import rule_of
from fedhelp_core.algorithm.local_update import SiloState, UpdateSettings, Weights, initial_weights, local_update
from fedhelp_core.algorithm.server import Answers, Part, is_learnt, next_round
from fedhelp_core.algorithm.simulate import SimulatedSilo
from fedhelp_core.config.federation import Federation
from fedhelp_core.objectives.open import objective_of

KINDS = {"momentum": "FedAvgM", "adam": "FedAdam", "yogi": "FedYogi"}


@dataclass(frozen=True)
class Compared:
    """One optimizer: both hubs after the last round."""

    kind: str
    moved: float
    """Root mean square of what the rounds changed of a weight."""
    as_it_is: float
    """Largest difference of a weight from Flower's."""
    as_published: float
    """The same with the paper's start."""
    negative_variances: int
    """Of batch norms, in Flower's model."""


def recorded(federation: Federation, silos: dict[str, SimulatedSilo]) -> tuple[Weights, list[list[Weights]], Weights]:
    """First weights, every round's updates in the silos' order, and the last weights."""
    algorithm, objective = federation.algorithm, objective_of(federation.task)
    samples = {name: len(silos[name].training.labels_N) for name in federation.silo_names}
    answers = Answers.of(federation.silo_names, samples, {name: federation.steps(n) for name, n in samples.items()}, algorithm.weighting)
    weights = start = initial_weights(algorithm, objective, seed=federation.runtime.seed)
    states, remembered, rounds = {name: SiloState.empty() for name in samples}, dict[Part, Weights](), []
    for number in range(1, algorithm.rounds + 1):
        updates = []
        for name in samples:
            settings = UpdateSettings(algorithm=algorithm, objective=objective, seed=federation.runtime.seed, silo=name, kind="small")
            result = local_update(weights, states[name], silos[name].training, settings, round_number=number)
            states[name] = result.state
            updates.append(result.weights)
        rounds.append(updates)
        weights, remembered = next_round(rule_of(algorithm), answers, weights, remembered, updates)
    return start, rounds, weights


def flowers(federation: Federation, samples: list[int], start: Weights, rounds: list[list[Weights]], python: Path, *, as_published: bool) -> Weights:
    """The last weights of Flower's strategy."""
    chosen = federation.algorithm.server_optimizer
    settings = {"server_learning_rate": chosen.step_size, "server_momentum": chosen.beta1} if chosen.kind == "momentum" else {
        "eta": chosen.step_size, "beta_1": chosen.beta1, "beta_2": chosen.beta2, "tau": chosen.tau}
    with tempfile.TemporaryDirectory(prefix="fedhelp-flower-") as name:
        folder = Path(name)
        np.savez(folder / "start.npz", **start)  # type: ignore[arg-type]
        for number, updates in enumerate(rounds, start=1):
            for silo, update in enumerate(updates):
                np.savez(folder / f"update-{number}-{silo}.npz", **update)  # type: ignore[arg-type]
        (folder / "job.json").write_text(json.dumps({
            "kind": chosen.kind, "as_published": as_published, "settings": settings, "samples": samples, "rounds": len(rounds)}), encoding="utf-8")
        app = Path(__file__).parent / "peers" / "flower_optimizers" / "app.py"
        run_to_its_end(
            [str(python.absolute()), str(app), name], cwd=folder, folder=folder, timeout=TIMEOUT_S)
        with np.load(folder / f"round-{len(rounds)}.npz") as found:
            return {name: np.array(found[name]) for name in found.files}


def compare(federation: Federation, silos: dict[str, SimulatedSilo], python: Path) -> Compared:
    """Both hubs on the same updates."""
    start, rounds, ours = recorded(federation, silos)
    samples = [len(silos[name].training.labels_N) for name in federation.silo_names]
    found = {published: flowers(federation, samples, start, rounds, python, as_published=published) for published in (False, True)}
    learnt = [name for name, array in ours.items() if is_learnt(name, array.dtype)]

    def largest(theirs: Weights) -> float:
        return max(float(np.abs(ours[name] - theirs[name]).max()) for name in learnt)

    moved = np.concatenate([(ours[name] - start[name]).ravel() for name in learnt])
    return Compared(
        kind=federation.algorithm.server_optimizer.kind, moved=float(np.sqrt(np.mean(moved**2))), as_it_is=largest(found[False]),
        as_published=largest(found[True]),
        negative_variances=sum(int((array < 0).sum()) for name, array in found[False].items() if name.endswith("running_var")))


def page(found: list[Compared], federation: Federation, silos: dict[str, SimulatedSilo], command: str) -> str:
    """The result as Markdown."""
    algorithm = federation.algorithm
    images = ", ".join(str(len(silo.training.labels_N)) for silo in silos.values())
    variances = sum(array.size for name, array in initial_weights(algorithm, objective_of(federation.task), seed=1).items() if "running_var" in name)
    lines = [
        "# The hub's optimizers beside Flower's", "",
        f"{len(silos)} hospitals with {images} training images, {federation.task.name}, {federation.task.image_size} pixels, {algorithm.proxy_model},"
        f" {algorithm.rounds} rounds.",
        f"Flower ({FLOWER.requirements[0]}) gets the very updates of FedHelp's silos. So nothing but the hubs' arithmetic differs.",
        "Momentum has β1 = 0.9 and a rate of 1; FedAdam and FedYogi have β1 = 0.9, β2 = 0.99, τ = 0.001 and a rate of 0.01.", "",
        "```console", command, "```", "",
        "| optimizer | a weight moved by (root mean square) | largest difference of a weight | with the paper's start |"
        f" negative variances in Flower's model, of {variances} |",
        "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {KINDS[one.kind]} | {one.moved:.1e} | {one.as_it_is:.1e} | {one.as_published:.1e} | {one.negative_variances} |" for one in found]
    lines += [
        "", "Flower's FedAdam and FedYogi begin with squares of 0, the paper (Reddi et al. 2021, algorithm 2) with τ² or more.",
        "Flower's FedAdam also corrects its steps for that start, as Adam does. FedHelp does neither.",
        "With the paper's start the two agree: what is left is Flower's sums in float32.",
        "Flower's optimizers also move the running statistics of batch norms. So one of its variances may become negative.",
        "FedHelp averages these ([algorithm.md](../algorithm.md#the-hubs-own-optimizer))."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compare, print, write."""
    program = "benchmarks.flower_optimizers"
    arguments = parser_of(program, __doc__).parse_args()
    compare_and_print(program, arguments, [{"algorithm.server_optimizer.kind": kind} for kind in KINDS], compare, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
