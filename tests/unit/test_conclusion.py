"""The rules of the conclusion: one of five pieces of advice, by the plan's own reading."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.inference.moments import EMPTY, Moments, of_rows
from analysis.inference.ratio_check import RatioCheck
from analysis.reports.conclusion import faults_of
from analysis.reports.markdown import render
from analysis.reports.model import GuardView, QualityCheck
from analysis.reports.report import Report
from analysis.reports.table import to_csv
from analysis.reports.words import change, change_range, size
from tests.unit.samples import proportion
from tests.unit.test_report import BETTER, CONTROL, SAME, SLIGHTLY_BETTER, WORSE, report

MANY = {"a": proportion(50_000, 5_000), "b": proportion(50_000, 5_000)}


def alarm(variant: str, *, alarmed: bool = True) -> GuardView:
    """What a guardrail "g" has seen of a variant."""
    return GuardView(
        guardrail="g",
        variant=variant,
        goal="decrease",
        margin=0.01,
        relative=False,
        alpha_share=0.005,
        bound="exact",
        log_peak=6.0 if alarmed else 1.0,
        log_threshold=-math.log(0.005),
        units=1_000,
        alarm=alarmed,
    )


def planned(effect: float | None = None, units: int = 20_000) -> dict[str, Any]:
    """A plan of five looks."""
    plan: dict[str, Any] = {"reading": "planned", "units": units}
    return plan if effect is None else plan | {"effect": {"absolute": effect}}


def advice(found: Report) -> tuple[str, str | None]:
    """What a report advises."""
    return found.verdict.action, found.verdict.variant


def test_the_first_line_says_what_to_do_and_the_rest_how_sure_that_is() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}})
    assert advice(found) == ("ship", "b")
    assert found.conclusion == f"Ship b. {found.verdict.known}"
    assert found.verdict.how_sure.startswith("Sure at 95 % by the any-time reading")
    assert "guardrail" in found.verdict.what_would_change_it


def test_an_alarm_of_a_guardrail_keeps_a_winner_from_being_shipped() -> None:
    clicks = {"click": {"a": CONTROL, "b": BETTER}}
    assert advice(report(clicks, guard=[alarm("b", alarmed=False)])) == ("ship", "b")
    found = report(clicks, guard=[alarm("b")])
    assert advice(found) == ("keep_control", None)
    assert "b is better on click" in found.conclusion
    assert "An alarm for b: guardrail g of b: " in found.conclusion


@pytest.mark.parametrize("reading", ["continuous", "fixed", "planned", "bayesian"])
def test_harm_that_no_guard_watched_keeps_a_winner_from_being_shipped(reading: str) -> None:
    """As in a table from elsewhere, where errors rose from 2 % to 3 or 10 %."""
    for errors, advised in ((105, ("ship", "b")), (500, ("keep_control", None))):
        found = report(
            {
                "clean": {"a": CONTROL, "b": BETTER},
                "sound": {"a": proportion(5_000, 4_900), "b": proportion(5_000, 5_000 - errors)},
            },
            roles={"sound": "guardrail"},
            plan={"reading": reading, "units": 10_000},
        )
        assert advice(found) == advised
        harm = found.metrics[1].comparisons[0].harm
        assert harm is not None
        assert harm.alpha_share == 0.01
        assert harm.shown is (errors == 500)
        assert any("No guard watched sound" in note for note in found.notes)
        assert "No guard watches these units" in found.guard_alpha
        assert ("Guardrail b on sound: HARM" in found.conclusion) is harm.shown


def test_a_guardrail_that_is_watched_is_not_read_twice() -> None:
    arms = {"a": CONTROL, "b": WORSE}
    found = report({"click": arms, "g": arms}, roles={"g": "guardrail"}, guard=[alarm("b")])
    assert found.metrics[1].comparisons[0].harm is None
    assert not any("No guard watched" in note for note in found.notes)


def test_an_alarm_for_one_variant_does_not_stop_another() -> None:
    arms = {"a": CONTROL, "b": BETTER, "c": BETTER}
    assert advice(report({"click": arms}, guard=[alarm("b")])) == ("ship", "c")


def test_one_variant_that_is_worse_does_not_end_the_others() -> None:
    found = report({"click": {"a": CONTROL, "b": WORSE, "c": SAME}})
    assert advice(found) == ("keep_running", None)
    assert "b is worse on click" in found.conclusion
    assert "c on click is at" in found.conclusion


def test_all_variants_worse_or_alarmed_keep_the_control() -> None:
    arms = {"a": CONTROL, "b": WORSE, "c": SAME}
    assert advice(report({"click": arms}, guard=[alarm("c")])) == ("keep_control", None)


def test_the_better_of_two_winners_is_shipped_where_less_is_better_too() -> None:
    arms = {"a": CONTROL, "b": proportion(5_000, 300), "c": WORSE}
    assert advice(report({"error": arms}, goal="decrease")) == ("ship", "b")


def test_a_critical_finding_on_the_data_comes_before_all_comparisons() -> None:
    lost = QualityCheck("outcomes_stopped", "critical", "click", "No clicks come.", "Look why.")
    odd = QualityCheck("event_delay", "warning", "click", "Clicks come late.", "Wait.")
    fits = RatioCheck({}, {}, (), None, None, None, mismatch=False)
    verdict = faults_of(fits, [lost, odd])
    assert verdict is not None
    assert (verdict.action, verdict.known) == ("fix_data", "No clicks come.")
    assert verdict.what_would_change_it == "Look why."
    assert faults_of(fits, [odd]) is None


def test_no_comparison_advises_anything_but_mending_while_data_are_wrong() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}}, units={"a": 5_000, "b": 4_400})
    assert advice(found) == ("fix_data", None)
    assert found.metrics[0].comparisons[0].verdict.action == "fix_data"


@pytest.mark.parametrize(
    "arms",
    [
        {"a": of_rows([(5.0,)] * 5), "b": of_rows([(6.0,)] * 6)},
        {"a": EMPTY, "b": of_rows([(5.0,)] * 5)},
    ],
)
def test_a_last_look_with_nothing_to_compare_finds_nothing(arms: dict[str, Moments]) -> None:
    found = report({"spent": arms}, plan={"reading": "fixed", "units": 5}, kind="mean")
    comparison = found.metrics[0].comparisons[0]
    assert comparison.planned is not None
    assert comparison.planned.final
    assert comparison.verdict.finding == "open"
    assert "b on spent cannot be judged: " in found.conclusion
    assert "no difference" not in found.conclusion


def test_a_variant_that_gets_no_traffic_is_not_waited_for() -> None:
    arms = {"a": CONTROL, "b": WORSE, "c": proportion(0, 0)}
    found = report({"click": arms}, weights={"a": 0.5, "b": 0.5, "c": 0.0})
    assert advice(found) == ("keep_control", None)


def test_it_says_about_how_long_it_still_takes() -> None:
    """10,000 units came in 48 hours."""
    found = report({"click": {"a": CONTROL, "b": SLIGHTLY_BETTER}}, hours=48)
    verdict = found.verdict
    assert verdict.more_units is not None
    assert verdict.more_seconds == pytest.approx(verdict.more_units / 10_000 * 48 * 3_600 + 86_400)
    assert found.conclusion.startswith("Keep running, about 5 days more.")
    assert "if it stays at +1.4 pp" in verdict.what_would_change_it


def test_units_that_have_yet_to_finish_need_no_new_enrolments() -> None:
    clicks = {"click": {"a": CONTROL, "b": SLIGHTLY_BETTER}}
    waiting = {"click": {"a": proportion(50_000, 5_000), "b": proportion(50_000, 5_700)}}
    assert report(clicks, unfinished=waiting, hours=48).verdict.more_seconds == 86_400


def test_nothing_is_forecast_from_noise() -> None:
    found = report({"click": {"a": CONTROL, "b": SAME}}, hours=48)
    assert found.verdict.more_units is None
    assert found.conclusion.startswith("Keep running. ")
    assert "analysis.effect" in found.verdict.what_would_change_it


def test_the_effect_of_the_plan_says_how_long_it_takes_to_tell_it_from_none() -> None:
    plan = {"effect": {"relative": 0.1}}
    found = report({"click": {"a": CONTROL, "b": SAME}}, plan=plan)
    assert "to tell the plan's effect of 1 pp from none" in found.verdict.what_would_change_it


@pytest.mark.parametrize("goal", ["increase", "decrease"])
def test_an_improvement_that_is_ruled_out_is_a_stop_for_futility(goal: str) -> None:
    plan = {"effect": {"relative": 0.1}}
    found = report({"click": MANY}, plan=plan, goal=goal)
    assert advice(found) == ("stop_for_futility", None)
    assert "b is not better on click by 1 pp," in found.conclusion
    assert advice(report({"click": MANY}, goal=goal)) == ("keep_running", None)


@pytest.mark.parametrize("goal", ["increase", "decrease"])
def test_it_is_only_the_good_side_that_has_to_be_ruled_out(goal: str) -> None:
    """b is a little worse, perhaps: a harm of the plan's size is still possible."""
    better = {"a": proportion(20_000, 2_000), "b": proportion(20_000, 2_120)}
    worse = {"a": proportion(20_000, 2_000), "b": proportion(20_000, 1_880)}
    good, bad = (better, worse) if goal == "increase" else (worse, better)
    plan = {"effect": {"absolute": 0.01}}
    assert advice(report({"click": good}, plan=plan, goal=goal)) == ("keep_running", None)
    assert advice(report({"click": bad}, plan=plan, goal=goal)) == ("stop_for_futility", None)


