"""Text and numbers for people, the same on the page and in the terminal. Called by `html`, `charts` and `terminal`."""

from __future__ import annotations

import math

LONGEST = 600
"""Characters of one text: sentences of silos and stores are shorter."""


def number(value: float | None, digits: int = 3) -> str:
    """A score or loss: '0.713', or an en dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def count(value: int | None) -> str:
    """'1,200', or an en dash where it is unknown."""
    return "–" if value is None else f"{value:,}"


def size(value: int | None) -> str:
    """Bytes: '1.4 MiB'."""
    if value is None:
        return "–"
    scaled = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if scaled < 1024 or unit == "GiB":
            break
        scaled /= 1024
    return f"{scaled:,.0f} {unit}" if unit == "B" else f"{scaled:,.1f} {unit}"


def duration(seconds: float) -> str:
    """'45 s', '3 min 20 s', '2 h 5 min': as exact as anybody wants to know."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 and whole < 600 else "")
    minutes = round(seconds / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
