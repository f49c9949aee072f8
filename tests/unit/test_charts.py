"""Charts: what is drawn, and what is said."""

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboard.assets import FOLDER
from dashboard.charts.band import band
from dashboard.charts.forest import forest, forest_axis, forest_cell, forest_scale
from dashboard.charts.model import (
    BandStep,
    Cause,
    Chart,
    ForestRow,
    Line,
    LinePoint,
    Mark,
    PosteriorArm,
    ProgressStep,
    Share,
    Tone,
)
from dashboard.charts.posterior import posterior
from dashboard.charts.series import series
from dashboard.charts.small import progress, share_bar, sparkline

START = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)
CLICKS = ForestRow("clicks", 0.015, -0.003, 0.032, "open", 1)
ODD = '<b onload="x">"比較" & тест'
ENDS = st.one_of(st.none(), st.floats(-1e12, 1e12), st.sampled_from([1e-9, math.inf, math.nan]))


def parsed(drawing: str) -> ET.Element:
    """The drawing as XML, which it has to be; its numbers are numbers."""
    assert "nan" not in drawing.lower()
    assert not re.search(r"\binf\b", drawing)
    assert "style=" not in drawing
    return ET.fromstring(f"<div>{drawing}</div>")  # noqa: S314 - it is our own


def texts(drawing: str) -> list[str]:
    return [element.text or "" for element in parsed(drawing).iter("text")]


def line(label: str = "v7", place: int = 1, count: int = 40, scale: float = 0.1) -> Line:
    """A line whose band becomes narrow, as a confidence sequence does."""
    return Line(
        label,
        place,
        tuple(
            LinePoint(
                START + timedelta(hours=k),
                0.2 * scale,
                (0.2 - 8 / k) * scale,
                (0.2 + 8 / k) * scale,
            )
            for k in range(1, count + 1)
        ),
    )


def step(hour: float, shares: Iterable[float], number: int, cause: Cause = "hand") -> BandStep:
    return BandStep(START + timedelta(hours=hour), tuple(shares), number, cause)


def charts_of_nothing() -> list[Chart]:
    return [
        forest([], title="Lift"),
        series([], title="Course"),
        series([Line("v7", 1, ())], title="Course"),
        band([], ["v6", "v7"], title="Traffic", end=START),
        posterior([], title="Rates"),
    ]


def some_charts() -> list[Chart]:
    return [
        forest([CLICKS], title="Lift"),
        series([line()], title="Course", measure="points"),
        band([step(0, (0.5, 0.5), 1)], ["v6", "v7"], title="Traffic", end=START),
        posterior([PosteriorArm("v7", 1, 0.1, 0.01, 0.9)], title="Rates", measure="share"),
    ]


def test_a_chart_of_nothing_says_so() -> None:
    for chart in charts_of_nothing():
        parsed(chart.svg)
        assert chart.summary
        assert not chart.table.rows


def test_every_chart_is_labelled_by_what_it_says_and_has_a_table_behind_it() -> None:
    for chart in some_charts():
        images = [e for e in parsed(chart.svg).iter() if e.get("role") == "img"]
        assert [image.get("aria-label") for image in images] == [chart.summary]
        assert all(len(row) == len(chart.table.columns) for row in chart.table.rows)
        assert chart.table.rows


def test_the_same_data_give_the_same_bytes() -> None:
    assert some_charts() == some_charts()


def test_the_summary_is_in_words() -> None:
    course = series(
        [Line("v7", 1, (LinePoint(START, 0.015, -0.003, 0.032),))], title="Clicks", measure="points"
    )
    assert course.summary == "Clicks. v7 is at +1.5\xa0pp, between −0.3 and +3.2\xa0pp"
    assert forest([CLICKS], title="Lift").summary == (
        "Lift. clicks: +1.5\u202f%, between −0.3 and +3.2\u202f%, not known yet"
    )


@settings(max_examples=60)
@given(st.lists(st.tuples(ENDS, ENDS, ENDS), max_size=12))
def test_whatever_is_estimated_can_be_drawn(found: list[tuple[float | None, ...]]) -> None:
    rows = [ForestRow("m", value, low, high) for value, low, high in found]
    parsed(forest(rows, title="Lift").svg)
    points = tuple(LinePoint(START + timedelta(minutes=k), *ends) for k, ends in enumerate(found))
    parsed(series([Line("v7", 1, points)], title="Course").svg)
    parsed(sparkline([value for value, _, _ in points_of(points)], label="x"))
    arms = [
        PosteriorArm("a", 1, value, abs(low or 0.0), 0.5)
        for value, low, _ in points_of(points)
        if value is not None
    ]
    parsed(posterior(arms, title="Arms").svg)


