"""What a federation says of its model itself: the `card` section of federation.yaml, for the model card."""

from __future__ import annotations

from pydantic import Field

from fedhelp_core.config.section import Section


class CardConfig(Section):
    """Sentences of the model card that no number says."""

    intended_use: str = Field("", max_length=1000)
    """What the model is for; blank: research."""
    limits: str = Field("", max_length=1000)
    """Where it is known to fail, beside what the scores say."""
    licence: str = Field("", max_length=1000)
    """Of the weights."""
    contact: str = Field("", max_length=1000)
    """Whom to ask."""
