"""What a planner is asked, and what it answers."""

from typing import Any

import msgspec
import pytest

from analysis.inference.epoch_sums import Population
from analysis.planning.answer import Expected, Plan, Traffic
from analysis.planning.observed import completed, expected_of
from analysis.planning.plan import Observed, make_plan
from analysis.planning.request import BanditPolicy, PlanRequest
from experiments.decoding import decode
from experiments.definition import parse_definition
from experiments.problems import ProblemError
from tests.unit.samples import proportion, terms

RATE = {"kind": "proportion", "baseline": 0.1}
MEAN = {"kind": "mean", "baseline": 200, "sd": 50}


def request(**fields: Any) -> PlanRequest:
    decoded = decode(PlanRequest, fields)
    assert not decoded.problems
    return decoded.value


def planned(**fields: Any) -> Plan:
    return make_plan(request(**fields))


def refused(**fields: Any) -> list[tuple[str, str]]:
    """The wrong fields, as (path, type)."""
    decoded = decode(PlanRequest, fields)
    problems = decoded.problems
    if not problems:
        with pytest.raises(ProblemError) as error:
            make_plan(decoded.value)
        problems = error.value.errors
    return [(problem.path, problem.type) for problem in problems]


def test_what_is_left_out_is_asked_for() -> None:
    units = planned(metric=RATE, effect={"relative": 0.1}, reading="fixed")
    assert (units.asked, units.units, units.units_by_variant) == ("units", 29_498, (14_749, 14_749))
    assert units.power == pytest.approx(0.8, abs=1e-4)

    effect = planned(metric=RATE, units=29_498, reading="fixed")
    assert effect.asked == "effect"
    assert effect.effect is not None
    assert effect.effect.absolute == pytest.approx(0.01, rel=1e-4)
    assert effect.effect.relative == pytest.approx(0.1, rel=1e-4)

    power = planned(metric=RATE, effect={"absolute": 0.01}, units=20_000, reading="fixed")
    assert power.asked == "power"
    assert power.power == pytest.approx(0.637, abs=0.003)


def test_all_readings_stand_side_by_side() -> None:
    plan = planned(metric=RATE, effect={"relative": 0.1}, units_per_day=2_000)
    assert plan.reading == "continuous"
    by_name = {cost.reading: cost for cost in plan.readings}
    fixed, looks, continuous = (by_name[name] for name in ("fixed", "planned", "continuous"))
    assert fixed.units is not None
    assert looks.units is not None
    assert continuous.units is not None
    assert continuous.units == plan.units
    assert fixed.units < looks.units < continuous.units
    assert fixed.mean_units == fixed.units
    assert looks.mean_units is not None
    assert looks.mean_units < fixed.units  # a large enough effect ends it early
    assert fixed.days == fixed.units / 2_000
    assert plan.days == continuous.units / 2_000
    assert [look.share for look in looks.looks] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert looks.looks[-1].units == looks.units
    assert looks.looks[-1].power == pytest.approx(0.8, abs=1e-3)
    assert not fixed.looks
    assert not continuous.looks
    assert fixed.power is not None
    assert fixed.power > 0.9  # the units of the plan are those of the continuous reading
    assert fixed.detectable is not None
    assert fixed.detectable.absolute < 0.01


def test_the_curve_of_power_goes_from_nothing_to_twice_the_effect() -> None:
    plan = planned(metric=MEAN, effect={"absolute": 5}, units=2_000, goal="decrease")
    assert len(plan.curve) == 21
    assert [plan.curve[place].effect.absolute for place in (0, 10, 20)] == [0.0, -5.0, -10.0]
    assert plan.curve[10].effect.relative == -0.025
    assert plan.curve[0].fixed == pytest.approx(0.05)
    assert plan.curve[10].continuous == plan.power
    rate = planned(metric=RATE, effect={"absolute": 0.08}, units=200, goal="decrease")
    assert rate.curve[20].effect.absolute == -0.1  # below 0 there is no rate