def points_of(points: Iterable[LinePoint]) -> list[tuple[float | None, ...]]:
    """Their numbers, so far as they are some."""
    return [
        tuple(x if x is not None and math.isfinite(x) else None for x in (p.value, p.low, p.high))
        for p in points
    ]


@pytest.mark.parametrize(
    ("tone", "low", "high"), [("better", 0.01, 0.02), ("worse", -0.03, -0.01), ("open", -1, 1)]
)
def test_a_finding_has_a_colour_and_a_shape_of_its_own(tone: Tone, low: float, high: float) -> None:
    scale = forest_scale([CLICKS])
    cell = parsed(forest_cell(ForestRow("m", 0.015, low, high, tone), scale))
    others = [
        parsed(forest_cell(ForestRow("m", 0.015, low, high, other), scale))
        for other in ("better", "worse", "open")
        if other != tone
    ]
    assert tone in (cell[0].get("class") or "").split()
    assert all(point_of(cell) != point_of(other) for other in others)


def point_of(cell: ET.Element) -> str | None:
    return next(e.get("d") for e in cell.iter("path") if e.get("class") == "pt")


def test_an_interval_without_a_bound_is_an_open_arrow_with_words() -> None:
    scale = forest_scale([CLICKS])
    cell = forest_cell(ForestRow("m", 0.01, None, 0.02), scale)
    assert "arrow" in classes(cell)
    assert texts(cell) == ["no bound"]
    assert "past" not in classes(cell)


def test_an_interval_that_goes_beyond_the_scale_is_marked() -> None:
    cell = forest_cell(ForestRow("m", 0.01, -9.0, 0.02), forest_scale([CLICKS]))
    assert "past" in classes(cell)
    assert "arrow" not in classes(cell)


def test_an_interval_wholly_beyond_the_scale_stays_at_its_edge() -> None:
    cell = parsed(forest_cell(ForestRow("m", 5.0, 4.0, 6.0), forest_scale([CLICKS])))
    interval = next(e for e in cell.iter("line") if e.get("class") == "ci")
    assert (interval.get("x1"), interval.get("x2")) == ("100%", "100%")


def classes(drawing: str) -> set[str]:
    found = (element.get("class") or "" for element in parsed(drawing).iter())
    return set(itertools.chain.from_iterable(text.split() for text in found))


def test_harm_beyond_a_margin_is_a_zone_on_the_worse_side() -> None:
    def zone(row: ForestRow) -> tuple[float, float]:
        cell = parsed(forest_cell(row, forest_scale([row])))
        found = next(e for e in cell.iter("rect") if e.get("class") == "zone")
        x, width = (float((found.get(name) or "").rstrip("%")) for name in ("x", "width"))
        return x, x + width

    slower = zone(ForestRow("latency", 0.0, -0.01, 0.01, goal="decrease", harm_from=0.05))
    fewer = zone(ForestRow("clicks", 0.0, -0.01, 0.01, goal="increase", harm_from=-0.05))
    assert slower[1] == pytest.approx(100.0)
    assert slower[0] > 50
    assert fewer[0] == 0
    assert fewer[1] < 50


def test_what_is_not_defined_has_its_reason_in_the_drawing_and_in_the_table() -> None:
    row = ForestRow("m", None, missing="too few units for an interval")
    chart = forest([row], title="Lift")
    assert "too few units for an interval" in texts(chart.svg)
    assert chart.table.rows == (("m", "–", "–", "–", "too few units for an interval"),)


def test_a_row_in_a_table_of_many_is_small() -> None:
    rows = [
        ForestRow(f"m{k}", v := 0.012 * math.sin(k), v - 0.01234, v + 0.02345, "better")
        for k in range(450)
    ]
    scale = forest_scale(rows)
    assert max(len(forest_cell(row, scale).encode()) for row in rows) < 600
    assert len(texts(forest_axis(scale))) >= 2


def test_text_from_outside_stays_text() -> None:
    charts: list[str] = [
        forest([ForestRow(ODD, 0.1, 0.0, 0.2)], title=ODD).svg,
        series([Line(ODD, 1, line().points)], title=ODD, marks=[Mark(START, ODD)]).svg,
        band(
            [BandStep(START, (0.5, 0.5), 1, "hand", ODD, f"#{ODD}")],
            [ODD, "v7"],
            title=ODD,
            end=START,
        ).svg,
        posterior([PosteriorArm(ODD, 1, 0.1, 0.01, 0.9)], title=ODD).svg,
        share_bar([Share(ODD, 0, 0.5)], label=ODD),
        sparkline([1.0, 2.0], label=ODD),
        progress([ProgressStep(ODD, "now", ODD)], label=ODD),
    ]
    for drawing in charts:
        assert not list(parsed(drawing).iter("b")) or "forest-value" in drawing
        assert "<b onload" not in drawing


