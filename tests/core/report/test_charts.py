"""Charts by numbers: what is drawn is read back from the page's SVG, by its own axes, and compared with the facts."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.report.charts import nice_ticks
from fedhelp_core.report.facts import ReportFacts, RoundReport, SiloFacts, SiloScores, SoftLabelFacts
from fedhelp_core.report.page import render_report

Losses = Mapping[str, Sequence[float | None]]
PRECISION = 0.06  # SVG units: coordinates have one decimal


def report(losses: Losses, *, scores: Mapping[str, SiloScores] | None = None, **other: object) -> ReportFacts:
    """Of a run in which silo s had the private loss `losses[s][r - 1]` in round r; None: it was absent."""
    rounds = tuple(
        RoundReport(
            number=number, participants=tuple(silo for silo, values in losses.items() if values[number - 1] is not None),
            absent={silo: "late" for silo, values in losses.items() if values[number - 1] is None},
            losses={silo: {"private_loss": value} for silo, values in losses.items() if (value := values[number - 1]) is not None})
        for number in range(1, len(next(iter(losses.values()), ())) + 1))
    given: dict[str, object] = {"rounds": rounds, "scores": scores or {}} | other
    return ReportFacts(
        run_id="r", federation="demo", method="fedhelp", normalisation="silo", metrics=TaskConfig(name="melanoma").scored_by,
        silos=tuple(SiloFacts(name=silo, kind="small") for silo in losses), **given)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Axis:
    """Labelled places on an axis."""

    places: list[float]
    labels: list[str]

    @property
    def values(self) -> list[float]:
        return [float(label.replace(",", "")) for label in self.labels]

    def value(self, place: float) -> float:
        """What lies at `place`, by the axis' two ends."""
        (first, last), (low, high) = (self.places[0], self.places[-1]), (self.values[0], self.values[-1])
        return low + (place - first) / (last - first) * (high - low)

    @property
    def step(self) -> float:
        """Data units of the coordinates' precision."""
        return PRECISION * abs((self.values[-1] - self.values[0]) / (self.places[-1] - self.places[0]))


class Chart:
    """One SVG of a page."""

    def __init__(self, text: str) -> None:
        self.root = ET.fromstring(text)
        self.width, self.height = (float(side) for side in self.root.attrib["viewBox"].split()[2:])

    def all(self, tag: str, style: str = "") -> list[ET.Element]:
        return [element for element in self.root.iter(tag) if style in element.get("class", "")]

    def x_axis(self) -> Axis:
        ticks = [tick for tick in self.all("text", "tick") if tick.get("text-anchor") == "middle"]
        return Axis([float(tick.attrib["x"]) for tick in ticks], [tick.text or "" for tick in ticks])

    def y_axis(self) -> Axis:
        labels = [tick.text or "" for tick in self.all("text", "tick") if tick.get("text-anchor") == "end"]
        return Axis([float(line.attrib["y1"]) for line in self.all("line", "grid")], labels)

    def lines(self) -> dict[str, list[list[tuple[float, float]]]]:
        """Pieces of (x, y) in data units, by series; a piece of one point is a dot."""
        x, y = self.x_axis(), self.y_axis()
        found: dict[str, list[list[tuple[float, float]]]] = {}
        for element in [*self.all("polyline"), *self.all("circle")]:
            pieces = found.setdefault(series_of(element), [])
            piece = [(x.value(a), y.value(b)) for a, b in points_of(element)]
            if piece[-1] not in [other[-1] for other in pieces]:  # a line's end has a dot
                pieces.append(piece)
        return {name: sorted(pieces) for name, pieces in found.items()}


def points_of(element: ET.Element) -> list[tuple[float, float]]:
    if element.tag == "circle":
        return [(float(element.attrib["cx"]), float(element.attrib["cy"]))]
    pairs = [pair.split(",") for pair in element.attrib["points"].split()]
    return [(float(x), float(y)) for x, y in pairs]


def series_of(element: ET.Element) -> str:
    return (element.findtext("title") or "").partition(":")[0]


