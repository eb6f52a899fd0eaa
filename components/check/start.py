"""What a run starts from: found, held against what the federation says of it, and settled for the run. Called by check.

Silos hold it against their own network before they take it (fedhelp_core/silo/work.py). No PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedhelp_core.config.federation import Federation, federation_in
from fedhelp_core.config.start import StartConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.disk import digest_of
from fedhelp_core.errors import ConfigError, NotFound
from fedhelp_core.protocol.documents import StoredWeights
from fedhelp_core.protocol.facts import StartedFrom
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.protocol.model_record import keep_weights, read_chain
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.base import Store
from fedhelp_core.tracking.registry import Registry
from fedhelp_core.weights.file import read_header


@dataclass(frozen=True)
class Found:
    """A model to start from."""

    weights: StoredWeights
    key: str
    """In the store; '' of a file."""
    version: str = ""
    run: str = ""
    """That trained it; '' where nobody knows."""


def settle_start(config: Federation, store: Store, run: Run) -> StartedFrom | None:
    """What this run starts from, once for all; None: from its seed. Its weights lie in the run's store under the registered model's name.

    `store`: where the federation's models are, which is the run's own but for one that is only tried.

    Raises:
        NotFound: there is no such champion, version or file.
        ConfigError: it is of another task or network, or its sha256 is another than the federation says.
        WeightsError: the file is damaged.
    """
    if not isinstance(config.start, StartConfig):
        return None
    if run.has_fact(StartedFrom):
        return run.fact(StartedFrom)
    found, name = find_start(config, config.start, store), config.registered_name
    source = store.fetch(found.key, found.weights.size_bytes) if found.key else config.start.file
    assert source is not None
    try:
        keep_weights(run.store, name, source, found.weights)
    finally:
        if found.key:
            store.release(source)
    return run.settle(StartedFrom(weights=found.weights, model=name, version=found.version, run=found.run, carry_over=config.start.carry_over))


def find_start(config: Federation, start: StartConfig, store: Store) -> Found:
    """The model that `start` names, held against the federation; nothing is written. Raises as `settle_start`."""
    found = _of_file(start.file) if start.file is not None else _of_registry(config, start, store)
    if start.sha256 is not None and start.sha256 != found.weights.sha256:
        raise ConfigError(f"start.sha256: {start.sha256[:12]}... expected, but the weights have {found.weights.sha256[:12]}...; correct one of them")
    if found.weights.spec.architecture != str(config.algorithm.proxy_model):
        got = found.weights.spec.architecture[:80]
        raise ConfigError(f"start: a model of network {str(config.algorithm.proxy_model)!r} (algorithm.proxy_model) expected, got {got!r}")
    if found.weights.size_bytes > config.protocol.max_update_bytes:
        raise ConfigError(f"start: {found.weights.size_bytes} bytes, at most protocol.max_update_bytes ({config.protocol.max_update_bytes}) expected")
    return found


def _of_file(path: Path) -> Found:
    if not path.is_file():
        raise NotFound(f"start.file: no file {path}")
    spec = read_header(path).spec
    sha256, size = digest_of(path)
    return Found(StoredWeights(sha256=sha256, size_bytes=size, spec=spec), "")


def _of_registry(config: Federation, start: StartConfig, store: Store) -> Found:
    name = config.registered_name
    records = read_chain(store, name).records
    record = next((one for one in reversed(records) if start.version is None or one.version == start.version), None)
    if record is not None:
        _require_same_task(config.task, record.task, f"{name} version {record.version}")
        return Found(record.weights, ModelKeys(name).weights(record.weights.sha256), record.version, record.run)
    if start.version is None:
        raise NotFound(f"start: model {name!r} has no champion yet; run once with start: seed, and promote what it gives")
    run_id = Registry.for_federation(config).run_of(name, start.version)
    if not run_id:
        raise NotFound(f"start.version: model {name!r} version {start.version} says of no run of FedHelp's that trained it (tag fedhelp.run)")
    return _of_run(config, Run(store, run_id), start.version)


def _of_run(config: Federation, run: Run, version: str) -> Found:
    """The final model of a run whose version was never promoted."""
    frozen = federation_in(run.federation_yaml(), source=f"run {run.run_id}'s federation.yaml")
    _require_same_task(config.task, frozen.task, f"{config.registered_name} version {version}")
    final = run.commit(frozen.algorithm.rounds)
    size = run.store.size(final.global_key) if final is not None else None
    if final is None or size is None:
        raise NotFound(f"start.version: the final model of run {run.run_id!r}, which trained version {version}, is not in {run.store.url} any more")
    return Found(StoredWeights(sha256=final.global_sha256, size_bytes=size, spec=final.spec), final.global_key, version, run.run_id)


def _require_same_task(task: TaskConfig, trained: TaskConfig, what: str) -> None:
    """Classes in another order would be learnt wrong without a sign of it."""
    if (task.name, task.classes) != (trained.name, trained.classes):
        raise ConfigError(
            f"start: {what} was trained for {trained.name} ({', '.join(trained.classes)[:200]}), this federation is for {task.name}"
            f" ({', '.join(task.classes)[:200]})")
