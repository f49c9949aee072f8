"""A plan: how many units, for how long, to show which effect, and what each reading costs. Pure."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from analysis.inference.planned import EQUAL_LOOKS, boundaries
from analysis.inference.sequence import MIN_UNITS_PER_ARM
from analysis.planning.answer import (
    Asked,
    Expected,
    Plan,
    PlannedLook,
    PowerPoint,
    ReadingCost,
    Traffic,
)
from analysis.planning.effects import direction, expected, largest, size
from analysis.planning.power import Design, detectable, prospect, units_for
from analysis.planning.request import (
    MOST_UNITS,
    READINGS,
    PlanRequest,
    ReadingName,
)
from experiments.definition import LEAST_BETWEEN_LOOKS
from experiments.model import AnalysisPlan, Margin, parse_duration
from experiments.problems import FieldProblem, invalid

_DEFAULTS: Final = AnalysisPlan()
_POINTS: Final = 21
_LARGEST_EFFECT: Final = 1e30
_SMALL_COUNT: Final = 10.0
"""Units of an outcome below which the fixed reading turns to exact methods, which have less
power."""
_SECONDS_A_DAY: Final = 86_400.0
_WEEK: Final = 7.0


class Observed(msgspec.Struct, frozen=True):
    """What an experiment has shown: stands for what a request does not state.

    Arguments:
        metric: as observed, its covariate in `variance_left`; None where the request states it.
        traffic: the units that came, and in how many days.
        units_per_day: None where too little time has passed to tell.
    """

    metric: Expected | None
    traffic: Traffic
    units_per_day: float | None


def make_plan(request: PlanRequest, observed: Observed | None = None) -> Plan:
    """The plan that a request asks for.

    Arguments:
        request: checked field by field already.
        observed: what `experiment` has shown; the request's own fields come before it.

    Raises:
        ProblemError: `invalid`, with every field that is missing or contradicts another.
    """
    metric = _metric(request, observed)
    problems = [*_metric_problems(request, metric), *_shape_problems(request)]
    if metric is None or problems:
        raise invalid(problems)
    goals = _goals(request, metric)
    design, reading, power = goals.design, goals.reading, goals.power
    effect = None if request.effect is None else _difference(metric, request.effect)
    units = request.units
    asked: Asked = "power"
    if effect is None and units is not None:
        asked, effect = "effect", detectable(design, reading, units, power)
    elif effect is not None and units is None:
        found = units_for(design, reading, effect, power)
        asked, units = "units", None if found is None else _enough(found, goals.shares)
    per_day = request.units_per_day or (None if observed is None else observed.units_per_day)
    clock = _Clock(per_day, _window_days(request))
    plan = Plan(
        asked=asked,
        metric=metric,
        reading=reading,
        alpha=goals.alpha,
        alpha_each=design.alpha,
        comparisons=goals.comparisons,
        target_power=power,
        weights=goals.shares,
        effect=None if effect is None else size(metric, effect),
        units=units,
        units_by_variant=() if units is None else _by_variant(units, goals.shares),
        days=clock.days(units),
        power=_power(design, reading, effect, units),
        units_per_day=per_day,
        window=request.window,
        traffic=None if observed is None else observed.traffic,
        policy=request.policy,
        readings=tuple(_cost(goals, other, effect, units, clock) for other in READINGS),
        curve=_curve(design, effect, units),
    )
    return msgspec.structs.replace(plan, notes=tuple(_notes(plan, design, request)))


class _Goals(msgspec.Struct, frozen=True):
    """What is wanted, with the defaults of all that was not stated.

    Arguments:
        design: of the comparison that has the least power.
        shares: of the units that each variant gets, the control first.
        power: that is wanted, and `reading` of which.
        alpha: of all `comparisons` together.
    """

    design: Design
    shares: tuple[float, ...]
    power: float
    reading: ReadingName
    alpha: float
    comparisons: int


def _goals(request: PlanRequest, metric: Expected) -> _Goals:
    weights = request.weights or (1.0, 1.0)
    shares = tuple(weight / math.fsum(weights) for weight in weights)
    comparisons = (len(weights) - 1) * (request.primary_metrics or 1)
    alpha = request.alpha or _DEFAULTS.alpha
    each = alpha if request.correction == "none" else alpha / comparisons
    # The treatment with the least traffic needs the most units.
    design = Design(metric, shares[0], min(shares[1:]), each, request.looks or EQUAL_LOOKS)
    return _Goals(
        design=design,
        shares=shares,
        power=request.power or _DEFAULTS.power,
        reading=request.reading or "continuous",
        alpha=alpha,
        comparisons=comparisons,
    )


class _Clock(msgspec.Struct, frozen=True):
    """Turns units into days."""

    units_per_day: float | None
    window_days: float

    def days(self, units: int | None) -> float | None:
        """Until so many units have come and finished."""
        if units is None or self.units_per_day is None:
            return None
        return units / self.units_per_day + self.window_days


def _window_days(request: PlanRequest) -> float:
    if request.window is None:
        return 0.0
    return parse_duration(request.window).total_seconds() / _SECONDS_A_DAY


def _metric(request: PlanRequest, observed: Observed | None) -> Expected | None:
    """The metric that is planned for; None where it cannot be made out."""
    goal = request.goal or "increase"
    if request.metric is not None:
        try:
            return expected(request.metric, goal, request.cuped)
        except ValueError:
            return None
    metric = None if observed is None else observed.metric
    if metric is None:
        return None
    if request.goal is not None:
        metric = msgspec.structs.replace(metric, goal=goal)
    if request.cuped is not None:
        metric = msgspec.structs.replace(metric, variance_left=1.0 - request.cuped.correlation**2)
    return metric


def _metric_problems(request: PlanRequest, metric: Expected | None) -> Iterable[FieldProblem]:
    """What is wrong with the metric, and with an effect on it."""
    if metric is None:
        if request.metric is None:
            yield FieldProblem(
                "metric", "missing", "give a `metric`, or an `experiment` to observe"
            )
            return
        try:
            expected(request.metric, "increase")
        except ValueError as error:
            yield FieldProblem("metric", "value", str(error))
        return
    if request.effect is not None and _is_one_size(request.effect):
        if request.effect.relative is not None and metric.baseline == 0.0:
            detail = "a relative effect on a baseline of 0 is not defined: give it as absolute"
            yield FieldProblem("effect.relative", "conflict", detail)
        elif abs(_difference(metric, request.effect)) > largest(metric):
            rate = metric.baseline + _difference(metric, request.effect)
            detail = f"would make the rate {rate:g}, which lies outside 0 to 1"
            yield FieldProblem("effect", "conflict", detail)


def _shape_problems(request: PlanRequest) -> Iterable[FieldProblem]:
    """What contradicts itself in the other fields."""
    if request.effect is None and request.units is None:
        detail = "give the `effect` to find, or the `units` there are, or both"
        yield FieldProblem("effect", "missing", detail)
    if request.effect is not None and not _is_one_size(request.effect):
        yield FieldProblem("effect", "value", "give either `absolute` or `relative`, above 0")
    looks = request.looks
    if looks is not None and (
        looks[-1] != 1.0 or any(b - a < LEAST_BETWEEN_LOOKS for a, b in pairwise(looks))
    ):
        detail = f"must rise, by {LEAST_BETWEEN_LOOKS:g} or more each, and end with 1"
        yield FieldProblem("looks", "value", detail)


def _is_one_size(effect: Margin) -> bool:
    given = [value for value in (effect.absolute, effect.relative) if value is not None]
    return len(given) == 1 and 0.0 < given[0] <= _LARGEST_EFFECT


def _difference(metric: Expected, effect: Margin) -> float:
    """An effect as a difference for the better, in the metric's unit."""
    if effect.relative is not None:
        return direction(metric) * effect.relative * abs(metric.baseline)
    return direction(metric) * (effect.absolute or 0.0)


