"""The report: which numbers stand in it, and what its one line says of them."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from analysis.control.looks import shares_of
from analysis.inference.epoch_sums import Population
from analysis.inference.estimate import compare
from analysis.inference.kinds import Kind
from analysis.inference.moments import EMPTY, Moments, merge
from analysis.inference.multiplicity import benjamini_hochberg, holm
from analysis.inference.planned import Look, look_at
from analysis.inference.ratio_check import UnitSums, of_units
from analysis.inference.sequence import MIN_UNITS_PER_ARM
from analysis.reports.model import Facts, GuardView, MetricFacts
from analysis.reports.report import Report, make_report
from experiments.definition import parse_definition
from experiments.model import AnalysisPlan, State
from tests.unit.samples import population, proportion

CONTROL = proportion(5_000, 500)
BETTER = proportion(5_000, 700)
WORSE = proportion(5_000, 350)
SAME = proportion(5_000, 503)
SLIGHTLY_BETTER = proportion(5_000, 570)
"""Significant at a single look at 0.05, but not for a reading that may be looked at any time."""

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)

Arms = Mapping[str, Moments]


def one_epoch(cells: Arms, kind: Kind) -> Population:
    """The sums over a single epoch."""
    return population([list(cells.values())], kind)


def report(
    metrics: Mapping[str, Arms],
    *,
    roles: Mapping[str, str] | None = None,
    plan: Mapping[str, Any] | None = None,
    state: State = "running",
    rolled_back: str | None = None,
    by_guard: Collection[str] = (),
    ship: str | None = None,
    units: Mapping[str, int] | None = None,
    goal: str = "increase",
    weights: Mapping[str, float] | None = None,
    epochs: int = 1,
    unfinished: Mapping[str, Arms] | None = None,
    backfill: Mapping[str, float] | None = None,
    guard: Sequence[GuardView] = (),
    hours: float | None = None,
    kind: Kind = "proportion",
) -> Report:
    """The report of a run of even weights, from the finished cells of each metric by variant.

    They are those of its first epoch; further ones have the same propensities and as many units,
    which the metrics do not count. Variants are "a", the control, "b" and so on. All metrics are
    primary unless `roles` says otherwise, and all units are finished ones unless there are
    `unfinished`. The run began `hours` ago. Of a plan with looks the last one that is due has been
    taken, of the finished cells. All metrics are of one kind, with one number a unit.
    """
    arms = list(next(iter(metrics.values())))
    shares = weights or dict.fromkeys(arms, 1 / len(arms))
    definition = parse_definition(
        {
            "key": "x",
            "variants": [
                {"key": arm, "value": arm, "weight": shares[arm], "control": place == 0}
                for place, arm in enumerate(arms)
            ],
            "metrics": [
                {
                    "key": key,
                    "role": (roles or {}).get(key, "primary"),
                    "kind": kind,
                    "event": key,
                    "window": "1d",
                    "goal": goal,
                }
                for key in metrics
            ],
        }
    )
    analysis = msgspec.convert(dict(plan or {}), AnalysisPlan)
    definition = msgspec.structs.replace(definition, analysis=analysis)
    enrolled = units or {arm: cell.n for arm, cell in next(iter(metrics.values())).items()}
    return make_report(
        Facts(
            project="shop",
            key="x",
            state=state,
            run=1,
            epoch=1,
            definition=definition,
            ship=ship,
            started_at=None if hours is None else NOW - timedelta(hours=hours),
            watermark=None if hours is None else NOW,
            rolled_back=rolled_back,
            enrolled=sum((of_units(enrolled, {}, shares) for _ in range(epochs)), start=UnitSums()),
            metrics={
                key: MetricFacts(
                    everyone=one_epoch(
                        {
                            arm: merge(cell, (unfinished or {}).get(key, {}).get(arm, EMPTY))
                            for arm, cell in cells.items()
                        },
                        kind,
                    ),
                    finished=one_epoch(cells, kind),
                    backfill=(backfill or {}).get(key),
                    looks=looks(cells, kind, definition.analysis),
                )
                for key, cells in metrics.items()
            },
            guard=tuple(guard),
            by_guard=frozenset(by_guard),
        )
    )


def looks(cells: Arms, kind: Kind, plan: AnalysisPlan) -> dict[str, tuple[Look, ...]]:
    """The looks taken at finished cells, by treatment: the last one of a plan that is due."""
    units = sum(cell.n for cell in cells.values())
    due = [share for share in shares_of(plan) if units >= share * (plan.units or 0)]
    if not due or plan.units is None:
        return {}
    control, *treatments = cells
    sums = one_epoch(cells, kind).contrasts
    return {
        treatment: (
            look_at(
                compare(sums[treatment], control, treatment, kind, plan.alpha),
                len(due),
                None,
                units,
                min(1.0, units / plan.units),
            ),
        )
        for treatment in treatments
    }


def names_a_winner(found: Report) -> bool:
    """Whether it does."""
    return found.verdict.action == "ship"


def test_a_difference_that_holds_at_any_look_is_a_winner() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}})
    assert found.conclusion.startswith(
        "Ship b. b is better on click (difference +4.0 pp, 95 % any-"
    )


def test_what_is_worse_keeps_the_control() -> None:
    found = report({"click": {"a": CONTROL, "b": WORSE}})
    assert found.conclusion.startswith("Keep the control. b is worse on click (difference −3.0 pp")


def test_less_is_better_where_the_goal_is_to_decrease() -> None:
    assert names_a_winner(report({"e": {"a": CONTROL, "b": WORSE}}, goal="decrease"))
    worse = report({"e": {"a": CONTROL, "b": BETTER}}, goal="decrease")
    assert worse.conclusion.startswith("Keep the control. b is worse on e")


def test_no_difference_yet_is_a_reason_to_keep_running() -> None:
    found = report({"click": {"a": CONTROL, "b": SAME}})
    assert found.conclusion.startswith("Keep running. b on click is at +0.1 pp (95 % any-time ")
    assert "single uncorrected look" not in found.conclusion


def test_a_single_look_is_not_what_a_continuous_plan_stands_on() -> None:
    found = report({"click": {"a": CONTROL, "b": SLIGHTLY_BETTER}})
    fixed = found.metrics[0].comparisons[0].fixed
    assert fixed.p_value is not None
    assert fixed.p_value < 0.03
    assert found.conclusion.startswith("Keep running.")
    assert "A single uncorrected look would call a difference significant" in found.conclusion


@pytest.mark.parametrize(("planned", "wins"), [(10_000, True), (10_001, False)])
def test_a_fixed_reading_says_nothing_before_its_units(planned: int, wins: bool) -> None:
    plan = {"reading": "fixed", "units": planned}
    found = report({"click": {"a": CONTROL, "b": SLIGHTLY_BETTER}}, plan=plan)
    assert names_a_winner(found) is wins
    if not wins:
        assert "10,000 of 10,001 planned units have finished" in found.conclusion


def test_a_fixed_reading_does_not_lean_on_the_continuous_one() -> None:
    """Nor the other way round."""
    plan = {"reading": "fixed", "units": 20_000}
    found = report({"click": {"a": CONTROL, "b": BETTER}}, plan=plan)
    assert found.metrics[0].comparisons[0].continuous.p_adjusted == pytest.approx(0, abs=0.01)
    assert not names_a_winner(found)


def test_many_comparisons_are_corrected_over_variants_and_primary_metrics() -> None:
    arms = {"a": CONTROL, "b": SLIGHTLY_BETTER, "c": SAME, "d": SAME}
    fixed = {"reading": "fixed", "units": 2}
    corrected = report({"click": arms, "buy": arms}, plan=fixed)
    raw = report({"click": arms, "buy": arms}, plan=fixed | {"correction": "none"})
    assert not names_a_winner(corrected)
    assert names_a_winner(raw)
    family = [c for metric in corrected.metrics for c in metric.comparisons]
    assert len(family) == 6
    looked = [None if c.planned is None else c.planned.p_value for c in family]
    p_values = [c.continuous.reading.p_value for c in family]
    assert None not in looked
    assert tuple(c.fixed_p_adjusted for c in family) == holm([c.fixed.p_value for c in family])
    assert tuple(c.planned_p_adjusted for c in family) == holm(looked)
    assert tuple(c.continuous.p_adjusted for c in family) == holm(p_values)


def test_secondary_metrics_are_a_family_of_their_own_in_which_some_may_be_false() -> None:
    arms = {"a": CONTROL, "b": SLIGHTLY_BETTER, "c": SAME}
    roles = {"buy": "secondary", "visit": "secondary"}
    found = report({"click": arms, "buy": arms, "visit": arms}, roles=roles)
    primary, *secondary = found.metrics
    family = [c for metric in secondary for c in metric.comparisons]
    p_values = [c.fixed.p_value for c in family]
    assert tuple(c.fixed_p_adjusted for c in family) == benjamini_hochberg(p_values)
    p_values = [c.fixed.p_value for c in primary.comparisons]
    assert tuple(c.fixed_p_adjusted for c in primary.comparisons) == holm(p_values)


@pytest.mark.parametrize("role", ["secondary", "guardrail"])
@pytest.mark.parametrize("reading", [{}, {"reading": "fixed", "units": 2}])
def test_only_a_primary_metric_makes_a_winner(role: str, reading: Mapping[str, Any]) -> None:
    found = report(
        {"click": {"a": CONTROL, "b": SAME}, "other": {"a": CONTROL, "b": BETTER}},
        roles={"other": role},
        plan=reading,
    )
    assert not names_a_winner(found)
    assert "other" not in found.conclusion
    assert found.metrics[1].comparisons[0].verdict.action is None


def test_the_alpha_of_a_guardrail_is_shared_out_beforehand_so_its_p_is_not_adjusted() -> None:
    found = report({"other": {"a": CONTROL, "b": BETTER}}, roles={"other": "guardrail"})
    [comparison] = found.metrics[0].comparisons
    assert comparison.fixed.p_value is not None
    assert comparison.fixed_p_adjusted is None
    assert comparison.continuous.p_adjusted is None


def test_a_plan_without_a_primary_metric_supports_nothing() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}}, roles={"click": "secondary"})
    assert found.conclusion == (
        "Keep the control. The plan names no primary metric, so it supports no change."
    )


def test_a_variant_that_is_better_here_and_worse_there_is_no_winner() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}, "buy": {"a": CONTROL, "b": WORSE}})
    assert found.conclusion.startswith("Keep the control. b is worse on buy")


def test_two_winners_are_not_said_to_be_compared() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER, "c": proportion(5_000, 701)}})
    assert found.verdict.variant == "c"
    assert found.conclusion.endswith("They were not compared with each other.")


def test_one_winner_on_two_metrics_has_nobody_to_be_compared_with() -> None:
    arms = {"a": CONTROL, "b": BETTER}
    found = report({"click": arms, "visit": arms})
    assert names_a_winner(found)
    assert "compared" not in found.conclusion


def test_counts_that_do_not_fit_their_propensities_conclude_nothing() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}}, units={"a": 5_000, "b": 4_400})
    assert found.sample_ratio.mismatch
    assert found.conclusion.startswith("Fix the data first")


@pytest.mark.parametrize("state", ["rolled_back", "archived"])
def test_a_run_that_was_rolled_back_has_no_winner_for_ever(state: State) -> None:
    found = report(
        {"click": {"a": CONTROL, "b": BETTER}}, state=state, rolled_back="it burned the house down."
    )
    assert found.conclusion == "Rolled back to a: it burned the house down."


def test_what_was_shipped_is_named_beside_what_the_plan_supports() -> None:
    found = report({"click": {"a": CONTROL, "b": SAME}}, state="concluded", ship="b")
    assert found.ship == "b"
    assert found.conclusion.startswith("b was shipped. Keep the control. The run ended too early.")


def test_an_epoch_after_a_pause_is_no_reallocation() -> None:
    found = report({"click": {"a": CONTROL, "b": SAME}}, epochs=2)
    assert found.epochs == 2
    assert found.notes == ()


def test_a_metric_that_is_still_being_computed_says_how_far_it_is() -> None:
    found = report({"click": {"a": CONTROL, "b": SAME}}, backfill={"click": 0.254})
    assert found.metrics[0].backfill == 0.254
    [filling] = [check for check in found.quality if check.code == "backfill"]
    assert filling.explanation.endswith("25.4 % of the units are in its numbers.")


def test_chance_in_a_small_variant_with_a_rare_outcome_is_no_verdict() -> None:
    """None of 500 converted where 2 were expected: likely, though it has no variance of its own."""
    click = {"a": proportion(9_500, 38), "b": proportion(500, 0)}
    found = report({"click": click}, weights={"a": 0.95, "b": 0.05})
    assert found.verdict.action == "keep_running"


def test_without_units_nothing_is_known() -> None:
    found = report({"click": {"a": proportion(0, 0), "b": proportion(0, 0)}})
    assert found.conclusion == "No units yet: nothing is known."


@pytest.mark.parametrize(
    ("state", "beginning"),
    [
        ("running", "Keep running."),
        ("paused", "Paused too early."),
        ("concluded", "Keep the control. The run ended too early."),
    ],
)
def test_too_few_finished_units_are_said_to_be_too_few(state: State, beginning: str) -> None:
    few = MIN_UNITS_PER_ARM - 1
    waiting = {"a": proportion(2_000, 100), "b": proportion(2_000, 900)}
    found = report(
        {"click": {"a": proportion(few, 1), "b": proportion(few, few)}},
        unfinished={"click": waiting},
        state=state,
    )
    assert found.conclusion.startswith(beginning)
    assert f"has too few finished units, {few} of the {MIN_UNITS_PER_ARM}" in found.conclusion
    assert any("4000 of click" in note for note in found.notes)


def test_enough_finished_units_without_a_single_outcome_are_no_winner() -> None:
    found = report({"click": {"a": proportion(500, 0), "b": proportion(500, 0)}})
    assert found.conclusion.startswith("Keep running. b on click cannot be judged: the finished ")


def test_all_of_a_report_is_json_whatever_is_not_defined() -> None:
    for arms in (
        {"a": proportion(0, 0), "b": proportion(0, 0)},
        {"a": proportion(1, 1), "b": proportion(0, 0)},
        {"a": proportion(1, 0), "b": proportion(1, 1)},
        {"a": proportion(200, 0), "b": proportion(200, 200)},
        {"a": proportion(200, 0), "b": proportion(200, 0)},
    ):
        found = report({"click": arms})
        assert msgspec.json.decode(msgspec.json.encode(found), type=Report) == found
