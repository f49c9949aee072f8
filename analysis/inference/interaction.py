"""Whether an effect differs between segments of the units.

One segment significant and another not is no difference between them: with five segments and no
effect at all that is seen in every fifth report, and with the same effect in all of them in most.
The differences themselves have to be compared (Gelman, Stern 2006, "The difference between
`significant' and `not significant' is not itself statistically significant").
"""

import math
import sys
from collections.abc import Sequence

import msgspec
from scipy import special

from analysis.inference.sequence import DECISION_N, always_valid
from analysis.inference.tails import p_from_log


class Effect(msgspec.Struct, frozen=True):
    """The difference in one segment.

    Arguments:
        difference, std_error: in the metric's unit; the error is above 0.
        n_control, n_treatment: the units behind it.
    """

    difference: float
    std_error: float
    n_control: int
    n_treatment: int


class Homogeneity(msgspec.Struct, frozen=True):
    """A test of the hypothesis that the effect is the same in all segments.

    Arguments:
        statistic: Cochran's Q, or the natural logarithm of an e-value.
        df: degrees of freedom of Q; None of an e-value.
        p_value: held above 2.2e-308.
    """

    statistic: float
    df: int | None
    p_value: float


def cochran_q(effects: Sequence[Effect]) -> Homogeneity | None:
    """Cochran's Q over segments, for one look that was planned; None below two segments.

    Q = Σ (d_s - d̄)²/SE_s² with d̄ = Σ (d_s/SE_s²)/Σ 1/SE_s², which is chi-square with one degree of
    freedom less than there are segments. It equals Wald's test of all interactions of treatment and
    segment in a regression with a variance for each arm and segment.

    Source: Cochran (1954), "The combination of estimates from different experiments".

    Arguments:
        effects: of segments that share no unit, each with units enough for a normal difference.
    """
    if len(effects) < 2:
        return None
    # In units of the smallest error, so that no square over- or underflows.
    least = min(effect.std_error for effect in effects)
    weights = [(least / effect.std_error) ** 2 for effect in effects]
    # From the first one on: the spread of differences that are large and near each other survives.
    steps = [(effect.difference - effects[0].difference) / least for effect in effects]
    mean = math.fsum(w * x for w, x in zip(weights, steps, strict=True)) / math.fsum(weights)
    q = math.fsum(w * (x - mean) ** 2 for w, x in zip(weights, steps, strict=True))
    df = len(effects) - 1
    return Homogeneity(q, df, max(float(special.chdtrc(df, q)), sys.float_info.min))


def sequence_of_differences(
    effects: Sequence[Effect], alpha: float = 0.05, decision_n: int = DECISION_N
) -> Homogeneity | None:
    """The same question, for a reading that may be acted on at any time.

    For each segment s its difference is compared with that of the rest, D_s = d_s - Σ w_t d_t over
    the others, w_t their shares of the rest's units, by the sequence of `always_valid`: it has an
    e-value against D_s = 0. Where the effect is the same everywhere all D_s are 0, and the mean of
    the e-values is one against that, however they depend on each other; it is never less than what
    Bonferroni's correction would leave of the largest. None below two segments, or before there is
    a sequence.

    Source: Vovk, Wang (2021), "E-values: calibration, combination and applications", section 3.

    Arguments:
        effects: as for `cochran_q`; the errors are those for such a reading (`cautious_std_error`).
        alpha, decision_n: as for `always_valid`.

    Raises:
        ValueError: as `always_valid`.
    """
    if len(effects) < 2:
        return None
    logs = []
    units = [effect.n_control + effect.n_treatment for effect in effects]
    for place, effect in enumerate(effects):
        rest = sum(units) - units[place]
        share = [n / rest for n in units]
        share[place] = -1.0
        reading = always_valid(
            -math.fsum(
                w * (e.difference - effect.difference) for w, e in zip(share, effects, strict=True)
            ),
            math.hypot(*(w * e.std_error for w, e in zip(share, effects, strict=True))),
            sum(e.n_control for e in effects),
            sum(e.n_treatment for e in effects),
            alpha,
            decision_n,
        )
        if reading.log_e is None:
            return None
        logs.append(reading.log_e)
    largest = max(logs)
    log_e = largest + math.log(math.fsum(math.exp(x - largest) for x in logs) / len(logs))
    return Homogeneity(log_e, None, p_from_log(-log_e))
