"""Expected loss: what shipping an arm loses against the best of all arms, in the metric's unit.

Of arm k it is E[max_j μ_j - μ_k] under the posterior, and E[μ_k - min_j μ_j] where less is better.
With M_k the best of the others this is E(M_k - μ_k)+, so that for independent posteriors

    loss_k = ∫ F_k(x) (1 - Π_{j≠k} F_j(x)) dx,

an integral of what is never negative: nothing cancels, however small the loss is. Of two normal
posteriors it has the closed form s (φ(z) - z Φ(-z)), with s² the sum of the variances and z the
arm's lead over the other one, divided by s.

Source: Stucchio (2015), "Bayesian A/B testing at VWO", for the loss as a rule to stop by; the
integral is by parts from E(X)+ = ∫ P(X > x) dx over x > 0.
"""

from collections.abc import Mapping

import numpy as np

from analysis.inference.kinds import Goal
from analysis.inference.thompson import ArmPosterior, functions, grid, sum_without


def expected_loss(posteriors: Mapping[str, ArmPosterior], goal: Goal) -> dict[str, float]:
    """What shipping each arm is expected to lose against the best, by composite Gauss-Legendre
    quadrature.

    Arguments:
        posteriors: independent ones, by variant; those of finite mean and positive spread.
        goal: which way is better.

    Returns:
        By variant, in the metric's unit, at least 0; of one arm alone, 0.

    Raises:
        ValueError: without arms.
    """
    if not posteriors:
        raise ValueError("the loss of no arms is not defined")
    if len(posteriors) == 1:
        return dict.fromkeys(posteriors, 0.0)
    arms = list(posteriors.values())
    x, dx = grid(arms)
    worse, others_worse = [], []
    with np.errstate(divide="ignore"):  # ln 0 = -inf is the right value of what cannot be
        for arm in arms:
            _, log_cdf, log_sf = functions(arm)
            log_worse = log_cdf(x) if goal == "increase" else log_sf(x)
            others_worse.append(log_worse)
            worse.append(np.exp(log_worse))
    return {
        variant: float(np.sum(dx * worse[k] * -np.expm1(sum_without(others_worse, k))))
        for k, variant in enumerate(posteriors)
    }
