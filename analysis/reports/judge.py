"""What the plan's reading says of one comparison: a finding, in words. Pure.

- Continuous. Better or worse: the adjusted any-time p is at most alpha. Futile: the any-time
  interval excludes an improvement of `analysis.effect`.
- Fixed, planned. Better or worse: the adjusted p of the looks so far is at most alpha. Ended: the
  last look was taken, has an interval, and found neither. Futile: before it, the conditional power
  is below 10 %, at `analysis.effect`, or without one at the trend so far, from half of the
  information on.
- Bayesian. Better: the chance to win is at least 1 - alpha, and the expected loss of shipping is
  below `analysis.caring`. Worse, or ended where the chance to win is above alpha: the expected loss
  of keeping the control is below it.

Whatever is none of these is open. A stop for futility is advice that need not be followed: nothing
is added to the chance of a false winner if the run goes on.
"""

from typing import Final, Literal

from analysis.inference.estimate import Comparison, Note
from analysis.inference.planned import Look, PlannedReading
from analysis.inference.sequence import MIN_UNITS_PER_ARM
from analysis.reports.harm import harm_words, way_words
from analysis.reports.model import ComparisonVerdict, MetricComparison, MetricReport
from analysis.reports.outlook import (
    NOTHING_SAID,
    Outlook,
    power_left,
    until_careless,
    until_look,
    until_readable,
    until_told,
)
from analysis.reports.setting import Setting, size_of
from analysis.reports.words import (
    BOUNDS,
    REASONS,
    chance,
    change,
    change_range,
    percent,
    rounded_p,
    size,
)

LEAST_CONDITIONAL_POWER: Final = 0.1
"""Below this the rest of a plan of looks is not worth its time."""


def judge(
    comparison: MetricComparison, metric: MetricReport, setting: Setting
) -> ComparisonVerdict:
    """The verdict of a comparison."""
    if metric.role == "guardrail":
        return _guardrail(comparison, metric, setting)
    if metric.role == "secondary":
        return _exploratory(comparison, metric, setting)
    match setting.plan.reading:
        case "continuous":
            return _continuous(comparison, metric, setting)
        case "bayesian":
            return _bayesian(comparison, metric, setting)
        case "fixed" | "planned":
            return _by_looks(comparison, metric, setting)


def _continuous(
    comparison: MetricComparison, metric: MetricReport, setting: Setting
) -> ComparisonVerdict:
    if (waiting := _too_few(comparison, metric, setting)) is not None:
        return waiting
    reading, difference, p = (
        comparison.continuous.reading,
        comparison.continuous.difference,
        comparison.continuous.p_adjusted,
    )
    if difference is None or reading.ci_low is None or reading.ci_high is None:
        return _undefined(comparison, metric, comparison.fixed)
    ends = reading.ci_low, reading.ci_high
    interval = f"{setting.level} any-time interval {change_range(metric.kind, *ends)}"
    shown = change(metric.kind, difference, *ends)
    promise = f"by the any-time reading, which holds however often it is read{setting.corrected}"
    if p is not None and p <= setting.plan.alpha:
        return _significant(
            comparison, metric, difference, ends, p, interval, f"Sure at {setting.level} {promise}."
        )
    effect = size_of(setting.plan.effect, comparison.fixed.mean_control)
    most = reading.ci_high if metric.goal == "increase" else -reading.ci_low
    if effect is not None and most < effect:
        return ComparisonVerdict(
            action="stop_for_futility",
            finding="futile",
            known=f"{comparison.treatment} is not better on {metric.key} by "
            f"{size(metric.kind, effect)}, the least that is worth having (difference {shown}, "
            f"{interval}).",
            how_sure=f"Sure at {setting.level} for this comparison by the any-time reading, which "
            "holds however often it is read.",
            what_would_change_it=_AFTER_FUTILE,
            difference=difference,
        )
    return _open(
        f"{_of(comparison, metric)} is at {shown} ({interval}).",
        f"Not significant {promise}.",
        until_told(comparison, metric, setting),
    )


