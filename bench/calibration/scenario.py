"""Scenarios, the claims that they hold, and how they are run in chunks that can be repeated."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

Flags = NDArray[np.bool_]
"""Of each experiment, whether something happened in it."""

Shares = NDArray[np.float64]
"""Of each experiment, the share of its readings in which something happened."""

Simulate = Callable[[np.random.Generator, int], Mapping[str, Flags | Shares]]
"""So many experiments from a generator: flags or shares by the name of what happened."""

CHUNK = 500
"""Experiments that are simulated together: as many as fit the caches, and a step of progress."""


class Bound(msgspec.Struct, frozen=True):
    """Where a true rate may lie; a simulated one may miss it by three Monte Carlo standard errors.

    The error is that of flags; that of shares with the same mean is no larger.

    Arguments:
        low, high: between 0 and 1.
    """

    low: float = 0.0
    high: float = 1.0

    def allows(self, rate: float, experiments: int) -> bool:
        """Whether a rate seen in so many experiments may come from a true one within the bound."""
        low, high = (_error(edge, experiments) for edge in (self.low, self.high))
        return self.low - 3.0 * low <= rate <= self.high + 3.0 * high


class Claim(msgspec.Struct, frozen=True):
    """A bound on how often something happens, and a naive method that breaks it.

    Arguments:
        rate: what is counted, in words.
        method: the service's, in words.
        event: the name of what is counted, among those of the scenario.
        bound: of its rate.
        naive: the naive method, in words.
        naive_event: the name of what is counted of it.
    """

    rate: str
    method: str
    event: str
    bound: Bound
    naive: str
    naive_event: str


class Scenario(msgspec.Struct, frozen=True):
    """A kind of experiment, simulated often.

    Arguments:
        key: of the scenario, unique.
        title: what the experiments are like.
        seed: what all of its randomness comes from.
        simulate: experiments from a generator.
        claims: what is held of them, at least one.
    """

    key: str
    title: str
    seed: int
    simulate: Simulate
    claims: tuple[Claim, ...]


class Finding(msgspec.Struct, frozen=True):
    """What a claim came to.

    Arguments:
        scenario, claim: what was simulated and held.
        experiments: how many.
        rate, naive_rate: as simulated.
    """

    scenario: Scenario
    claim: Claim
    experiments: int
    rate: float
    naive_rate: float

    @property
    def holds(self) -> bool:
        """Whether the claim's rate is within its bound."""
        return self.claim.bound.allows(self.rate, self.experiments)

    @property
    def naive_fails(self) -> bool:
        """Whether the naive method breaks that bound."""
        return not self.claim.bound.allows(self.naive_rate, self.experiments)


def ever(crossed: ArrayLike) -> Flags:
    """Of each experiment, whether something happened at any look, of (experiments, looks)."""
    return np.asarray(np.asarray(crossed, dtype=bool).any(axis=1))


def rates(scenario: Scenario, chunk: int) -> dict[str, float]:
    """The rate of each event in the chunk's experiments; a chunk is the same in any run."""
    rng = np.random.default_rng([scenario.seed, chunk])
    happened = scenario.simulate(rng, CHUNK)
    return {event: float(flags.mean()) for event, flags in happened.items()}


def findings(scenario: Scenario, of_chunks: Sequence[Mapping[str, float]]) -> tuple[Finding, ...]:
    """The claims of a scenario on the rates of its chunks, at least one."""
    return tuple(
        Finding(
            scenario=scenario,
            claim=claim,
            experiments=CHUNK * len(of_chunks),
            rate=fmean(chunk[claim.event] for chunk in of_chunks),
            naive_rate=fmean(chunk[claim.naive_event] for chunk in of_chunks),
        )
        for claim in scenario.claims
    )


def _error(rate: float, experiments: int) -> float:
    """The Monte Carlo standard error of a rate."""
    return math.sqrt(rate * (1.0 - rate) / experiments)
