"""What an experiment is: the definition that a product team writes, as Structs.

Nothing here checks more than shapes and ranges of single fields; `experiments.definition` checks a
definition as a whole and names every wrong field at once.
"""

import re
from datetime import timedelta
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

SLOTS = 10_000
"""Equal shares of the hash space of an experiment (DESIGN 5)."""

HOLDOUT = "$holdout"
"""The key of the built-in experiment that is a project's holdout."""

TARGETING_KEY = "targetingKey"
"""Where OpenFeature's evaluation context holds the unit, unless an experiment says otherwise."""

LARGEST_VALUE = 1e30
"""The largest value of an outcome, either way: what is made of many of them stays finite."""

Key: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9_.-]{1,64}$(?!\n)",
        description="1 to 64 of a-z, 0-9, `_`, `.` and `-`",
    ),
]
ExperimentKey: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^([a-z0-9_.-]{1,64}|\$holdout)$(?!\n)",
        description="1 to 64 of a-z, 0-9, `_`, `.` and `-`",
    ),
]
"""The key of an experiment. `$holdout` is the built-in one, which no definition may name."""


def is_key(text: str) -> bool:
    """Whether anything may be named so: what is no key names nothing, and Postgres, which takes no
    U+0000, need not be asked for it."""
    return _KEY.match(text) is not None


_KEY: Final = re.compile(r"^([a-z0-9_.-]{1,64}|\$holdout)$(?!\n)")
Salt: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9_.#-]{1,80}$(?!\n)",
        description="1 to 80 of a-z, 0-9, `_`, `.`, `-` and `#`",
    ),
]
EventName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_.:/-]{1,128}$(?!\n)",
        description="1 to 128 letters, digits, `_`, `.`, `:`, `/` and `-`",
    ),
]
AttributeName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
Duration: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[1-9][0-9]{0,8}(ms|s|m|h|d)$(?!\n)",
        description="a whole number with its unit: 500ms, 2s, 10m, 6h, 7d",
    ),
]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Probability: TypeAlias = Annotated[float, Meta(gt=0, lt=1)]
PriorUnits: TypeAlias = Annotated[float, Meta(ge=1e-3, le=1e9)]
"""Units that a prior counts for. Beyond these bounds it says nothing, or leaves no room for data,
and floats lose the posterior."""
Text: TypeAlias = Annotated[str, Meta(max_length=4_000)]
Reason: TypeAlias = Annotated[str, Meta(min_length=1, max_length=1_000)]

State: TypeAlias = Literal["draft", "running", "paused", "concluded", "rolled_back", "archived"]
Goal: TypeAlias = Literal["increase", "decrease"]
Role: TypeAlias = Literal["primary", "secondary", "guardrail"]
Action: TypeAlias = Literal["rollback", "rollback_variant", "pause", "alert"]
HealthAction: TypeAlias = Literal["pause", "alert", "ignore"]
Scope: TypeAlias = Literal["enrolment", "exposure"]
Sampling: TypeAlias = Literal["thompson", "top_two", "exploration"]
Reading: TypeAlias = Literal["continuous", "fixed", "planned", "bayesian"]
Stickiness: TypeAlias = Literal["slot", "sticky"]

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def parse_duration(text: Duration) -> timedelta:
    """The length of a `Duration` such as `500ms`, `2s`, `10m`, `6h` or `7d`.

    Raises:
        ValueError: if the text has another form.
    """
    unit = text.lstrip("0123456789")
    number = text[: len(text) - len(unit)]
    if not number or unit not in _UNIT_SECONDS:
        raise ValueError(f"{text!r} is not a duration such as 2s, 10m or 7d")
    return timedelta(seconds=int(number) * _UNIT_SECONDS[unit])


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a definition: immutable, and strict about what it is called with."""


class Unit(_Part, frozen=True):
    """What is randomised, and where an evaluation context holds its identity."""

    type: Key = "user"
    attribute: AttributeName = TARGETING_KEY


class Layer(_Part, frozen=True):
    """The slots `[first, end)` of a layer that an experiment owns."""

    key: Key
    slots: tuple[Annotated[int, Meta(ge=0, le=SLOTS)], Annotated[int, Meta(ge=0, le=SLOTS)]]


class Variant(_Part, frozen=True):
    """One of the things compared. `value` is what a service gets: JSON, never null."""

    key: Key
    value: Any
    weight: Share
    control: bool = False


class Margin(_Part, frozen=True):
    """How much worse than the control is still harmless: in the metric's unit, or as a share."""

    absolute: float | None = None
    relative: float | None = None


