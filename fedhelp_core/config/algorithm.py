"""Hyper-parameters: the `algorithm` section of federation.yaml. "Paper" is arXiv 2412.19654, as docs/algorithm.md has it."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.pretrained import PretrainedConfig
from fedhelp_core.config.section import GrownSection, Section
from fedhelp_core.registry.methods import METHOD_PARTS, Method

Normalisation = Literal["shared", "silo"]
Aggregation = Literal["mean", "median", "trimmed-mean"]
ClassWeights = Literal["none", "balanced", "logit-adjusted"]


class OptimizerConfig(Section):
    """Adam, as the paper uses it."""

    learning_rate: float = Field(1e-3, gt=0, le=10)
    """Step size; paper."""
    weight_decay: float = Field(1e-4, ge=0, le=1)
    """L2 penalty inside Adam's gradient; paper."""


class AlgorithmConfig(GrownSection):
    """Hyper-parameters of docs/algorithm.md; every default is the paper's unless said otherwise."""

    newer: ClassVar[frozenset[str]] = frozenset({"pretrained"})

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
    """'mean': Eq 7; paper. 'median' and 'trimmed-mean' are of each weight by itself and take every silo alike.
    A minority of silos cannot move them far (docs/security.md)."""
    trim_share: float = Field(0.2, gt=0, lt=0.5)
    """trimmed-mean: share of the updates left out at either end of each weight, rounded down, but at least one."""
    large_silos: int = Field(2, ge=0, le=10_000)
    """How many silos of kind `auto` with most training images are large; paper."""
    proxy_model: ModelConfig = ModelConfig(network="resnet20")
    """The model that travels; a name alone, or a network with its arguments (docs/models.md); paper."""
    large_model: ModelConfig = ModelConfig(network="resnet110")
    """The model that stays in large silos; paper."""
    pretrained: PretrainedConfig = PretrainedConfig()
    augmentation: Literal["none", "mirror", "flips"] = "flips"
    """Random flips: along every side, left-right alone, or none."""

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.aggregation != "mean" and self.weighting != "uniform":
            raise ValueError(f"weighting: aggregation {self.aggregation!r} takes every silo alike, so 'uniform' expected, got {self.weighting!r}")
        if not self.public_steps and not self.public_start_steps and METHOD_PARTS[self.method].soft_labels:
            raise ValueError(f"public_steps: with 0 here and in public_start_steps method {self.method!r} learns nothing from soft labels;"
                             " at least 1 in one of them expected, or method 'fedhelp-no-api'")
        return self
