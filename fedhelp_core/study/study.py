"""A study: methods x normalisations x seeds, every combination one `simulate`, each computed once and kept.

`fedhelp simulate` calls `run_study`. A finished cell is one JSON file under `out/cells`, named by what its numbers depend on
(settings, data, soft labels), so an interrupted study goes on where it was and a wider one computes only what is new. Beside it lies what
the models said of each image (cell_results.py).
Tables come from table.py, figures from figures.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from fedhelp_core.algorithm.batches import Rows
from fedhelp_core.algorithm.local_update import SiloData
from fedhelp_core.algorithm.randomness import fix_arithmetic
from fedhelp_core.algorithm.simulate import GUEST, RoundFacts, SimulatedSilo, SimulationResult, simulate
from fedhelp_core.config.federation import Federation
from fedhelp_core.config.silo import load_silo
from fedhelp_core.data.arrays import load_silo_arrays
from fedhelp_core.disk import atomic_write
from fedhelp_core.errors import ConfigError, RetryableError
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.processes import die_with_parent
from fedhelp_core.protocol.kinds import resolve_kinds
from fedhelp_core.protocol.pretrained import read_pretrained
from fedhelp_core.registry.metrics import Metric
from fedhelp_core.silo.work import content_digest, device_for
from fedhelp_core.softlabels.distillation_set import load_distillation_set
from fedhelp_core.store.open import open_store
from fedhelp_core.study.cell_results import results_beside, write_results
from fedhelp_core.study.compared import compared
from fedhelp_core.study.timing import StudyTime, cost_of, left_after, seconds_a_round, timed_round
from fedhelp_core.weights.file import fingerprint

if TYPE_CHECKING:
    from rich.console import Console

Silos = Mapping[str, SimulatedSilo]
LoadSilos = Callable[[], Silos]
OnRound = Callable[[int], None]

_FORMAT = 4  # of a cell's file; raised when the meaning of its numbers changes


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """One simulation of the study."""

    method: str
    """A row, as compared.py has it."""
    normalisation: str
    seed: int

    def computed_as(self) -> Cell:
        """The cell whose numbers this one has: `local` averages nothing, so where batch norms live makes no difference to it."""
        row = compared(self.method)
        return Cell(method=row.computed_as, normalisation=self.normalisation if row.parts.averaged else "silo", seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What one simulation found, as it lies on disk."""

    cell: Cell
    kinds: dict[str, str]
    """silo -> 'large' | 'small' | 'guest'."""
    training_samples: dict[str, int]
    scores: dict[int, dict[str, dict[str, dict[str, float]]]]
    """evaluated round -> silo -> model (the deployed one first) -> metric's name -> value; NaN where undefined."""
    proxy_bytes: int
    """Bytes of weights that all silos together send per round; 0 for `local`."""
    processor_seconds: float
    """Of the whole simulation, all threads."""
    losses: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    """round -> silo -> loss's name -> mean over its last local epoch."""
    images: Path | None = None
    """Where `cell_results.read_results` finds what the models said of each image."""

    @property
    def final_round(self) -> int:
        """The last evaluated round: the last of the run."""
        return max(self.scores)

    def score(self, metric: Metric, silo: str, *, at: int | None = None) -> float:
        """The silo's score with the model that it deploys, after round `at` (default: the last)."""
        models = self.scores[self.final_round if at is None else at][silo]
        return next(iter(models.values()))[metric.name]

    def mean(self, metric: Metric, kind: str | None = None, *, at: int | None = None) -> float:
        """Mean over the silos of `kind` (None: all but guests) that have a score; NaN without any."""
        silos = [silo for silo, its_kind in self.kinds.items() if its_kind == kind or (kind is None and its_kind != GUEST)]
        values = [self.score(metric, silo, at=at) for silo in silos]
        finite = [v for v in values if math.isfinite(v)]
        return sum(finite) / len(finite) if finite else math.nan

    def worst(self, metric: Metric) -> float:
        """The worst score of any silo but guests after the last round; NaN without any."""
        return metric.worst(self.score(metric, silo) for silo, kind in self.kinds.items() if kind != GUEST)


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """All cells of a study, by what was asked for."""

    methods: tuple[str, ...]
    normalisations: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    """The task's scores, the one that the tables and figures are of first."""
    cells: Mapping[Cell, CellResult]
    """Keyed by `Cell.computed_as()`."""
    test_sha256: Mapping[str, str] = field(default_factory=dict)
    """Of each silo's test images and labels, guests apart: what the report of a run is held against."""

    @property
    def headline(self) -> Metric:
        """The score that the tables and figures are of."""
        return self.metrics[0]

    def cell(self, method: str, normalisation: str, seed: int) -> CellResult:
        """The numbers of this combination, computed under its own name or as the same mathematics."""
        return self.cells[Cell(method=method, normalisation=normalisation, seed=seed).computed_as()]

    def row(self, method: str, normalisation: str) -> list[CellResult]:
        """One result a seed."""
        return [self.cell(method, normalisation, seed) for seed in self.seeds]


