"""MLflow: a federation's run with its rounds, the registered model, its promotion. The only file that imports mlflow.

Aggregation logs rounds through `AsyncTracker`, evaluation registers the model through `Tracker`, promotion and the
commands `promote` and `rollback` use `Registry` and `gate`, MLflow teachers `load_pyfunc`, the demo's teacher
`save_pyfunc_from_code`. mlflow takes seconds to import, so every function imports it when it needs it; so does torch,
which the hub does not have.

One MLflow run stands for one run of a federation. It is found again by its tags, unless $MLFLOW_RUN_ID names it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import platform
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config import Federation
from fedhelp_core.errors import (
    AccessDenied,
    ConfigError,
    FedHelpError,
    NotFound,
    PermanentError,
    StorageFull,
    StoreUnavailable,
    TeacherError,
    TeacherUnavailable,
)
from fedhelp_core.tasks import Metric

if TYPE_CHECKING:
    import torch

CANDIDATE = "candidate"
CHAMPION = "champion"
RUN_TAG = "fedhelp.run_id"
CONFIG_TAG = "fedhelp.config_sha256"
SCORES_TAG = "fedhelp.scores"
PREVIOUS_TAG = "fedhelp.previous_champions"  # of the registered model: versions, the last one last
_NOTED = ("kind", "test_sha256")  # of a silo in SCORES_TAG, beside its scores
_IDENTITY_TAGS = ("fedhelp.run", "fedhelp.global_sha256")  # what makes two model versions the same

_SETTINGS = {  # used where the operator set nothing else
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing leaves a hospital that nobody asked for
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # about 15 s; MLflow's own 7 are four minutes before anybody is told
}
_METRICS_PER_REQUEST = 1000  # MLflow's own bounds
_PARAMETERS_PER_REQUEST = 100
_LONGEST_KEY = 250
_LONGEST_PARAMETER = 500  # characters; newer servers take 6000, older ones refuse more than this
_LONGEST_RUN_TAG = 5000
_ROUNDS_KEPT = 10_000  # rounds waiting for a server that is away; some 10 MB at 20 silos
_PACE = 1.0  # seconds between two requests of a healthy tracker: fast rounds share one
_RETRY_AFTER = 20.0  # seconds until a server that did not answer is asked again
_CLOSING_WAIT = 45.0  # seconds that the end of training waits for MLflow at most
_CHAMPIONS_KEPT = 20
_VERSIONS_LISTED = 20  # in a message
_ROUNDING = 1e-9  # two scores closer than this are the same: 0.80 - 0.75 is 0.05000000000000004
_log = logging.getLogger("fedhelp.tracking")


def tracking_uri(federation: Federation) -> str:
    """`tracking.uri`, else $MLFLOW_TRACKING_URI, else SQLite in the store's folder.

    Raises:
        ConfigError: neither is set, and the store is a bucket, where SQLite cannot live.
    """
    uri = federation.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if uri:
        return uri
    folder = federation.store.folder
    if folder is None:
        raise ConfigError(
            f"tracking.uri: missing, and store {federation.store.url!r} is no folder where MLflow could keep SQLite; "
            "set tracking.uri or $MLFLOW_TRACKING_URI to your MLflow server")
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


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
                self._run_id, shown_uri(self._uri), lost, said)

    def _work(self) -> None:
        run: _MlflowRun | None = None
        while True:
            with self._changed:
                closing, rounds, status = self._closing, list(self._waiting), self._final_status
            try:
                with _explained(self._uri):
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
        with _explained(self._uri):
            self._run().log([_Round(self._federation.algorithm.rounds, _now(), metrics)])

    def log_and_register_model(self, module: torch.nn.Module, example: torch.Tensor, *, name: str, tags: Mapping[str, str]) -> str:
        """Log `module` (put into eval mode), register it as a version of `name` with alias `candidate`; that version.

        `example` is one batch of input, any number of images. `tags` become the version's and the run's. A version with
        the same `fedhelp.run` and `fedhelp.global_sha256` is adopted instead of made again.

        Raises:
            StoreUnavailable: MLflow was not reached, or cannot answer now.
            AccessDenied: it refuses us.
            PermanentError: the module cannot be exported, or does not answer the same when it is loaded.
        """
        with _explained(self._uri), _quiet(), _mlflow_at(self._uri):
            run = self._run()
            version = _registered(run.client, name, tags) or self._register(run, module.eval(), example, name, tags)
            run.client.set_registered_model_alias(name, CANDIDATE, version)
            run.set_tags({key: value for key, value in tags.items() if len(value) <= _LONGEST_RUN_TAG})
            run.end("FINISHED")
            return version

    def _register(self, run: _MlflowRun, module: torch.nn.Module, example: torch.Tensor, name: str, tags: Mapping[str, str]) -> str:
        from mlflow.exceptions import MlflowException

        model_uri = _log_model(run.id, module, example)
        try:
            run.client.create_registered_model(name)
        except MlflowException as e:
            if e.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        created = run.client.create_model_version(
            name, source=model_uri, run_id=run.id, model_id=model_uri.removeprefix("models:/"), tags=dict(tags))
        return str(created.version)

    def _run(self) -> _MlflowRun:
        if self._opened is None:
            self._opened = _MlflowRun.find_or_create(self._uri, self._federation, self._run_id)
        return self._opened


class Promoted(NamedTuple):
    """The champion, and who it took the place of: itself where nothing changed, None where nobody was champion."""

    version: str
    replaced: str | None


class Registry:
    """The Model Registry: what is candidate, what is champion, and what was."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._opened: Any = None

    @classmethod
    def for_federation(cls, federation: Federation) -> Registry:
        """The registry beside the federation's runs; contacts nothing yet.

        Raises:
            ConfigError: no tracking URI can be told.
        """
        return cls(tracking_uri(federation))

    def scores_of(self, name: str, version: str) -> dict[str, dict[str, Any]]:
        """Silo -> its score by the task's metric's name, kind and test_sha256, as evaluation noted them at this version.

        Raises:
            NotFound: no such version, or nothing noted.
            PermanentError: what is noted cannot be read.
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        with _explained(self._uri):
            text = self._version(name, version).tags.get(SCORES_TAG)
        if text is None:
            raise NotFound(
                f"model {name!r} version {version}: no tag {SCORES_TAG}, so it was not registered by FedHelp's evaluation and cannot be"
                " compared; decide by hand: fedhelp promote")
        try:
            return _checked_scores(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise PermanentError(
                f"model {name!r} version {version}: tag {SCORES_TAG} cannot be read ({e}); expected JSON of silo ->"
                " a score, kind, test_sha256; mend it in MLflow, or decide by hand: fedhelp promote") from e

    def champion(self, name: str) -> str | None:
        """The version with alias `champion`; None where there is none.

        Raises:
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        try:
            with _explained(self._uri):
                return self._aliases(name).get(CHAMPION)
        except NotFound:
            return None

    def champion_before(self, name: str) -> str | None:
        """The version that `rollback` would make champion; None where there is none.

        Raises:
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        champion = self.champion(name)
        with _explained(self._uri):
            before = self._champions_before(name, champion) if champion is not None else []
        return before[-1] if before else None

    def run_of(self, name: str, version: str) -> str | None:
        """The id of the run that `version` is of; None where it does not say.

        Raises:
            NotFound: no such version.
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        with _explained(self._uri):
            run: str | None = self._version(name, version).tags.get(_IDENTITY_TAGS[0])
        return run

    def promote(self, name: str, version: str | None) -> Promoted:
        """Make `version` (None: the candidate) champion and remember the one before it.

        Raises:
            NotFound: no such model or version, or no candidate.
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        with _explained(self._uri):
            aliases = self._aliases(name)
            version = version or aliases.get(CANDIDATE)
            if version is None:
                raise NotFound(f"model {name!r}: no version has the alias {CANDIDATE!r}; run evaluation first, or name a version")
            self._require_version(name, version)  # before anything is changed
            champion = aliases.get(CHAMPION)
            if champion == version:
                return Promoted(version, version)
            if champion is not None:
                self._remember(name, [*self._champions_before(name, champion), champion])
            self._client().set_registered_model_alias(name, CHAMPION, version)  # last: a kill before it leaves the old champion
            return Promoted(version, champion)

    def rollback(self, name: str) -> str:
        """Give alias `champion` back to the version that had it before; that version.

        Raises:
            NotFound: there is no model or no champion, or none was before it, or that one has been deleted.
            StoreUnavailable: MLflow was not reached, or cannot answer now.
        """
        with _explained(self._uri):
            champion = self._aliases(name).get(CHAMPION)
            if champion is None:
                raise NotFound(f"model {name!r}: no version is champion; make one: fedhelp promote")
            before = self._champions_before(name, champion)
            if not before:
                raise NotFound(
                    f"model {name!r}: no champion was there before version {champion}; `fedhelp promote FEDERATION --version NUMBER` chooses another")
            previous = before.pop()
            self._require_version(name, previous)
            self._client().set_registered_model_alias(name, CHAMPION, previous)
            self._remember(name, before)
            return previous

    def _champions_before(self, name: str, champion: str) -> list[str]:
        """Champions before the present one, the last one last. A killed promotion may have noted the present one already."""
        noted = self._client().get_registered_model(name).tags.get(PREVIOUS_TAG, "")
        versions = [version for version in noted.split(",") if version]
        while versions and versions[-1] == champion:
            versions.pop()
        return versions

    def _remember(self, name: str, versions: Sequence[str]) -> None:
        self._client().set_registered_model_tag(name, PREVIOUS_TAG, ",".join(versions[-_CHAMPIONS_KEPT:]))

    def _aliases(self, name: str) -> dict[str, str]:
        return {alias: str(version) for alias, version in self._client().get_registered_model(name).aliases.items()}

    def _require_version(self, name: str, version: str) -> None:
        there = sorted((str(found.version) for found in self._client().search_model_versions(f"name = '{name}'")), key=int)
        if version not in there:
            listed = ("... " if len(there) > _VERSIONS_LISTED else "") + ", ".join(there[-_VERSIONS_LISTED:])
            choice = f"choose one of {listed}: fedhelp promote FEDERATION --version NUMBER" if there else "run evaluation first"
            raise NotFound(f"model {name!r} has no version {version!r}; {choice}")

    def _version(self, name: str, version: str) -> Any:
        return self._client().get_model_version(name, version)

    def _client(self) -> Any:
        if self._opened is None:
            self._opened = _client(self._uri)
        return self._opened


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate becomes champion, and the sentences that say why."""

    promote: bool
    reasons: list[str]


