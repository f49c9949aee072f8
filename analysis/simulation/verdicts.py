"""What is true over the length of a run, tick by tick: who is best, who does harm, and what a split
of the traffic loses."""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.simulation.clock import clock_of
from analysis.simulation.world import Scene, Truth
from experiments.model import Margin, Metric, ThompsonPolicy

Floats = NDArray[np.float64]

ROUNDING: Final = 1e-12


class Shortfall(msgspec.Struct, frozen=True):
    """How much worse than the best: in the metric's unit, and as a share of the best; None where
    that is 0."""

    by: float
    share: float | None


class Known(msgspec.Struct, frozen=True):
    """What is true at the middle of every tick.

    Arguments:
        variants: their keys, which give the order of what follows.
        metric: what is won or lost, of the bandit or the first primary one; None without one.
        values: of that metric, by tick and variant, turned so that more is better; or empty.
        harmful: whether a variant is beyond a margin, by tick and variant.
        begins: of each tick, in seconds after the start.
        lengths: of each tick, in seconds.
        units: that come in each tick, on average.
    """

    variants: tuple[str, ...]
    metric: str | None
    values: Floats
    harmful: NDArray[np.bool_]
    begins: Floats
    lengths: Floats
    units: Floats

    @property
    def best(self) -> Floats:
        """The best value at each tick."""
        return np.asarray(self.values.max(axis=1))

    def lost(self, shares: Floats) -> float:
        """What a split loses against always the best, on average.

        Arguments:
            shares: of all traffic, by tick and variant.
        """
        return float((self.units * (self.best - (shares * self.values).sum(axis=1))).sum())

    def harmed(self, shares: Floats) -> float:
        """How many units meet a variant while it does harm, on average."""
        return float((self.units[:, np.newaxis] * shares * self.harmful).sum())

    def harmful_from(self, variant: str) -> float | None:
        """When a variant first does harm, in seconds after the start."""
        column = self.harmful[:, self.variants.index(variant)]
        return float(self.begins[column.argmax()]) if column.any() else None

    def shortfall(self, variant: str) -> Shortfall:
        """How much worse than the best a variant is on average over the whole length."""
        means = np.average(self.values, axis=0, weights=self.lengths)
        best = float(means.max())
        by = best - float(means[self.variants.index(variant)])
        return Shortfall(by, by / abs(best) if abs(best) > ROUNDING else None)


def known(scene: Scene) -> Known:
    """What is true of a scene, in the ticks in which it is played."""
    definition, truth = scene.definition, scene.truth
    variants = tuple(definition.weights)
    clock = clock_of(scene)
    middles = clock.middles
    followed = _followed(scene)
    values = np.empty((0, len(variants)))
    if followed is not None:
        sign = 1.0 if followed.goal == "increase" else -1.0
        values = sign * _values(truth, followed, variants, middles)
    harmful = np.zeros((len(middles), len(variants)), np.bool_)
    control = variants.index(definition.control.key)
    for metric in scene.played:
        if metric.role == "guardrail":
            of_metric = _values(truth, metric, variants, middles)
            harmful |= _beyond(metric, of_metric, control)
    return Known(
        variants=variants,
        metric=None if followed is None else followed.key,
        values=values,
        harmful=harmful,
        begins=np.array(clock.begins),
        lengths=np.array(clock.lengths),
        units=truth.units_a_second * np.array(clock.lengths),
    )


def _followed(scene: Scene) -> Metric | None:
    policy = scene.definition.policy
    for metric in scene.played:
        if isinstance(policy, ThompsonPolicy):
            if metric.key == policy.metric:
                return metric
        elif metric.role == "primary":
            return metric
    return None


def _values(
    truth: Truth, metric: Metric, variants: Sequence[str], middles: Sequence[float]
) -> Floats:
    return np.array([[truth.finished(metric, key, at) for key in variants] for at in middles])


def _beyond(metric: Metric, values: Floats, control: int) -> NDArray[np.bool_]:
    """Where a variant is worse than the control by more than the margin."""
    sign = 1.0 if metric.goal == "decrease" else -1.0
    of_control = values[:, [control]]
    margin = metric.margin or Margin(absolute=0.0)
    allowed = (
        margin.relative * np.abs(of_control)
        if margin.relative is not None
        else np.full_like(of_control, margin.absolute or 0.0)
    )
    return np.asarray(sign * (values - of_control) > allowed + ROUNDING)