def test_a_fixed_plan_at_its_end_without_a_difference_keeps_the_control() -> None:
    plan = {"reading": "fixed", "units": 10_000}
    found = report({"click": {"a": CONTROL, "b": SAME}}, plan=plan)
    assert advice(found) == ("keep_control", None)
    assert "no difference at the end of the plan" in found.conclusion
    assert "no proof of equality" in found.verdict.how_sure


def test_planned_looks_may_end_a_run_early_and_say_when_the_next_is_due() -> None:
    click = {"a": CONTROL, "b": BETTER}
    assert advice(report({"click": click}, plan=planned())) == ("ship", "b")
    found = report({"click": {"a": CONTROL, "b": SLIGHTLY_BETTER}}, plan=planned())
    assert advice(found) == ("keep_running", None)
    assert found.verdict.more_units == 2_000
    assert "for look 3 of 5" in found.verdict.what_would_change_it
    before = report({"click": click}, plan=planned(units=100_000))
    assert "10,000 of 100,000 planned units have finished" in before.conclusion
    assert before.verdict.more_units == 10_000


def test_looks_that_can_hardly_end_well_are_futile() -> None:
    click = {"click": {"a": CONTROL, "b": SAME}}
    assert advice(report(click, plan=planned(effect=0.001))) == ("stop_for_futility", None)
    assert advice(report(click, plan=planned(effect=0.02))) == ("keep_running", None)


