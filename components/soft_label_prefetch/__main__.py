"""Ask the teachers for soft labels, once per public image, ever; build the run's distillation set.

    python -m fedhelp_components.soft_label_prefetch --store URL --run RUN [--shard 1/4]

With --shard it only asks, about its share of the images; once all shards are done, the same without --shard builds the set. In
pipeline `fedhelp` the shards (public_set.shards) are nodes beside each other, in `fedhelp-compact` there is one task.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedhelp_components.session import ends_in_mlflow, open_session, run_component, say
from fedhelp_core import telemetry
from fedhelp_core.errors import ConfigError, NotFound
from fedhelp_core.protocol.facts import SoftLabels
from fedhelp_core.protocol.run import Run
from fedhelp_core.softlabels.report import as_fact, described, numbers
from fedhelp_core.store.open import open_store

if TYPE_CHECKING:
    from fedhelp_core.softlabels.asking import Progress

_PACE = 5.0  # seconds between two lines of progress


def run(*, store: str, endpoint_url: str, run_id: str, shard: str = "") -> str:
    """sha256 of the distillation set that this run uses; '' where its method needs none, and of a shard.

    Raises:
        ConfigError: `shard` is not like 1/4, or a teacher's budget is used up.
        TeacherError: a teacher's answer cannot be used.
        TeacherUnavailable: a teacher was not reached; what it answered is kept, run again to go on.
    """
    part = parsed_shard(shard)
    session = open_session(store, run_id, endpoint_url)
    federation = session.federation
    if not federation.uses_public_set or federation.public_set is None:
        say(f"method {federation.algorithm.method} uses no soft labels: nothing to ask")
        return ""
    try:
        return session.run.fact(SoftLabels).sha256
    except NotFound:
        pass
    from fedhelp_core.softlabels.prefetch import prefetch

    try:
        with ends_in_mlflow(federation, run_id):
            report = prefetch(
                session.store, federation.public_set, federation.task, run=run_id, shard=part, progress=said_now_and_then())
    finally:
        telemetry.push_if_configured(telemetry.PREFETCH + (f"_{part[0]}" if part else ""), run_id)  # shards must not hide each other
    for line in described(report):
        say(line)
    if part is not None:
        return ""
    return session.run.settle(as_fact(report)).sha256


def figures_of(store: str, endpoint_url: str, run_id: str) -> dict[str, float]:
    """The run's prefetch in numbers, for KFP's own display; nothing before its set is built."""
    try:
        return numbers(Run(open_store(store, endpoint_url=endpoint_url or None), run_id).fact(SoftLabels))
    except NotFound:
        return {}


def parsed_shard(text: str) -> tuple[int, int] | None:
    """'2/4' -> (2, 4); '' and '1/1' -> None, all images.

    Raises:
        ConfigError: neither.
    """
    if not text:
        return None
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise ConfigError(f"shard: NUMBER/OF expected, e.g. 1/4, got {text!r}")
    return (int(number), int(total)) if int(total) > 1 else None


def said_now_and_then() -> Callable[[Progress], None]:
    """Prints progress, at most every few seconds."""
    last = time.monotonic()

    def progress(step: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _PACE:
            last = time.monotonic()
            say(str(step))

    return progress


if __name__ == "__main__":
    run_component("soft_label_prefetch", __doc__, run, shard="[NUMBER/OF: ask about this share of the images only, and build no set]")
