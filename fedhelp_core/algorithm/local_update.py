"""A silo's work in one round: Eq 1-2 in a small silo, Eq 3-5 in a large one, and the compared methods, for any task.

`local_update` is a pure function (global weights, silo state, data, settings) -> (new weights, new state, facts); it does
no I/O and draws all randomness from generators made of (seed, silo, round). Called by simulate and by the silo's worker.

Names of the state's tensors: `large/...` the large model f, `public_head/...` the head g, `normalisation/...` the proxy's
batch norms under `normalisation: silo`, `proxy/...` the whole proxy under method local, `optimizer_<x>/...` an optimizer's moments,
`control_variate/...` SCAFFOLD's c_k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedhelp_core.algorithm import losses
from fedhelp_core.algorithm.batches import Batches, Rows, memory_format
from fedhelp_core.algorithm.objective import Objective
from fedhelp_core.algorithm.precision import Precision, arithmetic, kernels
from fedhelp_core.algorithm.randomness import generator_for
from fedhelp_core.algorithm.scaffold import ControlVariates
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.pretrained import WhichModel
from fedhelp_core.errors import DataError, GlobalModelDiverges, WeightsError
from fedhelp_core.models.build import build_public_head, normalisation_keys
from fedhelp_core.models.initialisation import seeded
from fedhelp_core.models.pretrained import fitted
from fedhelp_core.registry.methods import METHOD_PARTS
from fedhelp_core.registry.tasks import NOT_LABELLED

Weights = dict[str, npt.NDArray[np.generic]]
CPU = torch.device("cpu")
_ABSURD_LOSS = 1e4  # of a batch: a guess among a thousand classes costs 7, and a model that is sure and wrong some hundreds
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SiloData:
    """What a silo trains on: private images uint8 (N, C, H, W), their labels, and the public set where Eq 2 runs.

    Volumes have D, H, W for H, W. Labels are class numbers int64 (N,), findings uint8 (N, K) of 0, 1 and NOT_LABELLED, or masks
    uint8 (N, 1, H, W) of 0 and 1; the teachers' answers probabilities (M, P), or foreground probabilities (M, 1, H, W).
    """

    images_NCHW: Tensor
    labels_N: Tensor
    public_images_MCHW: Rows | None = None
    public_probabilities_MP: Rows | None = None


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """Everything besides data and weights that a local update depends on."""

    algorithm: AlgorithmConfig
    objective: Objective
    """The task's mathematics."""
    seed: int
    silo: str
    kind: str
    """'small' or 'large'; never 'auto' here."""
    device: torch.device = CPU
    precision: Precision = "float32"
    pretrained: Mapping[WhichModel, Weights] = field(default_factory=dict)
    """Files' weights that models begin with, by the files' names; others begin with the seed's."""


@dataclass(frozen=True, kw_only=True)
class SiloState:
    """What stays in the silo from round to round: CPU tensors by name. `round` is the last round they include; 0: none."""

    round: int
    tensors: dict[str, Tensor]

    @staticmethod
    def empty() -> SiloState:
        """The state before the first round."""
        return SiloState(round=0, tensors={})


@dataclass(frozen=True, kw_only=True)
class LocalResult:
    """What a local update gives: weights to upload, state to keep, and facts to report."""

    weights: Weights
    state: SiloState
    samples: int
    steps: int
    metrics: dict[str, float]
    """Mean losses of the last local epoch, by name."""


def initial_weights(
    algorithm: AlgorithmConfig, objective: Objective, *, seed: int, pretrained: Mapping[WhichModel, Weights] | None = None,
) -> Weights:
    """w_0: the seeded proxy, or the `pretrained` one, as it travels (without batch norms under `normalisation: silo`).

    Raises:
        WeightsError: the pretrained weights do not fit.
    """
    model = objective.build(algorithm.proxy_model, generator_for(seed, "server", 0, "proxy"))
    model.load_state_dict(_pretrained(model, "proxy", algorithm, pretrained or {}), strict=False)
    return travelling_weights(model, algorithm)


def _pretrained(
    model: nn.Module, which: WhichModel, algorithm: AlgorithmConfig, weights: Mapping[WhichModel, Weights],
) -> dict[str, Tensor]:
    """What of the model `which` comes from a file."""
    asked = dict(algorithm.pretrained.items()).get(which)
    return fitted(model, weights[which], partial=asked.partial).tensors if asked is not None and which in weights else {}


def travelling_weights(model: nn.Module, algorithm: AlgorithmConfig) -> Weights:
    """The part of the proxy that leaves a silo, as NumPy arrays."""
    kept = normalisation_keys(model) if algorithm.normalisation == "silo" else frozenset()
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in model.state_dict().items() if name not in kept}


