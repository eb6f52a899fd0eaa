"""The run form filled in: by a federation's file, by `--set`, or left to its defaults. Called by main.py, run.py and submit.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedhelp_components.check.form import FIELDS, LITERALS
from fedhelp_core.config.federation import Federation, checked_value, default_of
from fedhelp_core.errors import ConfigError
from fedhelp_core.printable import nearest


def form_of(federation: Federation) -> dict[str, Any]:
    """The form's parameters as this federation's file sets them."""
    values = federation.values_at(FIELDS.values())
    return {parameter: values[dotted] for parameter, dotted in FIELDS.items()}


def offered_form_of(federation: Federation, *, source: str) -> dict[str, Any]:
    """`form_of`, where the form's menus have all of it; `source` names the file in messages.

    Raises:
        ConfigError: a value that no pipeline runs, such as method 'local'.
    """
    form = form_of(federation)
    for parameter, menu in LITERALS.items():
        if form[parameter] not in menu:
            raise ConfigError(f"{source}: {FIELDS[parameter]}: a pipeline runs one of {', '.join(menu)}, got {form[parameter]!r}; change it")
    return form


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` (of `--set`) by the form's parameters, each as its field's type.

    Raises:
        ConfigError: parameters that the form lacks and values that they do not take (all of them).
    """
    checked: dict[str, Any] = {}
    problems: list[str] = []
    for parameter, value in settings.items():
        try:
            checked[parameter] = _checked(parameter, value)
        except ConfigError as e:
            problems.extend(e.problems)
    if problems:
        raise ConfigError(problems)
    return checked


def _checked(parameter: str, value: Any) -> Any:
    if parameter not in FIELDS:
        near = _hint(parameter, list(FIELDS)) or f"it has {', '.join(FIELDS)}; other settings are the federation's file's"
        raise ConfigError(f"--set {parameter}: the form has no such parameter; {near}")
    menu = LITERALS.get(parameter, [])
    if menu and value not in menu:
        near = _hint(str(value), menu)
        raise ConfigError(f"--set {parameter}: one of {', '.join(menu)} expected, got {value!r}{near and '; ' + near}")
    return checked_value(FIELDS[parameter], value, source=f"--set {parameter}")


def _hint(written: str, names: list[str]) -> str:
    near = nearest(written, names, cutoff=0.6)
    return f"did you mean {near!r}?" if near else ""


def default_form() -> dict[str, Any]:
    """The form as it is where nobody fills it in: the paper's settings."""
    return {parameter: default_of(dotted) for parameter, dotted in FIELDS.items()}
