"""Two-sided tail probabilities that stay honest where floats underflow."""

import math
import sys

from scipy import special

_LOG_2 = math.log(2.0)
_LOG_10 = math.log(10.0)
_FAR = 1e-16
"""df/(df + t²) below which the leading term of a t tail is all of it that a float can hold."""


def critical_value(alpha: float, df: float | None) -> float:
    """The two-sided critical value of Student's t, or of the normal where `df` is None.

    Raises:
        ValueError: when alpha is not strictly between 0 and 1.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha lies strictly between 0 and 1, not at {alpha}")
    quantile = special.ndtri(alpha / 2) if df is None else special.stdtrit(df, alpha / 2)
    return -float(quantile)


def log_p_two_sided(statistic: float, df: float | None) -> float:
    """ln of the two-sided p-value of a normal (`df` None) or Student statistic; never -inf."""
    size = min(abs(statistic), sys.float_info.max)
    if df is None:
        log_tail = max(float(special.log_ndtr(-size)), -sys.float_info.max)
    else:
        tail = float(special.stdtr(df, -size))
        log_tail = math.log(tail) if tail > sys.float_info.min else _log_t_tail(size, df)
    return min(0.0, _LOG_2 + log_tail)


def p_from_log(log_p: float) -> float:
    """exp(log_p), held at the smallest normal float (2.2e-308): small, but never 0."""
    return max(math.exp(min(log_p, 0.0)), sys.float_info.min)


def to_log10(log_value: float) -> float:
    """A natural logarithm as a decimal one."""
    return log_value / _LOG_10


def _log_t_tail(t: float, df: float) -> float:
    """ln P(T > t) for a tail that underflows: the log density at t times a tame integral.

    With h = (df + t²)/((df + 1) t), the length over which the density falls by e,
    P(T > t) = f(t) h ∫_0^∞ f(t + h v)/f(t) dv, and the integrand is about exp(-v).
    The log of scipy's `stdtr` is -inf here.

    P(T > t) = I_x(df/2, 1/2)/2 with x = df/(df + t²); where x is next to 0, that is
    x^(df/2)/(df B(df/2, 1/2)), of which the logarithm is taken before t² can overflow.
    Source: Abramowitz and Stegun (1964), 26.5.4 and 26.7.1.
    """
    from scipy import integrate  # noqa: PLC0415 - slow to load, and such tails are rare

    log_x = math.log(df) - 2.0 * math.log(t)
    if log_x < math.log(_FAR):
        return 0.5 * df * log_x - math.log(df) - float(special.betaln(0.5 * df, 0.5))
    h = (df + t * t) / ((df + 1.0) * t)

    def ratio(v: float) -> float:
        return math.exp(
            -(df + 1.0) / 2.0 * math.log1p((2.0 * t * h * v + (h * v) ** 2) / (df + t * t))
        )

    area, _ = integrate.quad(ratio, 0.0, math.inf)
    log_density = (
        math.log(float(special.poch(0.5 * df, 0.5)))
        - 0.5 * math.log(df * math.pi)
        - 0.5 * (df + 1.0) * math.log1p(t * t / df)
    )
    return log_density + math.log(h * area)
