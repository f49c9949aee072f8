"""How ratios, covariates and quantiles are read as one number, against implementations by unit."""

import math
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis.inference.bins import bucket
from analysis.inference.evidence import (
    BURN_IN_UNITS,
    MEMORY_UNITS,
    BlockCell,
    GuardRule,
    GuardState,
    alarms,
    is_exact,
    start,
    step,
)
from analysis.inference.harm_readings import Reading, at_margin, memory_of_values, read
from analysis.inference.kinds import Goal
from analysis.inference.moments import EMPTY, Moments, of_rows
from analysis.inference.value_counts import (
    Buckets,
    Side,
    ValueCounts,
    density_ratio,
    ordered,
    place_of,
    remember,
    tally,
)

Floats = NDArray[np.float64]
goals = st.sampled_from(["increase", "decrease"])
seeds = st.integers(0, 2**32 - 1)


class Block(NamedTuple):
    """Units' numbers, of shape (units, d), of two arms; and the treatment's share."""

    control: Floats
    treatment: Floats
    share: float


def cell_of(number: int, block: Block) -> BlockCell:
    return BlockCell(
        number,
        1,
        1.0 - block.share,
        block.share,
        of_rows(block.control),
        of_rows(block.treatment),
    )


def blocks_of(seed: int, d: int, count: int) -> list[Block]:
    """Blocks of a ratio or a mean (d of 1 or 2) with covariates (2 or 4), the share changing."""
    rng = np.random.default_rng(seed)
    blocks = []
    for number in range(count):
        arms = []
        for _ in range(2):
            n = int(rng.integers(0, 90))
            own = rng.gamma(2.0, 1.0, n)
            before = rng.poisson(own) + rng.random(n)
            y = rng.poisson(3.0 * own) + (rng.random(n) < 0.5)
            x = y * rng.random(n) + before
            arms.append(np.stack([x, y, before, rng.poisson(own)], axis=1)[:, _COLUMNS[d]])
        blocks.append(Block(arms[0], arms[1], (0.5, 0.2, 0.7)[number % 3]))
    return blocks


_COLUMNS = {1: [0], 2: [0, 1], 3: [0, 2], 4: [0, 1, 2, 3]}


def by_unit(rule: GuardRule, past: list[Block], now: Block) -> list[float]:
    """ln F of a block per bet, the least of the readings."""
    before = np.concatenate([b.control for b in past])
    if rule.kind != "ratio":
        return by_unit_at(float(before[:, 0].mean()), rule, past, now)
    readings = [
        by_unit_at(float(rows[:, 0].sum() / rows[:, 1].sum()), rule, past, now)
        for rows in (before, now.control)
        if rows[:, 1].sum() > 0.0
    ]
    return [min(per_bet) for per_bet in zip(*readings, strict=True)]