def gate(
    candidate_scores: Mapping[str, Mapping[str, Any]], champion_scores: Mapping[str, Mapping[str, Any]] | None, metric: Metric, *,
    min_improvement: float, max_regression: float,
) -> Verdict:
    """Promote if the small silos' mean of `metric` gets better by `min_improvement` and no silo's worse by more than `max_regression`.

    Scores are compared on the same silos and the same test images only; where these differ, a person has to decide.
    Without a small silo the mean is over all silos.
    """
    if champion_scores is None:
        return Verdict(True, ["there was none to compare with"])
    incomparable = _incomparable(candidate_scores, champion_scores, metric)
    if incomparable:
        return Verdict(False, incomparable)
    pairs = {silo: (float(new[metric.name]), float(champion_scores[silo][metric.name])) for silo, new in candidate_scores.items()}
    small = [silo for silo, new in candidate_scores.items() if new["kind"] == "small"]
    whose = "the small silos' mean" if small else "the mean of all silos"
    better, mean_reason = _mean_gains([pairs[silo] for silo in small or pairs], whose, metric, min_improvement)
    worse = "falls" if metric.larger_is_better else "rises"
    lost = {silo: -metric.gain(new, old) for silo, (new, old) in pairs.items()}
    failed = [
        f"{silo} {worse} by {lost[silo]:.3f} to {pairs[silo][0]:.3f}, more than {max_regression:.3f} is not allowed"
        for silo in sorted(pairs) if not lost[silo] <= max_regression + _ROUNDING]
    if not failed:
        worst = max(lost, key=lambda silo: lost[silo])
        most = f" by more than {max_regression:.3f} (most: {worst}, by {lost[worst]:.3f})" if lost[worst] > _ROUNDING else ""
        return Verdict(better, [mean_reason, f"no silo {worse}{most}"])
    return Verdict(False, [mean_reason, *failed])


