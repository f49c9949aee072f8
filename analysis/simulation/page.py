"""What many runs came to, as a page of text."""

from collections.abc import Iterator, Sequence
from typing import Final

from analysis.simulation.clock import looks_once_a_tick
from analysis.simulation.course import Ending
from analysis.simulation.many import Outcome, Picture, Share, Simulated, Spread
from analysis.simulation.verdicts import Shortfall
from analysis.simulation.world import Scene
from experiments.model import FixedPolicy, RampPolicy

ENDINGS: Final[dict[Ending, str]] = {
    "rollback": "rolled back by the guard",
    "pause": "paused by the guard",
    "conclude": "concluded by the stop rule",
    "complete": "went through all steps of the ramp",
    "length": "ran to the end",
}
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"


def page(scene: Scene, found: Simulated, seed: int) -> Iterator[str]:
    """The page, line by line."""
    definition, truth = scene.definition, scene.truth
    control = definition.control.key
    yield f"# {definition.key}, played {found.runs:,} times (seed {seed})"
    yield ""
    yield (
        f"{truth.traffic} for {truth.length}; the guard's alpha is {definition.guard.alpha:g}, "
        f"its action {definition.guard.action}; the policy is {_policy(scene)}."
    )
    yield (
        f"Ticks are {duration(found.finest)} long after a change, {duration(found.longest)} at "
        "most: no time below is finer than the tick around it."
    )
    if looks_once_a_tick(scene):
        yield "Where a tick is longer than the bandit waits between looks, it looks once a tick."
    yield ""
    yield "## How it ended"
    yield ""
    for ending, words in ENDINGS.items():
        if ending in found.endings:
            yield f"  {_percent(found.endings[ending]):>8}  {words}"
    yield from _times(found)
    if found.metric is not None and found.uniform_regret is not None:
        yield from _regret(found, found.metric, found.uniform_regret)
    if found.variants and any(metric.role == "guardrail" for metric in scene.played):
        yield from _harm(found, definition.guard.alpha)
    yield ""
    yield "## Where the traffic was"
    yield ""
    yield f"  the share of all traffic, from the start to {truth.length}: the middle of the runs,"
    yield "  and between which shares eight of ten runs lie"
    for picture in sorted(found.pictures, key=lambda one: one.variant != control):
        yield ""
        yield from _drawn(picture)


def _policy(scene: Scene) -> str:
    policy = scene.definition.policy
    if isinstance(policy, FixedPolicy):
        return "fixed"
    if isinstance(policy, RampPolicy):
        return f"a ramp of {len(policy.steps)} steps, approved as soon as they ask"
    return f"a bandit on {policy.metric} by {policy.sampling}, every {policy.every}"


def _times(found: Simulated) -> Iterator[str]:
    if found.decided.median is not None:
        share = Share(found.decided.runs, found.runs)
        yield ""
        yield f"  decided after {_spread_of_time(found.decided)} ({_percent(share)} of the runs)"
    if found.epochs.median is not None:
        yield f"  epochs: {found.epochs.median:,.0f} ({_between(found.epochs)})"


def _regret(found: Simulated, metric: str, uniform: float) -> Iterator[str]:
    yield ""
    yield f"## What was won of {metric}"
    yield ""
    if found.regret.median is not None:
        share = f", {100 * found.regret.median / uniform:.0f} % of that" if uniform > 0 else ""
        yield f"  a split in equal parts loses {uniform:,.1f} against always the best"
        yield f"  this one loses {found.regret.median:,.1f} ({_between(found.regret, 1)}){share}"
    harmful = {outcome.variant for outcome in found.variants if outcome.harmful}
    for variant, shipped in found.shipped.items():
        if shipped.count > 0:
            words = _behind(found.shortfall[variant])
            harm = ", but it does harm" if variant in harmful else ""
            yield (
                f"  {_percent(shipped):>8}  of the runs shipped or advised {variant}: "
                f"{words} on average{harm}"
            )


def _behind(shortfall: Shortfall) -> str:
    if shortfall.by == 0:
        return "the best"
    if shortfall.share is None:
        return f"{shortfall.by:.2g} below the best"
    return f"{100 * shortfall.share:.2g} % below the best"


def _harm(found: Simulated, alpha: float) -> Iterator[str]:
    yield ""
    yield "## What was harmful"
    yield ""
    for outcome in found.variants:
        yield from _of_variant(outcome)
    errors = found.false_alarms
    yield (
        f"  false alarms in {_percent(errors)} of the runs (of endless runs {_interval(errors)}); "
        f"promised are at most {100 * alpha:g} %"
    )
    if found.uniform_harmed > 0 and found.harmed.median is not None:
        yield (
            f"  units that met harm: {found.harmed.median:,.0f} ({_between(found.harmed)}); "
            f"without a guard, split in equal parts, {found.uniform_harmed:,.0f}"
        )


def _of_variant(outcome: Outcome) -> Iterator[str]:
    truth = "does harm" if outcome.harmful else "does no harm"
    alarmed = _percent(outcome.alarmed)
    yield f"  {outcome.variant} {truth}; evidence of harm in {alarmed} of the runs"
    if outcome.reaction.median is not None:
        yield f"    {_spread_of_time(outcome.reaction)} after its first harm"
    if outcome.missed.count > 0:
        yield f"    missed in {_percent(outcome.missed)} of the runs that met its harm"


def _drawn(picture: Picture) -> Iterator[str]:
    yield f"  {picture.variant:<12} at the end {100 * picture.median[-1]:.0f} %"
    for name, shares in (("90 %", picture.high), ("middle", picture.median), ("10 %", picture.low)):
        yield f"    {name:>6} |{line(shares)}|"


def line(shares: Sequence[float]) -> str:
    """Shares from 0 to 1 as blocks of eight heights; what is above 0 is never without one."""
    return "".join(_BLOCKS[0 if s <= 0 else max(1, min(8, round(8 * s)))] for s in shares)


def duration(seconds: float) -> str:
    """A length of time with two figures of it: 45 s, 3 min, 2.5 h, 1.2 d."""
    for length, unit in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _percent(share: Share) -> str:
    return f"{100 * share.share:.3g} %"


def _interval(share: Share) -> str:
    low, high = share.interval
    return f"{100 * low:.2g} to {100 * high:.2g} %"


def _spread_of_time(spread: Spread) -> str:
    if spread.median is None or spread.low is None or spread.high is None:
        return "never"
    return f"{duration(spread.median)} ({duration(spread.low)} to {duration(spread.high)})"


def _between(spread: Spread, digits: int = 0) -> str:
    if spread.low is None or spread.high is None:
        return "not defined"
    return f"{spread.low:,.{digits}f} to {spread.high:,.{digits}f}"
