"""Hyper-parameters: the `algorithm` section of federation.yaml. "Paper" is arXiv 2412.19654, as docs/algorithm.md has it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.pretrained import PretrainedConfig
from fedhelp_core.config.section import WORD_OR_MORE, GrownSection, Section
from fedhelp_core.config.sentences import MORE, WORD
from fedhelp_core.printable import nearest
from fedhelp_core.registry.augmentations import AUGMENTATIONS
from fedhelp_core.registry.methods import METHOD_PARTS, Method

Normalisation = Literal["shared", "silo"]
Aggregation = Literal["mean", "median", "trimmed-mean", "fednova"]
ClassWeights = Literal["none", "balanced", "logit-adjusted"]


class OptimizerConfig(GrownSection):
    """What silos train with: Adam, as the paper uses it, or stochastic gradient descent."""

    newer: ClassVar[frozenset[str]] = frozenset({"kind", "momentum"})

    kind: Literal["adam", "sgd"] = "adam"
    """'adam': paper. 'sgd': what SCAFFOLD needs and FedNova is derived for; its learning rates are some ten to a hundred times Adam's."""
    learning_rate: float = Field(1e-3, gt=0, le=10)
    """Step size; paper."""
    weight_decay: float = Field(1e-4, ge=0, le=1)
    """L2 penalty inside the gradient; paper."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Of 'sgd': how much of the last step goes into the next."""

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Self:
        if self.momentum and self.kind != "sgd":
            raise ValueError(f"momentum: Adam has its own, so 0 expected with kind {self.kind!r}, got {self.momentum}")
        return self


class AugmentationConfig(Section):
    """One of MONAI's random transforms, of those that docs/tasks.md lists."""

    transform: str
    """Its name."""
    probability: float = Field(0.5, ge=0, le=1)
    """That an image is changed."""
    range: tuple[float, float] | None = None
    """By how much: the least and the most, in the transform's own unit."""

    @property
    def ends(self) -> tuple[float, float]:
        """The range of a transform that takes one."""
        assert self.range is not None
        return self.range

    @model_validator(mode="after")
    def _is_known_and_within_bounds(self) -> Self:
        known = AUGMENTATIONS.get(self.transform)
        if known is None:
            near = nearest(self.transform, list(AUGMENTATIONS))
            raise ValueError(f"transform: one of {', '.join(AUGMENTATIONS)} expected, got {self.transform[:60]!r}"
                             + (f"; did you mean {near!r}?" if near else ""))
        if not known.unit and self.range is not None:
            raise ValueError(f"range: {self.transform} takes none, got {list(self.range)}; leave it out")
        if known.unit and (self.range is None or not known.least <= self.range[0] <= self.range[1] <= known.most):
            got = "none" if self.range is None else list(self.range)
            raise ValueError(f"range: two numbers from {known.least:g} to {known.most:g} ({known.unit}) expected of {self.transform}, got {got}")
        return self


class ServerOptimizerConfig(Section):
    """What the hub makes of a round's average: the next model itself, or a direction for an optimizer of its own (Reddi et al. 2021)."""

    kind: Literal["none", "momentum", "adam", "yogi"] = "none"
    """'none': the average is the next model; paper. 'momentum', 'adam', 'yogi': FedAvgM, FedAdam, FedYogi, with any method and aggregation."""
    learning_rate: float | None = Field(None, gt=0, le=100)
    """Step size of the hub; null: 1 of 'momentum', 0.01 of the others (Reddi et al.: 10^-3 to 1, by data set)."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """How much of the last direction goes into the next; Reddi et al."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Of 'adam' and 'yogi': how long squared changes are remembered; Reddi et al."""
    tau: float = Field(1e-3, gt=0, le=1)
    """Of 'adam' and 'yogi': changes of a weight well below it count in proportion, those above it as steps of one length; Reddi et al."""

    @property
    def step_size(self) -> float:
        """The learning rate, or its default."""
        return self.learning_rate or (1.0 if self.kind == "momentum" else 0.01)