class _Metric(_Part, frozen=True, kw_only=True, tag_field="kind"):
    key: Key
    role: Role
    window: Duration
    goal: Goal = "increase"
    margin: Margin | None = None
    scope: Scope = "enrolment"


class ProportionMetric(_Metric, frozen=True, kw_only=True, tag="proportion"):
    """The share of units with at least one `event` in the window (its value absent or not 0)."""

    event: EventName


class QuantileCap(_Part, frozen=True):
    """A cap at a quantile of the values of all variants together. It is resolved once, when enough
    units have finished, and is a number from then on (DESIGN 7)."""

    quantile: Probability


class MeanMetric(_Metric, frozen=True, kw_only=True, tag="mean"):
    """The mean over units of a per-unit aggregate of `event`: the `sum`, the number (`count`), the
    `mean` or the `max` of its values in the window, or the `last` of them. A unit without outcomes
    counts 0, and none counts more than `cap`.

    With a `covariate` the mean is adjusted by the same aggregate of so much time before a unit's
    enrolment, which makes its variance smaller and leaves the difference unbiased (CUPED).
    """

    event: EventName
    aggregate: Literal["sum", "count", "mean", "max", "last"] = "sum"
    cap: Annotated[float, Meta(gt=0)] | QuantileCap | None = None
    covariate: Duration | None = None


class RatioMetric(_Metric, frozen=True, kw_only=True, tag="ratio"):
    """Sum of one event over sum of another, the units being those that are randomised.

    An outcome counts with its value, and one without a value as 1: errors per request, revenue per
    order. `covariate` as for a mean.
    """

    numerator: EventName
    denominator: EventName
    covariate: Duration | None = None


class QuantileMetric(_Metric, frozen=True, kw_only=True, tag="quantile"):
    """A quantile over units of the per-unit value of `event`: the mean of the unit's values in the
    window. Units without a value have none, and are left out."""

    event: EventName
    quantile: Probability


Metric: TypeAlias = ProportionMetric | MeanMetric | RatioMetric | QuantileMetric


class FixedPolicy(_Part, frozen=True, tag_field="kind", tag="fixed"):
    """Weights move by hand only."""


class StopRule(_Part, frozen=True):
    """When a bandit has seen enough: the expected loss of shipping the best variant is below `loss`
    (in the metric's unit, or as a share of the control's mean). Then it advises to ship that
    variant, or concludes with it. This is a Bayesian rule; it bounds no error rate."""

    loss: Margin
    action: Literal["advise", "conclude"] = "advise"


class ThompsonPolicy(_Part, frozen=True, tag_field="kind", tag="thompson"):
    """Each variant gets traffic by its probability of being best on `metric`.

    `floor` is the least weight of a variant, `floors` that of single ones, and `pin_control` fixes
    the control's. `warmup` counts the finished units that each needs before the first move,
    `max_step` is the most that a weight may change at once. `sampling` says how probabilities
    become weights; with a `half_life` older units count less, for a world that drifts. `stop` says
    when to end.
    """

    metric: Key
    every: Duration = "1m"
    floor: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    floors: Annotated[dict[Key, Share], Meta(max_length=64)] = {}
    pin_control: Probability | None = None
    warmup: Annotated[int, Meta(ge=2)] = 100
    max_step: Annotated[float, Meta(gt=0, le=1)] = 0.2
    sampling: Sampling = "thompson"
    half_life: Duration | None = None
    stop: StopRule | None = None


class RampStep(_Part, frozen=True):
    """A share of traffic, held until its conditions are met: so much time, so many newly enrolled
    units, and an approval by hand, as far as they are set."""

    traffic: Share
    hold: Duration | None = None
    units: Annotated[int, Meta(ge=1)] | None = None
    approval: bool = False


class RampPolicy(_Part, frozen=True, tag_field="kind", tag="ramp"):
    """Traffic grows by steps, each gated by the guard. The first step is what a run starts with."""

    steps: Annotated[tuple[RampStep, ...], Meta(min_length=1, max_length=64)]


Policy: TypeAlias = FixedPolicy | ThompsonPolicy | RampPolicy


class SampleRatioCheck(_Part, frozen=True):
    """What is done once units are not split as their propensities say. `rollback` stands on
    evidence that is paid from the guard's alpha."""

    action: HealthAction | Literal["rollback"] = "alert"


