"""Sample ratio mismatch, watched: evidence that may be looked at after every batch of units.

The chi-square test of `ratio_check.py` looks once; read at every tick its false alarms add up. The
e-process here is a bet, renewed for each batch of new units, that they are not split as their
propensities say. While the propensities are right, each batch multiplies it by something whose
expectation, given all that came before, is 1. So the chance that it ever reaches 1,000 is at most
.001 (Ville 1939), however often it is looked at, however traffic grew, and wherever it was moved
to on the strength of what came before.

Source: Lindon and Malek (2022), "Anytime-valid inference for multinomial count data" (NeurIPS). The
bet under propensities that change is ours; `watch` states it.
"""

import math
import sys
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from analysis.inference.ratio_check import check_propensities

PRIOR_UNITS: Final = 100.0
"""Weight of the prior, in units: the first bet is near the propensities, as after so many units
that fitted them exactly (the value of Lindon and Malek's own examples)."""
LOG_THRESHOLD: Final = math.log(1000.0)
"""The evidence that makes an alarm: false in one of 1,000 runs at most."""

_STIRLING_FROM: Final = 64.0
"""From here on four terms of Stirling's series are exact to the last digit of a float."""


class RatioWatch(msgspec.Struct, frozen=True):
    """The evidence so far that units are not split as their propensities say.

    Arguments:
        units: by variant, as they were first seen.
        expected: by variant, Σ m p over the batches, of m units and with the propensity p.
        information: by variant, Σ m p (1 - p), what that tells of its odds: nothing where p is 1.
        impossible: by variant, units that came while it had no propensity; in none of the others.
        log_e: the natural logarithm of the e-process.
        log_peak: its running maximum, at least 0.
    """

    units: dict[str, int] = {}
    expected: dict[str, float] = {}
    information: dict[str, float] = {}
    impossible: dict[str, int] = {}
    log_e: float = 0.0
    log_peak: float = 0.0

    @property
    def p_value(self) -> float:
        """1 over the most evidence so far, held above 2.2e-308: valid at every look."""
        return max(math.exp(-self.log_peak), sys.float_info.min)

    @property
    def alarm(self) -> bool:
        """Whether there ever was evidence enough, or a unit that cannot be."""
        return bool(self.impossible) or self.log_peak >= LOG_THRESHOLD


def watch(
    state: RatioWatch, units: Mapping[str, int], propensities: Mapping[str, float]
) -> RatioWatch:
    """The watch after another batch of units.

    The bet on a batch of m units is Dirichlet-multinomial: log E grows by
    log B(a + m) - log B(a) - Σ m_k log p_k, with p_k the propensities of the batch's own epoch and
    a_k = A q_k. Any A and q that are fixed before the batch make a valid bet. In the plain
    e-process, for one constant w, N units so far and κ = `PRIOR_UNITS`, they are A = κ + N and the
    posterior mean q_k = (κ w_k + n_k)/(κ + N), so that a stream may be cut into batches anywhere.

    Where propensities change, what carries over is how far the odds of each variant are from what
    they should be. With D_k = n_k - E_k and I_k = Σ m p_k (1 - p_k), the score and the information
    of a shift of its log odds, one step of Newton's gives that shift as D_k/I_k, hence
    q_k ∝ p_k (1 + (1 - p_k) D_k/(I_k + κ p_k (1 - p_k))), and what is known of it is worth
    A - κ = min I_k/(p_k (1 - p_k)) units of this epoch. Under a constant w that is the plain
    e-process again. Ratios n_k/E_k instead would forget on a ramp what its first steps showed.

    A variant without propensity is not in the bet on the batch: a unit of it is no evidence, but
    proof.

    Arguments:
        state: the watch so far.
        units: that are new, by variant, all enrolled in one epoch, each counted once and by the
            propensity under which it was first seen. Who comes must not depend on the variant.
        propensities: of that epoch by variant, summing to 1.

    Raises:
        ValueError: when the propensities do not sum to 1, or a number is negative.
    """
    check_propensities(propensities)
    if any(count < 0 for count in units.values()):
        raise ValueError("a count of units is at least 0")
    shares = {variant: p for variant, p in propensities.items() if p > 0.0}
    total = sum(units.get(variant, 0) for variant in shares)
    impossible = {
        variant: count for variant, count in units.items() if count > 0 and variant not in shares
    }
    gain = _gain(state, units, shares) if len(shares) > 1 else 0.0
    log_e = state.log_e + gain
    return RatioWatch(
        units=_sum(state.units, {variant: units.get(variant, 0) for variant in shares}),
        expected=_sum(state.expected, {variant: total * p for variant, p in shares.items()}),
        information=_sum(state.information, {v: total * p * (1.0 - p) for v, p in shares.items()}),
        impossible=_sum(state.impossible, impossible),
        log_e=log_e,
        log_peak=max(state.log_peak, log_e),
    )


def _gain(state: RatioWatch, units: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """By how much a batch moves log E; at least two variants have a share."""
    spread = {variant: p * (1.0 - p) for variant, p in shares.items()}
    weight = PRIOR_UNITS + min(
        state.information.get(variant, 0.0) / spread[variant] for variant in shares
    )
    tilted = {
        variant: p
        * max(1.0 + (1.0 - p) * _shift(state, variant, spread[variant]), PRIOR_UNITS / weight)
        for variant, p in shares.items()
    }
    total = math.fsum(tilted.values())
    gains = [-_log_rising(weight, sum(units.get(variant, 0) for variant in shares))]
    for variant, p in shares.items():
        count, q = units.get(variant, 0), tilted[variant] / total
        gains += [count * math.log(q / p), _log_rising(weight * q, count)]
    return math.fsum(gains)


def _shift(state: RatioWatch, variant: str, spread: float) -> float:
    """How far the log odds of a variant are from those of its propensity, so far, shrunk to 0."""
    beyond = state.units.get(variant, 0) - state.expected.get(variant, 0.0)
    return beyond / (state.information.get(variant, 0.0) + PRIOR_UNITS * spread)


_Number = TypeVar("_Number", int, float)


def _sum(a: Mapping[str, _Number], b: Mapping[str, _Number]) -> dict[str, _Number]:
    return {key: a.get(key, 0) + b.get(key, 0) for key in sorted(a.keys() | b.keys())}


def _log_rising(x: float, m: int) -> float:
    """log Γ(x + m) - log Γ(x) - m log x = Σ log(1 + i/x) over i from 0 to m - 1.

    By Stirling's series where x is large: the difference of the log-gammas of 1e9 and 1e9 + 1
    would be mostly rounding, and a million batches would add it up.
    """
    if x < _STIRLING_FROM:
        return math.lgamma(x + m) - math.lgamma(x) - m * math.log(x)
    return (x + m - 0.5) * math.log1p(m / x) - m + _stirling(x + m) - _stirling(x)


def _stirling(x: float) -> float:
    """log Γ(x) - (x - 1/2) log x + x - log(2π)/2, for a large x."""
    y = 1.0 / (x * x)
    return (1.0 / 12.0 - y * (1.0 / 360.0 - y * (1.0 / 1260.0 - y / 1680.0))) / x
