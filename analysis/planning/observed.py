"""What an experiment says of itself: its plan, and its metric and traffic as observed.

Reads its definition, the row of its run, and the sums of one metric: never units or events.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from analysis.folding.caps import read_caps
from analysis.folding.cells import ALL
from analysis.folding.metrics import run_metric
from analysis.folding.totals import read_total
from analysis.inference.epoch_sums import EpochSums
from analysis.inference.kinds import Kind
from analysis.inference.linear import scores
from analysis.inference.variance import weighted_mean_variance
from analysis.planning.answer import Expected, Traffic
from analysis.planning.plan import Observed
from analysis.planning.request import BanditPolicy, PlanRequest
from experiments.model import Experiment, Metric, QuantileMetric, ThompsonPolicy
from experiments.problems import FieldProblem, invalid
from experiments.records import ExperimentRecord
from experiments.store import Connection

_LEAST_SECONDS: Final = 3_600.0
"""Of a run, before its traffic says anything."""
_SECONDS_A_DAY: Final = 86_400.0
_RUN: Final = """
    select started_at, ended_at, enrolments from run where experiment = $1 and number = $2
"""
_METRIC: Final = """
    select id from run_metric where experiment = $1 and run = $2 and key = $3 and version = $4
"""


def completed(request: PlanRequest, definition: Experiment) -> PlanRequest:
    """A request with what the experiment's definition says where the request says nothing."""
    plan = definition.analysis
    metric = chosen_metric(request, definition)
    weights = [variant.weight for variant in definition.variants if not variant.control]
    given = {
        "goal": metric.goal,
        "window": metric.window,
        "weights": (definition.control.weight, *weights),
        "alpha": plan.alpha,
        "power": plan.power,
        "correction": plan.correction,
        "primary_metrics": max(1, sum(m.role == "primary" for m in definition.metrics)),
        "reading": None if plan.reading == "bayesian" else plan.reading,
        "looks": plan.looks or None,
    }
    if request.effect is None and request.units is None:
        given["effect"] = plan.effect
        given["units"] = plan.units if plan.effect is None else None
    if isinstance(definition.policy, ThompsonPolicy):
        policy = definition.policy
        given["policy"] = BanditPolicy(
            every=policy.every,
            floor=policy.floor,
            warmup=policy.warmup,
            max_step=policy.max_step,
            floors=_floors(policy, definition),
            pin_control=policy.pin_control,
            sampling=policy.sampling,
        )
    missing = {name: value for name, value in given.items() if getattr(request, name) is None}
    filled = msgspec.structs.replace(request, **missing)
    if min(filled.weights or (1.0,)) <= 0.0:
        detail = "a variant of the experiment has no weight: state the `weights` to plan with"
        raise invalid([FieldProblem("weights", "conflict", detail)])
    return filled


def not_simulated(definition: Experiment) -> tuple[str, ...]:
    """What a plan's simulation leaves out of an experiment's bandit, in words."""
    policy = definition.policy
    if not isinstance(policy, ThompsonPolicy):
        return ()
    options = {"half_life": policy.half_life, "stop": policy.stop}
    named = [f"`{name}`" for name, value in options.items() if value is not None]
    if not named:
        return ()
    return (
        f"The simulated bandit has no {' and no '.join(named)}: the truth does not drift, and all "
        "planned units come.",
    )


def _floors(policy: ThompsonPolicy, definition: Experiment) -> tuple[float, ...] | None:
    """The floors of single variants, the control first."""
    if not policy.floors:
        return None
    control = definition.control.key
    keys = [control, *(variant for variant in definition.weights if variant != control)]
    return tuple(max(policy.floor, policy.floors.get(key, 0.0)) for key in keys)


def chosen_metric(request: PlanRequest, definition: Experiment) -> Metric:
    """The metric that a request is about: the one it names, or the first primary one.

    Raises:
        ProblemError: `invalid`, where the experiment has none, or not that one.
    """
    found = [
        metric
        for metric in definition.metrics
        if (
            metric.role == "primary"
            if request.metric_key is None
            else metric.key == request.metric_key
        )
    ]
    if not found:
        wanted = "primary metric" if request.metric_key is None else "such metric"
        detail = f"the experiment {definition.key} has no {wanted}"
        raise invalid([FieldProblem("metric_key", "reference", detail)])
    return found[0]


async def observe(
    connection: Connection, record: ExperimentRecord, request: PlanRequest, now: datetime
) -> Observed:
    """The traffic of the experiment's run, and, unless the request states it, the metric.

    Raises:
        ProblemError: `invalid`, where nothing has been observed yet that could stand for it.
    """
    run = await connection.fetchrow(_RUN, record.id, record.run)
    plan = await read_caps(connection, record.id, record.run, record.definition)
    definition = chosen_metric(request, plan)
    seconds, units = 0.0, 0
    if run is not None:
        seconds = ((run["ended_at"] or now) - run["started_at"]).total_seconds()
        units = run["enrolments"]
    told = seconds >= _LEAST_SECONDS and units > 0
    metric = None
    if request.metric is None:
        metric = await _metric(connection, record, definition)
        if metric is None:
            detail = (
                f"{definition.key} of {record.key} has not been observed enough to plan with: "
                "state the `metric`"
            )
            raise invalid([FieldProblem("metric", "missing", detail)])
    return Observed(
        metric=metric,
        traffic=Traffic(record.key, definition.key, units, seconds / _SECONDS_A_DAY),
        units_per_day=units * _SECONDS_A_DAY / seconds if told else None,
    )


async def _metric(
    connection: Connection, record: ExperimentRecord, definition: Metric
) -> Expected | None:
    if isinstance(definition, QuantileMetric):
        detail = "the units for a quantile cannot be planned: choose another metric"
        raise invalid([FieldProblem("metric_key", "unsupported", detail)])
    made = run_metric(definition)
    number = await connection.fetchval(_METRIC, record.id, record.run, made.key, made.version)
    if number is None:
        return None
    total = await read_total(connection, number, ALL)
    variants = list(record.definition.weights)
    observed = expected_of(total.together, variants, record.definition.control.key, made.kind)
    return None if observed is None else msgspec.structs.replace(observed, goal=definition.goal)


def expected_of(
    sums: EpochSums, variants: Sequence[str], control: str, kind: Kind
) -> Expected | None:
    """The control's metric, as sums over epochs have it; None while it has no variance.

    Arguments:
        sums: over the epochs in which all `variants` have units.
        control: the key of the control.
        kind: proportion, mean or ratio.
    """
    read = scores(sums, variants, kind) if sums.epochs else None
    if read is None:
        return None
    score = read.arms[control]
    plain = weighted_mean_variance(sums, control, kind, form=score.unadjusted)
    adjusted = weighted_mean_variance(sums, control, kind, form=score.weights)
    if plain is None or adjusted is None or min(plain.pooled, adjusted.pooled) <= 0.0:
        return None
    if kind == "proportion":
        rate = float(score.level)
        return Expected(kind, "increase", rate, rate * (1.0 - rate))
    left = 1.0 if score.weights == score.unadjusted else adjusted.pooled / plain.pooled
    return Expected(kind, "increase", float(score.level), plain.pooled, min(1.0, left))
