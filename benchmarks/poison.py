"""What one hospital of six that poisons costs the others: their mean score after ten rounds, beside the honest run's.

    python -m benchmarks.poison --demo DEMO [--out FOLDER] [--rounds 10] [--seeds 1,2] [--only CASE/AGGREGATION] [--set FIELD=VALUE]

DEMO is a folder made by `fedhelp run --demo DEMO` or `fedhelp data phantom melanoma DEMO`. Every update goes through a store and
the hub's own closing of rounds, with the defaults of federation.yaml. The poisoner knows everything: the others' updates of
the same round and the bounds; the cases called `within` go as far as the bounds let them. A case is done when its file is in
FOLDER; a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from fedhelp_core.algorithm.averaging import rule_of
from fedhelp_core.algorithm.local_update import SiloState, UpdateSettings, initial_weights, local_update, proxy_with
from fedhelp_core.algorithm.randomness import fix_arithmetic
from fedhelp_core.algorithm.simulate import SimulatedSilo
from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.disk import atomic_write
from fedhelp_core.errors import FedHelpError
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.closing import close_round
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms
from fedhelp_core.store.local import LocalStore
from fedhelp_core.study.study import load_simulated_silos
from fedhelp_core.weights.comparison import directions, distances
from fedhelp_core.weights.header import Weights, is_statistic

POISONER = 2  # of the demo's silos: neither the largest nor the smallest
TOLERANCE = 0.02
_BELOW = 0.9  # of a bound, for those who stay within: their own update moves the medians a little
_LARGEST_MODEL = 2**28

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Scene:
    """What the poisoner sees of a round: the global model, everybody's updates, its own honest one among them, and the bounds."""

    start: Weights
    everybody: Mapping[str, Weights]
    poisoner: str
    batches: Mapping[str, int]
    terms: Terms

    @property
    def own(self) -> Weights:
        """What it would send if it were honest."""
        return self.everybody[self.poisoner]

    def limit(self, names: Sequence[str]) -> float:
        """The norm with which the poisoner may move these trained tensors together."""
        lengths = {silo: _length([update[name] - self.start[name] for name in names]) for silo, update in self.everybody.items()}
        return self._within(lengths, self.terms.max_norm_ratio)

    def limit_of_statistics(self) -> float:
        """How far its statistics may lie from the round's median, in their own units."""
        found = distances(self.start, lambda name: np.stack([update[name] for update in self.everybody.values()]).astype(float))
        lengths = np.linalg.norm(np.stack(list(found.values())), axis=0)
        return self._within(dict(zip(self.everybody, lengths, strict=True)), self.terms.max_statistics_ratio)

    def _within(self, lengths: Mapping[str, float], bound: float | None) -> float:
        usual = statistics.median(length / math.sqrt(self.batches[silo]) for silo, length in lengths.items())
        return _BELOW * (bound or math.inf) * usual * math.sqrt(self.batches[self.poisoner])


Attack = Callable[[Scene], Weights]


def _scale(scene: Scene) -> Weights:
    return _moved(scene, {name: 100 * (scene.own[name] - scene.start[name]) for name in _trained(scene.start)})


def _sign(scene: Scene) -> Weights:
    return _moved(scene, {name: scene.start[name] - scene.own[name] for name in _trained(scene.start)})


def _against_within(scene: Scene) -> Weights:
    """Against what the others learn, as far and as squarely as the bounds let it; noise takes the rest of its length."""
    names, generator = _trained(scene.start), np.random.default_rng(0)
    against = {name: scene.start[name] - np.mean([update[name] for update in scene.everybody.values()], axis=0) for name in names}
    noise = {name: generator.standard_normal(step.shape) * _length([step]) / math.sqrt(step.size) for name, step in against.items()}
    limit, floor = scene.limit(names), scene.terms.min_direction
    for squarely in np.arange(1.0, -0.01, -0.05):
        steps = {
            name: limit * (squarely * against[name] / _length(list(against.values()))
                           + math.sqrt(1 - squarely**2) * noise[name] / _length(list(noise.values()))) for name in names}
        if floor is None or _direction(scene, steps) >= _BELOW * floor:
            break
    return _moved(scene, steps)