def _enough(units: int, shares: Sequence[float]) -> int:
    """The units of all variants, where each has its share rounded up, but for what is rounding."""
    return sum(math.ceil(units * share * (1.0 - 1e-12)) for share in shares)


def _by_variant(units: int, shares: Sequence[float]) -> tuple[int, ...]:
    """The units of each variant, by largest remainder."""
    exact = [units * share for share in shares]
    whole = [math.floor(part) for part in exact]
    order = sorted(range(len(shares)), key=lambda place: whole[place] - exact[place])
    for place in order[: units - sum(whole)]:
        whole[place] += 1
    return tuple(whole)


def _power(
    design: Design, reading: ReadingName, effect: float | None, units: int | None
) -> float | None:
    if effect is None or units is None or units < design.least_units:
        return None
    return prospect(design, reading, effect, units).power


def _cost(
    goals: _Goals,
    reading: ReadingName,
    effect: float | None,
    planned: int | None,
    clock: _Clock,
) -> ReadingCost:
    """What a reading costs: at its own units, and at those of the plan."""
    design, power = goals.design, goals.power
    units = mean_units = None
    looks: tuple[PlannedLook, ...] = ()
    found = None if effect is None else units_for(design, reading, effect, power)
    if found is not None and effect is not None:
        units = _enough(found, goals.shares)
        course = prospect(design, reading, effect, units)
        mean_units = math.ceil(units * course.mean_share)
        looks = _looks(design, units, course.by_look)
    least = None if planned is None else detectable(design, reading, planned, power)
    return ReadingCost(
        reading=reading,
        units=units,
        days=clock.days(units),
        mean_units=mean_units,
        mean_days=clock.days(mean_units),
        power=_power(design, reading, effect, planned),
        detectable=None if least is None else size(design.metric, least),
        looks=looks,
    )