def _by_looks(
    comparison: MetricComparison, metric: MetricReport, setting: Setting
) -> ComparisonVerdict:
    planned, looking = comparison.planned, _LOOKING[setting.plan.reading]
    if planned is None or not planned.looks:
        finished = sum(arm.finished for arm in metric.arms.values())
        waits = f", and looks wait for the cap of {', '.join(setting.uncapped)}"
        return _open(
            f"{_of(comparison, metric)}: {finished:,} of {setting.plan.units or 0:,} planned units "
            f"have finished{waits if setting.uncapped else ''}.",
            f"The {looking} reading supports no conclusion before its first look.",
            until_look(metric, setting),
        )
    last, p = planned.looks[-1], comparison.planned_p_adjusted
    interval, ends = "without an interval", (planned.ci_low, planned.ci_high)
    if planned.ci_low is not None and planned.ci_high is not None:
        interval = f"{setting.level} interval {change_range(metric.kind, *ends)}"
    where = f"look {last.number}, at {last.units:,} finished units"
    promise = f"by the {looking} reading at {where}{setting.corrected}"
    if p is not None and p <= setting.plan.alpha:
        difference = _deciding(planned).difference or 0.0
        return _significant(
            comparison, metric, difference, ends, p, interval, f"Sure at {setting.level} {promise}."
        )
    if last.difference is None or planned.ci_low is None or planned.ci_high is None:
        outlook = NOTHING_SAID if planned.final else until_look(metric, setting)
        return _undefined(comparison, metric, last.comparison or comparison.fixed, outlook)
    shown = change(metric.kind, last.difference, *ends)
    stands = f"{_of(comparison, metric)} is at {shown} ({interval})"
    if planned.final:
        return ComparisonVerdict(
            action="keep_control",
            finding="ended",
            known=f"{stands}, no difference at the end of the plan.",
            how_sure=f"Not significant {promise}; that is no proof of equality: the interval says "
            "what is still possible.",
            what_would_change_it="A new run with a plan of its own; this one has spent its alpha.",
            difference=last.difference,
        )
    left = power_left(comparison, metric, setting, last)
    if left is not None and left[0] < LEAST_CONDITIONAL_POWER:
        power, assumed = left
        return ComparisonVerdict(
            action="stop_for_futility",
            finding="futile",
            known=f"{stands}, and the chance that the plan ends with an improvement is "
            f"{percent(power)}.",
            how_sure=f"A conditional power, at {where}, that assumes {assumed}.",
            what_would_change_it=_AFTER_FUTILE,
            difference=last.difference,
        )
    return _open(f"{stands}.", f"Not significant {promise}.", until_look(metric, setting))


def _bayesian(
    comparison: MetricComparison, metric: MetricReport, setting: Setting
) -> ComparisonVerdict:
    if (waiting := _too_few(comparison, metric, setting)) is not None:
        return waiting
    read = comparison.bayesian
    caring = size_of(setting.plan.caring, comparison.fixed.mean_control)
    if caring is None and comparison.fixed.mean_control is not None:
        return _open(
            f"{_of(comparison, metric)} cannot be judged: the loss that one cares about is a "
            "share of the control mean, which is 0.",
            "Without a loss to measure by, a posterior supports no conclusion.",
            Outlook(words="A plan that states the loss in the metric's unit, in a new run."),
        )
    if (
        read is None
        or read.difference is None
        or read.chance_to_win is None
        or read.expected_loss is None
        or read.expected_loss_control is None
        or caring is None
    ):
        return _undefined(comparison, metric, comparison.fixed)
    described = (
        f"chance to win {chance(read.chance_to_win)}, expected loss of shipping "
        f"{size(metric.kind, read.expected_loss)}, of keeping the control "
        f"{size(metric.kind, read.expected_loss_control)}"
    )
    shown = change(metric.kind, read.difference, read.ci_low, read.ci_high)
    how_sure = (
        f"A posterior ({read.prior}), read with a loss of {size(metric.kind, caring)} as the least "
        "one cares about. It bounds no error rate: read often, it errs more often."
    )
    if read.chance_to_win >= 1.0 - setting.plan.alpha and read.expected_loss < caring:
        return ComparisonVerdict(
            "ship",
            "better",
            f"{comparison.treatment} is better on {metric.key} (difference {shown}, {described}).",
            how_sure,
            _AFTER_BETTER,
            difference=read.difference,
        )
    if read.expected_loss_control < caring:
        return ComparisonVerdict(
            "keep_control",
            "worse" if read.chance_to_win <= setting.plan.alpha else "ended",
            f"{comparison.treatment} is not worth shipping for {metric.key} (difference "
            f"{shown}, {described}).",
            how_sure,
            _AFTER_WORSE,
            difference=read.difference,
        )
    return _open(
        f"{_of(comparison, metric)} is at {shown} ({described}).",
        how_sure,
        until_careless(comparison, metric, setting),
    )


