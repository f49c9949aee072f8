"""What a planner is asked: the metric as it is expected, the effect that matters, the traffic."""

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from analysis.inference.kinds import Goal, Sampling
from experiments.model import Duration, ExperimentKey, Key, Margin, Probability, Share

ReadingName: TypeAlias = Literal["fixed", "planned", "continuous"]
"""The readings that a size can be planned for; a Bayesian one bounds no error rate."""

READINGS: Final[tuple[ReadingName, ...]] = ("fixed", "planned", "continuous")
MOST_UNITS: Final = 10**12
"""More than anybody has: a plan that needs more is not one."""
MOST_RUNS: Final = 20_000
"""Of a simulation."""

Positive: TypeAlias = Annotated[float, Meta(ge=1e-30, le=1e30)]
Number: TypeAlias = Annotated[float, Meta(ge=-1e30, le=1e30)]
Alpha: TypeAlias = Annotated[float, Meta(ge=1e-9, le=0.5)]
Weight: TypeAlias = Annotated[float, Meta(ge=1e-6, le=1e6)]
Spread: TypeAlias = Annotated[float, Meta(ge=0, le=1e30)]
Correlation: TypeAlias = Annotated[float, Meta(gt=-1, lt=1)]
Units: TypeAlias = Annotated[int, Meta(ge=2, le=MOST_UNITS)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a request: immutable, and strict about what it is called with."""


class Proportion(_Part, frozen=True, tag_field="kind", tag="proportion"):
    """A share of units; `baseline` is the control's."""

    baseline: Probability


class Mean(_Part, frozen=True, tag_field="kind", tag="mean"):
    """A mean over units; `baseline` is the control's, `sd` the standard deviation of one unit."""

    baseline: Number
    sd: Positive


class Component(_Part, frozen=True):
    """The numerator or the denominator of a ratio: its mean and standard deviation over units."""

    mean: Number
    sd: Spread


class Ratio(_Part, frozen=True, tag_field="kind", tag="ratio"):
    """A ratio of two means over units, with the correlation of the two within a unit."""

    numerator: Component
    denominator: Component
    correlation: Annotated[float, Meta(ge=-1, le=1)] = 0.0


MetricSpec: TypeAlias = Proportion | Mean | Ratio


class Cuped(_Part, frozen=True):
    """A covariate from before enrolment, by its correlation with the outcome of a unit (for a
    ratio: of the linearised ones)."""

    correlation: Correlation


class BanditPolicy(_Part, frozen=True, tag_field="kind", tag="thompson"):
    """The bandit to simulate; the fields are those of the policy `thompson` of an experiment, but
    that `floors` are of all variants, the control first, since a plan's variants have no keys."""

    every: Duration = "1h"
    floor: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    warmup: Annotated[int, Meta(ge=2, le=MOST_UNITS)] = 100
    max_step: Annotated[float, Meta(gt=0, le=1)] = 0.2
    floors: Annotated[tuple[Share, ...], Meta(min_length=2, max_length=64)] | None = None
    pin_control: Probability | None = None
    sampling: Sampling = "thompson"


class Simulation(_Part, frozen=True):
    """How a bandit is simulated.

    Arguments:
        means: what the variants are in truth, the control first: rates of a proportion, means of a
            mean. None stands for the effect in the last variant, and none in the others.
        runs: how many experiments are simulated.
        steps: how often the bandit may move in one of them, at most. A policy that moves more often
            is simulated with this many moves.
        seed: of the random numbers: the same one gives the same answer.
    """

    means: Annotated[tuple[Number, ...], Meta(min_length=2, max_length=64)] | None = None
    runs: Annotated[int, Meta(ge=2, le=MOST_RUNS)] = 100
    steps: Annotated[int, Meta(ge=2, le=200)] = 20
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class PlanRequest(_Part, frozen=True):
    """The body of `POST /v1/plan`.

    What is left out is asked for: without `units` the number of units that shows the `effect` with
    the `power`; without `effect` the smallest effect that `units` can show; with both the power.
    An `experiment` stands for all that is not stated: its metric as observed, its traffic, its
    analysis plan, weights and policy.

    Arguments:
        metric: as expected, and `goal` which way of it is the better one.
        experiment, metric_key: of which the metric is observed; the first primary one by default.
        cuped: the covariate, if there will be one.
        effect: the size of the effect to find, above 0, in the direction of the goal: absolute in
            the metric's unit, or relative to the size of the baseline.
        units: to be enrolled, over all variants.
        weights: how they are split, the control first.
        alpha: of the experiment. With `correction` holm each comparison gets its share over
            (variants - 1) x primary metrics, which is Holm's first step.
        reading: that the decision will stand on; all three are compared.
        looks: shares of the units at which a planned reading looks.
        units_per_day: that come, over all variants.
        window: of the metric: the last unit has finished so much after its enrolment.
        policy, simulation: a bandit whose cost is simulated.
    """

    metric: MetricSpec | None = None
    experiment: ExperimentKey | None = None
    metric_key: Key | None = None
    goal: Goal | None = None
    cuped: Cuped | None = None
    effect: Margin | None = None
    units: Units | None = None
    weights: Annotated[tuple[Weight, ...], Meta(min_length=2, max_length=64)] | None = None
    alpha: Alpha | None = None
    power: Probability | None = None
    correction: Literal["holm", "none"] | None = None
    primary_metrics: Annotated[int, Meta(ge=1, le=64)] | None = None
    reading: ReadingName | None = None
    looks: (
        Annotated[tuple[Annotated[float, Meta(gt=0, le=1)], ...], Meta(min_length=1, max_length=20)]
        | None
    ) = None
    units_per_day: Positive | None = None
    window: Duration | None = None
    policy: BanditPolicy | None = None
    simulation: Simulation | None = None
