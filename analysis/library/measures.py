"""What is measured of each unit: metrics by the columns that hold their numbers."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from experiments.model import (
    AnalysisPlan,
    Experiment,
    Goal,
    MeanMetric,
    Metric,
    ProportionMetric,
    QuantileCap,
    QuantileMetric,
    RatioMetric,
    Role,
    Variant,
)

BEFORE: Final = "_before"
"""A definition names a covariate by its time, not by its column: that is the event's, with this."""

SOME_TIME: Final = "1d"
"""A definition needs lengths of time, which numbers that are there already do not have."""


class Measure(msgspec.Struct, frozen=True):
    """A metric, and the columns of a unit's numbers: the outcome (numerator and denominator of a
    ratio), then the covariates in the same order."""

    metric: Metric
    columns: tuple[str, ...]


class Measurable(msgspec.Struct, frozen=True, kw_only=True):
    """A metric by its columns: one of `Proportion`, `Mean`, `Ratio` and `Quantile`.

    Arguments:
        key: names the metric in the report; made of the columns where it is not given.
        role: only primary metrics decide, and Holm's correction is over these.
        goal: which way is the better one.
    """

    key: str | None = None
    role: Role = "primary"
    goal: Goal = "increase"

    def measure(self) -> Measure:
        """It as a metric of a definition.

        Raises:
            ValueError: for what the metric cannot be.
        """
        raise NotImplementedError  # the four kinds of metrics each say their own


class Proportion(Measurable, frozen=True):
    """The share of the units with a 1 in the column, which holds zeros and ones."""

    column: str

    def measure(self) -> Measure:
        """It as a metric of a definition."""
        key = self.key or self.column
        metric = ProportionMetric(
            key=key, role=self.role, goal=self.goal, window=SOME_TIME, event=self.column
        )
        return Measure(metric, (self.column,))


class Mean(Measurable, frozen=True):
    """The mean of the column, of which no unit counts more than `cap`: a number, or a quantile of
    the values of all variants together. With a `covariate`, a column with something that was known
    before the unit met its variant, the mean is adjusted by it (CUPED)."""

    column: str
    covariate: str | None = None
    cap: float | QuantileCap | None = None

    def measure(self) -> Measure:
        """It as a metric of a definition.

        Raises:
            ValueError: for a cap that is not above 0 and finite, or at no quantile.
        """
        if isinstance(self.cap, QuantileCap):
            share = self.cap.quantile
            if not 0.0 < share < 1.0:
                raise ValueError(f"a cap at a quantile, such as p99, is at none of {share:g}")
        elif self.cap is not None and not 0.0 < self.cap < math.inf:
            raise ValueError(f"a cap is above 0 and finite, not {self.cap:g}")
        metric = MeanMetric(
            key=self.key or self.column,
            role=self.role,
            goal=self.goal,
            window=SOME_TIME,
            event=self.column,
            cap=self.cap,
            covariate=None if self.covariate is None else SOME_TIME,
        )
        before = () if self.covariate is None else (self.covariate,)
        return Measure(metric, (self.column, *before))


class Ratio(Measurable, frozen=True):
    """The sum of one column over the sum of another; `covariate` names the two columns with the
    same of an earlier time."""

    numerator: str
    denominator: str
    covariate: tuple[str, str] | None = None

    def measure(self) -> Measure:
        """It as a metric of a definition."""
        metric = RatioMetric(
            key=self.key or f"{self.numerator}_per_{self.denominator}",
            role=self.role,
            goal=self.goal,
            window=SOME_TIME,
            numerator=self.numerator,
            denominator=self.denominator,
            covariate=None if self.covariate is None else SOME_TIME,
        )
        return Measure(metric, (self.numerator, self.denominator, *(self.covariate or ())))


class Quantile(Measurable, frozen=True):
    """A quantile of the column, over the units that have a value there."""

    column: str
    quantile: float

    def measure(self) -> Measure:
        """It as a metric of a definition.

        Raises:
            ValueError: for a quantile outside (0, 1).
        """
        if not 0.0 < self.quantile < 1.0:
            raise ValueError(f"a quantile lies strictly between 0 and 1, not at {self.quantile}")
        metric = QuantileMetric(
            key=self.key or f"{self.column}_p{100 * self.quantile:g}",
            role=self.role,
            goal=self.goal,
            window=SOME_TIME,
            event=self.column,
            quantile=self.quantile,
        )
        return Measure(metric, (self.column,))


def measure_of(metric: Metric) -> Measure:
    """A metric of a definition, read from the columns that are named as its events are; covariates
    from those with `_before` after that."""
    outcome: tuple[str, ...]
    match metric:
        case RatioMetric():
            outcome = (metric.numerator, metric.denominator)
        case _:
            outcome = (metric.event,)
    if isinstance(metric, MeanMetric | RatioMetric) and metric.covariate is not None:
        return Measure(metric, (*outcome, *(name + BEFORE for name in outcome)))
    return Measure(metric, outcome)


def definition_of(
    name: str,
    metrics: Sequence[Metric],
    control: str,
    weights: dict[str, float],
    record: Sequence[str],
    plan: AnalysisPlan,
) -> Experiment:
    """The experiment that nobody defined: of these variants and metrics, analysed by this plan.

    Raises:
        ValueError: when two metrics have one key.
    """
    keys = [metric.key for metric in metrics]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"two metrics have the key {key!r}: name them")
    return Experiment(
        key=name,
        variants=tuple(
            Variant(key=key, value=key, weight=weight, control=key == control)
            for key, weight in weights.items()
        ),
        metrics=tuple(metrics),
        record=tuple(record),
        analysis=plan,
    )
