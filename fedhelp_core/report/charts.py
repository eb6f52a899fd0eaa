"""Where everything of a chart lies: bars, points and labels in SVG units, about a pixel at the page's width.

Called by `page`; `charts.html.j2` draws what is computed here. All axes are linear. A value that is missing or not finite
leaves a gap and is never drawn as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

SERIES_COLOURS = 8  # how many --series-<i> the page's style defines
_MAX_POINTS = 300   # per line: more cannot be told apart at the page's width
_HALF_WIDTH = 430   # line and column charts stand two beside each other
_WIDTH = 760
_CHARACTER = 6.6    # width of a 12-unit character: close enough to reserve room for labels
_LONGEST_LABEL = 34  # characters
_LARGEST = 1e100    # of a value, and of its inverse: far from where floats end, so that no silo's number breaks a chart
_ROW, _BAR = 22.0, 16.0  # heights: of a silo in the grid of rounds, of a bar


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """Maps data to SVG units, linearly: the first tick to `start`, the last one to `end`."""

    ticks: Sequence[float]
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where `value` lies."""
        return self.start + (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0]) * (self.end - self.start)

    def marks(self) -> tuple[Tick, ...]:
        """The ticks with their labels."""
        return tuple(Tick(self.at(tick), f"{tick:,.6g}") for tick in self.ticks)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Axes of a line or column chart."""

    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    height: int
    width: int = _HALF_WIDTH
    left: float = 58.0
    right: float = _HALF_WIDTH - 14.0

    @property
    def bottom(self) -> float:
        """Of the plane, above the labels of the x axis."""
        return _bottom(self.height)


@dataclass(frozen=True)
class Line:
    """One series: a piece for every stretch of rounds without a gap."""

    name: str
    colour: int
    pieces: tuple[tuple[tuple[float, float], ...], ...]
    last: float
    """Its last value, in the data's unit."""


@dataclass(frozen=True)
class LineChart:
    """Lines over one x axis."""

    frame: Frame
    lines: tuple[Line, ...]
    left_out: int
    """Series with values for which there is no colour left."""


@dataclass(frozen=True)
class Column:
    """A bar that stands on the x axis."""

    x: float
    y: float
    height: float
    label: str
    value: float


@dataclass(frozen=True)
class ColumnChart:
    """Columns of one width."""

    frame: Frame
    columns: tuple[Column, ...]
    width: float


@dataclass(frozen=True)
class Bar:
    """A bar that starts at the left; without `value` there is none."""

    y: float
    width: float
    value: float | None
    style: str


