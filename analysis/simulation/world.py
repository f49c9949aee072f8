"""The world that an experiment is played in: what is true of each variant, and when it changes.

It stands beside the definition, in the same file:

    truth:
      traffic: 50/s
      length: 2d
      metrics:
        click: {v6: 0.10, v7: 0.11}
        errors: {v6: 0.01, v7: {value: 0.01, then: 0.30, at: 6h}}
        revenue: {v6: {value: 20, sd: 50}, v7: {value: 21, sd: 50}}
      drift:
        click: {amplitude: 0.02, period: 1d}
"""

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

from experiments import paths
from experiments.decoding import decode
from experiments.definition import parse_definition
from experiments.model import (
    Duration,
    Experiment,
    Key,
    MeanMetric,
    Metric,
    ProportionMetric,
    QuantileCap,
    QuantileMetric,
    RatioMetric,
    ThompsonPolicy,
    parse_duration,
)
from experiments.problems import FieldProblem, ProblemError, invalid

Rate: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]+(\.[0-9]+)?/(s|m|h|d)$(?!\n)",
        description="units in a time: 50/s, 3000/m, 20000/h or 500000/d",
    ),
]
Positive: TypeAlias = Annotated[float, Meta(gt=0)]
MOST_UNITS: Final = 1e10
"""Of a run: more are not needed to tell anything apart."""
LEAST_QUANTILE: Final = 1e-9
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a world: immutable, and strict about what it is called with."""


class Law(_Part, frozen=True):
    """What a metric comes to for the units of a variant.

    Arguments:
        value: the rate of a proportion, a mean, a ratio, or the quantile.
        then, at: from this time of the run on, another value.
        sd: of a unit's value, of a mean; unless said, as large as the value.
        per_unit: how much of a ratio's denominator a unit has on average.
        spread: of the logarithm of a unit's value, of a quantile.
        delay: how long after its enrolment a unit's outcome comes, on average; it is exponential.
            What comes after the window does not count.
    """

    value: float
    then: float | None = None
    at: Duration | None = None
    sd: Positive | None = None
    per_unit: Positive = 1.0
    spread: Positive = 0.5
    delay: Duration | None = None


class Drift(_Part, frozen=True):
    """What is added to a metric's value in all variants alike: a wave, and a slope."""

    amplitude: float = 0.0
    period: Duration = "1d"
    a_day: float = 0.0


class Truth(_Part, frozen=True):
    """All that is true of an experiment. `traffic` is what comes for 100 % of the slots."""

    traffic: Rate
    length: Duration
    metrics: dict[Key, dict[Key, float | Law]]
    drift: dict[Key, Drift] = {}

    @property
    def units_a_second(self) -> float:
        """How many units come in a second."""
        number, _, unit = self.traffic.partition("/")
        return float(number) / _SECONDS[unit]

    @property
    def seconds(self) -> float:
        """How long a run lasts, if nothing ends it."""
        return parse_duration(self.length).total_seconds()

    def law(self, metric: str, variant: str) -> Law:
        """What a metric comes to for the units of a variant."""
        law = self.metrics[metric][variant]
        return law if isinstance(law, Law) else Law(value=law)

    def value(self, metric: str, variant: str, at: float) -> float:
        """The value that is stated for units that are enrolled so many seconds after the start."""
        law, drift = self.law(metric, variant), self.drift.get(metric, Drift())
        value = law.value
        if law.then is not None and law.at is not None:
            value = law.then if at >= parse_duration(law.at).total_seconds() else value
        period = parse_duration(drift.period).total_seconds()
        wave = drift.amplitude * math.sin(2.0 * math.pi * at / period)
        return value + wave + drift.a_day * at / 86_400.0

    def finished(self, metric: Metric, variant: str, at: float) -> float:
        """What a metric comes to for these units once they have finished: what comes after the
        window does not count, and no drift takes a rate beyond 0 or 1, or what has no sign below 0.
        """
        value, delay = self.value(metric.key, variant, at), self.law(metric.key, variant).delay
        match metric:
            case ProportionMetric():
                within = 1.0
                if delay is not None:
                    within = -math.expm1(-window_of(metric) / parse_duration(delay))
                return min(max(value, 0.0), 1.0) * within
            case MeanMetric():
                return value
            case RatioMetric():
                return max(value, 0.0)
            case _:
                return max(value, LEAST_QUANTILE)


class Scene(msgspec.Struct, frozen=True):
    """An experiment, and what is true of it."""

    definition: Experiment
    truth: Truth

    @property
    def played(self) -> tuple[Metric, ...]:
        """The metrics that are drawn: those that are stated."""
        return tuple(m for m in self.definition.metrics if m.key in self.truth.metrics)


