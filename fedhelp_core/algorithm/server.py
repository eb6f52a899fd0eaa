"""The hub's side of a round: what becomes of the silos' updates, by which rule. Pure; the hub that runs it has no PyTorch.

A rule is a few computations, one after the other. Each makes a set of tensors of the model's own form from others of that form, element by
element: `simulate` has them as arrays, protocol/averaging.py as files that are read in pieces, and both end with the same bits.
What is learnt goes through the rule's arithmetic. What is counted is only ever averaged: a batch norm's running mean and variance are
measured, not optimised, and a step beyond the average could make a variance negative; its counter of batches takes the maximum.

Where a silo labels some answers alone, it says nothing of the others. What an output has to itself in the head, a row of weights and a bias, is
then made of those silos' updates that label it, their shares among themselves; where none of them has answered, it stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.algorithm import fednova, scaffold, server_optimizer
from fedhelp_core.algorithm.averaging import Rule, check_shares, kernel_for, shares_of
from fedhelp_core.algorithm.kernels import ChosenKernel, CopyKernel, ElementKernel, Kernel, SumKernel, ZeroKernel, compute_tensor
from fedhelp_core.errors import WeightsError
from fedhelp_core.weights.header import Weights, is_statistic

Part = Literal["momentum", "scale", "control"]
"""What a hub remembers from round to round, beside the model: tensors of the model's own form, zero where it is counted."""
PARTS: tuple[Part, ...] = get_args(Part)
Source = int | str
"""The place of an update, `BEFORE`, the name of an earlier computation, or `last(part)`."""
MODEL, BEFORE, _AVERAGE = "model", "before", "average"
MakeKernel = Callable[[], Kernel]
_HEAD = ("head.weight", "head.bias")  # as models/cut.py and our own networks have it


def last(part: str) -> str:
    """What the hub remembered of the round before."""
    return f"last {part}"


def is_learnt(name: str, dtype: np.dtype[Any]) -> bool:
    """Whether an optimizer moves the tensor, rather than a batch norm."""
    return dtype.kind == "f" and not is_statistic(name)


@dataclass(frozen=True)
class Rows:
    """A tensor of the head: `elements` of the first of so many outputs, then of the second; and where a kernel lies the other way round, so again."""

    outputs: int
    elements: int

    def output_of(self, first: int) -> int:
        """Whose the element number `first` is."""
        return first // self.elements % self.outputs


Group = bool | Rows
"""What arithmetic a tensor takes: of what is learnt, of what is counted, or output by output."""