def test_the_early_band_is_cut_so_that_the_late_one_is_legible() -> None:
    chart = series([line(count=200)], title="Course")
    (area,) = (e for e in parsed(chart.svg).iter("path") if (e.get("class") or "") == "area c1")
    ends = [float(y) for _, y in re.findall(r"([\d.-]+) ([\d.-]+)", area.get("d") or "")]
    last = ends[199], ends[200]
    assert abs(last[0] - last[1]) > 30, "the last interval takes a fair part of 220 pixels"
    assert "cut off" in chart.caption
    assert chart.table.rows[0][1] == "0.02 (−0.78 to 0.82)", "the numbers have all of it"


def test_a_line_has_at_most_200_points_its_first_and_last_among_them() -> None:
    chart = series([line(count=5000)], title="Course")
    assert len(chart.table.rows) == 200
    assert chart.table.rows[0][0].startswith("2026-11-20 10:30")
    assert chart.table.rows[-1][0].startswith("2027-06-16 17:30")


def test_a_gap_in_a_line_stays_a_gap() -> None:
    points = [*line(count=10).points]
    points[4] = LinePoint(points[4].at, None)
    chart = series([Line("v7", 1, tuple(points))], title="Course")
    (path,) = (e for e in parsed(chart.svg).iter("path") if (e.get("class") or "") == "line c1")
    assert (path.get("d") or "").count("M") == 2
    assert chart.table.rows[4][1] == "–"


def test_a_point_alone_is_drawn_with_its_interval() -> None:
    chart = series([Line("v7", 1, (LinePoint(START, 0.01, -0.1, 0.12),))], title="Course")
    assert {"dot", "whisker"} <= classes(chart.svg)


def test_each_of_ten_variants_has_its_colour_and_its_label() -> None:
    names = [f"v{k}" for k in range(10)]
    course = series([line(name, k) for k, name in enumerate(names)], title="Course")
    split = band([step(0, [0.1] * 10, 1)], names, title="Traffic", end=START + timedelta(hours=1))
    for chart in (course, split):
        assert {f"c{k}" for k in range(10)} <= classes(chart.svg)
        ends = [e for e in parsed(chart.svg).iter("text") if "end-label" in (e.get("class") or "")]
        heights = sorted(float(e.get("y") or "") for e in ends)
        assert len(heights) == 10
        assert all(b - a >= 13.9 for a, b in itertools.pairwise(heights))


def test_colours_and_marks_are_all_in_the_style_sheet() -> None:
    rules = (FOLDER / "css/charts.css").read_text(encoding="utf-8")
    everything = "".join(chart.svg for chart in some_charts()) + share_bar([Share("a", 0, 0.5)])
    known = set(re.findall(r"\.([a-z][\w-]*)", rules))
    unstyled = {"none", "open", "areas", "ends", "at", "start", "t"}
    assert classes(everything) - known <= unstyled
    assert {f"c{k}" for k in range(10)} <= known
    assert "#" not in re.sub(r"/\*.*?\*/", "", rules, flags=re.S), "colours are tokens"


def test_the_band_is_as_high_as_the_traffic_and_light_above_it() -> None:
    chart = band([step(0, (0.2, 0.1), 1)], ["v6", "v7"], title="Traffic", end=START)
    tops = {e.get("class"): e.get("d") for e in parsed(chart.svg).iter("path")}
    assert "V140H" in (tops["part c1"] or ""), "30 % of 200 pixels"
    assert "V160H" in (tops["part c0"] or ""), "20 %"
    assert chart.table.rows[0][4] == "70\u202f%"
    assert chart.summary.endswith("v6 20\u202f%, v7 10\u202f%, 70\u202f% not enrolled")


def test_epochs_by_hand_and_by_rules_have_marks_that_lead_to_their_decisions() -> None:
    steps = [
        step(0, (0.5, 0.5), 1, "start"),
        BandStep(START + timedelta(hours=5), (1.0, 0.0), 2, "guard", "errors", "#decision-7"),
        step(6, (1.0, 0.0), 3, "bandit"),
    ]
    chart = band(steps, ["v6", "v7"], title="Traffic", end=START + timedelta(hours=9))
    (link,) = parsed(chart.svg).iter("a")
    assert link.get("href") == "#decision-7"
    assert link.get("aria-label") == "Epoch 2, 2026-11-20 14:30 UTC, guard: errors"
    assert "sign guard" in chart.svg
    assert "sign bandit" not in chart.svg, "a bandit's are thin"
    assert "v7" in texts(chart.svg), "a band that ended is named where it was"


