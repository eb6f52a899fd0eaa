"""What all parts of federation.yaml and silo.yaml share: strictness, the types of names, errors in sentences."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, SerializerFunctionWrapHandler, StringConstraints, ValidationError, model_serializer

from fedhelp_core.config.files import require_texts
from fedhelp_core.config.sentences import LONG_NAME, MORE, SHORT_NAME, WORD, sentences
from fedhelp_core.errors import ConfigError

# Kubernetes' rule for label values that are also used inside Job names: a DNS label, short enough to leave room.
SiloName = Annotated[str, StringConstraints(pattern=SHORT_NAME)]
NamespaceName = Annotated[str, StringConstraints(pattern=LONG_NAME)]


WORD_OR_MORE = Discriminator(lambda given: MORE if isinstance(given, list | tuple | dict | BaseModel) else WORD)
"""Of a field that is a word (`Tag(WORD)`) or a list or section (`Tag(MORE)`)."""


class Section(BaseModel):
    """A part of a file: unknown fields are refused, values never change; the docstring under a field is its description in the schema."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True, use_attribute_docstrings=True)


class GrownSection(Section):
    """One with fields that older versions did not have."""

    newer: ClassVar[frozenset[str]]
    """Their names: at its default such a field is not in the section's text, so that older configs keep their sha256."""

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {name: value for name, value in document.items() if name not in self.newer or getattr(self, name) != fields[name].default}


_Checked = TypeVar("_Checked", bound=BaseModel)


def validated(model: type[_Checked], document: Any, source: str) -> _Checked:
    """`document` as `model`; `source` names it in messages.

    Raises:
        ConfigError: with every problem found.
    """
    require_texts(document, source=source)
    try:
        return model.model_validate(document)
    except ValidationError as e:
        raise ConfigError([f"{source}: {line}" for error in e.errors(include_url=False) for line in sentences(model, error, document)]) from None
