"""What a bandit costs and saves, by simulation."""

from typing import Any

import numpy as np
import pytest

from analysis.planning.answer import BanditCost, Plan
from analysis.planning.plan import make_plan
from analysis.planning.request import BanditPolicy, PlanRequest, Simulation
from analysis.planning.simulate import Setting, setting, simulate, with_bandit
from experiments.decoding import decode
from experiments.problems import ProblemError

RATE = {"kind": "proportion", "baseline": 0.1}


def planned(**fields: Any) -> Plan:
    decoded = decode(PlanRequest, {"metric": RATE, "reading": "fixed", **fields})
    assert not decoded.problems
    return make_plan(decoded.value)


def cost(runs: int = 40, seed: int = 1, **changes: Any) -> BanditCost:
    fields: dict[str, Any] = {
        "kind": "proportion",
        "goal": "increase",
        "means": (0.1, 0.14),
        "sd": 0.3,
        "shares": (0.5, 0.5),
        "floor": 0.05,
        "warmup": 100,
        "max_step": 0.2,
        "units": 6_000,
        "steps": 12,
        "lag": 0,
        "alpha": 0.05,
    }
    return simulate(Setting(**(fields | changes)), runs, np.random.default_rng(seed))


def test_a_bandit_saves_conversions_and_costs_precision() -> None:
    found = cost()
    assert found.lost_fixed == pytest.approx(3_000 * 0.04, rel=0.02)
    assert found.lost_bandit < 0.6 * found.lost_fixed
    assert 0.0 < found.saved_low < found.saved < found.saved_high
    assert found.saved == pytest.approx(found.lost_fixed - found.lost_bandit)
    assert found.best == 1
    assert found.best_share[0] == 0.5
    assert found.best_share[-1] > 0.8
    assert found.std_error_fixed is not None
    assert found.std_error_bandit is not None
    assert found.std_error_bandit > found.std_error_fixed
    assert found.units_for_precision is not None
    assert found.units_for_precision > 6_000
    assert found.power_fixed >= found.power_bandit
    assert found.coverage_bandit > 0.8


def test_the_split_has_the_power_that_the_planner_claims() -> None:
    plan = planned(effect={"relative": 0.3})
    what = setting(plan, Simulation(steps=2))
    assert plan.units is not None
    found = simulate(what, 250, np.random.default_rng(2))
    assert found.power_fixed == pytest.approx(0.8, abs=0.076)  # three standard errors


def test_a_goal_to_decrease_sends_traffic_to_the_lowest() -> None:
    found = cost(goal="decrease", means=(0.14, 0.1, 0.2), shares=(1 / 3,) * 3, runs=10)
    assert found.best == 1
    assert found.best_share[-1] > 0.7
    assert found.lost_fixed == pytest.approx(2_000 * (0.04 + 0.1), rel=0.03)


def test_a_mean_loses_in_its_own_unit() -> None:
    found = cost(kind="mean", means=(200.0, 210.0), sd=50.0, units=3_000, runs=15)
    assert found.lost_fixed == pytest.approx(1_500 * 10.0, rel=0.05)
    assert found.saved_low > 0.0


def test_where_nothing_differs_nothing_is_lost() -> None:
    found = cost(means=(0.1, 0.1), runs=5)
    assert (found.lost_fixed, found.lost_bandit, found.saved) == (0.0, 0.0, 0.0)


def test_a_floor_that_takes_all_is_the_split() -> None:
    found = cost(floor=0.5, runs=5)
    assert set(found.best_share) == {0.5}
    found = cost(warmup=10**6, runs=5)
    assert set(found.best_share) == {0.5}


def test_the_options_of_a_policy_are_simulated() -> None:
    pinned = cost(pin_control=0.3, max_step=1.0, runs=5)
    assert pinned.best_share[-1] == pytest.approx(0.7)  # of one treatment, which has the rest
    three: dict[str, Any] = {
        "means": (0.1, 0.1, 0.2),
        "shares": (1 / 3,) * 3,
        "runs": 5,
        "max_step": 1.0,
    }
    plain, explores = cost(**three), cost(**three, sampling="exploration")
    assert plain.best_share[-1] > 0.85
    assert 0.4 < explores.best_share[-1] < 0.6
    assert cost(**three, floors=(0.3, 0.05, 0.05)).best_share[-1] < 0.66


