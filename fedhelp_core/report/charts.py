"""Charts of the HTML report as inline SVG text: no library, no script, colours from the page's CSS variables.

Called by report.py alone. Every label is escaped here, since silos and teachers choose them. Coordinates are in SVG units
(about one pixel at the page's width); a chart scales with the page. Not-a-number values are left out, never drawn as zero.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

Series = Mapping[str, Sequence[tuple[float, float]]]

SERIES_COLOURS = 8  # how many --series-<i> the page's style defines
_MAX_POINTS = 300   # per line: more cannot be told apart at the page's width
_WIDTH = 760
_HALF_WIDTH = 430   # line and column charts stand two beside each other
_CHARACTER = 6.6    # width of a 12-unit character: close enough to reserve room for labels


def clean(text: object, limit: int = 240) -> str:
    """`text` safe inside HTML and SVG: shortened to `limit`, unprintable and bidirectional characters replaced, escaped."""
    raw = str(text)
    if len(raw) > limit:
        raw = raw[: limit - 1] + "…"
    return html.escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in raw), quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """A score or loss for people: '0.713', or an en dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` round numbers (steps of 1, 2 or 5 times a power of ten) that enclose [low, high]."""
    if not high > low:
        high = low + 1.0
    raw = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]], limit: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """Finite points only, evenly thinned to at most `limit`, first and last kept."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) <= limit:
        return finite
    return [finite[round(i * (len(finite) - 1) / (limit - 1))] for i in range(limit)]


def bar_rows(rows: Sequence[tuple[str, float | None, float | None]], *, deployed: str, other: str) -> str:
    """Horizontal bars in [0, 1]: one row of (label, deployed model's score, other model's score or None) a silo."""
    left = _label_room([label for label, _, _ in rows])
    span = _WIDTH - left - 56
    parts, y = [], 8.0
    for label, first, second in rows:
        bars = [(first, "bar-first")] + ([(second, "bar-second")] if second is not None else [])
        height = 16.0 * len(bars)
        parts.append(_text(left - 10, y + height / 2 + 4, label[:34], anchor="end"))
        for value, style in bars:
            parts.append(_bar(left, y, span, value, style))
            y += 16
        y += 10
    axis = [_grid_column(left + span * tick, 4, y, f"{tick:.1f}") for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    legend = _legend([(deployed, "bar-first"), (other, "bar-second")] if any(r[2] is not None for r in rows) else [(deployed, "bar-first")])
    return legend + _svg(_WIDTH, y + 22, [*axis, *parts], f"{deployed} by silo")


def lines(series: Series, *, x_label: str, y_label: str, from_zero: bool = False) -> str:
    """One line a series over a common x axis; at most 8 are drawn, the rest are counted as left out.

    A series keeps the colour of its place in `series`, empty ones included: a silo has one colour in all charts of a page.
    """
    thin = {name: (thinned(points), i % SERIES_COLOURS) for i, (name, points) in enumerate(series.items())}
    thin = {name: line for name, line in thin.items() if line[0]}
    left_out = len(thin) - SERIES_COLOURS
    coloured = dict(list(thin.items())[:SERIES_COLOURS])
    if not coloured:
        return '<p class="quiet">No finite values to draw.</p>'
    drawn = {name: points for name, (points, _) in coloured.items()}
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    x_ticks, y_ticks = _round_ticks(min(xs), max(xs)), nice_ticks(0.0 if from_zero else min(ys), max(ys))
    plane = _Plane(x_ticks, y_ticks)
    parts = plane.frame(x_label, y_label)
    parts += [plane.line(points, colour, name) for name, (points, colour) in coloured.items()]
    legend = _legend([(name, f"series-{colour}") for name, (_, colour) in coloured.items()])
    more = f'<p class="quiet">{left_out} more silos are not drawn.</p>' if left_out > 0 else ""
    return legend + _svg(_HALF_WIDTH, plane.height, parts, f"{y_label} by {x_label}") + more


def columns(values: Sequence[float | None], *, labels: Sequence[str], x_label: str, y_label: str) -> str:
    """Vertical bars from zero, one a label: histograms, bytes or seconds by round."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return '<p class="quiet">Nothing was recorded.</p>'
    plane = _Plane([0.0, float(len(values))], nice_ticks(0.0, max(finite) or 1.0, 4), height=200)
    parts = plane.frame(x_label, y_label, x_names=False)
    width = (plane.right - plane.left) / len(values)
    every = max(1, math.ceil(max(len(label) for label in labels) * _CHARACTER * 1.4 / width))
    for i, (value, label) in enumerate(zip(values, labels, strict=True)):
        x = plane.left + width * i
        if value is not None and math.isfinite(value):
            top = plane.y(value)
            title = f"<title>{clean(label)}: {value:,.6g}</title>"
            parts.append(f'<rect class="bar-first" x="{x + width * 0.1:.1f}" y="{top:.1f}" width="{width * 0.8:.1f}"'
                         f' height="{max(plane.bottom - top, 0):.1f}" rx="1.5">{title}</rect>')
        if i % every == 0:
            parts.append(_text(x + width / 2, plane.bottom + 16, label, anchor="middle", style="tick"))
    return _svg(_HALF_WIDTH, plane.height, parts, f"{y_label} by {x_label}")


def participation_grid(silos: Sequence[str], rounds: Sequence[int], cells: Mapping[tuple[str, int], tuple[str, str]]) -> str:
    """A square a (silo, round): `cells` gives its style ('answered' | 'absent' | 'refused') and its tooltip."""
    left = _label_room(silos)
    side = min(22.0, (_WIDTH - left - 10) / max(len(rounds), 1))
    gap = min(2.0, side * 0.15)
    parts = []
    for row, silo in enumerate(silos):
        y = 4 + row * 22
        parts.append(_text(left - 10, y + 15, silo[:34], anchor="end"))
        for column, round_number in enumerate(rounds):
            style, title = cells.get((silo, round_number), ("none", "nothing recorded"))
            parts.append(f'<rect class="cell-{style}" x="{left + column * side:.1f}" y="{y}" width="{side - gap:.1f}" height="20" rx="2">'
                         f"<title>{clean(silo)}, round {round_number}: {clean(title)}</title></rect>")
    bottom = 4 + len(silos) * 22
    every = max(1, math.ceil(26 / side))
    for column, round_number in enumerate(rounds):
        if column % every == 0:
            parts.append(_text(left + (column + 0.5) * side - gap / 2, bottom + 14, str(round_number), anchor="middle", style="tick"))
    legend = _legend([("answered", "cell-answered"), ("absent", "cell-absent"), ("refused", "cell-refused")])
    return legend + _svg(_WIDTH, bottom + 20, parts, "who took part in which round")


class _Plane:
    """Axes with ticks, and the map from data to SVG units."""

    def __init__(self, x_ticks: Sequence[float], y_ticks: Sequence[float], height: int = 240) -> None:
        self.x_ticks, self.y_ticks, self.height = x_ticks, y_ticks, height
        self.left, self.right, self.top, self.bottom = 58.0, _HALF_WIDTH - 14.0, 24.0, height - 42.0

    def x(self, value: float) -> float:
        return self.left + (value - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0]) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0]) * (self.bottom - self.top)

    def frame(self, x_label: str, y_label: str, *, x_names: bool = True) -> list[str]:
        parts = []
        for tick in self.y_ticks:
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}"/>')
            parts.append(_text(self.left - 8, self.y(tick) + 4, f"{tick:,.6g}", anchor="end", style="tick"))
        if x_names:
            parts += [_text(self.x(tick), self.bottom + 16, f"{tick:g}", anchor="middle", style="tick") for tick in self.x_ticks]
        parts.append(_text(self.left, 12, y_label, style="axis"))
        parts.append(_text(self.right, self.height - 6, x_label, anchor="end", style="axis"))
        return parts

    def line(self, points: Sequence[tuple[float, float]], index: int, name: str) -> str:
        title = f"<title>{clean(name)}: last {points[-1][1]:.4g}</title>"
        end_x, end_y = self.x(points[-1][0]), self.y(points[-1][1])
        last = f'<circle class="dot series-{index}" cx="{end_x:.1f}" cy="{end_y:.1f}" r="3">{title}</circle>'
        if len(points) == 1:
            return last
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f'<polyline class="line series-{index}" points="{path}">{title}</polyline>{last}'


def _round_ticks(low: float, high: float) -> list[float]:
    """Whole numbers for rounds: the ends of the axis are the first and the last round."""
    if high <= low:
        return [low - 1, low, low + 1]
    step = max(1, round((high - low) / 6))
    inner = [t for t in range(math.ceil(low / step) * step, math.floor(high) + 1, step) if t - low >= step / 2 and high - t >= step / 2]
    return [low, *[float(t) for t in inner], high]


def _bar(left: float, y: float, span: float, value: float | None, style: str) -> str:
    if value is None or not math.isfinite(value):
        return _text(left + 6, y + 12, "no score", style="tick")
    width = span * min(max(value, 0.0), 1.0)
    return f'<rect class="{style}" x="{left}" y="{y + 1}" width="{width:.1f}" height="14" rx="2"/>' + _text(
        left + width + 6, y + 12, number(value), style="value")


def _grid_column(x: float, top: float, bottom: float, label: str) -> str:
    return f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom:.1f}"/>' + _text(
        x, bottom + 14, label, anchor="middle", style="tick")


def _label_room(labels: Sequence[str]) -> float:
    """Room on the left for the longest label, within reason."""
    return 18 + _CHARACTER * min(max((len(label) for label in labels), default=0), 34)


def _text(x: float, y: float, text: str, *, anchor: str = "start", style: str = "label") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{clean(text, 64)}</text>'


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<span><i class="swatch {style}"></i>{clean(name, 90)}</span>' for name, style in entries)
    return f'<div class="legend">{items}</div>'


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    return (f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{clean(title)}">' + "".join(parts) + "</svg>")
