"""The stop rule: what follows from the reading of `analysis.inference.stopping`.

It is no rule of its own in `decide.RULES`: it looks when the bandit looks, at what the bandit has
read (`bandit_rule.py`), so that neither the pace nor a move of the bandit ever passes it over.
"""

from analysis.control.ruling import Advise, Conclude, Ruling
from analysis.inference.bandit import Inputs
from analysis.inference.stopping import StopInputs, StopReading, stop
from experiments.model import Margin, StopRule, ThompsonPolicy


def stop_inputs(inputs: Inputs, rule: StopRule) -> StopInputs:
    """What the stop rule of a policy looks at."""
    loss, is_relative = _threshold(rule.loss)
    return StopInputs(inputs, inputs.control, loss, is_relative)


def ruling(inputs: Inputs, policy: ThompsonPolicy, advised: str | None) -> Ruling | None:
    """What the stop rule says; None without one, and where only the control is left.

    Arguments:
        inputs: what the bandit looks at.
        advised: the variant that was advised last in this run. It is not advised again.
    """
    if policy.stop is None or len(inputs.live) == 1:
        return None
    reading = stop(stop_inputs(inputs, policy.stop))
    reason = in_words(reading, policy.warmup)
    if not reading.is_enough or reading.best is None:
        return Ruling("stop", reading.code, reason, None, reading)
    if policy.stop.action == "conclude":
        return Ruling("stop", reading.code, reason, Conclude(reading.best), reading)
    act = None if reading.best == advised else Advise(reading.best)
    return Ruling("stop", reading.code, reason, act, reading)


def in_words(reading: StopReading, warmup: int) -> str:
    """Why the stop rule stops or holds, with the numbers."""
    metric = reading.inputs.bandit.metric
    if reading.code == "warming_up" or reading.best is None:
        return f"not every variant has the {warmup:,} finished units of the warm-up"
    loss = f"shipping {reading.best} is expected to lose {reading.expected_loss[reading.best]:.3g}"
    if reading.threshold is None:
        share = f"{100 * reading.inputs.loss:g} % of the control's {metric}"
        return f"{loss} of {metric}; the threshold, {share}, is not defined while that is 0"
    side = "not below" if reading.code == "loss_too_large" else "below"
    text = f"{loss} of {metric}, {side} the threshold {reading.threshold:.3g}"
    if reading.code == "alarmed":
        return f"{text}; but the guard has evidence that {reading.best} harms"
    if reading.code == "unhealthy":
        return f"{text}; but the data are not sound: {', '.join(reading.inputs.bandit.findings)}"
    if reading.code == "inconclusive":
        return f"{text}; but the guard has not seen enough of {reading.best} yet"
    return text


def _threshold(loss: Margin) -> tuple[float, bool]:
    if loss.relative is not None:
        return loss.relative, True
    return loss.absolute or 0.0, False
