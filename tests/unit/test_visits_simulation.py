"""What the bound of a guardrail of the scope `exposure` is worth: visits of units that come again.

Visits of one unit are taken for those of many. Where units differ for good, the split of a few of
them is seen again in every block, and is no chance any more. A margin covers that; none does not.
"""

import numpy as np
import pytest

from analysis.inference.evidence import (
    BlockCell,
    GuardRule,
    alarms,
    bound_of,
    start,
    step,
)
from analysis.inference.moments import of_rows
from tests.unit.samples import at_most

ALPHA = 0.05
BLOCKS, VISITS, RUNS = 150, 100, 100
RATE, SPREAD = 0.02, 0.05
"""Of errors per request: the mean over units, and how much units differ for good."""


def alarmed(seed: int, units: int, margin: float) -> bool:
    """Whether a variant that does no harm at all is taken for harmful, when so many units come
    again and again."""
    generator = np.random.default_rng(seed)
    treated = generator.random(units) < 0.5
    size = RATE * (1 - RATE) / SPREAD**2 - 1
    rate = generator.beta(RATE * size, (1 - RATE) * size, units)
    rule = GuardRule("ratio", "decrease", margin, ALPHA, repeats=True)
    state = start(rule)
    for block in range(BLOCKS):
        unit, requests = np.unique(generator.choice(units, VISITS), return_counts=True)
        rows = np.stack([generator.binomial(requests, rate[unit]), requests], axis=1)
        control, treatment = (of_rows(rows[treated[unit] == arm]) for arm in (False, True))
        state = step(rule, state, (BlockCell(block, 1, 0.5, 0.5, control, treatment),))
    return alarms(rule, state)


def test_a_margin_covers_what_units_that_come_again_differ_by() -> None:
    found = sum(alarmed(seed, units=1_000, margin=0.01) for seed in range(RUNS))
    assert found / RUNS <= at_most(ALPHA, RUNS)


def test_without_a_margin_a_few_units_that_come_again_break_the_bound() -> None:
    found = sum(alarmed(seed, units=100, margin=0.0) for seed in range(RUNS))
    assert found / RUNS > at_most(ALPHA, RUNS)


@pytest.mark.parametrize(
    ("rule", "bound"),
    [
        (GuardRule("proportion", "decrease", 0.0, ALPHA), "exact"),
        (GuardRule("ratio", "decrease", 0.0, ALPHA), "asymptotic"),
        (GuardRule("ratio", "decrease", 0.0, ALPHA, repeats=True), "approximate"),
    ],
)
def test_a_rule_says_how_its_bound_holds(rule: GuardRule, bound: str) -> None:
    assert bound_of(rule) == bound