class AlgorithmConfig(GrownSection):
    """Hyper-parameters of docs/algorithm.md; every default is the paper's unless said otherwise."""

    newer: ClassVar[frozenset[str]] = frozenset({"pretrained", "server_optimizer"})

    method: Method = "fedhelp"
    """Which algorithm: FedHelp, a baseline or an ablation."""
    normalisation: Normalisation = "shared"
    """'shared' averages batch norms like the rest; paper. 'silo' keeps their weights and statistics at home (FedBN): better without soft labels
    (docs/results.md)."""
    rounds: int = Field(50, ge=1, le=100_000)
    """Federated rounds R; paper."""
    local_epochs: int = Field(1, ge=1, le=1000)
    """Passes over the private training data per round; paper."""
    batch_size: int = Field(4, ge=2, le=65536)
    """Private images per step; paper."""
    public_batch_size: int = Field(4, ge=2, le=65536)
    """Public images per step of Eq 2; paper."""
    public_steps: int = Field(1, ge=0, le=10_000)
    """Public batches of Eq 2 after each private batch; paper: 1."""
    public_start_steps: int = Field(0, ge=0, le=1_000_000)
    """Public batches of Eq 2 before the first round, the same in every silo; paper: 0."""
    optimizer: OptimizerConfig = OptimizerConfig()
    persist_optimizer: bool = True
    """Keep Adam's moments in the silo from round to round."""
    temperature: float = Field(1.0, gt=0, le=1000)
    """T of Eq 2-4; paper."""
    distillation_weight: float = Field(1.0, ge=0, le=1e6)
    """λ of Eq 2-4; paper."""
    class_weights: ClassWeights = "none"
    """Cross-entropy of Eq 1, 3 and 4 where classes are skewed: 'none' (paper), 'balanced': images weighted by inverse class frequency.
    'logit-adjusted': log class frequency added to the logits in training (Menon et al. 2021).
    Frequencies are of the silo's own training images; with both, models answer as if classes were equally common."""
    rank_weight: float = Field(0.2, ge=0, le=1e6)
    """γ of Eq 4; paper."""
    rank_top_k: int = Field(5, ge=1, le=10_000)
    """k of Eq 5: how many of the proxy's favourites; paper: 5 of 8 classes, 1 of 2."""
    rank_margin: float = Field(0.0, ge=0, le=1e6)
    """m of Eq 5."""
    proximal_weight: float = Field(0.01, ge=0, le=1e6)
    """μ of FedProx (Li et al. 2020)."""
    weighting: Literal["uniform", "samples"] = "uniform"
    """a_k of Eq 7: 1/K (paper) or n_k/Σn."""
    aggregation: Aggregation = "mean"
    """'mean': Eq 7; paper. 'fednova': Eq 7 of what changed in a step. 'median' and 'trimmed-mean' are of each weight by itself and take every silo
    alike: a minority of silos cannot move them far (docs/security.md)."""
    trim_share: float = Field(0.2, gt=0, lt=0.5)
    """trimmed-mean: share of the updates left out at either end of each weight, rounded down, but at least one."""
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    large_silos: int = Field(2, ge=0, le=10_000)
    """How many silos of kind `auto` with most training images are large; paper."""
    proxy_model: ModelConfig = ModelConfig(network="resnet20")
    """The model that travels; a name alone, or a network with its arguments (docs/models.md); paper."""
    large_model: ModelConfig = ModelConfig(network="resnet110")
    """The model that stays in large silos; paper."""
    pretrained: PretrainedConfig = PretrainedConfig()
    augmentation: Annotated[
        Annotated[Literal["none", "mirror", "flips"], Tag(WORD)]
        | Annotated[tuple[AugmentationConfig, ...], Field(min_length=1, max_length=32), Tag(MORE)],
        WORD_OR_MORE] = "flips"
    """'none'; random flips left-right ('mirror', the default of all tasks but melanoma) or along every side ('flips'); or a list of
    MONAI's transforms (docs/tasks.md)."""

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.aggregation in ("median", "trimmed-mean") and self.weighting != "uniform":
            raise ValueError(f"weighting: aggregation {self.aggregation!r} takes every silo alike, so 'uniform' expected, got {self.weighting!r}")
        if not self.public_steps and not self.public_start_steps and METHOD_PARTS[self.method].soft_labels:
            raise ValueError(f"public_steps: with 0 here and in public_start_steps method {self.method!r} learns nothing from soft labels;"
                             " at least 1 in one of them expected, or method 'fedhelp-no-api'")
        if METHOD_PARTS[self.method].control_variates:
            self._require_plain_steps()
        if self.aggregation == "fednova" and self.optimizer.momentum and self.persist_optimizer:
            raise ValueError("persist_optimizer: false expected with aggregation 'fednova' and optimizer.momentum: its correction counts from a"
                             " momentum of zero at each round's start")
        return self

    def _require_plain_steps(self) -> None:
        """A control variate is a mean gradient, which only plain steps of one length tell."""
        if self.optimizer.kind != "sgd" or self.optimizer.momentum:
            raise ValueError(f"optimizer: kind 'sgd' without momentum expected for method {self.method!r}, got kind {self.optimizer.kind!r} with"
                             f" momentum {self.optimizer.momentum}; set algorithm.optimizer.kind=sgd, and a learning rate of about 0.05")
        if self.aggregation != "mean":
            raise ValueError(f"aggregation: 'mean' expected for method {self.method!r}, whose control variates are means, got {self.aggregation!r}")