def proxy_with(global_weights: Weights, state: SiloState, settings: UpdateSettings) -> nn.Module:
    """The proxy as this silo sees it: the global weights, with the silo's own batch norms where those stay at home.

    Raises:
        WeightsError: the weights do not fit `algorithm.proxy_model`.
    """
    model = settings.objective.build(settings.algorithm.proxy_model)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in global_weights.items()}
    if settings.algorithm.normalisation == "silo":
        tensors.update(_group(state.tensors, "normalisation") or _first_normalisation(model, settings))
    if not METHOD_PARTS[settings.algorithm.method].averaged:
        tensors.update(_group(state.tensors, "proxy"))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as e:
        classes = len(settings.objective.classes)
        raise WeightsError(f"global weights do not fit model {str(settings.algorithm.proxy_model)!r} with {classes} classes: {e}") from e
    return _placed(model, settings)


def large_model_of(state: SiloState, settings: UpdateSettings) -> nn.Module:
    """The silo's large model f as its state has it, or freshly seeded before the first round."""
    generator = generator_for(settings.seed, settings.silo, 0, "large")
    kept = _group(state.tensors, "large")
    model = settings.objective.build(settings.algorithm.large_model, None if kept else generator)
    if kept:
        model.load_state_dict(kept)
    else:
        model.load_state_dict(_pretrained(model, "large", settings.algorithm, settings.pretrained), strict=False)
    return _placed(model, settings)


def carried_over(before: SiloState, settings: UpdateSettings, *, public_outputs: int | None) -> SiloState:
    """What of an earlier run's state a new run begins with: large model, public head and batch norms, each whole and of the same form, or not at all.

    Optimizer moments are not carried over: they belong to the steps of their run. `public_outputs`: of the public head; None: this silo has none.
    """
    parts, objective = METHOD_PARTS[settings.algorithm.method], settings.objective
    proxy = objective.build(settings.algorithm.proxy_model)
    wanted: dict[str, dict[str, Tensor]] = {}
    if settings.kind == "large" and parts.large_model:
        wanted["large"] = objective.build(settings.algorithm.large_model).state_dict()
    if settings.kind == "small" and parts.soft_labels and public_outputs is not None:
        wanted["public_head"] = build_public_head(proxy, outputs=public_outputs).state_dict()
    if settings.algorithm.normalisation == "silo":
        wanted["normalisation"] = {name: tensor for name, tensor in proxy.state_dict().items() if name in normalisation_keys(proxy)}
    kept: dict[str, Tensor] = {}
    for part, expected in wanted.items():
        found = _group(before.tensors, part)
        if {name: (one.shape, one.dtype) for name, one in found.items()} == {name: (one.shape, one.dtype) for name, one in expected.items()}:
            kept |= {f"{part}/{name}": tensor for name, tensor in found.items()}
    return SiloState(round=0, tensors=kept)


def _placed(model: nn.Module, settings: UpdateSettings) -> nn.Module:
    """`model` on the silo's device, convolution weights in the memory order of its images."""
    return model.to(settings.device).to(memory_format=memory_format(settings.objective.dimensions))


def local_update(
    global_weights: Weights, state: SiloState, data: SiloData, settings: UpdateSettings, *, round_number: int, progress: Progress | None = None,
    control: Weights | None = None,
) -> LocalResult:
    """One silo's round: Eq 1-2 if it is small, Eq 3-5 if it is large, or what the compared method does there.

    `control`: the hub's control variate, of the form of the weights; None: zero, as before the first round.

    Raises:
        GlobalModelDiverges: the global model's own loss is NaN, infinite or absurd, before a step has changed it.
        DataError: a loss became NaN or infinite.
        WeightsError: the global weights are of another architecture.
    """
    parts = METHOD_PARTS[settings.algorithm.method]
    large = settings.kind == "large" and parts.large_model
    trainer = _LargeTrainer if large else _SmallTrainer
    layers = generator_for(settings.seed, settings.silo, round_number, "layers")  # what dropout and the like draw from
    with kernels(settings.precision, settings.device), seeded(layers, settings.device):
        if round_number == 1 and parts.soft_labels and settings.algorithm.public_start_steps:
            global_weights, state = _started_from_public(global_weights, data, settings, large=large)
        return trainer(global_weights, state, data, settings, round_number, control).run(progress)


