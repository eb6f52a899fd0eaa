"""A silo's side of a run: check its data, train its rounds, evaluate its models. Runs inside the hospital.

Called by the silo worker, which the hub's dispatcher starts as a process, a Job or a ManifestWork. It reads silo.yaml
(the hospital's own file), the run's frozen federation.yaml, and meets the hub in the store alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fedhelp_core.algorithm.inference import Evaluated, EvaluationData, evaluated_models
from fedhelp_core.algorithm.local_update import SiloData, SiloState, UpdateSettings, Weights, carried_over, initial_weights, local_update, proxy_with
from fedhelp_core.algorithm.randomness import fix_arithmetic
from fedhelp_core.algorithm.scaffold import taken_back
from fedhelp_core.config.federation import Federation, federation_in
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.pretrained import WhichModel
from fedhelp_core.config.silo import SiloConfig
from fedhelp_core.config.start import StartConfig
from fedhelp_core.data.arrays import SiloArrays, load_silo_arrays
from fedhelp_core.disk import disk_errors, require_locks
from fedhelp_core.errors import ConfigError, NotFound, PermanentError
from fedhelp_core.models.build import normalisation_keys
from fedhelp_core.models.cut import require_rows
from fedhelp_core.models.pretrained import fitted
from fedhelp_core.models.sizes import require_answer, size_of
from fedhelp_core.objectives.metrics import mean_interval
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.documents import Commit, ModelScores, ModelSize, SiloEvaluation, SiloReport, SplitSizes, UpdateManifest, said
from fedhelp_core.protocol.facts import ClassShares, Kinds, SoftLabels, StartedFrom
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.protocol.pretrained import read_pretrained
from fedhelp_core.protocol.run import Run
from fedhelp_core.registry.methods import METHOD_PARTS, VALIDATION_SCORE
from fedhelp_core.silo.egress import LedgeredStore
from fedhelp_core.silo.state import StateFolder
from fedhelp_core.softlabels.distillation_set import load_distillation_set
from fedhelp_core.store.base import Store
from fedhelp_core.weights.check import check_weights_file
from fedhelp_core.weights.file import fingerprint, read_weights
from fedhelp_core.weights.header import WeightsSpec

Event = Callable[[dict[str, object]], None]


class Silo:
    """One hospital taking part in one run.

    Raises:
        ConfigError: silo.yaml's name is not in the federation.
    """

    def __init__(self, config: SiloConfig, federation: Federation, run: Run, *, on_event: Event | None = None) -> None:
        if config.name not in federation.silo_names:
            said = f"silo {config.name!r} (silo.yaml) is not in federation {federation.name!r}; its silos are {', '.join(federation.silo_names)}"
            raise ConfigError(said, public=said)
        self.config = config
        self.federation = federation
        self.run = run
        self.state = StateFolder(config.state, run.run_id)
        self.device = device_for(federation.runtime.device)
        self.objective = objective_of(federation.task).labelling(federation.labelled_by(config.name))
        self._on_event = on_event or (lambda _event: None)
        self._data: SiloData | None = None
        self._arrays: SiloArrays | None = None
        fix_arithmetic(federation.runtime.threads)

    @property
    def arrays(self) -> SiloArrays:
        """The silo's decoded images, loaded once."""
        if self._arrays is None:
            self._arrays = load_silo_arrays(self.config, self.federation.task, self.federation.labelled_by(self.config.name))
        return self._arrays

    def check(self) -> SiloReport:
        """Decode every image once (and cache that), draw the start model, and report counts and hashes: no image, no name of one.

        Raises:
            ConfigError: the silo trains nothing.
            DataError: its images cannot be used.
        """
        if not len(self.arrays.training.labels_N):
            said = f"silo {self.config.name}: no training image (data.test_only in silo.yaml), so no part in a run; take it out of `silos`"
            raise ConfigError(said, public=said)
        splits = {name: getattr(self.arrays, name) for name in ("training", "validation", "test")}
        start = self._start()
        first = self.config.name == self.federation.silo_names[0]  # silos' software is the same: one of them says how large models are
        models = self._sizes() if first else {}
        self.objective.build(self.federation.algorithm.large_model)
        self.run.initialise(start, self._architecture)
        report = SiloReport(
            silo=self.config.name, samples=SplitSizes(**{name: len(split.labels_N) for name, split in splits.items()}),
            training_class_counts=self.objective.counts(self.arrays.training.labels_N),
            training_labelled_counts=[sum(counts) for counts in self._decision_counts()] if self.objective.form == "labels" else [],
            test_sha256=self._test_sha256(), start_sha256=fingerprint(start, self._architecture), models=models)
        self.run.write_silo_report(report)
        return report

    def _sizes(self) -> dict[Literal["proxy", "large"], ModelSize]:
        """Of the models that silos train, which are built for it.

        Raises:
            ConfigError: one cannot be built, or not be trained on such images.
        """
        algorithm = self.federation.algorithm
        batch = max(algorithm.batch_size, algorithm.public_batch_size if self.federation.uses_public_set else 0)
        shape = self.objective.trained_shape

        asked = dict(algorithm.pretrained.items())

        def size(model: ModelConfig, which: WhichModel) -> ModelSize:
            travels = which == "proxy"
            network = self.objective.build(model)
            if self.objective.answered_shape != shape:
                require_answer(network, self.objective.answered_shape)
            if travels and any(self.federation.labelled_by(name) is not None for name in self.federation.silo_names):
                require_rows(network, str(model), self.objective.outputs)
            at_home = normalisation_keys(network) if travels and algorithm.normalisation == "silo" else frozenset()
            found = asdict(size_of(network, shape=shape, batch=batch if travels else algorithm.batch_size, at_home=at_home))
            from_file = fitted(network, self._pretrained[which], partial=asked[which].partial) if which in asked else ""
            return ModelSize(**found, pretrained=said(from_file))

        found: dict[Literal["proxy", "large"], ModelSize] = {"proxy": size(algorithm.proxy_model, "proxy")}
        return {**found, "large": size(algorithm.large_model, "large")} if METHOD_PARTS[algorithm.method].large_model else found

    @cached_property
    def _pretrained(self) -> Mapping[WhichModel, Weights]:
        """Files' weights that models begin with, held against the frozen config's sha256.

        Raises:
            WeightsError: the store has others.
        """
        return read_pretrained(self.federation, self.run.store)

    @property
    def _architecture(self) -> str:
        """What weights that travel say that they are of."""
        return str(self.federation.algorithm.proxy_model)

    def next_round(self) -> int:
        """The first round that this silo can still answer: after the last commit, and not answered yet."""
        latest = self._latest_commit()
        return latest.round + 1

    def train(self, *, last_round: int, only: int | None = None) -> None:
        """Answer every round up to `last_round` (residency `run`), or round `only` (residency `round`).

        Raises:
            RunAborted: the run was ended for everyone.
        """
        with self.state.locked():
            number = only if only is not None else self.next_round()
            while number <= (only if only is not None else last_round):
                commit = self.run.wait_for_commit(number - 1)
                number = max(number, commit.round + 1)
                if only is not None and number != only:
                    return
                if number > last_round:
                    return
                if self.run.update(self.config.name, number) is None:
                    self._answer(number, commit)
                number += 1

    def _answer(self, number: int, commit: Commit) -> UpdateManifest | None:
        """One round: local update from the commit's global model, state on disk, then the update sent."""
        started = time.monotonic()
        phases = _Phases()
        self._on_event({"event": "round_started", "silo": self.config.name, "round": number})
        if commit.round == 0:
            self.run.require_start(commit, fingerprint(self._start(), self._architecture))
        weights = self.run.global_weights(commit, max_bytes=self.federation.protocol.max_update_bytes)
        state, data = self._state_after(commit), self._training_data()
        if not state.round:  # its first round of this run
            state = self._first_state(data)
        control = self._control_variate(commit)
        phases.end("load")
        scores = self._validation_scores(commit, weights, state)
        phases.end("score")
        result = local_update(weights, state, data, self.settings, round_number=number, progress=self._progress(number), control=control)
        phases.end("train")
        self.state.save(result.state)
        phases.end("save")
        seconds = time.monotonic() - started
        update = self.run.submit_update(
            self.config.name, number, result.weights, trained_from=commit.global_sha256, architecture=self._architecture,
            samples=result.samples,
            loss=next(iter(result.metrics.values())), metrics={**result.metrics, **scores, "seconds": round(seconds, 3)})
        phases.end("upload")
        self._on_event({
            "event": "round_finished", "silo": self.config.name, "round": number, "seconds": round(seconds, 3), **result.metrics,
            "loss": update.loss, "images": result.samples * self.settings.algorithm.local_epochs, "update_bytes": update.size_bytes,
            "phases": phases.seconds})
        return update

    def _validation_scores(self, commit: Commit, weights: Weights, state: SiloState) -> dict[str, float]:
        """What the global model after `commit` scores on this silo's validation images, in the rounds that `evaluation.every` asks for."""
        evaluation, data = self.federation.evaluation, self.arrays.validation
        averaged = METHOD_PARTS[self.federation.algorithm.method].averaged
        if not averaged or not commit.round or not evaluation.every or commit.round % evaluation.every:
            return {}
        if len(data.labels_N) < evaluation.enough_validation(self.objective.form):  # too few tell nothing of the model, and much of each image
            return {}
        scored = self.objective.scored(proxy_with(weights, state, self.settings), data.images_NCHW, data.labels_N, self.settings.device)
        return {VALIDATION_SCORE: scored.scores[self.objective.headline.name]}

    def evaluate(self) -> SiloEvaluation:
        """Scores on the silo's own test split, and which of its models it deploys. Written once for the run."""
        known = self.run.evaluation(self.config.name)
        if known is not None:
            return known
        commit = self._latest_commit()
        weights = self.run.global_weights(commit, max_bytes=self.federation.protocol.max_update_bytes)
        found = evaluated_models(
            weights, self._state_after(commit), self.settings, self.federation.evaluation, self._evaluation_data())
        if self.objective.decides:
            self.state.keep_operating_points({name: model.point for name, model in found.items() if model.point is not None})
        evaluation = SiloEvaluation(
            silo=self.config.name, kind=self.settings.kind, round=commit.round, global_sha256=commit.global_sha256,
            test_samples=len(self.arrays.test.labels_N), test_sha256=self._test_sha256(),
            models={name: _model_scores(model) for name, model in found.items()}, deployed=next(iter(found)),
            named=self.config.named)
        self.run.write_evaluation(evaluation)
        return evaluation

    def _state_after(self, commit: Commit) -> SiloState:
        """What this silo keeps after the commit's round.

        Raises:
            NotFound: it took part in a round that its state does not know. Nothing else tells a lost volume from a first round.
        """
        state = self.state.before(commit.round + 1)
        for number in range(commit.round, state.round, -1):
            known = commit if number == commit.round else self.run.commit(number)
            if known is not None and self.config.name in known.participants:
                said = (f"silo {self.config.name} took part in round {number}, but its state volume has "
                        + (f"nothing after round {state.round}" if state.round else "no state of this run")
                        + "; bring the volume back as it was, or start a run with another id")
                raise NotFound(f"{self.state.folder}: {said}", public=said)
        return self._as_the_hub_took_it(state, commit)

    def _as_the_hub_took_it(self, state: SiloState, commit: Commit) -> SiloState:
        """`state`, its control variate without the last round where the hub left that out: the silos' mean at the hub has none of it."""
        if not METHOD_PARTS[self.federation.algorithm.method].control_variates or not state.round:
            return state
        its_last = commit if commit.round == state.round else self.run.commit(state.round)
        if its_last is None or self.config.name in its_last.participants:
            return state
        return SiloState(round=state.round, tensors=taken_back(state.tensors))

    def _control_variate(self, commit: Commit) -> Weights | None:
        """What the hub remembers of all silos' control variates; None: nothing yet, or the method has none.

        Raises:
            PermanentError: the commit lacks what each round of the method leaves behind.
        """
        if not METHOD_PARTS[self.federation.algorithm.method].control_variates:
            return None
        control = self.run.server_state(commit, "control", max_bytes=self.federation.protocol.max_update_bytes)
        if control is None and commit.round:
            said = f"run {self.run.run_id!r}: the commit of round {commit.round} has no control variate, which SCAFFOLD needs; ask the hub"
            raise PermanentError(said, public=said)
        return control

    def _evaluation_data(self) -> EvaluationData:
        test, validation = self.arrays.test, self.arrays.validation
        asked = self.objective.decides and self.federation.evaluation.operating_point != "argmax" and self.settings.algorithm.class_weights == "none"
        shares = self.objective.learnt_shares(self.run.fact(ClassShares).shares) if asked else None
        return EvaluationData(
            test_images_NCHW=test.images_NCHW, test_labels_N=test.labels_N, validation_images_NCHW=validation.images_NCHW,
            validation_labels_N=validation.labels_N, decision_counts=self._decision_counts(), federation_shares=shares)

    def _test_sha256(self) -> str:
        return content_digest(self.arrays.test.images_NCHW, self.arrays.test.labels_N)

    def _decision_counts(self) -> list[list[int]]:
        """Of each decision training images by what is true."""
        return self.objective.counts_of_decisions(self.arrays.training.labels_N)

    def _start(self) -> Weights:
        """The model that this silo's software draws from the seed, or the one that the run starts from, if it is of the same form.

        Raises:
            WeightsError: it is of another network, task or normalisation, or damaged.
        """
        drawn = initial_weights(self.federation.algorithm, self.objective, seed=self.federation.runtime.seed, pretrained=self._pretrained)
        if (start := self.started_from) is None:
            return drawn
        spec = WeightsSpec.from_weights(drawn, self._architecture)
        path = self.run.store.fetch(ModelKeys(start.model).weights(start.weights.sha256), self.federation.protocol.max_update_bytes)
        try:
            check_weights_file(path, spec=spec, max_bytes=self.federation.protocol.max_update_bytes, sha256=start.weights.sha256)
            return read_weights(path, expected=spec, max_bytes=self.federation.protocol.max_update_bytes, sha256=start.weights.sha256)
        finally:
            self.run.store.release(path)

    @cached_property
    def started_from(self) -> StartedFrom | None:
        """The model that the run starts from; None: from its seed.

        Raises:
            ConfigError: the hub settled another one than the frozen config names.
        """
        wanted = self.federation.start
        if not isinstance(wanted, StartConfig):
            return None
        start = self.run.fact(StartedFrom)
        if (wanted.sha256, wanted.version) != (wanted.sha256 and start.weights.sha256, wanted.version and start.version):
            said = f"run {self.run.run_id!r}: started_from.json names other weights than `start` in its federation.yaml; ask the hub"
            raise ConfigError(said, public=said)
        return start

    def _first_state(self, data: SiloData) -> SiloState:
        """What this silo's first round begins with: what it kept of the run that the model comes from, as far as that is there and fits."""
        start = self.started_from
        if start is None or not start.run or not start.carry_over:
            return SiloState.empty()
        public = data.public_probabilities_MP
        before = StateFolder(self.config.state, start.run).latest()
        carried = carried_over(before, self.settings, public_outputs=None if public is None else public.shape[1])
        parts = sorted({name.partition("/")[0] for name in carried.tensors})
        self._on_event({"event": "carried_over", "silo": self.config.name, "run": start.run, "parts": parts})
        return carried

    def _latest_commit(self) -> Commit:
        self.run.raise_if_aborted()
        commit = self.run.latest_commit()
        if commit is None:
            raise NotFound(f"run {self.run.run_id!r} has no starting model yet; start aggregation (or federation) for it first")
        return commit

    def _training_data(self) -> SiloData:
        """Private images, and the public ones where this silo runs Eq 2; loaded once."""
        if self._data is None:
            training = self.arrays.training
            data = SiloData(images_NCHW=training.images_NCHW, labels_N=training.labels_N)
            algorithm = self.federation.algorithm
            if METHOD_PARTS[algorithm.method].soft_labels and (self.settings.kind == "small" or algorithm.public_start_steps):
                data = with_public_set(data, self.run, self.config.state / "cache")
            self._data = data
        return self._data

    @cached_property
    def settings(self) -> UpdateSettings:
        """What this silo's local updates depend on, its kind included."""
        kind = self.run.fact(Kinds).of(self.config.name)
        algorithm = self.federation.algorithm
        if self.started_from is not None:  # the public images had their say before
            algorithm = algorithm.model_copy(update={"public_start_steps": 0})
        return UpdateSettings(
            algorithm=algorithm, objective=self.objective, seed=self.federation.runtime.seed,
            silo=self.config.name, kind=kind, device=self.device, precision=self.federation.runtime.precision,
            pretrained=self._pretrained)

    def _progress(self, number: int) -> Callable[[int, int], None]:
        """At most one event a second, however short the steps."""
        last = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= 1.0:
                last = time.monotonic()
                self._on_event({"event": "progress", "silo": self.config.name, "round": number, "step": done, "steps": total})

        return report


