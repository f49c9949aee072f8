"""A trail: what adaptive inference needs of a treatment and the control, block after block.

Where traffic follows the outcomes, an epoch's sample sizes are chosen by its past, and many epochs
are too small to compare their arms in. But the propensities of every unit are known. So each unit
of a block is scored with what earlier blocks taught:

    G_k = m_k + 1{A = k} (Y - m_k)/e_k,    k = control, treatment,

with e_k the epoch's propensity of arm k and m_k the plug-in, the arm's mean so far. Given the past
G_k has the arm's mean as its own, whatever the plug-ins and the propensities are: the scores less
that mean are martingale differences, and so are their sums over any number of blocks and epochs.
All that they need of a block are the moments of its cells. Units of other variants count, too: they
score (m_0, m_1), and so every time of enrolment weighs as much as it had units, as in `compare`.

Y may be several numbers, d of them (`linear.py`); then so are m_k and G_k, and means, ratios and
what is adjusted by a covariate are linear forms of them.

Three stretches follow one another:

* The opening, until there are plug-ins. Its cells are kept, by epoch, and are compared within
  epochs. A plug-in of 0 would make inverse-probability weighting of it, whose error grows with the
  mean itself: with a mean of 200 and a standard deviation of 50 it is four times too large.
* The training: units are scored, for a reading at a fixed horizon, while plug-ins and variances
  settle.
* The sequence: the scores that a reading may use which is looked at all the time.

A trail is stepped once for each block, and its size does not grow. What changes in a block after it
was closed, by late outcomes or by an erasure, does not come into it.

Sources: Robins, Rotnitzky, Zhao (1994), "Estimation of regression coefficients when some regressors
are not always observed", for the score; Hadad, Hirshberg, Zhan, Wager, Athey (2021), "Confidence
intervals for policy evaluation in adaptive experiments", for plug-ins from the past.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from analysis.inference.blocks import next_block
from analysis.inference.moments import Moments, empty, merge, pairs, scaled_to

PLUG_IN_UNITS: Final = 20
"""Units of each arm that make a plug-in, whose error then adds a twentieth to the variance."""

OPENING_EPOCHS: Final = 32
"""Epochs that the opening holds at most. After so many without enough units in each arm, any
plug-in will do: a wrong one costs precision, but no validity."""

BURN_IN_UNITS: Final = 1_000
"""Units of both arms before the sequence. Without them it excludes the truth in up to 7.9 % of the
runs at a nominal 5 %."""

BURN_IN_UNITS_PER_ARM: Final = 100
"""Of these, units that each arm needs."""

MEMORY_UNITS: Final = 5_000
"""Units of an arm that its plug-in remembers; beyond that older ones fade, so that a drifting base
rate is followed."""


class TrailCell(msgspec.Struct, frozen=True):
    """What one enrolment block saw of one epoch, for a treatment and the control.

    Arguments:
        block: the block's number, increasing in time.
        epoch: the epoch in which the units were enrolled.
        propensity_control, propensity_treatment: the epoch's logged propensities of the two arms,
            among all variants.
        units: of all variants, at least those of the two arms.
        control, treatment: moments of the two arms' finished units, of d numbers each.
    """

    block: int
    epoch: int
    propensity_control: float
    propensity_treatment: float
    units: int
    control: Moments
    treatment: Moments


class ArmScores(msgspec.Struct, frozen=True):
    """The scores G of one arm, over the scored units of all variants.

    Arguments:
        units: the arm's own units among them.
        mean: of G, d numbers.
        square: Σ (Y - m)(Y - m)'/e² over the arm's own units, packed as in `Moments`: the squared
            deviations of G from its plug-in. In expectation they are never less than the variance
            of the sum of G given the past, and more only by what the plug-in was off.
        weight, scale: Σ 1/e and Σ 1/e² over the arm's own units.
    """

    units: int = 0
    mean: tuple[float, ...] = ()
    square: tuple[float, ...] = ()
    weight: float = 0.0
    scale: float = 0.0

    @property
    def effective_units(self) -> float:
        """How many units of equal weight the mean is worth: (Σ 1/e)²/Σ 1/e². Source: Kish (1965),
        "Survey sampling"."""
        return self.weight * self.weight / self.scale if self.scale else 0.0


class PairScores(msgspec.Struct, frozen=True):
    """The scores of a stretch of a trail: of `units` units of all variants, for either arm."""

    units: int = 0
    control: ArmScores = ArmScores()
    treatment: ArmScores = ArmScores()


class Trail(msgspec.Struct, frozen=True):
    """What blocks have taught of a treatment and the control so far. Finite numbers only, so it is
    JSON.

    Arguments:
        control, treatment: moments of the arms' units as far as they are remembered: the plug-ins.
        opening: the cells before there were plug-ins, merged by epoch.
        training: the scores after the opening and before the sequence.
        sequence: the scores after the burn-in.
        reference: the propensities of control and treatment where the sequence began; None before.
        smallest_propensity: of an arm in the cells that are compared; None before any.
        epochs: how many epochs there are in opening, training and sequence.
        epochs_left_out, units_left_out: the epochs in which one of the two arms had no propensity,
            so that there is no contrast, and the units of the two arms in them.
        last_block, last_epoch, last_left_out: the last block that was followed, the last epoch of
            those that are compared, and of those that are left out.
        since_block: the last block that had been closed before the trail began, so that it is not
            in it; None where it has seen all.
    """

    control: Moments
    treatment: Moments
    opening: tuple[TrailCell, ...] = ()
    training: PairScores = PairScores()
    sequence: PairScores = PairScores()
    reference: tuple[float, float] | None = None
    smallest_propensity: float | None = None
    epochs: int = 0
    epochs_left_out: int = 0
    units_left_out: int = 0
    last_block: int | None = None
    last_epoch: int | None = None
    last_left_out: int | None = None
    since_block: int | None = None

    @property
    def is_scored(self) -> bool:
        """Whether any unit was scored."""
        return self.training.units + self.sequence.units > 0

    @property
    def has_plug_ins(self) -> bool:
        """Whether the opening is over."""
        enough = min(self.control.n, self.treatment.n) >= PLUG_IN_UNITS
        return enough or len(self.opening) >= OPENING_EPOCHS

    @property
    def is_burnt_in(self) -> bool:
        """Whether the next block is one of the sequence."""
        fewest = min(self.control.n, self.treatment.n)
        both = self.control.n + self.treatment.n
        return fewest >= BURN_IN_UNITS_PER_ARM and both >= BURN_IN_UNITS


def start(d: int, since_block: int | None = None) -> Trail:
    """The trail of a metric with d numbers a unit before any block."""
    return Trail(control=empty(d), treatment=empty(d), since_block=since_block)


def follow(trail: Trail, cells: Sequence[TrailCell]) -> Trail:
    """The trail after one more block.

    Arguments:
        trail: after the block before.
        cells: the block's cells, at most one an epoch, in any order. Where one of the two arms has
            no propensity they allow no contrast: they only train plug-ins, and are counted.

    Raises:
        ValueError: when the cells are of several blocks, of one not after the last, of one epoch
            twice, have propensities outside [0, 1], or fewer units than their arms together.
    """
    if not cells:
        return trail
    block = _check(trail, cells)
    ordered = sorted(cells, key=lambda cell: cell.epoch)
    opening, training, sequence = trail.opening, trail.training, trail.sequence
    reference, smallest = trail.reference, trail.smallest_propensity
    epochs, last_epoch = trail.epochs, trail.last_epoch
    left_out, last_left_out = trail.epochs_left_out, trail.last_left_out
    units_left_out = trail.units_left_out
    has_plug_ins, is_burnt_in = trail.has_plug_ins, trail.is_burnt_in
    plug_ins = _plug_ins(trail)
    control, treatment = trail.control, trail.treatment
    for cell in ordered:
        least = min(cell.propensity_control, cell.propensity_treatment)
        both = cell.control.n + cell.treatment.n
        if least > 0.0 and cell.units > 0:
            if not has_plug_ins:
                opening = _with_cell(opening, cell)
            elif is_burnt_in:
                sequence = _scored(sequence, cell, plug_ins)
                reference = reference or (cell.propensity_control, cell.propensity_treatment)
            else:
                training = _scored(training, cell, plug_ins)
            smallest = least if smallest is None else min(smallest, least)
            if last_epoch is None or cell.epoch > last_epoch:
                epochs, last_epoch = epochs + 1, cell.epoch
        elif both > 0:
            units_left_out += both
            if last_left_out is None or cell.epoch > last_left_out:
                left_out, last_left_out = left_out + 1, cell.epoch
        control = _remember(control, cell.control)
        treatment = _remember(treatment, cell.treatment)
    return Trail(
        control=control,
        treatment=treatment,
        opening=opening,
        training=training,
        sequence=sequence,
        reference=reference,
        smallest_propensity=smallest,
        epochs=epochs,
        epochs_left_out=left_out,
        units_left_out=units_left_out,
        last_block=block,
        last_epoch=last_epoch,
        last_left_out=last_left_out,
        since_block=trail.since_block,
    )


def merge_scores(a: PairScores, b: PairScores) -> PairScores:
    """The scores of two stretches together."""
    if a.units == 0 or b.units == 0:
        return b if a.units == 0 else a
    share = b.units / (a.units + b.units)
    return PairScores(
        units=a.units + b.units,
        control=_merge_arms(a.control, b.control, share),
        treatment=_merge_arms(a.treatment, b.treatment, share),
    )


def _merge_arms(a: ArmScores, b: ArmScores, share: float) -> ArmScores:
    """`share` is that of b's units, of all variants, in those of both."""
    return ArmScores(
        units=a.units + b.units,
        mean=tuple(x + (y - x) * share for x, y in zip(a.mean, b.mean, strict=True)),
        square=tuple(x + y for x, y in zip(a.square, b.square, strict=True)),
        weight=a.weight + b.weight,
        scale=a.scale + b.scale,
    )


