"""The report of a run whose traffic was moved: which estimate it takes, and what it says of it."""

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest

from analysis.inference.ratio_check import UnitSums, of_units
from analysis.inference.trail import TrailCell, follow, start
from analysis.reports.markdown import render
from analysis.reports.model import Facts, MetricFacts
from analysis.reports.report import Report, make_report
from analysis.reports.table import rows
from experiments.definition import parse_definition
from tests.unit.samples import population, proportion

Share = Callable[[int], float]
"""The share of traffic that "b" has in an epoch."""


def moved(
    share: Share,
    *,
    epochs: int,
    units: int,
    rates: tuple[float, float] = (0.1, 0.1),
    drift: float = 0.0,
    trail: bool = True,
) -> Report:
    """The report of epochs of so many units each, with one block in each."""
    generator = np.random.default_rng(1)
    cells, enrolled, followed = [], UnitSums(), start(1)
    for epoch in range(epochs):
        p = share(epoch)
        treated = int(generator.binomial(units, p))
        base = drift * epoch / epochs
        arms = [
            proportion(n, int(generator.binomial(n, rate + base)))
            for n, rate in zip((units - treated, treated), rates, strict=True)
        ]
        cells.append(arms)
        enrolled += of_units({"a": units - treated, "b": treated}, {}, {"a": 1 - p, "b": p})
        followed = follow(followed, [TrailCell(epoch + 1, epoch + 1, 1 - p, p, units, *arms)])
    metric = {"key": "click", "role": "primary", "kind": "proportion", "event": "click"}
    definition = parse_definition(
        {
            "key": "x",
            "variants": [
                {"key": "a", "value": "a", "weight": 0.5, "control": True},
                {"key": "b", "value": "b", "weight": 0.5},
            ],
            "metrics": [metric | {"window": "1d"}],
            "policy": {"kind": "thompson", "metric": "click"},
        }
    )
    sums = population(cells, "proportion")
    return make_report(
        Facts(
            project="shop",
            key="x",
            state="running",
            run=1,
            epoch=epochs,
            definition=definition,
            ship=None,
            started_at=None,
            watermark=None,
            rolled_back=None,
            enrolled=enrolled,
            metrics={
                "click": MetricFacts(
                    everyone=sums, finished=sums, trails={"b": followed} if trail else {}
                )
            },
            guard=(),
        )
    )


def bandit(epoch: int) -> float:
    """A share that climbs in small steps."""
    return min(0.9, 0.5 + 0.01 * epoch)


def finite(report: Report) -> Sequence[float]:
    """All numbers of a report, which JSON can hold."""
    found: list[float] = []

    def look(data: object) -> None:
        if isinstance(data, dict):
            for value in data.values():
                look(value)
        elif isinstance(data, list | tuple):
            for value in data:
                look(value)
        elif isinstance(data, float):
            found.append(data)

    look(msgspec.to_builtins(report))
    return found


def test_small_epochs_are_read_by_their_propensities_and_the_report_says_so() -> None:
    found = moved(bandit, epochs=60, units=50)
    [comparison] = found.metrics[0].comparisons
    assert (comparison.fixed.method, comparison.continuous.method) == ("aipw", "aipw")
    assert (
        "differences come from scores that weigh each unit by its logged propensity (click)"
        in (found.notes[0])
    )
    assert {row.method for row in rows(found) if row.reading != "batched_ols"} == {"aipw"}
    assert all(math.isfinite(number) for number in finite(found))


def test_batched_ols_stands_beside_it() -> None:
    found = moved(bandit, epochs=60, units=50)
    [comparison] = found.metrics[0].comparisons
    assert comparison.batched_ols is not None
    assert comparison.batched_ols.difference == pytest.approx(comparison.fixed.difference, abs=0.03)
    assert "- b: by batched OLS over 60 epochs " in render(found)
    [row] = [row for row in rows(found) if row.reading == "batched_ols"]
    assert row.p_value == comparison.batched_ols.p_value
    assert not row.concludes


def test_large_epochs_are_compared_within() -> None:
    found = moved(lambda epoch: 0.2 + 0.2 * epoch, epochs=3, units=4_000)
    [comparison] = found.metrics[0].comparisons
    assert comparison.fixed.method == "within_epochs"
    assert "differences are taken within epochs" in found.notes[0]
    assert "weighted by propensities" not in render(found)


def test_the_worth_of_the_units_and_the_smallest_propensity_are_shown() -> None:
    found = moved(bandit, epochs=60, units=50)
    weights = found.metrics[0].comparisons[0].weights
    assert weights is not None
    assert weights.smallest_propensity == pytest.approx(0.1)
    assert not weights.fragile
    text = render(found)
    assert "weighted by propensities, a is worth " in text
    assert "the smallest propensity is 0.1." in text
    assert "FRAGILE" not in text


def test_an_estimate_that_hangs_on_a_few_units_is_called_fragile() -> None:
    found = moved(lambda epoch: 0.5 if epoch < 5 else 0.995, epochs=60, units=50)
    [comparison] = found.metrics[0].comparisons
    assert comparison.weights is not None
    assert comparison.weights.fragile
    assert "FRAGILE: a few units of small propensity weigh so much" in render(found)


def test_without_a_trail_small_epochs_are_called_rough() -> None:
    found = moved(bandit, epochs=60, units=50, trail=False)
    [comparison] = found.metrics[0].comparisons
    assert "approximate_small_epochs" in comparison.fixed.notes
    assert comparison.weights is None
    assert "traffic moved in epochs of few units" in render(found)


def test_a_drifting_base_rate_makes_no_winner() -> None:
    """The rate climbs from 10 to 40 % while b's share climbs: b has the better days."""
    found = moved(bandit, epochs=100, units=100, drift=0.3)
    assert found.verdict.action == "keep_running"
    [comparison] = found.metrics[0].comparisons
    assert comparison.fixed.p_value is not None
    assert comparison.fixed.p_value > 0.05


def test_without_a_reallocation_there_is_nothing_beside_the_textbook() -> None:
    found = moved(lambda _: 0.5, epochs=3, units=1_000)
    [comparison] = found.metrics[0].comparisons
    assert (comparison.batched_ols, comparison.weights) == (None, None)
    assert found.notes == ()