def planned_cells(methods: Sequence[str], seeds: Sequence[int], normalisations: Sequence[str]) -> list[Cell]:
    """The simulations that a study needs, each once, seed by seed, so that an interrupted study has whole seeds.

    Raises:
        ConfigError: an unknown method or normalisation, an empty list, or a value given twice.
    """
    problems = _unknown_rows(methods) + _unknown("normalisations", normalisations, ("shared", "silo"))
    problems += [f"{name}: at least one value expected" for name, values in (
        ("methods", methods), ("seeds", seeds), ("normalisations", normalisations)) if not values]
    problems += [f"seeds: {seed} is given twice" for seed in sorted({s for s in seeds if list(seeds).count(s) > 1})]
    if problems:
        raise ConfigError(problems)
    wanted = [Cell(method=m, normalisation=n, seed=s) for s in seeds for n in normalisations for m in methods]
    return list(dict.fromkeys(cell.computed_as() for cell in wanted))


def run_study(
    federation: Federation, *, methods: Sequence[str], seeds: Sequence[int], normalisations: Sequence[str] = ("silo",), out: Path,
    workers: int = 1, evaluate_every: int = 1, console: Console | None = None, distillation_sha256: str | None = None,
    load: LoadSilos | None = None,
) -> StudyResult:
    """Compute what is not yet under `out/cells`, and return the whole study.

    `workers` processes share the cells, each with `federation.runtime.threads` threads; 1 works in this process. `console`
    shows a progress bar with the time left. `load` gives the silos' data (called once a process, so it must be picklable);
    by default the `process` silos' own files and the distillation set `distillation_sha256`, asked from the teachers if None.

    Raises:
        ConfigError: an unknown method, or a federation whose silos' data is not on this machine.
        RetryableError: a worker was killed; what is finished is kept.
    """
    planned = planned_cells(methods, seeds, normalisations)
    if federation.start != "seed":
        raise ConfigError("start: a study draws every start from its own seed; take `start` out, or give --set start=seed")
    federations = {cell: federation_of(federation, cell) for cell in planned}
    if load is None:
        soft_labels = any(compared(cell.method).parts.soft_labels for cell in planned)
        sha256 = distillation_sha256 or (prefetched(federation) if soft_labels else None)
        load = partial(load_simulated_silos, federation, distillation_sha256=sha256)
    fix_arithmetic(federation.runtime.threads)  # volumes are resampled with PyTorch
    silos = load()
    data_digest = digest_of_data(silos)
    folder = out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {cell: folder / f"{_cell_digest(federations[cell], data_digest, evaluate_every)}.json" for cell in planned}
    todo = [cell for cell in planned if not paths[cell].exists()]
    work = _Work(load=load, federations=federations, paths=paths, evaluate_every=evaluate_every)
    if console is not None and (said := _time_of(work, planned, todo, silos, min(workers, max(1, len(todo)))).said(todo)):
        console.print(said, highlight=False)
    with _progress_bar(console, planned, todo, federation.algorithm.rounds) as advance:
        if workers == 1 or len(todo) <= 1:
            _run_here(work, todo, silos, advance)
        else:
            _run_in_pool(work, todo, min(workers, len(todo)), federation.runtime.threads, advance)
    cells = {cell: read_cell(path) for cell, path in paths.items()}
    return StudyResult(
        methods=tuple(methods), normalisations=tuple(normalisations), seeds=tuple(seeds), metrics=federation.task.scored_by, cells=cells,
        test_sha256={name: content_digest(silo.test_images_NCHW, silo.test_labels_N) for name, silo in silos.items() if silo.kind != GUEST})


