"""AIPW estimates under reallocation, against single units and textbooks.

That intervals hold the truth after a bandit is for `test_calibration.py` to show.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from analysis.inference.aipw import (
    FEW_UNITS,
    aipw_comparison,
    aipw_sequence,
    weight_facts,
)
from analysis.inference.estimate import compare
from analysis.inference.kinds import Kind
from analysis.inference.moments import EMPTY, Moments
from analysis.inference.sequence import always_valid
from analysis.inference.trail import Trail, TrailCell, follow, start
from analysis.inference.variance import CAUTIOUS_UNITS
from tests.unit.samples import at_most, contrast, proportion
from tests.unit.test_trail import Block, Unitwise, cell, followed, random_blocks

Floats = NDArray[np.float64]
Z = float(stats.norm.isf(0.025))


def steady(blocks: int, size: int = 400, seed: int = 1, scale: float = 1.0) -> list[Block]:
    """Blocks of units with a mean of 4 standard deviations, in halves."""
    rng = np.random.default_rng(seed)
    return [
        Block(np.arange(size) % 2, scale * rng.normal(4.0, 1.0, (size, 1)), (0.5, 0.5))
        for _ in range(blocks)
    ]


def remembered(blocks: Sequence[Block], arm: int) -> Floats:
    """The units of an arm, all of which are remembered."""
    return np.vstack([b.values[b.arm == arm] for b in blocks])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["mean", "adjusted", "ratio", "adjusted ratio"]),
)
def test_the_estimate_is_that_of_single_units(seed: int, kind: str) -> None:
    """Difference and standard error by loops over units; the first block is the opening."""
    d = {"mean": 1, "adjusted ratio": 4}.get(kind, 2)
    rng = np.random.default_rng(seed)
    [first] = random_blocks(seed, [400], d)
    first = first._replace(arm=np.arange(400) % 3, propensities=(1 / 3, 1 / 3))
    others = random_blocks(seed + 1, rng.integers(5, 90, 25).tolist(), d)
    blocks = [first, *others]
    trail, units = followed(blocks, d), Unitwise(blocks, d)
    found = aipw_comparison(trail, "ratio" if "ratio" in kind else "mean")
    assert found.method == "aipw"

    n_b, n_s = 400, len(units.scores)
    opening = [first.values[first.arm == k] for k in (0, 1)]
    means = [(n_b * opening[k].mean(axis=0) + n_s * units.mean(k)) / (n_b + n_s) for k in (0, 1)]
    everyone = [remembered(blocks, k) for k in (0, 1)]
    spread = [(y - y.mean(axis=0)).T @ (y - y.mean(axis=0)) for y in everyone]
    if kind == "mean":
        forms, levels = [np.array([1.0])] * 2, [m[0] for m in means]
    elif kind == "adjusted":
        theta = sum(s[0, 1] for s in spread) / sum(s[1, 1] for s in spread)
        forms, levels = [np.array([1.0, -theta])] * 2, [m[0] - theta * m[1] for m in means]
        assert found.theta == pytest.approx(theta)
    else:
        levels = [m[0] / m[1] for m in means]
        forms = [
            np.array([1.0, -r] + [0.0] * (d - 2)) / m[1] for r, m in zip(levels, means, strict=True)
        ]
    if kind == "adjusted ratio":
        x, y = (means[0] + means[1])[2:] / 2
        z = np.array([0.0, 0.0, 1.0, -x / y]) / y
        pairs_of = list(zip(forms, spread, strict=True))
        theta = sum(w @ s @ z for w, s in pairs_of) / sum(z @ s @ z for s in spread)
        forms = [w - theta * z for w in forms]
        levels = [level - theta * (z @ m) for level, m in zip(levels, means, strict=True)]
        assert found.theta == pytest.approx(theta)
    assert found.difference == pytest.approx(levels[1] - levels[0], rel=1e-9, abs=1e-12)

    larger = max(
        float(w @ s @ w) / (len(y) - 1) for w, s, y in zip(forms, spread, everyone, strict=True)
    )
    total = 0.0
    for k, w in enumerate(forms):
        e = np.array(units.reciprocals[k])
        own, effective = float(w @ units.squares[k] @ w) / (e**2).sum(), e.sum() ** 2 / (e**2).sum()
        scored = (effective * own + FEW_UNITS * larger) / (effective + FEW_UNITS)
        n = len(opening[k])
        m2 = float(((opening[k] @ w - (opening[k] @ w).mean()) ** 2).sum())
        of_opening = (m2 + 5.0 * larger) / (n - 1 + 5.0) / n
        total += (scored * (e**2).sum() + n_b**2 * of_opening) / (n_b + n_s) ** 2
    assert found.std_error == pytest.approx(math.sqrt(total), rel=1e-9)
    assert found.ci_high is not None
    assert found.difference is not None
    assert found.ci_high - found.difference == pytest.approx(Z * math.sqrt(total), rel=1e-9)
    assert (found.test, found.df) == ("large_sample", None)


@pytest.mark.parametrize("kind", ["proportion", "mean"])
def test_one_block_gives_the_textbook_answer(kind: Kind) -> None:
    cells = (proportion(90, 30), proportion(110, 50))
    trail = follow(start(1), [TrailCell(1, 1, 0.5, 0.5, 200, *cells)])
    assert aipw_comparison(trail, kind) == compare(contrast([cells], kind), "a", "b", kind)


def test_one_adaptive_block_does_not_fall_to_inverse_probability_weighting() -> None:
    """A mean of 200 and a standard deviation of 50: weighted by 1/e alone, a unit deviates by its
    value, not by what it differs from the mean."""
    rng = np.random.default_rng(3)
    arm = np.arange(1_000) % 2
    block = Block(arm, rng.normal(200.0, 50.0, (1_000, 1)), (0.5, 0.5))
    found = aipw_comparison(followed([block]), "mean")
    weighted = block.values[:, 0] * np.where(arm == 1, 2.0, -2.0)
    assert found.std_error is not None
    assert found.std_error == pytest.approx(50.0 * math.sqrt(4 / 1_000), rel=0.1)
    assert weighted.std(ddof=1) / math.sqrt(1_000) > 4 * found.std_error


def test_more_blocks_of_one_epoch_come_near_the_textbook_answer() -> None:
    blocks = steady(20, scale=50.0)
    trail = start(1)
    for number, block in enumerate(blocks, 1):
        trail = follow(trail, [cell(number, block, epoch=1)])
    found = aipw_comparison(trail, "mean")
    y = [remembered(blocks, k)[:, 0] for k in (0, 1)]
    welch = stats.ttest_ind(y[1], y[0], equal_var=False)
    assert found.statistic == pytest.approx(welch.statistic, abs=0.1)
    assert found.std_error == pytest.approx(
        math.sqrt(y[1].var(ddof=1) / len(y[1]) + y[0].var(ddof=1) / len(y[0])), rel=0.02
    )
    assert found.epochs_used == 1


def test_a_covariate_makes_the_interval_narrower_and_leaves_the_difference() -> None:
    rng = np.random.default_rng(4)
    blocks = []
    for e in np.tile([0.5, 0.2, 0.1], 20):
        arm = (rng.random(300) < e).astype(np.int64)
        before = rng.normal(10.0, 3.0, 300)
        after = before + rng.normal(0.0, 1.0, 300) + 0.5 * arm
        blocks.append(Block(arm, np.column_stack([after, before]), (1.0 - e, e)))
    adjusted = aipw_comparison(followed(blocks, 2), "mean")
    plain = aipw_comparison(followed([b._replace(values=b.values[:, :1]) for b in blocks]), "mean")
    assert adjusted.std_error is not None
    assert plain.std_error is not None
    assert adjusted.variance_reduction == pytest.approx(0.9, abs=0.03)
    assert (adjusted.std_error / plain.std_error) ** 2 == pytest.approx(0.1, abs=0.03)
    assert adjusted.difference == pytest.approx(0.5, abs=3 * adjusted.std_error)
    assert adjusted.lift_ci_low is not None
    assert adjusted.lift_ci_low > 0.0


def test_without_units_there_is_nothing_to_compare() -> None:
    found = aipw_comparison(start(1), "mean")
    assert (found.n_control, found.difference, found.notes) == (0, None, ("no_common_epoch",))
    assert aipw_sequence(start(1), "mean")[1].valid is False
    facts = weight_facts(start(1))
    assert (facts.effective_units_control, facts.smallest_propensity) == (0.0, None)
    assert facts.fragile


def test_without_spread_there_is_no_interval() -> None:
    blocks = [b._replace(values=np.full((400, 1), 7.0)) for b in steady(4)]
    found = aipw_comparison(followed(blocks), "mean")
    assert found.difference == pytest.approx(0.0, abs=1e-12)
    assert (found.std_error, found.p_value, found.test) == (None, None, None)
    assert "zero_variance" in found.notes
    assert aipw_sequence(followed(blocks), "mean")[1].valid is False


def test_a_ratio_without_denominators_is_not_defined() -> None:
    blocks = [b._replace(values=np.hstack([b.values, np.zeros_like(b.values)])) for b in steady(5)]
    found = aipw_comparison(followed(blocks, 2), "ratio")
    assert (found.difference, found.notes) == (None, ("zero_denominator",))
    assert aipw_sequence(followed(blocks, 2), "ratio")[0] is None


def test_no_conversions_at_all_give_no_interval_and_no_lift() -> None:
    trail = start(1)
    for number in range(5):
        cells = [TrailCell(number, number, 0.5, 0.5, 100, proportion(50, 0), proportion(50, 0))]
        trail = follow(trail, cells)
    found = aipw_comparison(trail, "proportion")
    assert (found.difference, found.lift, found.p_value) == (0.0, None, None)
    assert {"zero_variance", "zero_control_mean", "small_counts"} <= set(found.notes)


def test_values_around_a_million_millions_keep_their_difference() -> None:
    blocks = [b._replace(values=1e12 + b.values + 0.5 * (b.arm == 1)[:, None]) for b in steady(10)]
    found = aipw_comparison(followed(blocks), "mean")
    assert found.std_error == pytest.approx(math.sqrt(4 / 4_000), rel=0.1)
    assert found.difference == pytest.approx(0.5, abs=4 * math.sqrt(4 / 4_000))


def test_an_opening_that_has_no_variance_is_left_out_once_there_are_scores() -> None:
    """The treatment had one unit, and then the plug-ins came with an epoch without the control."""
    one = Moments(n=1, mean=(4.0,), m2=(0.0,))
    many = Moments(n=30, mean=(4.0,), m2=(30.0,))
    trail = follow(start(1), [TrailCell(1, 1, 0.9, 0.1, 31, many, one)])
    trail = follow(trail, [TrailCell(2, 2, 0.0, 1.0, 30, EMPTY, many)])
    for number in range(3, 30):
        trail = follow(trail, [TrailCell(number, number, 0.5, 0.5, 60, many, many)])
    found = aipw_comparison(trail, "mean")
    assert (found.epochs_used, found.epochs_left_out, found.units_left_out) == (27, 2, 61)
    assert found.n_treatment == 27 * 30
    assert found.std_error == pytest.approx(math.sqrt(4 / (27 * 60)), rel=0.1)


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_billions_of_units_have_a_finite_answer(size: float) -> None:
    """Where p is far below the smallest float, its logarithm is there."""
    trail = start(1)
    for number in range(6):
        control, treatment = (
            Moments(n=10**9, mean=(mean * size,), m2=(1e9 * size * size,)) for mean in (1.0, 1.5)
        )
        cells = [TrailCell(number, number, 0.5, 0.5, 2 * 10**9, control, treatment)]
        trail = follow(trail, cells)
    found = aipw_comparison(trail, "mean")
    assert found.difference == pytest.approx(0.5 * size)
    assert found.lift == pytest.approx(0.5)
    assert found.p_value is not None
    assert 0.0 < found.p_value < 1e-307
    assert found.log10_p_value is not None
    assert found.log10_p_value < -1e8
    assert aipw_sequence(trail, "mean")[1].p_value == found.p_value


def test_an_arm_that_met_one_unit_has_a_difference_and_nothing_else() -> None:
    many, one = Moments(n=100, mean=(3.0,), m2=(100.0,)), Moments(n=1, mean=(3.5,), m2=(0.0,))
    trail = follow(start(1), [TrailCell(0, 0, 0.99, 0.01, 101, many, one)])
    for number in range(1, 40):
        trail = follow(trail, [TrailCell(number, number, 0.99, 0.01, 100, many, EMPTY)])
    found = aipw_comparison(trail, "mean")
    assert found.difference == pytest.approx(0.5)
    assert (found.std_error, found.p_value) == (None, None)
    assert {"too_few_units", "fragile_weights"} <= set(found.notes)
    assert aipw_sequence(trail, "mean")[1].valid is False


def test_blocks_before_the_trail_are_named() -> None:
    trail = followed(random_blocks(1, [200] * 5))
    seen_all = aipw_comparison(trail, "mean")
    partial = msgspec.structs.replace(trail, since_block=7)
    assert "partial_trail" not in seen_all.notes
    assert "partial_trail" in aipw_comparison(partial, "mean").notes


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_an_alpha_that_is_none_is_refused(alpha: float) -> None:
    for trail in (followed(steady(1)), followed(steady(3))):
        with pytest.raises(ValueError, match="alpha"):
            aipw_comparison(trail, "mean", alpha)


def constant(e: float, blocks: int = 30, size: int = 1_000) -> Trail:
    """A trail at one propensity of the treatment."""
    n = round(size * e)
    trail = start(1)
    for number in range(blocks):
        control, treatment = proportion(size - n, (size - n) // 5), proportion(n, n // 5)
        cells = [TrailCell(number, number, 1.0 - e, e, size, control, treatment)]
        trail = follow(trail, cells)
    return trail


def test_units_of_equal_weight_are_all_effective() -> None:
    facts = weight_facts(constant(0.5))
    assert facts.effective_units_control == pytest.approx(15_000)
    assert facts.effective_units_treatment == pytest.approx(15_000)
    assert (facts.smallest_propensity, facts.fragile) == (0.5, False)


def test_a_tiny_propensity_makes_an_estimate_fragile() -> None:
    assert not weight_facts(constant(0.01)).fragile
    facts = weight_facts(constant(0.005))
    assert facts.smallest_propensity == 0.005
    assert facts.fragile
    assert "fragile_weights" in aipw_comparison(constant(0.005), "proportion").notes


def test_a_few_heavy_units_among_many_light_ones_make_an_estimate_fragile() -> None:
    trail = constant(0.9, blocks=20)
    assert not weight_facts(trail).fragile
    for number in range(100, 140):
        moments = proportion(980, 200), proportion(20, 4)
        trail = follow(trail, [TrailCell(number, number, 0.98, 0.02, 1_000, *moments)])
    facts = weight_facts(trail)
    n, light = 18_000 + 800, 18_000 / 0.9
    assert facts.effective_units_treatment == pytest.approx(
        (light + 40_000) ** 2 / (18_000 / 0.81 + 800 / 0.0004), rel=0.01
    )
    assert facts.effective_units_treatment < 0.1 * n
    assert facts.fragile


def test_the_sequence_of_one_constant_allocation_is_the_ordinary_one() -> None:
    """Its time is the number of its units, and its variance that of the scores."""
    trail = constant(0.5, blocks=101)
    difference, reading, _ = aipw_sequence(trail, "proportion")
    scored = trail.sequence
    assert scored.units == 100_000
    ordinary = always_valid(
        0.0, math.sqrt(0.16 * 4 / scored.units), scored.control.units, scored.treatment.units
    )
    assert difference == pytest.approx(0.0, abs=1e-12)
    assert reading.valid
    assert reading.ci_high == pytest.approx(ordinary.ci_high, rel=1e-3)


def test_the_sequence_is_cautious_where_an_arm_has_seen_nothing_rare() -> None:
    """The treatment, at 5 %, has not converted; it is given most of the control's variance."""
    trail = start(1)
    for number in range(12):
        moments = proportion(950, 4), proportion(50, 0)
        trail = follow(trail, [TrailCell(number, number, 0.95, 0.05, 1_000, *moments)])
    _, reading, _ = aipw_sequence(trail, "proportion")
    scored = trail.sequence
    n, rate = scored.treatment.units, 4 / 950
    cautious = rate * (1 - rate) * CAUTIOUS_UNITS / (n + CAUTIOUS_UNITS)
    least = math.sqrt(cautious * scored.treatment.scale) / scored.units
    assert reading.valid
    assert reading.ci_high is not None
    assert reading.ci_low is not None
    assert (reading.ci_high - reading.ci_low) / 2 > 2.5 * least


