"""`trail.follow` and what `aipw.py` makes of a trail, for many experiments at once.

For metrics of one number a unit. Fixed readings are those of trails whose opening is their first
block alone.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.inference.choice import SMALL_SHARE
from analysis.inference.epoch_sums import SMALL_EPOCH
from analysis.inference.moments import Moments
from analysis.inference.trail import (
    BURN_IN_UNITS,
    BURN_IN_UNITS_PER_ARM,
    PLUG_IN_UNITS,
    ArmScores,
    PairScores,
    Trail,
    TrailCell,
    follow,
    start,
)
from analysis.inference.variance import CAUTIOUS_UNITS
from bench.calibration.guard_twin import Arm
from bench.calibration.twins import Counts, Floats


class Stretch:
    """The scores of a stretch of a trail, arms in the last axis: `trail.PairScores`."""

    def __init__(self, experiments: int) -> None:
        self.units = np.zeros(experiments)
        self.own, self.total, self.square, self.weight, self.scale = (
            np.zeros((experiments, 2)) for _ in range(5)
        )

    def scores(self, experiment: int) -> PairScores:
        """Those of an experiment."""
        units = int(self.units[experiment])
        if units == 0:
            return PairScores()
        control, treatment = (
            ArmScores(
                units=int(self.own[experiment, arm]),
                mean=(float(self.total[experiment, arm]) / units,),
                square=(float(self.square[experiment, arm]),),
                weight=float(self.weight[experiment, arm]),
                scale=float(self.scale[experiment, arm]),
            )
            for arm in (0, 1)
        )
        return PairScores(units, control, treatment)

    def add(
        self, here: Floats, every: Floats, n: Floats, scores: Floats, square: Floats, e: Floats
    ) -> None:
        """Take in a block of those experiments that are here: `scores` sums to Σ G."""
        on = here[:, None]
        self.units = self.units + here * every
        self.own = self.own + on * n
        self.total = self.total + on * scores
        self.square = self.square + on * square
        self.weight = self.weight + on * n / e
        self.scale = self.scale + on * n / e**2


class Followed:
    """What is read of trails after each block, of shape (experiments, blocks).

    Arguments:
        n, mean, m2: moments of control and treatment, of shape (experiments, blocks, 2).
        every: units of all variants, of shape (experiments, blocks).
        propensity: of control and treatment, of shape (experiments, blocks, 2).

    Attributes:
        difference, std_error, time, units: of the sequence, as `always_valid` takes them.
        is_scored: whether any unit was scored so far.
    """

    def __init__(
        self, n: Counts, mean: Floats, m2: Floats, every: Counts, propensity: Floats
    ) -> None:
        experiments, blocks = every.shape
        self._blocks, self._every, self._propensity = (n, mean, m2), every, propensity
        self._opened_at_once = n[:, 0].min(axis=1) >= PLUG_IN_UNITS
        self._arms = Arm(experiments), Arm(experiments)
        self._training, self._sequence = Stretch(experiments), Stretch(experiments)
        reference = np.zeros((experiments, 2))
        self.difference, self.std_error, self.time = (
            np.zeros((experiments, blocks)) for _ in range(3)
        )
        self.units = np.zeros((experiments, blocks, 2), dtype=np.int64)
        self.is_scored = np.zeros((experiments, blocks), dtype=bool)
        for block in range(blocks):
            seen = np.stack([arm.n for arm in self._arms], axis=1)
            burnt = (seen.min(axis=1) >= BURN_IN_UNITS_PER_ARM) & (
                seen.sum(axis=1) >= BURN_IN_UNITS
            )
            opened = seen.min(axis=1) >= PLUG_IN_UNITS
            if opened.any():
                plug = np.stack([arm.mean for arm in self._arms], axis=1)
                e, units = propensity[:, block], n[:, block].astype(float)
                off = mean[:, block] - plug
                of_all = every[:, block].astype(float)
                total = of_all[:, None] * plug + units * off / e
                square = (m2[:, block] + units * off**2) / e**2
                for stretch, here in (
                    (self._training, opened & ~burnt),
                    (self._sequence, opened & burnt),
                ):
                    stretch.add(here.astype(float), of_all, units, total, square, e)
                begins = burnt & (reference.sum(axis=1) == 0.0)
                reference = np.where(begins[:, None], e, reference)
            for arm, place in zip(self._arms, (0, 1), strict=True):
                arm.remember(
                    n[:, block, place].astype(float), mean[:, block, place], m2[:, block, place]
                )
            self.is_scored[:, block] = self._training.units + self._sequence.units > 0
            self._read_sequence(block, reference)

    def trail(self, experiment: int) -> Trail:
        """The trail of an experiment after its last block, as far as a fixed reading goes.

        Raises:
            ValueError: when its opening was longer than its first block.
        """
        if not self._opened_at_once[experiment]:
            raise ValueError("the first block gives each arm its plug-in")
        control, treatment = (arm.moments(experiment) for arm in self._arms)
        first = self._first(experiment)
        return msgspec.structs.replace(
            start(1),
            control=control,
            treatment=treatment,
            opening=(first,),
            training=self._training.scores(experiment),
            sequence=self._sequence.scores(experiment),
            smallest_propensity=float(self._propensity[experiment].min()),
            epochs=len(self._propensity[experiment]),
        )

    def _first(self, experiment: int) -> TrailCell:
        control, treatment = (
            Moments(int(n), (float(mean),), (float(m2),))
            for n, mean, m2 in zip(
                *(numbers[experiment, 0] for numbers in self._blocks), strict=True
            )
        )
        e_control, e_treatment = self._propensity[experiment, 0].tolist()
        return TrailCell(
            0, 0, e_control, e_treatment, int(self._every[experiment, 0]), control, treatment
        )

    def _read_sequence(self, block: int, reference: Floats) -> None:
        """`aipw.aipw_sequence` after a block."""
        scored = self._sequence
        remembered = np.stack([arm.m2 / np.maximum(arm.n - 1, 1) for arm in self._arms], axis=1)
        larger = remembered.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            own = scored.square / scored.scale
            n = scored.weight**2 / scored.scale
            of_a_unit = (n * own + CAUTIOUS_UNITS * larger) / (n + CAUTIOUS_UNITS)
            total = (of_a_unit * scored.scale).sum(axis=1)
            means = scored.total / scored.units[:, None]
            self.difference[:, block] = means[:, 1] - means[:, 0]
            self.std_error[:, block] = np.sqrt(total) / scored.units
            at_first = (of_a_unit / reference).sum(axis=1)
            self.time[:, block] = reference.sum(axis=1) * total / at_first
        self.units[:, block] = scored.own.astype(np.int64)


def small_epochs(n: Counts) -> NDArray[np.bool_]:
    """`choice.has_small_epochs` at each look.

    Arguments:
        n: units of the two arms in each epoch so far, of shape (experiments, looks, epochs, 2).
    """
    units = n.sum(axis=3)
    is_small = np.where(n > 0, n, SMALL_EPOCH).min(axis=3) < SMALL_EPOCH
    return np.asarray((is_small * units).sum(axis=2) > SMALL_SHARE * units.sum(axis=2))


def followed(
    n: Counts, mean: Floats, m2: Floats, every: Counts, propensity: Floats, epoch: Counts
) -> Trail:
    """The library's trail after one experiment's blocks.

    Arguments:
        n, mean, m2, propensity: of shape (blocks, 2).
        every, epoch: of shape (blocks,).
    """
    trail = start(1)
    for block in range(len(every)):
        control, treatment = (
            Moments(int(n[block, arm]), (float(mean[block, arm]),), (float(m2[block, arm]),))
            for arm in (0, 1)
        )
        cell = TrailCell(
            block=block,
            epoch=int(epoch[block]),
            propensity_control=float(propensity[block, 0]),
            propensity_treatment=float(propensity[block, 1]),
            units=int(every[block]),
            control=control,
            treatment=treatment,
        )
        trail = follow(trail, [cell])
    return trail
