import itertools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.inference.evidence import (
    BURN_IN_UNITS,
    BlockCell,
    GuardRule,
    GuardState,
    alarms,
    is_exact,
    log_evidence,
    rate,
    start,
    step,
)
from analysis.inference.harm_scores import contrast, scores
from analysis.inference.kinds import Goal
from analysis.inference.moments import EMPTY, Moments, merge
from tests.unit.samples import proportion

PROPORTION = GuardRule(kind="proportion", goal="decrease", margin=0.01, alpha_share=0.01)
MEAN = GuardRule(kind="mean", goal="decrease", margin=0.1, alpha_share=0.01)


def cell(
    block: int, control: Moments, treatment: Moments, propensity: float = 0.5, epoch: int = 1
) -> BlockCell:
    return BlockCell(
        block=block,
        epoch=epoch,
        propensity_control=1.0 - propensity,
        propensity_treatment=propensity,
        control=control,
        treatment=treatment,
    )


def run(rule: GuardRule, blocks: list[list[BlockCell]]) -> list[GuardState]:
    states = [start(rule)]
    for cells in blocks:
        states.append(step(rule, states[-1], cells))
    return states


def random_blocks(seed: int, count: int, kind: str) -> list[list[BlockCell]]:
    """Blocks of one or two epochs, some of them without a unit."""
    rng = np.random.default_rng(seed)
    blocks = []
    for block in range(1, count + 1):
        cells = []
        for epoch in range(1, 2 + block % 2):
            sizes = rng.integers(0, 40, 2).tolist()
            if block % 7 == 0:
                sizes = [0, 0]
            control, treatment = (
                proportion(n, int(rng.binomial(n, 0.1)))
                if kind == "proportion"
                else Moments.of(rng.normal(5.0, 1.0, n))
                for n in sizes
            )
            cells.append(cell(block, control, treatment, 0.3 * epoch, epoch))
        blocks.append(cells)
    return blocks


rates = st.floats(0.02, 0.98)


@given(
    rates,
    st.floats(0.0, 0.5),
    st.floats(0.01, 0.99),
    st.integers(0, 50),
    st.integers(0, 50),
    st.sampled_from(["increase", "decrease"]),
    st.booleans(),
)
def test_the_score_is_zero_on_average_exactly_at_the_margin(
    p0: float, margin: float, e1: float, seen0: int, seen1: int, goal: Goal, relative: bool
) -> None:
    """Whatever the plug-ins: the heart of the guard's bound."""
    harm = margin * (p0 if relative else 1.0)
    p1 = p0 - harm if goal == "increase" else p0 + harm
    m0, m1 = rate(proportion(50, seen0)), rate(proportion(50, seen1))
    score = scores(contrast(goal, margin, relative, m0), m0, m1, 1 - e1, e1)
    mean = (1 - e1) * (score.control_at_zero + score.control_slope * p0) + e1 * (
        score.treatment_at_zero + score.treatment_slope * p1
    )
    assert mean == pytest.approx(0.0, abs=1e-9)
    at_plug_in = (1 - e1) * (score.control_at_zero + score.control_slope * m0) + e1 * (
        score.treatment_at_zero + score.treatment_slope * m1
    )
    assert at_plug_in == pytest.approx(score.expected, abs=1e-9)


@given(st.floats(-10.0, 10.0), st.floats(0.0, 0.9), st.sampled_from(["increase", "decrease"]))
def test_a_relative_margin_with_a_negative_control_mean(
    mu0: float, margin: float, goal: Goal
) -> None:
    score = scores(contrast(goal, margin, True, mu0), mu0, mu0, 0.7, 0.3)
    mu1 = mu0 - margin * abs(mu0) if goal == "increase" else mu0 + margin * abs(mu0)
    mean = 0.7 * (score.control_at_zero + score.control_slope * mu0) + 0.3 * (
        score.treatment_at_zero + score.treatment_slope * mu1
    )
    assert mean == pytest.approx(0.0, abs=1e-9)


