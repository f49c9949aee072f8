"""The edges of data: whatever comes, each reading has an answer, in words and in JSON."""

import math
import re
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.inference.estimate import Comparison
from analysis.inference.moments import Moments, of_rows
from analysis.library import (
    AnalysisPlan,
    Cell,
    Epoch,
    Mean,
    Proportion,
    Quantile,
    Ratio,
    analyse,
    analyse_cells,
    moments,
)
from analysis.library.measures import Measurable
from analysis.reports.markdown import render
from analysis.reports.report import Report
from experiments.model import Reading
from tests.unit.samples import proportion

READINGS: tuple[Reading, ...] = ("fixed", "planned", "continuous", "bayesian")

Make = Callable[[AnalysisPlan], Report]


def of_cells(
    metric: Measurable,
    *epochs: Mapping[str, Moments],
    variants: tuple[str, ...] = ("a", "b"),
    propensities: Mapping[str, float] | None = None,
) -> Make:
    """The report of the moments of each epoch, by variant."""
    key = metric.measure().metric.key

    def make(plan: AnalysisPlan) -> Report:
        cells = [
            Cell(key, variant, cell, epoch=number, block=number)
            for number, epoch in enumerate(epochs, start=1)
            for variant, cell in epoch.items()
        ]
        known = {
            number: Epoch(propensities=propensities or dict.fromkeys(variants, 1 / len(variants)))
            for number in range(1, len(epochs) + 1)
        }
        return analyse_cells(
            cells, [metric], control="a", variants=variants, epochs=known, plan=plan
        )

    return make


def around(level: float, spread: float, shift: float, n: int = 500) -> dict[str, Moments]:
    """Two arms of values around a level."""
    steps = np.resize([-1.0, 0.0, 1.0, 2.0, -2.0], n) * spread
    return {
        arm: of_rows((level + move + steps).reshape(-1, 1))
        for arm, move in (("a", 0.0), ("b", shift))
    }


BOUGHT, SPENT = Proportion("bought"), Mean("spent")
RATIO, MEDIAN = Ratio("clicks", "views"), Quantile("latency", 0.5)

