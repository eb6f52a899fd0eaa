"""A CSV's rows by our names of its columns, whichever spreadsheet wrote it. Called by the layouts that have a list.

Spreadsheets' habits are taken: semicolons, tabs, `sep=;`, a BOM, UTF-16, Windows-1252, blank rows, names of columns in other capitals. What
could mean two things is refused: a column that is there twice, cells without a column, a workbook.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedhelp_core.budget import MOST_COLUMNS, MOST_LIST_BYTES, regular_bytes
from fedhelp_core.data.names import plain
from fedhelp_core.errors import DataError

_SEPARATORS = (",", ";", "\t")
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_NO_TEXT = {b"PK\x03\x04": "an Excel or OpenDocument workbook", b"\xd0\xcf\x11\xe0": "an old Excel workbook"}
Row = dict[str, str]


class Table:
    """One CSV. `names`: our name of each column that may be used -> the CSV's; `next_step`: what to do where it is not there.

    Raises:
        DataError: columns are missing, or there twice.
    """

    def __init__(self, path: Path, names: Mapping[str, str], *, needed: Sequence[str] = (), what: str = "CSV", next_step: str = "") -> None:
        self._path = path
        self._blank = 0
        text, self._notes = _text(path, what, next_step)
        told = re.match(r"\s*\"?sep=([;,|\t])\"?[;,\t]*\r?\n", text)  # Excel's own first line
        above = told.end() if told else 0
        blank = re.match(r"(?:[;,\t \"]*\r?\n)*", text[above:])
        above += blank.end() if blank else 0
        self._first_line = 1 + text.count("\n", 0, above)
        self._text = text[above:]
        first = self._text.split("\n", 1)[0]
        self._separator = told.group(1) if told else max(_SEPARATORS, key=first.count)
        self.head = [_printed(plain(name.strip())) for name in next(self._parsed(), (0, []))[1]]
        if len(self.head) > MOST_COLUMNS:
            raise DataError(f"{path}: has {len(self.head):,} columns, at most {MOST_COLUMNS:,} expected; leave out what is not used")
        self._names = self._columns(names, needed)

    @property
    def notes(self) -> list[str]:
        """What was converted or passed over, once all rows have been read."""
        return [*self._notes, *([f"{self._path}: {self._blank} blank rows passed over"] if self._blank else [])]

    def rows(self) -> Iterator[tuple[int, Row, str | None]]:
        """(line, row by our names, what is wrong with it as a row) of every row that is not blank."""
        places = {ours: self.head.index(theirs) for ours, theirs in self._names.items()}
        parsed = self._parsed()
        next(parsed, None)
        for line, cells in parsed:
            if not any(cell.strip() for cell in cells):
                self._blank += 1
                continue
            problem = None
            if len(cells) < len(self.head) or any(cell.strip() for cell in cells[len(self.head):]):
                problem = f"has {len(cells)} cells, the head has {len(self.head)}; write cells with separators in them in quotes"
            filled = [*cells, *[""] * len(self.head)]
            yield line, {ours: plain(filled[place].strip()) for ours, place in places.items()}, problem

    def _parsed(self) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._separator, strict=True)
        try:
            for cells in reader:
                yield self._first_line - 1 + reader.line_num, cells
        except csv.Error as e:
            line = self._first_line - 1 + reader.line_num
            raise DataError(f"{self._path}: line {line}: cannot be read as CSV ({e}); save it as UTF-8 with commas") from e

    def _columns(self, names: Mapping[str, str], needed: Sequence[str]) -> dict[str, str]:
        """Our name of each column that is there -> the CSV's."""
        called = {ours: self._called(theirs) for ours, theirs in names.items()}
        wanted = list(dict.fromkeys(called[one] for one in needed))
        missing = [name for name in wanted if name not in self.head]
        if missing:
            raise DataError(
                f"{self._path}: columns {', '.join(wanted)} expected, but {', '.join(missing)} missing (found {', '.join(self.head) or 'none'})")
        called = {ours: theirs for ours, theirs in called.items() if theirs in self.head}
        twice = [name for name, count in Counter(self.head).items() if count > 1 and name in called.values()]
        if twice:
            raise DataError(f"{self._path}: column {twice[0]} is there {self.head.count(twice[0])} times, so nobody knows which is meant; rename one")
        shared = [name for name, count in Counter(called.values()).items() if count > 1]
        if shared:
            ours = " and ".join(one for one, theirs in called.items() if theirs == shared[0])
            raise DataError(f"{self._path}: column {shared[0]} would be {ours}; name another for one of them")
        return called

    def _called(self, name: str) -> str:
        """`name` as the head writes it, which may be in other capitals."""
        name = plain(name)
        alike = [one for one in self.head if one.casefold() == name.casefold()]
        if name in alike or not alike:
            return name
        if len(set(alike)) > 1:
            raise DataError(f"{self._path}: columns {' and '.join(dict.fromkeys(alike))} differ in capitals alone; rename one")
        return alike[0]


def _printed(name: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in name)


def head_of(path: Path) -> list[str]:
    """The columns' names; none where `path` is no CSV."""
    try:
        return Table(path, {}).head
    except DataError:
        return []


def _text(path: Path, what: str, next_step: str) -> tuple[str, list[str]]:
    """The file's text, and what had to be converted.

    Raises:
        DataError: no such file, or no text.
    """
    try:
        raw = regular_bytes(path, MOST_LIST_BYTES, lambda why: DataError(f"{path}: cannot be read as CSV ({why}); save it as UTF-8 with commas"))
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such {what}; {next_step}") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read as CSV ({e}); save it as UTF-8 with commas") from e
    other = next((what for start, what in _NO_TEXT.items() if raw.startswith(start)), None)
    if other is not None:
        raise DataError(f"{path}: is {other}, no CSV; save it as CSV UTF-8 in the spreadsheet")
    coding = next((coding for bom, coding in _BOMS.items() if raw.startswith(bom)), "utf-8")
    try:
        return raw.decode(coding), []
    except UnicodeDecodeError as e:
        if coding != "utf-8" or b"\0" in raw:
            raise DataError(f"{path}: cannot be read as CSV ({e}); save it as UTF-8 with commas") from e
    try:
        return raw.decode("cp1252"), [f"{path}: is not UTF-8; read as Windows-1252, in which Excel saves"]
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: cannot be read as CSV ({e}); save it as UTF-8 with commas") from e
