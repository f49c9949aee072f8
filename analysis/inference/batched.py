"""Batched ordinary least squares (BOLS): a difference whose error stays normal under a bandit.

A bandit chooses the sample sizes of an epoch by its past, but within the epoch traffic is split at
random. So each epoch's difference, divided by its standard error, is about standard normal given
the past, and a sum of these is normal whatever the bandit did. Weighing epochs by √h, where
h = n_0 n_1/(n_0 + n_1), gives each of them the same variance, so that no random weight is left:

    d = Σ √h (m_1 - m_0)/Σ √h,    Var(d) = Σ h (s_0²/n_0 + s_1²/n_1)/(Σ √h)².

It estimates the effect where that is the same in all epochs, and otherwise a mean of it in which
evenly split epochs weigh more. An epoch without units of one arm says nothing. It needs neither
propensities nor plug-ins, so it is a check on the AIPW estimate that shares none of its inputs.

An arm's variance in an epoch, s_k², is shrunk as in `variance.py`, for a bandit leaves the worse
arm a unit or two. What it is shrunk towards is the larger one of two: the arm's own variance over
all epochs, which is that of its early ones, where most of its units are; and the variance of both
arms in the same epoch, which follows a drifting base rate, but is that of the better arm.

Source: Zhang, Janson, Murphy (2020), "Inference for batched bandits", with a variance of each arm
and epoch instead of a common one.
"""

import math
from fractions import Fraction
from typing import Final, Literal

import msgspec

from analysis.inference.epoch_sums import ArmSums, EpochSums
from analysis.inference.exact import quotient
from analysis.inference.kinds import Kind
from analysis.inference.linear import ArmNumbers, quadratic, read
from analysis.inference.tails import critical_value, log_p_two_sided, p_from_log, to_log10
from analysis.inference.variance import degrees

BatchedNote = Literal["few_conversions"]
"""Why the estimate is doubtful. The codes are stable.

few_conversions: an arm of a proportion has fewer conversions, or fewer units without, than there
    are batches. What most of its batches say of its rate is then 0, and of its variance nothing, so
    the interval covers less than it says: 91.6 % where the worse arm has 2 units a batch at a rate
    of .02.
"""

_FEW_A_BATCH: Final = 1
"""Conversions, or units without, of an arm in a batch on average, below which they are few."""


class BatchedOls(msgspec.Struct, frozen=True):
    """A treatment against the control by batched OLS.

    Arguments:
        epochs: how many were batches.
        difference, std_error, ci_low, ci_high: in the metric's unit.
        statistic: difference / std_error, about standard normal where there is no effect.
        p_value: two-sided, held above 2.2e-308; `log10_p_value` has no such floor.
        notes: why it is doubtful.
    """

    epochs: int
    difference: float
    std_error: float
    statistic: float
    ci_low: float
    ci_high: float
    p_value: float
    log10_p_value: float
    notes: tuple[BatchedNote, ...] = ()


def batched_ols(
    sums: EpochSums, control: str, treatment: str, kind: Kind, alpha: float = 0.05
) -> BatchedOls | None:
    """Estimate the effect of the treatment with the epochs as batches.

    Ratios and adjusted means are linear forms of the means (`linear.py`), these being weighted by
    √h, too.

    Arguments:
        sums: over the epochs of this contrast, from `epoch_sums.of_epoch`.
        control, treatment: the keys of the arms.
        kind: proportion, mean or ratio.
        alpha: 1 - confidence level.

    Returns:
        None where no epoch has both arms, an arm has no variance, or a ratio is not defined.

    Raises:
        ValueError: for an alpha outside (0, 1).
    """
    root = Fraction(sums.batched.root)
    if sums.epochs == 0 or root <= 0:
        return None
    keys = (control, treatment)
    forms = read(
        {
            key: ArmNumbers(
                units=sums.arms[key].n,
                means=[Fraction(mean) / root for mean in sums.batched.arms[key].mean],
                spread=sums.arms[key].spread,
            )
            for key in keys
        },
        kind,
    )
    if forms is None:
        return None
    variance = 0.0
    for key in keys:
        df = degrees(sums.arms[key], sums.epochs, kind)
        if df < 1:
            return None
        form, arm = forms.arms[key].weights, sums.batched.arms[key]
        pooled = quotient(quadratic(form, sums.arms[key].spread), df)
        variance += quotient(quadratic(form, arm.own) / root**2)
        variance += max(
            pooled * quotient(Fraction(arm.lent) / root**2),
            quotient(quadratic(form, arm.shared) / root**2),
        )
    if variance <= 0.0:
        return None
    difference = float(forms.arms[treatment].level - forms.arms[control].level)
    std_error = math.sqrt(variance)
    critical = critical_value(alpha, None)
    log_p = log_p_two_sided(difference / std_error, None)
    few = kind == "proportion" and any(_converted_in_few(sums.arms[k], sums.epochs) for k in keys)
    return BatchedOls(
        epochs=sums.epochs,
        difference=difference,
        std_error=std_error,
        statistic=difference / std_error,
        ci_low=difference - critical * std_error,
        ci_high=difference + critical * std_error,
        p_value=p_from_log(log_p),
        log10_p_value=to_log10(log_p),
        notes=("few_conversions",) if few else (),
    )


def _converted_in_few(arm: ArmSums, epochs: int) -> bool:
    """Whether a batch of the arm has few conversions, or few units without."""
    return min(arm.converted, arm.n - arm.converted) < _FEW_A_BATCH * epochs
