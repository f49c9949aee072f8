"""The bandit: from closed cells to the next weights, and why."""

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from analysis.kinds import Goal, Kind
from analysis.moments import Cells, Moments
from analysis.thompson import next_weights, posterior, probability_best


class Inputs(msgspec.Struct, frozen=True):
    """All that a reallocation is computed from: finished units by variant and epoch, the weights as
    they were, and the policy's parameters."""

    metric: str
    version: str
    kind: Kind
    goal: Goal
    floor: float
    warmup: int
    max_step: float
    arms: dict[str, dict[int, Moments]]
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
    variants = sorted(inputs.weights)
    arms = {variant: inputs.arms[variant] for variant in variants}
    posteriors = posterior(arms, inputs.kind, inputs.warmup)
    if posteriors is None:
        return None
    best = probability_best(posteriors, inputs.goal)
    current = {variant: inputs.weights[variant] for variant in variants}
    weights = next_weights(best, current, inputs.floor, inputs.max_step)
    return Reallocation(inputs, best, weights)


def by_arm(cells: Cells, variants: Iterable[str]) -> dict[str, dict[int, Moments]]:
    """Moments by variant and epoch, from those by (epoch, variant); a variant without any is
    there, too."""
    arms: dict[str, dict[int, Moments]] = defaultdict(dict, {variant: {} for variant in variants})
    for (epoch, variant), moments in sorted(cells.items()):
        arms[variant][epoch] = moments
    return dict(arms)
