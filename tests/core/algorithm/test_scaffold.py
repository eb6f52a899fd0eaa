"""SCAFFOLD against a loop that keeps every gradient: a silo's control variate is their mean, and the hub's that of all silos."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedhelp_core.algorithm.averaging import Rule, rule_of
from fedhelp_core.algorithm.batches import Batches
from fedhelp_core.algorithm.local_update import LocalResult, SiloData, SiloState, UpdateSettings, Weights, initial_weights, local_update
from fedhelp_core.algorithm.randomness import generator_for
from fedhelp_core.algorithm.scaffold import BEFORE, OWN, taken_back
from fedhelp_core.algorithm.server import Answers, Part, next_round
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.models.build import build_model
from fedhelp_core.objectives.open import objective_of

OBJECTIVE = objective_of(TaskConfig(classes=("a", "b", "c", "d"), image_size=8))
RATE, DECAY = 0.05, 0.01
SILOS = {"a": 10, "b": 5}  # three batches and two


def algorithm(**changes: object) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate({
        "method": "scaffold", "proxy_model": "resnet8", "augmentation": "none", "rounds": 2,
        "optimizer": {"kind": "sgd", "learning_rate": RATE, "weight_decay": DECAY}, **changes})


def data_of(silo: str) -> SiloData:
    count = SILOS[silo]
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    return SiloData(images_NCHW=images, labels_N=torch.arange(count) % 4)


def trained(silo: str, weights: Weights, state: SiloState, control: Weights | None, round_number: int, **changes: object) -> LocalResult:
    settings = UpdateSettings(algorithm=algorithm(**changes), objective=OBJECTIVE, seed=7, silo=silo, kind="small")
    return local_update(weights, state, data_of(silo), settings, round_number=round_number, control=control)


def by_hand(
    silo: str, weights: Weights, own: dict[str, torch.Tensor], control: Weights | None, round_number: int,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The silo's weights after its steps, and the mean of its gradients (weight decay included)."""
    model = build_model("resnet8", outputs=4)
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
    model.to(memory_format=torch.channels_last).train()
    data = data_of(silo)
    batches = Batches(
        data.images_NCHW, data.labels_N, batch_size=4, augment=None, generator=generator_for(7, silo, round_number, "private"),
        device=torch.device("cpu"))
    sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in model.named_parameters()}
    for images, labels in batches.one_pass():
        model.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                assert weight.grad is not None
                gradient = weight.grad + DECAY * weight
                sums[name] += gradient
                shared = torch.from_numpy(control[name]) if control is not None else 0.0
                weight -= RATE * (gradient + shared - own.get(name, 0.0))
    return dict(model.state_dict()), {name: total / len(batches) for name, total in sums.items()}


@pytest.mark.timeout(60)  # four local updates twice, on a busy machine
def test_two_rounds_of_two_silos_are_the_papers() -> None:
    rule = rule_of(algorithm())
    answers = Answers.of(("a", "b"), SILOS, {"a": 3, "b": 2}, "uniform")
    weights, remembered = initial_weights(algorithm(), OBJECTIVE, seed=7), dict[Part, Weights]()
    states = dict.fromkeys(SILOS, SiloState.empty())
    own: dict[str, dict[str, torch.Tensor]] = {silo: {} for silo in SILOS}
    for number in (1, 2):
        control = remembered.get("control")
        results = {silo: trained(silo, weights, states[silo], control, number) for silo in SILOS}
        for silo, result in results.items():
            expected, own[silo] = by_hand(silo, weights, own[silo], control, number)
            for name, mean in own[silo].items():
                assert torch.from_numpy(result.weights[name]).allclose(expected[name], atol=2e-6), (number, silo, name)
                assert result.state.tensors[OWN + name].double().allclose(mean, rtol=1e-3, atol=2e-5), (number, silo, name)
        weights, remembered = next_round(rule, answers, weights, remembered, [result.weights for result in results.values()])
        states = {silo: result.state for silo, result in results.items()}
        for name in own["a"]:
            mean = (states["a"].tensors[OWN + name] + states["b"].tensors[OWN + name]) / 2
            assert torch.from_numpy(remembered["control"][name]).allclose(mean, rtol=1e-3, atol=2e-5), (number, name)
        assert not any(remembered["control"][name].any() for name in weights if name not in own["a"])


def test_the_first_round_is_fedavgs_for_nothing_is_known_yet() -> None:
    weights = initial_weights(algorithm(), OBJECTIVE, seed=7)
    first = trained("a", weights, SiloState.empty(), None, 1)
    plain = trained("a", weights, SiloState.empty(), None, 1, method="fedavg")
    assert all(np.array_equal(first.weights[name], array) for name, array in plain.weights.items())


def test_only_the_weights_leave_the_silo() -> None:
    weights = initial_weights(algorithm(), OBJECTIVE, seed=7)
    result = trained("a", weights, SiloState.empty(), None, 1)
    assert result.weights.keys() == weights.keys() and any(name.startswith(OWN) for name in result.state.tensors)


def test_batch_norms_that_stay_at_home_are_not_corrected() -> None:
    weights = initial_weights(algorithm(normalisation="silo"), OBJECTIVE, seed=7)
    result = trained("a", weights, SiloState.empty(), None, 1, normalisation="silo")
    assert {name.removeprefix(OWN) for name in result.state.tensors if name.startswith(OWN)} == weights.keys()


def test_a_round_that_the_hub_did_not_take_is_taken_back() -> None:
    tensors = {OWN + "w": torch.tensor([2.0]), BEFORE + "w": torch.tensor([1.0]), "normalisation/w": torch.tensor([3.0])}
    assert {name: value.item() for name, value in taken_back(tensors).items()} == {OWN + "w": 1.0, "normalisation/w": 3.0}


def test_a_silo_that_does_not_answer_keeps_its_part_of_the_mean() -> None:
    """c = 0.5 c_a + 0.5 c_b; only a answers, whose mean gradient was 4 over two steps of 0.5: c_a becomes 4, c_b stays 6."""
    start: Weights = {"w": np.array([10.0])}
    remembered: dict[Part, Weights] = {"control": {"w": np.array([(2.0 + 6.0) / 2])}}
    moved = 10.0 - 2 * 0.5 * (4.0 - 2.0 + 4.0)  # a's steps go by its gradient, less c_a, and c
    answers = Answers.of(("a",), {"a": 8, "b": 8}, {"a": 2, "b": 2}, "uniform")
    _, after = next_round(Rule(control_variates_of=0.5), answers, start, remembered, [{"w": np.array([moved])}])
    assert after["control"]["w"].tolist() == pytest.approx([(4.0 + 6.0) / 2])
