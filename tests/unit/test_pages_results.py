"""The results of an experiment's page: what the report says, and nothing else."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import pytest

from analysis.chronicle.model import Course, CourseLine, CoursePoint
from analysis.reports.breakdowns import breakdowns
from analysis.reports.model import GuardView
from analysis.reports.report import Report, make_report
from dashboard.assets import Assets
from dashboard.experiment.choice import EVERYTHING, Choice, choice_of
from dashboard.experiment.lightening import segments_of, without_segments
from dashboard.experiment.results import results_view
from dashboard.experiment.results_metrics import GLANCE, OPEN_ROWS
from dashboard.experiment.results_model import Results, Row
from dashboard.experiment.results_words import variants_of
from dashboard.numbers import p_value, share
from dashboard.rendering import Renderer
from experiments.definition import parse_definition
from experiments.model import Experiment
from tests.unit.samples import proportion
from tests.unit.test_breakdowns import facts, of_country
from tests.unit.test_report import BETTER, CONTROL, NOW, SAME, WORSE, report

RENDERER: Final = Renderer(Assets())
PARTS: Final = ("conclusion", "metrics", "course", "quality", "breakdowns")
GUARD: Final = GuardView(
    guardrail="errors",
    variant="b",
    goal="decrease",
    margin=0.01,
    relative=False,
    alpha_share=0.0025,
    bound="exact",
    log_peak=1.5,
    log_threshold=5.991,
    units=10_000,
    alarm=False,
)
_TAG: Final = re.compile(r"<[^>]*>")
_SVG: Final = re.compile(r"<svg.*?</svg>", re.DOTALL)
_NUMBER: Final = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")


def definition_of(found: Report) -> Experiment:
    """A definition that such a report may be of."""
    return parse_definition(
        {
            "key": "x",
            "variants": [
                {
                    "key": variant,
                    "value": variant,
                    "weight": 1 / len(found.units),
                    "control": variant == found.control,
                }
                for variant in found.units
            ],
            "metrics": [
                {"key": m.key, "role": m.role, "kind": "proportion", "event": m.key, "window": "1d"}
                | ({"margin": {"absolute": 0.01}} if m.role == "guardrail" else {})
                for m in found.metrics
            ],
        }
    )


def view(found: Report, choice: Choice = EVERYTHING, course: Course | None = None) -> Results:
    """Its results."""
    return results_view(definition_of(found), found, course, choice)


def shown(results: Results) -> str:
    """What the page says, as a reader sees it: without drawings."""
    page = "".join(RENDERER.render(f"experiment/_{part}.html", results=results) for part in PARTS)
    return " ".join(html.unescape(_TAG.sub(" ", _SVG.sub(" ", page))).split())


def rows(results: Results) -> list[Row]:
    """All comparisons."""
    return [row for g in results.metrics.groups for m in g.metrics for row in m.rows]


def sentences(found: Report) -> Iterator[str]:
    """Every statement of a report."""
    verdict = found.verdict
    yield from (verdict.how_sure, verdict.what_would_change_it, *found.notes)
    for check in found.quality:
        yield from (check.explanation, check.action)
    for metric in found.metrics:
        for c in metric.comparisons:
            yield from (c.verdict.known, c.verdict.how_sure)
            change = c.verdict.what_would_change_it
            yield f"{change[:1].lower()}{change[1:]}"


RICH: Final = report(
    {
        "click": {"a": CONTROL, "b": BETTER, "c": SAME},
        "errors": {"a": SAME, "b": SAME, "c": WORSE},
        "other": {"a": CONTROL, "b": WORSE, "c": SAME},
    },
    roles={"errors": "guardrail", "other": "secondary"},
    guard=[GUARD, msgspec.structs.replace(GUARD, variant="c", alarm=True, log_peak=9.0)],
    hours=24,
    backfill={"other": 0.25},
)


@pytest.mark.parametrize(
    "found",
    [
        RICH,
        report({"click": {"a": CONTROL, "b": SAME}}, hours=24),
        report({"click": {"a": CONTROL, "b": WORSE}}, state="concluded", ship="a"),
        report({"click": {"a": CONTROL, "b": BETTER}}, rolled_back="errors", state="rolled_back"),
        report({"click": {"a": CONTROL, "b": BETTER}}, units={"a": 5_000, "b": 9_000}),
        report({"click": {"a": proportion(3, 1), "b": proportion(2, 0)}}),
        report(
            {"click": {"a": CONTROL, "b": BETTER}}, plan={"reading": "planned", "units": 20_000}
        ),
        report({"click": {"a": CONTROL, "b": BETTER}}, plan={"reading": "bayesian"}),
    ],
    ids=["rich", "open", "shipped", "rolled back", "ratio", "few", "looks", "bayesian"],
)
def test_every_statement_of_a_report_is_on_its_page(found: Report) -> None:
    page = shown(view(found))
    missing = [text for text in sentences(found) if " ".join(text.split()) not in page]
    assert missing == []


@pytest.mark.parametrize("reading", ["continuous", "fixed"])
def test_no_number_of_a_comparison_is_on_the_page_that_is_not_in_the_report(reading: str) -> None:
    found = view(RICH, choice_of("x", reading, None, None))
    known = sorted(abs(s * value) for value in numbers(msgspec.to_builtins(RICH)) for s in (1, 100))
    cells = [
        text
        for row in rows(found)
        for cell in (row.value, row.difference, row.lift, row.p, row.p_adjusted)
        for text in (row.units, cell.text, cell.range)
    ]
    told = {number for text in cells for number in _NUMBER.findall(text) if "below" not in text}
    assert len(told) > 15
    assert {number for number in told if not is_rounded(number, known)} == set()


def numbers(part: Any) -> Iterator[float]:
    """Every number in a report."""
    if isinstance(part, bool) or part is None or isinstance(part, str):
        return
    if isinstance(part, int | float):
        yield part
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from numbers(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from numbers(value)


def is_rounded(text: str, known: Sequence[float]) -> bool:
    """Whether a text is one of these numbers, rounded to its decimals."""
    whole, _, decimals = text.replace(",", "").partition(".")
    value, half = float(f"{whole}.{decimals}"), 0.5 * 10.0 ** -len(decimals)
    return any(abs(value - number) <= half * (1 + 1e-9) for number in known)


def test_heading_and_what_is_known_are_the_conclusion_of_the_report() -> None:
    for found in (RICH, report({"click": {"a": CONTROL, "b": SAME}}, hours=24)):
        conclusion = view(found).conclusion
        assert f"{conclusion.heading}. {conclusion.known}" == found.conclusion


def test_what_was_shipped_comes_first_and_then_what_the_plan_says_of_it() -> None:
    found = report({"click": {"a": CONTROL, "b": WORSE}}, state="concluded", ship="b")
    conclusion = view(found).conclusion
    assert conclusion.heading == "b was shipped"
    assert conclusion.known.startswith("By the plan: keep the control. b is worse on click")
    assert "b shipped 5,000" in shown(view(found))


def test_a_rolled_back_run_says_so_first() -> None:
    found = report(
        {"click": {"a": CONTROL, "b": BETTER}}, rolled_back="too many errors", state="rolled_back"
    )
    conclusion = view(found).conclusion
    assert (conclusion.tone, conclusion.heading) == ("critical", "Rolled back to a")
    assert conclusion.known == "Too many errors."


def test_the_progress_is_that_of_the_metric_that_the_conclusion_waits_for() -> None:
    found = report({"click": {"a": CONTROL, "b": proportion(5_000, 540)}}, hours=24)
    progress = view(found).conclusion.progress
    assert progress is not None
    assert found.verdict.more_units is not None
    assert (progress.done, progress.needed) == (10_000, 10_000 + found.verdict.more_units)
    assert view(RICH).conclusion.progress is None  # it needs no more


def test_a_fault_of_the_data_is_seen_at_a_glance() -> None:
    results = view(report({"click": {"a": CONTROL, "b": BETTER}}, units={"a": 5_000, "b": 9_000}))
    assert results.conclusion.tone == "critical"
    assert results.conclusion.ratio.text == "Sample ratio mismatch"
    assert results.conclusion.lines[0].badge.text == "Not healthy"
    assert results.quality.urgent[0].code == "sample_ratio"
    assert {row.badge.text for row in rows(results)} == {"Not to be trusted"}
    assert not any(word in row.forest for row in rows(results) for word in ("better", "worse"))


@pytest.mark.parametrize(
    ("cell", "finding"),
    [(BETTER, "Better"), (WORSE, "Worse"), (SAME, "Nothing stands out")],
)
def test_the_badge_of_a_secondary_metric_agrees_with_its_verdict(cell: Any, finding: str) -> None:
    found = report(
        {"click": {"a": CONTROL, "b": SAME}, "other": {"a": CONTROL, "b": cell}},
        roles={"other": "secondary"},
    )
    words = finding.lower().replace("nothing stands out", "no difference that stands out")
    row = rows(view(found))[1]
    assert row.badge.text == finding
    assert f"b on other: {words} (" in row.verdict[0]


def test_a_guardrail_without_an_alarm_is_not_said_to_be_better() -> None:
    watched = [row for row in rows(view(RICH)) if row.evidence is not None]
    assert [row.badge.text for row in watched] == ["No alarm", "Alarm"]
    assert "better" not in watched[0].forest
    assert watched[0].evidence is not None
    assert watched[0].evidence.percent == round(100 * 1.5 / 5.991)
    assert watched[0].evidence.margin == "1\N{NO-BREAK SPACE}pp"


def test_what_is_not_defined_is_a_dash_with_its_reason() -> None:
    results = view(report({"click": {"a": proportion(5, 0), "b": proportion(5, 0)}}))
    row = rows(results)[0]
    assert row.lift.text == "–"
    assert "finished units of each, and has 5" in row.lift.why
    assert row.p.text == "–"
    assert "finished units of each" in row.p.why
    assert re.search(r"\b(nan|None(?! of)|inf)\b", shown(results)) is None


def test_the_plans_reading_is_shown_unless_another_is_chosen() -> None:
    found = report(
        {"click": {"a": CONTROL, "b": BETTER}, "other": {"a": CONTROL, "b": SAME}},
        roles={"other": "secondary"},
        plan={"reading": "planned", "units": 10_000},
    )
    metrics = view(found, choice_of("x", None, None, None)).metrics
    assert [(t.key, t.is_shown, t.is_planned) for t in metrics.tabs] == [
        ("planned", True, True),
        ("continuous", False, False),
        ("fixed", False, False),
    ]
    primary, secondary = found.metrics[0].comparisons[0], found.metrics[1].comparisons[0]
    assert primary.planned is not None
    assert rows(view(found))[0].p.text == p_value(primary.planned.p_value)
    assert rows(view(found))[1].p.text == p_value(secondary.continuous.reading.p_value)
    for wrong in ("bayesian", "nonsense", ""):
        assert view(found, choice_of("x", wrong, None, None)).metrics.reading.key == "planned"


def test_another_reading_changes_numbers_and_no_finding() -> None:
    plan, once = (
        view(RICH, choice_of("x", reading, None, None)) for reading in ("continuous", "fixed")
    )
    assert [row.badge for row in rows(plan)] == [row.badge for row in rows(once)]
    assert rows(plan)[0].difference.range != rows(once)[0].difference.range
    assert rows(once)[0].lift.range


def test_difference_lift_and_values_of_a_row_are_of_the_same_units() -> None:
    """Of all units the treatment is behind; of those that the any-time reading counts, ahead."""
    found = report(
        {"click": {"a": CONTROL, "b": BETTER}},
        unfinished={"click": {"a": proportion(5_000, 1_500), "b": proportion(5_000, 300)}},
    )
    comparison = found.metrics[0].comparisons[0]
    assert comparison.continuous.lift == pytest.approx(0.4)
    assert comparison.fixed.lift is not None
    assert comparison.fixed.lift < 0
    [plan], [once] = (
        rows(view(found, choice_of("x", reading, None, None)))
        for reading in ("continuous", "fixed")
    )
    assert (plan.difference.text[0], plan.lift.text[0]) == ("+", "+")
    assert (once.difference.text[0], once.lift.text[0]) == ("−", "−")
    assert plan.value.text == share(0.14)
    assert once.value.text == share(0.1)


def test_a_difference_without_an_interval_is_not_shown_as_if_it_were_known() -> None:
    [row] = rows(view(report({"click": {"a": proportion(90, 9), "b": proportion(82, 16)}})))
    assert (row.difference.text, row.lift.text) == ("–", "–")
    assert "needs 100 finished units of each, and has 82" in row.difference.why


def test_a_guardrail_that_is_worse_within_its_margin_is_not_green() -> None:
    found = report(
        {"click": {"a": CONTROL, "b": SAME}, "errors": {"a": CONTROL, "b": BETTER}},
        roles={"errors": "guardrail"},
        goal="decrease",
        guard=[GUARD],
    )
    assert rows(view(found))[1].badge.text == "Worse, no alarm"
    assert rows(view(found))[1].badge.tone == "warning"


def test_checks_are_named_by_what_they_found() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}}, units={"a": 5_000, "b": 9_000})
    assert view(found).quality.urgent[0].title == "Sample ratio mismatch"
    assert "sample ratio mismatch" in view(found).conclusion.lines[0].text
    well = view(report({"click": {"a": CONTROL, "b": BETTER}})).quality.well
    assert "Sample ratio fits" in {check.title for check in well}


def test_a_holdout_without_metrics_gives_no_advice() -> None:
    found = report({"click": {"a": CONTROL, "b": SAME}})
    bare = msgspec.structs.replace(found, experiment="$holdout", metrics=(), conclusion="Keep it.")
    conclusion = results_view(definition_of(found), bare).conclusion
    assert "Keep" not in conclusion.heading
    assert "no metrics yet" in conclusion.known
    assert conclusion.tone == "neutral"


def test_a_link_keeps_what_was_chosen_besides() -> None:
    choice = choice_of("a.b", "fixed", "other", "country")
    tab = next(t for t in view(RICH, choice).metrics.tabs if t.key == "continuous")
    assert tab.link == "/experiments/a.b?reading=continuous&metric=other&by=country#metrics"


def test_a_page_that_stands_alone_has_all_unfolded_and_leads_nowhere() -> None:
    results = view(wide(treatments=5))
    assert all(m.is_open for g in results.metrics.groups for m in g.metrics)
    assert not any(tab.link for tab in results.metrics.tabs)


def wide(treatments: int) -> Report:
    """A report of twelve metrics."""
    cells = {"a": CONTROL} | {f"t{place}": SAME for place in range(treatments)}
    return report({f"m{place}": cells for place in range(12)})


def test_many_comparisons_have_an_overview_that_leads_to_each() -> None:
    results = view(wide(treatments=5), choice_of("x", None, None, None))
    assert results.metrics.matrix is not None
    views = [m for g in results.metrics.groups for m in g.metrics]
    assert [row.anchor for row in results.metrics.matrix.rows] == [m.anchor for m in views]
    assert sum(len(m.rows) for m in views if m.is_open) <= OPEN_ROWS
    assert not views[-1].is_open
    assert len(rows(view(RICH))) <= GLANCE
    assert view(RICH).metrics.matrix is None


def test_the_control_has_the_first_colour_wherever_it_stands() -> None:
    definition = definition_of(report({"click": {"a": CONTROL, "b": SAME, "c": SAME}}))
    turned = msgspec.structs.replace(definition, variants=definition.variants[::-1])
    assert [(v.key, v.place) for v in variants_of(turned)] == [("c", 1), ("b", 2), ("a", 0)]


def test_a_draft_says_what_will_be_measured() -> None:
    found = report({"click": {"a": CONTROL, "b": SAME}})
    draft = msgspec.structs.replace(found, run=0, epoch=0, state="draft", units={"a": 0, "b": 0})
    page = shown(view(draft))
    assert "Not started yet" in page
    assert "share of users with click" in page
    assert "Quality of the data" not in page


def test_a_course_is_drawn_as_it_stood_and_of_the_metric_that_is_chosen() -> None:
    point = CoursePoint(NOW, 900, 800, 0.1, 0.12, 0.02, -0.01, 0.05, 0.2)
    course = Course(
        1, tuple(CourseLine(metric, "b", (point,)) for metric in ("click", "errors", "other"))
    )
    first = view(RICH, choice_of("x", None, None, None), course).course
    assert [it.metric for it in first.shown] == ["click"]
    assert [
        it.metric for it in view(RICH, choice_of("x", None, "other", None), course).course.shown
    ] == ["other"]
    assert view(RICH).course.shown == ()
    assert first.shown[0].difference.table.rows
    assert "late did not rewrite" in shown(view(RICH, EVERYTHING, course))


BROKEN_DOWN: Final = facts(
    {
        metric: dict(
            zip(
                of_country("<b>DE</b>", "فرنسا"),
                [(CONTROL, BETTER), (CONTROL, WORSE)],
                strict=True,
            )
        )
        for metric in ("click", "buy")
    }
)


def test_breakdowns_show_one_choice_and_a_file_all_of_them() -> None:
    found, definition = make_report(BROKEN_DOWN), BROKEN_DOWN.definition
    chosen = results_view(definition, found, None, choice_of("x", None, "buy", "country"))
    assert [(it.metric, it.attribute) for it in chosen.breakdowns.shown] == [("buy", "country")]
    assert [it.metric for it in results_view(definition, found).breakdowns.shown] == [
        "click",
        "buy",
    ]
    table = chosen.breakdowns.shown[0].tables[0]
    assert "Do the segments differ? p " in table.interaction
    assert [row.segment for row in table.rows] == ["<b>DE</b>", "فرنسا"]
    page = RENDERER.render("experiment/_breakdowns.html", results=chosen)
    assert "&lt;b&gt;DE&lt;/b&gt;" in page
    assert "<b>DE</b>" not in page


def test_a_report_without_its_segments_is_the_same_but_for_its_breakdowns() -> None:
    assert segments_of(BROKEN_DOWN) == 4
    whole, light = make_report(BROKEN_DOWN), make_report(without_segments(BROKEN_DOWN))
    assert breakdowns(BROKEN_DOWN) == whole.breakdowns
    assert not any(it.segments for it in light.breakdowns)
    assert msgspec.structs.replace(light, breakdowns=()) == msgspec.structs.replace(
        whole, breakdowns=()
    )
    deferred = Choice("/experiments/x", defers=4)
    page = shown(results_view(BROKEN_DOWN.definition, light, None, deferred))
    assert "4 comparisons of segments" in page
