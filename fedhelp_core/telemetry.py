"""Prometheus metrics of hub and silos: the only file that imports prometheus_client.

Silo workers `serve`, short hub tasks `push_if_configured`. Recording costs a dictionary look-up and an addition; until the
first recording or `serve`, prometheus_client is not even imported. Names follow the Prometheus conventions: base units,
`_total` for counters; the only labels are federation, run, silo, phase, teacher and outcome, and of a served model model, version, decision, of
and bin, whose values a federation's config bounds.

    FEDHELP_METRICS_PORT     port for `serve_if_configured`
    FEDHELP_PUSHGATEWAY      host:port or URL for `push_if_configured`

On a Pushgateway every task of every run has a group of its own (job, run), which the run's promotion deletes. What outlives runs, scores and the
ends of tokens, is in a group of the federation (job, federation), which the next run replaces.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.request import Request

from fedhelp_core.errors import ConfigError
from fedhelp_core.printable import one_line
from fedhelp_core.proxies import opener_for

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PORT_VARIABLE = "FEDHELP_METRICS_PORT"
PUSHGATEWAY_VARIABLE = "FEDHELP_PUSHGATEWAY"
AGGREGATION = "fedhelp_aggregation"
CHECK = "fedhelp_check"
EVALUATION = "fedhelp_evaluation"
PREFETCH = "fedhelp_soft_label_prefetch"
"""Of shard 2: this, and _2."""
_ROUND_BUCKETS_S = (0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800)
_REQUEST_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60)
_ANSWER_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_PUSH_TIMEOUT_S = 5.0
_log = logging.getLogger("fedhelp.telemetry")


class _Metrics:
    """All of them, in a registry of our own: nothing of the libraries around us appears in it."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # 0.1 s that most commands never need

        self.registry = registry = CollectorRegistry()
        self.kept = kept = CollectorRegistry()
        """What outlives a run."""
        self.rounds = Counter("fedhelp_rounds_committed_total", "Rounds committed by this process.", ["run"], registry=registry)
        self.last_round = Gauge("fedhelp_last_committed_round", "Number of the last committed round.", ["run"], registry=registry)
        self.last_commit = Gauge("fedhelp_last_commit_timestamp_seconds", "Unix time of the last commit.", ["run"], registry=registry)
        self.round_seconds = Histogram(
            "fedhelp_round_duration_seconds", "Time from a round's start to its commit.",
            ["run"], buckets=_ROUND_BUCKETS_S, registry=registry)
        self.updates = Counter(
            "fedhelp_updates_total", "Silos' answers to rounds: accepted, refused or absent.",
            ["run", "silo", "outcome"], registry=registry)
        self.phase_seconds = Histogram(
            "fedhelp_silo_phase_duration_seconds", "Time of one phase of a silo's round: load, train, save, upload.",
            ["silo", "phase"], buckets=_ROUND_BUCKETS_S, registry=registry)
        self.update_bytes = Counter("fedhelp_update_bytes_total", "Bytes of proxy weights sent.", ["silo"], registry=registry)
        self.loss = Gauge("fedhelp_silo_loss", "Mean local training loss of the silo's last round.", ["silo"], registry=registry)
        self.images_per_second = Gauge("fedhelp_silo_images_per_second", "Private images trained on per second.", ["silo"], registry=registry)
        self.teacher_requests = Counter("fedhelp_teacher_requests_total", "Requests that a teacher answered.", ["teacher"], registry=registry)
        self.teacher_images = Counter("fedhelp_teacher_images_total", "Images that a teacher was asked about.", ["teacher"], registry=registry)
        self.teacher_failures = Counter(
            "fedhelp_teacher_failures_total", "Tries without a usable answer: refused, in_doubt or unusable.",
            ["teacher", "outcome"], registry=registry)
        self.teacher_seconds = Histogram(
            "fedhelp_teacher_request_duration_seconds", "Time of an answered request.",
            ["teacher"], buckets=_REQUEST_BUCKETS_S, registry=registry)
        self.teacher_cost = Gauge(
            "fedhelp_teacher_cost", "Money that a teacher has cost in all, in its config's currency.", ["teacher"], registry=registry)
        self.teacher_budget = Gauge("fedhelp_teacher_budget", "Money that a teacher may cost in all.", ["teacher"], registry=registry)
        self.score = Gauge(
            "fedhelp_silo_score", "Main score of the model that the silo deploys, on its own test images, in the federation's last run.",
            ["federation", "silo"], registry=kept)
        self.score_of_each = Gauge(
            "fedhelp_silo_score_of_each", "The same of each finding, foreground or region that its test images define.",
            ["federation", "silo", "answer"], registry=kept)
        self.token_ends = Gauge(
            "fedhelp_token_expiry_timestamp_seconds", "Unix time at which the hub's token for the silo's cluster ends.",
            ["federation", "silo"], registry=kept)