def test_outcomes_that_come_late_make_it_slow() -> None:
    at_once, late = cost(runs=20), cost(runs=20, lag=4)
    assert set(late.best_share[:5]) == {0.5}
    assert late.lost_bandit > at_once.lost_bandit


def test_the_same_seed_gives_the_same_answer() -> None:
    assert cost(runs=5, seed=3) == cost(runs=5, seed=3)
    assert cost(runs=5, seed=3) != cost(runs=5, seed=4)


def test_few_units_and_extreme_rates_have_answers() -> None:
    few = cost(units=20, steps=20, runs=3)
    assert few.power_bandit == 0.0
    sure = cost(means=(0.0, 1.0), runs=3)
    assert sure.best == 1
    assert sure.lost_bandit < sure.lost_fixed


def test_progress_is_told_after_every_run() -> None:
    heard: list[tuple[int, int]] = []
    plan = planned(units=1_000, effect={"relative": 0.5})
    found = with_bandit(plan, Simulation(runs=3, steps=2), lambda *told: heard.append(told))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert found.bandit is not None
    assert found.bandit.means == pytest.approx((0.1, 0.15))
    with pytest.raises(ValueError, match="2 runs"):
        cost(runs=1)


def test_the_setting_follows_the_plan_and_its_policy() -> None:
    plan = planned(
        units=10_000,
        effect={"relative": 0.2},
        weights=[2, 1, 1],
        units_per_day=1_000,
        window="1d",
        policy={"kind": "thompson", "every": "2d", "floor": 0.1},
    )
    what = setting(plan, Simulation(steps=20))
    assert (what.steps, what.lag) == (5, 1)  # ten days, a move every two, a day until it knows
    assert what.means == pytest.approx((0.1, 0.1, 0.12))
    assert (what.shares, what.floor, what.alpha) == ((0.5, 0.25, 0.25), 0.1, 0.025)
    assert (what.best, what.rival) == (2, 2)
    often = setting(planned(units=10_000, effect={"relative": 0.2}), Simulation(steps=20))
    assert (often.steps, often.lag) == (20, 0)
    worst = setting(plan, Simulation(means=(0.3, 0.1, 0.2)))
    assert (worst.best, worst.rival) == (0, 2)


RATIO = {
    "kind": "ratio",
    "numerator": {"mean": 1, "sd": 1},
    "denominator": {"mean": 2, "sd": 1},
}


@pytest.mark.parametrize(
    ("fields", "simulation", "wrong"),
    [
        ({"metric": RATIO, "units": 100}, {}, ["policy"]),
        ({"units": 100, "cuped": {"correlation": 0.5}}, {}, ["policy"]),
        ({"effect": {"absolute": 1e-9}}, {}, ["units"]),
        ({"units": 100}, {"means": [0.1, 0.2, 0.3]}, ["simulation.means"]),
        ({"units": 100}, {"means": [0.1, 1.2]}, ["simulation.means"]),
        (
            {"units": 100, "policy": {"kind": "thompson", "floor": 0.6}},
            {"means": [0.5]},
            ["policy.floor", "simulation.means"],
        ),
        (
            {"units": 100, "policy": {"kind": "thompson", "pin_control": 0.99}},
            {},
            ["policy.pin_control"],
        ),
        (
            {"units": 100, "policy": {"kind": "thompson", "floors": [0.7, 0.4]}},
            {},
            ["policy.floors"],
        ),
        (
            {"units": 100, "policy": {"kind": "thompson", "floors": [0.1, 0.1, 0.1]}},
            {},
            ["policy.floors"],
        ),
    ],
)
def test_what_does_not_go_with_a_bandit_is_named(
    fields: dict[str, Any], simulation: dict[str, Any], wrong: list[str]
) -> None:
    stated = decode(Simulation, simulation).value
    with pytest.raises(ProblemError) as error:
        setting(planned(**fields), stated)
    assert [problem.path for problem in error.value.errors] == wrong


def test_the_defaults_are_those_of_an_experiment() -> None:
    assert BanditPolicy().floor == 0.05
    assert setting(planned(units=1_000), Simulation()).warmup == 100