class NoDataCheck(_Part, frozen=True):
    """What is done once a run that had units gets none for so long."""

    after: Duration = "30m"
    action: HealthAction = "alert"


class SeveralVariantsCheck(_Part, frozen=True):
    """What is done once more than this share of the units met several variants."""

    share: Probability = 0.05
    action: HealthAction = "alert"


class HealthChecks(_Part, frozen=True):
    """Findings about a run's data on which the controller acts."""

    sample_ratio: SampleRatioCheck = SampleRatioCheck()
    no_data: NoDataCheck = NoDataCheck()
    several_variants: SeveralVariantsCheck = SeveralVariantsCheck()


class Guard(_Part, frozen=True):
    """What watches the guardrails. `alpha` bounds the chance of ever acting on a harmless variant
    (DESIGN 1.8); `action` is what is done on evidence of harm: the run is rolled back, or the
    variant alone, or the experiment is paused, or people are told."""

    alpha: Probability = 0.01
    action: Action = "rollback"
    health: HealthChecks = HealthChecks()


class Prior(_Part, frozen=True):
    """What the Bayesian reading believes beforehand: of a proportion that each arm's rate is
    Beta(a, b); of any other metric that the lift is normal around 0 with the standard deviation
    `lift_sd`, or flat where that is not set."""

    a: PriorUnits = 1.0
    b: PriorUnits = 1.0
    lift_sd: Annotated[float, Meta(ge=1e-6, le=1e6)] | None = None


class AnalysisPlan(_Part, frozen=True):
    """What was decided before the data came in.

    `reading` says which numbers a conclusion may stand on: those of `continuous` may be read at any
    time, and are most precise at `units`, where a decision is expected (5,000 unless said); `fixed`
    looks once, when `units` have finished; `planned` at each share of `units` in `looks`, the last
    of which is 1, or at every fifth of them; `bayesian` states a posterior and bounds no error
    rate.

    `effect` is the smallest effect worth having: what the power is claimed for, and what has to be
    ruled out for a stop for futility. `caring` is the expected loss that the Bayesian reading no
    longer cares about.
    """

    alpha: Probability = 0.05
    correction: Literal["holm", "none"] = "holm"
    reading: Reading = "continuous"
    units: Annotated[int, Meta(ge=2)] | None = None
    looks: Annotated[tuple[Annotated[float, Meta(gt=0, le=1)], ...], Meta(max_length=20)] = ()
    effect: Margin | None = None
    power: Probability = 0.8
    prior: Prior = Prior()
    caring: Margin = Margin(relative=0.01)


class WhenStale(_Part, frozen=True):
    """What a router does that has had no news for a while."""

    after: Duration
    do: Literal["control"]


class Experiment(_Part, frozen=True):
    """A definition, as a team writes it in YAML or JSON (DESIGN 6)."""

    key: ExperimentKey
    variants: Annotated[tuple[Variant, ...], Meta(min_length=2, max_length=64)]
    name: Text = ""
    hypothesis: Text = ""
    owner: Text = ""
    tags: Annotated[tuple[Key, ...], Meta(max_length=64)] = ()
    unit: Unit = Unit()
    record: Annotated[tuple[AttributeName, ...], Meta(max_length=64)] = ()
    layer: Layer | None = None
    targeting: Any = None
    stickiness: Stickiness = "slot"
    when_stale: WhenStale | None = None
    salt: Salt | None = None
    traffic: Share = 1.0
    metrics: Annotated[tuple[Metric, ...], Meta(max_length=64)] = ()
    policy: Policy = FixedPolicy()
    guard: Guard = Guard()
    analysis: AnalysisPlan = AnalysisPlan()

    @property
    def control(self) -> Variant:
        """The variant that all others are compared with."""
        return next(variant for variant in self.variants if variant.control)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each variant, by key, in the order of the definition."""
        return {variant.key: variant.weight for variant in self.variants}

    @property
    def first_traffic(self) -> float:
        """The share of traffic that a run starts with."""
        return self.policy.steps[0].traffic if isinstance(self.policy, RampPolicy) else self.traffic

    def salt_of(self, run: int) -> str:
        """The salt of a run: its own hash space, so that no run inherits another's split."""
        salt = self.salt or self.key
        return salt if run == 1 else f"{salt}#{run}"
