"""Text from elsewhere as one harmless line. Called wherever something is printed, logged, or written down for people.

Files, servers, models and other people's clusters choose such text. On a terminal it could move the cursor or forge a
line of ours; in a log it could be without end.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable

_LONGEST_LINE = 2048  # bytes of UTF-8: longer than any sentence of ours, short enough to read a page of them
_CUT = "\N{HORIZONTAL ELLIPSIS}"


def printable(text: object, most: int = _LONGEST_LINE) -> str:
    """`text` as one line of at most `most` characters and 2 kB; what is unprintable or turns the reading direction round is replaced."""
    raw = str(text)
    cut = raw if len(raw) <= most else raw[: most - 1] + _CUT
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)
    body = clean.encode()
    return clean if len(body) <= _LONGEST_LINE else body[: _LONGEST_LINE - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT


def printable_lines(text: object) -> list[str]:
    """Every line of `text`, as `printable` has it: for lists of problems, one a line."""
    return [printable(line) for line in str(text).split("\n")]


def one_line(text: object, most: int = 300) -> str:
    """All of `text` in one line, without passwords in addresses, as `printable` has it: for what an error says inside a sentence."""
    return printable(without_passwords(" ".join(str(text).split())), most)


def first_line(error: BaseException, most: int = 200) -> str:
    """What a foreign error says first, as `printable` has it; its class where it says nothing."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0], most)


def nearest(written: str, names: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The name that `written` probably meant, of equally like ones the one with the longer common beginning; None where none is like it.

    `cutoff`: 0 any, 1 the same.
    """
    def likeness(name: str) -> tuple[float, int]:
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(name, written, strict=False))
        return difflib.SequenceMatcher(None, name, written).ratio(), sum(1 for _ in same)

    return max(difflib.get_close_matches(written, list(names), n=5, cutoff=cutoff), key=likeness, default=None)


def without_passwords(text: str) -> str:
    """`text` with addresses that carry no user and password any more."""
    return re.sub(r"://[^/@\s]+@", "://", text)
