"""A run's rounds, results and model in MLflow.

Aggregation logs rounds through `AsyncTracker`, which never holds training up; evaluation logs the rest through `Tracker`.
One MLflow run stands for one run of a federation. It is found again by its tags, unless $MLFLOW_RUN_ID names it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import ConfigError, FedHelpError
from fedhelp_core.printable import without_passwords
from fedhelp_core.tracking.models import ModelForUsers, log_model, registered_version
from fedhelp_core.tracking.registry import CANDIDATE
from fedhelp_core.tracking.server import client_of, mlflow_at, mlflow_errors, quiet, sqlite_path, tracking_uri

RUN_TAG = "fedhelp.run_id"
CONFIG_TAG = "fedhelp.config_sha256"
_METRICS_PER_REQUEST = 1000  # MLflow's own bounds
_PARAMETERS_PER_REQUEST = 100
_LONGEST_KEY = 250
_LONGEST_PARAMETER = 500  # characters; newer servers take 6000, older ones refuse more than this
_LONGEST_RUN_TAG = 5000
_LONGEST_DESCRIPTION = 5000  # characters, of a version
_ROUNDS_KEPT = 10_000  # rounds waiting for a server that is away; some 10 MB at 20 silos
_PACE = 1.0  # seconds between two requests of a healthy tracker: fast rounds share one
_RETRY_AFTER = 20.0  # seconds until a server that did not answer is asked again
_CLOSING_WAIT = 45.0  # seconds that the end of training waits for MLflow at most
_log = logging.getLogger("fedhelp.tracking")


class AsyncTracker:
    """Logs a run's rounds from a thread of its own; training neither waits for MLflow nor ends because of it.

    Rounds that MLflow has already are not logged twice, so a restarted aggregation may tell all of them again, and what
    an absent server missed is made up for.
    """

    def __init__(self, uri: str, federation: Federation, run_id: str) -> None:
        self._uri = uri
        self._federation = federation
        self._run_id = run_id
        self._changed = threading.Condition()  # guards all that follows; never held while MLflow is talked to
        self._waiting: deque[_Round] = deque()
        self._refused = 0
        self._said = ""  # what MLflow's last failure was
        self._closing = False
        self._final_status: str | None = None
        self._thread = threading.Thread(target=self._work, name="fedhelp-tracking", daemon=True)  # a hung server must not hold the exit

    @classmethod
    def for_run(cls, federation: Federation, run_id: str) -> AsyncTracker:
        """The tracker of run `run_id`; contacts nothing yet.

        Raises:
            ConfigError: no tracking URI can be told; better now than after training.
        """
        return cls(tracking_uri(federation), federation, run_id)

    def log_round(self, number: int, metrics: Mapping[str, float]) -> None:
        """Have round `number`'s metrics logged, some time soon. What is not finite is left out. Returns at once."""
        with self._changed:
            if len(self._waiting) >= _ROUNDS_KEPT:
                self._refused += 1
                return
            self._waiting.append(_Round(number, _now(), dict(metrics)))
            self._changed.notify()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with self._changed:
            self._closing = True
            if kind is not None:
                self._final_status = "FAILED" if issubclass(kind, Exception) else "KILLED"
            self._changed.notify()
        self._thread.join(_CLOSING_WAIT)
        with self._changed:
            lost, said = len(self._waiting) + self._refused, self._said or "it does not answer"
        if lost:
            _log.warning(
                "run %s: rounds not logged to MLflow at %s: %d (%s); aggregation of the same run, started again, logs them",
                self._run_id, without_passwords(self._uri), lost, said)

    def _work(self) -> None:
        run: _MlflowRun | None = None
        while True:
            with self._changed:
                closing, rounds, status = self._closing, list(self._waiting), self._final_status
            try:
                with mlflow_errors(self._uri):
                    run = run or _MlflowRun.find_or_create(self._uri, self._federation, self._run_id)
                    run.log(rounds)
                    if closing and status is not None:
                        run.end(status)
            except Exception as e:  # whatever it is, training goes on
                run = None  # a failed request may have been carried out, so ask afresh what is there
                self._warn_once(e)
                pause = _RETRY_AFTER
            else:
                pause = _PACE
                with self._changed:
                    for _ in rounds:
                        self._waiting.popleft()
            if closing:
                return
            self._pause(pause)

    def _pause(self, seconds: float) -> None:
        """Until there is something to log, but at least `seconds`, unless training ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)
            self._changed.wait_for(lambda: self._closing or bool(self._waiting))

    def _warn_once(self, error: Exception) -> None:
        with self._changed:
            first, self._said = not self._said, str(error) if isinstance(error, FedHelpError) else f"{type(error).__name__}: {error}"
        if first:
            _log.warning("run %s: rounds cannot be logged to MLflow for now, training goes on: %s", self._run_id, self._said)


class Tracker:
    """Logs a run's results and registers its model; whatever fails is raised."""

    def __init__(self, uri: str, federation: Federation, run_id: str) -> None:
        self._uri = uri
        self._federation = federation
        self._run_id = run_id
        self._opened: _MlflowRun | None = None

    @classmethod
    def for_run(cls, federation: Federation, run_id: str) -> Tracker:
        """The tracker of run `run_id`; contacts nothing yet.

        Raises:
            ConfigError: no tracking URI can be told.
        """
        return cls(tracking_uri(federation), federation, run_id)

    def log_final(self, metrics: Mapping[str, float]) -> None:
        """Log the results as of the last round, once.

        Raises:
            StoreUnavailable: MLflow was not reached, or cannot answer now.
            AccessDenied: it refuses us.
        """
        with mlflow_errors(self._uri):
            self._run().log([_Round(self._federation.algorithm.rounds, _now(), metrics)])

    def log_and_register_model(self, model: ModelForUsers, *, name: str, tags: Mapping[str, str], description: str = "") -> str:
        """Log `model`, register it as a version of `name` with alias `candidate`; that version.

        `tags` become the version's and the run's, `description` is what people read of the version. A version with
        the same `fedhelp.run` and `fedhelp.global_sha256` is adopted instead of made again.

        Raises:
            StoreUnavailable: MLflow was not reached, or cannot answer now.
            AccessDenied: it refuses us.
            PermanentError: the network cannot be exported, or does not answer the same when it is loaded.
        """
        with mlflow_errors(self._uri), quiet(), mlflow_at(self._uri):
            run = self._run()
            version = registered_version(run.client, name, tags) or self._register(run, model, name, tags, description)
            run.client.set_registered_model_alias(name, CANDIDATE, version)
            run.set_tags({key: value for key, value in tags.items() if len(value) <= _LONGEST_RUN_TAG})
            run.end("FINISHED")
            return version

    def _register(self, run: _MlflowRun, model: ModelForUsers, name: str, tags: Mapping[str, str], description: str) -> str:
        from mlflow.exceptions import MlflowException

        model_uri = log_model(run.id, model)
        try:
            run.client.create_registered_model(name)
        except MlflowException as e:
            if e.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        created = run.client.create_model_version(
            name, source=model_uri, run_id=run.id, model_id=model_uri.removeprefix("models:/"), tags=dict(tags),
            description=description if len(description) <= _LONGEST_DESCRIPTION else description[: _LONGEST_DESCRIPTION - 1] + "…")
        return str(created.version)

    def _run(self) -> _MlflowRun:
        if self._opened is None:
            self._opened = _MlflowRun.find_or_create(self._uri, self._federation, self._run_id)
        return self._opened


