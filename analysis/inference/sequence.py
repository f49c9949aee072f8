"""Anytime-valid reading: an asymptotic confidence sequence for a difference.

It may be read after every unit, and stopped on, without raising the error rate above alpha,
asymptotically.
"""

import math

import msgspec

from analysis.inference.tails import p_from_log

DECISION_N = 5000
"""Units (both arms) at which the sequence is tuned to be tightest, unless the plan says more."""

MIN_UNITS_PER_ARM = 100
"""Below this the sequence says nothing: it is valid only asymptotically."""


class AlwaysValid(msgspec.Struct, frozen=True):
    """An anytime-valid reading of a difference.

    Arguments:
        valid: False before there are enough units or a spread; all else is then None.
        ci_low, ci_high: the (1 - alpha) confidence sequence at this moment, in the metric's unit.
            No running intersection is taken: the mean over those enrolled so far moves.
        log_e: natural logarithm of the e-value against "no difference".
        p_value: min(1, 1/e), held above 2.2e-308.
    """

    valid: bool
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    log_e: float | None = None


def always_valid(
    difference: float | None,
    std_error: float | None,
    n_control: int,
    n_treatment: int,
    alpha: float = 0.05,
    decision_n: int = DECISION_N,
    time: float | None = None,
) -> AlwaysValid:
    """The two-sided asymptotic confidence sequence at time n.

    With ρ² = (-2 ln α + ln(1 - 2 ln α))/decision_n and t = difference/std_error,
    half-width = SE √n √(2(nρ²+1)/(nρ)² ln(√(nρ²+1)/α)) and
    ln E = ρ² t² n/(2(nρ²+1)) - ln(nρ²+1)/2.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2024), "Time-uniform central limit
    theory and asymptotic confidence sequences", Annals of Statistics 52(6), theorem 2.2; the
    boundary is the normal mixture of Howard, Ramdas, McAuliffe, Sekhon (2021).

    Arguments:
        difference: of a `Comparison`, in the metric's unit.
        std_error: of `cautious_std_error`; the arms' own alone raises false alarms where an arm is
            small and its outcome rare.
        n_control, n_treatment: units behind the difference.
        alpha: bound on the chance of ever excluding the truth.
        decision_n: units at which a decision is expected.
        time: n; n_control + n_treatment when None. Where the variance of a unit changes as the
            allocation does, it is the variance so far over that of one unit at the beginning.

    Raises:
        ValueError: for an alpha outside (0, 1) or a decision_n below 1.
    """
    rho2 = _rho2(alpha, decision_n)
    if difference is None or std_error is None or std_error <= 0.0:
        return AlwaysValid(valid=False)
    if min(n_control, n_treatment) < MIN_UNITS_PER_ARM:
        return AlwaysValid(valid=False)
    n = n_control + n_treatment if time is None else time
    half_width = std_error * _boundary(n, rho2, alpha)
    log_e = _log_e(difference / std_error, n, rho2)
    return AlwaysValid(
        valid=True,
        ci_low=difference - half_width,
        ci_high=difference + half_width,
        p_value=p_from_log(-log_e),
        log_e=log_e,
    )


def boundary(n: float, alpha: float = 0.05, decision_n: int = DECISION_N) -> float:
    """How many standard errors the sequence reaches to either side at time n.

    Raises:
        ValueError: as `always_valid`.
    """
    return _boundary(n, _rho2(alpha, decision_n), alpha)


def log_e_value(
    statistic: float, n: float, alpha: float = 0.05, decision_n: int = DECISION_N
) -> float:
    """ln of the e-value of a statistic at time n: -ln α where the boundary is.

    Raises:
        ValueError: as `always_valid`.
    """
    return _log_e(statistic, n, _rho2(alpha, decision_n))


def _rho2(alpha: float, decision_n: int) -> float:
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha lies strictly between 0 and 1, not at {alpha}")
    if decision_n < 1:
        raise ValueError(f"decision_n is at least 1, not {decision_n}")
    return (-2.0 * math.log(alpha) + math.log1p(-2.0 * math.log(alpha))) / decision_n


def _boundary(n: float, rho2: float, alpha: float) -> float:
    grown = n * rho2 + 1.0
    return math.sqrt(2.0 * grown / (n * rho2) * (0.5 * math.log(grown) - math.log(alpha)))


def _log_e(t: float, n: float, rho2: float) -> float:
    grown = n * rho2 + 1.0
    return n * rho2 * t * t / (2.0 * grown) - 0.5 * math.log(grown)
