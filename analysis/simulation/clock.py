"""The simulated clock: into which ticks a run is cut, once for all runs of a scene.

The controller has a block for every second of a short window. A play of weeks cannot; but the guard
is quick or slow in the seconds after a change, not in the days between. So ticks are as fine as the
shortest block of a guardrail after the start, after each change of what is true, and after each
step of a ramp is due, and grow with the time since: no time is told coarser than about 2 % of it.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import msgspec

from analysis.folding.metrics import run_metric
from analysis.simulation.world import Scene
from experiments.model import RampPolicy, ThompsonPolicy, parse_duration

GROWTH: Final = 0.02
"""Of a tick, as a share of the time since the last change."""
LEAST_TICKS: Final = 300
"""Of a run: no tick is longer than this part of the whole length."""


class Clock(msgspec.Struct, frozen=True):
    """The ticks of a run.

    Arguments:
        edges: when ticks begin and end, in seconds after the start: one more than there are ticks.
    """

    edges: tuple[float, ...]

    @property
    def begins(self) -> tuple[float, ...]:
        """When each tick begins."""
        return self.edges[:-1]

    @property
    def lengths(self) -> tuple[float, ...]:
        """The seconds of each tick."""
        return tuple(end - begin for begin, end in pairwise(self.edges))

    @property
    def middles(self) -> tuple[float, ...]:
        """What is true in a tick is what is true then."""
        return tuple((begin + end) / 2.0 for begin, end in pairwise(self.edges))


def clock_of(scene: Scene) -> Clock:
    """The ticks in which a scene is played."""
    length, fine = scene.truth.seconds, finest(scene)
    changes = sorted({0.0, *(at for at in _changes(scene) if 0.0 < at < length)})
    edges = [0.0]
    for begin, end in pairwise([*changes, length]):
        edges += _cut(begin, end, fine, longest(scene))
    return Clock(tuple(edges))


def finest(scene: Scene) -> int:
    """The seconds of the shortest tick: the shortest block of a guardrail, or of any metric."""
    guardrails = [metric for metric in scene.played if metric.role == "guardrail"]
    blocks = (run_metric(metric).block_seconds for metric in guardrails or scene.played)
    return min(blocks, default=1)


def longest(scene: Scene) -> int:
    """The seconds of the longest tick."""
    fine = finest(scene)
    return max(fine, math.floor(scene.truth.seconds / LEAST_TICKS / fine) * fine)


def looks_once_a_tick(scene: Scene) -> bool:
    """Whether a tick can be longer than a bandit waits from one look to the next."""
    policy = scene.definition.policy
    if not isinstance(policy, ThompsonPolicy):
        return False
    return parse_duration(policy.every).total_seconds() < longest(scene)


def _cut(begin: float, end: float, fine: int, most: int) -> Iterator[float]:
    """Where ticks end after a change: on whole blocks, as the controller's, but for the last."""
    at = begin
    while at < end:
        blocks = max(1, min(most, math.floor(GROWTH * (at - begin))) // fine)
        at = min(end, (math.floor(at / fine) + blocks) * fine)
        yield float(at)


def _changes(scene: Scene) -> Iterator[float]:
    """When what is true changes by a step, and when a step of a ramp is due at the earliest."""
    for metric in scene.truth.metrics:
        for variant in scene.definition.weights:
            law = scene.truth.law(metric, variant)
            if law.at is not None:
                yield parse_duration(law.at).total_seconds()
    policy = scene.definition.policy
    if isinstance(policy, RampPolicy):
        due = 0.0
        for step in policy.steps[:-1]:
            units = 0.0 if step.units is None else step.units
            held = 0.0 if step.hold is None else parse_duration(step.hold).total_seconds()
            due += max(held, units / (scene.truth.units_a_second * step.traffic))
            yield due