def by_unit_at(c0: float, rule: GuardRule, past: list[Block], now: Block) -> list[float]:
    """ln F of a block per bet, if the control's level is c0: every unit's numbers on their own, by
    the formulas of the text."""
    old = [
        np.concatenate([b.control for b in past]),
        np.concatenate([b.treatment for b in past]),
    ]
    new = [now.control, now.treatment]
    shares = [1.0 - now.share, now.share]
    s = 1.0 if rule.goal == "increase" else -1.0
    ratio = rule.kind == "ratio"
    k = s - rule.margin * math.copysign(1.0, c0) if rule.relative else s
    constant = 0.0 if rule.relative else -rule.margin
    if ratio:
        c1 = k / s * c0 if rule.relative else c0 - s * rule.margin
        divisors = [
            sum(float(rows[:, 1].sum()) / e for rows, e in arm)
            / sum(len(rows) / e for rows, e in arm)
            for arm in (
                [(b.control, 1.0 - b.share) for b in past],
                [(b.treatment, b.share) for b in past],
            )
        ]

        def base(arm: int, rows: Floats) -> Floats:
            c = (c0, c1)[arm]
            z: Floats = c + (rows[:, 0] - c * rows[:, 1]) / divisors[arm]
            return z
    else:

        def base(arm: int, rows: Floats) -> Floats:
            return rows[:, 0]

    width = 2 if ratio else 1
    everyone = np.concatenate(old)
    if everyone.shape[1] > width:
        if ratio:
            total = everyone[:, 2].sum() / everyone[:, 3].sum()

            def ahead(rows: Floats) -> Floats:
                found: Floats = (rows[:, 2] - total * rows[:, 3]) / everyone[:, 3].mean()
                return found
        else:

            def ahead(rows: Floats) -> Floats:
                found: Floats = rows[:, 1] - everyone[:, 1].mean()
                return found

        centred = [
            (base(a, r) - base(a, r).mean(), ahead(r) - ahead(r).mean()) for a, r in enumerate(old)
        ]
        slope = sum(z @ c for z, c in centred) / sum(c @ c for _, c in centred)
        slopes = (slope, slope * k / s)

        def number(arm: int, rows: Floats) -> Floats:
            adjusted: Floats = base(arm, rows) - slopes[arm] * ahead(rows)
            return adjusted
    else:
        number = base

    m0, m1 = (float(number(a, r).mean()) for a, r in enumerate(old))
    larger = max(float(number(a, r).var(ddof=1)) for a, r in enumerate(old))
    h0 = -s * m1 + k * m0 + constant
    x = np.concatenate(
        [
            h0 + k * (number(0, new[0]) - m0) / shares[0],
            h0 - s * (number(1, new[1]) - m1) / shares[1],
        ]
    )
    factor = k * k / shares[0] + 1.0 / shares[1]
    sigma2 = h0 * h0 + factor * larger
    off = np.concatenate([number(a, r) - (m0, m1)[a] for a, r in enumerate(new)])
    q = (x * x).sum() / sigma2
    v = max(len(x), q, len(x) * (h0 * h0 + factor * (off * off).mean()) / sigma2)
    return [
        bet * x.sum() / math.sqrt(sigma2) - bet * bet * (q / 6.0 + v / 3.0) for bet in rule.bets
    ]


def log_factors(rule: GuardRule, before: GuardState, cells: list[BlockCell]) -> list[float]:
    """ln F per bet, by what it makes of stakes beside which a new start is nothing."""
    high = 100.0
    rich = msgspec.structs.replace(before, log_stakes=(high,) * len(rule.bets))
    return [stake - high for stake in step(rule, rich, cells).log_stakes]


@pytest.mark.parametrize("d", [2, 3, 4])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("goal", ["increase", "decrease"])
def test_a_block_gains_what_its_units_gain_one_by_one(d: int, relative: bool, goal: Goal) -> None:
    rule = GuardRule("mean" if d == 3 else "ratio", goal, 0.1, 0.01, relative, bets=(0.02, 0.3))
    blocks = blocks_of(d, d, 40)
    state = start(rule)
    compared = 0
    for number, block in enumerate(blocks):
        cells = [cell_of(number, block)]
        if state.units >= BURN_IN_UNITS:
            expected = by_unit(rule, blocks[:number], block)
            assert log_factors(rule, state, cells) == pytest.approx(expected, abs=1e-9)
            compared += 1
        state = step(rule, state, cells)
    assert compared > 20
    assert state.units <= MEMORY_UNITS  # or the units above would have to fade, too


@given(
    st.floats(0.01, 2.0),
    st.floats(0.1, 20.0),
    st.floats(0.1, 20.0),
    st.floats(0.1, 3.0),
    goals,
    st.booleans(),
    st.floats(0.0, 0.9),
)
def test_harm_of_a_ratio_is_zero_at_the_margin_also_while_all_denominators_drift(
    ratio: float,
    denominator0: float,
    denominator1: float,
    drift: float,
    goal: Goal,
    relative: bool,
    margin: float,
) -> None:
    """Whatever the treatment's past ratio is, and whatever the denominators of the two arms are."""
    rule = GuardRule("ratio", goal, margin, 0.01, relative)
    s = 1.0 if goal == "increase" else -1.0
    risen = 1.7 * ratio
    at_the_margin = risen - s * margin * (risen if relative else 1.0)

    def arm(level: float, denominator: float) -> Moments:
        mean = level * denominator, denominator
        return Moments(2_000, mean, (2_000.0, 0.0, 2_000.0 * denominator**2))

    past = arm(ratio, denominator0), arm(3.0 * ratio + 1.0, denominator1)
    now = arm(risen, denominator0 * drift), arm(at_the_margin, denominator1 * drift)
    state = step(rule, start(rule), [BlockCell(1, 1, 0.3, 0.7, past[0], past[1])])
    readings = read(rule, state, BlockCell(2, 1, 0.3, 0.7, now[0], now[1]))
    assert len(readings) == 2
    for reading in readings:
        assert contrast_of(reading) == pytest.approx(0.0, abs=1e-8 * max(1.0, ratio * drift))