def _started_from_public(global_weights: Weights, data: SiloData, settings: UpdateSettings, *, large: bool) -> tuple[Weights, SiloState]:
    """Eq 2 before the first round: where every silo starts, and the state it starts with.

    Batches come from the server's generator, so all silos start from the same weights, as if the hub had taken these steps.
    """
    trainer = _SmallTrainer(global_weights, SiloState.empty(), data, replace(settings, silo="server", kind="small"), 0)
    trainer.learn_from_public(settings.algorithm.public_start_steps)
    kept = {name: tensor for name, tensor in trainer.kept().items() if not large or name.startswith("normalisation/")}
    return travelling_weights(trainer.proxy, settings.algorithm), SiloState(round=0, tensors=kept)


class _Trainer:
    """What both kinds of silo share: the proxy, the private batches, the loop over epochs, the state."""

    def __init__(
        self, global_weights: Weights, state: SiloState, data: SiloData, settings: UpdateSettings, round_number: int,
        control: Weights | None = None,
    ) -> None:
        self.algorithm = settings.algorithm
        self.parts = METHOD_PARTS[self.algorithm.method]
        self.settings = settings
        self.objective = settings.objective
        self.state = state
        self.round = round_number
        self.data = data
        self.proxy = proxy_with(global_weights, state, settings).train()
        counts_C = self.objective.counts(data.labels_N) if self.objective.form == "classes" else []
        self.terms = losses.with_class_weights(self.objective.terms, self.algorithm.class_weights, counts_C)
        if self.objective.form == "labels":  # the others know it by `labelling`
            self.terms = losses.with_labelled(self.terms, (data.labels_N != NOT_LABELLED).any(dim=0).tolist())
        self.private = self._batches(data.images_NCHW, data.labels_N, self.algorithm.batch_size, "private")
        self.arithmetic = arithmetic(settings.precision, settings.device)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.variates: ControlVariates | None = None
        if self.parts.control_variates:
            known = control or {name: np.zeros_like(array) for name, array in global_weights.items()}
            self.variates = ControlVariates(self.proxy, {name: torch.from_numpy(array) for name, array in known.items()}, state.tensors)

    def _batches(self, images: Rows, targets: Rows, batch_size: int, purpose: str) -> Batches:
        generator = generator_for(self.settings.seed, self.settings.silo, self.round, purpose)
        augment = self.objective.augmentation(self.algorithm.augmentation)
        return Batches(
            images, targets, batch_size=batch_size, augment=augment, generator=generator, device=self.settings.device, visits=self.objective.visits)

    def _optimizer(self, name: str, *modules: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over `modules`, with the moments that the state keeps under `optimizer_<name>/`."""
        parameters = [p for module in modules for p in module.parameters()]
        chosen = self.algorithm.optimizer
        optimizer: torch.optim.Optimizer = torch.optim.Adam(
            parameters, lr=chosen.learning_rate, weight_decay=chosen.weight_decay, fused=True) if chosen.kind == "adam" else torch.optim.SGD(
            parameters, lr=chosen.learning_rate, weight_decay=chosen.weight_decay, momentum=chosen.momentum, fused=True)
        if self.algorithm.persist_optimizer:
            _load_moments(optimizer, parameters, _group(self.state.tensors, f"optimizer_{name}"), self.settings.device)
        self.optimizers[name] = optimizer
        return optimizer

    def run(self, progress: Progress | None) -> LocalResult:
        batches = len(self.private)
        total, done = batches * self.algorithm.local_epochs, 0
        sums: dict[str, Tensor] = {}
        first: Tensor | None = None
        for _ in range(self.algorithm.local_epochs):
            sums = {}
            for images_BCHW, labels_B in self.private.one_pass():
                found = self.step(images_BCHW, labels_B)
                if first is None:
                    first = next(iter(found.values())).detach()
                for name, value in found.items():
                    sums[name] = sums[name] + value.detach() if name in sums else value.detach()
                done += 1
                if progress is not None:
                    progress(done, total)
        means = {name: float(value) / batches for name, value in sums.items()}
        self._refuse_divergence(means, math.nan if first is None else float(first))
        weights = travelling_weights(self.proxy, self.algorithm) if self.parts.averaged else {}
        kept = self.kept()
        if self.variates is not None:
            kept |= self.variates.kept(steps=total, learning_rate=self.algorithm.optimizer.learning_rate)
        state = SiloState(round=self.round, tensors={k: v.detach().cpu().contiguous() for k, v in kept.items()})
        return LocalResult(weights=weights, state=state, samples=len(self.data.labels_N), steps=total, metrics=means)

    def _logits(self, model: nn.Module, images_BCHW: Tensor) -> Tensor:
        """Of the parameters' dtype, whatever the arithmetic inside."""
        with self.arithmetic:
            logits: Tensor = model(images_BCHW)
        return logits.float() if logits.dtype == torch.bfloat16 else logits

    def step(self, images_BCHW: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """One private batch (and what the method alternates with it); returns its losses by name."""
        raise NotImplementedError

    def kept(self) -> dict[str, Tensor]:
        """The new state's tensors."""
        kept: dict[str, Tensor] = {}
        proxy_tensors = self.proxy.state_dict()
        if self.algorithm.normalisation == "silo":
            kept |= {f"normalisation/{k}": proxy_tensors[k] for k in normalisation_keys(self.proxy)}
        if not self.parts.averaged:
            kept |= {f"proxy/{k}": v for k, v in proxy_tensors.items()}
        if self.algorithm.persist_optimizer:
            for name, optimizer in self.optimizers.items():
                kept |= {f"optimizer_{name}/{k}": v for k, v in _moments(optimizer).items()}
        return kept

    def _refuse_divergence(self, means: dict[str, float], first: float) -> None:
        """`first`: the task's loss of the first batch, which the global model had before this silo changed it."""
        for name, value in means.items():
            if not math.isfinite(value) and self.round > 1 and not first <= _ABSURD_LOSS:
                raise GlobalModelDiverges(
                    f"silo {self.settings.silo!r}, round {self.round}: the global model after round {self.round - 1} has a loss of {first:g} on the"
                    f" first batch, before this silo has trained it, and {name} became {value}; look at who took part in round {self.round - 1}")
            if not math.isfinite(value):
                raise DataError(
                    f"silo {self.settings.silo!r}, round {self.round}: {name} became {value}; lower algorithm.optimizer.learning_rate"
                    f" (now {self.algorithm.optimizer.learning_rate}) or look at the images with `fedhelp check`")


class _SmallTrainer(_Trainer):
    """Eq 1 with Eq 2 alternating batch by batch; with other parts switched off, also FedAvg, FedProx and local."""

    def __init__(
        self, global_weights: Weights, state: SiloState, data: SiloData, settings: UpdateSettings, round_number: int,
        control: Weights | None = None,
    ) -> None:
        super().__init__(global_weights, state, data, settings, round_number, control)
        self.private_optimizer = self._optimizer("private", self.proxy)
        self.public: Iterator[tuple[Tensor, Tensor]] | None = None
        self.parameters = list(self.proxy.parameters())
        self.anchor = [p.detach().clone() for p in self.parameters] if self.parts.proximal else []
        if self.parts.soft_labels and data.public_images_MCHW is not None and data.public_probabilities_MP is not None:
            batches = self._batches(data.public_images_MCHW, data.public_probabilities_MP, self.algorithm.public_batch_size, "public")
            self.public = batches.endless()
            self.public_head = self._public_head(data.public_probabilities_MP.shape[1])
            self.public_model = nn.Sequential(self.proxy.backbone, self.public_head)  # type: ignore[arg-type]
            self.public_optimizer = self._optimizer("public", self.public_model)

    def _public_head(self, classes: int) -> nn.Module:
        kept = _group(self.state.tensors, "public_head")
        generator = generator_for(self.settings.seed, "server", 0, "public_head")  # equal everywhere, so that averaged backbones agree
        head = build_public_head(self.proxy, outputs=classes, generator=None if kept else generator)
        if kept:
            head.load_state_dict(kept)
        return _placed(head, self.settings)

    def step(self, images_BCHW: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        found = {"private_loss": self._private_step(images_BCHW, labels_B)}
        if self.public is not None and self.algorithm.public_steps:
            found["public_loss"] = self.learn_from_public(self.algorithm.public_steps)
        return found

    def learn_from_public(self, steps: int) -> Tensor:
        """`steps` of Eq 2; their mean loss."""
        assert self.public is not None
        return torch.stack([self._public_step(*next(self.public)) for _ in range(steps)]).mean()

    def _private_step(self, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Eq 1, with FedProx's pull or SCAFFOLD's correction where the method asks for it."""
        self.private_optimizer.zero_grad(set_to_none=True)
        loss = self.terms.supervised(self._logits(self.proxy, images_BCHW), labels_B)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.parts.proximal:
            losses.proximal_gradient_(self.parameters, self.anchor, weight=self.algorithm.proximal_weight)
        if self.variates is not None:
            self.variates.correct_gradients_()
        self.private_optimizer.step()
        return loss

    def _public_step(self, images_BCHW: Tensor, probabilities_BP: Tensor) -> Tensor:
        """Eq 2: θ and g learn the teacher's answers; the running statistics of θ's batch norms stay as private batches left them."""
        self.public_optimizer.zero_grad(set_to_none=True)
        with running_statistics_untouched(self.proxy):
            logits_BP = self._logits(self.public_model, images_BCHW)
        loss = losses.soft_label_loss(
            logits_BP, probabilities_BP, temperature=self.algorithm.temperature, weight=self.algorithm.distillation_weight,
            terms=self.terms)
        loss.backward()  # type: ignore[no-untyped-call]
        self.public_optimizer.step()
        return loss.detach()

    def kept(self) -> dict[str, Tensor]:
        kept = super().kept()
        if self.public is not None:
            kept |= {f"public_head/{k}": v for k, v in self.public_head.state_dict().items()}
        return kept


class _LargeTrainer(_Trainer):
    """Eq 3 and Eq 4 on every private batch, from one forward pass of each model (docs/decisions/0002)."""

    def __init__(
        self, global_weights: Weights, state: SiloState, data: SiloData, settings: UpdateSettings, round_number: int,
        control: Weights | None = None,
    ) -> None:
        super().__init__(global_weights, state, data, settings, round_number, control)
        self.large = large_model_of(state, settings).train()
        self.proxy_optimizer = self._optimizer("proxy", self.proxy)
        self.large_optimizer = self._optimizer("large", self.large)

    def step(self, images_BCHW: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        algorithm = self.algorithm
        self.proxy_optimizer.zero_grad(set_to_none=True)
        self.large_optimizer.zero_grad(set_to_none=True)
        proxy_logits_BC, large_logits_BC = self._logits(self.proxy, images_BCHW), self._logits(self.large, images_BCHW)
        proxy_loss = losses.proxy_loss(
            proxy_logits_BC, large_logits_BC, labels_B, temperature=algorithm.temperature, weight=algorithm.distillation_weight,
            terms=self.terms)
        proxy_loss.backward()  # type: ignore[no-untyped-call]
        large_loss = self._large_loss(large_logits_BC, proxy_logits_BC, labels_B)
        large_loss.backward()  # type: ignore[no-untyped-call]
        self.proxy_optimizer.step()
        self.large_optimizer.step()
        return {"proxy_loss": proxy_loss, "large_loss": large_loss}

    def _large_loss(self, large_logits_BC: Tensor, proxy_logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        if not self.parts.help_large:
            return self.terms.supervised(large_logits_BC, labels_B)
        return losses.large_loss(
            large_logits_BC, proxy_logits_BC, labels_B,
            temperature=self.algorithm.temperature, weight=self.algorithm.distillation_weight,
            rank_weight=self.algorithm.rank_weight if self.parts.rank and self.objective.ranks else 0.0,
            top_k=self.algorithm.rank_top_k, margin=self.algorithm.rank_margin, terms=self.terms)

    def kept(self) -> dict[str, Tensor]:
        return super().kept() | {f"large/{k}": v for k, v in self.large.state_dict().items()}


@contextmanager
def running_statistics_untouched(module: nn.Module) -> Iterator[None]:
    """Batch norms in `module` normalise by the batch but do not move running mean, variance or counters."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _group(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under `name/`, without that prefix."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _first_normalisation(model: nn.Module, settings: UpdateSettings) -> dict[str, Tensor]:
    """Batch norms before the first round: weight 1, bias 0, mean 0, variance 1, counter 0, or the pretrained ones."""
    fresh: dict[str, Tensor] = {}
    for name in normalisation_keys(model):
        tensor = model.state_dict()[name]
        ones = name.endswith((".weight", ".running_var"))
        fresh[name] = torch.ones_like(tensor) if ones else torch.zeros_like(tensor)
    from_file = _pretrained(model, "proxy", settings.algorithm, settings.pretrained)
    return fresh | {name: tensor for name, tensor in from_file.items() if name in fresh}


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as tensors named `<parameter index>/<step | exp_avg | exp_avg_sq | momentum_buffer>`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {f"{i}/{key}": value for i, p in enumerate(parameters) for key, value in optimizer.state[p].items() if value is not None}


def _load_moments(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], kept: dict[str, Tensor], device: torch.device) -> None:
    for i, parameter in enumerate(parameters):
        entries = _group(kept, str(i))
        if entries:
            optimizer.state[parameter] = {
                # moments lie in memory as their parameter does, so that the fused kernel walks both the same way
                key: torch.empty_like(parameter).copy_(value) if value.dim() else value.clone().to(device) for key, value in entries.items()
            }