def federation_of(federation: Federation, cell: Cell) -> Federation:
    """The federation that `cell` simulates."""
    return federation.override(**{
        **compared(cell.method).settings, "algorithm.normalisation": cell.normalisation, "runtime.seed": cell.seed})


def load_simulated_silos(
    federation: Federation, *, distillation_sha256: str | None = None, guests: Mapping[str, Path] | None = None,
) -> dict[str, SimulatedSilo]:
    """Every `process` silo's decoded images, and beside them the federation's distillation set, where one is named.

    `guests`: name -> silo.yaml of hospitals that train nothing.

    Raises:
        ConfigError: a silo is dispatched elsewhere, so its data is not on this machine.
        DataError: images, labels or splits cannot be used.
        NotFound: no such distillation set in the federation's store.
    """
    elsewhere = [silo.name for silo in federation.silos if silo.dispatch.silo_config is None]
    if elsewhere:
        raise ConfigError(
            f"silos {', '.join(elsewhere)}: a simulation needs every silo's data on this machine, so dispatch.silo_config is expected")
    configs = [load_silo(silo.dispatch.silo_config) for silo in federation.silos if silo.dispatch.silo_config is not None]
    arrays = {
        name: load_silo_arrays(config, federation.task, federation.labelled_by(name))
        for name, config in zip(federation.silo_names, configs, strict=True)}
    kinds = resolve_kinds(federation, {name: len(found.training.labels_N) for name, found in arrays.items()})
    for name, path in (guests or {}).items():
        arrays[name], kinds[name] = load_silo_arrays(load_silo(path), federation.task), GUEST
    public: dict[str, Rows] = {}
    if distillation_sha256:
        store = open_store(federation.store.url, endpoint_url=federation.store.endpoint_url)
        found_set = load_distillation_set(store, distillation_sha256)
        public = {"public_images_MCHW": found_set.images_NCHW, "public_probabilities_MP": found_set.probabilities_NC}
    return {
        name: SimulatedSilo(
            kind=kinds[name],
            training=SiloData(images_NCHW=found.training.images_NCHW, labels_N=found.training.labels_N, **public),
            test_images_NCHW=found.test.images_NCHW, test_labels_N=found.test.labels_N,
            validation_images_NCHW=found.validation.images_NCHW, validation_labels_N=found.validation.labels_N)
        for name, found in arrays.items()
    }


def prefetched(federation: Federation) -> str:
    """sha256 of the federation's distillation set: teachers are asked about what the store's ledger does not know yet."""
    from fedhelp_core.softlabels.prefetch import prefetch

    assert federation.public_set is not None  # the schema demands it of methods that learn from soft labels
    store = open_store(federation.store.url, endpoint_url=federation.store.endpoint_url)
    return prefetch(store, federation.public_set, federation.task).distillation_set_sha256


def digest_of_data(silos: Silos) -> str:
    """sha256 (hex) over all images, labels and soft labels: numbers from other data are never taken for these."""
    digest = hashlib.sha256()
    for name, silo in sorted(silos.items()):
        digest.update(f"{name}/{silo.kind}".encode())
        for tensor in (silo.training.images_NCHW, silo.training.labels_N, silo.test_images_NCHW, silo.test_labels_N,
                       silo.validation_images_NCHW, silo.validation_labels_N):
            digest.update(tensor.numpy().tobytes())
    # the public set is the same object for every silo: once is enough
    for silo in list(silos.values())[:1]:
        if silo.training.public_images_MCHW is not None and silo.training.public_probabilities_MP is not None:
            for rows in (silo.training.public_images_MCHW, silo.training.public_probabilities_MP):
                digest.update(rows[torch.arange(rows.shape[0])].numpy().tobytes())
    return digest.hexdigest()