def announce(federation: Federation, run_id: str, *, name: str, tags: Mapping[str, str]) -> str:
    """Make MLflow's run of `run_id`, called `name` (blank: the run id) and with `tags`, before there is anything to log; its page's address.

    Raises:
        StoreUnavailable: MLflow was not reached, or cannot answer now.
        AccessDenied: it refuses us.
    """
    uri = tracking_uri(federation)
    with mlflow_errors(uri):
        run = _MlflowRun.find_or_create(uri, federation, run_id)
        run.set_tags({**tags, **({"mlflow.runName": name} if name else {})})
        return f"{without_passwords(uri).rstrip('/')}/#/experiments/{run.experiment}/runs/{run.id}"


def end_run(federation: Federation, run_id: str, status: str) -> None:
    """Mark MLflow's run as FAILED or KILLED, where there is one. Best effort: what ends the run is worth more than this.

    `run_id` may go on later, which marks it as running again.
    """
    uri = tracking_uri(federation)
    try:
        with mlflow_errors(uri):
            _MlflowRun.find_or_create(uri, federation, run_id).end(status)
    except FedHelpError as e:
        _log.warning("run %s: not marked as %s in MLflow: %s", run_id, status, e)


class _Round(NamedTuple):
    """What is to be logged of one round; `at` in milliseconds since 1970."""

    number: int
    at: int
    metrics: Mapping[str, float]