def _model_scores(model: Evaluated) -> ModelScores:
    """What the hub hears of it: scores, counts, and what the operating point comes from."""
    scored = model.scored
    return ModelScores(
        scores=scored.scores, confusion=scored.confusion_CC.tolist(), argmax_confusion=scored.argmax_confusion_CC.tolist(),
        operating_point=model.point.rule if model.point is not None else "argmax",
        interval=mean_interval(model.test["dice"][np.isfinite(model.test["dice"])]) if "dice" in model.test else None, of_each=scored.of_each)


class _Phases:
    """Seconds of each phase of a round."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def end(self, name: str) -> None:
        """The phase that began with the last one's end is over."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._since, 3)
        self._since = now


def with_public_set(data: SiloData, run: Run, cache: Path) -> SiloData:
    """`data` with the run's distillation set beside it.

    Raises:
        NotFound: soft_label_prefetch has not finished for this run.
    """
    public = load_distillation_set(run.store, run.fact(SoftLabels).sha256, cache)
    return SiloData(
        images_NCHW=data.images_NCHW, labels_N=data.labels_N,
        public_images_MCHW=public.images_NCHW, public_probabilities_MP=public.probabilities_NC)


def open_silo(config: SiloConfig, store: Store, run_id: str, *, on_event: Event | None = None) -> Silo:
    """The silo of `config` in the run `run_id`, its uploads written to the egress ledger."""
    with disk_errors(config.state):
        config.state.mkdir(parents=True, exist_ok=True)
    require_locks(config.state)
    run = Run(LedgeredStore(store, config.state / "egress.jsonl", run_id), run_id)
    federation = _federation_of(run)
    return Silo(config, federation, run, on_event=on_event)


def _federation_of(run: Run) -> Federation:
    """The run's, as the hub froze it: what is wrong with it may be said to the hub."""
    try:
        return federation_in(run.federation_yaml(), source=f"run {run.run_id}'s federation.yaml")
    except ConfigError as e:
        raise ConfigError(e.problems, public=str(e)) from e


def device_for(wanted: str) -> torch.device:
    """The device that `runtime.device` asks for.

    Raises:
        ConfigError: 'cuda' without a usable GPU.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if wanted == "cuda":
        said = "runtime.device: 'cuda' asked for, but this machine shows no usable GPU; check the driver, or set device: auto"
        raise ConfigError(said, public=said)
    return torch.device("cpu")


def content_digest(images_NCHW: torch.Tensor, labels_N: torch.Tensor) -> str:
    """sha256 over images and labels: whether two evaluations used the same test data."""
    digest = hashlib.sha256(images_NCHW.numpy().tobytes())
    digest.update(labels_N.numpy().tobytes())
    return digest.hexdigest()
