"""Quality checks: what is found in the data behind a report, how grave it is, and what to do."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.folding.metrics import run_metric
from analysis.inference.aipw import WeightFacts
from analysis.inference.epoch_sums import Population, of_epoch
from analysis.inference.health import Arrivals, EventHealth, Health, delay_bucket, delay_end
from analysis.inference.moments import Moments, of_rows
from analysis.inference.quantile import Bin
from analysis.inference.ratio_check import UnitSums, of_units
from analysis.inference.ratio_watch import watch
from analysis.reports.comparisons import metric_reports
from analysis.reports.model import Facts, MetricFacts, QualityCheck
from analysis.reports.quality import quality_checks
from analysis.reports.report import make_report
from experiments.definition import parse_definition
from experiments.model import QuantileCap
from tests.unit.samples import proportion

START = datetime(2026, 3, 2, tzinfo=UTC)
EVEN = {"a": 0.5, "b": 0.5}
CLICK = {"key": "click", "role": "primary", "kind": "proportion", "event": "click", "window": "1h"}
SPENT = CLICK | {"key": "spent", "kind": "mean"}
Cells = Mapping[str, Moments]


def facts(
    cells: Mapping[str, Cells] | None = None,
    *,
    metrics: tuple[dict[str, Any], ...] = (CLICK,),
    units: Mapping[str, int] | None = None,
    several: Mapping[str, int] | None = None,
    epochs: tuple[Mapping[str, float], ...] = (EVEN,),
    others: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Facts:
    """A running experiment with these finished cells of its metrics, by variant.

    `units` were enrolled in each of `epochs`; `others` are of the definition, `changes` of the
    facts.
    """
    enrolled = {"a": 1_000, "b": 1_000} if units is None else units
    known = {
        metric["key"]: MetricFacts(everyone=found, finished=found)
        for metric in metrics
        if (found := _population(metric, (cells or {}).get(metric["key"])))
    }
    made = Facts(
        project="shop",
        key="x",
        state="running",
        run=1,
        epoch=1,
        definition=parse_definition(
            {
                "key": "x",
                "variants": [
                    {"key": "a", "value": "a", "weight": 0.5, "control": True},
                    {"key": "b", "value": "b", "weight": 0.5},
                ],
                "metrics": list(metrics),
            }
            | dict(others or {})
        ),
        ship=None,
        started_at=START,
        watermark=START + timedelta(hours=2),
        rolled_back=None,
        enrolled=sum((of_units(enrolled, several or {}, p) for p in epochs), start=UnitSums()),
        metrics=known,
        guard=(),
        now=START + timedelta(hours=2),
    )
    return msgspec.structs.replace(made, **changes)


def _population(metric: Mapping[str, Any], cells: Cells | None) -> Population:
    return Population() if cells is None else of_epoch(cells, ["a", "b"], "a", metric["kind"])


def checks(found: Facts, code: str) -> list[QualityCheck]:
    """What the checks with a code found."""
    return [check for check in quality_checks(found, metric_reports(found)) if check.code == code]


def severity(found: Facts, code: str) -> str:
    """How grave the only check with a code is."""
    [check] = checks(found, code)
    return check.severity


def clicks(n: int, of_a: int, of_b: int) -> dict[str, Cells]:
    """Finished units of either variant, and how many of them clicked."""
    return {"click": {"a": proportion(n, of_a), "b": proportion(n, of_b)}}


def arrived(n: int, seconds: float, pause: float = 0.0) -> Arrivals:
    """So many, evenly, in the first seconds of the run."""
    return Arrivals(n, START, START + timedelta(seconds=seconds), pause)


def came(
    received: int = 0, others: int = 0, delays: Mapping[float, int] | None = None
) -> dict[str, EventHealth]:
    """Outcomes of clicks."""
    by_bucket = {delay_bucket(delay): n for delay, n in (delays or {0.1: received}).items()}
    return {"click": EventHealth(arrived(received, 7_200), others, by_bucket)}


def counted(n: int) -> dict[str, dict[str, int]]:
    """So many clicks count."""
    definition = facts().definition
    return {run_metric(definition.metrics[0]).version: {"click": n}}


def test_a_healthy_run_is_well() -> None:
    ratio = watch(Health().ratio, {"a": 1_000, "b": 1_000}, EVEN)
    health = Health(ratio, arrived(2_000, 7_200), came(500), counted(400))
    found = facts(clicks(1_000, 100, 110), health=health)
    assert {check.severity for check in quality_checks(found, metric_reports(found))} == {"ok"}


def test_the_gravest_comes_first_and_reaches_the_report() -> None:
    found = facts(clicks(1_000, 100, 110), units={"a": 1_000, "b": 1_400})
    report = make_report(found)
    assert report.quality[0].code == "sample_ratio"
    assert report.quality[0].severity == "critical"
    assert report.quality[0].action
    assert report.verdict.action == "fix_data"
    gravity = [check.severity for check in report.quality]
    assert gravity == sorted(gravity, key=["critical", "warning", "info", "ok"].index)


def test_nothing_is_said_of_units_where_there_are_none() -> None:
    found = facts(units={}, watermark=None, started_at=None)
    codes = {check.code for check in quality_checks(found, metric_reports(found))}
    assert codes == {"too_few_units"}


@pytest.mark.parametrize(
    ("several", "expected"),
    [(0, "ok"), (20, "info"), (21, "warning"), (100, "warning"), (101, "critical")],
)
def test_units_of_several_variants_matter_by_their_share(several: int, expected: str) -> None:
    assert severity(facts(several={"a": several}), "several_variants") == expected


def test_units_of_several_variants_are_no_fault_where_slots_moved() -> None:
    moved = ({"a": 0.5, "b": 0.5}, {"a": 0.4, "b": 0.6})
    assert severity(facts(several={"a": 500}, epochs=moved), "several_variants") == "warning"


def test_a_run_that_was_not_watched_says_so() -> None:
    assert severity(facts(), "sample_ratio_watch") == "info"


def test_the_watch_alarms_where_chi_square_may_have_been_lucky() -> None:
    state = Health().ratio
    for units in ({"a": 700, "b": 500}, {"a": 300, "b": 500}):
        state = watch(state, units, EVEN)
    found = facts(health=Health(ratio=state))
    assert severity(found, "sample_ratio") == "ok"
    [check] = checks(found, "sample_ratio_watch")
    assert check.severity == "critical"
    assert "any time" in check.explanation
    [once] = checks(found, "sample_ratio")
    assert "one look" in once.explanation


def test_an_impossible_unit_is_critical_in_both_ratio_checks() -> None:
    alone = {"a": 1.0, "b": 0.0}
    found = facts(
        units={"a": 100, "b": 1},
        epochs=(alone,),
        health=Health(ratio=watch(Health().ratio, {"a": 100, "b": 1}, alone)),
    )
    assert severity(found, "sample_ratio") == "critical"
    assert severity(found, "sample_ratio_watch") == "critical"


def test_an_arm_without_any_outcome_is_critical_where_the_other_has_them() -> None:
    [check] = checks(facts(clicks(1_000, 100, 0)), "exposures_without_outcomes")
    assert check.severity == "critical"
    assert "1,000 finished units of b" in check.explanation
    assert severity(facts(clicks(999, 100, 0)), "exposures_without_outcomes") == "ok"


def test_an_arm_that_mends_every_error_is_no_fault_of_the_data() -> None:
    errors = CLICK | {"key": "error", "event": "error", "role": "secondary", "goal": "decrease"}
    cells = {"error": {"a": proportion(1_000, 100), "b": proportion(1_000, 0)}}
    alone = facts(cells, metrics=(errors | {"role": "primary"},))
    assert severity(alone, "exposures_without_outcomes") == "warning"
    among_others = facts(cells | clicks(1_000, 90, 100), metrics=(CLICK, errors))
    found = {c.subject: c.severity for c in checks(among_others, "exposures_without_outcomes")}
    assert found == {"click": "ok", "error": "warning"}


def test_no_outcome_is_no_fault_where_outcomes_are_rare() -> None:
    found = facts(clicks(1_000, 9, 0))
    assert severity(found, "exposures_without_outcomes") == "ok"


def test_no_outcome_in_any_arm_is_a_warning() -> None:
    assert severity(facts(clicks(1_000, 0, 0)), "exposures_without_outcomes") == "warning"
    assert severity(facts(clicks(500, 0, 0)), "exposures_without_outcomes") == "ok"


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_sums_tell_silent_arms_from_active_ones(kind: str) -> None:
    metric = (
        SPENT
        if kind == "mean"
        else {"key": "spent", "role": "primary", "kind": "ratio", "window": "1h"}
        | {"numerator": "click", "denominator": "view"}
    )
    width = 1 if kind == "mean" else 2
    rng = np.random.default_rng(1)
    active = of_rows(rng.lognormal(size=(1_000, width)) * (rng.random((1_000, 1)) < 0.3))
    silent = of_rows(np.zeros((1_000, width)))
    found = facts({"spent": {"a": silent, "b": active}}, metrics=(metric,))
    assert severity(found, "exposures_without_outcomes") == "critical"
    # Values whose sum is 0 are values all the same.
    cancelling = of_rows(np.tile([[-1.0] * width, [1.0] * width], (500, 1)))
    found = facts({"spent": {"a": cancelling, "b": active}}, metrics=(metric,))
    assert severity(found, "exposures_without_outcomes") == "ok"


def test_a_quantile_counts_the_units_that_have_a_value() -> None:
    metric = SPENT | {"kind": "quantile", "quantile": 0.9}
    cell = of_rows(np.ones((1_000, 1)))
    found = facts({"spent": {"a": cell, "b": cell}}, metrics=(metric,))
    values = {"a": (Bin(1.0, 1.1, 400),), "b": ()}
    known = msgspec.structs.replace(found.metrics["spent"], finished_values=values)
    [check] = checks(
        msgspec.structs.replace(found, metrics={"spent": known}), "exposures_without_outcomes"
    )
    assert check.severity == "critical"
    assert check.numbers["active_share_a"] == pytest.approx(0.4)
    assert check.numbers["active_share_b"] == 0.0


def test_outcomes_of_nobody_are_critical_only_where_everybody_is_let_in() -> None:
    health = Health(events=came(1_000))
    cells = clicks(1_000, 0, 0)
    code = "outcomes_without_exposures"
    assert severity(facts(cells, health=health), code) == "critical"
    assert severity(facts(cells, health=health, others={"traffic": 0.5}), code) == "warning"
    targeted = {"targeting": {"==": [{"var": "country"}, "DE"]}}
    assert severity(facts(cells, health=health, others=targeted), code) == "warning"
    assert severity(facts(clicks(400, 0, 0), health=health), code) == "info"
    assert severity(facts(cells, health=Health(events=came(999))), code) == "info"
    one = Health(events=came(1_000), counted=counted(1))
    assert severity(facts(cells, health=one), code) == "ok"


def test_outcomes_that_stand_in_the_sums_have_been_matched() -> None:
    """A metric that was added late, or a service that was upgraded, counted none as they came."""
    for health in (Health(events=came(2_000)), Health(events=came(others=2_000))):
        found = facts(clicks(1_000, 400, 420), health=health)
        assert severity(found, "outcomes_without_exposures") == "ok"
        assert make_report(found).verdict.action != "fix_data"


def test_an_event_of_others_only_is_no_fault_where_other_outcomes_are_matched() -> None:
    """No enrolled unit crashed; units that were never assigned did."""
    crash = CLICK | {"key": "crash", "event": "crash", "role": "guardrail", "goal": "decrease"}
    events = {"crash": EventHealth(received=arrived(2_100, 7_200))}
    nobody = {"crash": {variant: proportion(1_500, 0) for variant in "ab"}}
    for clicked, expected in ((600, "info"), (0, "critical")):
        found = facts(
            nobody | clicks(1_500, clicked, clicked),
            metrics=(CLICK, crash),
            health=Health(events=events),
        )
        assert severity(found, "outcomes_without_exposures") == expected
    alone = facts(nobody, metrics=(crash,), health=Health(events=events))
    assert severity(alone, "outcomes_without_exposures") == "info"
    others = {"crash": EventHealth(of_other_types=2_100)}
    found = facts(
        nobody | clicks(1_500, 600, 600), metrics=(CLICK, crash), health=Health(events=others)
    )
    assert severity(found, "outcomes_without_exposures") == "warning"


def test_outcomes_of_other_types_of_units_are_critical_at_once() -> None:
    found = facts(units={"a": 1}, health=Health(events=came(others=1_000)))
    [check] = checks(found, "outcomes_without_exposures")
    assert check.severity == "critical"
    assert "user" in check.action


@pytest.mark.parametrize(
    ("late", "seconds", "expected"),
    [(10, 7_000.0, "ok"), (11, 7_000.0, "warning"), (11, 15.0, "info")],
)
def test_late_outcomes_matter_by_their_share_and_the_window(
    late: int, seconds: float, expected: str
) -> None:
    """Of a window of an hour 15 s are nothing."""
    events = came(1_000, delays={0.5: 1_000 - late, seconds: late})
    [check] = checks(facts(health=Health(events=events)), "event_delay")
    assert check.severity == expected
    assert check.numbers["late_share"] == pytest.approx(late / 1_000)


@given(st.lists(st.floats(0.002, 1e6), min_size=1, max_size=50), st.floats(0.0, 1.0))
def test_quantiles_of_delays_are_known_to_their_bucket(delays: list[float], level: float) -> None:
    buckets: dict[int, int] = {}
    for delay in delays:
        buckets[delay_bucket(delay)] = buckets.get(delay_bucket(delay), 0) + 1
        assert delay_end(delay_bucket(delay) - 1) <= delay * (1 + 1e-12)
        assert delay <= delay_end(delay_bucket(delay)) * (1 + 1e-12)
    found = EventHealth(delays=buckets).delay_quantile(level)
    exact = np.quantile(delays, level, method="inverted_cdf")
    assert found is not None
    assert exact * (1 - 1e-12) <= found <= exact * 2**0.5 * (1 + 1e-12)


def test_delays_of_nothing_are_not_known() -> None:
    assert EventHealth().delay_quantile(0.5) is None
    assert EventHealth().share_later_than(timedelta(seconds=1)) is None


def test_silence_is_judged_by_what_is_usual() -> None:
    """96,000 units in two days come every 1.8 s: ten minutes of silence are many, an hour's pause
    that was seen before is none."""

    def after(seconds: float, arrivals: Arrivals) -> str:
        watermark = START + timedelta(days=2, seconds=seconds)
        return severity(
            facts(health=Health(enrolments=arrivals), watermark=watermark), "enrolment_stopped"
        )

    days = 2 * 86_400.0
    busy, slow = arrived(96_001, days), arrived(961, days)
    assert after(600, busy) == "ok"
    assert after(601, busy) == "warning"
    assert after(3_600, arrived(96_001, days, pause=3_600)) == "ok"
    assert after(3_600, slow) == "ok"
    assert after(3_601, slow) == "warning"


def test_no_new_units_may_be_no_fault() -> None:
    """In its first night a run has not seen a night yet; and while outcomes keep coming, all who
    can be enrolled may be."""
    days = 2 * 86_400.0
    evening = Health(enrolments=arrived(2_000, 3_600))
    night = START + timedelta(hours=5)
    assert severity(facts(health=evening, watermark=night), "enrolment_stopped") == "info"
    enrolled = arrived(96_001, days)
    later = START + timedelta(days=4)
    stopped, going = came(1_000), {"click": EventHealth(received=arrived(50_000, 2 * days))}
    for events, found in ((stopped, "warning"), (going, "info")):
        health = Health(enrolments=enrolled, events=events)
        assert severity(facts(health=health, watermark=later), "enrolment_stopped") == found


def test_a_draft_is_not_over() -> None:
    for state, found in (("draft", "info"), ("running", "info"), ("concluded", "warning")):
        assert severity(facts(units={}, state=state), "too_few_units") == found


def test_too_few_arrivals_say_nothing_of_what_is_usual() -> None:
    found = facts(health=Health(enrolments=arrived(19, 60)))
    assert checks(found, "enrolment_stopped") == []


def test_a_run_that_nobody_enters_is_told() -> None:
    assert severity(facts(units={}), "enrolment_stopped") == "warning"
    new = facts(units={}, watermark=START + timedelta(minutes=10))
    assert checks(new, "enrolment_stopped") == []


def test_outcomes_that_stop_are_told() -> None:
    health = Health(events=came(1_000))
    late = START + timedelta(hours=4)
    assert severity(facts(health=health), "outcomes_stopped") == "ok"
    assert severity(facts(health=health, watermark=late, now=late), "outcomes_stopped") == "warning"
    assert checks(facts(health=health, watermark=late, state="paused"), "outcomes_stopped") == []


def test_a_report_of_old_data_says_so() -> None:
    assert severity(facts(), "report_stale") == "ok"
    assert severity(facts(now=START + timedelta(hours=2, minutes=6)), "report_stale") == "warning"
    assert severity(facts(watermark=None), "report_stale") == "warning"
    assert checks(facts(now=None), "report_stale") == []
    assert checks(facts(now=START + timedelta(days=9), state="concluded"), "report_stale") == []


def test_values_that_changed_late_matter_by_their_share() -> None:
    for late, expected in ((0, "ok"), (20, "info"), (21, "warning")):
        found = facts(clicks(1_000, 100, 100))
        known = msgspec.structs.replace(found.metrics["click"], late=late)
        changed = msgspec.structs.replace(found, metrics={"click": known})
        assert severity(changed, "late_changes") == expected


def test_a_metric_that_is_filled_in_is_not_judged_yet() -> None:
    found = facts(clicks(1_000, 100, 0), health=Health(events=came(1_000)))
    known = msgspec.structs.replace(found.metrics["click"], backfill=0.25)
    filling = msgspec.structs.replace(found, metrics={"click": known})
    assert severity(filling, "backfill") == "info"
    assert checks(filling, "exposures_without_outcomes") == []
    assert checks(filling, "outcomes_without_exposures") == []


@pytest.mark.parametrize(
    ("n", "clicked", "state", "expected"),
    [
        (1_000, 100, "running", "ok"),
        (1_000, 9, "running", "info"),
        (99, 50, "running", "info"),
        (99, 50, "concluded", "warning"),
    ],
)
def test_too_few_units_are_told(n: int, clicked: int, state: str, expected: str) -> None:
    found = facts(clicks(n, clicked, clicked), state=state)
    assert severity(found, "too_few_units") == expected


def test_fragile_weights_are_told() -> None:
    found = facts(clicks(1_000, 100, 100))
    [report] = metric_reports(found)
    weights = WeightFacts(900.0, 12.0, 0.004, fragile=True)
    [comparison] = report.comparisons
    fragile = msgspec.structs.replace(
        report, comparisons=(msgspec.structs.replace(comparison, weights=weights),)
    )
    [check] = [c for c in quality_checks(found, [fragile]) if c.code == "fragile_weights"]
    assert check.severity == "warning"
    assert check.numbers["effective_units_b"] == 12.0
    assert check.numbers["smallest_propensity_b"] == 0.004


def _with_covariate(shift: float, n: int = 2_000, seed: int = 3) -> dict[str, Cells]:
    rng = np.random.default_rng(seed)
    cells = {}
    for variant, moved in (("a", 0.0), ("b", shift)):
        before = rng.normal(10 + moved, 2, n)
        cells[variant] = of_rows(np.stack([before + rng.normal(0, 1, n), before], axis=1))
    return {"spent": cells}


def test_a_covariate_that_differs_is_critical() -> None:
    metric = SPENT | {"covariate": "14d"}
    fair = facts(_with_covariate(0.0), metrics=(metric,))
    assert severity(fair, "covariate_imbalance") == "ok"
    unfair = facts(_with_covariate(0.6), metrics=(metric,))
    [check] = checks(unfair, "covariate_imbalance")
    assert check.severity == "critical"
    assert "before the experiment began" in check.explanation
    assert checks(facts(clicks(1_000, 1, 1)), "covariate_imbalance") == []


def test_one_look_at_a_covariate_is_never_critical() -> None:
    """4 standard errors: unlikely at one look, not so at any of many."""
    cells = _with_covariate(0.0)
    a, b = cells["spent"]["a"], cells["spent"]["b"]
    shift = 4.0 * 2.0 * (2 / 2_000) ** 0.5 - (b.mean[1] - a.mean[1])
    cells = {"spent": {"a": a, "b": Moments(b.n, (b.mean[0], b.mean[1] + shift), b.m2)}}
    metric = SPENT | {"covariate": "14d"}
    running = facts(cells, metrics=(metric,))
    assert severity(running, "covariate_imbalance") == "warning"
    over = msgspec.structs.replace(running, state="concluded")
    [check] = checks(over, "covariate_imbalance")
    assert check.severity == "warning"
    assert "Look again" not in check.action


def test_a_cap_that_waits_for_data_is_told() -> None:
    """At the quantile .99, for 1,000 units with a value."""
    for n, state, found in (
        (500, "running", "info"),
        (500, "concluded", "info"),
        (50_000, "running", "warning"),
    ):
        made = facts(
            clicks(n, 10, 10), state=state, others={"analysis": {"reading": "fixed", "units": 100}}
        )
        known = msgspec.structs.replace(made.metrics["click"], cap=QuantileCap(quantile=0.99))
        waiting = msgspec.structs.replace(made, metrics={"click": known})
        [check] = checks(waiting, "cap_open")
        assert check.severity == found
        assert "looks wait" in check.explanation
        assert check.numbers["values_needed"] == 1_000
        report = make_report(waiting)
        assert report.metrics[0].cap == QuantileCap(quantile=0.99)
        if n > 100 and state == "running":
            assert "waits for the cap of click" in report.verdict.what_would_change_it
            assert "looks wait for the cap of click" in report.conclusion
    assert checks(made, "cap_open") == []


@given(
    st.tuples(*[st.integers(0, 3_000)] * 2),
    st.tuples(*[st.floats(0.0, 1.0)] * 2),
    st.integers(0, 5_000),
    st.integers(0, 3_000),
    st.sampled_from(["running", "paused", "concluded"]),
)
def test_every_check_has_words_and_finite_numbers(
    n: tuple[int, int], rate: tuple[float, float], received: int, others: int, state: str
) -> None:
    cells = {v: proportion(k, int(k * r)) for v, k, r in zip("ab", n, rate, strict=True)}
    found = facts(
        {"click": cells},
        units=dict(zip("ab", n, strict=True)),
        state=state,
        health=Health(events=came(received, others), enrolments=arrived(sum(n), 60.0)),
    )
    made = quality_checks(found, metric_reports(found))
    assert len({(check.code, check.subject) for check in made}) == len(made)
    for check in made:
        assert check.explanation.endswith(".")
        assert (check.action == "") == (check.severity == "ok")
        assert all(np.isfinite(value) for value in check.numbers.values())
    assert msgspec.json.decode(msgspec.json.encode(made), type=tuple[QualityCheck, ...]) == made
