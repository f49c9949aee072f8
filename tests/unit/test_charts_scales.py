"""Scales, ticks and labels of charts."""

import itertools
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dashboard.charts.model import Measure
from dashboard.charts.scales import nice_step, robust_range, scale_of, time_scale
from dashboard.charts.svg import spread
from dashboard.charts.text import (
    interval_words,
    short_share,
    shorten,
    text_width,
    value_words,
)

NUMBERS = st.floats(-1e100, 1e100, allow_subnormal=False)
MEASURES: tuple[Measure, ...] = ("number", "percent", "points", "count", "share")
START = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)


@settings(max_examples=60)
@example(1e-9, 2e-9)
@example(-1e12, 1e12)
@example(5.0, 5.0)
@example(0.0, 0.0)
@given(NUMBERS, NUMBERS)
def test_the_ticks_of_a_rounded_scale_hold_its_range(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    for measure in MEASURES:
        scale = scale_of(low, high, measure)
        assert scale.low <= low <= high <= scale.high
        assert scale.low < scale.high
        places = [tick.place for tick in scale.ticks]
        assert 2 <= len(places) <= 9
        assert places == sorted(places)
        assert places[0] == pytest.approx(0.0, abs=1e-6)
        assert places[-1] == pytest.approx(100.0, abs=1e-6)
        assert all("nan" not in tick.label and "inf" not in tick.label for tick in scale.ticks)


@settings(max_examples=60)
@given(st.floats(1e-6, 1e6), st.floats(0, 1))
def test_ticks_of_a_scale_have_different_labels(width: float, share: float) -> None:
    low = -share * width
    labels = [tick.label for tick in scale_of(low, low + width, "percent").ticks]
    assert len(labels) == len(set(labels))


def test_steps_are_one_two_or_five_times_a_power_of_ten() -> None:
    assert [nice_step(span, 5) for span in (1.0, 7.0, 22.0, 0.0003)] == pytest.approx(
        [0.2, 2.0, 5.0, 0.0001]
    )


def test_ticks_are_written_with_the_decimals_that_their_step_needs() -> None:
    assert [t.label for t in scale_of(-0.02, 0.02, "percent", 4).ticks] == [
        "−2\u202f%",
        "−1\u202f%",
        "0\u202f%",
        "+1\u202f%",
        "+2\u202f%",
    ]
    assert [t.label for t in scale_of(0, 1.5, "number", 3).ticks] == ["0", "0.5", "1.0", "1.5"]
    assert [t.label for t in scale_of(0, 2e12, "number", 2).ticks] == ["0", "1·10¹²", "2·10¹²"]


def test_a_value_out_of_range_stands_at_the_end() -> None:
    scale = scale_of(0.0, 10.0)
    assert (scale.place(-1e300), scale.place(5.0), scale.place(1e300)) == (0.0, 50.0, 100.0)
    assert not scale.holds(11.0)


def test_a_few_huge_intervals_do_not_squeeze_the_others() -> None:
    usual = [(-0.01, 0.03)] * 8
    low, high = robust_range([0.0, 0.01], [*usual, (-50.0, 80.0), (-math.inf, math.inf)])
    assert -0.13 < low <= -0.01
    assert 0.03 <= high < 0.13
    assert robust_range([0.0], [(-50.0, 80.0)]) == (-50.0, 80.0), "a single one is shown whole"


@settings(max_examples=80)
@given(st.floats(0, 9.5), st.integers(0, 400), st.integers(3, 9))
def test_times_are_named_few_in_order_and_apart(power: float, days: int, most: int) -> None:
    start = START + timedelta(days=days)
    scale = time_scale(start, start + timedelta(seconds=10**power), most)
    places = [tick.place for tick in scale.ticks]
    assert len(places) <= most + 1
    assert places == sorted(set(places))
    labels = [tick.label for tick in scale.ticks]
    assert all(one != other for one, other in itertools.pairwise(labels))


def test_ticks_of_time_are_whole_hours_days_months_or_years() -> None:
    def labels(**length: float) -> list[str]:
        return [tick.label for tick in time_scale(START, START + timedelta(**length), 6).ticks]

    assert labels(minutes=30) == ["09:30", "09:35", "09:40", "09:45", "09:50", "09:55", "10:00"]
    assert labels(hours=20) == ["12:00", "18:00", "21 Nov"]
    assert labels(days=5) == ["21 Nov", "22 Nov", "23 Nov", "24 Nov", "25 Nov"]
    assert labels(days=150) == ["Dec", "2027", "Feb", "Mar", "Apr"]
    assert labels(days=3 * 365) == ["2027", "Jul", "2028", "Jul", "2029", "Jul"]


def test_an_axis_of_no_length_has_room_around_its_time() -> None:
    scale = time_scale(START, START)
    assert scale.place(START) == 50.0


@settings(max_examples=60)
@given(st.lists(st.floats(0, 200), max_size=16))
def test_labels_do_not_overlap_and_keep_their_order(wanted: list[float]) -> None:
    placed = spread(wanted, 14.0, 6.0, 194.0)
    assert len(placed) == len(wanted)
    assert all(6.0 - 1e-6 <= y <= 194.0 + 1e-6 for y in placed)
    gap = min(14.0, 188.0 / max(1, len(wanted) - 1))
    in_order = sorted(placed)
    assert all(b - a >= gap - 1e-6 for a, b in itertools.pairwise(in_order))
    ranked = [placed[i] for i in sorted(range(len(wanted)), key=lambda i: wanted[i])]
    assert ranked == pytest.approx(in_order, abs=1e-6)


def test_labels_that_are_far_apart_stay_where_they_are() -> None:
    assert spread([100.0, 20.0], 14.0, 0.0, 200.0) == [100.0, 20.0]


@given(st.text(max_size=60), st.floats(20, 200))
@settings(max_examples=60)
def test_a_shortened_text_fits_and_says_that_it_is_cut(text: str, most: float) -> None:
    cut = shorten(text, most, 12)
    assert cut == text or (cut.endswith("…") and text_width(cut, 12) <= max(most, 12))


def test_wide_scripts_count_as_wide() -> None:
    assert text_width("比較", 12) == 24.0
    assert text_width("e\u0301", 12) == text_width("e", 12)


@pytest.mark.parametrize(
    ("value", "measure", "words"),
    [
        (0.015, "percent", "+1.5\u202f%"),
        (-0.003, "points", "−0.3\xa0pp"),
        (0.5, "share", "50\u202f%"),
        (12345, "count", "12,345"),
        (-2.5e-9, "number", "−2.50·10⁻⁹"),
        (None, "percent", "–"),
    ],
)
def test_values_have_their_unit_and_changes_their_sign(
    value: float | None, measure: Measure, words: str
) -> None:
    assert value_words(value, measure) == words


def test_intervals_say_which_end_they_lack() -> None:
    assert interval_words(-0.003, 0.032, "points") == "between −0.3 and +3.2\xa0pp"
    assert interval_words(None, 0.05, "percent") == "below +5\u202f%"
    assert interval_words(0.0, None, "percent") == "above 0\u202f%"
    assert interval_words(None, None, "number") == "without bounds"


def test_short_shares_are_never_said_to_be_nothing() -> None:
    assert [short_share(s) for s in (0.0, 0.0004, 0.042, 0.5, 1.0)] == [
        "0\u202f%",
        "< 0.1\u202f%",
        "4.2\u202f%",
        "50\u202f%",
        "100\u202f%",
    ]
