"""What a run starts from, where that is a model and no seed: the `start` section of federation.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import StringConstraints, model_validator

from fedhelp_core.config.section import Section
from fedhelp_core.config.sentences import SHA256, VERSION


class StartConfig(Section):
    """A model that was trained before. Its weights must be of this federation's task, network and normalisation."""

    model: Literal["champion"] | None = None
    """The registered model's champion, by the record that hospitals read."""
    version: Annotated[str, StringConstraints(pattern=VERSION)] | None = None
    """A version of the registered model, promoted or not."""
    file: Path | None = None
    """A safetensors file that FedHelp wrote, on the machine that runs check."""
    sha256: Annotated[str, StringConstraints(pattern=SHA256)] | None = None
    """Of the weights; a file needs it, of the others it is held against what they are found to be."""
    carry_over: bool = True
    """Whether silos go on with the large models, public heads and batch norms that they kept of the run that the model came from."""

    @model_validator(mode="after")
    def _is_one_model(self) -> Self:
        given = [field for field in ("model", "version", "file") if getattr(self, field) is not None]
        if len(given) != 1:
            raise ValueError(f"one of model, version and file expected, got {', '.join(given) or 'none'}")
        if self.file is not None and self.sha256 is None:
            raise ValueError("sha256: a file needs it, so that everybody starts from the same weights (sha256sum FILE)")
        return self