def test_delyons_inequality() -> None:
    x = np.linspace(-30.0, 30.0, 600_001)
    assert np.all(np.exp(x - x * x / 6) <= 1 + x + x * x / 3 + 1e-12)


def test_the_recursion_is_the_mixture_over_starts() -> None:
    """Against every restarted process on its own, bet unit by unit."""
    rule = msgspec.structs.replace(PROPORTION, bets=(0.1, 0.5))
    blocks = random_blocks(31, 40, "proportion")
    states = run(rule, blocks)
    factors: list[list[float]] = []
    for cells, before in zip(blocks, states, strict=False):
        per_bet = [1.0, 1.0]
        for c in cells:
            e1 = c.propensity_treatment
            m0, m1 = rate(before.control), rate(before.treatment)

            def x(arm: int, y: float, e1: float = e1, m0: float = m0, m1: float = m1) -> float:
                g1 = m1 + (arm == 1) * (y - m1) / e1
                g0 = m0 + (arm == 0) * (y - m0) / (1 - e1)
                return (g1 - g0) - rule.margin

            worst = -min(x(arm, y) for arm, y in itertools.product((0, 1), (0.0, 1.0)))
            for arm, moments in enumerate((c.control, c.treatment)):
                converted = round(moments.n * moments.mean[0])
                for y in [1.0] * converted + [0.0] * (moments.n - converted):
                    for k, bet in enumerate(rule.bets):
                        per_bet[k] *= 1 + bet / worst * x(arm, y)
        if any(c.control.n + c.treatment.n for c in cells):
            factors.append(per_bet)
        t = len(factors)
        evidence = 1 / (t + 1)
        for j in range(1, t + 1):
            product = np.prod(np.array(factors[j - 1 :]), axis=0)
            evidence += product.mean() / (j * (j + 1))
        after = states[blocks.index(cells) + 1]
        assert after.blocks == t
        assert log_evidence(after) == pytest.approx(math.log(evidence), abs=1e-9)


def test_the_evidence_starts_at_one_and_a_crossing_is_kept() -> None:
    assert log_evidence(start(PROPORTION)) == pytest.approx(0.0, abs=1e-15)
    bad = [[cell(b, proportion(20, 0), proportion(20, 15))] for b in range(1, 6)]
    good = [[cell(b, proportion(200, 60), proportion(200, 0))] for b in range(6, 30)]
    states = run(PROPORTION, bad + good)
    assert alarms(PROPORTION, states[5])
    assert log_evidence(states[-1]) < -math.log(PROPORTION.alpha_share)
    assert alarms(PROPORTION, states[-1])
    assert not alarms(PROPORTION, start(PROPORTION))


@pytest.mark.parametrize("rule", [PROPORTION, MEAN])
def test_a_decision_can_be_recomputed_bit_by_bit(rule: GuardRule) -> None:
    blocks = random_blocks(32, 120, rule.kind)
    states = run(rule, blocks)
    middle = msgspec.json.decode(msgspec.json.encode(states[60]), type=GuardState)
    assert middle == states[60]
    stored = msgspec.json.decode(msgspec.json.encode(rule), type=GuardRule)
    again = middle
    for cells in blocks[60:]:
        again = step(stored, again, list(reversed(cells)))
    assert again == states[-1]
    assert again.blocks > 0


@pytest.mark.parametrize("rule", [PROPORTION, MEAN])
def test_quiet_blocks_cost_nothing(rule: GuardRule) -> None:
    blocks = random_blocks(33, 60, rule.kind)
    busy = [cells for cells in blocks if any(c.control.n + c.treatment.n for c in cells)]
    assert len(busy) < len(blocks)
    all_of_them, busy_only = run(rule, blocks)[-1], run(rule, busy)[-1]
    assert msgspec.structs.replace(all_of_them, last_block=0) == msgspec.structs.replace(
        busy_only, last_block=0
    )
    assert step(rule, busy_only, []) == busy_only


