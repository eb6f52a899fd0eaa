"""Ask the teachers for soft labels, once per public image, ever; build the run's distillation set.

    python -m fedhelp_components.soft_label_prefetch --store URL --run RUN [--shard 1/4]

With --shard it only asks, about its share of the images; once all shards are done, the same without --shard builds the set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fedhelp_components.session import end, open_session, run_parser, say
from fedhelp_core import telemetry
from fedhelp_core.errors import ConfigError, NotFound
from fedhelp_core.facts import read_fact, write_fact

if TYPE_CHECKING:
    from fedhelp_core.softlabels.asking import Progress
    from fedhelp_core.softlabels.prefetch import PrefetchReport

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
        return str(read_fact(session.store, run_id, "distillation_set")["sha256"])
    except NotFound:
        pass
    from fedhelp_core.softlabels.prefetch import prefetch

    try:
        report = prefetch(
            session.store, federation.public_set, federation.task.image_size, run=run_id, shard=part, progress=said_now_and_then())
    finally:
        telemetry.push_if_configured("fedhelp_soft_label_prefetch")
    for line in described(report):
        say(line)
    if part is not None:
        return ""
    return str(write_fact(session.store, run_id, "distillation_set", as_fact(report))["sha256"])


def parsed_shard(text: str) -> tuple[int, int] | None:
    """'2/4' -> (2, 4); '' -> None, all images.

    Raises:
        ConfigError: neither.
    """
    if not text:
        return None
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise ConfigError(f"shard: NUMBER/OF expected, e.g. 1/4, got {text!r}")
    return int(number), int(total)


def said_now_and_then() -> Callable[[Progress], None]:
    """Prints progress, at most every few seconds."""
    last = time.monotonic()

    def progress(step: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _PACE:
            last = time.monotonic()
            say(str(step))

    return progress


def as_fact(report: PrefetchReport) -> dict[str, Any]:
    """What later steps and the report read of it."""
    return {
        "sha256": report.distillation_set_sha256, "images": report.images, "asked": report.asked, "cached": report.cached,
        "duplicates": report.duplicates, "seconds": round(report.seconds, 3), "classes": report.classes,
        "teachers": {name: asdict(teacher) for name, teacher in report.teachers.items()},
    }


def described(report: PrefetchReport) -> list[str]:
    """The report as lines for people."""
    lines = [f"soft labels: {report.images} public images, {report.asked} asked by this run, {report.cached} known before, {report.seconds:.1f} s"]
    for name, teacher in report.teachers.items():
        mine, ever = teacher.run, teacher.ever
        doubt = f", {mine.in_doubt} in doubt ({mine.in_doubt_images} images that may have been answered unrecorded)" if mine.in_doubt else ""
        lines.append(
            f"teacher {name}: {mine.requests} requests answered, {mine.retried} tries refused, {mine.refused + mine.unusable} requests failed{doubt};"
            f" p50 {mine.latency_p50:.3f} s, p95 {mine.latency_p95:.3f} s; cost {mine.cost:.2f} {teacher.currency}, ever {ever.cost:.2f}")
    return lines


def main() -> None:
    """Parse, ask, print."""
    parser = run_parser("soft_label_prefetch", __doc__)
    parser.add_argument("--shard", default="", help="NUMBER/OF: ask about this share of the images only, and build no set")
    arguments = parser.parse_args()
    end("soft_label_prefetch", lambda: say(run(
        store=arguments.store, endpoint_url=arguments.endpoint_url, run_id=arguments.run, shard=arguments.shard)))


if __name__ == "__main__":
    main()