def test_without_an_effect_the_trend_counts_from_half_of_the_units_on() -> None:
    click = {"click": {"a": CONTROL, "b": proportion(5_000, 495)}}
    assert advice(report(click, plan=planned(units=12_500))) == ("stop_for_futility", None)
    assert advice(report(click, plan=planned(units=25_000))) == ("keep_running", None)


def test_a_posterior_ships_what_is_likely_better_and_costs_little_if_it_is_not() -> None:
    bayes = {"reading": "bayesian"}
    arms = {"a": CONTROL, "b": SLIGHTLY_BETTER}
    found = report({"click": arms}, plan=bayes)
    assert advice(found) == ("ship", "b")
    assert "bounds no error rate" in found.verdict.how_sure
    assert advice(report({"click": arms}, plan=bayes, goal="decrease")) == ("keep_control", None)
    assert advice(report({"click": {"a": CONTROL, "b": SAME}}, plan=bayes))[0] == "keep_running"
    careless = bayes | {"caring": {"relative": 0.5}}
    same = report({"click": {"a": CONTROL, "b": SAME}}, plan=careless)
    assert advice(same) == ("keep_control", None)
    assert same.metrics[0].comparisons[0].verdict.finding == "ended"


def test_a_posterior_is_never_said_to_be_certain() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}}, plan={"reading": "bayesian"})
    assert "chance to win above 99.99 %" in found.conclusion


def test_a_loss_that_is_a_share_of_nothing_cannot_be_weighed() -> None:
    none = {"a": proportion(500, 0), "b": proportion(500, 30)}
    found = report({"click": none}, plan={"reading": "bayesian"})
    assert advice(found) == ("keep_running", None)
    assert "a share of the control mean, which is 0" in found.conclusion
    stated = {"reading": "bayesian", "caring": {"absolute": 0.001}}
    assert advice(report({"click": none}, plan=stated)) == ("ship", "b")


def test_a_run_that_is_over_is_not_to_be_kept_running() -> None:
    for state in ("concluded", "archived"):
        found = report({"click": {"a": CONTROL, "b": SAME}}, state=state)
        assert advice(found) == ("keep_control", None)
        assert "The run ended too early." in found.conclusion


