"""How a report's numbers and findings read on a page. Pure."""

from collections.abc import Iterable
from typing import Final

from analysis.inference.estimate import Comparison
from analysis.inference.sequence import MIN_UNITS_PER_ARM
from analysis.reports.model import (
    Continuous,
    Finding,
    GuardView,
    MetricComparison,
    MetricReport,
    QualityCheck,
    QualityCode,
)
from analysis.reports.words import REASONS
from dashboard import numbers
from dashboard.experiment.results_model import Badge, Cell, VariantName
from experiments.model import Action, Experiment, Goal, QuantileCap, Reading, Role

MISSING: Final = numbers.MISSING
COLOURS: Final = 10
"""How many colours there are for variants, that of the control among them."""
READINGS: Final[dict[Reading, tuple[str, str]]] = {
    "continuous": (
        "Any time",
        "Holds however often it is read: a confidence sequence over finished units.",
    ),
    "fixed": (
        "One look",
        "The textbook answer on all units so far. It holds for a single look that was planned: "
        "read again and again, it errs more often than it says.",
    ),
    "planned": (
        "Planned looks",
        "What the looks say that were taken by the plan, as they stood then.",
    ),
    "bayesian": (
        "Posterior",
        "What is believed of finished units, given the prior. It bounds no error rate.",
    ),
}
"""Each reading: its title, and what it promises."""
STANDS_ON: Final[dict[Reading, str]] = {
    "continuous": "the any-time reading, which holds however often it is read",
    "fixed": "the fixed-horizon reading, at the one look that was planned",
    "planned": "the planned looks",
    "bayesian": "the posterior, which bounds no error rate",
}
CORRECTIONS: Final[dict[str, str]] = {
    "holm": "Holm over variants and primary metrics, Benjamini and Hochberg over secondary ones",
    "none": "no correction for several comparisons",
}
ON_ALARM: Final[dict[Action, str]] = {
    "rollback": "On an alarm the run is rolled back.",
    "rollback_variant": "On an alarm the variant is rolled back, and the run goes on with the "
    "others.",
    "pause": "On an alarm the experiment is paused.",
    "alert": "On an alarm people are told, and the traffic stays.",
}
GOALS: Final[dict[Goal, str]] = {"increase": "higher is better", "decrease": "lower is better"}
ROLES: Final[dict[Role, tuple[str, str]]] = {
    "primary": ("Primary metrics", "What the conclusion stands on."),
    "secondary": ("Secondary metrics", "They explain; the plan decides nothing by them."),
    "guardrail": ("Guardrails", "What must not get worse than its margin; the guard watches."),
}
CHECKS: Final[dict[QualityCode, tuple[str, str]]] = {
    "sample_ratio": ("Sample ratio fits", "Sample ratio mismatch"),
    "sample_ratio_watch": ("Sample ratio fits, watched", "Sample ratio mismatch, watched"),
    "several_variants": ("Units in one variant each", "Units in several variants"),
    "exposures_without_outcomes": ("Outcomes come", "Units without outcomes"),
    "outcomes_without_exposures": ("Outcomes of known units", "Outcomes without units"),
    "event_delay": ("Outcomes come in time", "Outcomes come late"),
    "too_few_units": ("Units enough", "Too few units"),
    "cap_open": ("Cap found", "Cap not found yet"),
    "covariate_imbalance": ("Balanced before enrolment", "Not balanced before enrolment"),
    "enrolment_stopped": ("Enrolment goes on", "Enrolment stopped"),
    "outcomes_stopped": ("Outcomes go on", "Outcomes stopped"),
    "report_stale": ("Figures up to date", "Figures behind the time"),
    "late_changes": ("No changes that came late", "Changes that came late"),
    "backfill": ("Backfill complete", "Backfill going on"),
    "fragile_weights": ("Weights of many units", "Weights of few units"),
}
"""What was checked, as it reads where all is well, and where something was found."""


def variants_of(definition: Experiment) -> tuple[VariantName, ...]:
    """The variants with their colours: the control has the first, the others the next ones in the
    order of the definition, and the tenth treatment begins with the second again."""
    others = (1 + place % (COLOURS - 1) for place in range(len(definition.variants)))
    return tuple(
        VariantName(v.key, 0 if v.control else next(others), v.control) for v in definition.variants
    )


def check_title(check: QualityCheck) -> str:
    """What a check found, in a few words."""
    well, found = CHECKS[check.code]
    return well if check.severity == "ok" else found


def level_of(metric: MetricReport, value: float | None, spread: float | None = None) -> str:
    """A mean, a rate or a quantile: rates of units in per cent, all else in the metric's unit."""
    of_rates = metric.kind == "proportion"
    return numbers.share(value, spread) if of_rates else numbers.number(value, spread)