def load_pyfunc(uri: str) -> tuple[Callable[[NDArray[np.uint8]], Any], str]:
    """The `predict` of the MLflow model at `uri`, a batch of images (N, H, W, C) -> its answer, one row per image; and the model's uuid.

    Raises:
        TeacherError: the model cannot be loaded; later, by the function: it refuses a batch.
        TeacherUnavailable: it is on an MLflow server that was not reached.
    """
    where = f"teacher model {shown_uri(uri)}"
    _prepare()
    with _quiet():
        import mlflow.pyfunc

        try:
            model = mlflow.pyfunc.load_model(uri)
        except Exception as e:  # loading runs the model's own code, which may raise anything
            if _on_server(uri) and isinstance(_error_for(e, uri), StoreUnavailable):
                raise TeacherUnavailable(f"{where}: MLflow was not reached ({_first_line(e)}); try again later") from e
            raise TeacherError(
                f"{where}: cannot be loaded ({type(e).__name__}: {_first_line(e)}); check public_set.teachers' uri, $MLFLOW_TRACKING_URI and"
                " that what the model's requirements.txt lists is installed here") from e

    def predict(images_NHWC: NDArray[np.uint8]) -> Any:
        try:
            return model.predict(images_NHWC)
        except Exception as e:  # the model's own code
            raise TeacherError(
                f"{where}: refuses a batch of uint8 images {images_NHWC.shape} ({type(e).__name__}: {_first_line(e)});"
                " expected a model whose predict takes uint8 (N, H, W, C) with values 0..255") from e

    return predict, str(getattr(model.metadata, "model_uuid", None) or "")