def read_cell(path: Path) -> CellResult:
    """The cell at `path`, as `_write_cell` wrote it.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return CellResult(
            cell=Cell(**document["cell"]), kinds=document["kinds"], training_samples=document["training_samples"],
            scores={int(r): _with_nan(scores) for r, scores in document["scores"].items()},
            losses={int(r): losses for r, losses in document.get("losses", {}).items()},
            proxy_bytes=document["proxy_bytes"], processor_seconds=document["processor_seconds"], images=results_beside(path))
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{path}: is not a finished cell of a study ({e}); delete it, and it will be computed again") from e


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What a worker process must know."""

    load: LoadSilos
    federations: Mapping[Cell, Federation]
    paths: Mapping[Cell, Path]
    evaluate_every: int


def _compute(work: _Work, cell: Cell, silos: Silos, on_round: OnRound) -> None:
    """One simulation, written down when it is whole."""
    federation = work.federations[cell]
    fix_arithmetic(federation.runtime.threads)
    started = time.process_time()

    def after_round(facts: RoundFacts) -> None:
        on_round(facts.round)

    result = simulate(
        federation, objective_of(federation.task), silos, evaluate_every=work.evaluate_every, on_round=after_round,
        device=device_for(federation.runtime.device), pretrained=read_pretrained(federation, None))
    _write_cell(work.paths[cell], cell, silos, result, time.process_time() - started, str(federation.algorithm.proxy_model))


def _write_cell(path: Path, cell: Cell, silos: Silos, result: SimulationResult, seconds: float, proxy_model: str) -> None:
    """Atomic: a reader, or a study that was killed here, finds the whole file or none."""
    write_results(results_beside(path), result.evaluated)
    averaged = compared(cell.method).parts.averaged
    document = {
        "format": _FORMAT,
        "cell": {"method": cell.method, "normalisation": cell.normalisation, "seed": cell.seed},
        "kinds": {name: silo.kind for name, silo in silos.items()},
        "training_samples": {name: len(silo.training.labels_N) for name, silo in silos.items()},
        "scores": {str(facts.round): _without_nan(facts.scores) for facts in result.history if facts.scores},
        "losses": {str(facts.round): facts.losses for facts in result.history},
        "global_sha256": fingerprint(result.weights, proxy_model) if averaged else None,  # what a run of the pipeline ends with
        "proxy_bytes": sum(array.nbytes for array in result.weights.values()) * len(silos) if averaged else 0,
        "processor_seconds": round(seconds, 2),
    }
    with atomic_write(path, durable=True) as scratch:
        scratch.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")


def _cell_digest(federation: Federation, data_digest: str, evaluate_every: int) -> str:
    """Name of a cell: everything that its numbers depend on, and nothing (paths, store, tracking) that they do not."""
    document = federation.model_dump(mode="json", include={"task", "algorithm", "evaluation", "runtime"})
    if federation.task.dimensions == 2:
        del document["task"]["volume"]  # which only volumes depend on
    document |= {"silos": list(federation.silo_names), "data": data_digest, "evaluate_every": evaluate_every, "format": _FORMAT}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


def _time_of(work: _Work, planned: Sequence[Cell], todo: Sequence[Cell], silos: Silos, workers: int) -> StudyTime:
    """How long `todo` will take: by the cells that are there, else by one round of the first one to come."""
    runtime, rounds = work.federations[planned[0]].runtime, work.federations[planned[0]].algorithm.rounds

    def one_round() -> None:
        one = work.federations[todo[0]].override(**{"algorithm.rounds": 1})
        simulate(one, objective_of(one.task), silos, device=device_for(one.runtime.device))

    known = seconds_a_round(
        {cell: read_cell(work.paths[cell]).processor_seconds for cell in planned if cell not in todo}, rounds, runtime.threads)
    return StudyTime(rounds=rounds, workers=workers, round_seconds=known if known is not None else timed_round(todo, rounds, one_round))


