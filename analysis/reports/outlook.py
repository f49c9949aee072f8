"""How long the plan's reading of a comparison still takes, and what may come of it. Pure.

A forecast is of the plan's effect where there is one, and else of the difference as it looks now; a
difference within its own standard error is mostly noise, and nothing is forecast from it.
"""

import math
from typing import Final

import msgspec

from analysis.control.looks import shares_of
from analysis.inference.forecast import conditional_power, units_for_loss, units_for_sequence
from analysis.inference.planned import Look
from analysis.inference.sequence import DECISION_N
from analysis.inference.tails import critical_value
from analysis.reports.model import MetricComparison, MetricReport
from analysis.reports.setting import Setting, size_of
from analysis.reports.words import about, change, size, wait
from experiments.model import parse_duration

TREND_FROM: Final = 0.5
"""The share of the information from which on a trend is taken to go on: an early one is noise."""


class Outlook(msgspec.Struct, frozen=True):
    """How long it still takes, as in `ComparisonVerdict`, and in a sentence."""

    more_units: int | None = None
    more_seconds: float | None = None
    words: str = "More data; how much cannot be said."


NOTHING_SAID: Final = Outlook()
"""Where nothing can be forecast."""


def until_told(comparison: MetricComparison, metric: MetricReport, setting: Setting) -> Outlook:
    """By when the confidence sequence is expected to exclude 0."""
    std_error, difference = comparison.fixed.std_error, comparison.continuous.difference
    if std_error is None or difference is None:
        return Outlook()
    done = comparison.continuous.n_control + comparison.continuous.n_treatment
    effect = size_of(setting.plan.effect, comparison.fixed.mean_control)
    assumptions = []
    if effect is not None:
        shown = size(metric.kind, effect)
        assumptions.append((effect, f"to tell the plan's effect of {shown} from none"))
    if abs(difference) >= std_error:
        reading = comparison.continuous.reading
        shown = change(metric.kind, difference, reading.ci_low, reading.ci_high)
        assumptions.append((difference, f"if it stays at {shown}"))
    for assumed, words in assumptions:
        needed = units_for_sequence(
            assumed,
            std_error,
            comparison.fixed.n_control + comparison.fixed.n_treatment,
            setting.plan.alpha / setting.family,
            setting.plan.power,
            setting.plan.units or DECISION_N,
        )
        if needed is not None and needed > done:
            return until_pair(comparison, metric, setting, needed - done, words)
    if effect is not None:
        return Outlook(words="A little more data: an effect of the plan's size would show by now.")
    return Outlook(
        words="More data; how much cannot be said: the difference is within its own error, and the "
        "plan names no effect worth having (`analysis.effect`) that could be ruled out."
    )


def until_careless(comparison: MetricComparison, metric: MetricReport, setting: Setting) -> Outlook:
    """By when the expected loss of one choice is expected to be below what one cares about."""
    std_error, caring = (
        comparison.fixed.std_error,
        size_of(setting.plan.caring, comparison.fixed.mean_control),
    )
    difference = None if comparison.bayesian is None else comparison.bayesian.difference
    if std_error is None or difference is None or caring is None:
        return Outlook()
    done = comparison.continuous.n_control + comparison.continuous.n_treatment
    pair = comparison.fixed.n_control + comparison.fixed.n_treatment
    needed = units_for_loss(difference, std_error, pair, caring)
    if needed is None or needed <= done:
        return Outlook()
    shown = change(metric.kind, difference)
    return until_pair(comparison, metric, setting, needed - done, f"if it stays at {shown}")


def until_look(metric: MetricReport, setting: Setting) -> Outlook:
    """By when the next look of the plan is due. It is taken of all primary metrics at once, so it
    waits for the caps of all."""
    uncapped = ", ".join(setting.uncapped)
    shares, planned = shares_of(setting.plan), setting.plan.units or 0
    finished = sum(arm.finished for arm in metric.arms.values())
    for place, share in enumerate(shares, start=1):
        if share * planned > finished:
            missing = math.ceil(share * planned) - finished
            words = f"for look {place} of {len(shares)}"
            if uncapped:
                words += f", if the cap of {uncapped} is found by then"
            return _until(metric, setting, missing, words)
    if uncapped:
        return Outlook(words=f"A look is due; it waits for the cap of {uncapped}.")
    return Outlook(words="The last look is due; it is taken when the next block closes.")


def until_pair(
    comparison: MetricComparison, metric: MetricReport, setting: Setting, missing: int, words: str
) -> Outlook:
    """By when the two arms of a comparison have so many more units, if their share stays."""
    pair = comparison.continuous.n_control + comparison.continuous.n_treatment
    finished = sum(arm.finished for arm in metric.arms.values())
    share = pair / finished if pair else 2 / len(metric.arms)
    return _until(metric, setting, math.ceil(missing / share), words)


def until_readable(
    comparison: MetricComparison, metric: MetricReport, setting: Setting, missing: int
) -> Outlook:
    """By when a comparison has so many more units, which it needs to be read at all: in words only,
    since that is no forecast of when the plan's reading supports a conclusion."""
    return Outlook(
        words=until_pair(comparison, metric, setting, missing, "the least it needs").words
    )


def power_left(
    comparison: MetricComparison, metric: MetricReport, setting: Setting, last: Look
) -> tuple[float, str] | None:
    """The conditional power of an improvement at the end of a plan of looks, and what it assumes:
    the plan's effect, or without one the trend, from `TREND_FROM` on. None where it is not defined.

    The boundary is that of a single look, which is a little below the last one: so no run is
    called futile that would not be with the exact one.
    """
    if last.statistic is None or last.std_error is None or not 0.0 < last.information < 1.0:
        return None
    statistic = last.statistic if metric.goal == "increase" else -last.statistic
    effect = size_of(setting.plan.effect, comparison.fixed.mean_control)
    root = math.sqrt(last.information)
    if effect is not None:
        drift, assumed = (
            effect / (last.std_error * root),
            f"the plan's effect of {size(metric.kind, effect)}",
        )
    elif last.information >= TREND_FROM:
        drift, assumed = statistic / root, "the trend so far"
    else:
        return None
    critical = critical_value(setting.plan.alpha / setting.family, None)
    return conditional_power(statistic, last.information, drift, critical), assumed


def _until(metric: MetricReport, setting: Setting, missing: int, words: str) -> Outlook:
    """By when so many more units, of all variants, have finished."""
    units, seconds = f"About {about(missing)} more finished units", None
    if setting.units_per_second:
        finished, enrolled = (
            sum(counts)
            for counts in zip(*((a.finished, a.units) for a in metric.arms.values()), strict=True)
        )
        window = parse_duration(metric.window).total_seconds()
        seconds = max(0, finished + missing - enrolled) / setting.units_per_second + window
        units += f", {wait(seconds)} at the rate so far"
    return Outlook(missing, seconds, f"{units}, {words}.")