class _ServingMetrics:
    """Those of a served model, in the same registry from the first one on: a silo that trains shows none of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self.served = Counter(
            "fedhelp_serving_requests_total", "Questions to the model in use, by how they ended: answered, or the kind of fault.",
            ["outcome"], registry=registry)
        self.served_model = Gauge("fedhelp_serving_model_info", "1 of the model in use that answers.", ["model", "version"], registry=registry)
        self.serving_behind = Gauge(
            "fedhelp_serving_behind", "1 where the model that was put into use cannot be loaded: the one before answers, or none.", registry=registry)
        self.answers = Counter(
            "fedhelp_serving_answers_total", "Answers about images, by class, a mask's foreground, or 'do not decide'.",
            ["decision"], registry=registry)
        self.confidence = Histogram(
            "fedhelp_serving_confidence", "Calibrated probability of the decided class, or a mask's expected Dice.",
            buckets=[edge / 10 for edge in range(1, 11)], registry=registry)
        self.intensity = Histogram(
            "fedhelp_serving_intensity", "Mean of an image's pixels, 0 to 255, as the network sees them.",
            buckets=[16 * edge for edge in range(1, 17)], registry=registry)
        self.at_adoption = Gauge(
            "fedhelp_serving_adoption_share", "Share of the images in a bin when the model was adopted.", ["of", "bin"], registry=registry)
        self.psi = Gauge(
            "fedhelp_serving_psi", "Population stability index of the last 1,000 images beside those at adoption.", ["of"], registry=registry)
        self.psi_by_chance = Gauge(
            "fedhelp_serving_psi_by_chance", "The index that so few images have on average where nothing has changed.", ["of"], registry=registry)
        self.unrecorded = Counter(
            "fedhelp_serving_unrecorded_total", "Answers that could not be written into the hospital's record.", registry=registry)
        self.serving_now = Gauge("fedhelp_serving_questions_now", "Questions that are being answered.", registry=registry)
        self.served_seconds = Histogram(
            "fedhelp_serving_request_duration_seconds", "Time from a question's head to its answer.", buckets=_ANSWER_BUCKETS_S, registry=registry)


@cache
def _metrics() -> _Metrics:
    return _Metrics()


@cache
def _serving() -> _ServingMetrics:
    return _ServingMetrics(_metrics().registry)


def round_committed(
    run_id: str, round: int, seconds: float, *, accepted: Mapping[str, Mapping[str, float]], refused: Iterable[str], absent: Iterable[str],
) -> None:
    """A round was committed `seconds` after it began; `accepted`: silo -> its metrics, the first of which is the local loss."""
    metrics = _metrics()
    metrics.rounds.labels(run_id).inc()
    metrics.last_round.labels(run_id).set(round)
    metrics.last_commit.labels(run_id).set_to_current_time()
    metrics.round_seconds.labels(run_id).observe(seconds)
    for outcome, silos in (("accepted", accepted), ("refused", refused), ("absent", absent)):
        for silo in silos:
            metrics.updates.labels(run_id, silo, outcome).inc()
    for silo, found in accepted.items():
        if found:
            metrics.loss.labels(silo).set(next(iter(found.values())))


def round_finished(event: Mapping[str, Any]) -> None:
    """A silo's worker answered a round: `event` is the `round_finished` that it prints."""
    silo = event["silo"]
    for phase, seconds in event["phases"].items():
        phase_finished(silo, phase, seconds)
    update_sent(silo, event["update_bytes"])
    trained(silo, loss=float("nan") if event["loss"] is None else event["loss"], images=event["images"], seconds=event["phases"]["train"])