def test_thousands_of_epochs_stay_small() -> None:
    count = 5000
    steps = [
        step(k / 60, (0.5 + 0.4 * math.sin(k / 300), 0.5 - 0.4 * math.sin(k / 300)), k, "bandit")
        for k in range(count)
    ]
    chart = band(steps, ["v6", "v7"], title="Traffic", end=steps[-1].at)
    assert len(chart.svg) < 40_000
    assert len(chart.table.rows) <= 200
    assert "5,000 epochs" in chart.caption
    tops = [e.get("d") or "" for e in parsed(chart.svg).iter("path") if e.get("class") == "part c0"]
    assert tops[0].startswith("M0 200H0V"), "the first epoch is drawn"


def test_paused_epochs_are_seen_as_such() -> None:
    steps = [
        step(0, (0.5, 0.5), 1),
        BandStep(START + timedelta(hours=5), (0.0, 0.0), 2, "hand", state="paused"),
    ]
    chart = band(steps, ["v6", "v7"], title="Traffic", end=START + timedelta(hours=10))
    assert "paused" in texts(chart.svg)
    assert "now (paused)" in chart.summary


def test_a_split_of_more_than_all_traffic_is_refused() -> None:
    with pytest.raises(ValueError, match="epoch 1 are no split"):
        band([step(0, (0.9, 0.9), 1)], ["v6", "v7"], title="Traffic", end=START)
    with pytest.raises(ValueError, match="parts of 1"):
        share_bar([Share("v6", 0, 1.5)])


def test_narrow_and_wide_posteriors_are_as_high_as_each_other() -> None:
    arms = [PosteriorArm("sure", 0, 0.1, 1e-6, 0.9), PosteriorArm("unsure", 1, 0.1, 0.02, 0.1)]
    chart = posterior(arms, title="Rates", measure="share")
    curves = [
        e.get("d") or "" for e in parsed(chart.svg).iter("path") if e.get("class") == "density"
    ]
    tops = [min(float(y) for y in re.findall(r" ([\d.]+)", curve)) for curve in curves]
    assert tops == [6.0, 6.0]
    places = [[float(x) for x in re.findall(r"[ML]([\d.-]+) ", curve)] for curve in curves]
    widths = [max(xs) - min(xs) for xs in places]
    assert widths[0] >= 4, "the narrow one is still seen"
    assert widths[1] > 800


def test_the_traffic_bar_says_what_it_shows() -> None:
    bar = share_bar([Share("v6", 0, 0.5), Share("v7", 1, 0.3)])
    (drawing,) = parsed(bar)
    assert (
        drawing.get("aria-label") == "Traffic: v6 50\u202f%, v7 30\u202f%, 20\u202f% not enrolled"
    )


@pytest.mark.parametrize("values", [[], [None], [1.0], [2.0, 2.0, 2.0], [1e-9, 1e12, None, -5.0]])
def test_a_sparkline_can_be_of_anything(values: list[float | None]) -> None:
    assert 'viewBox="0 0 96 24"' in sparkline(values, label="clicks rose")


def test_a_step_of_a_ramp_says_how_it_stands() -> None:
    steps = progress([ProgressStep("5 %", "done"), ProgressStep("50 %", "now", "waits for units")])
    said = [" ".join("".join(item.itertext()).split()) for item in parsed(steps).iter("li")]
    assert said == ["5 % done", "50 % waits for units"]
    assert [item.get("aria-current") for item in parsed(steps).iter("li")] == [None, "step"]


def test_the_script_reads_the_numbers_that_the_charts_give() -> None:
    script = (FOLDER / "js/charts.js").read_text(encoding="utf-8")
    for name in set(re.findall(r"dataset\.(\w+)", script)):
        assert f"data-{name}=" in series([line()], title="Course").svg
    chart = series([line(), line("v8", 2)], title="Course")
    (plot,) = (e for e in parsed(chart.svg).iter("div") if e.get("data-chart"))
    heights = (plot.get("data-y") or "").split(";")
    assert len((plot.get("data-x") or "").split()) == len(chart.table.rows)
    assert [len(one.split(":")[1].split()) for one in heights] == [len(chart.table.rows)] * 2
