"""Reports without a service: from columns, and from moments."""

import csv
import doctest
import gzip
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

import analysis.library
from analysis.inference.estimate import Comparison
from analysis.inference.moments import of_rows
from analysis.inference.multiplicity import holm
from analysis.inference.segments import MOST_ATTRIBUTES, Segment
from analysis.library import (
    AnalysisPlan,
    Cell,
    DataError,
    Epoch,
    Layout,
    Mean,
    Proportion,
    Quantile,
    QuantileCap,
    Ratio,
    analyse,
    analyse_cells,
    moments,
    report_from_cells,
    report_from_columns,
)
from analysis.reports.markdown import render
from analysis.reports.report import Report
from experiments.definition import parse_definition
from tests.unit.samples import at_most, proportion

FIXED = AnalysisPlan(reading="fixed")

Table = dict[str, Any]


def real(file: str) -> Table:
    """Columns of one of the demo's files, as they are written."""
    with (
        resources.files("turnout.demo").joinpath(file).open("rb") as packed,
        gzip.open(packed, "rt", encoding="utf-8", newline="") as text,
    ):
        rows = list(csv.DictReader(text))
    return {name: [row[name] for row in rows] for name in rows[0]}


def shop(n: int = 4_000, seed: int = 5) -> Table:
    """Units of a shop: arrays that hang together."""
    rng = np.random.default_rng(seed)
    arm = rng.integers(0, 2, n)
    before = rng.lognormal(0.0, 1.0, n)
    views = rng.poisson(8, n) + 1
    return {
        "user": np.arange(n),
        "arm": np.where(arm == 1, "new", "old"),
        "bought": (rng.random(n) < 0.2 + 0.05 * arm).astype(int),
        "spent": before * rng.lognormal(0.0, 0.3, n) + 0.2 * arm,
        "spent_before": before,
        "clicks": rng.binomial(views, 0.3),
        "views": views,
        "latency": rng.lognormal(3.0, 0.5, n),
        "country": np.array(["DE", "AT", "CH"])[rng.integers(0, 3, n)],
        "at": np.datetime64("2026-01-01T00:00:00") + np.arange(n) * np.timedelta64(1, "m"),
    }


ALL = [
    Proportion("bought"),
    Mean("spent", covariate="spent_before"),
    Ratio("clicks", "views", role="secondary"),
    Quantile("latency", 0.9, role="secondary", goal="decrease"),
]


def read(report: Report, metric: int = 0, treatment: int = 0) -> Comparison:
    """The textbook reading of a comparison."""
    return report.metrics[metric].comparisons[treatment].fixed


def test_answers_to_black_politicians_are_fewer_beyond_doubt() -> None:
    table = real("black_politicians.csv.gz")
    report = analyse(
        table,
        [Proportion("responded")],
        variant="treat_out",
        control="0",
        weights={"0": 0.5, "1": 0.5},
        plan=FIXED,
    )
    fixed = read(report)
    assert report.units == {"0": 2_814, "1": 2_779}
    assert fixed.difference == pytest.approx(-0.266, abs=5e-4)
    assert (fixed.ci_low, fixed.ci_high) == pytest.approx((-0.291, -0.241), abs=5e-4)
    assert fixed.p_value is not None
    assert fixed.p_value < 1e-90
    assert report.verdict.action == "keep_control"
    assert not report.sample_ratio.mismatch
    assert report.sample_ratio.p_value == pytest.approx(
        stats.chisquare([2_814, 2_779]).pvalue, rel=1e-9
    )