def phase_finished(silo: str, phase: str, seconds: float) -> None:
    """One phase of a silo's round took `seconds`."""
    _metrics().phase_seconds.labels(silo, phase).observe(seconds)


def update_sent(silo: str, size: int) -> None:
    """An update of `size` bytes left the silo."""
    _metrics().update_bytes.labels(silo).inc(size)


def trained(silo: str, *, loss: float, images: int, seconds: float) -> None:
    """A local update went through `images` private images in `seconds`, with this mean loss."""
    metrics = _metrics()
    metrics.loss.labels(silo).set(loss)
    if seconds > 0:
        metrics.images_per_second.labels(silo).set(images / seconds)


def teacher_asked(teacher: str, images: int, seconds: float) -> None:
    """A teacher answered one request about `images` images after `seconds`."""
    metrics = _metrics()
    metrics.teacher_requests.labels(teacher).inc()
    metrics.teacher_images.labels(teacher).inc(images)
    metrics.teacher_seconds.labels(teacher).observe(seconds)


def teacher_failed(teacher: str, outcome: str) -> None:
    """A try at a teacher brought no usable answer: 'refused', 'in_doubt' or 'unusable'."""
    _metrics().teacher_failures.labels(teacher, outcome).inc()


def teacher_cost(teacher: str, cost: float, budget: float | None) -> None:
    """What a teacher has cost in all, over all runs that share its ledger, and may cost; None: as much as it likes."""
    _metrics().teacher_cost.labels(teacher).set(cost)
    if budget is not None:
        _metrics().teacher_budget.labels(teacher).set(budget)


def scored(federation: str, scores: Mapping[str, float], of_each: Mapping[str, Mapping[str, float]] = MappingProxyType({})) -> None:
    """Each silo's main score after a run of `federation`; `of_each`: silo -> finding, foreground or region -> its own, NaN where there is none."""
    for silo, score in scores.items():
        _metrics().score.labels(federation, silo).set(score)
    for silo, answers in of_each.items():
        for answer, score in answers.items():
            if math.isfinite(score):
                _metrics().score_of_each.labels(federation, silo, answer).set(score)


def token_ends(federation: str, silo: str, when: float) -> None:
    """The hub's token for the silo's cluster ends at `when`, seconds since 1970."""
    _metrics().token_ends.labels(federation, silo).set(when)


def model_served(model: str, version: str) -> None:
    """This model answers from now on, and nothing is known of what it sees."""
    metrics = _serving()
    for gauge in (metrics.served_model, metrics.at_adoption, metrics.psi, metrics.psi_by_chance):
        gauge.clear()
    metrics.served_model.labels(model, version).set(1)


def serving_behind(behind: bool) -> None:
    """Whether the model that was put into use cannot be loaded."""
    _serving().serving_behind.set(behind)


def answered(decision: str, confidence: float, intensity: float) -> None:
    """The model in use said this of one image."""
    metrics = _serving()
    metrics.answers.labels(decision).inc()
    metrics.confidence.observe(confidence)
    metrics.intensity.observe(intensity)


def seen_at_adoption(of: str, counts: Iterable[int]) -> None:
    """Images in each bin of `of` when the model was adopted."""
    known = list(counts)
    for number, count in enumerate(known):
        _serving().at_adoption.labels(of, f"{number:02d}").set(count / max(1, sum(known)))


def drifted(of: str, index: float, by_chance: float) -> None:
    """How far today's images are from those at adoption."""
    _serving().psi.labels(of).set(index)
    _serving().psi_by_chance.labels(of).set(by_chance)


def unrecorded(answers: int) -> None:
    """So many answers were given and not written into the hospital's record."""
    _serving().unrecorded.inc(answers)