def interval(metric: MetricReport, low: float | None, high: float | None) -> str:
    """The interval of a mean, a rate or a quantile; empty where there is none."""
    of_rates = metric.kind == "proportion"
    return numbers.interval_of_shares(low, high) if of_rates else numbers.interval(low, high)


def change_of(
    kind: str, value: float | None, low: float | None = None, high: float | None = None
) -> str:
    """A difference with its sign, in the digits that its interval leaves worth reading: of rates
    in percentage points."""
    spread = numbers.spread_of(low, high, value)
    of_rates = kind == "proportion"
    return numbers.points(value, spread) if of_rates else numbers.signed(value, spread)


def range_of(kind: str, low: float | None, high: float | None, at: float | None = None) -> str:
    """The interval of a difference; an end that is not there is open."""
    of_rates = kind == "proportion"
    return (
        numbers.interval_of_shares(low, high, at) if of_rates else numbers.interval(low, high, at)
    )


def joined(reasons: Iterable[str]) -> str:
    """Reasons as one sentence; nothing of none."""
    text = "; ".join(dict.fromkeys(reasons))
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def reasons_of(comparison: Comparison) -> tuple[str, ...]:
    """Why numbers of the fixed reading are missing, or doubtful."""
    return tuple(REASONS[note] for note in comparison.notes)


def few_of(continuous: Continuous) -> str:
    """Why the any-time reading says nothing yet; empty where it does."""
    if min(continuous.n_control, continuous.n_treatment) >= MIN_UNITS_PER_ARM:
        return ""
    have = min(continuous.n_control, continuous.n_treatment)
    return (
        f"the any-time reading needs {MIN_UNITS_PER_ARM} finished units of each, and has {have:,}"
    )


def missing(why: str) -> Cell:
    """A number that is not there."""
    return Cell(MISSING, why=why or "Not defined.")


def kind_of(metric: MetricReport) -> str:
    """What is measured, in a few words."""
    if metric.quantile is not None:
        return f"{100 * metric.quantile:.4g}th percentile"
    words: str = {"proportion": "share of units"}.get(metric.kind, metric.kind)
    if metric.covariate is not None:
        words += f", adjusted by {metric.covariate}"
        if metric.covariate[0].isdigit():  # a time, not a column
            words += " before"
    if isinstance(metric.cap, QuantileCap):
        words += f", not capped yet at the quantile {metric.cap.quantile:g}"
    elif metric.cap is not None:
        words += f", capped at {numbers.number(metric.cap)}"
    return words


def badge_of(
    comparison: MetricComparison,
    metric: MetricReport,
    alpha: float,
    guard: GuardView | None,
    *,
    is_rolled_back: bool,
) -> Badge:
    """What the plan finds of a comparison, in a word."""
    if is_rolled_back:
        return Badge("Rolled back", "critical")
    if metric.role == "guardrail":
        return _of_guardrail(comparison, metric, guard)
    if comparison.verdict.action == "fix_data":
        return Badge("Not to be trusted", "warning")
    finding = comparison.verdict.finding
    return _exploratory(comparison, metric, alpha) if finding is None else FINDINGS[finding]


FINDINGS: Final[dict[Finding, Badge]] = {
    "better": Badge("Better", "ok"),
    "worse": Badge("Worse", "critical"),
    "futile": Badge("Futile", "warning"),
    "ended": Badge("No difference"),
    "open": Badge("Open", "info"),
}


def _of_guardrail(
    comparison: MetricComparison, metric: MetricReport, guard: GuardView | None
) -> Badge:
    if guard is not None:
        if guard.alarm:
            return Badge("Alarm", "critical")
        if _is_worse(comparison, metric):
            return Badge(
                "Worse, no alarm",
                "warning",
                "It is worse than the control, but not shown to be so by more than the margin.",
            )
        return Badge("No alarm", "ok")
    if comparison.harm is None:
        return Badge("Not watched", "neutral")
    if comparison.harm.shown:
        return Badge("Harm", "critical")
    return Badge("No harm shown", "neutral")


def _is_worse(comparison: MetricComparison, metric: MetricReport) -> bool:
    """Whether the any-time interval lies on the worse side of no difference, all of it."""
    low, high = comparison.continuous.reading.ci_low, comparison.continuous.reading.ci_high
    if metric.goal == "increase":
        return high is not None and high < 0.0
    return low is not None and low > 0.0


def _exploratory(comparison: MetricComparison, metric: MetricReport, alpha: float) -> Badge:
    """Of a secondary metric, as its verdict's words have it: by the adjusted any-time p."""
    p, difference = comparison.continuous.p_adjusted, comparison.continuous.difference
    if difference is None or comparison.continuous.reading.ci_low is None:
        return Badge("Too early", "neutral")
    if p is None or p > alpha:
        return Badge("Nothing stands out", "neutral")
    is_better = (difference > 0) == (metric.goal == "increase")
    return Badge("Better", "ok") if is_better else Badge("Worse", "critical")