def test_the_bandits_clicks_are_no_winner_over_three_campaigns() -> None:
    table = real("open_bandit.csv.gz")
    campaign = np.array(table["campaign"])
    found = {}
    for name in ("men", "all", "women"):
        own = {key: np.array(values)[campaign == name] for key, values in table.items()}
        report = analyse(own, [Proportion("click")], variant="policy", control="random", plan=FIXED)
        found[name] = read(report)
    men = found["men"]
    assert men.difference == pytest.approx(0.0023, abs=5e-6)
    assert (men.ci_low, men.ci_high) == pytest.approx((0.0002, 0.0044), abs=5e-5)
    assert men.p_value == pytest.approx(0.0315, abs=5e-5)
    assert found["all"].p_value == pytest.approx(0.654, abs=5e-4)
    assert found["women"].p_value == 1.0
    assert max(c.difference or 0 for c in found.values()) == men.difference
    adjusted = holm([c.p_value for c in found.values()])
    assert adjusted[0] == pytest.approx(0.0944, abs=5e-5)


def test_any_table_of_columns_gives_the_same_report() -> None:
    table = shop(600)
    as_text = {name: [str(value) for value in values] for name, values in table.items()}
    tables: list[Any] = [
        table,
        {name: values.tolist() for name, values in table.items()},
        as_text,
        pd.DataFrame(table),
        pa.table(table),
    ]
    reports = [
        msgspec.json.encode(
            analyse(each, ALL, variant="arm", control="old", time="at", segments=["country"])
        )
        for each in tables
    ]
    assert all(report == reports[0] for report in reports)


def test_moments_give_the_report_that_their_rows_give() -> None:
    table = shop()
    rows = analyse(table, ALL[:3], variant="arm", control="old")
    columns = {"bought": ["bought"], "spent": ["spent", "spent_before"]}
    columns |= {"clicks_per_views": ["clicks", "views"]}
    cells = [
        Cell(key, arm, of_rows(np.column_stack([table[c][table["arm"] == arm] for c in own])))
        for key, own in columns.items()
        for arm in ("old", "new")
    ]
    given = analyse_cells(cells, ALL[:3], control="old")
    for place in range(3):
        ours, theirs = (msgspec.structs.asdict(read(report, place)) for report in (given, rows))
        for name, value in ours.items():
            close = isinstance(value, float)
            assert value == (pytest.approx(theirs[name], rel=1e-6) if close else theirs[name])
    assert given.units == rows.units


def test_moments_are_made_of_means_and_covariances() -> None:
    rows = np.random.default_rng(1).normal(3.0, 2.0, (50, 2))
    made = moments(50, rows.mean(axis=0).tolist(), np.cov(rows.T).tolist())
    straight = of_rows(rows)
    assert made.mean == pytest.approx(straight.mean)
    assert made.m2 == pytest.approx(straight.m2)
    assert moments(3, 1.0, 2.0) == msgspec.structs.replace(straight, n=3, mean=(1.0,), m2=(4.0,))
    assert moments(0, 1.0).n == 0


