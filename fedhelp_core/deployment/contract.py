"""What an adopted model is: its weights, and all that must be known to use them as training did. Pure.

Written by `adoption`, read by `scorer`. With the contract and the weights beside it a model needs no run, no store and no state of a silo.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from fedhelp_core.algorithm.operating_point import FindingsPoint, OperatingPoint
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.examples import preparation
from fedhelp_core.deployment.reference import Reference
from fedhelp_core.errors import WeightsError
from fedhelp_core.protocol.documents import Document, Name, Score, Sha256, Time

WhichModel = Literal["proxy", "large"]
Norms = Literal["shared", "own", "registered", "recomputed"]
"""Whose batch norms the model has: averaged with the rest, the hospital's own, the registered model's, or those with statistics of its images."""


@dataclass(frozen=True, kw_only=True)
class Contract(Document):
    """One model of one hospital, with everything that its answers depend on."""

    canonical = True

    format: Literal[1] = 1
    name: Name
    """Of the registered model."""
    version: Name
    """In the hub's registry."""
    number: Annotated[int, Field(ge=0)]
    """Of the record that it was adopted by; 0: none."""
    run: Name
    """That trained it."""
    silo: Name
    """Whose it is."""
    model: WhichModel
    """The small model that all hospitals share, or this hospital's own large one."""
    network: ModelConfig
    """As the federation named it."""
    norms: Norms
    global_sha256: Sha256
    """Of the weights that travelled."""
    weights_sha256: Sha256
    """Of the weights beside the contract, which are complete."""
    task: TaskConfig
    preprocessing: Annotated[str, Field(max_length=1000)]
    """How images are prepared, in words."""
    pixel_bits: int | None
    """How many bits are in use in the hospital's 16-bit pictures; None: each picture's own."""
    threads: Annotated[int, Field(ge=1, le=256)]
    """CPU threads: of masks, part of the numbers."""
    operating_point: OperatingPoint | FindingsPoint | None
    """How classes or findings are decided; None of masks."""
    headline: Name
    scores: dict[Name, Score]
    """On the hospital's own test images."""
    test_images: Annotated[int, Field(ge=0)] = 0
    reference: Reference | None = None
    """What it saw and said on those images, which its use is compared with; None: not known."""
    made: Time = ""
    notes: tuple[str, ...] = field(default=())
    """What a person should know of how it came to be."""

    def require_prepared_as_here(self) -> None:
        """Nothing where this software prepares images as the contract says.

        Raises:
            WeightsError: another version of FedHelp made it.
        """
        if preparation(self.task) != self.preprocessing:
            raise WeightsError(
                f"model {self.name} version {self.version}: its images are prepared as {self.preprocessing!r}, this software prepares them as"
                f" {preparation(self.task)!r}; install the FedHelp that adopted it, or adopt it again")

    @property
    def title(self) -> str:
        """For people."""
        which = "this hospital's large model" if self.model == "large" else "the shared model"
        return f"{self.name} version {self.version} ({which})"
