"""Pages from the templates in `templates`. Called by `page`, `data_page` and `picture_page`.

Whatever a template prints is escaped, and cleaned of unprintable characters; only what a template itself wrote is markup.
A page has no script and loads nothing.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedhelp_core.printable import printable
from fedhelp_core.report.charts import SERIES_COLOURS
from fedhelp_core.report.text import LONGEST, count, number, size


def render(template: str, **values: Any) -> str:
    """The page that `template` makes of `values`."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fedhelp_core.report"), autoescape=True, undefined=StrictUndefined, finalize=_printed, trim_blocks=True,
        lstrip_blocks=True)
    environment.filters |= {
        "count": count, "number": number, "size": size, "short": printable, "base64": _base64}
    environment.globals["series_colours"] = SERIES_COLOURS
    return environment


def _printed(value: object) -> object:
    return value if isinstance(value, Markup) else printable(value, LONGEST)


def _base64(raw: bytes) -> Markup:
    return Markup(base64.b64encode(raw).decode())
