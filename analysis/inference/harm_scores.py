"""The guard's score of harm: what a unit adds to the evidence, given what earlier blocks taught.

Harm is a linear contrast of the two arms' levels μ1 and μ0. With s = +1 for goal increase and -1
for decrease, and margin m or r,

    absolute: H = -s (μ1 - μ0) - m          relative: H = -s μ1 + (s - r sign(μ0)) μ0,

so that H <= 0 exactly when -s (μ1 - μ0) is at most m, or r |μ0|. G1 = m1 + 1{A=1}(Y - m1)/e1 and
G0 = m0 + 1{A=0}(Y - m0)/e0 are unbiased for the levels for any plug-ins m1, m0 of the past, with
e1 = e_k/(e_0 + e_k) and e0 = 1 - e1; in place of the levels they make H the score X, and
E[X | past] = H, whatever the propensities are.

Source: Robins, Rotnitzky, Zhao (1994), "Estimation of regression coefficients when some regressors
are not always observed"; Hadad et al. (2021), "Confidence intervals for policy evaluation in
adaptive experiments", for plug-ins from the past.
"""

import math

import msgspec

from analysis.inference.kinds import Goal


class Contrast(msgspec.Struct, frozen=True):
    """H = of_treatment · μ1 + of_control · μ0 + constant, the harm beyond the margin."""

    of_treatment: float
    of_control: float
    constant: float


class Scores(msgspec.Struct, frozen=True):
    """The harm score of a unit as a function of its outcome y: X = at_zero + slope · y.

    Arguments:
        control_at_zero, control_slope: for a unit of the control.
        treatment_at_zero, treatment_slope: for a unit of the treatment.
        expected: mean of X if the arms' levels are the plug-ins.
        variance_factor: variance of X around `expected`, for outcomes of variance 1 in both arms.
    """

    control_at_zero: float
    control_slope: float
    treatment_at_zero: float
    treatment_slope: float
    expected: float
    variance_factor: float

    def second_moment(self, variance: float) -> float:
        """E[X²] if the arms' levels are the plug-ins and their outcomes have this variance."""
        return self.expected * self.expected + self.variance_factor * variance


def contrast(goal: Goal, margin: float, relative: bool, control_level: float) -> Contrast:
    """The harm that is tested.

    Arguments:
        goal, margin, relative: as of a `GuardRule`.
        control_level: whose sign is that of the control's level, as far as is known.
    """
    s = 1.0 if goal == "increase" else -1.0
    if relative:
        return Contrast(-s, s - margin * math.copysign(1.0, control_level), 0.0)
    return Contrast(-s, s, -margin)


def scores(harm: Contrast, m0: float, m1: float, e0: float, e1: float) -> Scores:
    """The score of a unit.

    Arguments:
        harm: what is tested.
        m0, m1: plug-ins of control and treatment.
        e0, e1: their propensities among the two of them, both positive, 1 together.
    """
    expected = harm.of_treatment * m1 + harm.of_control * m0 + harm.constant
    return Scores(
        control_at_zero=expected - harm.of_control * m0 / e0,
        control_slope=harm.of_control / e0,
        treatment_at_zero=expected - harm.of_treatment * m1 / e1,
        treatment_slope=harm.of_treatment / e1,
        expected=expected,
        variance_factor=harm.of_control * harm.of_control / e0
        + harm.of_treatment * harm.of_treatment / e1,
    )