def contrast_of(reading: Reading) -> float:
    """The harm that the block's units show."""
    harm = reading.harm
    of_treatment = harm.of_treatment * reading.treatment.mean[0]
    return of_treatment + harm.of_control * reading.control.mean[0] + harm.constant


@given(st.floats(0.01, 0.5), st.floats(0.3, 3.0), st.floats(0.3, 3.0), goals, st.booleans())
def test_a_ratio_at_its_margin_is_no_harm_whatever_the_two_arms_denominators_do(
    risen: float, drift0: float, drift1: float, goal: Goal, relative: bool
) -> None:
    """By the reading around the block's own ratio; the one around the past ratio takes some of it
    for harm, in one direction of the jump or the other."""
    margin = 0.1 if relative else 0.005
    rule = GuardRule("ratio", goal, margin, 0.01, relative)
    s = 1.0 if goal == "increase" else -1.0
    at_the_margin = risen - s * margin * (risen if relative else 1.0)
    past = Moments(2_000, (0.3, 3.0), (600.0, 0.0, 9_000.0))
    state = step(rule, start(rule), [BlockCell(1, 1, 0.5, 0.5, past, past)])
    now = [
        Moments(100, (level * 3.0 * drift, 3.0 * drift), (30.0, 0.0, 450.0))
        for level, drift in ((risen, drift0), (at_the_margin, drift1))
    ]
    of_past, of_now = read(rule, state, BlockCell(2, 1, 0.5, 0.5, now[0], now[1]))
    assert contrast_of(of_now) == pytest.approx(0.0, abs=1e-9)
    error = -s * (risen - 0.1) * (drift1 - drift0)
    factor = 1.0 - s * margin if relative else 1.0
    assert contrast_of(of_past) == pytest.approx(factor * error, abs=1e-9)


def test_a_ratio_is_read_around_the_past_alone_where_a_block_has_no_denominator() -> None:
    rule = GuardRule("ratio", "decrease", 0.0, 0.01)
    past = Moments(2_000, (0.3, 3.0), (600.0, 0.0, 9_000.0))
    state = step(rule, start(rule), [BlockCell(1, 1, 0.5, 0.5, past, past)])
    none = Moments(50, (0.0, 0.0), (0.0, 0.0, 0.0))
    for control in (none, EMPTY):
        assert len(read(rule, state, BlockCell(2, 1, 0.5, 0.5, control, past))) == 1


@given(st.floats(-5.0, 5.0), goals, st.booleans(), st.floats(0.0, 0.9))
def test_a_covariate_that_drifts_in_both_arms_changes_no_harm(
    drift: float, goal: Goal, relative: bool, margin: float
) -> None:
    rule = GuardRule("mean", goal, margin, 0.01, relative)
    past = Moments(2_000, (4.0, 3.0), (4_000.0, 2_500.0, 3_000.0))
    state = step(rule, start(rule), [BlockCell(1, 1, 0.5, 0.5, past, past)])
    found = []
    for covariate in (3.0, 3.0 + drift):
        control = Moments(50, (4.1, covariate), (100.0, 60.0, 75.0))
        treatment = Moments(50, (4.4, covariate), (100.0, 60.0, 75.0))
        [reading] = read(rule, state, BlockCell(2, 1, 0.5, 0.5, control, treatment))
        harm = reading.harm
        found.append(
            harm.of_treatment * reading.treatment.mean[0]
            + harm.of_control * reading.control.mean[0]
        )
        assert relative or reading.treatment.m2[0] < 0.6 * 100.0
    assert found[1] == pytest.approx(found[0], abs=1e-9)


