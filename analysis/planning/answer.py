"""What a planner answers. A number that is not defined is None, and a note says why."""

from typing import Literal, TypeAlias

import msgspec

from analysis.inference.kinds import Goal, Kind
from analysis.planning.request import BanditPolicy, ReadingName

Asked: TypeAlias = Literal["units", "effect", "power"]
"""What a plan was made for."""


class EffectSize(msgspec.Struct, frozen=True):
    """A difference treatment - control, in the metric's unit and relative to |baseline|; the
    latter is None at a baseline of 0."""

    absolute: float
    relative: float | None


class Expected(msgspec.Struct, frozen=True):
    """The metric as it is planned for.

    Arguments:
        baseline: of the control.
        variance: of one unit of the control, linearised for a ratio, before a covariate.
        variance_left: the share of the variance that a covariate leaves, 1 without one.
    """

    kind: Kind
    goal: Goal
    baseline: float
    variance: float
    variance_left: float = 1.0


class PlannedLook(msgspec.Struct, frozen=True):
    """A look of a planned reading: at which share of the units, the |z| that ends it there (None
    where so early a look has no alpha to spend), and the chance to have ended by then if the effect
    is real."""

    share: float
    units: int
    boundary: float | None
    power: float


class ReadingCost(msgspec.Struct, frozen=True):
    """What a reading costs.

    Arguments:
        units, days: that show the effect with the power asked for; `units` is None where no
            number does.
        mean_units, mean_days: on average where one stops as soon as the effect shows, and it is as
            large as planned for; at least all of `units` for a fixed reading.
        power: of the effect at the units of the plan.
        detectable: the smallest effect that the units of the plan show with the power asked for.
        looks: of a planned reading, at its own units.
    """

    reading: ReadingName
    units: int | None
    days: float | None
    mean_units: int | None
    mean_days: float | None
    power: float | None
    detectable: EffectSize | None
    looks: tuple[PlannedLook, ...] = ()


class PowerPoint(msgspec.Struct, frozen=True):
    """The power of each reading to show an effect at the units of the plan."""

    effect: EffectSize
    fixed: float
    planned: float
    continuous: float


class Traffic(msgspec.Struct, frozen=True):
    """What an experiment has shown so far: the units enrolled in its run, and in how many days."""

    experiment: str
    metric: str
    units: int
    days: float


class BanditCost(msgspec.Struct, frozen=True):
    """What a bandit costs and saves, beside a split that stays as it is: over simulated runs.

    Arguments:
        runs, steps, units: how many runs, moves at most in each, and units in each.
        lost_fixed, lost_bandit: what the units lose on average, against all of them on the best
            variant: conversions of a proportion, sums of a mean.
        saved, saved_low, saved_high: `lost_fixed - lost_bandit` with its 95 % interval over runs.
        best_share: the share of traffic of the best variant after each step, on average.
        power_fixed, power_bandit: how often the difference of the best other variant from the
            control shows at the end, by the fixed reading.
        coverage_bandit: how often its 95 % interval (at the comparison's alpha) holds the truth.
        std_error_fixed, std_error_bandit: of that difference, the root of the mean square.
        units_for_precision: how many units the bandit would need for the precision of the split.
    """

    runs: int
    steps: int
    units: int
    means: tuple[float, ...]
    best: int
    lost_fixed: float
    lost_bandit: float
    saved: float
    saved_low: float
    saved_high: float
    best_share: tuple[float, ...]
    power_fixed: float
    power_bandit: float
    coverage_bandit: float
    std_error_fixed: float | None
    std_error_bandit: float | None
    units_for_precision: int | None


class Plan(msgspec.Struct, frozen=True):
    """The answer of `POST /v1/plan`.

    Arguments:
        asked: what was computed from the rest.
        alpha_each: the share of alpha of each of the `comparisons`.
        effect: that is planned for; None where no effect can be shown by the units.
        units, units_by_variant, days: of the reading that is planned for.
        power: of that reading at these units.
        window: of the metric, where it is known: it lengthens `days`.
        policy: the experiment's bandit, or the one of the request.
        curve: of the power at these units, from no effect to twice the one planned for.
    """

    asked: Asked
    metric: Expected
    reading: ReadingName
    alpha: float
    alpha_each: float
    comparisons: int
    target_power: float
    weights: tuple[float, ...]
    effect: EffectSize | None
    units: int | None
    units_by_variant: tuple[int, ...]
    days: float | None
    power: float | None
    units_per_day: float | None
    window: str | None
    traffic: Traffic | None
    policy: BanditPolicy | None
    readings: tuple[ReadingCost, ...]
    curve: tuple[PowerPoint, ...]
    bandit: BanditCost | None = None
    notes: tuple[str, ...] = ()
