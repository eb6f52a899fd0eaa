"""The figures of a study, PNG and SVG: bars by silo like the paper's Figure 1, and the small silos' mean against rounds.

Called by `fedhelp simulate` after `run_study`. matplotlib is imported when a figure is drawn, never before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedhelp_core.registry.metrics import Metric
from fedhelp_core.study.compared import SAME_MATHEMATICS, compared
from fedhelp_core.study.study import StudyResult
from fedhelp_core.study.table import Row, curve, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_1_METHODS = ("local", "fedavg", "fedhelp")
_COLOURS = {
    "local": "#a9b6c8", "fedavg": "#e0953a", "fedprox": "#b0367f", "fedhelp": "#2a6fdb",
    "scaffold": "#8a6d3b", "fedavg+momentum": "#c4553b", "fedavg+adam": "#d98fb8", "fedavg+yogi": "#6b8f23", "fedavg+fednova": "#2f9fb5",
    "fedhelp-no-api": "#1a9a72", "fedhelp-no-rank": "#7a5bd0", "fedhelp-one-way": "#4a7f96",
}
_STYLE: dict[str, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a94a3", "axes.grid": True,
    "axes.grid.axis": "y", "grid.color": "#e8ebef", "axes.axisbelow": True, "legend.frameon": False, "svg.hashsalt": "fedhelp",
    "xtick.color": "#3a424e", "ytick.color": "#3a424e", "axes.labelcolor": "#3a424e", "axes.titlesize": 11, "axes.titlelocation": "left",
}


def write_figures(result: StudyResult, out: Path) -> list[Path]:
    """`scores.png|svg` and, where rounds in between were evaluated (`has_curves`), `rounds.png|svg` in `out`; their paths."""
    import matplotlib

    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    with matplotlib.rc_context(cast("Any", _STYLE)):
        paths += _save(_bars_figure(result), out / "scores")
        if has_curves(result):
            paths += _save(_curves_figure(result), out / "rounds")
    return paths


def has_curves(result: StudyResult) -> bool:
    """Whether more rounds than the last were evaluated: a curve of one point is none."""
    return len(next(iter(result.cells.values())).scores) > 1


def _bars_figure(result: StudyResult) -> Figure:
    """One panel a normalisation: silos and their means along x, a bar a method, whiskers of one standard deviation over seeds."""
    methods = [m for m in FIGURE_1_METHODS if m in result.methods] or list(result.methods)
    figure = _new_figure(width=10, height=0.6 + 3.1 * len(result.normalisations))
    panels = figure.subplots(len(result.normalisations), 1, squeeze=False)[:, 0]
    rows = rows_of(result)
    for panel, normalisation in zip(panels, result.normalisations, strict=True):
        _bars(panel, result.headline, [next(r for r in rows if (r.method, r.normalisation) == (m, normalisation)) for m in methods])
        panel.set_title(f"normalisation {normalisation}")
        panel.set_xticks(range(len(_bar_labels(result))), _bar_labels(result))
    _legend_above(figure, panels[0], len(methods))
    return figure


def _bars(panel: Axes, metric: Metric, rows: list[Row]) -> None:
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        spreads = [*row.silos.values(), row.small, row.worst]
        places = [x + (i - (len(rows) - 1) / 2) * width for x in range(len(spreads))]
        whiskers = [s.deviation if s.n > 1 else 0.0 for s in spreads]
        panel.bar(places, [s.mean for s in spreads], width * 0.92, yerr=whiskers if any(whiskers) else None, label=row.method,
                  color=_colour(row.method), error_kw={"elinewidth": 1, "ecolor": "#3a424e", "capsize": 2})
    panel.axvline(len(rows[0].silos) - 0.5, color="#8a94a3", linewidth=0.8, linestyle=(0, (3, 3)))
    panel.set_ylim(0, None if metric.unit else 1)
    panel.set_ylabel(metric.label)
    panel.tick_params(axis="x", length=0)


def _bar_labels(result: StudyResult) -> list[str]:
    some = next(iter(result.cells.values()))
    return [f"{silo}\n{kind}, {some.training_samples[silo]:,}" for silo, kind in some.kinds.items()] + ["small silos'\nmean", "worst\nsilo"]


def _curves_figure(result: StudyResult) -> Figure:
    """One panel a normalisation: the small silos' mean after each evaluated round, a line a method, a band of one standard deviation."""
    from matplotlib.ticker import MaxNLocator

    figure = _new_figure(width=1 + 4.8 * len(result.normalisations), height=3.9)
    panels = figure.subplots(1, len(result.normalisations), squeeze=False, sharey=True)[0]
    methods = [m for m in result.methods if m not in SAME_MATHEMATICS]
    for panel, normalisation in zip(panels, result.normalisations, strict=True):
        for method in methods:
            points = curve(result.row(method, normalisation), result.headline)
            rounds, means = list(points), [s.mean for s in points.values()]
            width = 2.2 if method == "fedhelp" else 1.5
            panel.plot(rounds, means, label=method, color=_colour(method), linewidth=width, marker="o", markersize=3)
            if all(s.n > 1 for s in points.values()):
                low, high = ([s.mean + sign * s.deviation for s in points.values()] for sign in (-1, 1))
                panel.fill_between(rounds, low, high, color=_colour(method), alpha=0.12, linewidth=0)
        panel.set_title(f"normalisation {normalisation}")
        panel.set_xlabel("round")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel(f"small silos' mean {result.headline.label}")
    _legend_above(figure, panels[0], len(methods) if len(result.normalisations) > 1 else 3)
    return figure


def _new_figure(*, width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend_above(figure: Figure, panel: Axes, columns: int) -> None:
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=columns)


def _colour(method: str) -> str:
    return _COLOURS.get(compared(method).computed_as, "#5a6472")


def _save(figure: Figure, stem: Path) -> list[Path]:
    """Both formats; without a date inside, so that equal numbers give equal files."""
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    figure.savefig(png, dpi=160)
    figure.savefig(svg, metadata={"Date": None})
    return [png, svg]
