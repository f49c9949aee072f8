"""The bandit: from what is known of the finished units to the next weights, and why."""

from typing import Final

import msgspec

from analysis.inference import discounted
from analysis.inference.aligned import Compared, Level, aligned
from analysis.inference.discounted import Discounted
from analysis.inference.epoch_sums import EpochSums
from analysis.inference.kinds import Goal, Kind, Sampling
from analysis.inference.thompson import (
    ArmPosterior,
    next_weights,
    posterior,
    probability_best,
    sampled,
)

ROUNDING: Final = 0.001
"""Of a weight: a floor that slots cannot meet exactly is no more traffic."""


class Inputs(msgspec.Struct, frozen=True, tag_field="type", tag="bandit"):
    """All that a reallocation is computed from.

    Arguments:
        metric, version, kind, goal: of the metric that is followed.
        floor, warmup, max_step, floors, pin_control, sampling: of the policy.
        finished: the sums over epochs of the finished units of all variants
            (`Population.together`). Nothing where `pairs` or `discounted` stand for it.
        weights: as they were, by variant; 0 of one that is rolled back.
        control: its key; empty in evidence of a release that had no use for it.
        rolled_back: variants that have no traffic and take no part.
        pairs: of each treatment that takes part, the sums over epochs of the control and itself
            (`Population.contrasts`), once a variant is rolled back: all variants together have had
            no epoch since. Otherwise empty.
        discounted: what closed blocks taught, older ones less, where the policy has a half-life.
        alarmed: treatments of which a guardrail has evidence of harm that nobody has overruled.
        unproven: treatments of which a guardrail has not been able to bet on a block yet.
        findings: about the run's data, which stand: that units are not split as they should be.
    """

    metric: str
    version: str
    kind: Kind
    goal: Goal
    floor: float
    warmup: int
    max_step: float
    finished: EpochSums
    weights: dict[str, float]
    floors: dict[str, float] = {}
    pin_control: float | None = None
    sampling: Sampling = "thompson"
    control: str = ""
    rolled_back: tuple[str, ...] = ()
    pairs: dict[str, EpochSums] = {}
    discounted: Discounted | None = None
    alarmed: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def live(self) -> list[str]:
        """The variants that take part, in the order of their keys."""
        return sorted(self.weights.keys() - set(self.rolled_back))


class Reallocation(msgspec.Struct, frozen=True, tag_field="type", tag="reallocation"):
    """The evidence of a reallocation: `propose(inputs)` gives the rest again.

    Arguments:
        probability_best: of each variant that takes part.
        weights: the next ones, of all variants.
        shares: what the traffic above floors and pins is split by, where it is not by
            `probability_best`: among the treatments where the control is pinned, or as the policy's
            sampling has it. Otherwise empty.
    """

    inputs: Inputs
    probability_best: dict[str, float]
    weights: dict[str, float]
    shares: dict[str, float] = {}

    @property
    def given_in_alarm(self) -> tuple[str, ...]:
        """The variants in alarm that would get more traffic."""
        before = self.inputs.weights
        return tuple(v for v in self.inputs.alarmed if self.weights[v] > before[v] + ROUNDING)


def posteriors(inputs: Inputs) -> dict[str, ArmPosterior] | None:
    """The posteriors of the variants that take part, in the order of their keys; None while the
    data do not carry one for each of them."""
    if inputs.discounted is not None:
        return discounted.posteriors(
            inputs.discounted, inputs.kind, inputs.warmup, inputs.rolled_back
        )
    if inputs.pairs:
        return _of_pairs(inputs)
    return posterior(inputs.finished, inputs.kind, inputs.warmup)


def propose(inputs: Inputs) -> Reallocation | None:
    """The next weights, or None while the data do not carry a posterior for every variant.

    Variants are taken in the order of their keys, since a sum of floats depends on the order, and
    JSON in Postgres keeps none.

    Raises:
        ValueError: where weights, floors and the pin do not fit together.
    """
    known = posteriors(inputs)
    if known is None:
        return None
    best = probability_best(known, inputs.goal)
    pinned = _pinned(inputs)
    among = best if not pinned else probability_best(_without(known, pinned), inputs.goal)
    shares = sampled(among, inputs.sampling)
    live = next_weights(
        shares,
        {variant: inputs.weights[variant] for variant in inputs.live},
        inputs.floor,
        inputs.max_step,
        floors=inputs.floors,
        pinned=pinned,
    )
    weights = {variant: live.get(variant, 0.0) for variant in sorted(inputs.weights)}
    return Reallocation(inputs, best, weights, {} if shares == best else shares)


def _pinned(inputs: Inputs) -> dict[str, float]:
    """The control's weight where it is fixed."""
    if inputs.pin_control is None:
        return {}
    return {inputs.control: inputs.pin_control}


def _without(known: dict[str, ArmPosterior], pinned: dict[str, float]) -> dict[str, ArmPosterior]:
    return {variant: arm for variant, arm in known.items() if variant not in pinned}


def _of_pairs(inputs: Inputs) -> dict[str, ArmPosterior] | None:
    """The posteriors from the comparisons with the control; of two arms that is the posterior of
    their sums."""
    if len(inputs.pairs) == 1:
        [sums] = inputs.pairs.values()
        return posterior(sums, inputs.kind, inputs.warmup)
    compared = {}
    for treatment, sums in inputs.pairs.items():
        pair = posterior(sums, inputs.kind, inputs.warmup, model="normal")
        if pair is None:
            return None
        compared[treatment] = Compared(
            control=_level(pair[inputs.control]), treatment=_level(pair[treatment])
        )
    return aligned(compared, inputs.control)


def _level(arm: ArmPosterior) -> Level:
    return Level(n=arm.n, mean=arm.mean, variance=arm.sd * arm.sd)