def test_a_goal_says_which_way_the_effect_goes() -> None:
    up, down = (
        planned(metric=RATE, effect={"relative": 0.2}, goal=goal, reading="fixed")
        for goal in ("increase", "decrease")
    )
    assert up.effect is not None
    assert down.effect is not None
    assert (up.effect.absolute, down.effect.absolute) == pytest.approx((0.02, -0.02))
    assert up.units is not None
    assert down.units is not None
    assert up.units > down.units  # a rate of .12 varies more than one of .08
    negative = planned(metric=MEAN | {"baseline": -200}, effect={"relative": 0.1})
    assert negative.effect is not None
    assert (negative.effect.absolute, negative.effect.relative) == pytest.approx((20.0, 0.1))


def test_several_variants_share_alpha_and_units() -> None:
    plan = planned(metric=RATE, effect={"relative": 0.1}, weights=[2, 1, 1], reading="fixed")
    assert (plan.comparisons, plan.alpha, plan.alpha_each) == (2, 0.05, 0.025)
    assert plan.weights == (0.5, 0.25, 0.25)
    assert plan.units == sum(plan.units_by_variant)
    assert any("Holm" in note for note in plan.notes)
    alone = planned(
        metric=RATE, effect={"relative": 0.1}, weights=[2, 1, 1], reading="fixed", correction="none"
    )
    assert alone.alpha_each == 0.05
    assert not any("Holm" in note for note in alone.notes)
    more = planned(metric=RATE, effect={"relative": 0.1}, primary_metrics=3)
    assert more.comparisons == 3
    assert more.alpha_each == pytest.approx(0.05 / 3)


def test_the_smallest_treatment_needs_the_most_units() -> None:
    uneven, even = (
        planned(metric=RATE, effect={"relative": 0.1}, weights=weights, reading="fixed").units
        for weights in ([0.6, 0.3, 0.1], [0.4, 0.3, 0.3])
    )
    assert uneven is not None
    assert even is not None
    assert uneven > 1.5 * even


def test_given_units_are_split_to_the_last() -> None:
    plan = planned(metric=RATE, units=1_000, weights=[1, 1, 1])
    assert plan.units_by_variant == (334, 333, 333)


def test_a_covariate_saves_the_share_of_variance_that_it_explains() -> None:
    plain = planned(metric=MEAN, effect={"relative": 0.01}, reading="fixed")
    adjusted = planned(
        metric=MEAN, effect={"relative": 0.01}, reading="fixed", cuped={"correlation": 0.6}
    )
    assert plain.units is not None
    assert adjusted.units == pytest.approx(0.64 * plain.units, abs=4)
    rate = planned(metric=RATE, effect={"relative": 0.1}, cuped={"correlation": 0.6})
    assert any("define this one as a mean" in note for note in rate.notes)


def test_the_window_lengthens_the_days() -> None:
    fields = {"metric": RATE, "units": 14_000, "units_per_day": 1_000, "reading": "fixed"}
    assert planned(**fields).days == 14.0
    assert planned(**fields, window="7d").days == 21.0
    assert planned(metric=RATE, units=14_000).days is None
    assert any("28 days" in note for note in planned(**fields, window="8d").notes)


def test_what_cannot_be_shown_is_said() -> None:
    never = planned(metric=RATE, effect={"absolute": 1e-9})
    assert (never.units, never.days, never.power, never.curve) == (None, None, None, ())
    assert any("No number of units" in note for note in never.notes)
    few = planned(metric=RATE, units=50)
    assert (few.effect, few.power) == (None, None)
    assert any("So few units" in note for note in few.notes)
    lone = planned(metric=MEAN, units=3, effect={"absolute": 1})
    assert [cost.power for cost in lone.readings] == [None] * 3


