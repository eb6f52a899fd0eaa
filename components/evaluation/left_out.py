"""Which silos missed rounds or the evaluation, and why, a sentence each. Called by evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fedhelp_components.aggregation.__main__ import left_out
from fedhelp_core.protocol.documents import Commit


def silos_left_out(commits: Iterable[Commit], not_evaluated: Mapping[str, str], silos: Sequence[str]) -> dict[str, str]:
    """Silo -> which of the rounds that `commits` closed it missed, with the last reason, and why it was `not_evaluated`; in the order of `silos`."""
    missed: dict[str, list[int]] = {}
    why: dict[str, str] = {}
    for commit in commits:
        for silo, reason in left_out(commit).items():
            missed.setdefault(silo, []).append(commit.round)
            why[silo] = reason
    found = {}
    for silo in silos:
        said = [f"missed {_rounds(missed[silo])}: {why[silo]}"] if silo in missed else []
        said += [f"not evaluated: {not_evaluated[silo]}"] if silo in not_evaluated else []
        if said:
            found[silo] = "; ".join(said)
    return found


def _rounds(numbers: Sequence[int]) -> str:
    """'round 2', 'rounds 2, 4 to 7'. `numbers` ascend."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    listed = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans)
    return f"round{'s' if len(numbers) > 1 else ''} {listed}"