def _direction(scene: Scene, steps: Mapping[str, Array]) -> float:
    """What the hub will find, looking at every element."""
    silos = {silo: _flat({name: update[name] - scene.start[name] for name in steps}) for silo, update in scene.everybody.items()}
    everybody_KE = np.stack(list({**silos, scene.poisoner: _flat(steps)}.values()))
    return float(directions(everybody_KE)[list(silos).index(scene.poisoner)])


def _replacement(scene: Scene) -> Weights:
    """So that the average becomes a model of the poisoner's choice, if the others stay where they were."""
    generator = np.random.default_rng(0)
    return _moved(scene, {
        name: len(scene.everybody) * (generator.permutation(scene.start[name].reshape(-1)).reshape(scene.start[name].shape) - scene.start[name])
        for name in _trained(scene.start)})


def _channel_within(scene: Scene) -> Weights:
    """One class is what the model always says: all that its tensors may move goes into its channel of the head."""
    return _moved(scene, {name: _into_first(scene, name) for name in ("head.weight", "head.bias")})


def _into_first(scene: Scene, name: str) -> Array:
    step = np.zeros(scene.start[name].shape)
    step[0] = 2 * scene.limit([name]) / math.sqrt(step[0].size)
    return step


def _statistics(scene: Scene) -> Weights:
    return {**scene.own, **{
        name: (scene.own[name] * 1e4 if name.endswith("_var") else scene.own[name] + 1e3).astype(np.float32)
        for name in scene.own if is_statistic(name)}}


def _statistics_within(scene: Scene) -> Weights:
    """Variances as large and means as far away as the bounds let them be, all alike."""
    median = {name: np.median([update[name] for update in scene.everybody.values()], axis=0) for name in scene.own if is_statistic(name)}
    if not median:  # they stay in their silos
        return scene.own
    shift = scene.limit_of_statistics() / math.sqrt(sum(array.size for array in median.values()))
    return {**scene.own, **{
        name: np.float32(array * math.exp(shift) if name.endswith("_var") else array + shift * np.sqrt(median[name.replace("_mean", "_var")]))
        for name, array in median.items()}}


CASES: Mapping[str, Attack | None] = {
    "honest": None, "sign": _sign, "against-within": _against_within, "channel-within": _channel_within, "statistics-within": _statistics_within,
    "scale": _scale, "replacement": _replacement, "statistics": _statistics}
ALWAYS_REFUSED = ("scale", "replacement", "statistics")  # their aggregation makes no difference
AGGREGATIONS = ("mean", "median", "trimmed-mean")


def _trained(weights: Weights) -> list[str]:
    return [name for name, array in weights.items() if array.dtype.kind == "f" and not is_statistic(name)]


def _length(arrays: Sequence[Array]) -> float:
    return float(np.linalg.norm(np.concatenate([np.asarray(array, float).reshape(-1) for array in arrays])))


def _flat(arrays: Mapping[str, Array]) -> Array:
    return np.concatenate([np.asarray(array, float).reshape(-1) for array in arrays.values()])


def _moved(scene: Scene, steps: Mapping[str, Array]) -> Weights:
    return {**scene.own, **{name: (scene.start[name] + step).astype(scene.start[name].dtype) for name, step in steps.items()}}