@dataclass(frozen=True)
class Groups:
    """The group of a tensor. `outputs`: of the head; 0 where all silos label all of them, so that it is like every other layer."""

    outputs: int = 0

    def __call__(self, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> Group:
        """Of the tensor `name`.

        Raises:
            WeightsError: a head has other outputs.
        """
        if not self.outputs or name not in _HEAD:
            return is_learnt(name, dtype)
        for axis, side in enumerate(shape[:2]):  # the second of a transposed convolution
            if side == self.outputs:
                return Rows(self.outputs, math.prod(shape[axis + 1:]))
        raise WeightsError(f"tensor {name!r}: {self.outputs} outputs expected, got a shape {tuple(shape)}")


@dataclass(frozen=True)
class Computation:
    """One set of tensors to be made."""

    name: str
    """MODEL, a `Part`, or something in between that nobody keeps."""
    sources: tuple[Source, ...]
    learnt: MakeKernel
    counted: MakeKernel
    of_output: Callable[[int], Kernel] | None = None
    """Of what one output has to itself; None where all silos label all outputs."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Who answered a round, in the order in which updates are summed."""

    shares: Sequence[float]
    """a_k of Eq 7."""
    standing: Sequence[float]
    """The same among all silos, those included that did not answer."""
    steps: Sequence[int]
    """Optimizer steps of the round."""
    labelled: Sequence[Sequence[bool]] = ()
    """Which outputs each of them labels; empty where all silos label all."""
    standing_of_outputs: Sequence[float] = ()
    """Of each output, what all silos that label it have in `standing`."""

    @staticmethod
    def of(
        answered: Sequence[str], samples: Mapping[str, int], steps: Mapping[str, int], weighting: str,
        labelled: Mapping[str, Sequence[bool] | None] | None = None,
    ) -> Answers:
        """`answered` are the silos with good updates; `samples`, `steps` and `labelled` are of all silos, the last None where one labels all."""
        standing = dict(zip(samples, shares_of(list(samples.values()), weighting), strict=True))
        found = Answers(
            shares=shares_of([samples[silo] for silo in answered], weighting), standing=[standing[silo] for silo in answered],
            steps=[steps[silo] for silo in answered])
        said = [of_one for of_one in (labelled or {}).values() if of_one is not None and not all(of_one)]
        if not said:
            return found
        everything = (True,) * len(said[0])
        rows = {silo: tuple((labelled or {}).get(silo) or everything) for silo in samples}
        totals = [math.fsum(standing[silo] for silo in samples if rows[silo][output]) for output in range(len(everything))]
        return replace(found, labelled=[rows[silo] for silo in answered], standing_of_outputs=totals)

    @property
    def groups(self) -> Groups:
        """Of the model's tensors."""
        return Groups(len(self.standing_of_outputs))

    def who_labels(self, output: int) -> list[int]:
        """Places of those who do."""
        return [place for place, of_one in enumerate(self.labelled) if of_one[output]]

    def among(self, places: Sequence[int]) -> list[float]:
        """Their shares among themselves."""
        total = math.fsum(self.shares[place] for place in places)
        return [self.shares[place] / total for place in places]


def computations(rule: Rule, answers: Answers, remembered: Collection[str]) -> tuple[Computation, ...]:
    """What closes a round, in order; the one called MODEL makes the next model. `remembered`: parts of the round before."""
    check_shares(answers.shares, len(answers.shares))
    plain = rule.optimizer.kind == "none"
    found = [_average(rule, answers, MODEL if plain else _AVERAGE)]
    if not plain:
        found += _optimizer_steps(rule, answers, remembered)
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
        made[one.name] = at[one.name] = _on_arrays(one, answers.groups, [at[source] for source in one.sources])
    return made.pop(MODEL), {part: made[part] for part in PARTS if part in made}


def _on_arrays(one: Computation, groups: Groups, sources: Sequence[Weights]) -> Weights:
    kernels = {True: one.learnt(), False: one.counted()}
    made = {}
    for name, array in sources[0].items():
        tensors, group = [source[name] for source in sources], groups(name, array.dtype, array.shape)
        made[name] = _by_output(one, group, tensors) if isinstance(group, Rows) else compute_tensor(kernels[group], tensors)
    return made


def _by_output(one: Computation, rows: Rows, tensors: Sequence[NDArray[Any]]) -> NDArray[Any]:
    assert one.of_output is not None
    whole = [np.asarray(tensor).reshape(-1, rows.outputs, rows.elements) for tensor in tensors]
    parts = [compute_tensor(one.of_output(output), [tensor[:, output] for tensor in whole]) for output in range(rows.outputs)]
    return np.stack(parts, axis=1).reshape(tensors[0].shape)


def _average(rule: Rule, answers: Answers, name: str) -> Computation:
    """Eq 7 by its rule."""
    updates = range(len(answers.shares))
    if rule.aggregation == "fednova":
        steps = [fednova.equivalent_steps(count, rule.momentum, rule.pull) for count in answers.steps]

        def by_steps(places: Sequence[int]) -> Kernel:
            factors = fednova.factors(answers.among(places), [steps[place] for place in places])
            return ChosenKernel(SumKernel(factors), (0, *(1 + place for place in places)))

        learnt = partial(SumKernel, fednova.factors(answers.shares, steps))
        return Computation(name, (BEFORE, *updates), learnt, partial(SumKernel, [0.0, *answers.shares]), _of_outputs(answers, by_steps))
    kernel = partial(kernel_for, answers.shares, rule)
    if not answers.labelled:
        return Computation(name, tuple(updates), kernel, kernel)

    def mean(places: Sequence[int]) -> Kernel:
        return ChosenKernel(kernel_for(answers.among(places), rule), [1 + place for place in places])

    def of_all() -> Kernel:
        return ChosenKernel(kernel(), [1 + place for place in updates])

    return Computation(name, (BEFORE, *updates), of_all, of_all, _of_outputs(answers, mean))


def _of_outputs(answers: Answers, of_places: Callable[[Sequence[int]], Kernel]) -> Callable[[int], Kernel] | None:
    """Of each output what `of_places` makes of those who label it; where nobody does, the first source as it is: the model before."""
    if not answers.labelled:
        return None
    return lambda output: of_places(places) if (places := answers.who_labels(output)) else CopyKernel(0)


def _optimizer_steps(rule: Rule, answers: Answers, remembered: Collection[str]) -> list[Computation]:
    """FedAvgM, FedAdam or FedYogi from the average. An output that nobody labels is not moved by what is remembered of it either."""
    optimizer, first = rule.optimizer, "momentum" not in remembered

    def part(name: Part, learnt: Callable[[int], Kernel], untouched: MakeKernel) -> Computation:
        sources = (BEFORE, _AVERAGE) if first else (BEFORE, _AVERAGE, last(name))
        return Computation(
            name, sources, partial(learnt, len(sources)), ZeroKernel,
            _of_outputs_or(answers, partial(learnt, len(sources)), untouched if first else partial(CopyKernel, 2)))

    parts = [part("momentum", lambda _: SumKernel(server_optimizer.momentum_factors(optimizer, first=first)), ZeroKernel)]
    if optimizer.kind != "momentum":
        parts.append(part(
            "scale", lambda sources: ElementKernel(sources, server_optimizer.next_scale(optimizer)),
            lambda: ElementKernel(1, lambda model: np.full_like(model, optimizer.tau))))
    read = (BEFORE, *(one.name for one in parts))
    model = partial(ElementKernel, len(read), server_optimizer.next_model(optimizer))
    kept = _of_outputs_or(answers, model, partial(CopyKernel, 0))
    return [*parts, Computation(MODEL, (*read, _AVERAGE), model, partial(CopyKernel, len(read)), kept)]


def _of_outputs_or(answers: Answers, learnt: MakeKernel, untouched: MakeKernel) -> Callable[[int], Kernel] | None:
    """Of each output `learnt` where somebody labels it, else `untouched`."""
    return (lambda output: learnt() if answers.who_labels(output) else untouched()) if answers.labelled else None


def _control(learning_rate: float, answers: Answers, *, first: bool) -> Computation:
    """SCAFFOLD's mean of the control variates; of an output, of those who label it."""
    updates = range(len(answers.shares))

    def kernel(places: Sequence[int], total: float = 1.0) -> Kernel:
        factors = scaffold.factors(
            [answers.standing[place] / total for place in places], [answers.steps[place] for place in places], learning_rate, first=first)
        return ChosenKernel(SumKernel(factors), (0, *(1 + place for place in places), *(() if first else (1 + len(updates),))))

    def of_output(output: int) -> Kernel:
        return kernel(answers.who_labels(output), answers.standing_of_outputs[output] or 1.0)

    sources: tuple[Source, ...] = (BEFORE, *updates) if first else (BEFORE, *updates, last("control"))
    return Computation("control", sources, partial(kernel, updates), ZeroKernel, of_output if answers.labelled else None)