def _check(trail: Trail, cells: Sequence[TrailCell]) -> int:
    block = next_block(cells, trail.last_block)
    if any(cell.units < cell.control.n + cell.treatment.n for cell in cells):
        raise ValueError(f"block {block} has fewer units than its arms together")
    return block


def _plug_ins(trail: Trail) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The guessed means of the two arms; one that was never seen borrows the other's."""
    control = trail.control if trail.control.n else trail.treatment
    treatment = trail.treatment if trail.treatment.n else trail.control
    return control.mean, treatment.mean


def _scored(
    scores: PairScores, cell: TrailCell, plug_ins: tuple[tuple[float, ...], tuple[float, ...]]
) -> PairScores:
    """The scores with those of one more cell."""
    share = cell.units / (scores.units + cell.units)
    return PairScores(
        units=scores.units + cell.units,
        control=_arm_scored(
            scores.control, cell.control, cell.propensity_control, plug_ins[0], cell.units, share
        ),
        treatment=_arm_scored(
            scores.treatment,
            cell.treatment,
            cell.propensity_treatment,
            plug_ins[1],
            cell.units,
            share,
        ),
    )


def _arm_scored(
    scores: ArmScores,
    seen: Moments,
    propensity: float,
    plug_in: tuple[float, ...],
    units: int,
    share: float,
) -> ArmScores:
    """The scores of an arm with those of one more cell.

    The cell's own units deviate from the plug-in by (Y - m)/e, the others not at all. So the mean
    of the cell is m + (n/N)(ȳ - m)/e, and the squares are (M2 + n (ȳ - m)(ȳ - m)')/e².

    Arguments:
        seen: the moments of the arm's own units in the cell.
        propensity: e.
        plug_in: m.
        units: N, the cell's units of all variants.
        share: that of N in all units scored so far, the cell's included.
    """
    n = seen.n
    if n == 0:
        mean: tuple[float, ...] = plug_in
        square: tuple[float, ...] = (0.0,) * len(seen.m2)
    else:
        off = [y - m for y, m in zip(seen.mean, plug_in, strict=True)]
        lift = n / (units * propensity)
        mean = tuple(m + lift * x for m, x in zip(plug_in, off, strict=True))
        twice = propensity * propensity
        square = tuple(
            (cross + n * off[i] * off[j]) / twice
            for cross, (i, j) in zip(seen.m2, pairs(seen.d), strict=True)
        )
    if not scores.mean:
        before_mean, before_square = mean, (0.0,) * len(square)
    else:
        before_mean, before_square = scores.mean, scores.square
    return ArmScores(
        units=scores.units + n,
        mean=tuple(x + (y - x) * share for x, y in zip(before_mean, mean, strict=True)),
        square=tuple(x + y for x, y in zip(before_square, square, strict=True)),
        weight=scores.weight + n / propensity,
        scale=scores.scale + n / (propensity * propensity),
    )


def _with_cell(opening: tuple[TrailCell, ...], cell: TrailCell) -> tuple[TrailCell, ...]:
    """The opening with one more cell, merged into that of its epoch."""
    for place, there in enumerate(opening):
        if there.epoch == cell.epoch:
            together = TrailCell(
                block=cell.block,
                epoch=cell.epoch,
                propensity_control=cell.propensity_control,
                propensity_treatment=cell.propensity_treatment,
                units=there.units + cell.units,
                control=merge(there.control, cell.control),
                treatment=merge(there.treatment, cell.treatment),
            )
            return (*opening[:place], together, *opening[place + 1 :])
    return (*opening, cell)


def _remember(seen: Moments, new: Moments) -> Moments:
    if new.n == 0:
        return seen
    merged = merge(seen, new)
    return scaled_to(merged, MEMORY_UNITS) if merged.n > MEMORY_UNITS else merged
