"""Breakdowns of a report: what they compare, what they leave out, and how often they are wrong."""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from analysis.inference.epoch_sums import Population
from analysis.inference.estimate import compare
from analysis.inference.moments import Moments, merge
from analysis.inference.ratio_check import UnitSums
from analysis.inference.segments import Segment, SegmentFacts
from analysis.reports.breakdowns import LEAST_UNITS, Breakdown, breakdowns
from analysis.reports.model import Facts, MetricFacts
from experiments.definition import parse_definition
from tests.unit.samples import at_most, population, proportion

Arms = Sequence[Moments]
Segments = Mapping[Segment, Arms]


def of_country(*values: str) -> list[Segment]:
    """Segments of one attribute."""
    return [Segment("country", value) for value in values]


def facts(
    metrics: Mapping[str, Segments],
    *,
    reading: str = "fixed",
    roles: Mapping[str, str] | None = None,
    whole: Mapping[str, Arms] | None = None,
) -> Facts:
    """What is known of proportions, from the cells of their segments by variant, control first."""
    variants = max(len(arms) for segments in metrics.values() for arms in segments.values())
    definition = parse_definition(
        {
            "key": "x",
            "variants": [
                {"key": "abc"[place], "value": place, "weight": 1 / variants, "control": place == 0}
                for place in range(variants)
            ],
            "metrics": [
                {
                    "key": key,
                    "kind": "proportion",
                    "event": key,
                    "window": "1d",
                    "role": (roles or {}).get(key, "primary"),
                    "margin": {"absolute": 0.1} if (roles or {}).get(key) == "guardrail" else None,
                }
                for key in metrics
            ],
            "analysis": {"reading": reading} | ({"units": 8_000} if reading == "fixed" else {}),
        }
    )
    known = {}
    for key, segments in metrics.items():
        every = (whole or {}).get(key) or [
            _merged(cells) for cells in zip(*segments.values(), strict=True)
        ]
        sums = _one_epoch(every)
        parts = {s: SegmentFacts(_one_epoch(c), _one_epoch(c)) for s, c in segments.items()}
        known[key] = MetricFacts(everyone=sums, finished=sums, segments=parts)
    return Facts(
        project="shop",
        key="x",
        state="running",
        run=1,
        epoch=1,
        definition=definition,
        ship=None,
        started_at=None,
        watermark=None,
        rolled_back=None,
        enrolled=UnitSums(),
        metrics=known,
        guard=(),
    )


def _merged(cells: Sequence[Moments]) -> Moments:
    total = cells[0]
    for cell in cells[1:]:
        total = merge(total, cell)
    return total


def _one_epoch(cells: Arms) -> Population:
    return population([cells], "proportion")


def only(found: Sequence[Breakdown]) -> Breakdown:
    """The single one."""
    [one] = found
    return one


DE, AT, FR = of_country("DE", "AT", "FR")
DIFFERENT = {
    DE: (proportion(2_000, 400), proportion(2_000, 600)),
    AT: (proportion(2_000, 400), proportion(2_000, 300)),
}
ALIKE = {
    DE: (proportion(2_000, 400), proportion(2_000, 500)),
    AT: (proportion(4_000, 800), proportion(4_000, 1_000)),
}


def test_a_segment_is_compared_as_the_report_compares_all_units() -> None:
    found = only(breakdowns(facts({"click": DIFFERENT})))
    sums = _one_epoch(DIFFERENT[DE]).contrasts["b"]
    assert found.segments[0].fixed == compare(sums, "a", "b", "proportion")
    assert found.segments[0].units_control == found.segments[0].units_treatment == 2_000
    assert [c.segment for c in found.segments] == [DE, AT]


@pytest.mark.parametrize("reading", ["fixed", "continuous"])
def test_an_effect_that_differs_is_found_and_one_that_does_not_is_not(reading: str) -> None:
    [different] = only(breakdowns(facts({"click": DIFFERENT}, reading=reading))).interactions
    [alike] = only(breakdowns(facts({"click": ALIKE}, reading=reading))).interactions
    assert different.p_value is not None
    assert alike.p_value is not None
    assert different.p_value < 1e-4
    assert alike.p_value > 0.5
    assert different.compared == (DE, AT)


def test_the_plan_says_which_reading_counts() -> None:
    fixed = only(breakdowns(facts({"click": DIFFERENT}, reading="fixed")))
    continuous = only(breakdowns(facts({"click": DIFFERENT}, reading="continuous")))
    assert fixed.interactions[0].test == "cochran_q"
    assert continuous.interactions[0].test == "sequence"
    assert [c.p_value for c in fixed.segments] == [c.fixed.p_value for c in fixed.segments]
    raw = [c.continuous.reading.p_value for c in continuous.segments]
    assert [c.p_value for c in continuous.segments] == raw