def test_what_arms_are_divided_by_is_of_the_same_time() -> None:
    """Denominators rise and fall in both arms alike, of which one has a twentieth of the traffic,
    so that the plug-ins of the other one forget them sooner."""
    rule = GuardRule("ratio", "decrease", 0.0, 0.01)
    state = start(rule)
    for number in range(600):
        y = 3.0 + 2.0 * math.sin(number / 40.0)
        control, treatment = (Moments(n, (0.1 * y, y), (n * 0.1, 0.0, n * y)) for n in (5, 95))
        state = step(rule, state, [BlockCell(number, 1, 0.05, 0.95, control, treatment)])
    assert state.treatment.n < 2 * state.control.n
    assert abs(state.treatment.mean[1] / state.control.mean[1] - 1.0) > 0.1
    divisors = state.control_denominator.mean, state.treatment_denominator.mean
    assert divisors[1] == pytest.approx(divisors[0], rel=1e-9)


def test_nothing_is_divided_by_a_denominator_that_nobody_had() -> None:
    rule = GuardRule("ratio", "decrease", 0.0, 0.01)
    none = Moments(2_000, (0.0, 0.0), (0.0, 0.0, 0.0))
    bad = Moments(2_000, (3.0, 3.0), (600.0, 600.0, 600.0))
    state = step(rule, start(rule), [BlockCell(1, 1, 0.5, 0.5, none, none)])
    state = step(rule, state, [BlockCell(2, 1, 0.5, 0.5, none, bad)])
    assert state.blocks == 0
    few = Moments(2_000, (1.0, 0.001), (0.0, 0.0, 2.0))
    state = step(rule, start(rule), [BlockCell(1, 1, 0.5, 0.5, few, few)])
    assert read(rule, state, BlockCell(2, 1, 0.5, 0.5, few, few)) == ()


def test_a_ratio_that_never_varies_is_no_evidence_and_a_change_of_it_is() -> None:
    """x is a third of y for every unit: what is left of the variance is rounding."""
    rule = GuardRule("ratio", "decrease", 0.0, 0.01)
    rng = np.random.default_rng(3)
    state = start(rule)
    for number in range(1, 20):
        rows = [np.outer(rng.gamma(2.0, 1.0, 100), [1 / 3, 1.0]) for _ in range(2)]
        state = step(rule, state, [cell_of(number, Block(rows[0], rows[1], 0.5))])
    assert not alarms(rule, state)
    worse = np.outer(rng.gamma(2.0, 1.0, 100), [2 / 3, 1.0])
    for number in (20, 21):
        state = step(rule, state, [cell_of(number, Block(rows[0], worse, 0.5))])
    assert alarms(rule, state)


@pytest.mark.parametrize(("kind", "d"), [("mean", 4), ("ratio", 1), ("ratio", 3), ("mean", 3)])
def test_units_of_other_numbers_than_the_kind_has_are_refused(kind: str, d: int) -> None:
    rule = msgspec.convert(
        {"kind": kind, "goal": "increase", "margin": 0.0, "alpha_share": 0.01}, GuardRule
    )
    wrong = of_rows(np.ones((2_000, d)))
    state = step(rule, start(rule), [BlockCell(1, 1, 0.5, 0.5, wrong, wrong)])
    with pytest.raises(ValueError, match="numbers"):
        step(rule, state, [BlockCell(2, 1, 0.5, 0.5, wrong, wrong)])


# Quantiles


def counted(values: Floats, units: int | None = None) -> ValueCounts:
    numbers, n = np.unique(bucket(values), return_counts=True)
    found: Buckets = tuple(zip(numbers.tolist(), n.tolist(), strict=True))
    return ValueCounts(len(values) if units is None else units, found)


def some_values(seed: int, atoms: bool) -> Floats:
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0.0, 1.0, int(rng.integers(30, 400))) * rng.choice([-1.0, 1.0, 1.0])
    rounded: Floats = np.round(values, 0) if atoms else values
    return rounded


@given(seeds, st.floats(0.01, 0.99), st.sampled_from(["above", "below"]), st.booleans())
def test_beyond_a_quantile_lies_exactly_its_share(
    seed: int, level: float, side: Side, atoms: bool
) -> None:
    values = counted(some_values(seed, atoms))
    place = place_of(values, level, side)
    found = tally(values, place)
    share = 1.0 - level if side == "above" else level
    assert found.beyond + place.within * found.at == pytest.approx(share * values.units, abs=1e-6)
    assert sum(found) == values.units