def _run_here(work: _Work, todo: Iterable[Cell], silos: Silos, advance: _Advance) -> None:
    for cell in todo:
        _compute(work, cell, silos, partial(advance, cell))


# A worker process's own, filled once by `_start_worker`, so that data is loaded once and not sent with every cell.
_worker: list[tuple[_Work, Silos, Any]] = []


def _start_worker(work: _Work, threads: int, rounds_done: Any) -> None:
    die_with_parent()  # a killed study must not leave workers that compute on for nobody
    fix_arithmetic(threads)
    _worker.append((work, work.load(), rounds_done))


def _compute_in_worker(cell: Cell) -> None:
    work, silos, rounds_done = _worker[0]
    _compute(work, cell, silos, lambda number: rounds_done.put((cell, number)))


def _run_in_pool(work: _Work, todo: Sequence[Cell], workers: int, threads: int, advance: _Advance) -> None:
    # spawn: a forked child of a process that has used PyTorch's threads may hang
    context = multiprocessing.get_context("spawn")
    rounds_done = context.Queue()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(work, threads, rounds_done))
    try:
        _gather({pool.submit(_compute_in_worker, cell) for cell in todo}, rounds_done, advance)
    except BrokenProcessPool as e:
        raise RetryableError(
            "a worker process of the study was killed (out of memory?); finished cells are kept: the same command goes on, with fewer"
            " workers it needs less memory") from e
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        rounds_done.close()


def _gather(waiting: set[Future[None]], rounds_done: Any, advance: _Advance) -> None:
    """Wait for all, passing on every finished round; the first failure is raised at once."""
    while waiting:
        finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
        for cell, number in _drained(rounds_done):
            advance(cell, number)
        for future in finished:
            future.result()


def _drained(rounds_done: Any) -> Iterator[tuple[Cell, int]]:
    while True:
        try:
            yield rounds_done.get_nowait()
        except queue.Empty:
            return


class _Advance(Protocol):
    """Called after every round of a cell."""

    def __call__(self, cell: Cell, round_number: int, /) -> None: ...


@contextmanager
def _progress_bar(console: Console | None, planned: Sequence[Cell], todo: Sequence[Cell], rounds: int) -> Iterator[_Advance]:
    """A bar over the cost of all rounds still to do; `local` and `fedavg` count less than FedHelp. A line a cell without a terminal."""
    if console is None or not todo:
        yield lambda _cell, _number: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    # speed over ten minutes: cells differ, so a shorter window would make the estimate jump
    shown = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
             TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*shown, console=console, speed_estimate_period=600, disable=not console.is_terminal) as bar:
        kept = f", {len(planned) - len(todo)} known" if len(planned) > len(todo) else ""
        whole = sum(cost_of(cell) * rounds for cell in todo)
        task = bar.add_task(f"{len(todo)} simulations{kept}", total=whole)
        done, spent, lock, started = 0, 0.0, threading.Lock(), time.monotonic()

        def advance(cell: Cell, number: int, /) -> None:
            nonlocal done, spent
            with lock:
                done, spent = done + (number == rounds), spent + cost_of(cell)
                text = f"{done} of {len(todo)} simulations{kept} · {cell.method} seed {cell.seed}"
                bar.update(task, advance=cost_of(cell), description=text)
                if number == rounds and not console.is_terminal:
                    left = left_after(spent, whole, time.monotonic() - started) if done < len(todo) else ""
                    console.print(f"{text} normalisation {cell.normalisation}{left}", highlight=False)

        yield advance


def _unknown_rows(rows: Sequence[str]) -> list[str]:
    problems: list[str] = []
    for row in rows:
        try:
            compared(row)
        except ConfigError as e:
            problems += e.problems
    return problems


def _unknown(field: str, values: Sequence[str], known: Sequence[str]) -> list[str]:
    return [f"{field}: {value!r} is unknown; known: {', '.join(known)}" for value in values if value not in known]


def _without_nan(node: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(node, dict):
        return {key: _without_nan(value) for key, value in node.items()}
    return node if math.isfinite(node) else None


def _with_nan(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _with_nan(value) for key, value in node.items()}
    return math.nan if node is None else node
