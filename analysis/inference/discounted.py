"""Evidence that fades: what closed blocks taught of each arm, older ones less, as the world drifts.

A unit that was enrolled a half-life ago counts half of one that was enrolled now. Counts cannot
simply be discounted and pooled: under a bandit an arm's units come chiefly from the times at which
it was the favourite, so that it would be credited with the base rate of those times. But the
propensities of every unit are known. So each unit of a block is scored, as in a trail, with what
earlier blocks taught:

    G_k = m_k + 1{A = k} (Y - m_k)/e_k,

with e_k the epoch's propensity of arm k and m_k the plug-in, the arm's discounted mean so far.
Given the past G_k has the arm's mean as its own. The mean of an arm over units u with the weights
w_u = 2^(-age/half-life) is Σ w G / Σ w; its error is a martingale, divided by Σ w, whose variance
is estimated by Σ w² (Y - m)²/e² over the arm's own units, divided by (Σ w)². It is never too small
but by chance, and it does not go to 0: no more is known than so many recent units can tell. Where
chance gave an arm fewer units lately than its propensity would, its variance is that of as many as
were to be expected, so that an arm without units is not certain.

Scores are kept by pairs, of the control and each treatment, over the cells in which both have
traffic, so that a variant which was rolled back for a while is compared over its own times only
(`aligned.py`). The first units of an arm train its plug-in and are not scored.

A state is stepped once for each block, and its size does not grow.

Sources: Raj, Kalyani (2017), "Taming non-stationary bandits: a Bayesian approach", for Thompson
sampling on discounted evidence; Hadad, Hirshberg, Zhan, Wager, Athey (2021), "Confidence intervals
for policy evaluation in adaptive experiments", for scores with plug-ins from the past, here with
weights by age, which do not depend on the outcomes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from analysis.inference.aipw import FEW_UNITS
from analysis.inference.aligned import Compared, Level, aligned
from analysis.inference.kinds import Kind
from analysis.inference.moments import EMPTY, Moments
from analysis.inference.thompson import ArmPosterior
from analysis.inference.trail import PLUG_IN_UNITS

_NOTHING: Final = 1e-150
"""A weight below this is forgotten: its square would lose its digits."""


class ScoredCell(msgspec.Struct, frozen=True):
    """What one enrolment block saw of one epoch, of all arms.

    Arguments:
        block: the Unix time at which the block begins, in seconds, increasing.
        epoch: the epoch in which the units were enrolled.
        propensities: the epoch's, by variant; one that is missing had none.
        arms: moments of the finished units, of one number each, by variant.
    """

    block: int
    epoch: int
    propensities: dict[str, float]
    arms: dict[str, Moments]

    @property
    def units(self) -> int:
        """Of all variants that had a propensity."""
        arms = self.arms.items()
        return sum(cell.n for variant, cell in arms if self.propensities.get(variant, 0.0) > 0.0)


class Memory(msgspec.Struct, frozen=True):
    """What is remembered of an arm's own units: the plug-in.

    Arguments:
        seen: units, none forgotten.
        weight: of them, discounted: Σ w.
        mean: discounted.
        square: Σ w (Y - mean)².
    """

    seen: int = 0
    weight: float = 0.0
    mean: float = 0.0
    square: float = 0.0


class Faded(msgspec.Struct, frozen=True):
    """The discounted scores of one arm of a pair.

    Arguments:
        units: the arm's own scored units, none forgotten.
        mean: Σ w G / Σ w over the scored units of all variants.
        square: Σ w² (Y - m)²/e² over the arm's own units.
        weight, scale: Σ w/e and Σ w²/e² over the arm's own units.
        expected: Σ w²/e over the scored units of all variants: what the scale is expected to be.
    """

    units: int = 0
    mean: float = 0.0
    square: float = 0.0
    weight: float = 0.0
    scale: float = 0.0
    expected: float = 0.0

    @property
    def effective_units(self) -> float:
        """How many units of equal weight the mean is worth. Source: Kish (1965), "Survey
        sampling"."""
        return self.weight * self.weight / self.scale if self.scale else 0.0


class FadedPair(msgspec.Struct, frozen=True):
    """The discounted scores of the control and of a treatment, and Σ w over the units of all
    variants in the cells in which both have traffic."""

    weight: float = 0.0
    control: Faded = Faded()
    treatment: Faded = Faded()