def read_scene(data: object) -> Scene:
    """The scene that a document holds: an experiment, with `truth` beside its other fields.

    Raises:
        ProblemError: `invalid`, with every wrong field.
    """
    if not isinstance(data, dict):
        raise invalid([FieldProblem(paths.ROOT, "type", "must be an object: an experiment")])
    rest: dict[str, Any] = {name: value for name, value in data.items() if name != "truth"}
    problems: list[FieldProblem] = []
    definition: Experiment | None = None
    try:
        definition = parse_definition(rest)
    except ProblemError as error:
        problems += error.errors
    if "truth" not in data:
        detail = "say what is true: `traffic`, `length` and `metrics`"
        raise invalid([*problems, FieldProblem("truth", "missing", detail)])
    truth = decode(Truth, data["truth"])
    problems += [
        FieldProblem(paths.field("truth", problem.path), problem.type, problem.detail)
        for problem in truth.problems
    ]
    if definition is not None and not truth.problems:
        problems += _problems(definition, truth.value)
    if problems or definition is None:
        raise invalid(problems)
    return Scene(definition, truth.value)


def _problems(definition: Experiment, truth: Truth) -> Iterator[FieldProblem]:
    """What does not go together."""
    units = truth.units_a_second * truth.seconds
    if not 1.0 <= units <= MOST_UNITS:
        detail = f"{units:,.0f} units would come in {truth.length}: from 1 to {MOST_UNITS:,.0f} can"
        yield FieldProblem("truth.traffic", "value", detail)
    metrics = {metric.key: metric for metric in definition.metrics}
    for part, named in (("metrics", truth.metrics), ("drift", truth.drift)):
        for key in named.keys() - metrics.keys():
            detail = f"the experiment has no such metric; there are {', '.join(metrics)}"
            yield FieldProblem(f"truth.{part}.{key}", "reference", detail)
    followed = {m.key for m in definition.metrics if m.role == "guardrail"}
    if isinstance(definition.policy, ThompsonPolicy):
        followed.add(definition.policy.metric)
    for key in sorted(followed - truth.metrics.keys()):
        detail = "the controller decides by this metric: say what it comes to"
        yield FieldProblem(f"truth.metrics.{key}", "missing", detail)
    for key in truth.metrics.keys() & metrics.keys():
        yield from _metric_problems(definition, truth, metrics[key])


def _metric_problems(
    definition: Experiment, truth: Truth, metric: Metric
) -> Iterator[FieldProblem]:
    path = f"truth.metrics.{metric.key}"
    yield from _unplayable(metric, path)
    stated = truth.metrics[metric.key]
    for variant in definition.weights.keys() - stated.keys():
        yield FieldProblem(f"{path}.{variant}", "missing", "say what the metric comes to for it")
    for variant in stated:
        place = f"{path}.{variant}"
        if variant not in definition.weights:
            detail = f"no such variant; there are {', '.join(definition.weights)}"
            yield FieldProblem(place, "reference", detail)
            continue
        law = truth.law(metric.key, variant)
        if (law.then is None) is not (law.at is None):
            yield FieldProblem(place, "conflict", "`then` and `at` go together")
            continue
        values = [law.value] if law.then is None else [law.value, law.then]
        if isinstance(metric, ProportionMetric) and not all(0 <= v <= 1 for v in values):
            yield FieldProblem(place, "value", "is a proportion: from 0 to 1")
        if isinstance(metric, RatioMetric | QuantileMetric) and not all(v > 0 for v in values):
            yield FieldProblem(place, "value", "must be above 0")
        if law.delay is not None and not isinstance(metric, ProportionMetric):
            detail = "only the outcomes of a proportion can come late here"
            yield FieldProblem(f"{place}.delay", "conflict", detail)


def _unplayable(metric: Metric, path: str) -> Iterator[FieldProblem]:
    """What of a metric cannot be drawn."""
    if metric.scope == "exposure":
        detail = "guardrails of the scope `exposure` are not simulated: leave the scope out"
        yield FieldProblem(path, "unsupported", detail)
    if isinstance(metric, MeanMetric | RatioMetric) and metric.covariate is not None:
        detail = "a covariate is not simulated: leave it out, and state the spread that it leaves"
        yield FieldProblem(path, "unsupported", detail)
    if isinstance(metric, MeanMetric) and isinstance(metric.cap, QuantileCap | float | int):
        detail = "a cap is not simulated: leave it out, and state the mean and the spread with it"
        yield FieldProblem(path, "unsupported", detail)


def window_of(metric: Metric) -> timedelta:
    """How long a unit of a metric takes to finish."""
    return parse_duration(metric.window)
