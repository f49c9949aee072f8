"""What the tests of the statistics share: cells from counts, and the bound on simulated rates."""

import math

from analysis.moments import Moments


def proportion(n: int, converted: int) -> Moments:
    """The moments of `converted` ones and n - converted zeros."""
    if n == 0:
        return Moments(n=0, mean=(0.0,), m2=(0.0,))
    return Moments(n=n, mean=(converted / n,), m2=(converted * (n - converted) / n,))


def at_most(rate: float, runs: int) -> float:
    """A bound on a simulated rate: the nominal one plus three Monte Carlo standard errors."""
    return rate + 3.0 * math.sqrt(rate * (1.0 - rate) / runs)