class Discounted(msgspec.Struct, frozen=True):
    """What blocks have taught so far, as of the last one. Finite numbers only, so it is JSON.

    Arguments:
        control: the control's key.
        memories: by variant.
        pairs: by treatment.
        last_block: the last block that was followed; None before any.
        since_block: the first block that was followed where earlier ones had been closed before,
            so that they are not in it; None where it has seen all.
    """

    control: str
    memories: dict[str, Memory] = {}
    pairs: dict[str, FadedPair] = {}
    last_block: int | None = None
    since_block: int | None = None


def start(control: str, treatments: Sequence[str], since_block: int | None = None) -> Discounted:
    """The state before any block."""
    return Discounted(
        control=control,
        memories={variant: Memory() for variant in (control, *treatments)},
        pairs={treatment: FadedPair() for treatment in treatments},
        since_block=since_block,
    )


def follow(state: Discounted, cells: Sequence[ScoredCell], half_life: float) -> Discounted:
    """The state after one more block.

    Arguments:
        state: after the block before.
        cells: the block's cells, at most one an epoch, in any order.
        half_life: in seconds, above 0.

    Raises:
        ValueError: when the cells are of several blocks, of one not after the last, of one epoch
            twice, or have a propensity outside [0, 1]; for a half-life that is not positive.
    """
    if not cells:
        return state
    block = _check(state, cells, half_life)
    age = 0.0 if state.last_block is None else block - state.last_block
    fade = 2.0 ** (-age / half_life)
    memories = {variant: _faded_memory(memory, fade) for variant, memory in state.memories.items()}
    pairs = {treatment: _faded_pair(pair, fade) for treatment, pair in state.pairs.items()}
    plug_ins = {v: m.mean for v, m in memories.items() if m.seen >= PLUG_IN_UNITS}
    for cell in sorted(cells, key=lambda cell: cell.epoch):
        for treatment, pair in pairs.items():
            arms = (state.control, treatment)
            is_known = all(variant in plug_ins for variant in arms)
            if is_known and cell.units and all(cell.propensities.get(v, 0.0) > 0.0 for v in arms):
                pairs[treatment] = _scored(pair, cell, arms, plug_ins)
        for variant, seen in cell.arms.items():
            if variant in memories:
                memories[variant] = _remembered(memories[variant], seen)
    return msgspec.structs.replace(state, memories=memories, pairs=pairs, last_block=block)


def posteriors(
    state: Discounted, kind: Kind, warmup: int, left_out: Sequence[str] = ()
) -> dict[str, ArmPosterior] | None:
    """The posteriors of the arms' means, by variant: normal, under a flat prior.

    The variance of an arm's units is (n s² + κ L)/(n + κ), with n its effective units, L the
    largest variance that is remembered of an arm, and κ = `FEW_UNITS`: a favourite's rival that has
    seen a handful of conversions lately is not certain. For proportions L is that of the smoothed
    rate.

    Arguments:
        state: of one number a unit.
        kind: proportion or mean.
        warmup: scored units that every arm needs.
        left_out: treatments that take no part.

    Returns:
        None, no decision, while an arm has fewer units than `warmup` or no variance.
    """
    pairs = {t: pair for t, pair in state.pairs.items() if t not in left_out}
    if not pairs or any(
        min(pair.control.units, pair.treatment.units) < max(warmup, 1) for pair in pairs.values()
    ):
        return None
    largest = max(_variance(state.memories[v], kind) for v in (state.control, *pairs))
    return aligned(
        {
            treatment: Compared(
                control=_level(pair.control, pair.weight, largest),
                treatment=_level(pair.treatment, pair.weight, largest),
            )
            for treatment, pair in pairs.items()
        },
        state.control,
    )


def effective_units(state: Discounted) -> dict[str, float]:
    """How many units of equal weight the scores of each treatment are worth."""
    return {treatment: pair.treatment.effective_units for treatment, pair in state.pairs.items()}


def _check(state: Discounted, cells: Sequence[ScoredCell], half_life: float) -> int:
    block = cells[0].block
    if not half_life > 0.0:
        raise ValueError(f"a half-life is above 0, not {half_life}")
    if any(cell.block != block for cell in cells):
        raise ValueError("a step takes the cells of one block")
    if state.last_block is not None and block <= state.last_block:
        raise ValueError(f"block {block} does not come after block {state.last_block}")
    if len({cell.epoch for cell in cells}) != len(cells):
        raise ValueError(f"block {block} names an epoch twice")
    if any(not 0.0 <= e <= 1.0 for cell in cells for e in cell.propensities.values()):
        raise ValueError(f"a propensity of block {block} lies outside [0, 1]")
    return block


