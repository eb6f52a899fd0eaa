"""What a prefetch did, as others read it: a fact in the store, numbers for MLflow and KFP, lines for people.

Written by soft_label_prefetch; aggregation reads the fact for MLflow, evaluation for the HTML report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedhelp_core.protocol.facts import SoftLabels

if TYPE_CHECKING:
    from fedhelp_core.softlabels.prefetch import PrefetchReport

_OF_THE_RUN = ("requests", "images", "retried", "in_doubt", "in_doubt_images", "refused", "unusable", "cost", "latency_p50", "latency_p95")


def as_fact(report: PrefetchReport) -> SoftLabels:
    """What later steps and the report read of it."""
    return SoftLabels(
        sha256=report.distillation_set_sha256, images=report.images, asked=report.asked, cached=report.cached, duplicates=report.duplicates,
        seconds=round(report.seconds, 3), classes=report.classes, teachers=report.teachers)


def numbers(fact: SoftLabels) -> dict[str, float]:
    """The fact as metrics: `soft_labels.images`, and per teacher `soft_labels.<teacher>.asked` and so on; costs in the teacher's currency."""
    found = {f"soft_labels.{name}": float(getattr(fact, name)) for name in ("images", "duplicates", "asked", "cached", "seconds")}
    for name, teacher in fact.teachers.items():
        own = {"asked": teacher.asked, "cached": teacher.cached} | {key: getattr(teacher.run, key) for key in _OF_THE_RUN}
        found |= {f"soft_labels.{name}.{key}": float(value) for key, value in own.items()}
        found[f"soft_labels.{name}.cost_ever"] = teacher.ever.cost
    return found


def described(report: PrefetchReport) -> list[str]:
    """The report as lines for people."""
    lines = [f"soft labels: {report.images} public images, {report.asked} asked by this run, {report.cached} known before, {report.seconds:.1f} s"]
    for name, teacher in report.teachers.items():
        mine, ever = teacher.run, teacher.ever
        doubt = f", {mine.in_doubt} in doubt ({mine.in_doubt_images} images that may have been answered unrecorded)" if mine.in_doubt else ""
        lines.append(
            f"teacher {name}: {mine.requests} requests answered, {mine.retried} tries refused, {mine.refused + mine.unusable} requests failed{doubt};"
            f" p50 {mine.latency_p50:.3f} s, p95 {mine.latency_p95:.3f} s; cost {mine.cost:.2f} {teacher.currency}, ever {ever.cost:.2f}")
    return lines + [f"look at this: {remark}" for remark in report.remarks]