class _MlflowRun:
    """One MLflow run that knows which of its metrics are logged already."""

    def __init__(self, client: Any, run: Any) -> None:
        self.client = client
        self.id: str = run.info.run_id
        self.experiment: str = run.info.experiment_id
        self._logged_before = set(run.data.metrics)
        self._steps_of: dict[str, set[int]] = {}

    @classmethod
    def find_or_create(cls, uri: str, federation: Federation, run_id: str) -> _MlflowRun:
        """The MLflow run of `run_id`, marked as running, with the config as its parameters.

        The config is part of its identity, because federations that share a server may choose the same run id.
        """
        client = client_of(uri)
        tags = {RUN_TAG: run_id, CONFIG_TAG: federation.digest(), "fedhelp.federation": federation.name}
        preset = os.environ.get("MLFLOW_RUN_ID")
        if preset:
            run = client.get_run(preset)
        else:
            experiment = _experiment(client, uri, federation.tracking.experiment)
            query = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in (RUN_TAG, CONFIG_TAG))
            found = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time ASC"])
            run = found[0] if found else client.create_run(experiment, tags=tags, run_name=run_id)
        if run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
        opened = cls(client, run)
        opened._describe(run, tags, _parameters(federation))
        return opened

    def log(self, rounds: Sequence[_Round]) -> None:
        """Log what is finite and not logged yet, in as few requests as MLflow allows."""
        from mlflow.entities import Metric

        new = {
            (key, number): Metric(key, float(value), at, number)
            for number, at, values in rounds for key, value in ((_key(name), value) for name, value in values.items())
            if math.isfinite(value) and number not in self._steps(key)}
        for chunk in _chunks(list(new.values()), _METRICS_PER_REQUEST):
            self.client.log_batch(self.id, metrics=chunk)
            for metric in chunk:
                self._steps(metric.key).add(metric.step)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        from mlflow.entities import RunTag

        for chunk in _chunks([RunTag(key, value) for key, value in tags.items()], _PARAMETERS_PER_REQUEST):
            self.client.log_batch(self.id, tags=chunk)

    def end(self, status: str) -> None:
        """Mark the run as FINISHED, FAILED or KILLED; it may go on later."""
        self.client.set_terminated(self.id, status)

    def _steps(self, key: str) -> set[int]:
        if key not in self._steps_of:  # a request for each metric that the run had when it was found, none for new ones
            before = self.client.get_metric_history(self.id, key) if key in self._logged_before else ()
            self._steps_of[key] = {metric.step for metric in before}
        return self._steps_of[key]

    def _describe(self, run: Any, tags: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        """Tags and parameters that are not there yet: MLflow refuses to change a parameter, and a preset run may have its own."""
        from mlflow.entities import Param

        if not tags.items() <= run.data.tags.items():
            self.set_tags(tags)
        missing = [Param(key, value) for key, value in parameters.items() if key not in run.data.params]
        for chunk in _chunks(missing, _PARAMETERS_PER_REQUEST):
            self.client.log_batch(self.id, params=chunk)


def _experiment(client: Any, uri: str, name: str) -> str:
    """The id of the experiment, made if it is not there. With SQLite its files lie beside the database, not in the working folder."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        path = sqlite_path(uri)
        try:
            return str(client.create_experiment(name, artifact_location=None if path is None else str(path.with_name("mlartifacts"))))
        except MlflowException as e:
            found = client.get_experiment_by_name(name) if e.error_code == "RESOURCE_ALREADY_EXISTS" else None
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(f"tracking.experiment: {name!r} was deleted in MLflow at {without_passwords(uri)}; restore it there or choose another name")
    return str(found.experiment_id)


def _parameters(federation: Federation) -> dict[str, str]:
    """The config as dotted names and short texts; of silos only their names, which is what a reader of charts looks for."""
    document = federation.model_dump(mode="json")
    document["silos"] = ",".join(federation.silo_names)
    del document["tracking"]
    return {_key(name): value for name, value in _flat(document, "")}


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = without_passwords(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            yield f"{prefix}{key}", text if len(text) <= _LONGEST_PARAMETER else text[: _LONGEST_PARAMETER - 1] + "…"


def _key(name: str) -> str:
    """`name` with what MLflow allows in a key."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:_LONGEST_KEY]


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start:start + size]


def _now() -> int:
    return int(time.time() * 1000)