def _faded_memory(memory: Memory, fade: float) -> Memory:
    return msgspec.structs.replace(memory, weight=memory.weight * fade, square=memory.square * fade)


def _faded_pair(pair: FadedPair, fade: float) -> FadedPair:
    weight = pair.weight * fade
    if weight < _NOTHING:
        return FadedPair(control=_forgotten(pair.control), treatment=_forgotten(pair.treatment))
    return FadedPair(
        weight=weight,
        control=_faded(pair.control, fade),
        treatment=_faded(pair.treatment, fade),
    )


def _faded(arm: Faded, fade: float) -> Faded:
    """Weights fade once, their squares twice; the mean stays."""
    twice = fade * fade
    if arm.scale * twice < _NOTHING:
        return msgspec.structs.replace(_forgotten(arm), expected=arm.expected * twice)
    return Faded(
        units=arm.units,
        mean=arm.mean,
        square=arm.square * twice,
        weight=arm.weight * fade,
        scale=arm.scale * twice,
        expected=arm.expected * twice,
    )


def _forgotten(arm: Faded) -> Faded:
    return Faded(units=arm.units, mean=arm.mean)


def _remembered(memory: Memory, seen: Moments) -> Memory:
    """Source: Chan, Golub, LeVeque (1983), as `moments.merge`, with weights for counts."""
    if seen.n == 0:
        return memory
    weight = memory.weight + seen.n
    delta = seen.mean[0] - memory.mean
    share = seen.n / weight
    return Memory(
        seen=memory.seen + seen.n,
        weight=weight,
        mean=memory.mean + delta * share,
        square=memory.square + seen.m2[0] + delta * delta * memory.weight * share,
    )


def _scored(
    pair: FadedPair, cell: ScoredCell, arms: tuple[str, str], plug_ins: Mapping[str, float]
) -> FadedPair:
    """The pair with the scores of one more cell, of weight 1: the present is not discounted."""
    weight = pair.weight + cell.units
    control, treatment = (
        _arm_scored(side, cell, variant, plug_ins[variant], cell.units / weight)
        for side, variant in zip((pair.control, pair.treatment), arms, strict=True)
    )
    return FadedPair(weight=weight, control=control, treatment=treatment)


def _arm_scored(arm: Faded, cell: ScoredCell, variant: str, plug_in: float, share: float) -> Faded:
    """An arm's scores with those of one more cell, as in `trail.py`: the mean of the cell is
    m + (n/N)(ȳ - m)/e, and the squares are (M2 + n (ȳ - m)²)/e².

    Arguments:
        plug_in: m.
        share: the cell's part of Σ w.
    """
    seen = cell.arms.get(variant, EMPTY)
    mean, square, n, e = plug_in, 0.0, seen.n, cell.propensities[variant]
    if n:
        off = seen.mean[0] - plug_in
        mean = plug_in + n / (cell.units * e) * off
        square = (seen.m2[0] + n * off * off) / (e * e)
    return Faded(
        units=arm.units + n,
        mean=arm.mean + (mean - arm.mean) * share,
        square=arm.square + square,
        weight=arm.weight + n / e,
        scale=arm.scale + n / (e * e),
        expected=arm.expected + cell.units / e,
    )


def _variance(memory: Memory, kind: Kind) -> float:
    """Of one unit, as remembered."""
    if kind == "proportion":
        rate = (memory.mean * memory.weight + 1.0) / (memory.weight + 2.0)
        return rate * (1.0 - rate)
    return memory.square / (memory.weight - 1.0) if memory.weight > 1.0 else 0.0


def _level(arm: Faded, weight: float, largest: float) -> Level:
    """The mean of an arm and its variance; infinite where all that was scored is forgotten."""
    if weight == 0.0:
        return Level(arm.units, arm.mean, math.inf)
    n = arm.effective_units
    own = arm.square / arm.scale if arm.scale else 0.0
    of_a_unit = (n * own + FEW_UNITS * largest) / (n + FEW_UNITS)
    return Level(arm.units, arm.mean, of_a_unit * (max(arm.scale, arm.expected) / weight) / weight)