def save_pyfunc_from_code(folder: Path, *, code: Path, artifacts: Mapping[str, Path], settings: Mapping[str, Any]) -> None:
    """Write an MLflow model into `folder` (new or empty) that runs the file `code`, which finds `artifacts` and `settings` in its context.

    No pickle: the model is its source and its files, both copied.

    Raises:
        PermanentError: MLflow refuses, e.g. since the folder has something in it.
    """
    _prepare()
    with _explained(str(folder)), _quiet():
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(
            folder, python_model=str(code), artifacts={name: str(path) for name, path in artifacts.items()}, model_config=dict(settings),
            conda_env=_environment(f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}"))


def _environment(*requirements: str) -> dict[str, Any]:
    """What a model needs, as MLflow writes it down.

    Named by us: MLflow would load the model in another process to find out, and would warn where it cannot tell pip's version.
    """
    dependencies = [f"python={platform.python_version()}", "pip", {"pip": list(requirements)}]
    return {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": dependencies}


def shown_uri(uri: str) -> str:
    """`uri` without the password that it may carry, for messages and records."""
    return re.sub(r"://[^/@\s]+@", "://", uri)


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
        self._steps_of: dict[str, set[int]] = {}

    @classmethod
    def find_or_create(cls, uri: str, federation: Federation, run_id: str) -> _MlflowRun:
        """The MLflow run of `run_id`, marked as running, with the config as its parameters.

        The config is part of its identity, because federations that share a server may choose the same run id.
        """
        client = _client(uri)
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
        if key not in self._steps_of:
            self._steps_of[key] = {metric.step for metric in self.client.get_metric_history(self.id, key)}
        return self._steps_of[key]

    def _describe(self, run: Any, tags: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        """Tags and parameters that are not there yet: MLflow refuses to change a parameter, and a preset run may have its own."""
        from mlflow.entities import Param

        if not tags.items() <= run.data.tags.items():
            self.set_tags(tags)
        missing = [Param(key, value) for key, value in parameters.items() if key not in run.data.params]
        for chunk in _chunks(missing, _PARAMETERS_PER_REQUEST):
            self.client.log_batch(self.id, params=chunk)


def _prepare() -> None:
    """Quiet settings for mlflow, before it is imported: it reads some at import, some at each call."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])  # where somebody else has imported it before


def _client(uri: str) -> Any:
    _prepare()
    from mlflow import MlflowClient

    path = _sqlite_path(uri)
    if path is not None:
        _make_sqlite_whole(path)
    return MlflowClient(uri)


def _make_sqlite_whole(path: Path) -> None:
    """A new database gets its name when its tables are there: mlflow does not go on where its migrations were killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # ends with this process, however it ends
        if not path.exists():
            from mlflow import MlflowClient

            scratch = path.with_name(f"{path.name}.new")
            for left in path.parent.glob(f"{scratch.name}*"):  # and its journal
                left.unlink()
            MlflowClient(f"sqlite:///{scratch}").search_experiments(max_results=1)
            scratch.rename(path)
    finally:
        os.close(folder)


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _on_server(uri: str) -> bool:
    import mlflow

    return not os.path.exists(uri) and mlflow.get_tracking_uri().startswith(("http://", "https://"))


def _experiment(client: Any, uri: str, name: str) -> str:
    """The id of the experiment, made if it is not there. With SQLite its files lie beside the database, not in the working folder."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        path = _sqlite_path(uri)
        try:
            return str(client.create_experiment(name, artifact_location=None if path is None else str(path.with_name("mlartifacts"))))
        except MlflowException as e:
            found = client.get_experiment_by_name(name) if e.error_code == "RESOURCE_ALREADY_EXISTS" else None
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(f"tracking.experiment: {name!r} was deleted in MLflow at {shown_uri(uri)}; restore it there or choose another name")
    return str(found.experiment_id)


def _registered(client: Any, name: str, tags: Mapping[str, str]) -> str | None:
    """The version of `name` that has the identity in `tags`; None if there is none or `tags` has no identity."""
    if not all(key in tags for key in _IDENTITY_TAGS):
        return None
    query = f"name = '{name}' and tags.`{_IDENTITY_TAGS[1]}` = '{tags[_IDENTITY_TAGS[1]]}'"
    same = [int(v.version) for v in client.search_model_versions(query) if all(v.tags.get(key) == tags[key] for key in _IDENTITY_TAGS)]
    return str(min(same)) if same else None


def _log_model(mlflow_run: str, module: torch.nn.Module, example: torch.Tensor) -> str:
    """Log `module` as an exported program (`torch.export`, no pickle: loading it runs no foreign code and needs no FedHelp); its URI.

    What is logged is loaded once and asked with another number of images, before anybody is told that it exists.
    """
    import mlflow.pytorch
    import torch
    from mlflow.models import infer_signature

    pair = example[:1].repeat(2, *[1] * (example.dim() - 1)).contiguous()  # a batch of one would be exported as always one
    with torch.inference_mode():
        answer = module(pair.clone())
    with mlflow.start_run(run_id=mlflow_run, nested=True):
        logged = mlflow.pytorch.log_model(
            module, name="model", input_example=pair.numpy(), signature=infer_signature(pair.numpy(), answer.numpy()), serialization_format="pt2",
            conda_env=_environment(f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}", f"torch=={torch.__version__.split('+')[0]}"))
        loaded = mlflow.pytorch.load_model(logged.model_uri)
    with torch.inference_mode():
        three = torch.cat((pair, pair[:1]))
        if not torch.allclose(loaded(three.clone()), module(three), atol=1e-5):
            raise PermanentError(
                f"model {type(module).__name__}: exported by torch.export it answers otherwise than before; look at its forward for"
                " what depends on the number of images")
    return str(logged.model_uri)


@contextlib.contextmanager
def _mlflow_at(uri: str) -> Iterator[None]:
    """mlflow's process-wide tracking URI for a while: what logs models knows no other, not even from a client that has its own.

    Setting it also sets the environment variable, which `tracking_uri` reads; both are put back.
    """
    _prepare()
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # documented in its code alone: back to the environment's
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of mlflow and torch.export about themselves. For the main thread: warning filters belong to the process."""
    with warnings.catch_warnings(record=True):  # recorded and dropped: mlflow switches some on again that are ignored
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Errors of mlflow and of what it stands on, as ours."""
    try:
        yield
    except FedHelpError:
        raise
    except Exception as e:
        known = _error_for(e, uri)
        if known is None:
            raise
        raise known from e


_MISSING = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_DENIED = {"PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"}
_LATER = {  # INTERNAL_ERROR: what mlflow calls a server that it could not reach
    "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"}
_TRANSPORT = {"sqlalchemy", "sqlite3", "requests", "urllib3", "boto3", "botocore", "s3transfer"}  # under mlflow; imported by it alone


def _error_for(error: Exception, uri: str) -> FedHelpError | None:
    """Our error for one of mlflow's; None if it is none of those that we know."""
    from mlflow.exceptions import MlflowException

    where, said = f"MLflow at {shown_uri(uri)}", shown_uri(_first_line(error))
    package = type(error).__module__.split(".")[0]
    if isinstance(error, MlflowException):
        if error.error_code in _MISSING:
            return NotFound(f"{where}: {said}; check tracking.registered_model and $MLFLOW_RUN_ID, or run evaluation first")
        if error.error_code in _DENIED:
            return AccessDenied(f"{where}: refuses us ({said}); check $MLFLOW_TRACKING_USERNAME, $MLFLOW_TRACKING_PASSWORD or $MLFLOW_TRACKING_TOKEN")
        if error.error_code in _LATER:
            return StoreUnavailable(f"{where}: was not reached or cannot answer now ({said}); check that it runs, then try again")
        return PermanentError(f"{where}: refuses the request ({said}); check tracking.uri and that the server is as new as this client")
    if isinstance(error, OSError) and error.errno == 28:  # ENOSPC
        return StorageFull(f"{where}: no space left ({said}); free some, then try again")
    if isinstance(error, PermissionError):
        return AccessDenied(f"{where}: {said}; check the folder's permissions")
    if isinstance(error, OSError) or package in _TRANSPORT:
        return StoreUnavailable(f"{where}: was not reached or cannot answer now ({type(error).__name__}: {said}); check that it runs, then try again")
    if package == "torch":
        return PermanentError(f"the model cannot be exported by torch.export ({type(error).__name__}: {said}); write its forward so that it can")
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


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
            text = shown_uri(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            yield f"{prefix}{key}", text if len(text) <= _LONGEST_PARAMETER else text[: _LONGEST_PARAMETER - 1] + "…"


def _key(name: str) -> str:
    """`name` with what MLflow allows in a key."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:_LONGEST_KEY]


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start:start + size]


def _now() -> int:
    return int(time.time() * 1000)


def _checked_scores(document: Any) -> dict[str, dict[str, Any]]:
    if not document:
        raise ValueError("no silo in it")
    scores: dict[str, dict[str, Any]] = {}
    for silo, noted in document.items():
        values = {str(name): float(value) for name, value in noted.items() if name not in _NOTED}
        if not values:
            raise ValueError(f"no score of {silo}")
        if not all(map(math.isfinite, values.values())):
            raise ValueError(f"{', '.join(values)} of {silo} is not finite")
        scores[str(silo)] = values | {key: str(noted[key]) for key in _NOTED}
    return scores


def _incomparable(candidate: Mapping[str, Mapping[str, Any]], champion: Mapping[str, Mapping[str, Any]], metric: Metric) -> list[str]:
    """Why the two sets of scores cannot be compared; empty if they can."""
    if any(metric.name not in scores for scores in champion.values()):
        return [f"not comparable: the champion was not scored by {metric.title}; was it made for another task?"]
    joined, left = sorted(set(candidate) - set(champion)), sorted(set(champion) - set(candidate))
    changed = sorted(silo for silo in set(candidate) & set(champion) if candidate[silo]["test_sha256"] != champion[silo]["test_sha256"])
    reasons = []
    if joined:
        reasons.append(f"not comparable: {', '.join(joined)} took no part in the champion's evaluation")
    if left:
        reasons.append(f"not comparable: {', '.join(left)} took part in the champion's evaluation only")
    if changed:
        reasons.append(f"not comparable: the test images of {', '.join(changed)} are others than in the champion's evaluation")
    return reasons


def _mean_gains(pairs: Sequence[tuple[float, float]], whose: str, metric: Metric, least: float) -> tuple[bool, str]:
    """Whether the mean of the new scores is better by `least` than the mean of the old ones, and that as a sentence."""
    new, old = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    enough = metric.gain(new, old) >= least - _ROUNDING
    change = f"{'falls' if new < old else 'rises'} by {abs(new - old):.3f} to {new:.3f}"
    if least > 0:
        return enough, f"{whose} {change}, {'at least' if enough else 'but at least'} {least:.3f} was asked for"
    return enough, f"{whose} {change}" if enough else f"{whose} {change}, but must not get worse"
