"""Where everything of a chart lies: lines, bars and labels in SVG units, about a pixel at the page's width.

Called by `page`; the macro `chart` of `parts.html.j2` writes the SVG. All axes are linear. A value that is missing, not finite
or beyond all reason leaves a gap and is never drawn as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from fedhelp_core.report.text import number

SERIES_COLOURS = 8  # how many --series-<i> the page's style defines
_MAX_POINTS = 300   # per line: more cannot be told apart at the page's width
_WIDTH = 760
_HALF_WIDTH = 430   # line and column charts stand two beside each other
_CHARACTER = 7.4    # width of a 12-unit character: close enough to reserve room for labels
_LONGEST_LABEL = 34  # characters
_ROW, _BAR = 22, 16  # heights: of a silo in the grid of rounds, of a bar
_LARGEST = 1e100    # of a value, and of its inverse: far from where floats end, so that no silo's number breaks a chart


@dataclass(frozen=True)
class Mark:
    """An SVG element. Text and title (its tooltip) may come from silos; tag and attributes never do."""

    tag: str
    attributes: Mapping[str, str]
    text: str = ""
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing, what a screen reader calls it, its legend of (name, style), and what is to be said below."""

    label: str
    width: int
    height: float
    marks: Sequence[Mark]
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """Maps data to SVG units, linearly: the first tick to `start`, the last one to `end`."""

    ticks: Sequence[float]
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where `value` lies."""
        return self.start + (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0]) * (self.end - self.start)


def bars(rows: Sequence[tuple[str, float | None, float | None]], *, deployed: str, other: str) -> Chart:
    """Horizontal bars in [0, 1]: one row of (label, deployed model's score, other model's score or None) a silo."""
    left = _label_room([label for label, _, _ in rows])
    x = Scale((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), left, _WIDTH - 56)
    marks, y = [], 8
    for label, *scores in rows:
        pair = scores if scores[1] is not None else scores[:1]
        marks.append(_text(left - 10, y + _BAR * len(pair) / 2 + 4, label[:_LONGEST_LABEL], anchor="end"))
        for score, style in zip(pair, ("bar-first", "bar-second"), strict=False):
            marks += _bar(x, y, score, style)
            y += _BAR
        y += 10
    axis = [mark for tick in x.ticks for mark in (
        _mark("line", "grid", x1=x.at(tick), x2=x.at(tick), y1=4, y2=y), _text(x.at(tick), y + 14, f"{tick:.1f}", "middle", "tick"))]
    legend = [(deployed, "bar-first"), (other, "bar-second")][: 1 + any(row[2] is not None for row in rows)]
    return Chart(f"{deployed} by silo", _WIDTH, y + 22, [*axis, *marks], legend)


def lines(xs: Sequence[float], series: Mapping[str, Sequence[float | None]], *, x_label: str, y_label: str) -> Chart | None:
    """One line a series of values at `xs`, over a y axis with zero; at most 8 are drawn, the rest are counted. None without values.

    A series keeps the colour of its place in `series`, empty ones included: a silo has one colour in all charts of a page.
    """
    places = thinned(len(xs))
    pieces = {name: _pieces([(xs[i], values[i]) for i in places]) for name, values in series.items()}
    styles = {name: f"series-{i % SERIES_COLOURS}" for i, name in enumerate(series) if pieces[name]}
    shown = list(styles)[:SERIES_COLOURS]
    points = [point for name in shown for piece in pieces[name] for point in piece]
    if not points:
        return None
    found_x, found_y = zip(*points, strict=True)
    plane = _Plane(round_ticks(min(found_x), max(found_x)), nice_ticks(min(0.0, *found_y), max(0.0, *found_y)), 240)
    marks = plane.frame(x_label, y_label, [(plane.x.at(tick), f"{tick:g}") for tick in plane.x.ticks])
    for name in shown:
        marks += plane.line(name, pieces[name], styles[name])
    left_out = len(styles) - len(shown)
    return Chart(
        f"{y_label} by {x_label}", _HALF_WIDTH, plane.height, marks, [(name, styles[name]) for name in shown],
        f"{left_out} more silos are not drawn." if left_out else "")


def columns(values: Sequence[float | None], *, labels: Sequence[str], x_label: str, y_label: str, whole: bool = False) -> Chart | None:
    """Columns from zero, one a label: histograms, bytes or seconds by round. `whole`: of counts, whose ticks are whole. None without values."""
    drawn = [value for value in values if _drawable(value)]
    if not drawn:
        return None
    plane = _Plane([0.0, float(len(values))], nice_ticks(0.0, max(drawn), 4, whole=whole), 200)
    width = plane.x.at(1) - plane.x.at(0)
    every = max(1, math.ceil(max(len(label) for label in labels) * _CHARACTER * 1.4 / width))
    marks = plane.frame(x_label, y_label, [(plane.x.at(i + 0.5), labels[i]) for i in range(0, len(labels), every)])
    for i, (value, label) in enumerate(zip(values, labels, strict=True)):
        if _drawable(value):
            top, bottom = plane.y.at(value), plane.y.start
            title = f"{label}: {value:,.6g}"
            marks.append(_mark(
                "rect", "bar-first", title=title, x=plane.x.at(i + 0.1), y=top, width=width * 0.8, height=max(bottom - top, 0), rx=1.5))
    return Chart(f"{y_label} by {x_label}", _HALF_WIDTH, plane.height, marks)


def participation_grid(silos: Sequence[str], rounds: Sequence[int], cells: Mapping[tuple[str, int], tuple[str, str]]) -> Chart:
    """A square a (silo, round): `cells` gives its style ('answered' | 'absent' | 'refused') and its tooltip."""
    left = _label_room(silos)
    side = min(float(_ROW), (_WIDTH - left - 10) / max(len(rounds), 1))
    gap = min(2.0, side * 0.15)
    marks = []
    for row, silo in enumerate(silos):
        marks.append(_text(left - 10, 4 + row * _ROW + 15, silo[:_LONGEST_LABEL], anchor="end"))
        for column, round_number in enumerate(rounds):
            style, title = cells.get((silo, round_number), ("none", "nothing recorded"))
            marks.append(_mark(
                "rect", f"cell-{style}", title=f"{silo}, round {round_number}: {title}", x=left + column * side, y=4 + row * _ROW, width=side - gap,
                height=_ROW - 2, rx=2))
    bottom, every = 4 + len(silos) * _ROW, max(1, math.ceil(26 / side))
    marks += [_text(left + (i + 0.5) * side - gap / 2, bottom + 14, str(rounds[i]), "middle", "tick") for i in range(0, len(rounds), every)]
    legend = [(style, f"cell-{style}") for style in ("answered", "absent", "refused")]
    return Chart("who took part in which round", _WIDTH, bottom + 20, marks, legend)


def nice_ticks(low: float, high: float, wanted: int = 5, *, whole: bool = False) -> list[float]:
    """About `wanted` round numbers (steps of 1, 2 or 5 times a power of ten) that enclose [low, high]; `whole` ones where that is asked for."""
    if not high - low > 1 / _LARGEST:
        high = low + 1.0
    raw = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    if whole:
        step = max(1.0, step)
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


class _Plane:
    """The axes of a line or column chart."""

    def __init__(self, x_ticks: Sequence[float], y_ticks: Sequence[float], height: int) -> None:
        self.height = height
        self.x, self.y = Scale(x_ticks, 58.0, _HALF_WIDTH - 14.0), Scale(y_ticks, height - 42.0, 24.0)

    def frame(self, x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]]) -> list[Mark]:
        marks = [_text(at, self.y.start + 16, label, "middle", "tick") for at, label in x_ticks]
        for tick in self.y.ticks:
            marks.append(_mark("line", "grid", x1=self.x.start, x2=self.x.end, y1=self.y.at(tick), y2=self.y.at(tick)))
            marks.append(_text(self.x.start - 8, self.y.at(tick) + 4, f"{tick:,.6g}", "end", "tick"))
        return [*marks, _text(self.x.start, 12, y_label, style="axis"), _text(self.x.end, self.height - 6, x_label, "end", "axis")]

    def line(self, name: str, pieces: Sequence[Sequence[tuple[float, float]]], style: str) -> list[Mark]:
        """A stretch between gaps is a line, a single round a small dot; the last one is marked."""
        title = f"{name}: last {pieces[-1][-1][1]:.4g}"
        marks = []
        for piece in pieces:
            placed = [(self.x.at(x), self.y.at(y)) for x, y in piece]
            if len(piece) > 1:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
                marks.append(Mark("polyline", {"class": f"line {style}", "points": path}, title=title))
            if len(piece) == 1 or piece is pieces[-1]:
                x, y = placed[-1]
                marks.append(_mark("circle", f"dot {style}", title=title, cx=x, cy=y, r=3 if piece is pieces[-1] else 1.5))
        return marks


def _pieces(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The stretches of `points` between gaps."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if _drawable(y):
            found[-1].append((x, y))
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]


def _bar(x: Scale, y: float, score: float | None, style: str) -> list[Mark]:
    if not _drawable(score):
        return [_text(x.start + 6, y + 12, "no score", style="tick")]
    end = x.at(min(max(score, 0.0), 1.0))
    bar = _mark("rect", style, x=x.start, y=y + 1, width=end - x.start, height=_BAR - 2, rx=2)
    return [bar, _text(end + 6, y + 12, number(score), style="value")]


def _mark(tag: str, style: str, *, title: str = "", **places: float) -> Mark:
    return Mark(tag, {"class": style} | {name: f"{place:.1f}" for name, place in places.items()}, title=title)


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "label") -> Mark:
    return Mark("text", {"class": style, "x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}, text)


def _label_room(labels: Sequence[str]) -> float:
    """Room on the left for the longest label, within reason."""
    return 18 + _CHARACTER * min(max((len(label) for label in labels), default=0), _LONGEST_LABEL)


def _drawable(value: float | None) -> TypeGuard[float]:
    return value is not None and abs(value) <= _LARGEST  # no comparison with NaN holds
