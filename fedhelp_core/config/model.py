"""Which network a model is: `proxy_model` and `large_model` of federation.yaml. No PyTorch: the hub reads it too."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, StringConstraints, model_serializer, model_validator

from fedhelp_core.config.section import Section
from fedhelp_core.registry.models import MODELS
from fedhelp_core.registry.networks import networks

_ENTRY_POINT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LONGEST = 200  # characters of a model's name in headers and messages; documents take 300


class ModelConfig(Section):
    """A network by name, `resnet20` or `{network: DenseNet121, arguments: {growth_rate: 16}}`, or `{plugin: NAME}` (docs/models.md)."""

    model_config = ConfigDict(json_schema_extra={"type": ["object", "string"]})  # a name alone is one too

    network: Annotated[str, StringConstraints(max_length=100)] | None = None
    """One of FedHelp's own, or of MONAI's `monai.networks.nets`; docs/models.md lists them."""
    plugin: Annotated[str, StringConstraints(max_length=100)] | None = None
    """An entry point of group `fedhelp.networks` that the silos' image has installed."""
    arguments: dict[str, Any] = Field(default_factory=dict, max_length=64)
    """What the network is built with; what the task decides, such as channels and classes, is left out."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, document: Any) -> Any:
        """`resnet20` for `{network: resnet20}`."""
        return {"network": document} if isinstance(document, str) else document

    @model_validator(mode="after")
    def _is_one_network(self) -> Self:
        if (self.network is None) == (self.plugin is None):
            raise ValueError(f"network: one of network and plugin expected, got {'both' if self.network is not None else 'neither'}")
        if self.plugin is not None and not _ENTRY_POINT.fullmatch(self.plugin):
            raise ValueError(f"plugin: the name of an entry point expected, letters, digits, '_', '-' and '.', got {self.plugin!r}")
        json.dumps(self.arguments, allow_nan=False)  # ValueError: no plain values
        known = networks().get(self.network or "")
        if problems := list(known.problems_of(self.arguments)) if known is not None else []:
            raise ValueError("\n".join(problems))
        if self.network in MODELS and self.arguments:
            raise ValueError(f"arguments: {self.network} takes none; choose another size, or one of MONAI's networks")
        return self

    @model_serializer(mode="plain")
    def _as_written(self) -> str | dict[str, Any]:
        """A name alone stays a name, so that configs keep their sha256."""
        if self.network is not None and not self.arguments:
            return self.network
        return {("network" if self.network is not None else "plugin"): self.network or self.plugin, "arguments": self.arguments}

    def __str__(self) -> str:
        """Its name with its arguments: what weights say that they are of."""
        name = self.network or f"plugin:{self.plugin}"
        if not self.arguments:
            return name
        said = ", ".join(f"{one}={json.dumps(value, sort_keys=True)}" for one, value in sorted(self.arguments.items()))
        if len(name) + len(said) > _LONGEST:
            said = f"sha256 {hashlib.sha256(json.dumps(self.arguments, sort_keys=True).encode()).hexdigest()[:16]}"
        return f"{name}({said})"


def model_of(given: ModelConfig | str | Mapping[str, Any]) -> ModelConfig:
    """`given` as a model: a name alone is one.

    Raises:
        ValidationError: it is none.
    """
    return given if isinstance(given, ModelConfig) else ModelConfig.model_validate(given)
