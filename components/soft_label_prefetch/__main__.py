"""Ask the teachers for soft labels, once per public image, ever; build the run's distillation set.

    python -m fedhelp_components.soft_label_prefetch --store URL --run RUN
"""

from __future__ import annotations

from fedhelp_components.session import end, open_session, run_parser, say
from fedhelp_core.errors import NotFound
from fedhelp_core.facts import read_fact, write_fact


def run(*, store: str, endpoint_url: str, run_id: str) -> str:
    """sha256 of the distillation set that this run uses; '' where its method needs none.

    Raises:
        TeacherError: a teacher's answer cannot be used.
        TeacherUnavailable: a teacher was not reached; what it answered is kept, run again to go on.
    """
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

    report = prefetch(session.store, federation.public_set, federation.task.image_size)
    fact = write_fact(session.store, run_id, "distillation_set", {
        "sha256": report.distillation_set_sha256, "images": report.images, "asked": report.asked, "cached": report.cached,
        "seconds": round(report.seconds, 3), "classes": report.classes,
    })
    say(f"soft labels: {report.images} public images, {report.asked} asked now, {report.cached} known before, {report.seconds:.1f} s")
    return str(fact["sha256"])


def main() -> None:
    """Parse, ask, print."""
    arguments = run_parser("soft_label_prefetch", __doc__).parse_args()
    end("soft_label_prefetch", lambda: say(run(store=arguments.store, endpoint_url=arguments.endpoint_url, run_id=arguments.run)))


if __name__ == "__main__":
    main()