@pytest.mark.parametrize(
    ("n", "mean", "covariance"),
    [
        (5, [1.0, 2.0], 1.0),
        (5, 1.0, -1.0),
        (5, float("nan"), 1.0),
        (5, [1.0, 2.0], [[1.0, 0.5], [0.4, 1.0]]),
        (-1, 1.0, 1.0),
    ],
)
def test_moments_that_cannot_be_are_refused(n: int, mean: Any, covariance: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        moments(n, mean, covariance)


def test_cells_that_do_not_fit_are_refused() -> None:
    def refused(cell: Cell, text: str) -> None:
        with pytest.raises(ValueError, match=text):
            report_from_cells(definition, [cell])

    definition = parse_definition(RANKER)
    refused(Cell("clicks", "v6", proportion(5, 1)), "no metric 'clicks'; there are click")
    refused(Cell("click", "v8", proportion(5, 1)), "no variant 'v8'; there are v6, v7")
    refused(Cell("spent", "v6", proportion(5, 1)), "a unit has 2 numbers, not 1")


def test_without_weights_nothing_is_said_of_the_sample_ratio() -> None:
    def checked(report: Report) -> str:
        return next(c.explanation for c in report.quality if c.code == "sample_ratio")

    report = analyse(shop(), ALL[:1], variant="arm", control="old")
    assert report.sample_ratio.p_value is None
    assert report.sample_ratio.expected == {}
    assert "was not checked" in checked(report)
    stated = analyse(shop(), ALL[:1], variant="arm", control="old", weights={"old": 9, "new": 1.0})
    assert stated.sample_ratio.mismatch
    assert stated.verdict.action == "fix_data"
    assert "was not checked" not in checked(stated)


def test_a_variant_without_a_row_is_one_of_the_experiment_where_it_has_a_weight() -> None:
    weights = {"old": 1, "new": 1, "newest": 0}
    report = analyse(shop(), ALL[:1], variant="arm", control="old", weights=weights)
    assert report.units["newest"] == 0
    assert read(report, treatment=1).notes == ("no_common_epoch",)
    assert not report.sample_ratio.mismatch


def test_a_breakdown_has_a_segment_for_each_value() -> None:
    table = shop()
    report = analyse(table, ALL[:1], variant="arm", control="old", segments=["country"])
    [breakdown] = report.breakdowns
    assert breakdown.attribute == "country"
    assert {s.segment for s in breakdown.segments} == {
        Segment("country", name) for name in ("AT", "CH", "DE")
    }
    austria = next(s for s in breakdown.segments if s.segment.value == "AT")
    own = {name: values[table["country"] == "AT"] for name, values in table.items()}
    alone = analyse(own, ALL[:1], variant="arm", control="old")
    assert austria.fixed.difference == pytest.approx(read(alone).difference, rel=1e-12)


def test_a_cap_at_a_quantile_is_taken_over_all_variants_together() -> None:
    table = shop()
    cap = float(np.quantile(table["spent"], 0.9))
    by_quantile, by_number = (
        read(analyse(table, [Mean("spent", cap=c)], variant="arm", control="old"))
        for c in (QuantileCap(quantile=0.9), cap)
    )
    assert by_quantile == by_number
    capped = np.minimum(table["spent"], cap)
    arm = table["arm"] == "new"
    assert by_number.difference == pytest.approx(capped[arm].mean() - capped[~arm].mean())


def test_units_without_a_value_are_left_out_only_where_that_is_said() -> None:
    table = shop(2_000)
    table["spent"] = table["spent"].copy()
    table["spent"][[7, 70]] = np.nan
    with pytest.raises(DataError, match="column 'spent', row 8: there is no value, as in 2 rows"):
        analyse(table, [Mean("spent")], variant="arm", control="old")
    report = analyse(
        table, [Mean("spent")], variant="arm", control="old", missing="leave_out", plan=FIXED
    )
    assert sum(arm.units for arm in report.metrics[0].arms.values()) == 1_998
    assert sum(report.units.values()) == 2_000
    assert any("spent leaves out 2 of 2,000 units" in note for note in report.notes)
    assert report.verdict.action != "keep_running"


def test_a_unit_without_a_value_is_in_order_for_a_quantile() -> None:
    table = shop(2_000)
    table["latency"] = np.where(table["user"] % 2 == 0, table["latency"], np.nan)
    report = analyse(table, [Quantile("latency", 0.5)], variant="arm", control="old")
    fixed = read(report)
    assert fixed.n_control + fixed.n_treatment == 1_000
    there = (table["arm"] == "old") & (table["user"] % 2 == 0)
    assert fixed.mean_control == pytest.approx(np.median(table["latency"][there]), rel=0.02)


def test_words_for_nothing_are_names_where_names_are_asked_for() -> None:
    """Namibia is no missing value, nor is a control that is called none."""
    table = shop(400)
    table["arm"] = np.where(table["arm"] == "old", "none", "new")
    table["country"] = np.where(table["country"] == "DE", "NA", table["country"])
    report = analyse(table, ALL[:1], variant="arm", control="none", segments=["country"])
    [breakdown] = report.breakdowns
    assert {row.segment.value for row in breakdown.segments} == {"AT", "CH", "NA"}
    assert set(breakdown.missing.values()) == {0}
    frame = pd.DataFrame(table)
    frame["country"] = frame["country"].astype("string").mask(frame["user"] < 3)
    [breakdown] = analyse(
        frame, ALL[:1], variant="arm", control="none", segments=["country"]
    ).breakdowns
    assert {row.segment.value for row in breakdown.segments} == {"AT", "CH", "NA"}
    assert sum(breakdown.missing.values()) == 3


@pytest.mark.parametrize("cap", [math.nan, math.inf, 0.0, QuantileCap(quantile=1.0)])
def test_a_cap_that_caps_nothing_is_refused(cap: float | QuantileCap) -> None:
    with pytest.raises(ValueError, match="a cap "):
        analyse(shop(400), [Mean("spent", cap=cap)], variant="arm", control="old")


def test_attributes_that_are_too_many_are_named() -> None:
    table = shop(400)
    names = [f"by{place}" for place in range(MOST_ATTRIBUTES + 2)]
    table |= dict.fromkeys(names, table["country"])
    report = analyse(table, ALL[:1], variant="arm", control="old", segments=names)
    assert {b.attribute for b in report.breakdowns} == set(names[:MOST_ATTRIBUTES])
    [note] = [note for note in report.notes if "Breakdowns are by the first" in note]
    assert note.endswith(f"not by {', '.join(names[MOST_ATTRIBUTES:])}.")


@pytest.mark.parametrize(
    ("margin", "errors", "shown"),
    [
        ({"absolute": 0.2}, 240, False),
        ({"relative": 0.5}, 240, True),
        ({"relative": 0.9}, 75, False),
    ],
)
def test_a_guardrail_from_elsewhere_may_do_harm_within_its_margin(
    margin: dict[str, float], errors: int, shown: bool
) -> None:
    """Errors rise from 2 % to 12 or 3.75 %, of 2,000 units."""
    metric = {"key": "errors", "role": "guardrail", "kind": "proportion", "event": "error"}
    definition = parse_definition(
        {
            "key": "x",
            "variants": [
                {"key": "old", "value": 0, "weight": 0.5, "control": True},
                {"key": "new", "value": 1, "weight": 0.5},
            ],
            "metrics": [metric | {"window": "1d", "goal": "decrease", "margin": margin}],
        }
    )
    cells = [
        Cell("errors", "old", proportion(2_000, 40)),
        Cell("errors", "new", proportion(2_000, errors)),
    ]
    harm = report_from_cells(definition, cells).metrics[0].comparisons[0].harm
    assert harm is not None
    assert harm.shown is shown
    assert harm.least < 0.1


def test_frames_may_hold_what_frames_hold() -> None:
    """Nullable numbers, categories, times with a zone and booleans."""
    plain = shop(400)
    frame = pd.DataFrame(plain)
    frame["arm"] = frame["arm"].astype("category")
    frame["bought"] = frame["bought"].astype(bool)
    frame["spent"] = frame["spent"].astype("Float64")
    frame["at"] = frame["at"].dt.tz_localize("UTC").dt.tz_convert("Europe/Vienna")
    metrics = [Proportion("bought"), Mean("spent")]
    options: dict[str, Any] = {"variant": "arm", "control": "old", "time": "at"}
    assert analyse(frame, metrics, **options) == analyse(plain, metrics, **options)
    frame["spent"] = frame["spent"].mask(frame["user"] == 3)
    with pytest.raises(DataError, match="column 'spent', row 4: there is no value"):
        analyse(frame, metrics, **options)


def small() -> Table:
    return {
        "unit": ["a", "b", "c", "d"],
        "arm": ["x", "x", "y", "y"],
        "bought": [0, 1, 0, 1],
        "spent": [0.0, 2.5, 1.0, 0.0],
        "at": ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"],
        "p": [0.5, 0.5, 0.5, 0.5],
    }


def wrong_value(name: str, row: int, value: object) -> Table:
    table = small()
    table[name][row - 1] = value
    return table


BUY = [Proportion("bought")]


@pytest.mark.parametrize(
    ("table", "options", "text"),
    [
        (small(), {"variant": "group"}, "no column 'group'; there are unit, arm, bought"),
        (small(), {"control": "z"}, "the control 'z' is not in column 'arm': x, y"),
        (small(), {"metrics": [Mean("money")]}, "no column 'money'"),
        (wrong_value("bought", 3, 2), {}, "column 'bought', row 3: 2 is neither 0 nor 1"),
        (wrong_value("bought", 2, "oui"), {}, "column 'bought', row 2: 'oui' is no number"),
        (wrong_value("bought", 2, ""), {}, "column 'bought', row 2: there is no value, as in 1"),
        (wrong_value("bought", 2, None), {}, "column 'bought', row 2: there is no value"),
        (wrong_value("arm", 4, " "), {}, "column 'arm', row 4: there is no variant"),
        (
            wrong_value("unit", 4, "b"),
            {"unit": "unit"},
            "column 'unit', row 4: the unit 'b' was in row 2 already",
        ),
        (wrong_value("unit", 4, None), {"unit": "unit"}, "column 'unit', row 4: there is no unit"),
        (
            wrong_value("spent", 1, 1e31),
            {"metrics": [Mean("spent")]},
            "column 'spent', row 1: 1e[+]31 is beyond",
        ),
        (
            wrong_value("spent", 1, float("inf")),
            {"metrics": [Mean("spent")]},
            "column 'spent', row 1: inf is beyond",
        ),
        (wrong_value("at", 2, "soon"), {"time": "at"}, "column 'at', row 2: 'soon' is no time"),
        (
            pd.DataFrame(small() | {"at": pd.to_datetime(["2026-01-01", None] * 2, utc=True)}),
            {"time": "at"},
            "column 'at', row 2: there is no time",
        ),
        (
            small() | {"at": np.array(["2026-01-01", "NaT"] * 2, "datetime64[s]")},
            {"time": "at"},
            "column 'at', row 2: there is no time",
        ),
        (wrong_value("p", 2, 1.5), {"propensity": "p"}, "column 'p', row 2: 1.5 is no probab"),
        (small(), {"weights": {"x": 1}}, "column 'arm', row 3: 'y' is no variant with a weight"),
        (small(), {"weights": {"x": -1, "y": 1}}, "weights are numbers of at least 0"),
        (small(), {"propensity": "p", "weights": {"x": 1, "y": 1}}, "give one of them"),
        (small() | {"arm": ["x"] * 4}, {}, "has the control only"),
        (small() | {"bought": [1, 0]}, {}, "column 'bought' has 2 rows; others have 4"),
        ({"arm": [], "bought": []}, {}, "there are no rows"),
        ([1, 2, 3], {}, "a table has columns by name"),
    ],
)
def test_what_is_wrong_is_named_by_column_and_row(
    table: Any, options: Mapping[str, Any], text: str
) -> None:
    given: dict[str, Any] = {"metrics": BUY, "variant": "arm", "control": "x", **options}
    with pytest.raises(DataError, match=text):
        analyse(table, **given)


def reallocated(seed: int = 2, epochs: int = 60, each: int = 50) -> Table:
    """Units under an allocation that moves often, while the base rate moves with it."""
    rng = np.random.default_rng(seed)
    rows = epochs * each
    share = np.repeat(np.clip(0.5 + 0.4 * np.sin(np.arange(epochs)), 0.1, 0.9).round(3), each)
    base = np.repeat(np.linspace(0.1, 0.5, epochs), each)
    new = rng.random(rows) < share
    return {
        "arm": np.where(new, "new", "old"),
        "bought": (rng.random(rows) < base + 0.1 * new).astype(int),
        "p": np.where(new, share, 1 - share),
        "p_old": 1 - share,
        "p_new": share,
        "week": np.repeat(np.arange(epochs), each),
        "at": np.arange(rows),
    }


def shuffled(table: Table, seed: int = 3) -> Table:
    order = np.random.default_rng(seed).permutation(len(table["arm"]))
    return {name: np.asarray(values)[order] for name, values in table.items()}


def test_many_small_epochs_are_read_from_scores_block_by_block() -> None:
    table = reallocated()
    report = analyse(table, BUY, variant="arm", control="old", propensity="p", time="at")
    fixed = read(report)
    assert fixed.method == "aipw"
    assert fixed.ci_low is not None
    assert fixed.ci_high is not None
    assert fixed.ci_low < 0.1 < fixed.ci_high
    assert report.epochs > 20
    assert report.sample_ratio.p_value is not None


def greedy(seed: int, batches: int = 100) -> dict[str, Any]:
    """Two arms alike, under a rule that gives 95 % to the one that did better so far."""
    rng = np.random.default_rng(seed)
    n, converted = np.zeros(2), np.zeros(2)
    arms, bought, own = [], [], []
    for batch in range(batches):
        share = 0.5 if batch < 2 else 0.95 if converted[1] * n[0] > converted[0] * n[1] else 0.05
        arm = (rng.random(20) < share).astype(int)
        buys = (rng.random(20) < 0.1).astype(int)
        n += np.bincount(arm, minlength=2)
        converted += np.bincount(arm, buys, minlength=2)
        arms.append(arm)
        bought.append(buys)
        own.append(np.where(arm == 1, share, 1 - share))
    arm = np.concatenate(arms)
    return {
        "arm": np.where(arm == 1, "new", "old"),
        "bought": np.concatenate(bought),
        "p": np.concatenate(own),
        "at": np.arange(len(arm)),
    }


def test_propensities_that_come_back_are_not_one_epoch() -> None:
    missed = 0
    for seed in range(60):
        report = analyse(greedy(seed), BUY, variant="arm", control="old", propensity="p", time="at")
        fixed = report.metrics[0].comparisons[0].fixed
        assert fixed.method == "aipw"
        assert fixed.ci_low is not None
        assert fixed.ci_high is not None
        missed += not fixed.ci_low <= 0.0 <= fixed.ci_high
    assert missed / 60 <= at_most(0.05, 60)


def test_the_order_of_the_rows_does_not_matter_where_there_is_a_time() -> None:
    options: dict[str, Any] = {"variant": "arm", "control": "old", "time": "at", "plan": FIXED}
    reports = [
        analyse(table, BUY, propensity="p", **options)
        for table in (reallocated(), shuffled(reallocated()))
    ]
    assert reports[0] == reports[1]


def test_without_a_time_small_epochs_are_said_to_be_rough() -> None:
    report = analyse(reallocated(), BUY, variant="arm", control="old", propensity="p")
    assert "approximate_small_epochs" in read(report).notes
    assert any("Small epochs are compared as large ones" in note for note in report.notes)


def test_propensities_may_be_named_for_each_variant() -> None:
    table = reallocated()
    options: dict[str, Any] = {"variant": "arm", "control": "old", "time": "at"}
    own = analyse(table, BUY, propensity="p", **options)
    each = analyse(table, BUY, propensity={"old": "p_old", "new": "p_new"}, **options)
    assert read(own).difference == pytest.approx(read(each).difference, rel=1e-9)
    wrong = table | {"p_new": table["p_new"] / 2}
    with pytest.raises(DataError, match=r"row 1: its propensities sum to .*, not to 1"):
        analyse(wrong, BUY, propensity={"old": "p_old", "new": "p_new"}, **options)


def test_units_of_one_allocation_are_one_epoch_whichever_variant_they_met() -> None:
    """1 - 0.9 is not the float 0.1, and yet the propensities are the same."""
    rng = np.random.default_rng(3)
    share = np.repeat(np.arange(1, 10) / 10, 200)
    new = rng.random(len(share)) < share
    table = {
        "arm": np.where(new, "new", "old"),
        "bought": rng.integers(0, 2, len(share)),
        "p": np.where(new, share, 1 - share),
    }
    report = analyse(table, BUY, variant="arm", control="old", propensity="p")
    assert report.epochs == 9


def ramp() -> Table:
    """Few on the first day, when everybody buys, and half of them on the second."""
    rng = np.random.default_rng(9)
    day = np.repeat([1, 2], 5_000)
    new = rng.random(10_000) < np.where(day == 1, 0.05, 0.5)
    bought = rng.random(10_000) < np.where(day == 1, 0.4, 0.1)
    return {"arm": np.where(new, "new", "old"), "bought": bought.astype(int), "day": day}


def test_epochs_are_compared_within_and_never_pooled() -> None:
    table = ramp()
    pooled = analyse(table, BUY, variant="arm", control="old")
    weights = {"1": {"old": 95, "new": 5}, "2": {"old": 1, "new": 1}}
    within = analyse(table, BUY, variant="arm", control="old", epoch="day", weights=weights)
    unstated = analyse(table, BUY, variant="arm", control="old", epoch="day")
    assert (read(pooled).p_value or 0) < 1e-6
    assert (read(within).p_value or 0) > 0.05
    assert read(within) == read(unstated)
    assert within.sample_ratio.p_value is not None
    assert unstated.sample_ratio.p_value is None
    assert within.epochs == 2
    with pytest.raises(DataError, match="epoch '2' has no weights"):
        analyse(table, BUY, variant="arm", control="old", epoch="day", weights={"1": weights["1"]})


def test_a_fixed_reading_stands_on_the_units_that_were_planned() -> None:
    """What came after its look is shown, and decides nothing."""
    table, plan = shop(4_000), AnalysisPlan(reading="fixed", units=1_000)
    options: dict[str, Any] = {"variant": "arm", "control": "old", "time": "at"}
    report = analyse(shuffled(table), BUY, plan=plan, **options)
    planned = report.metrics[0].comparisons[0].planned
    assert planned is not None
    [look] = planned.looks
    first = {name: values[:1_000] for name, values in table.items()}
    assert look.comparison == read(analyse(first, BUY, **options))


def test_propensities_that_all_differ_are_too_many_epochs() -> None:
    share = np.linspace(0.2, 0.8, 100_001)
    table = {
        "arm": np.resize(["old", "new"], len(share)),
        "bought": np.zeros(len(share)),
        "p": share,
    }
    with pytest.raises(DataError, match="there are 100,001 epochs, or different propensities"):
        analyse(table, BUY, variant="arm", control="old", propensity="p")


def test_names_may_be_numbers() -> None:
    table = shop(400)
    table["arm"] = np.where(table["arm"] == "new", 1, 0)
    control: Any = 0
    weights: Any = {0: 1, 1: 1}
    report = analyse(table, BUY, variant="arm", control=control, weights=weights)
    assert list(report.units) == ["0", "1"]
    assert report.sample_ratio.expected == {"0": 200, "1": 200}


def test_planned_looks_are_taken_at_their_shares_of_the_units() -> None:
    plan = AnalysisPlan(reading="planned", looks=(0.25, 0.5, 1.0))
    table = shop(1_000)
    report = analyse(shuffled(table), ALL[:1], variant="arm", control="old", time="at", plan=plan)
    planned = report.metrics[0].comparisons[0].planned
    assert planned is not None
    assert [look.units for look in planned.looks] == [250, 500, 1_000]
    assert [look.information for look in planned.looks] == [0.25, 0.5, 1.0]
    assert planned.looks[0].taken_at == datetime(2026, 1, 1, 4, 9, tzinfo=UTC)
    first = {name: values[:250] for name, values in table.items()}
    alone = read(analyse(first, ALL[:1], variant="arm", control="old"))
    assert planned.looks[0].difference == pytest.approx(alone.difference, rel=1e-12)


def test_a_fixed_reading_waits_for_the_units_that_were_planned() -> None:
    plan = AnalysisPlan(reading="fixed", units=5_000)
    assert analyse(shop(), BUY, variant="arm", control="old", plan=plan).verdict.action == (
        "keep_running"
    )


RANKER: Mapping[str, Any] = {
    "key": "ranker",
    "variants": [
        {"key": "v6", "control": True, "weight": 0.5, "value": 6},
        {"key": "v7", "weight": 0.5, "value": 7},
    ],
    "record": ["country", "plan"],
    "metrics": [
        {
            "key": "click",
            "role": "primary",
            "kind": "proportion",
            "event": "bought",
            "window": "1d",
        },
        {
            **{"key": "spent", "role": "secondary", "kind": "mean", "event": "spent"},
            **{"window": "7d", "cap": 5, "covariate": "14d"},
        },
    ],
}


def test_a_definition_names_the_columns_by_its_events() -> None:
    table = shop()
    table["arm"] = np.where(table["arm"] == "old", "v6", "v7")
    report = report_from_columns(parse_definition(RANKER), table, Layout(variant="arm"))
    assert report.experiment == "ranker"
    assert report.metrics[1].covariate == "14d"
    assert report.sample_ratio.expected == {"v6": 2_000, "v7": 2_000}
    assert {b.attribute for b in report.breakdowns} == {"country"}
    options: dict[str, Any] = {"variant": "arm", "control": "v6"}
    same = analyse(table, [Mean("spent", covariate="spent_before", cap=5)], **options)
    assert read(report, 1).difference == pytest.approx(read(same).difference)


def test_blocks_and_epochs_may_be_given_as_cells() -> None:
    rng = np.random.default_rng(4)
    epochs, cells = {}, []
    for number in range(1, 41):
        share = 0.2 if number % 2 else 0.8
        new = int(rng.binomial(80, share))
        counts = {"old": 80 - new, "new": new}
        epochs[number] = Epoch(units=counts, propensities={"old": 1 - share, "new": share})
        cells += [
            Cell(
                "bought", arm, proportion(n, int(rng.binomial(n, 0.3))), epoch=number, block=number
            )
            for arm, n in counts.items()
        ]
    report = analyse_cells(cells, BUY, control="old", epochs=epochs)
    assert read(report).method == "aipw"
    assert report.units == {
        arm: sum((e.units or {})[arm] for e in epochs.values()) for arm in ("old", "new")
    }


@pytest.mark.parametrize("reading", ["fixed", "planned", "continuous", "bayesian"])
def test_every_reading_is_written_and_read_back(reading: Any) -> None:
    plan = AnalysisPlan(reading=reading)
    report = analyse(
        shop(), ALL, variant="arm", control="old", time="at", segments=["country"], plan=plan
    )
    assert report.reading == reading
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    assert "## spent" in render(report)


def test_a_goal_to_decrease_turns_the_conclusion_round() -> None:
    def conclusion(goal: Any) -> str:
        metric = Proportion("responded", goal=goal)
        table = real("black_politicians.csv.gz")
        return analyse(table, [metric], variant="treat_out", control="0", plan=FIXED).verdict.action

    assert conclusion("increase") == "keep_control"
    assert conclusion("decrease") == "ship"


def test_metrics_of_one_key_are_refused() -> None:
    with pytest.raises(ValueError, match="two metrics have the key 'bought'"):
        analyse(shop(), [*BUY, *BUY], variant="arm", control="old")


@pytest.mark.parametrize("quantile", [0.0, 1.0, 95.0])
def test_a_quantile_lies_between_0_and_1(quantile: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        analyse(shop(), [Quantile("latency", quantile)], variant="arm", control="old")


def test_the_example_in_the_docstring_is_true() -> None:
    assert doctest.testmod(analysis.library).failed == 0