def measure(federation: Federation, silos: Mapping[str, SimulatedSilo], attack: Attack | None) -> dict[str, object]:
    """Scores of the honest silos after the last round, and what the hub refused."""
    algorithm, protocol, objective = federation.algorithm, federation.protocol, objective_of(federation.task)
    fix_arithmetic(federation.runtime.threads)
    settings = {
        name: UpdateSettings(algorithm=algorithm, objective=objective, seed=federation.runtime.seed, silo=name, kind=silos[name].kind)
        for name in federation.silo_names}
    states = {name: SiloState.empty() for name in settings}
    poisoner = federation.silo_names[POISONER]
    samples = {name: len(silo.training.labels_N) for name, silo in silos.items()}
    terms = Terms(
        max_bytes=protocol.max_update_bytes, max_norm_ratio=protocol.max_norm_ratio, max_statistics_ratio=protocol.max_statistics_ratio,
        min_direction=protocol.min_direction, batch_size=algorithm.batch_size)
    batches = {name: math.ceil(count / algorithm.batch_size) for name, count in samples.items()}
    refused: dict[int, str] = {}
    blamed: dict[str, str] = {}
    ended = ""
    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as folder:
        run = Run(LocalStore(Path(folder), durable=False), "poison")
        commit = run.initialise(initial_weights(algorithm, objective, seed=federation.runtime.seed), str(algorithm.proxy_model))
        for number in range(1, algorithm.rounds + 1):
            start = run.global_weights(commit, max_bytes=_LARGEST_MODEL)
            try:
                results = {name: local_update(start, states[name], silos[name].training, settings[name], round_number=number) for name in settings}
            except FedHelpError as e:
                ended = str(e)
                break
            states = {name: result.state for name, result in results.items()}
            updates = {name: result.weights for name, result in results.items()}
            if attack is not None:
                updates[poisoner] = attack(Scene(start, dict(updates), poisoner, batches, terms))
            for name, weights in updates.items():
                run.submit_update(
                    name, number, weights, trained_from=commit.global_sha256, architecture=str(algorithm.proxy_model), samples=samples[name],
                    loss=None,
                    metrics={})
            commit = close_round(
                run, number, samples, min_silos=federation.quorum, deadline_s=60, terms=terms, weighting=algorithm.weighting,
                rule=rule_of(algorithm))
            if poisoner in commit.refused:
                refused[number] = commit.refused[poisoner]
            blamed |= {silo: reason for silo, reason in commit.refused.items() if silo != poisoner}
        final = run.global_weights(commit, max_bytes=_LARGEST_MODEL)
    honest = [name for name in settings if name != poisoner]
    scores = {
        name: objective.scored(
            proxy_with(final, states[name], settings[name]), silos[name].test_images_NCHW, silos[name].test_labels_N,
            settings[name].device).scores[objective.headline.name]
        for name in honest}
    return {
        "score": statistics.mean(scores.values()), "scores": scores, "refused": refused, "blamed": blamed, "ended": ended,
        "rounds": algorithm.rounds}


def table(out: Path, seeds: Sequence[int]) -> str:
    """What lies in `out`, as Markdown."""
    lines = ["| poisoner | aggregation | score, mean of seeds | beside honest | refused, rounds | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for case in CASES:
        for aggregation in AGGREGATIONS:
            found = [json.loads(path.read_text()) for seed in seeds if (path := _file(out, case, aggregation, seed)).exists()]
            honest = [json.loads(path.read_text()) for seed in seeds if (path := _file(out, "honest", aggregation, seed)).exists()]
            if not found or len(honest) != len(found):
                continue
            score, beside = (statistics.mean(one["score"] for one in group) for group in (found, honest))
            rounds, caught = sum(one["rounds"] for one in found), sum(len(one["refused"]) for one in found)
            good = score >= beside - TOLERANCE or caught == rounds
            verdict = "" if case == "honest" else "refused and named" if caught == rounds else "within 0.02" if good else "came through"
            lines.append(f"| {case} | {aggregation} | {score:.3f} | {score - beside:+.3f} | {caught} of {rounds} | {verdict} |")
    return "\n".join(lines)


def _file(out: Path, case: str, aggregation: str, seed: int) -> Path:
    return out / f"{case}-{aggregation}-{seed}.json"


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--demo", type=Path, required=True, help="folder of the demo's input")
    parser.add_argument("--out", type=Path, default=Path("poison"), help="where a file a case is kept (default poison)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--method", default="fedavg", help="without soft labels, unless the demo's store has them (default fedavg)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="replace a field of the file (repeatable)")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1])
    parser.add_argument("--only", default="", metavar="CASE/AGGREGATION", help="one case")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    fields = {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in arguments.set)}
    read = load_federation(arguments.demo / "federation.yaml")
    silos = load_simulated_silos(read)
    for seed in arguments.seeds:
        for aggregation in AGGREGATIONS:
            for case, attack in CASES.items():
                path = _file(arguments.out, case, aggregation, seed)
                skipped = (case in ALWAYS_REFUSED and aggregation != "mean") or arguments.only not in ("", f"{case}/{aggregation}")
                if path.exists() or skipped:
                    continue
                federation = read.override(**{
                    "algorithm.method": arguments.method, "algorithm.rounds": arguments.rounds, "algorithm.aggregation": aggregation,
                    "runtime.seed": seed, "runtime.device": "cpu", **fields})
                found = measure(federation, silos, attack)
                with atomic_write(path) as scratch:
                    scratch.write_text(json.dumps(found), encoding="utf-8")
                print(f"{case}, {aggregation}, seed {seed}: {json.dumps(found)}", flush=True)
    print(table(arguments.out, arguments.seeds))


if __name__ == "__main__":
    main()
