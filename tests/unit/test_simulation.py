"""`turnout simulate`: an experiment is played by the controller's own rules in a stated world."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from analysis.inference.evidence import log_evidence, start
from analysis.inference.guard_model import GuardRule
from analysis.simulation.clock import clock_of
from analysis.simulation.course import LATENESS, Course, passed, play
from analysis.simulation.draws import draw
from analysis.simulation.many import Share, Simulated, simulate
from analysis.simulation.page import duration, line, page
from analysis.simulation.verdicts import Shortfall, known
from analysis.simulation.world import Scene, read_scene
from experiments.problems import ProblemError
from tests.unit.samples import at_most

CLICK = {"key": "click", "role": "primary", "kind": "proportion", "event": "c", "window": "30s"}
ERRORS = {
    "key": "errors",
    "role": "guardrail",
    "kind": "proportion",
    "event": "error",
    "window": "10s",
    "goal": "decrease",
    "margin": {"absolute": 0.01},
}
THOMPSON = {"kind": "thompson", "metric": "click", "every": "1h", "warmup": 50}


def written(
    metrics: Mapping[str, Any], *definitions: dict[str, Any], **others: Any
) -> dict[str, Any]:
    """An experiment with what is true of it, as a file holds it."""
    truth = {"traffic": "1/s", "length": "1d", "metrics": metrics}
    return {
        "key": "x",
        "variants": [
            {"key": "old", "control": True, "weight": 0.5, "value": 1},
            {"key": "new", "weight": 0.5, "value": 2},
        ],
        "metrics": list(definitions),
        "truth": truth | others.pop("truth", {}),
        **others,
    }


def scene(metrics: Mapping[str, Any], *definitions: dict[str, Any], **others: Any) -> Scene:
    """The same, read."""
    return read_scene(written(metrics, *definitions, **others))


def once(of: Scene, seed: int = 1) -> Course:
    """A run."""
    return play(of, np.random.default_rng(seed))


def many(of: Scene, runs: int, seed: int = 1) -> Simulated:
    """Many runs."""
    return simulate(of, runs, seed)


def test_a_variant_that_begins_to_fail_is_rolled_back_soon_after() -> None:
    failing = {"old": 0.01, "new": {"value": 0.01, "then": 0.2, "at": "12h"}}
    found = many(scene({"errors": failing}, ERRORS), 20)
    [new] = found.variants
    assert new.harmful
    assert new.alarmed.share == 1.0
    assert new.missed.count == 0
    assert found.endings["rollback"].share == 1.0
    assert new.reaction.high is not None
    assert new.reaction.high < 1_800
    assert found.harmed.high is not None
    assert found.harmed.high < 0.05 * found.uniform_harmed


def test_after_a_healthy_day_the_guard_is_as_quick_as_the_controllers() -> None:
    """A block of the controller is 1 s here, and the controller needs seconds."""
    late = {"old": 0.01, "new": {"value": 0.01, "then": 0.3, "at": "24h"}}
    quick = ERRORS | {"window": "1s"}
    found = many(scene({"errors": late}, quick, truth={"traffic": "100/s", "length": "2d"}), 5)
    [new] = found.variants
    assert new.reaction.runs == 5
    assert new.reaction.high is not None
    assert new.reaction.high <= 12
    assert (found.finest, found.longest) == (1.0, 576.0)


def test_a_long_tick_counts_as_many_blocks_as_it_is_long() -> None:
    """Otherwise what comes late would find the weights of an early start, and too little to win
    back."""
    rule = GuardRule(kind="proportion", goal="decrease", margin=0.01, alpha_share=0.01)
    before = start(rule)
    after = passed(before, 7)
    assert after.blocks == 7
    assert log_evidence(after) == pytest.approx(log_evidence(before), abs=1e-12)
    entered = [math.exp(stake) for stake in after.log_stakes]
    weights = math.fsum(1 / (j * (j + 1)) for j in range(1, 9))
    assert entered == pytest.approx([weights] * len(entered))
    assert passed(before, 0) == before


def test_ticks_are_fine_after_a_change_and_grow_with_the_time_since() -> None:
    steps = [{"traffic": 0.1, "hold": "1h"}, {"traffic": 1.0, "units": 3_600}]
    of = scene(
        {"errors": {"old": 0.01, "new": {"value": 0.01, "then": 0.2, "at": "5h"}}},
        ERRORS,
        policy={"kind": "ramp", "steps": steps},
        truth={"length": "10h"},
    )
    clock = clock_of(of)
    assert (clock.edges[0], clock.edges[-1]) == (0.0, 36_000.0)
    assert min(clock.lengths) == 1.0
    assert max(clock.lengths) == 120.0
    for change in (0.0, 3_600.0, 18_000.0):
        since = [(b - change, s) for b, s in zip(clock.begins, clock.lengths, strict=True)]
        assert (0.0, 1.0) in since
        assert all(s <= max(1.0, 0.02 * late) for late, s in since if 0.0 <= late < 3_600.0)
    assert len(clock.lengths) < 1_500


def test_a_tick_of_half_a_block_waits_for_the_other_half() -> None:
    """The guardrail has blocks of 1 s, the slow one of 300 s: the controller decides by these."""
    slow = ERRORS | {"key": "slow", "window": "1h"}
    of = scene({"errors": {"old": 0.0, "new": 0.0}, "slow": {"old": 0.0, "new": 0.9}}, ERRORS, slow)
    course = once(of)
    assert course.ending == "rollback"
    assert course.ended >= 300 + 3_600 + LATENESS.total_seconds()


def test_a_variant_at_its_margin_is_rolled_back_as_rarely_as_promised() -> None:
    at_margin = {"old": 0.05, "new": 0.06}
    found = many(scene({"errors": at_margin}, ERRORS, guard={"alpha": 0.05}), 100)
    assert not found.variants[0].harmful
    assert found.false_alarms.share <= at_most(0.05, found.runs)


def test_a_bandit_loses_less_than_a_split_in_equal_parts() -> None:
    of = scene({"click": {"old": 0.1, "new": 0.13}}, CLICK, policy=THOMPSON | {"max_step": 1.0})
    found = many(of, 6)
    assert found.regret.high is not None
    assert found.uniform_regret is not None
    assert found.regret.high < 0.5 * found.uniform_regret
    assert found.pictures[1].median[0] == pytest.approx(0.5)
    assert found.pictures[1].median[-1] > 0.9


def test_a_stop_rule_ships_the_best_and_the_run_ends_there() -> None:
    stop = {"loss": {"relative": 0.01}, "action": "conclude"}
    policy = THOMPSON | {"stop": stop}
    course = once(scene({"click": {"old": 0.1, "new": 0.15}}, CLICK, policy=policy))
    assert (course.ending, course.shipped) == ("conclude", "new")
    assert course.decided == course.ended
    assert course.shares["new"][-1] == 1.0


def test_a_ramp_goes_through_its_steps_and_a_harmful_one_does_not() -> None:
    steps = [{"traffic": share, "hold": "1h"} for share in (0.05, 0.25, 1.0)]
    others: dict[str, Any] = {
        "policy": {"kind": "ramp", "steps": steps},
        "truth": {"traffic": "5/s"},
    }
    well = once(scene({"errors": {"old": 0.01, "new": 0.01}}, ERRORS, **others))
    assert (well.ending, well.epochs) == ("complete", 3)
    total = [old + new for old, new in zip(well.shares["old"], well.shares["new"], strict=True)]
    assert sorted({round(share, 4) for share in total}) == [0.05, 0.25, 1.0]
    ill = once(scene({"errors": {"old": 0.01, "new": 0.1}}, ERRORS, **others))
    assert (ill.ending, ill.epochs) == ("rollback", 1)


def test_a_ramp_that_is_through_is_still_guarded() -> None:
    steps = [{"traffic": share, "hold": "10m"} for share in (0.1, 1.0)]
    of = scene(
        {"errors": {"old": 0.01, "new": {"value": 0.01, "then": 0.3, "at": "3h"}}},
        ERRORS,
        policy={"kind": "ramp", "steps": steps},
        truth={"traffic": "5/s", "length": "6h"},
    )
    course = once(of)
    assert course.ending == "rollback"
    assert course.decided is not None
    assert course.decided < 3_600
    assert 3 * 3_600 < course.ended < 3.2 * 3_600


def test_who_lost_its_traffic_by_the_harm_of_another_was_not_missed() -> None:
    harm = {"then": 0.5, "at": "1h", "value": 0.01}
    data = written(
        {"errors": {"old": 0.01, "new": 0.021, "bad": harm}},
        ERRORS,
        truth={"traffic": "5/s", "length": "2h"},
    )
    data["variants"].append({"key": "bad", "weight": 0.2, "value": 3})
    data["variants"][0]["weight"] = 0.3
    found = many(read_scene(data), 3)
    new, _ = found.variants
    assert new.harmful
    assert new.alarmed.count == 0
    assert (new.missed.count, new.missed.runs) == (0, 0)


def test_harm_is_judged_by_what_comes_within_the_window() -> None:
    """Both pay as often, but one so late that the window sees a tenth of it."""
    paid = ERRORS | {"goal": "increase", "window": "1m"}
    of = scene({"errors": {"old": 0.5, "new": {"value": 0.5, "delay": "10m"}}}, paid)
    truth = of.truth
    [metric] = of.played
    assert truth.finished(metric, "new", 0.0) == pytest.approx(0.5 * -math.expm1(-0.1))
    assert known(of).harmful_from("new") == 0.0
    drawn = draw(truth, metric, "new", 0.0, 100_000, np.random.default_rng(1)).moments
    assert drawn.mean[0] == pytest.approx(truth.finished(metric, "new", 0.0), abs=0.003)


def test_a_drift_takes_no_rate_beyond_0_or_1() -> None:
    drift = {"errors": {"amplitude": 0.5, "period": "4h"}}
    of = scene({"errors": {"old": 0.2, "new": 0.8}}, ERRORS, truth={"drift": drift})
    [metric] = of.played
    assert of.truth.finished(metric, "new", 3_600) == 1.0
    assert of.truth.finished(metric, "old", 3 * 3_600) == 0.0


def test_a_variant_alone_can_be_rolled_back_and_the_others_go_on() -> None:
    data = written(
        {"errors": {"old": 0.01, "new": 0.01, "bad": 0.1}},
        ERRORS,
        guard={"action": "rollback_variant"},
    )
    data["variants"] = [
        {"key": "old", "control": True, "weight": 0.4, "value": 1},
        {"key": "new", "weight": 0.3, "value": 2},
        {"key": "bad", "weight": 0.3, "value": 3},
    ]
    course = once(read_scene(data))
    assert (course.ending, list(course.rolled_back)) == ("length", ["bad"])
    assert course.shares["bad"][-1] == 0.0
    assert course.shares["old"][-1] == pytest.approx(0.7)
    assert course.shares["new"][-1] == pytest.approx(0.3)


def test_outcomes_that_come_slowly_do_not_favour_the_fast() -> None:
    """The one that converts more often does so half an hour later than the other."""
    slow = CLICK | {"window": "6h"}
    truths = {"old": {"value": 0.2, "delay": "1s"}, "new": {"value": 0.3, "delay": "30m"}}
    policy = THOMPSON | {"every": "2h", "max_step": 1.0}
    found = many(scene({"click": truths}, slow, policy=policy, truth={"length": "2d"}), 3)
    assert found.pictures[1].low[-1] > 0.9


@pytest.mark.parametrize(
    ("metric", "truth"),
    [
        (ERRORS | {"kind": "mean", "margin": {"relative": 0.1}}, {"value": 20, "sd": 30}),
        (
            {k: v for k, v in ERRORS.items() if k != "event"}
            | {"kind": "ratio", "numerator": "e", "denominator": "r"},
            {"value": 0.02, "per_unit": 5},
        ),
        (
            ERRORS | {"kind": "quantile", "quantile": 0.95, "margin": {"relative": 0.1}},
            {"value": 200, "spread": 0.4},
        ),
    ],
    ids=["mean", "ratio", "quantile"],
)
def test_guardrails_of_every_kind_are_played(metric: dict[str, Any], truth: dict[str, Any]) -> None:
    worse = truth | {"then": 3 * truth["value"], "at": "6h"}
    of = scene({"errors": {"old": truth, "new": worse}}, metric, truth={"length": "12h"})
    course = once(of)
    assert course.ending == "rollback"
    assert 6 * 3_600 < course.ended < 8 * 3_600
    assert once(scene({"errors": {"old": truth, "new": truth}}, metric)).ending == "length"


def test_a_run_is_the_same_in_one_process_and_in_two() -> None:
    of = scene({"errors": {"old": 0.05, "new": 0.07}}, ERRORS, truth={"length": "6h"})
    assert simulate(of, 7, 3, jobs=1) == simulate(of, 7, 3, jobs=2)


def test_what_is_true_changes_by_steps_waves_and_slopes() -> None:
    truth = scene(
        {"click": {"old": 0.1, "new": {"value": 0.1, "then": 0.3, "at": "1h"}}},
        CLICK,
        truth={"drift": {"click": {"amplitude": 0.05, "period": "4h", "a_day": 0.24}}},
    ).truth
    assert truth.value("click", "new", 0) == pytest.approx(0.1)
    assert truth.value("click", "new", 3_600) == pytest.approx(0.3 + 0.05 + 0.01)
    assert truth.value("click", "old", 7_200) == pytest.approx(0.1 + 0.02)


def test_harm_is_what_lies_beyond_the_margin() -> None:
    of = scene({"errors": {"old": 0.01, "new": {"value": 0.02, "then": 0.03, "at": "12h"}}}, ERRORS)
    truth = known(of)
    assert truth.harmful_from("new") == 12 * 3_600
    assert truth.harmful_from("old") is None


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"traffic": "many"}, "truth.traffic", "units in a time"),
        ({"traffic": "1000000000/s", "length": "80d"}, "truth.traffic", "would come"),
        ({"metrics": {}}, "truth.metrics.errors", "decides by this metric"),
        ({"metrics": {"errors": {"old": 0.1}}}, "truth.metrics.errors.new", "say what"),
        (
            {"metrics": {"errors": {"old": 0.1, "new": 2}}},
            "truth.metrics.errors.new",
            "from 0 to 1",
        ),
        (
            {"metrics": {"errors": {"old": 0.1, "new": {"value": 0.1, "then": 0.2}}}},
            "truth.metrics.errors.new",
            "go together",
        ),
        (
            {"metrics": {"errors": {"old": 0.1, "new": 0.1}, "other": {}}},
            "truth.metrics.other",
            "no such metric",
        ),
        ({"drift": {"other": {}}}, "truth.drift.other", "no such metric"),
        ({"length": None}, "truth.length", "a whole number with its unit"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], path: str, says: str) -> None:
    with pytest.raises(ProblemError) as refused:
        scene({"errors": {"old": 0.1, "new": 0.1}}, ERRORS, truth=changes)
    [problem] = refused.value.errors
    assert problem.path == path
    assert says in problem.detail


def test_a_file_without_truth_is_refused() -> None:
    data = written({}, CLICK)
    del data["truth"]
    with pytest.raises(ProblemError) as refused:
        read_scene(data)
    assert [problem.path for problem in refused.value.errors] == ["truth"]


def test_the_page_tells_all_that_was_asked() -> None:
    of = scene(
        {"click": {"old": 0.1, "new": 0.12}, "errors": {"old": 0.01, "new": 0.01}},
        CLICK,
        ERRORS,
        policy=THOMPSON,
    )
    text = "\n".join(page(of, many(of, 4), 1))
    for part in ("ran to the end", "loses", "false alarms", "promised are at most 1 %", "middle |"):
        assert part in text
    assert "Ticks are 1 s long after a change, 4.8 min at most" in text
    assert "once a tick" not in text
    hasty = scene({"click": {"old": 0.1, "new": 0.12}}, CLICK, policy=THOMPSON | {"every": "10s"})
    assert "it looks once a tick" in "\n".join(page(hasty, many(hasty, 1), 1))


def test_what_was_shipped_is_told_with_its_harm_and_what_it_lacks() -> None:
    stop = {"loss": {"relative": 0.05}, "action": "advise"}
    of = scene(
        {"click": {"old": 0.1, "new": 0.2}, "errors": {"old": 0.01, "new": 0.5}},
        CLICK,
        ERRORS,
        policy=THOMPSON | {"stop": stop},
    )
    found = many(of, 2)
    every = Share(2, 2)
    told = msgspec.structs.replace(found, shipped={"old": every, "new": every})
    text = "\n".join(page(of, told, 1))
    assert "shipped or advised old: 50 % below the best on average" in text
    assert "shipped or advised new: the best on average, but it does harm" in text
    lost = {"old": Shortfall(0.2, None), "new": Shortfall(0.0, None)}
    text = "\n".join(page(of, msgspec.structs.replace(told, shortfall=lost), 1))
    assert "shipped or advised old: 0.2 below the best on average" in text


def test_no_false_alarm_in_a_few_runs_is_no_proof_that_there_is_none() -> None:
    low, high = Share(0, 40).interval
    assert low == 0.0
    assert 0.05 < high < 0.1
    assert Share(0, 0).interval == (0.0, 1.0)


def test_a_picture_ends_where_the_runs_end() -> None:
    of = scene(
        {"errors": {"old": 0.01, "new": {"value": 0.01, "then": 0.9, "at": "86000s"}}}, ERRORS
    )
    new = many(of, 2).pictures[1]
    assert new.median[-2:] == (0.5, 0.0)
    assert len(new.median) == 60


def test_shares_are_drawn_as_blocks_and_lengths_are_read_with_ease() -> None:
    assert line([0.0, 0.01, 0.5, 1.0]) == " ▁▄█"
    assert [duration(s) for s in (45, 180, 9_000, 100_000)] == ["45 s", "3 min", "2.5 h", "1.16 d"]