@given(
    seeds,
    seeds,
    st.floats(0.05, 0.95),
    goals,
    st.floats(0.0, 0.9),
    st.booleans(),
    st.booleans(),
)
def test_a_treatment_whose_quantile_is_within_the_margin_has_no_larger_share_beyond(
    seed0: int, seed1: int, level: float, goal: Goal, margin: float, relative: bool, atoms: bool
) -> None:
    """Of the values themselves, not of values that are spread within buckets."""
    control, treatment = some_values(seed0, atoms), some_values(seed1, atoms)
    rule = GuardRule("quantile", goal, margin, 0.01, relative, quantile=level)
    q0, q1 = (float(np.quantile(v, level, method="inverted_cdf")) for v in (control, treatment))
    away = margin * (abs(q0) if relative else 1.0)
    place = place_of(counted(control), level, "above" if goal == "decrease" else "below")
    found = tally(counted(treatment), at_margin(rule, place)[0])
    beyond = found.beyond / len(treatment)
    rounding = 1e-9
    if goal == "decrease" and q1 <= q0 + away:
        assert beyond <= 1.0 - level + rounding
    if goal == "increase" and q1 >= q0 - away:
        # As many lie strictly below a quantile as there are before its rank.
        assert beyond <= level + rounding
    # And what is beyond by more than the buckets are wide, is seen.
    slack = 0.05 * (abs(q0) + away)
    if goal == "decrease" and q1 > q0 + away + slack:
        assert beyond >= 1.0 - level - rounding
    if goal == "increase" and q1 < q0 - away - slack:
        assert beyond >= level - rounding