def test_a_comparison_has_a_verdict_of_its_own() -> None:
    arms = {"a": CONTROL, "b": BETTER, "c": WORSE, "d": SAME}
    found = report({"click": arms}).metrics[0].comparisons
    assert [(c.verdict.action, c.verdict.finding) for c in found] == [
        ("ship", "better"),
        ("keep_control", "worse"),
        ("keep_running", "open"),
    ]


def test_a_secondary_metric_tells_and_decides_nothing() -> None:
    arms = {"a": CONTROL, "b": BETTER}
    found = report({"click": arms, "buy": arms}, roles={"buy": "secondary"})
    verdict = found.metrics[1].comparisons[0].verdict
    assert (verdict.action, verdict.finding) == (None, None)
    assert verdict.known.startswith("b on buy: better (difference +4.0 pp")
    assert verdict.how_sure.startswith("Exploratory: of those that stand out, at most 5 %")


def test_a_guardrail_advises_by_its_alarm_alone() -> None:
    arms = {"a": CONTROL, "b": WORSE}
    for alarmed, action in ((True, "keep_control"), (False, None)):
        found = report({"g": arms}, roles={"g": "guardrail"}, guard=[alarm("b", alarmed=alarmed)])
        assert found.metrics[0].comparisons[0].verdict.action == action


def test_the_report_says_how_the_alpha_of_the_guard_is_shared() -> None:
    arms = {"a": CONTROL, "b": SAME, "c": SAME}
    roles = {"g": "guardrail"}
    found = report({"click": arms, "g": arms}, roles=roles, guard=[alarm("b"), alarm("c")])
    assert "at most 0.01, over all guardrails, variants, looks" in found.guard_alpha
    assert "1 guardrail x 2 treatments" in found.guard_alpha
    assert "a share of 0.005 each, together 0.01" in found.guard_alpha
    assert found.guard_alpha.endswith("The bound is exact.")
    assert report({"click": arms}).guard_alpha.startswith("No guardrail")


