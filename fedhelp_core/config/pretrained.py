"""Weights from elsewhere that a run's models begin with: `algorithm.pretrained` of federation.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints

from fedhelp_core.config.section import Section
from fedhelp_core.config.sentences import PRINTABLE, SHA256

WhichModel = Literal["proxy", "large"]
_Text = Annotated[str, StringConstraints(pattern=PRINTABLE, max_length=300)]


class PretrainedModel(Section):
    """A safetensors file of somebody's. Its sha256 is held by the hub and by every silo that reads it."""

    sha256: Annotated[str, StringConstraints(pattern=SHA256)]
    """Of the file (sha256sum FILE)."""
    file: Path | None = None
    """On the machine that runs check, which puts it into the store; null: it lies there already, under models/NAME/weights/SHA256.safetensors."""
    licence: _Text
    """What the weights may be used for, such as Apache-2.0; in the lineage and on the model card."""
    source: _Text
    """Where they come from, and what they were trained on; in the lineage and on the model card."""
    partial: bool = False
    """Whether weights that the file lacks, or has in another shape, may be drawn from the seed; the head always may."""


class PretrainedConfig(Section):
    """Weights that models begin with, instead of the seed's (docs/models.md)."""

    proxy: PretrainedModel | None = None
    """Of the proxy model, as every silo starts with it; null: from the seed."""
    large: PretrainedModel | None = None
    """Of the large model, as each large silo starts with its own; null: from the seed."""

    def items(self) -> list[tuple[WhichModel, PretrainedModel]]:
        """Those that there are."""
        both: list[tuple[WhichModel, PretrainedModel | None]] = [("proxy", self.proxy), ("large", self.large)]
        return [(which, model) for which, model in both if model is not None]