def test_tiny_expectations_are_flagged() -> None:
    plan = planned(metric={"kind": "proportion", "baseline": 0.001}, units=2_000, reading="fixed")
    assert any("conversions" in note for note in plan.notes)
    plan = planned(metric=MEAN, effect={"absolute": 100}, reading="fixed")
    assert any("says nothing before" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, [("metric", "missing"), ("effect", "missing")]),
        ({"metric": RATE}, [("effect", "missing")]),
        ({"metric": RATE, "effect": {}}, [("effect", "value")]),
        ({"metric": RATE, "effect": {"absolute": 0.1, "relative": 1}}, [("effect", "value")]),
        ({"metric": RATE, "effect": {"absolute": -0.1}}, [("effect", "value")]),
        ({"metric": RATE, "effect": {"absolute": 1e300}}, [("effect", "value")]),
        ({"metric": RATE, "effect": {"relative": 9.5}}, [("effect", "conflict")]),
        (
            {"metric": RATE, "effect": {"relative": 1.1}, "goal": "decrease"},
            [("effect", "conflict")],
        ),
        (
            {"metric": MEAN | {"baseline": 0}, "effect": {"relative": 0.1}},
            [("effect.relative", "conflict")],
        ),
        ({"metric": RATE, "units": 10, "looks": [0.5]}, [("looks", "value")]),
        ({"metric": RATE, "units": 10, "looks": [0.5, 0.5, 1]}, [("looks", "value")]),
        ({"metric": RATE, "units": 10, "looks": [0.995, 1]}, [("looks", "value")]),
        (
            {
                "metric": {
                    "kind": "ratio",
                    "numerator": {"mean": 1, "sd": 1},
                    "denominator": {"mean": 0, "sd": 1},
                },
                "units": 10,
            },
            [("metric", "value")],
        ),
        (
            {
                "metric": {
                    "kind": "ratio",
                    "numerator": {"mean": 2, "sd": 2},
                    "denominator": {"mean": 1, "sd": 1},
                    "correlation": 1,
                },
                "units": 10,
            },
            [("metric", "value")],
        ),
        (
            {"metric": {"kind": "proportion", "baseline": 1.5}, "alpha": 2, "unit": 1},
            [("metric.baseline", "value"), ("alpha", "value"), ("unit", "unknown")],
        ),
    ],
)
def test_every_wrong_field_is_named(fields: dict[str, Any], wrong: list[tuple[str, str]]) -> None:
    assert sorted(refused(**fields)) == sorted(wrong)


@pytest.mark.parametrize(
    "metric",
    [
        {"kind": "proportion", "baseline": 1e-9},
        {"kind": "proportion", "baseline": 1 - 1e-12},
        {"kind": "mean", "baseline": 1e30, "sd": 1e-30},
        {"kind": "mean", "baseline": 0, "sd": 1e30},
        {
            "kind": "ratio",
            "numerator": {"mean": 0, "sd": 1},
            "denominator": {"mean": 1e-30, "sd": 0},
        },
    ],
)
@pytest.mark.parametrize("units", [2, 1_000, 10**12])
def test_extremes_have_answers_that_json_can_carry(metric: dict[str, Any], units: int) -> None:
    for fields in ({}, {"effect": {"absolute": 1e-30}}, {"weights": [1e6, 1e-6, 1]}):
        plan = planned(metric=metric, units=units, **fields)
        text = msgspec.json.encode(plan)
        assert msgspec.json.decode(text, type=Plan) == plan


# An experiment that stands for what is not stated


def observation(**changes: Any) -> Observed:
    fields: dict[str, Any] = {
        "metric": Expected("mean", "decrease", 3.0, 4.0, 0.5),
        "traffic": Traffic("x", "latency", 7_000, 3.5),
        "units_per_day": 2_000.0,
    }
    return Observed(**(fields | changes))