def counts() -> st.SearchStrategy[Sequence[tuple[int, int]]]:
    """Units and conversions of two to four variants, the sizes of every kind."""
    size = st.sampled_from([0, 1, 2, 99, 100, 101, 5_000, 10**9])
    arm = size.flatmap(
        lambda n: st.tuples(
            st.just(n), st.one_of(st.just(0), st.just(n), st.integers(0, n), st.just(n // 10))
        )
    )
    return st.lists(arm, min_size=2, max_size=4)


PLANS: list[Mapping[str, Any]] = [
    {},
    {"effect": {"relative": 0.05}},
    {"correction": "none"},
    {"reading": "fixed", "units": 200},
    {"reading": "planned", "units": 10_000, "effect": {"absolute": 0.01}},
    {"reading": "bayesian"},
    {"reading": "bayesian", "prior": {"lift_sd": 0.3}},
]


@settings(max_examples=150, deadline=None)
@given(
    arms=counts(),
    plan=st.sampled_from(PLANS),
    goal=st.sampled_from(["increase", "decrease"]),
    state=st.sampled_from(["running", "paused", "concluded"]),
    hours=st.sampled_from([None, 0.0, 1e-9, 1.0, 1e6]),
    roles=st.sampled_from(["primary", "secondary", "guardrail"]),
)
def test_whatever_the_facts_a_report_has_an_answer_in_finite_numbers(
    arms: Sequence[tuple[int, int]],
    plan: Mapping[str, Any],
    goal: str,
    state: Any,
    hours: float | None,
    roles: str,
) -> None:
    cells = {"abcd"[place]: proportion(*arm) for place, arm in enumerate(arms)}
    found = report(
        {"click": cells, "other": cells},
        plan=plan,
        goal=goal,
        state=state,
        hours=hours,
        roles={"other": roles},
    )
    is_an_answer(found)


def means() -> st.SearchStrategy[Sequence[Moments]]:
    """Means of two or three variants: negative, 0, huge with a tiny spread, without any spread."""
    arm = st.builds(
        lambda n, mean, sd: Moments(n, (mean if n else 0.0,), (sd * sd * max(0, n - 1),)),
        st.sampled_from([0, 1, 2, 150, 10_000, 10**9]),
        st.sampled_from([0.0, -3.0, 1.0, 1e12, 1e12 + 1.0, -1e-12, 1e30]),
        st.sampled_from([0.0, 1e-6, 1.0, 1e12]),
    )
    return st.lists(arm, min_size=2, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    arms=means(),
    plan=st.sampled_from(PLANS),
    goal=st.sampled_from(["increase", "decrease"]),
)
def test_whatever_the_means_a_report_has_an_answer_in_finite_numbers(
    arms: Sequence[Moments], plan: Mapping[str, Any], goal: str
) -> None:
    cells = dict(zip("abc", arms, strict=False))
    is_an_answer(report({"spent": cells}, plan=plan, goal=goal, kind="mean", hours=24))


def is_an_answer(found: Report) -> None:
    """Whether a report says something, in numbers that JSON and readers know."""
    assert found.verdict.known
    assert found.verdict.what_would_change_it
    assert (found.verdict.variant is not None) is (found.verdict.action == "ship")
    text = msgspec.json.encode(found)
    assert msgspec.json.decode(text, type=Report) == found
    for word in (b"NaN", b"Infinity"):
        assert word not in text
    for shown in (render(found), to_csv(found)):
        assert re.search(r"\b(nan|inf|None)\b(?! of)", shown) is None


def test_a_rollback_by_the_guard_says_what_was_measured_and_how_rare_that_is() -> None:
    """Rates first, and no e-value: who is woken by it may never have heard of one."""
    errors = {"a": proportion(5_000, 40), "b": proportion(5_000, 1_000)}
    found = report(
        {"click": {"a": CONTROL, "b": SAME}, "g": errors},
        roles={"g": "guardrail"},
        goal="decrease",
        guard=[alarm("b")],
        state="rolled_back",
        rolled_back="guardrail g of b: evidence of harm e^6.00 reached its threshold e^5.30",
        by_guard={"a", "b"},
    )
    assert found.conclusion == (
        "Rolled back to a: guardrail g of b: 20 % against 0.8 % of the control, where 1 pp is "
        "tolerated; the evidence of harm reached what at most 1 in 200 harmless variants would "
        "ever show."
    )
    assert "e^" not in found.metrics[1].comparisons[0].verdict.known


def test_a_rollback_by_hand_keeps_the_word_of_the_hand() -> None:
    found = report(
        {"click": {"a": CONTROL, "b": SAME}},
        guard=[alarm("b")],
        state="rolled_back",
        rolled_back="users complain",
    )
    assert found.conclusion == "Rolled back to a: users complain."


def test_a_report_in_words_gives_differences_of_rates_in_points() -> None:
    assert change("proportion", 0.11789, 0.03448, 0.2013) == "+11.8 pp"
    assert change_range("proportion", 0.03448, 0.2013) == "3.4 to 20.1 pp"
    assert change("mean", -0.020473, -0.1, 0.06) == "−0.020"
    assert (size("mean", 1_234.5), size("proportion", 0.01)) == ("1,234", "1 pp")
    assert (change("mean", 0.0), change("mean", None)) == ("0", "–")


def test_the_time_to_go_is_that_of_the_leading_arm() -> None:
    """b leads; c has too few units for an interval, and needs few to get one."""
    arms = {"a": CONTROL, "b": SLIGHTLY_BETTER, "c": proportion(90, 20)}
    found = report({"click": arms}, hours=48, weights={"a": 0.4955, "b": 0.4955, "c": 0.009})
    of = {c.treatment: c.verdict for c in found.metrics[0].comparisons}
    assert "the least it needs" in of["c"].what_would_change_it
    assert of["c"].more_units is None
    assert of["c"].more_seconds is None
    assert found.verdict.more_units == of["b"].more_units is not None


def test_what_takes_beyond_a_year_is_no_forecast() -> None:
    clicks = {"click": {"a": CONTROL, "b": SLIGHTLY_BETTER}}
    found = report(clicks, hours=48 * 365)
    assert found.conclusion.startswith("Keep running, more than a year.")
    assert ", more than a year at the rate so far" in found.verdict.what_would_change_it


def test_a_plan_of_looks_does_not_tempt_with_a_look_that_is_none_of_it() -> None:
    clicks = {"click": {"a": CONTROL, "b": SLIGHTLY_BETTER}}
    assert "single uncorrected look" in report(clicks).conclusion
    plan = {"reading": "fixed", "units": 50_000}
    assert "single uncorrected look" not in report(clicks, plan=plan).conclusion
