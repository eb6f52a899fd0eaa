"""The hub's side of a round: what becomes of the silos' updates, by which rule. Pure; the hub that runs it has no PyTorch.

A rule is a few computations, one after the other. Each makes a set of tensors of the model's own form from others of that form, element by
element: `simulate` has them as arrays, protocol/averaging.py as files that are read in pieces, and both end with the same bits.
What is learnt goes through the rule's arithmetic. What is counted is only ever averaged: a batch norm's running mean and variance are
measured, not optimised, and a step beyond the average could make a variance negative; its counter of batches takes the maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from fedhelp_core.algorithm import fednova, scaffold, server_optimizer
from fedhelp_core.algorithm.averaging import Rule, check_shares, kernel_for, shares_of
from fedhelp_core.algorithm.kernels import CopyKernel, ElementKernel, Kernel, SumKernel, ZeroKernel, compute_tensor
from fedhelp_core.weights.header import Weights, is_statistic

Part = Literal["momentum", "scale", "control"]
"""What a hub remembers from round to round, beside the model: tensors of the model's own form, zero where it is counted."""
PARTS: tuple[Part, ...] = get_args(Part)
Source = int | str
"""The place of an update, `BEFORE`, the name of an earlier computation, or `last(part)`."""
MODEL, BEFORE, _AVERAGE = "model", "before", "average"
MakeKernel = Callable[[], Kernel]


def last(part: str) -> str:
    """What the hub remembered of the round before."""
    return f"last {part}"


def is_learnt(name: str, dtype: np.dtype[Any]) -> bool:
    """Whether an optimizer moves the tensor, rather than a batch norm."""
    return dtype.kind == "f" and not is_statistic(name)


@dataclass(frozen=True)
class Computation:
    """One set of tensors to be made."""

    name: str
    """MODEL, a `Part`, or something in between that nobody keeps."""
    sources: tuple[Source, ...]
    learnt: MakeKernel
    counted: MakeKernel


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Who answered a round, in the order in which updates are summed."""

    shares: Sequence[float]
    """a_k of Eq 7."""
    standing: Sequence[float]
    """The same among all silos, those included that did not answer."""
    steps: Sequence[int]
    """Optimizer steps of the round."""

    @staticmethod
    def of(answered: Sequence[str], samples: Mapping[str, int], steps: Mapping[str, int], weighting: str) -> Answers:
        """`answered` are the silos with good updates; `samples` and `steps` are of all silos."""
        standing = dict(zip(samples, shares_of(list(samples.values()), weighting), strict=True))
        return Answers(
            shares=shares_of([samples[silo] for silo in answered], weighting), standing=[standing[silo] for silo in answered],
            steps=[steps[silo] for silo in answered])


def computations(rule: Rule, answers: Answers, remembered: Collection[str]) -> tuple[Computation, ...]:
    """What closes a round, in order; the one called MODEL makes the next model. `remembered`: parts of the round before."""
    check_shares(answers.shares, len(answers.shares))
    plain = rule.optimizer.kind == "none"
    found = [_average(rule, answers, MODEL if plain else _AVERAGE)]
    if not plain:
        found += _optimizer_steps(rule, remembered)
    if rule.control_variates_of is not None:
        found.append(_control(rule.control_variates_of, answers, first="control" not in remembered))
    return tuple(found)


def next_round(
    rule: Rule, answers: Answers, before: Weights, remembered: Mapping[Part, Weights], updates: Sequence[Weights],
) -> tuple[Weights, dict[Part, Weights]]:
    """The next model and what is remembered of this round, on arrays. All are of the form of `before`.

    Raises:
        ValueError: the shares are none.
    """
    at: dict[Source, Weights] = {BEFORE: before, **dict(enumerate(updates)), **{last(part): found for part, found in remembered.items()}}
    made = {}
    for one in computations(rule, answers, remembered):
        made[one.name] = at[one.name] = _on_arrays(one, [at[source] for source in one.sources])
    return made.pop(MODEL), {part: made[part] for part in PARTS if part in made}


def _on_arrays(one: Computation, sources: Sequence[Weights]) -> Weights:
    kernels = {True: one.learnt(), False: one.counted()}
    return {
        name: compute_tensor(kernels[is_learnt(name, array.dtype)], [source[name] for source in sources]) for name, array in sources[0].items()}


def _average(rule: Rule, answers: Answers, name: str) -> Computation:
    """Eq 7 by its rule."""
    updates: tuple[Source, ...] = tuple(range(len(answers.shares)))
    if rule.aggregation == "fednova":
        steps = [fednova.equivalent_steps(count, rule.momentum, rule.pull) for count in answers.steps]
        return Computation(
            name, (BEFORE, *updates), partial(SumKernel, fednova.factors(answers.shares, steps)), partial(SumKernel, [0.0, *answers.shares]))
    kernel = partial(kernel_for, answers.shares, rule)
    return Computation(name, updates, kernel, kernel)


def _optimizer_steps(rule: Rule, remembered: Collection[str]) -> list[Computation]:
    """FedAvgM, FedAdam or FedYogi from the average."""
    optimizer, first = rule.optimizer, "momentum" not in remembered

    def part(name: Part, learnt: Callable[[int], Kernel]) -> Computation:
        sources = (BEFORE, _AVERAGE) if first else (BEFORE, _AVERAGE, last(name))
        return Computation(name, sources, partial(learnt, len(sources)), ZeroKernel)

    parts = [part("momentum", lambda _: SumKernel(server_optimizer.momentum_factors(optimizer, first=first)))]
    if optimizer.kind != "momentum":
        parts.append(part("scale", lambda sources: ElementKernel(sources, server_optimizer.next_scale(optimizer))))
    read = (BEFORE, *(one.name for one in parts))
    model = partial(ElementKernel, len(read), server_optimizer.next_model(optimizer))
    return [*parts, Computation(MODEL, (*read, _AVERAGE), model, partial(CopyKernel, len(read)))]


def _control(learning_rate: float, answers: Answers, *, first: bool) -> Computation:
    """SCAFFOLD's mean of the control variates."""
    updates = range(len(answers.shares))
    factors = scaffold.factors(answers.standing, answers.steps, learning_rate, first=first)
    return Computation("control", (BEFORE, *updates) if first else (BEFORE, *updates, last("control")), partial(SumKernel, factors), ZeroKernel)