def _exploratory(
    comparison: MetricComparison, metric: MetricReport, setting: Setting
) -> ComparisonVerdict:
    """The verdict on a secondary metric: by the any-time reading, whatever the plan's one is, since
    no look is taken at it."""
    reading, difference, p = (
        comparison.continuous.reading,
        comparison.continuous.difference,
        comparison.continuous.p_adjusted,
    )
    if difference is None or reading.ci_low is None or reading.ci_high is None:
        known = f"{_of(comparison, metric)} has no any-time interval yet."
    else:
        direction = "no difference that stands out"
        if p is not None and p <= setting.plan.alpha:
            direction = _direction(difference, metric)
        ends = reading.ci_low, reading.ci_high
        known = (
            f"{_of(comparison, metric)}: {direction} (difference "
            f"{change(metric.kind, difference, *ends)}, {setting.level} any-time interval "
            f"{change_range(metric.kind, *ends)}, adjusted p {rounded_p(p)})."
        )
    bound = (
        "nothing corrects for how many secondary metrics there are"
        if setting.plan.correction == "none"
        else f"of those that stand out, at most {percent(setting.plan.alpha)} are expected to be "
        "false (Benjamini and Hochberg)"
    )
    return ComparisonVerdict(
        action=None,
        finding=None,
        known=known,
        how_sure=f"Exploratory: {bound}. The plan decides nothing by it.",
        what_would_change_it="A run in which it is a primary metric.",
    )


def _guardrail(
    comparison: MetricComparison, metric: MetricReport, setting: Setting
) -> ComparisonVerdict:
    row = next(
        (
            g
            for g in setting.guard
            if (g.guardrail, g.variant) == (metric.key, comparison.treatment)
        ),
        None,
    )
    if row is None:
        return _unwatched(comparison, metric)
    state = f"no alarm, {way_words(row)} of the way to one"
    if row.alarm:
        state = f"ALARM: {harm_words(row, metric)}"
    return ComparisonVerdict(
        action="keep_control" if row.alarm else None,
        finding=None,
        known=f"{_of(comparison, metric)}: {state}.",
        how_sure="The evidence may be read at any time; if the variant is within its margin, the "
        f"chance of an alarm is at most {percent(row.alpha_share)} ({BOUNDS[row.bound]}).",
        what_would_change_it="A new run." if row.alarm else "More evidence of harm.",
    )


def _unwatched(comparison: MetricComparison, metric: MetricReport) -> ComparisonVerdict:
    """The verdict on a guardrail without a guard, as where data came from elsewhere."""
    harm, difference = comparison.harm, comparison.continuous.difference
    if harm is None or difference is None:
        return ComparisonVerdict(
            action=None,
            finding=None,
            known=f"{_of(comparison, metric)} is not watched, and cannot be read yet.",
            how_sure="A guard gathers evidence of harm in a run only; without one harm is read "
            f"from finished units, {MIN_UNITS_PER_ARM} of each arm at least.",
            what_would_change_it="A run with a guard, or more units.",
        )
    at = f"difference {change(metric.kind, difference)}"
    margin = size(metric.kind, harm.margin)
    found = f"no harm beyond the tolerated {margin} is shown ({at})"
    if harm.shown:
        least = size(metric.kind, harm.least)
        found = f"HARM ({at}, at least {least} worse, where {margin} is tolerated)"
    return ComparisonVerdict(
        action="keep_control" if harm.shown else None,
        finding=None,
        known=f"{_of(comparison, metric)}: {found}.",
        how_sure="No guard watched it; by the any-time reading, which holds however often it is "
        f"read, the chance that harm within the margin is ever shown is at most "
        f"{percent(harm.alpha_share)} (asymptotic).",
        what_would_change_it="A new version of the variant." if harm.shown else "More data.",
    )


