"""The bandit: from the sums over finished units to the next weights, and why."""

import msgspec

from analysis.inference.epoch_sums import EpochSums
from analysis.inference.kinds import Goal, Kind
from analysis.inference.thompson import next_weights, posterior, probability_best


class Inputs(msgspec.Struct, frozen=True):
    """All that a reallocation is computed from: the sums over epochs of the finished units of all
    variants (`Population.together`), the weights as they were, and the policy's parameters."""

    metric: str
    version: str
    kind: Kind
    goal: Goal
    floor: float
    warmup: int
    max_step: float
    finished: EpochSums
    weights: dict[str, float]


class Reallocation(msgspec.Struct, frozen=True):
    """The evidence of a reallocation: `propose(inputs)` gives the rest again."""

    inputs: Inputs
    probability_best: dict[str, float]
    weights: dict[str, float]


def propose(inputs: Inputs) -> Reallocation | None:
    """The next weights, or None while the data do not carry a posterior for every variant.

    Variants are taken in the order of their keys, since a sum of floats depends on the order, and
    JSON in Postgres keeps none.
    """
    posteriors = posterior(inputs.finished, inputs.kind, inputs.warmup)
    if posteriors is None:
        return None
    best = probability_best(posteriors, inputs.goal)
    current = {variant: inputs.weights[variant] for variant in sorted(inputs.weights)}
    weights = next_weights(best, current, inputs.floor, inputs.max_step)
    return Reallocation(inputs, best, weights)