def test_what_an_experiment_observed_is_planned_with() -> None:
    plan = make_plan(request(experiment="x", effect={"relative": 0.1}), observation())
    assert plan.metric == Expected("mean", "decrease", 3.0, 4.0, 0.5)
    assert plan.effect is not None
    assert plan.effect.absolute == pytest.approx(-0.3)
    assert plan.units is not None
    assert plan.days == plan.units / 2_000
    assert any("less than a week" in note for note in plan.notes)
    stated = make_plan(
        request(
            experiment="x",
            metric=RATE,
            effect={"relative": 0.1},
            units_per_day=5,
            cuped={"correlation": 0.5},
        ),
        observation(metric=None),
    )
    assert (stated.metric.baseline, stated.units_per_day) == (0.1, 5)
    better = make_plan(
        request(
            experiment="x", effect={"relative": 0.1}, goal="increase", cuped={"correlation": 0.8}
        ),
        observation(),
    )
    assert better.metric.goal == "increase"
    assert better.metric.variance_left == pytest.approx(0.36)


METRICS: list[dict[str, Any]] = [
    {"key": "slow", "role": "guardrail", "kind": "mean", "event": "ms", "window": "1s"}
    | {"margin": {"relative": 0.1}},
    {"key": "click", "role": "primary", "kind": "proportion", "event": "e", "window": "1d"},
    {"key": "bounce", "role": "primary", "kind": "proportion", "event": "f", "window": "1d"}
    | {"goal": "decrease"},
]
DEFINITION: dict[str, Any] = {
    "key": "x",
    "variants": [
        {"key": "b", "weight": 0.25, "value": 1},
        {"key": "a", "weight": 0.5, "value": 2, "control": True},
        {"key": "c", "weight": 0.25, "value": 3},
    ],
    "metrics": METRICS,
    "policy": {"kind": "thompson", "metric": "click", "every": "10m", "floor": 0.1},
    "analysis": {"alpha": 0.02, "effect": {"relative": 0.05}},
}


def test_a_definition_completes_a_request() -> None:
    definition = parse_definition(DEFINITION)
    full = completed(request(experiment="x"), definition)
    assert full.weights == (0.5, 0.25, 0.25)
    assert (full.goal, full.window) == ("increase", "1d")
    assert (full.alpha, full.primary_metrics, full.reading) == (0.02, 2, "continuous")
    assert full.effect is not None
    assert (full.effect.relative, full.units) == (0.05, None)
    assert full.policy == BanditPolicy(every="10m", floor=0.1)
    stated = completed(
        request(experiment="x", metric_key="bounce", units=1_000, alpha=0.1, weights=[1, 1]),
        definition,
    )
    assert (stated.goal, stated.units, stated.effect) == ("decrease", 1_000, None)
    assert (stated.alpha, stated.weights) == (0.1, (1.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "fields", "wrong"),
    [
        ({}, {"metric_key": "none"}, ("metric_key", "reference")),
        ({"metrics": METRICS[:1]}, {}, ("metric_key", "reference")),
    ],
)
def test_a_metric_that_an_experiment_lacks_is_named(
    changes: dict[str, Any], fields: dict[str, Any], wrong: tuple[str, str]
) -> None:
    definition = parse_definition(DEFINITION | {"policy": {"kind": "fixed"}} | changes)
    with pytest.raises(ProblemError) as error:
        completed(request(experiment="x", **fields), definition)
    assert [(e.path, e.type) for e in error.value.errors] == [wrong]


def test_the_control_is_expected_to_go_on_as_observed() -> None:
    days = [
        (proportion(1_000, 100), proportion(500, 90)),
        (proportion(3_000, 600), proportion(10, 1)),
    ]
    sums = sum((terms(day, "proportion") for day in days), start=Population()).together
    found = expected_of(sums, ["a", "b"], "a", "proportion")
    assert found is not None
    rate = (0.1 * 1_500 + 0.2 * 3_010) / 4_510  # standardised over the days
    assert found.baseline == pytest.approx(rate)
    assert found.variance == pytest.approx(rate * (1 - rate))
    assert expected_of(Population().together, ["a", "b"], "a", "proportion") is None