_LOOKING: Final = {"fixed": "fixed-horizon", "planned": "planned-look"}
_AFTER_BETTER: Final = (
    "An alarm of a guardrail, or a fault found in the data; more of the same data would only make "
    "the interval narrower."
)
_AFTER_WORSE: Final = "A new version of the variant, in a run of its own."
_AFTER_FUTILE: Final = (
    "If less were worth having: a plan that says so, in a new run. Going on is allowed, and adds "
    "nothing to the chance of a false winner."
)


def _of(comparison: MetricComparison, metric: MetricReport) -> str:
    return f"{comparison.treatment} on {metric.key}"


def _direction(difference: float, metric: MetricReport) -> Literal["better", "worse"]:
    return "better" if (difference > 0) == (metric.goal == "increase") else "worse"


def _significant(
    comparison: MetricComparison,
    metric: MetricReport,
    difference: float,
    ends: tuple[float | None, float | None],
    p: float,
    interval: str,
    how_sure: str,
) -> ComparisonVerdict:
    found = _direction(difference, metric)
    return ComparisonVerdict(
        action="ship" if found == "better" else "keep_control",
        finding=found,
        known=f"{comparison.treatment} is {found} on {metric.key} (difference "
        f"{change(metric.kind, difference, *ends)}, {interval}, adjusted p {rounded_p(p)}).",
        how_sure=how_sure,
        what_would_change_it=_AFTER_BETTER if found == "better" else _AFTER_WORSE,
        difference=difference,
    )


def _open(known: str, how_sure: str, outlook: Outlook) -> ComparisonVerdict:
    return ComparisonVerdict(
        action="keep_running",
        finding="open",
        known=known,
        how_sure=how_sure,
        what_would_change_it=outlook.words,
        more_units=outlook.more_units,
        more_seconds=outlook.more_seconds,
    )


def _too_few(
    comparison: MetricComparison, metric: MetricReport, setting: Setting
) -> ComparisonVerdict | None:
    """The verdict before there are enough finished units for a reading that is asymptotic."""
    done = min(comparison.continuous.n_control, comparison.continuous.n_treatment)
    if done >= MIN_UNITS_PER_ARM:
        return None
    missing = (
        2 * MIN_UNITS_PER_ARM - comparison.continuous.n_control - comparison.continuous.n_treatment
    )
    return _open(
        f"{_of(comparison, metric)} has too few finished units, {done} of the "
        f"{MIN_UNITS_PER_ARM} that each arm needs.",
        f"The {setting.plan.reading} reading supports no conclusion before they are there.",
        until_readable(comparison, metric, setting, max(missing, MIN_UNITS_PER_ARM - done)),
    )


_NOTHING_TO_GO_BY: Final[frozenset[Note]] = frozenset(
    ("no_common_epoch", "too_few_units", "zero_variance", "zero_denominator", "reallocated")
)


def _undefined(
    comparison: MetricComparison,
    metric: MetricReport,
    read: Comparison,
    outlook: Outlook = NOTHING_SAID,
) -> ComparisonVerdict:
    """The verdict where the reading has no interval, though there are units."""
    reasons = [REASONS[note] for note in read.notes if note in _NOTHING_TO_GO_BY]
    if not reasons:
        reasons = ["the finished units have no spread to make an interval of"]
    return _open(
        f"{_of(comparison, metric)} cannot be judged: {'; '.join(reasons)}.",
        "A difference without an interval supports no conclusion.",
        outlook,
    )


def _deciding(planned: PlannedReading) -> Look:
    """The look that gives a finding its direction: the first that crossed its boundary."""
    crossed = (look for look in planned.looks if look.number == planned.crossed)
    return next(crossed, planned.looks[-1])