def _looks(design: Design, units: int, by_look: Sequence[float]) -> tuple[PlannedLook, ...]:
    """The looks of a planned reading; none of another, which has no chances by look."""
    bounds = boundaries(design.looks, design.alpha)
    return tuple(
        PlannedLook(share, math.ceil(share * units), bound if math.isfinite(bound) else None, ended)
        for share, bound, ended in zip(design.looks, bounds, by_look, strict=False)
    )


def _curve(design: Design, effect: float | None, units: int | None) -> tuple[PowerPoint, ...]:
    if effect is None or units is None or units < design.least_units:
        return ()
    reach = math.copysign(min(2.0 * abs(effect), largest(design.metric)), effect)
    points = []
    for number in range(_POINTS):
        difference = reach * number / (_POINTS - 1)
        fixed, planned, continuous = (
            prospect(design, reading, difference, units).power for reading in READINGS
        )
        points.append(PowerPoint(size(design.metric, difference), fixed, planned, continuous))
    return tuple(points)


def _notes(plan: Plan, design: Design, request: PlanRequest) -> Iterable[str]:
    """What one has to know to use the plan."""
    metric = plan.metric
    if plan.comparisons > 1 and plan.alpha_each < plan.alpha:
        yield (
            f"The alpha of {plan.alpha:g} is shared over {plan.comparisons} comparisons, "
            f"{plan.alpha_each:g} each. That is Holm's first step, so it is on the safe side: once "
            "one comparison is significant, the others get more."
        )
    if len(plan.weights) > 2:
        yield (
            "The power is that of the comparison of the smallest treatment with the control; the "
            "others have more."
        )
    if metric.variance_left < 1.0:
        yield (
            f"The covariate is expected to leave {metric.variance_left:.3g} of the variance; units "
            "without a history gain nothing by it."
        )
        if metric.kind == "proportion":
            yield (
                "Proportions take no covariate in an experiment: define this one as a mean, "
                "`aggregate: count` with `cap: 1` and a `covariate`, to have it adjusted."
            )
    if plan.asked == "units" and plan.units is None:
        yield f"No number of units up to {MOST_UNITS:g} shows this effect with this power."
    if plan.asked == "effect" and plan.effect is None:
        yield "So few units show no effect, however large, with this power."
    yield from _reading_notes(plan, design)
    if plan.days is not None and plan.days % _WEEK > 0.0 and plan.days > 1.0:
        weeks = math.ceil(plan.days / _WEEK)
        yield f"Behaviour follows the week: plan for whole weeks, {weeks * 7} days."
    if plan.traffic is not None and plan.traffic.days < _WEEK and request.units_per_day is None:
        yield (
            f"The traffic is that of {plan.traffic.days:.2g} days, less than a week, so it may be "
            "another on other days."
        )


def _reading_notes(plan: Plan, design: Design) -> Iterable[str]:
    if plan.units is None:
        return
    if plan.reading == "continuous":
        yield (
            "Look as often as you like, and stop when it shows: the power is that of a look after "
            f"every unit, up to {plan.units:,}."
        )
    elif plan.reading == "fixed":
        yield (
            f"Read it once, when {plan.units:,} units have finished: an earlier look is not valid."
        )
    else:
        shares = ", ".join(f"{look:g}" for look in design.looks)
        yield (
            f"It looks {len(design.looks)} times, at the shares {shares} of {plan.units:,} units, "
            "and may end at any of them."
        )
    if plan.policy is not None and plan.reading != "continuous":
        yield "An experiment with a bandit takes the continuous reading only."
    if min(plan.units_by_variant) < MIN_UNITS_PER_ARM:
        yield (
            f"The continuous reading says nothing before each arm has {MIN_UNITS_PER_ARM} units."
        )
    if plan.metric.kind == "proportion" and plan.effect is not None:
        rates = (plan.metric.baseline, plan.metric.baseline + plan.effect.absolute)
        arms = (plan.units * design.control, plan.units * design.treatment)
        counts = [n * side for n, p in zip(arms, rates, strict=True) for side in (p, 1.0 - p)]
        if min(counts) < _SMALL_COUNT:
            yield (
                f"Fewer than {_SMALL_COUNT:g} conversions, or others, are expected in an arm: the "
                "normal approximation behind these numbers is rough there, and the fixed reading "
                "turns to exact methods, which have less power."
            )