@settings(max_examples=50)
@given(seeds, st.integers(1, 40))
def test_what_fades_leaves_every_quantile_within_a_unit(seed: int, blocks: int) -> None:
    rng = np.random.default_rng(seed)
    seen, everyone = ValueCounts(), ValueCounts()
    for _ in range(blocks):
        new = counted(rng.lognormal(0.0, 1.0, 60), units=80)
        everyone = remember(everyone, new, 10**9)
        seen = remember(seen, new, 400)
    assert everyone.units == 80 * blocks
    assert everyone.valued == 60 * blocks
    assert seen.units <= 800
    assert abs(seen.valued - 0.75 * seen.units) <= 1.0 + blocks // 5
    once = remember(ValueCounts(), everyone, everyone.units // 2 - 1 or 1)
    if once.units < everyone.units:
        part = once.units / everyone.units
        through = {b: 0 for b, _ in everyone.buckets}
        total = kept = 0
        left = dict(once.buckets)
        for number, n in everyone.buckets:
            total, kept = total + n, kept + left.get(number, 0)
            assert abs(kept - total * part) < 1.0
        assert through


def test_densities_are_compared_at_the_quantile() -> None:
    rng = np.random.default_rng(5)
    wide = counted(rng.normal(100.0, 10.0, 20_000))
    narrow = counted(rng.normal(100.0, 5.0, 20_000))
    assert density_ratio(narrow, wide, 0.5) == pytest.approx(2.0, rel=0.1)
    assert density_ratio(wide, narrow, 0.5) == pytest.approx(0.5, rel=0.1)
    heap = ValueCounts(100, ordered({0: 100}))
    assert density_ratio(heap, heap, 0.5) == 1.0
    assert density_ratio(heap, wide, 0.5) == 3.0
    assert density_ratio(wide, heap, 0.5) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no quantile"):
        place_of(ValueCounts(5), 0.5, "above")


def quantile_cell(
    number: int, control: Floats, treatment: Floats, share: float, valueless: float = 0.2
) -> BlockCell:
    """A cell in which so many units more, for each one with a value, have none."""
    arms = [counted(v, units=len(v) + int(valueless * len(v))) for v in (control, treatment)]
    moments = [Moments(arm.units, (0.0,), (0.0,)) for arm in arms]
    return BlockCell(
        number, 1, 1 - share, share, moments[0], moments[1], arms[0].buckets, arms[1].buckets
    )


@pytest.mark.parametrize("goal", ["increase", "decrease"])
def test_a_block_of_a_quantile_gains_what_its_units_gain_one_by_one(goal: Goal) -> None:
    """Every unit on its own: 0, 1 or a part of it beyond the threshold, or nothing at all."""
    rule = GuardRule("quantile", goal, 0.05, 0.01, True, bets=(0.02, 0.3), quantile=0.9)
    rng = np.random.default_rng(6)
    share = 0.1 if goal == "decrease" else 0.9
    state, compared = start(rule), 0
    for number in range(40):
        arms = [rng.lognormal(0.0, 0.5 - 0.2 * arm, 40) for arm in range(2)]
        cell = quantile_cell(number, arms[0], arms[1], 0.4)
        past = state.control_values, state.treatment_values
        if readings := read(rule, state, cell):
            place0 = place_of(past[0], 0.9, "above" if goal == "decrease" else "below")
            place1, stretched = at_margin(rule, place0)
            densities = stretched * density_ratio(past[1], past[0], 0.9)
            here0 = place_of(counted(arms[0]), 0.9, place0.side)
            here1, _ = at_margin(rule, here0)
            lowest = [math.inf, math.inf]
            for weight, at0, at1 in (
                (1.0, place0, place1),
                (densities, place0, place1),
                (1.0, here0, here1),
            ):
                numbers = []
                for values, place in (
                    (past[0], at0),
                    (past[1], at1),
                    (ValueCounts(48, cell.control_buckets), at0),
                    (ValueCounts(48, cell.treatment_buckets), at1),
                ):
                    units = [(0.0, 0.0)] * (values.units - values.valued)
                    for k, n in values.buckets:
                        ahead = k - place.bucket if goal == "decrease" else place.bucket - k
                        units += [(place.within if ahead == 0 else float(ahead > 0), 1.0)] * n
                    valued = 40 / 48
                    numbers.append(np.array([share + (x - share * y) / valued for x, y in units]))
                m0, m1 = numbers[0].mean(), numbers[1].mean()
                larger = max(numbers[0].var(ddof=1), numbers[1].var(ddof=1))
                h0 = (m1 - share) - weight * (m0 - share)
                x = np.concatenate(
                    [h0 - weight * (numbers[2] - m0) / 0.6, h0 + (numbers[3] - m1) / 0.4]
                )
                off = np.concatenate([numbers[2] - m0, numbers[3] - m1])
                factor = weight**2 / 0.6 + 1 / 0.4
                sigma2 = h0 * h0 + factor * larger
                q = (x * x).sum() / sigma2
                v = max(len(x), q, len(x) * (h0 * h0 + factor * (off**2).mean()) / sigma2)
                for k, bet in enumerate(rule.bets):
                    gained = bet * x.sum() / math.sqrt(sigma2) - bet**2 * (q / 6 + v / 3)
                    lowest[k] = min(lowest[k], gained)
            assert len(readings) == 3
            if state.units >= BURN_IN_UNITS:
                assert log_factors(rule, state, [cell]) == pytest.approx(lowest, abs=1e-9)
                compared += 1
        state = step(rule, state, [cell])
    assert compared > 20


def test_a_quantile_is_also_read_where_the_controls_values_are_now() -> None:
    """The treatment is narrower, with the same 95 % quantile, and both are half as large again."""
    rule = GuardRule("quantile", "decrease", 0.05, 0.01, True, quantile=0.95)
    rng = np.random.default_rng(11)

    def arms(n: int, scale: float) -> tuple[Floats, Floats]:
        noise = rng.normal(-1.645, 1.0, (2, n))
        return scale * np.exp(0.5 * noise[0]), scale * np.exp(0.2 * noise[1])

    state = start(rule)
    for number in range(20):
        state = step(rule, state, [quantile_cell(number, *arms(200, 1.0), 0.5)])
    alike, unlike, here = read(rule, state, quantile_cell(99, *arms(5_000, 1.5), 0.5))
    assert contrast_of(alike) > 0.2
    assert contrast_of(unlike) > 0.02
    assert contrast_of(here) < 0.0
    assert len(read(rule, state, quantile_cell(99, *arms(1, 1.5), 0.5))) == 3
    without = msgspec.structs.replace(quantile_cell(99, *arms(50, 1.5), 0.5), control_buckets=())
    assert len(read(rule, state, without)) == 2


def test_a_reading_whose_past_has_no_spread_gains_nothing_and_stops_no_other() -> None:
    """All values are ten times as large: nobody was ever beyond where the control is now."""
    rule = GuardRule("quantile", "decrease", 0.05, 0.01, True, quantile=0.5)
    state = start(rule)
    for number in range(20):
        some = np.linspace(1.0, 2.0, 60)
        state = step(rule, state, [quantile_cell(number, some, some, 0.5, 0.0)])
    large = np.linspace(10.0, 20.0, 60)
    cell = quantile_cell(99, large, 3.0 * large, 0.5, 0.0)
    readings = read(rule, state, cell)
    assert len(readings) == 3
    assert readings[2].past_control.m2 == readings[2].past_treatment.m2 == (0.0,)
    assert max(log_factors(rule, state, [cell])) <= 0.0
    after = step(rule, state, [cell])
    assert after.blocks == state.blocks + 1
    # Harm that stays is seen once the control's new values are known.
    for number in range(100, 130):
        after = step(rule, after, [quantile_cell(number, large, 3.0 * large, 0.5, 0.0)])
    assert alarms(rule, after)


def test_a_state_is_json_stays_small_and_decodes_from_an_older_one() -> None:
    rule = GuardRule("quantile", "decrease", 0.05, 0.01, True, quantile=0.95)
    rng = np.random.default_rng(7)
    state = start(rule)
    for number in range(200):
        arms = [rng.lognormal(3.0, 1.0, 200) for _ in range(2)]
        state = step(rule, state, [quantile_cell(number, arms[0], arms[1], 0.5)])
    encoded = msgspec.json.encode(state)
    assert msgspec.json.decode(encoded, type=GuardState) == state
    assert len(encoded) < 10_000
    assert state.blocks > 150
    assert state.control_values.units <= 2 * memory_of_values(rule)
    older = (
        b'{"blocks":0,"log_stakes":[-0.5],"log_peak":0.0,"units":3,"burn_in_units":3,'
        b'"control":{"n":3,"mean":[0.5],"m2":[1.0]},"treatment":{"n":0,"mean":[0],"m2":[0]},'
        b'"last_block":4}'
    )
    decoded = msgspec.json.decode(older, type=GuardState)
    assert (decoded.control.n, decoded.control_values.units) == (3, 0)


@pytest.mark.parametrize("kind", ["ratio", "quantile"])
def test_a_decision_on_another_kind_can_be_recomputed_bit_by_bit(kind: str) -> None:
    rng = np.random.default_rng(8)
    quantile = 0.9 if kind == "quantile" else None
    rule = msgspec.convert(
        {
            "kind": kind,
            "goal": "decrease",
            "margin": 0.01,
            "alpha_share": 0.01,
            "quantile": quantile,
        },
        GuardRule,
    )
    blocks = blocks_of(9, 4, 60)
    cells = [
        [cell_of(number, block)]
        if kind == "ratio"
        else [quantile_cell(number, rng.lognormal(size=30), rng.lognormal(size=30), block.share)]
        for number, block in enumerate(blocks)
    ]
    states = [start(rule)]
    for of_block in cells:
        states.append(step(rule, states[-1], of_block))
    again = msgspec.json.decode(msgspec.json.encode(states[30]), type=GuardState)
    assert again == states[30]
    stored = msgspec.json.decode(msgspec.json.encode(cells[30:]), type=list[list[BlockCell]])
    for of_block in stored:
        again = step(rule, again, of_block)
    assert again == states[-1]
    assert again.blocks > 10
    assert not is_exact(rule)


def test_an_arm_without_units_and_a_quiet_block_teach_nothing() -> None:
    rule = GuardRule("ratio", "decrease", 0.0, 0.01)
    state = start(rule)
    for number, block in enumerate(blocks_of(10, 2, 30)):
        state = step(rule, state, [cell_of(number, block)])
    quiet = BlockCell(99, 1, 0.5, 0.5, EMPTY, EMPTY)
    after = step(rule, state, [quiet])
    assert msgspec.structs.replace(after, last_block=29) == state
    lone = BlockCell(99, 1, 0.5, 0.5, of_rows(np.ones((5, 2))), EMPTY)
    assert step(rule, state, [lone]).blocks == state.blocks + 1


def test_what_is_refused_of_a_quantile() -> None:
    for kind, quantile in (("mean", 0.5), ("quantile", None), ("quantile", 1.0)):
        wrong = {
            "kind": kind,
            "goal": "increase",
            "margin": 0.0,
            "alpha_share": 0.01,
            "quantile": quantile,
        }
        with pytest.raises(ValueError, match="level"):
            msgspec.convert(wrong, GuardRule)