def test_segments_with_too_few_units_or_conversions_are_named_and_left_out_of_the_test() -> None:
    few = proportion(LEAST_UNITS - 1, 50)
    cells = DIFFERENT | {
        FR: (few, few),
        Segment("country", None, other=True): (proportion(900, 3),) * 2,
    }
    found = only(breakdowns(facts({"click": cells})))
    [test] = found.interactions
    assert test.compared == (DE, AT)
    assert test.left_out == (FR, Segment("country", None, other=True))
    assert test.df == 1
    assert len(found.segments) == 4


def test_a_test_needs_two_segments() -> None:
    [test] = only(breakdowns(facts({"click": {DE: DIFFERENT[DE]}}))).interactions
    assert test.note == "too_few_segments"
    assert test.p_value is test.p_adjusted is test.statistic is None


def test_units_without_the_attribute_are_counted_as_missing() -> None:
    whole = {"click": (proportion(5_000, 900), proportion(4_001, 900))}
    assert only(breakdowns(facts({"click": DIFFERENT}, whole=whole))).missing == {
        "a": 1_000,
        "b": 1,
    }


def test_a_segment_that_all_units_have_left_is_not_there() -> None:
    nobody = proportion(0, 0)
    found = only(breakdowns(facts({"click": DIFFERENT | {FR: (nobody, nobody)}})))
    assert [c.segment for c in found.segments] == [DE, AT]


def test_a_segment_with_one_variant_has_units_and_no_difference() -> None:
    found = only(breakdowns(facts({"click": {DE: (proportion(0, 0), proportion(7, 3))}})))
    [germany] = found.segments
    assert (germany.units_control, germany.units_treatment) == (0, 7)
    assert germany.fixed.difference is germany.p_value is germany.p_adjusted is None


def test_guardrails_are_not_broken_down() -> None:
    roles = {"click": "primary", "look": "secondary", "fail": "guardrail"}
    found = breakdowns(facts(dict.fromkeys(roles, DIFFERENT), roles=roles))
    assert [b.metric for b in found] == ["click", "look"]


def test_a_report_without_attributes_has_no_breakdown() -> None:
    empty = facts({"click": DIFFERENT})
    bare = {"click": MetricFacts()}
    assert breakdowns(msgspec.structs.replace(empty, metrics=bare)) == ()


@pytest.mark.parametrize("reading", ["fixed", "continuous"])
def test_adjusted_values_are_benjamini_and_hochbergs_over_the_whole_report(reading: str) -> None:
    source = np.random.default_rng(3)
    metrics = {
        key: {
            Segment(attribute, str(value)): tuple(
                proportion(1_000, int(source.binomial(1_000, rate))) for rate in (0.2, 0.2, 0.24)
            )
            for attribute in ("country", "plan")
            for value in range(3)
        }
        for key in ("click", "buy")
    }
    found = breakdowns(facts(metrics, reading=reading))
    assert len(found) == 4
    families: list[list[tuple[float | None, float | None]]] = [
        [(c.p_value, c.p_adjusted) for b in found for c in b.segments],
        [(i.p_value, i.p_adjusted) for b in found for i in b.interactions],
    ]
    assert [len(family) for family in families] == [24, 8]
    for family in families:
        raw = [p for p, _ in family if p is not None]
        expected = multipletests(raw, method="fdr_bh")[1]
        assert [p for _, p in family] == pytest.approx(expected.tolist())


def test_a_breakdown_is_json_and_back() -> None:
    found = breakdowns(facts({"click": DIFFERENT}))
    text = msgspec.json.encode(found)
    assert msgspec.json.decode(text, type=tuple[Breakdown, ...]) == found


def test_of_a_hundred_segments_without_an_effect_few_reports_call_any_significant() -> None:
    source, runs = np.random.default_rng(4), 30
    raw = adjusted = 0
    for _ in range(runs):
        converted = source.binomial(1_000, 0.3, (100, 2)).tolist()
        cells = {
            Segment(f"attribute {place // 20}", str(place)): (
                proportion(1_000, a),
                proportion(1_000, b),
            )
            for place, (a, b) in enumerate(converted)
        }
        found = [c for b in breakdowns(facts({"click": cells})) for c in b.segments]
        assert len(found) == 100
        raw += any(c.p_value is not None and c.p_value <= 0.05 for c in found)
        adjusted += any(c.p_adjusted is not None and c.p_adjusted <= 0.05 for c in found)
    assert adjusted / runs <= at_most(0.05, runs)
    assert raw / runs > 0.9


@pytest.mark.parametrize("n", [0, 1, 2])
def test_the_smallest_segments_have_a_defined_answer(n: int) -> None:
    cells = {DE: (proportion(n, n), proportion(n, 0)), AT: (proportion(n, 0), proportion(n, n))}
    for reading in ("fixed", "continuous"):
        for found in breakdowns(facts({"click": cells}, reading=reading)):
            for c in found.segments:
                assert c.p_value is None or math.isfinite(c.p_value)
