"""The gate: whether a candidate becomes champion. Pure; called by promotion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedhelp_core.registry.metrics import Metric

_NAMED = 3  # classes that a sentence names
_ROUNDING = 1e-9  # two scores closer than this are the same: 0.80 - 0.75 is 0.05000000000000004


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate becomes champion, and the sentences that say why."""

    promote: bool
    reasons: list[str]


def gate(
    candidate_scores: Mapping[str, Mapping[str, Any]], champion_scores: Mapping[str, Mapping[str, Any]] | None, metric: Metric, *,
    min_improvement: float, max_regression: float, classes: Sequence[str] = (),
) -> Verdict:
    """Promote if the small silos' mean of `metric` gets better by `min_improvement` and no silo's worse by more than `max_regression`.

    Scores are compared on the same silos and the same test images only; where these differ, a person has to decide.
    Without a small silo the mean is over all silos. `classes` name what the images of a silo that loses are of.
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
        + _in_images(candidate_scores[silo], champion_scores[silo], classes)
        for silo in sorted(pairs) if not lost[silo] <= max_regression + _ROUNDING]
    if not failed:
        worst = max(lost, key=lambda silo: lost[silo])
        most = f" by more than {max_regression:.3f} (most: {worst}, by {lost[worst]:.3f})" if lost[worst] > _ROUNDING else ""
        return Verdict(better, [mean_reason, f"no silo {worse}{most}"])
    return Verdict(False, [mean_reason, *failed])


def _in_images(new: Mapping[str, Any], old: Mapping[str, Any], classes: Sequence[str]) -> str:
    """': of its test images 3 fewer are right (2 of nevus, 1 of melanoma), and 4 more of other classes'; '' where nobody has counted them."""
    if "right" not in new or "right" not in old or len(new["right"]) != len(old["right"]):
        return ""
    names = classes if len(classes) == len(new["right"]) else [f"class {label}" for label in range(len(new["right"]))]
    changes = {name: now - before for name, now, before in zip(names, new["right"], old["right"], strict=True)}
    lost = {name: -change for name, change in changes.items() if change < 0}
    gained = sum(change for change in changes.values() if change > 0)
    if not lost:
        return ""
    most = sorted(lost.items(), key=lambda one: -one[1])[:_NAMED]
    fewer = f"{sum(lost.values()):,} fewer {'are' if sum(lost.values()) > 1 else 'is'} right"
    which = ", ".join(f"{count:,} of {name}" for name, count in most) + (", ..." if len(lost) > _NAMED else "")
    return f": of its test images {fewer} ({which})" + (f", and {gained:,} more of other classes" if gained else "")


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
