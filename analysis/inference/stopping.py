"""The stop rule of a bandit: whether shipping the best variant has little left to lose.

It looks at the posteriors that the bandit has, and at the expected loss of the variant with the
least one. This is a Bayesian rule: over worlds in which the prior is true, what it ships loses no
more than the threshold on average. It bounds no error rate. Between equals it stops all the same,
on either of them, and a variant that is worse by less than can be told is shipped often; it is told
apart from the best no further than the threshold asks for.

It knows the one metric. So it stops on no variant of which a guardrail has evidence of harm, or has
not been able to say anything yet, and on none while the data are known not to be sound.

Source: Stucchio (2015), "Bayesian A/B testing at VWO": stop once the expected loss is below a
threshold of caring.
"""

from typing import Literal

import msgspec

from analysis.inference.bandit import Inputs, posteriors
from analysis.inference.expected_loss import expected_loss

Code = Literal[
    "warming_up",
    "no_baseline",
    "loss_too_large",
    "alarmed",
    "unhealthy",
    "inconclusive",
    "loss_small",
]
"""warming_up: there are no posteriors yet. no_baseline: the threshold is a share of the control's
mean, which is 0. loss_too_large: there is more to lose than the threshold. loss_small: there is
not, so the best may be shipped. In between, there is not, but: alarmed, a guardrail of the best has
evidence of harm; unhealthy, a finding about the data stands; inconclusive, a guardrail of the best
has not been able to bet yet."""


class StopInputs(msgspec.Struct, frozen=True):
    """All that the stop rule looks at.

    Arguments:
        bandit: what the bandit looks at, at the same time.
        control: the control's key.
        loss: the threshold, above 0: in the metric's unit or, where `relative`, as a share of the
            control's mean.
    """

    bandit: Inputs
    control: str
    loss: float
    relative: bool


class StopReading(msgspec.Struct, frozen=True, tag_field="type", tag="stop"):
    """The evidence of what the stop rule says: `stop(inputs)` gives the rest again.

    Arguments:
        code: why it stops or holds.
        best: the variant with the least expected loss; None while there are no posteriors.
        threshold: in the metric's unit; None where it is not defined.
        expected_loss: of shipping each variant that takes part, in the metric's unit.
    """

    inputs: StopInputs
    code: Code
    best: str | None = None
    threshold: float | None = None
    expected_loss: dict[str, float] = {}

    @property
    def is_enough(self) -> bool:
        """Whether the best may be shipped."""
        return self.code == "loss_small"


def stop(inputs: StopInputs) -> StopReading:
    """What the stop rule says. Variants are taken in the order of their keys; of those that lose
    the same the first one is the best."""
    known = posteriors(inputs.bandit)
    if known is None:
        return StopReading(inputs, "warming_up")
    losses = expected_loss(known, inputs.bandit.goal)
    best = min(losses, key=lambda variant: losses[variant])
    unit = abs(known[inputs.control].mean) if inputs.relative else 1.0
    threshold = inputs.loss * unit
    if threshold == 0.0:
        return StopReading(inputs, "no_baseline", best, None, losses)
    code = _verdict(inputs.bandit, best) if losses[best] < threshold else "loss_too_large"
    return StopReading(inputs, code, best, threshold, losses)


def _verdict(bandit: Inputs, best: str) -> Code:
    """Whether what has little to lose may be shipped."""
    if best in bandit.alarmed:
        return "alarmed"
    if bandit.findings:
        return "unhealthy"
    return "inconclusive" if best in bandit.unproven else "loss_small"