def serving_now(questions: int) -> None:
    """So many questions to the model in use are being answered."""
    _serving().serving_now.set(questions)


def served(outcome: str, seconds: float) -> None:
    """A question to the model in use ended after `seconds`: 'answered', or with a kind of fault."""
    metrics = _serving()
    metrics.served.labels(outcome).inc()
    if outcome == "answered":
        metrics.served_seconds.observe(seconds)


def exposition() -> str:
    """All metrics in Prometheus' text format."""
    from prometheus_client import generate_latest

    return (generate_latest(_metrics().registry) + generate_latest(_metrics().kept)).decode()


def serve(port: int, address: str = "0.0.0.0") -> int:  # the pod's own address; the chart's NetworkPolicy says who reaches it
    """Answer GET /metrics on a daemon thread; the port (chosen by the system for 0).

    Raises:
        ConfigError: the port is taken or not allowed.
    """
    from prometheus_client import start_http_server

    try:
        server, _thread = start_http_server(port, addr=address, registry=_metrics().registry)
    except (OSError, OverflowError) as e:
        raise ConfigError(f"{PORT_VARIABLE}: metrics cannot be served on {address}:{port} ({e}); choose a free port") from e
    return int(server.server_port)


def serve_if_configured() -> int | None:
    """`serve` on $FEDHELP_METRICS_PORT; None where that is not set.

    Raises:
        ConfigError: it is set, but is no usable port.
    """
    port = os.environ.get(PORT_VARIABLE)
    if not port:
        return None
    if not port.isdigit():
        raise ConfigError(f"{PORT_VARIABLE}: a port number expected, got {port!r}")
    return serve(int(port))


def push(gateway: str, job: str, run: str) -> None:
    """Send a run's metrics to a Pushgateway, added to what task `job` of `run` pushed before. A gateway that fails is one warning line."""
    _push(gateway, job, _metrics().registry, {"run": run})


def _push(gateway: str, job: str, registry: CollectorRegistry, group: dict[str, str]) -> None:
    from prometheus_client import pushadd_to_gateway

    _at_gateway(gateway, "pushed to", lambda: pushadd_to_gateway(
        gateway, job, registry, grouping_key=group, timeout=_PUSH_TIMEOUT_S, handler=_through_our_proxy))


def push_if_configured(job: str, run: str) -> None:
    """`push` to $FEDHELP_PUSHGATEWAY, where that is set, into the run's group."""
    gateway = os.environ.get(PUSHGATEWAY_VARIABLE)
    if gateway:
        push(gateway, job, run)


def keep_if_configured(job: str, federation: str) -> None:
    """Send there what outlives a run, into the federation's group: `scored` and `token_ends`."""
    gateway = os.environ.get(PUSHGATEWAY_VARIABLE)
    if gateway:
        _push(gateway, job, _metrics().kept, {"federation": federation})


def delete_if_configured(jobs: Iterable[str], run: str) -> None:
    """Take what `jobs` of `run` pushed out of $FEDHELP_PUSHGATEWAY, which would show it for ever."""
    gateway = os.environ.get(PUSHGATEWAY_VARIABLE)
    if not gateway:
        return
    from prometheus_client import delete_from_gateway

    for job in jobs:
        _at_gateway(gateway, "deleted from", partial(
            delete_from_gateway, gateway, job, grouping_key={"run": run}, timeout=_PUSH_TIMEOUT_S, handler=_through_our_proxy))


def _at_gateway(gateway: str, done: str, request: Callable[[], None]) -> None:
    from http.client import HTTPException

    try:
        request()
    except (OSError, ValueError, HTTPException) as e:  # metrics never end a run
        _log.warning("metrics were not %s %s (%s)", done, one_line(gateway), one_line(e))


def _through_our_proxy(url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes) -> Callable[[], None]:
    """What prometheus_client sends its requests with."""
    def send() -> None:
        with opener_for(url).open(Request(url, data=data, headers=dict(headers), method=method), timeout=timeout):
            pass

    return send
