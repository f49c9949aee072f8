"""Trails: scores of blocks by plug-ins from earlier blocks, against the scores of single units."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis.inference.moments import EMPTY, Moments, empty, of_rows, pairs
from analysis.inference.trail import (
    BURN_IN_UNITS,
    MEMORY_UNITS,
    OPENING_EPOCHS,
    PLUG_IN_UNITS,
    PairScores,
    Trail,
    TrailCell,
    follow,
    merge_scores,
    start,
)
from tests.unit.samples import proportion

Floats = NDArray[np.float64]


class Block(NamedTuple):
    """The units of one block, all of one epoch: the arm of each (0 the control, 1 the treatment, 2
    any other), its numbers, and the propensities of the two."""

    arm: NDArray[np.int64]
    values: Floats
    propensities: tuple[float, float]


def cell(number: int, block: Block, epoch: int | None = None) -> TrailCell:
    """A block as a trail sees it."""
    control, treatment = (of_rows(block.values[block.arm == k]) for k in (0, 1))
    return TrailCell(
        block=number,
        epoch=number if epoch is None else epoch,
        propensity_control=block.propensities[0],
        propensity_treatment=block.propensities[1],
        units=len(block.arm),
        control=control,
        treatment=treatment,
    )


def followed(blocks: Sequence[Block], d: int = 1) -> Trail:
    """The trail of some blocks, each an epoch of its own."""
    trail = start(d)
    for number, block in enumerate(blocks, 1):
        trail = follow(trail, [cell(number, block)])
    return trail


def random_blocks(seed: int, sizes: Sequence[int], d: int = 1) -> list[Block]:
    """Blocks of units with correlated numbers, at propensities that move."""
    rng = np.random.default_rng(seed)
    blocks = []
    for size in sizes:
        e = rng.dirichlet((2.0, 2.0, 1.0)).clip(0.02)
        e /= e.sum()
        arm = rng.choice(3, size=size, p=e)
        common = rng.normal(size=(size, 1))
        values = 5.0 + common + rng.normal(size=(size, d)) + 0.5 * (arm == 1)[:, None]
        blocks.append(Block(arm, values, (float(e[0]), float(e[1]))))
    return blocks


class Unitwise:
    """The scores of all units, one by one, from the plug-ins that the trail had before their block;
    for fewer units than are remembered."""

    def __init__(self, blocks: Sequence[Block], d: int) -> None:
        self.opening: list[Block] = []
        self.scores: list[tuple[Floats, Floats]] = []
        self.squares = [np.zeros((d, d)), np.zeros((d, d))]
        self.own = [0, 0]
        self.reciprocals: list[list[float]] = [[], []]
        seen: list[Floats] = [np.zeros((0, d)), np.zeros((0, d))]
        for block in blocks:
            of_arm = [block.values[block.arm == k] for k in (0, 1)]
            if min(len(rows) for rows in seen) < PLUG_IN_UNITS:
                self.opening.append(block)
            else:
                plug_ins = [rows.mean(axis=0) for rows in seen]
                for arm, y in zip(block.arm, block.values, strict=True):
                    g = [plug_ins[0].copy(), plug_ins[1].copy()]
                    if arm < 2:
                        r = (y - plug_ins[arm]) / block.propensities[arm]
                        g[arm] += r
                        self.squares[arm] += np.outer(r, r)
                        self.own[arm] += 1
                        self.reciprocals[arm].append(1.0 / block.propensities[arm])
                    self.scores.append((g[0], g[1]))
            seen = [np.vstack([rows, new]) for rows, new in zip(seen, of_arm, strict=True)]

    def mean(self, arm: int) -> Floats:
        """The mean of the scores of an arm, over all scored units."""
        mean: Floats = np.mean([g[arm] for g in self.scores], axis=0)
        return mean


def together(trail: Trail) -> PairScores:
    return merge_scores(trail.training, trail.sequence)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 120), min_size=4, max_size=25),
    d=st.sampled_from([1, 2, 4]),
)
def test_scores_from_moments_are_those_of_single_units(seed: int, sizes: list[int], d: int) -> None:
    blocks = random_blocks(seed, sizes, d)
    trail, unitwise = followed(blocks, d), Unitwise(blocks, d)
    assert sum(c.units for c in trail.opening) == sum(len(b.arm) for b in unitwise.opening)
    scored = together(trail)
    assert scored.units == len(unitwise.scores)
    if scored.units == 0:
        return
    for k, arm in enumerate((scored.control, scored.treatment)):
        assert arm.units == unitwise.own[k]
        assert arm.mean == pytest.approx(tuple(unitwise.mean(k)), rel=1e-9)
        square = tuple(unitwise.squares[k][i, j] for i, j in pairs(d))
        assert arm.square == pytest.approx(square, rel=1e-9, abs=1e-9)
        assert arm.weight == pytest.approx(sum(unitwise.reciprocals[k]))
        assert arm.scale == pytest.approx(sum(r * r for r in unitwise.reciprocals[k]))


def test_the_order_of_the_stretches_is_opening_training_sequence() -> None:
    blocks = random_blocks(3, [100] * 30)
    trails = [start(1)]
    for number, block in enumerate(blocks):
        trails.append(follow(trails[-1], [cell(number, block)]))
    stages = [(sum(c.units for c in t.opening), t.training.units, t.sequence.units) for t in trails]
    for before, after in pairwise(stages):
        grown = [b - a for a, b in zip(before, after, strict=True)]
        assert sorted(grown) == [0, 0, 100]
        assert sum(before[grown.index(100) + 1 :]) == 0
    [first] = [t for t in trails if t.sequence.units == 100]
    last = trails[trails.index(first) - 1]
    assert last.is_burnt_in
    assert last.control.n + last.treatment.n >= BURN_IN_UNITS
    assert first.reference == blocks[trails.index(last)].propensities


def test_a_block_is_scored_by_earlier_blocks_only() -> None:
    """Else the scores of a small arm would be drawn to its own outcomes."""
    blocks = random_blocks(4, [200, 200, 200])
    before = followed(blocks[:2])
    other = Block(blocks[2].arm, blocks[2].values + 100.0, blocks[2].propensities)
    n, e = int((other.arm == 1).sum()), other.propensities[1]
    scored = together(follow(before, [cell(3, other)])).treatment.mean[0]
    as_it_was = together(followed(blocks)).treatment.mean[0]
    # 100 more of each treated unit come in with 1/e each, over the 400 scored units.
    assert scored - as_it_was == pytest.approx(100.0 * n / e / 400, rel=1e-9)


def test_units_of_other_variants_count_as_enrolled() -> None:
    """Each time of enrolment weighs as many units as came in it, whichever variant they met."""
    opening = TrailCell(1, 1, 0.5, 0.5, 100, proportion(50, 25), proportion(50, 25))
    alone = TrailCell(2, 2, 0.5, 0.5, 100, proportion(50, 10), proportion(50, 10))
    with_third = TrailCell(2, 2, 0.25, 0.25, 200, proportion(50, 10), proportion(50, 10))
    before = follow(start(1), [opening])
    for seen, units in ((alone, 100), (with_third, 200)):
        scored = together(follow(before, [seen]))
        assert scored.units == units
        assert scored.control.mean[0] == pytest.approx(0.2)


def test_a_cell_without_one_propensity_trains_and_is_left_out() -> None:
    seen = TrailCell(1, 1, 1.0, 0.0, 30, proportion(30, 12), EMPTY)
    trail = follow(start(1), [seen])
    trail = follow(trail, [msgspec.structs.replace(seen, block=2)])
    assert trail.control.n == 60
    assert (trail.epochs_left_out, trail.units_left_out) == (1, 60)
    assert (trail.opening, trail.epochs, trail.smallest_propensity) == ((), 0, None)


def test_epochs_are_counted_once_over_all_their_blocks() -> None:
    blocks = random_blocks(5, [150] * 6)
    trail = start(1)
    for number, block in enumerate(blocks):
        trail = follow(trail, [cell(number, block, epoch=number // 2)])
    assert trail.epochs == 3
    assert trail.smallest_propensity == min(min(b.propensities) for b in blocks)
    assert trail.last_block == 5


def test_cells_of_one_epoch_are_merged_in_the_opening() -> None:
    few = TrailCell(1, 7, 0.5, 0.5, 10, proportion(5, 1), proportion(5, 2))
    trail = follow(follow(start(1), [few]), [msgspec.structs.replace(few, block=2)])
    [merged] = trail.opening
    assert (merged.epoch, merged.units, merged.control.n) == (7, 20, 10)
    assert merged.treatment.mean == pytest.approx((0.4,))


def test_several_epochs_of_a_block_are_scored_alike_in_any_order() -> None:
    blocks = random_blocks(6, [300, 60, 80])
    before = followed(blocks[:1])
    two = [cell(2, blocks[1], epoch=2), cell(2, blocks[2], epoch=3)]
    assert follow(before, two) == follow(before, two[::-1])


def test_nothing_new_changes_nothing() -> None:
    trail = followed(random_blocks(7, [50, 50]))
    assert follow(trail, []) == trail
    quiet = TrailCell(9, 9, 0.5, 0.5, 0, EMPTY, EMPTY)
    assert msgspec.structs.replace(follow(trail, [quiet]), last_block=2) == trail


def test_ten_thousand_epochs_of_one_unit_leave_no_more_behind_than_a_few() -> None:
    trail = start(1)
    for number in range(10_000):
        arm = number % 2
        moments = [EMPTY, EMPTY]
        moments[arm] = proportion(1, number % 5 == 0)
        trail = follow(trail, [TrailCell(number, number, 0.5, 0.5, 1, *moments)])
    assert len(trail.opening) <= OPENING_EPOCHS
    assert trail.epochs == 10_000
    assert trail.control.n <= MEMORY_UNITS
    text = msgspec.json.encode(trail)
    assert len(text) < 20_000
    assert msgspec.json.decode(text, type=Trail) == trail


def test_the_opening_ends_at_last_where_an_arm_gets_no_units() -> None:
    """The plug-in of the arm that was never seen is that of the other, not 0."""
    trail = start(1)
    for number in range(OPENING_EPOCHS + 1):
        cells = [TrailCell(number, number, 0.99, 0.01, 5, proportion(5, 2), EMPTY)]
        trail = follow(trail, cells)
    scored = together(trail)
    assert scored.units == 5
    assert scored.treatment.mean == pytest.approx((0.4,))
    assert scored.treatment.units == 0


def test_values_far_from_zero_keep_their_digits() -> None:
    blocks = random_blocks(8, [200] * 10)
    far = [Block(b.arm, b.values + 1e12, b.propensities) for b in blocks]
    near, moved = together(followed(blocks)), together(followed(far))
    assert moved.control.square == pytest.approx(near.control.square, rel=1e-3)
    assert moved.control.mean[0] - 1e12 == pytest.approx(near.control.mean[0], abs=1e-2)


def test_stretches_merge_in_any_order() -> None:
    a, b, c = (together(followed(random_blocks(seed, [200, 100, 100]))) for seed in (11, 12, 13))
    left, right = merge_scores(merge_scores(a, b), c), merge_scores(a, merge_scores(b, c))
    assert left.units == right.units
    assert left.control.mean == pytest.approx(right.control.mean, rel=1e-12)
    assert left.control.square == pytest.approx(right.control.square, rel=1e-12)
    assert merge_scores(a, PairScores()) == a
    assert merge_scores(PairScores(), a) == a


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([TrailCell(1, 1, 0.5, 0.5, 0, EMPTY, EMPTY)], "does not come after"),
        (
            [
                TrailCell(3, 1, 0.5, 0.5, 0, EMPTY, EMPTY),
                TrailCell(4, 2, 0.5, 0.5, 0, EMPTY, EMPTY),
            ],
            "cells of one block",
        ),
        ([TrailCell(3, 1, 0.5, 0.5, 0, EMPTY, EMPTY)] * 2, "names an epoch twice"),
        ([TrailCell(3, 1, 1.5, 0.5, 0, EMPTY, EMPTY)], "outside"),
        ([TrailCell(3, 1, 0.5, 0.5, 1, proportion(2, 1), EMPTY)], "fewer units"),
    ],
)
def test_what_is_no_block_is_refused(cells: list[TrailCell], message: str) -> None:
    before = follow(start(1), [TrailCell(2, 1, 0.5, 0.5, 0, EMPTY, EMPTY)])
    with pytest.raises(ValueError, match=message):
        follow(before, cells)


def test_cells_of_another_width_are_refused() -> None:
    before = follow(start(1), [TrailCell(1, 1, 0.5, 0.5, 1, proportion(1, 1), EMPTY)])
    wide = Moments(n=1, mean=(0.0, 1.0), m2=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="no common moments"):
        follow(before, [TrailCell(2, 1, 0.5, 0.5, 1, wide, empty(2))])