EDGES: dict[str, Make] = {
    "no units": of_cells(BOUGHT),
    "no units of a mean": of_cells(SPENT),
    "no units of a ratio": of_cells(RATIO),
    "no units of a quantile": of_cells(MEDIAN),
    "one unit": of_cells(BOUGHT, {"a": proportion(1, 1)}),
    "one unit each": of_cells(BOUGHT, {"a": proportion(1, 0), "b": proportion(1, 1)}),
    "one unit each of a mean": of_cells(SPENT, {"a": moments(1, 2.0), "b": moments(1, 5.0)}),
    "two units": of_cells(SPENT, {"a": moments(1, 2.0), "b": moments(2, 5.0, 1.0)}),
    "no spread": of_cells(SPENT, {"a": moments(300, 3.0), "b": moments(300, 3.0)}),
    "no spread, but a difference": of_cells(
        SPENT, {"a": moments(300, 3.0), "b": moments(300, 4.0)}
    ),
    "no conversions": of_cells(BOUGHT, {"a": proportion(300, 0), "b": proportion(300, 0)}),
    "only conversions": of_cells(BOUGHT, {"a": proportion(300, 300), "b": proportion(300, 300)}),
    "none here, all there": of_cells(BOUGHT, {"a": proportion(300, 0), "b": proportion(300, 300)}),
    "none of very many": of_cells(BOUGHT, {"a": proportion(10**6, 0), "b": proportion(10**6, 0)}),
    "a billion units": of_cells(
        BOUGHT, {"a": proportion(10**9, 10**8), "b": proportion(10**9, 10**8 + 30_000)}
    ),
    "a billion units of a mean": of_cells(
        SPENT, {"a": moments(10**9, 5.0, 9.0), "b": moments(10**9, 5.001, 9.0)}
    ),
    "values around 1e12": of_cells(SPENT, around(1e12, 1e-3, 1e-3)),
    "tiny values": of_cells(SPENT, around(1e-25, 1e-27, 1e-27)),
    "huge values": of_cells(SPENT, around(1e29, 1e28, 1e27)),
    "a negative control mean": of_cells(SPENT, around(-10.0, 1.0, 2.0)),
    "a control mean of 0": of_cells(SPENT, around(0.0, 1.0, 0.5)),
    "p below floats": of_cells(
        BOUGHT, {"a": proportion(10**8, 10**7), "b": proportion(10**8, 2 * 10**7)}
    ),
    "one variant without data": of_cells(
        BOUGHT,
        {"a": proportion(500, 50), "b": proportion(500, 70)},
        variants=("a", "b", "c"),
        propensities={"a": 0.5, "b": 0.5, "c": 0.0},
    ),
    "an epoch of one unit": of_cells(
        BOUGHT, {"a": proportion(500, 50), "b": proportion(500, 70)}, {"b": proportion(1, 1)}
    ),
    "units in spite of a weight of 0": of_cells(
        BOUGHT,
        {"a": proportion(500, 50), "b": proportion(3, 1)},
        propensities={"a": 1.0, "b": 0.0},
    ),
    "a ratio over nothing": of_cells(
        RATIO,
        {
            "a": moments(300, [1.0, 0.0], [[1.0, 0.0], [0.0, 0.0]]),
            "b": moments(300, [1.0, 2.0], [[1.0, 0.5], [0.5, 1.0]]),
        },
    ),
    "a constant covariate": of_cells(
        Mean("spent", covariate="before"),
        {
            arm: moments(300, [mean, 2.0], [[1.0, 0.0], [0.0, 0.0]])
            for arm, mean in (("a", 1.0), ("b", 1.1))
        },
    ),
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("edge", EDGES)
def test_every_edge_has_an_answer_in_every_reading(edge: str, reading: Reading) -> None:
    report = EDGES[edge](AnalysisPlan(reading=reading))
    assert_is_sound(report)


def assert_is_sound(report: Report) -> None:
    """What is written is what is known: no number is lost in JSON, none is a word in the text."""
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    text = render(report)
    assert not re.search(r"\b(nan|inf|None)\b", text), text
    assert report.conclusion
    for metric in report.metrics:
        for c in metric.comparisons:
            ends = (c.fixed.ci_low, c.fixed.difference, c.fixed.ci_high)
            known = [end for end in ends if end is not None]
            assert known == sorted(known)
            assert c.fixed.p_value is None or 0.0 < c.fixed.p_value <= 1.0


def fixed(edge: str) -> Comparison:
    return EDGES[edge](AnalysisPlan(reading="fixed")).metrics[0].comparisons[0].fixed


@pytest.mark.parametrize(
    ("edge", "note"),
    [
        ("no units", "no_common_epoch"),
        ("one unit", "no_common_epoch"),
        ("one unit each", "small_counts"),
        ("one unit each of a mean", "too_few_units"),
        ("two units", "too_few_units"),
        ("no spread", "zero_variance"),
        ("no spread, but a difference", "zero_variance"),
        ("no conversions", "zero_control_mean"),
        ("only conversions", "small_counts"),
        ("a control mean of 0", "zero_control_mean"),
        ("a ratio over nothing", "zero_denominator"),
        ("a constant covariate", "constant_covariate"),
        ("no units of a quantile", "too_few_units"),
    ],
)
def test_what_is_missing_is_said_by_a_code(edge: str, note: str) -> None:
    assert note in fixed(edge).notes


def test_without_spread_there_is_a_difference_but_no_interval() -> None:
    found = fixed("no spread, but a difference")
    assert found.difference == 1.0
    assert found.lift == pytest.approx(1 / 3)
    assert found.ci_low is None
    assert found.p_value is None


def test_all_or_none_who_convert_leave_an_interval_that_holds_0() -> None:
    for edge in ("no conversions", "only conversions", "none of very many"):
        found = fixed(edge)
        assert found.difference == 0.0
        assert found.p_value == 1.0
        assert found.ci_low is not None
        assert found.ci_high is not None
        assert found.ci_low < 0.0 < found.ci_high


def test_none_here_and_all_there_is_beyond_doubt() -> None:
    found = fixed("none here, all there")
    assert found.difference == 1.0
    assert found.p_value is not None
    assert found.p_value < 1e-100
    assert found.ci_low is not None
    assert found.ci_low > 0.9


def test_a_billion_units_tell_a_hundredth_of_a_percent() -> None:
    found = fixed("a billion units")
    assert found.difference == pytest.approx(3e-5, rel=1e-9)
    assert found.std_error == pytest.approx(math.sqrt(2 * 0.1 * 0.9 / 1e9), rel=1e-3)


def test_a_tiny_spread_around_1e12_survives() -> None:
    found, small = fixed("values around 1e12"), around(0.0, 1e-3, 1e-3)
    # A float near 1e12 has steps of 1.2e-4, which the values themselves were rounded to.
    assert found.difference == pytest.approx(1e-3, rel=0.1)
    assert found.std_error == pytest.approx(
        math.sqrt(sum((cell.variance or 0.0) / cell.n for cell in small.values())), rel=0.1
    )


def test_a_lift_is_relative_to_the_size_of_a_negative_control_mean() -> None:
    found = fixed("a negative control mean")
    assert found.difference == pytest.approx(2.0)
    assert found.lift == pytest.approx(0.2)
    assert found.lift_ci_low is not None
    assert found.lift_ci_low > 0.0


def test_p_goes_on_where_floats_end() -> None:
    found = fixed("p below floats")
    assert found.p_value is not None
    assert 0.0 < found.p_value < 1e-300
    assert found.log10_p_value is not None
    assert found.log10_p_value < -100_000


def test_a_variant_without_weight_or_units_does_no_harm_to_the_others() -> None:
    report = EDGES["one variant without data"](AnalysisPlan(reading="fixed"))
    first, second = report.metrics[0].comparisons
    assert first.fixed.difference == pytest.approx(0.04)
    assert second.fixed.notes == ("no_common_epoch",)
    assert not report.sample_ratio.mismatch


def test_units_where_there_was_no_weight_are_an_alarm() -> None:
    report = EDGES["units in spite of a weight of 0"](AnalysisPlan(reading="fixed"))
    assert report.sample_ratio.impossible == ("b",)
    assert report.verdict.action == "fix_data"


def test_an_epoch_of_one_unit_is_left_out_and_counted() -> None:
    found = fixed("an epoch of one unit")
    assert (found.epochs_used, found.epochs_left_out, found.units_left_out) == (1, 1, 1)
    assert found.difference == pytest.approx(0.04)


arms = st.integers(0, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
histories = st.lists(
    st.tuples(st.sampled_from([0.0, 0.01, 0.3, 0.5, 1.0]), arms, arms), min_size=0, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(histories, st.sampled_from(READINGS))
def test_any_history_has_an_answer(
    history: list[tuple[float, tuple[int, int], tuple[int, int]]], reading: Reading
) -> None:
    """Whatever the allocation was: epochs without an arm, arms without a weight, single units."""
    cells, epochs = [], {}
    for number, (share, control, treatment) in enumerate(history, start=1):
        epochs[number] = Epoch(propensities={"a": 1.0 - share, "b": share})
        for variant, (n, converted) in (("a", control), ("b", treatment)):
            cells.append(
                Cell("bought", variant, proportion(n, converted), epoch=number, block=number)
            )
    report = analyse_cells(
        cells,
        [BOUGHT],
        control="a",
        variants=["b"],
        epochs=epochs,
        plan=AnalysisPlan(reading=reading),
    )
    assert_is_sound(report)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(-1e30, 1e30), st.sampled_from([0.2, 0.5])),
        min_size=2,
        max_size=30,
    ).filter(lambda rows: len({row[0] for row in rows}) == 2),
    st.sampled_from(READINGS),
)
def test_any_rows_have_an_answer(rows: list[tuple[bool, float, float]], reading: Reading) -> None:
    new, values, shares = (list(column) for column in zip(*rows, strict=True))
    table = {
        "arm": ["new" if found else "old" for found in new],
        "x": values,
        "y": [abs(x) for x in values],
        "p": [share if found else 1 - share for found, share in zip(new, shares, strict=True)],
        "at": list(range(len(values))),
    }
    report = analyse(
        table,
        [Mean("x", covariate="y"), Ratio("x", "y"), Quantile("x", 0.5)],
        variant="arm",
        control="old",
        propensity="p",
        time="at",
        plan=AnalysisPlan(reading=reading),
    )
    assert_is_sound(report)