def test_the_time_of_the_sequence_is_its_variance() -> None:
    """Where the allocation moves, its tuning does not: units at .05 pass more time than at .5."""
    trail = constant(0.5, blocks=11)
    assert trail.reference == (0.5, 0.5)
    for number in range(100, 120):
        moments = proportion(950, 190), proportion(50, 10)
        trail = follow(trail, [TrailCell(number, number, 0.95, 0.05, 1_000, *moments)])
    difference, reading, _ = aipw_sequence(trail, "proportion")
    scored = trail.sequence
    variance = 0.16 * (scored.control.scale + scored.treatment.scale)
    expected = always_valid(
        difference,
        math.sqrt(variance) / scored.units,
        scored.control.units,
        scored.treatment.units,
        time=variance / (0.16 * 4),
    )
    assert expected.ci_high == pytest.approx(reading.ci_high, rel=0.01)
    assert variance / (0.16 * 4) > 3 * scored.units


def test_rare_conversions_of_a_small_arm_raise_no_false_alarms() -> None:
    """At 5 % of the traffic and a rate of .004 an arm shows no variance for a long time."""
    rng = np.random.default_rng(32)
    runs, alarms, naive = 150, 0, 0
    for _ in range(runs):
        trail = start(1)
        ever = ever_naive = False
        for number in range(60):
            n, m = rng.binomial(200, 0.05), 200
            cells = [
                proportion(m - int(n), int(rng.binomial(m - n, 0.004))),
                proportion(int(n), int(rng.binomial(n, 0.004))),
            ]
            trail = follow(trail, [TrailCell(number, number, 0.95, 0.05, m, *cells)])
            difference, reading, _ = aipw_sequence(trail, "proportion")
            if reading.ci_low is not None and reading.ci_high is not None:
                ever |= not reading.ci_low <= 0.0 <= reading.ci_high
            scored = trail.sequence
            own = scored.control.square[0] + scored.treatment.square[0] if scored.units else 0.0
            if own > 0.0:
                careless = always_valid(
                    difference,
                    math.sqrt(own) / scored.units,
                    scored.control.units,
                    scored.treatment.units,
                )
                if careless.ci_low is not None and careless.ci_high is not None:
                    ever_naive |= not careless.ci_low <= 0.0 <= careless.ci_high
        alarms, naive = alarms + ever, naive + ever_naive
    assert alarms / runs <= at_most(0.05, runs)
    assert naive / runs > 0.2