def test_a_cell_without_both_propensities_only_trains() -> None:
    lone = BlockCell(1, 1, 1.0, 0.0, proportion(500, 50), EMPTY)
    state = step(PROPORTION, start(PROPORTION), [lone])
    assert state.blocks == 0
    assert log_evidence(state) == pytest.approx(0.0, abs=1e-15)
    assert state.control.n == 500


def test_a_mean_waits_for_its_burn_in_and_for_a_spread() -> None:
    rng = np.random.default_rng(34)
    states = run(
        MEAN,
        [
            [cell(b, Moments.of(rng.normal(size=50)), Moments.of(rng.normal(size=50)))]
            for b in range(1, 20)
        ],
    )
    assert [state.blocks for state in states[9:13]] == [0, 0, 1, 2]
    assert states[-1].burn_in_units == BURN_IN_UNITS
    assert states[-1].units == 1_900
    flat = Moments.of([1.0] * 600)
    worse = Moments.of([9.0] * 600)
    silent = run(MEAN, [[cell(b, flat, flat)] for b in range(1, 5)])[-1]
    assert silent.blocks == 0
    assert log_evidence(silent) == pytest.approx(0.0, abs=1e-15)
    moved = step(MEAN, silent, [cell(9, flat, worse)])
    assert alarms(MEAN, step(MEAN, moved, [cell(10, flat, worse)]))


def test_an_outlier_is_not_an_alarm() -> None:
    """One score a million deviations away moves the evidence by a bounded amount."""
    rng = np.random.default_rng(35)
    blocks = [
        [cell(b, Moments.of(rng.normal(size=50)), Moments.of(rng.normal(size=50)))]
        for b in range(1, 40)
    ]
    state = run(MEAN, blocks)[-1]
    outlier = merge(Moments.of(rng.normal(size=50)), Moments.of([1e6]))
    after = step(MEAN, state, [cell(40, Moments.of(rng.normal(size=50)), outlier)])
    assert log_evidence(after) < log_evidence(state) + 1.5


@pytest.mark.parametrize("kind", ["proportion", "mean"])
def test_extremes_stay_finite(kind: str) -> None:
    rule = PROPORTION if kind == "proportion" else MEAN
    n = 10**6
    cells = {
        "proportion": (proportion(n, 0), proportion(n, n)),
        "mean": (Moments(n, (0.0,), (1.0 * n,)), Moments(n, (1e6,), (1e12 * n,))),
    }[kind]
    for pair in (cells, cells[::-1]):
        states = run(rule, [[cell(b, *pair, propensity=0.001)] for b in range(1, 6)])
        for state in states:
            assert all(math.isfinite(x) for x in (*state.log_stakes, state.log_peak))
            assert math.isfinite(log_evidence(state))


def test_what_is_refused() -> None:
    state = step(PROPORTION, start(PROPORTION), [cell(5, proportion(9, 1), proportion(9, 1))])
    some = proportion(1, 0)
    with pytest.raises(ValueError, match="not come after"):
        step(PROPORTION, state, [cell(5, some, some)])
    with pytest.raises(ValueError, match="one block"):
        step(PROPORTION, state, [cell(6, some, some), cell(7, some, some, epoch=2)])
    with pytest.raises(ValueError, match="epoch twice"):
        step(PROPORTION, state, [cell(6, some, some), cell(6, some, some)])
    with pytest.raises(ValueError, match="outside"):
        step(PROPORTION, state, [cell(6, some, some, propensity=1.5)])
    with pytest.raises(ValueError, match="grids"):
        step(msgspec.structs.replace(PROPORTION, bets=(0.5,)), state, [cell(6, some, some)])
    with pytest.raises(ValueError, match="not a proportion"):
        step(PROPORTION, state, [cell(6, Moments.of([0.4]), some)])
    for wrong in ({"margin": -0.1}, {"margin": math.inf}, {"alpha_share": 0.0}, {"bets": (1.0,)}):
        with pytest.raises(ValueError, match=r"margin|alpha|bets"):
            msgspec.convert({**msgspec.to_builtins(PROPORTION), **wrong}, GuardRule)


def test_says_which_bound_holds() -> None:
    assert is_exact(PROPORTION)
    assert not is_exact(MEAN)
