"""What all comparisons of a report are judged by: the plan, and what is common to them. Pure."""

from collections.abc import Sequence

import msgspec

from analysis.reports.model import GuardView
from analysis.reports.words import percent
from experiments.model import AnalysisPlan, Margin


class Setting(msgspec.Struct, frozen=True):
    """What all comparisons of a report are judged by.

    Arguments:
        plan: of the experiment.
        comparisons: how many there are on primary metrics.
        units_per_second: the rate of enrolment so far; None where it is not known.
        guard: the evidence of harm so far.
        uncapped: the keys of the primary metrics that wait for their caps, and all looks with them.
    """

    plan: AnalysisPlan
    comparisons: int = 1
    units_per_second: float | None = None
    guard: Sequence[GuardView] = ()
    uncapped: Sequence[str] = ()

    @property
    def level(self) -> str:
        """The confidence level, in words."""
        return percent(1.0 - self.plan.alpha)

    @property
    def family(self) -> int:
        """How many comparisons the plan's correction is over; 1 without a correction."""
        return self.comparisons if self.plan.correction == "holm" else 1

    @property
    def corrected(self) -> str:
        """The correction, in words that end a sentence; nothing where there is one comparison."""
        if self.comparisons == 1:
            return ""
        if self.plan.correction == "none":
            return f", without a correction for {self.comparisons} comparisons"
        return f", after Holm's correction over {self.comparisons} comparisons"


def size_of(margin: Margin | None, mean_control: float | None) -> float | None:
    """A margin in the metric's unit; None where it is not set, or is a share of nothing."""
    if margin is None:
        return None
    if margin.absolute is not None:
        return margin.absolute
    if margin.relative is None or not mean_control:
        return None
    return margin.relative * abs(mean_control)