@dataclass(frozen=True)
class BarRow:
    """A silo's bars."""

    label: str
    y: float
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars in [0, 1]."""

    rows: tuple[BarRow, ...]
    ticks: tuple[Tick, ...]
    left: float
    bottom: float
    paired: bool
    """Whether any row has two bars."""
    width: int = _WIDTH


@dataclass(frozen=True)
class GridRow:
    """A silo, and what it did in every round: (style, words)."""

    silo: str
    y: float
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Grid:
    """A square a silo and round."""

    rows: tuple[GridRow, ...]
    rounds: tuple[Tick, ...]
    """Every round, and where its squares begin."""
    every: int
    """Of so many rounds one is labelled."""
    left: float
    side: float
    gap: float
    bottom: float
    width: int = _WIDTH


def lines(xs: Sequence[float], series: Mapping[str, Sequence[float | None]], *, x_label: str, y_label: str) -> LineChart | None:
    """One line a series of values at `xs`, over a y axis with zero; at most 8 are drawn, the rest are counted. None without values.

    A series keeps the colour of its place in `series`, empty ones included: a silo has one colour in all charts of a page.
    """
    places = thinned(len(xs))
    pieces = {name: _pieces([(xs[i], values[i]) for i in places]) for name, values in series.items()}
    colours = {name: i % SERIES_COLOURS for i, name in enumerate(series) if pieces[name]}
    drawn = list(colours)[:SERIES_COLOURS]
    points = [point for name in drawn for piece in pieces[name] for point in piece]
    if not points:
        return None
    found_x, found_y = zip(*points, strict=True)
    x, y = _x_scale(round_ticks(min(found_x), max(found_x))), _y_scale(nice_ticks(min(0.0, *found_y), max(0.0, *found_y)), 240)
    placed = tuple(
        Line(name, colours[name], tuple(tuple((x.at(a), y.at(b)) for a, b in piece) for piece in pieces[name]), pieces[name][-1][-1][1])
        for name in drawn)
    frame = Frame(x_label=x_label, y_label=y_label, x_ticks=x.marks(), y_ticks=y.marks(), height=240)
    return LineChart(frame, placed, len(colours) - len(drawn))


def columns(values: Sequence[float | None], *, labels: Sequence[str], x_label: str, y_label: str) -> ColumnChart | None:
    """Columns from zero, one a label: histograms, bytes or seconds by round. None without values."""
    drawn = [value for value in values if _drawable(value)]
    if not drawn:
        return None
    x, y = _x_scale([0.0, float(len(values))]), _y_scale(nice_ticks(0.0, max(drawn), 4), 200)
    width = x.at(1) - x.at(0)
    every = max(1, math.ceil(max(len(label) for label in labels) * _CHARACTER * 1.4 / width))
    ticks = tuple(Tick(x.at(i + 0.5), label) for i, label in enumerate(labels) if i % every == 0)
    placed = tuple(
        Column(x.at(i + 0.1), y.at(value), y.start - y.at(value), label, value)
        for i, (value, label) in enumerate(zip(values, labels, strict=True)) if _drawable(value))
    return ColumnChart(Frame(x_label=x_label, y_label=y_label, x_ticks=ticks, y_ticks=y.marks(), height=200), placed, width * 0.8)


def bars(rows: Sequence[tuple[str, float | None, float | None]]) -> BarChart:
    """A row of (label, deployed model's score, other model's score or None) a silo."""
    left = _label_room([label for label, _, _ in rows])
    x = Scale((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), left, _WIDTH - 56)
    placed, y = [], 8.0
    for label, deployed, other in rows:
        pair = [(deployed, "bar-first")] + ([(other, "bar-second")] if other is not None else [])
        found = tuple(
            Bar(y + _BAR * i, x.at(min(max(value, 0.0), 1.0)) - left, value, style) if _drawable(value) else Bar(y + _BAR * i, 0.0, None, style)
            for i, (value, style) in enumerate(pair))
        placed.append(BarRow(label[:_LONGEST_LABEL], y + _BAR * len(pair) / 2, found))
        y += _BAR * len(pair) + 10
    return BarChart(tuple(placed), tuple(Tick(x.at(tick), f"{tick:.1f}") for tick in x.ticks), left, y, any(len(row.bars) > 1 for row in placed))


def grid(silos: Sequence[str], rounds: Sequence[int], cells: Mapping[tuple[str, int], tuple[str, str]]) -> Grid:
    """A square a (silo, round), as `cells` says: 'answered' | 'absent' | 'refused', and its words."""
    left = _label_room(silos)
    side = min(_ROW, (_WIDTH - left - 10) / max(len(rounds), 1))
    rows = tuple(
        GridRow(silo, 4 + i * _ROW, tuple(cells.get((silo, number), ("none", "nothing recorded")) for number in rounds))
        for i, silo in enumerate(silos))
    ticks = tuple(Tick(left + i * side, str(number)) for i, number in enumerate(rounds))
    return Grid(rows, ticks, max(1, math.ceil(26 / side)), left, side, min(2.0, side * 0.15), 4 + len(silos) * _ROW)


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` round numbers (steps of 1, 2 or 5 times a power of ten) that enclose [low, high]."""
    if not high - low > 1 / _LARGEST:
        high = low + 1.0
    raw = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def round_ticks(low: float, high: float) -> list[float]:
    """Whole numbers for rounds: the ends of the axis are the first and the last round."""
    if high <= low:
        return [low - 1, low, low + 1]
    step = max(1, round((high - low) / 6))
    inner = [t for t in range(math.ceil(low / step) * step, math.floor(high) + 1, step) if t - low >= step / 2 and high - t >= step / 2]
    return [low, *[float(t) for t in inner], high]


def thinned(points: int, limit: int = _MAX_POINTS) -> list[int]:
    """Indices of at most `limit` of `points` points, evenly spread, first and last kept."""
    return list(range(points)) if points <= limit else [round(i * (points - 1) / (limit - 1)) for i in range(limit)]


def _pieces(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The stretches of `points` between gaps."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if _drawable(y):
            found[-1].append((x, y))
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]


def _x_scale(ticks: Sequence[float]) -> Scale:
    return Scale(ticks, Frame.left, Frame.right)


def _y_scale(ticks: Sequence[float], height: int) -> Scale:
    return Scale(ticks, _bottom(height), 24.0)


def _bottom(height: int) -> float:
    return height - 42.0


def _label_room(labels: Sequence[str]) -> float:
    """Room on the left for the longest label, within reason."""
    return 18 + _CHARACTER * min(max((len(label) for label in labels), default=0), _LONGEST_LABEL)


def _drawable(value: float | None) -> TypeGuard[float]:
    return value is not None and abs(value) <= _LARGEST  # no comparison with NaN holds