def charts(facts: ReportFacts) -> dict[str, Chart]:
    """By the label that a screen reader reads."""
    found = [Chart(text) for text in re.findall(r"<svg.*?</svg>", render_report(facts), re.DOTALL)]
    return {chart.root.attrib["aria-label"]: chart for chart in found}


def loss_chart(losses: Losses) -> Chart:
    return charts(report(losses))["loss by round"]


class TestLines:
    def test_every_point_lies_at_its_round_and_its_loss(self) -> None:
        losses = {"a": [2.5, 1.25, 0.625, 0.3, 0.21], "b": [1.0, 1.5, 2.0, 0.02, 1.0]}
        chart = loss_chart(losses)
        lines = chart.lines()
        assert list(lines) == ["a", "b"]
        for silo, values in losses.items():
            (piece,) = lines[silo]
            assert [x for x, _ in piece] == pytest.approx([1, 2, 3, 4, 5], abs=chart.x_axis().step)
            assert [y for _, y in piece] == pytest.approx(values, abs=chart.y_axis().step)

    def test_larger_losses_are_drawn_higher_and_later_rounds_further_right(self) -> None:
        chart = loss_chart({"a": [3.0, 2.0, 1.0]})
        (line,) = chart.all("polyline")
        points = points_of(line)
        assert all(before < after for (before, _), (after, _) in itertools.pairwise(points))
        assert all(before < after for (_, before), (_, after) in itertools.pairwise(points)), "SVG counts y downwards"

    def test_the_y_axis_is_linear_from_zero_with_round_ticks_that_enclose_the_data(self) -> None:
        axis = loss_chart({"a": [0.31, 7.3]}).y_axis()
        assert axis.values == [0, 2, 4, 6, 8]
        gaps = [before - after for before, after in itertools.pairwise(axis.places)]
        assert gaps == pytest.approx([gaps[0]] * len(gaps), abs=2 * PRECISION)

    @pytest.mark.parametrize("rounds", [1, 2, 7, 50, 1000])
    def test_the_x_axis_goes_from_the_first_to_the_last_round_and_is_linear(self, rounds: int) -> None:
        axis = loss_chart({"a": [1.0] * rounds}).x_axis()
        if rounds > 1:
            assert (axis.values[0], axis.values[-1]) == (1, rounds)
        assert axis.values == sorted(set(axis.values))
        assert [axis.value(place) for place in axis.places] == pytest.approx(axis.values, abs=2 * axis.step)

    @pytest.mark.parametrize("losses", [[1.0], [1.0, 1.0], [0.0, 0.0], [1e-9, 3e-9], [1e-13, 2e-13], [1e6, 5e7], [-2.0, 1.0], [-2.0, -1.0]])
    def test_points_ticks_and_labels_lie_inside(self, losses: list[float]) -> None:
        chart = loss_chart({"a": losses})
        x, y = chart.x_axis(), chart.y_axis()
        for element in [*chart.all("polyline"), *chart.all("circle")]:
            for a, b in points_of(element):
                assert x.places[0] <= a <= x.places[-1]
                assert y.places[-1] <= b <= y.places[0]
        assert all(0 <= place <= chart.width for place in x.places) and all(0 <= place <= chart.height for place in y.places)

    @pytest.mark.parametrize("losses", [[1e308, -1e308], [5e-324, 0.0], [1e308, 1.0]])
    def test_numbers_at_the_ends_of_floats_do_not_end_the_report(self, losses: list[float]) -> None:
        assert "<svg" in render_report(report({"a": losses, "b": [1.0, 1.0]}))

    @pytest.mark.parametrize("missing", [None, math.nan, math.inf])
    def test_a_missing_round_is_a_gap_and_never_a_zero(self, missing: float | None) -> None:
        chart = loss_chart({"a": [2.0, 1.8, missing, 1.4, missing, 1.2], "b": [1.0] * 6})
        pieces = chart.lines()["a"]
        assert [[round(x) for x, _ in piece] for piece in pieces] == [[1, 2], [4], [6]]
        assert [y for piece in pieces for _, y in piece] == pytest.approx([2.0, 1.8, 1.4, 1.2], abs=chart.y_axis().step)
        assert len(chart.lines()["b"]) == 1

    def test_a_silo_has_one_colour_in_all_charts_and_in_their_legends(self) -> None:
        facts = report({"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [1.0, 1.0]})
        mixed = tuple(
            RoundReport(number=n, participants=("a", "b", "c"), losses={"a": {"proxy_loss": 1.0}, "b": {"private_loss": 1.0}, "c": {
                "proxy_loss": 2.0, "private_loss": 2.0}}) for n in (1, 2))
        page = render_report(report({"a": [1.0] * 2, "b": [1.0] * 2, "c": [1.0] * 2}, rounds=mixed))
        drawn = [Chart(text) for text in re.findall(r'<svg[^>]*aria-label="loss by round".*?</svg>', page, re.DOTALL)]
        colours = [{(series_of(mark), mark.attrib["class"]) for mark in chart.all("polyline")} for chart in drawn]
        assert colours == [{("a", "line series-0"), ("c", "line series-2")}, {("b", "line series-1"), ("c", "line series-2")}]
        dots = [{(series_of(mark), mark.attrib["class"]) for mark in chart.all("circle")} for chart in drawn]
        assert dots == [{(name, style.replace("line", "dot")) for name, style in found} for found in colours]
        legends = re.findall(r'swatch (series-\d)"></i>(\w)<', page)
        assert legends == [("series-0", "a"), ("series-2", "c"), ("series-1", "b"), ("series-2", "c")]
        assert all(f"--series-{i}:" in page and f".line.series-{i} " in page for i in range(8))
        assert list(charts(facts)["loss by round"].lines()) == ["a", "b", "c"]

    def test_eight_silos_are_drawn_and_the_others_counted(self) -> None:
        facts = report({f"s{i}": [1.0 + i, 1.0] for i in range(11)})
        assert list(charts(facts)["loss by round"].lines()) == [f"s{i}" for i in range(8)]
        assert "3 more silos are not drawn." in render_report(facts)

    def test_a_thousand_rounds_are_thinned_evenly_and_both_ends_kept(self) -> None:
        chart = loss_chart({"a": [1000.0 - i for i in range(1000)]})
        ((*points,),) = chart.lines()["a"]
        assert len(points) == 300
        assert points[0] == pytest.approx((1, 1000), abs=4) and points[-1] == pytest.approx((1000, 1), abs=4)
        assert all(x + y == pytest.approx(1001, abs=6) for x, y in points)

    def test_values_that_are_all_missing_are_said_to_be(self) -> None:
        assert "No finite values to draw." in render_report(report({"a": [math.nan, math.nan]}))


class TestColumns:
    def test_each_stands_on_zero_under_its_label_as_high_as_its_value(self) -> None:
        seconds = [2.5, None, 7.0, 0.0]
        rounds = tuple(RoundReport(number=i + 1, participants=("a",), seconds=value) for i, value in enumerate(seconds))
        chart = charts(report({"a": [1.0]}, rounds=rounds))["seconds by round"]
        x, y = chart.x_axis(), chart.y_axis()
        assert y.values[0] == 0
        drawn = {}
        for column in chart.all("rect"):
            left, top, width, height = (float(column.attrib[name]) for name in ("x", "y", "width", "height"))
            assert top + height == pytest.approx(y.places[0], abs=2 * PRECISION)
            drawn[round(x.value(left + width / 2))] = y.value(top)
            assert (column.findtext("title") or "").startswith(f"{round(x.value(left + width / 2))}: ")
        assert drawn == pytest.approx({1: 2.5, 3: 7.0, 4: 0.0}, abs=y.step)

    def test_entropies_are_counted_from_certain_to_no_opinion(self) -> None:
        entropies = (0.0, 0.01, 0.02, 0.69, math.nan, 9.0)
        soft = SoftLabelFacts(sha256="ab", images=6, classes=2, entropies=entropies)
        chart = next(chart for label, chart in charts(report({"a": [1.0]}, soft_labels=soft)).items() if "entropy" in label)
        counts = [round(chart.y_axis().value(float(column.attrib["y"])), 1) for column in chart.all("rect")]
        assert (len(counts), counts[0], counts[-1], sum(counts)) == (24, 3, 2, 5), "9 nats are more than two classes can have"

    def test_labels_do_not_run_into_each_other(self) -> None:
        rounds = tuple(RoundReport(number=i, participants=("a",), seconds=1.0) for i in range(1, 301))
        axis = charts(report({"a": [1.0]}, rounds=rounds))["seconds by round"].x_axis()
        assert all(after - before > 6 * len(label) for (before, after), label in zip(itertools.pairwise(axis.places), axis.labels, strict=False))


class TestBars:
    SCORES = {
        "a": SiloScores(models={"large": {"balanced_accuracy": 0.8}, "proxy": {"balanced_accuracy": 0.65}}),
        "b": SiloScores(models={"proxy": {"balanced_accuracy": 0.25}}),
        "c": SiloScores(models={"proxy": {"balanced_accuracy": math.nan}}),
    }

    def chart(self) -> Chart:
        return charts(report({silo: [1.0] for silo in "abc"}, scores=self.SCORES))["model that the silo deploys by silo"]

    def test_each_is_as_long_as_its_score_and_says_it(self) -> None:
        chart = self.chart()
        x = chart.x_axis()
        assert x.values == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        found = [(bar.attrib["class"], x.value(float(bar.attrib["x"]) + float(bar.attrib["width"]))) for bar in chart.all("rect")]
        assert all(float(bar.attrib["x"]) == pytest.approx(x.places[0], abs=PRECISION) for bar in chart.all("rect"))
        assert [style for style, _ in found] == ["bar-first", "bar-second", "bar-first"]
        assert [score for _, score in found] == pytest.approx([0.8, 0.65, 0.25], abs=x.step)
        assert [text.text for text in chart.all("text", "value")] == ["0.800", "0.650", "0.250"]

    def test_each_lies_beside_its_silos_name_and_a_silo_without_score_has_none(self) -> None:
        chart = self.chart()
        names = {text.text: float(text.attrib["y"]) for text in chart.all("text", "label")}
        assert list(names) == ["a", "b", "c"] and names["a"] < names["b"] < names["c"]
        middles = [float(bar.attrib["y"]) + 7 for bar in chart.all("rect")]
        nearest = [min(names, key=lambda name: abs(names[name] - 4 - middle)) for middle in middles]
        assert nearest == ["a", "a", "b"]
        (nothing,) = [text for text in chart.all("text") if text.text == "no score"]
        assert min(names, key=lambda name: abs(names[name] - float(nothing.attrib["y"]))) == "c"


def test_the_grid_shows_who_took_part_in_which_round() -> None:
    rounds = (
        RoundReport(number=1, participants=("a", "b")),
        RoundReport(number=2, participants=("a",), absent={"b": "late"}),
        RoundReport(number=3, participants=("b",), refused={"a": "not finite"}),
    )
    chart = charts(report({"a": [1.0], "b": [1.0], "c": [1.0]}, rounds=rounds))["who took part in which round"]
    names = [(text.text or "", float(text.attrib["y"])) for text in chart.all("text", "label")]
    rounds_axis = chart.x_axis()
    found = {}
    for cell in chart.all("rect"):
        x, y, width, height = (float(cell.attrib[name]) for name in ("x", "y", "width", "height"))
        silo = next(name for name, at in names if y <= at <= y + height)
        number = round(rounds_axis.value(x + width / 2))
        found[silo, number] = cell.attrib["class"]
        assert (cell.findtext("title") or "").startswith(f"{silo}, round {number}: ")
    assert found == {
        ("a", 1): "cell-answered", ("a", 2): "cell-answered", ("a", 3): "cell-refused",
        ("b", 1): "cell-answered", ("b", 2): "cell-absent", ("b", 3): "cell-answered",
        ("c", 1): "cell-none", ("c", 2): "cell-none", ("c", 3): "cell-none"}


def test_counts_have_whole_ticks_however_few_there_are() -> None:
    assert nice_ticks(0.0, 1.0, 4, whole=True) == [0.0, 1.0]
    assert nice_ticks(0.0, 2.0, 4, whole=True) == [0.0, 1.0, 2.0]
    assert nice_ticks(0.0, 2.0, 4) == [0.0, 0.5, 1.0, 1.5, 2.0]
