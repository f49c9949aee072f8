"""What the chronicle keeps of reports, as Structs without any logic.

It is made of reports, so it holds aggregates, and no unit: retention and erasure leave it alone,
and `turnout verify`, which computes moments again from raw events, has nothing to compare here.
What was shown at a time stays what was shown.
"""

from datetime import datetime
from typing import Literal

import msgspec

from analysis.inference.kinds import Goal, Kind
from analysis.reports.model import Action, Finding, Severity
from experiments.model import Reading, State


class Lead(msgspec.Struct, frozen=True):
    """The comparison that stands for an experiment at a glance.

    It is on the first primary metric: that of the variant which the report would ship, else of the
    treatment with the largest gain among those that the reading has an interval of. Without an
    interval there is no difference either: that of a few units leads nobody.

    Arguments:
        metric, kind, goal: the metric's key, its kind, and which way is the better one.
        treatment: the variant that is compared with the control.
        reading: the plan's, of which the numbers are.
        difference: in the metric's unit; None where that is not defined, or no look was taken.
        low, high: the reading's interval of the difference: the any-time one, the repeated one of
            the looks, or the credible one. Each None where it is not defined.
        lift: the difference as a fraction of the control's mean of all units so far; None where
            that is not defined.
        finding: what the reading finds.
    """

    metric: str
    kind: Kind
    goal: Goal
    treatment: str
    reading: Reading
    difference: float | None
    low: float | None
    high: float | None
    lift: float | None
    finding: Finding | None


class RampGlance(msgspec.Struct, frozen=True):
    """A ramp as a list shows it.

    Arguments:
        step, steps: the one in force, counted from 1, and how many there are.
        waits_for: an `approval`, or `evidence` that should have been there a while ago; None where
            the ramp goes on by itself.
        reason: why it holds, in the controller's words.
    """

    step: int
    steps: int
    waits_for: Literal["approval", "evidence"] | None
    reason: str


class Glance(msgspec.Struct, frozen=True):
    """A report as a list shows it.

    Arguments:
        at: when the report was made, by the database's clock.
        run, state: of the experiment then.
        data_until: the watermark; None before any router has shipped.
        health: the worst severity among the quality checks.
        checks: how many checks there are of each severity that was found.
        worst: the explanation of the worst check, what to do about it, and its subject; empty where
            all is well.
        action: the code of the verdict.
        variant: the one to ship, None with any other action.
        headline: the conclusion in one line.
        more_seconds: about how long the plan's reading needs; None where that is not known.
        units: enrolled in the run, of all variants.
        lead: None without a primary metric or a treatment.
        alarms: guardrails that have alarmed, counted by variant, of variants that have traffic.
        final: whether the run is over and all its data have come, so that there is no later one.
        stopped: whether units or outcomes came, and do not come any more.
        ramp: None without one, and once the run is over.
    """

    at: datetime
    run: int
    state: State
    data_until: datetime | None
    health: Severity
    checks: dict[Severity, int]
    worst: str
    worst_action: str
    worst_subject: str
    action: Action
    variant: str | None
    headline: str
    more_seconds: float | None
    units: int
    lead: Lead | None
    alarms: int
    final: bool = False
    stopped: bool = False
    ramp: RampGlance | None = None


class CoursePoint(msgspec.Struct, frozen=True):
    """What the report said of a comparison at a time. A number that was not defined is None.

    Arguments:
        at: when that report was made.
        n_control, n_treatment: the finished units behind the continuous reading.
        mean_control, mean_treatment: of all units so far, as the report shows them; quantiles, of a
            quantile metric.
        difference, low, high: the continuous reading, in the metric's unit.
        p_value: its any-time p-value, not adjusted.
    """

    at: datetime
    n_control: int
    n_treatment: int
    mean_control: float | None
    mean_treatment: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None


class CourseLine(msgspec.Struct, frozen=True):
    """How one comparison went: a treatment against the control on one metric, the first point
    first."""

    metric: str
    treatment: str
    points: tuple[CoursePoint, ...]


class Course(msgspec.Struct, frozen=True):
    """How the comparisons of a run went: the figures as they stood, which later data do not
    rewrite. Lines come in the order of the definition; a metric or treatment without a point has
    none."""

    run: int
    lines: tuple[CourseLine, ...]

    def line(self, metric: str, treatment: str) -> CourseLine:
        """The line of a comparison; one without points where there is none."""
        found = (x for x in self.lines if (x.metric, x.treatment) == (metric, treatment))
        return next(found, CourseLine(metric, treatment, ()))
