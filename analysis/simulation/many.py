"""Many runs of an experiment, over as many processes as there are cores, and what they come to.

Every run has a random generator of its own, spawned from the seed, so what comes out does not
depend on how many processes play.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

import msgspec
import numpy as np
from numpy.random import SeedSequence

from analysis.simulation.course import Course, Ending, play
from analysis.simulation.verdicts import Floats, Known, Shortfall, known
from analysis.simulation.world import Scene

SAMPLES: Final = 60
"""Points of a picture."""
AT_ONCE: Final = 5
"""Runs that a process is given at a time."""

Progress = Callable[[int, int], None]
"""Told how many of how many runs are done."""


class Share(msgspec.Struct, frozen=True):
    """How many of how many runs, and how far that can be from what endless runs would give."""

    count: int
    runs: int

    @property
    def share(self) -> float:
        """Of the runs; 0 of none."""
        return self.count / self.runs if self.runs else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The Monte Carlo error as a 95 % interval, which is not empty where the count is 0.
        From 0 to 1 of no runs. Source: Wilson (1927), "Probable inference"."""
        if self.runs == 0:
            return 0.0, 1.0
        from scipy import stats  # noqa: PLC0415 - slow to load, and only simulations need it

        found = stats.binomtest(self.count, self.runs).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


class Spread(msgspec.Struct, frozen=True):
    """The middle of a number over the runs in which it is defined, and how far it reaches."""

    runs: int
    median: float | None = None
    low: float | None = None
    """A tenth of the runs lie below."""
    high: float | None = None
    """A tenth of the runs lie above."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of one variant.

    Arguments:
        variant: its key.
        harmful: whether it does harm at any time, in truth.
        alarmed: runs with evidence of harm against it.
        false_alarms: of these, before it did any.
        missed: runs without evidence at their end, of those in which the guard could have had it:
            that went on when the harm began, and were not ended by another variant's.
        reaction: seconds from its first harm to the evidence of it.
        units: that met it, of the enrolled ones.
    """

    variant: str
    harmful: bool
    alarmed: Share
    false_alarms: Share
    missed: Share
    reaction: Spread
    units: Spread


class Picture(msgspec.Struct, frozen=True):
    """The share of all traffic that a variant has, at `SAMPLES` times from the start to the end."""

    variant: str
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class Simulated(msgspec.Struct, frozen=True):
    """What many runs come to.

    Arguments:
        runs: how many were played.
        finest, longest: seconds of a tick of the simulated clock.
        metric: what is won or lost; None without one.
        regret: of a run, what was lost against always the best, in the metric's unit.
        uniform_regret: what a split in equal parts loses, over the same length.
        harmed: units of a run that met a variant while it did harm, and of such a split.
        endings: how runs ended.
        decided: seconds until a run was ended by the controller, its ramp was through, or a variant
            was advised.
        shipped: runs that shipped or advised each variant.
        shortfall: of each variant, how much worse than the best it is on average.
        variants: what became of each treatment.
        false_alarms: runs with evidence of harm against any variant that had done none yet.
        pictures: of every variant.
        epochs: of a run.
    """

    runs: int
    finest: float
    longest: float
    metric: str | None
    regret: Spread
    uniform_regret: float | None
    harmed: Spread
    uniform_harmed: float
    endings: dict[str, Share]
    decided: Spread
    shipped: dict[str, Share]
    shortfall: dict[str, Shortfall]
    variants: tuple[Outcome, ...]
    false_alarms: Share
    pictures: tuple[Picture, ...]
    epochs: Spread


def simulate(
    scene: Scene, runs: int, seed: int, jobs: int = 1, progress: Progress | None = None
) -> Simulated:
    """Play an experiment many times.

    Arguments:
        jobs: processes.
        progress: told after each few runs.
    """
    courses: list[Course] = []
    for some in _played(scene, runs, seed, jobs):
        courses += some
        if progress is not None:
            progress(len(courses), runs)
    return _summary(scene, courses)


def _played(scene: Scene, runs: int, seed: int, jobs: int) -> Iterator[list[Course]]:
    seeds = SeedSequence(seed).spawn(runs)
    parts = [seeds[at : at + AT_ONCE] for at in range(0, runs, AT_ONCE)]
    if jobs == 1:
        for part in parts:
            yield _play_some(scene, part)
        return
    # A process that is spawned inherits no lock and no event loop of this one.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_play_some, [scene] * len(parts), parts)


def _play_some(scene: Scene, seeds: Sequence[SeedSequence]) -> list[Course]:
    return [play(scene, np.random.default_rng(seed)) for seed in seeds]


def _summary(scene: Scene, courses: Sequence[Course]) -> Simulated:
    truth = known(scene)
    ticks = len(truth.harmful)
    control = scene.definition.control.key
    splits = [_split(course, truth, control) for course in courses]
    uniform = np.full((ticks, len(truth.variants)), 1.0 / len(truth.variants))
    won = truth.metric is not None
    treatments = [variant for variant in truth.variants if variant != control]
    endings: Counter[Ending] = Counter(course.ending for course in courses)
    shipped = Counter(course.shipped for course in courses if course.shipped is not None)
    false = [bool(_false_alarms(course, truth)) for course in courses]
    return Simulated(
        runs=len(courses),
        finest=float(truth.lengths.min()),
        longest=float(truth.lengths.max()),
        metric=truth.metric,
        regret=_spread([truth.lost(split) for split in splits] if won else []),
        uniform_regret=truth.lost(uniform) if won else None,
        harmed=_spread([truth.harmed(split) for split in splits]),
        uniform_harmed=truth.harmed(uniform),
        endings={ending: Share(count, len(courses)) for ending, count in endings.items()},
        decided=_spread([at for course in courses if (at := _decided(course)) is not None]),
        shipped={key: Share(shipped[key], len(courses)) for key in truth.variants if won},
        shortfall={key: truth.shortfall(key) for key in truth.variants if won},
        variants=tuple(_outcome(key, courses, truth) for key in treatments),
        false_alarms=Share(sum(false), len(courses)),
        pictures=tuple(_picture(key, courses, truth) for key in truth.variants),
        epochs=_spread([float(course.epochs) for course in courses]),
    )


def _split(course: Course, truth: Known, control: str) -> Floats:
    """Who gets all traffic of a run, tick by tick: who is not enrolled gets the control."""
    split = np.array([course.shares[key] for key in truth.variants]).T
    split[:, truth.variants.index(control)] += 1.0 - split.sum(axis=1)
    return split


def _decided(course: Course) -> float | None:
    """When the controller ended a run; else when its ramp was through, or it gave its advice."""
    return course.decided if course.ending in {"complete", "length"} else course.ended


def _false_alarms(course: Course, truth: Known) -> list[str]:
    """The variants against which there was evidence before they had done any harm."""
    found = []
    for variant, at in course.alarmed.items():
        first = truth.harmful_from(variant)
        if first is None or at <= first:
            found.append(variant)
    return found


def _outcome(variant: str, courses: Sequence[Course], truth: Known) -> Outcome:
    first = truth.harmful_from(variant)
    false = sum(variant in _false_alarms(course, truth) for course in courses)
    met = [
        course
        for course in courses
        if first is not None and course.ended > first and _was_watched(variant, course)
    ]
    reactions = [
        course.alarmed[variant] - first
        for course in courses
        if first is not None and course.alarmed.get(variant, 0.0) > first
    ]
    return Outcome(
        variant=variant,
        harmful=first is not None,
        alarmed=Share(sum(variant in course.alarmed for course in courses), len(courses)),
        false_alarms=Share(false, len(courses)),
        missed=Share(sum(variant not in course.alarmed for course in met), len(met)),
        reaction=_spread(reactions),
        units=_spread([float(course.units[variant]) for course in courses]),
    )


def _was_watched(variant: str, course: Course) -> bool:
    """Whether nothing but evidence against it can have taken a variant's traffic before the end."""
    if variant in course.alarmed:
        return True
    if course.ending == "conclude":
        return course.shipped == variant
    return course.ending in {"complete", "length"}


def _picture(variant: str, courses: Sequence[Course], truth: Known) -> Picture:
    times = np.linspace(0.0, truth.begins[-1], SAMPLES)
    ticks = np.searchsorted(truth.begins, times, side="right") - 1
    shares = np.array([course.shares[variant] for course in courses])[:, ticks]
    low, median, high = np.quantile(shares, (0.1, 0.5, 0.9), axis=0)
    return Picture(variant, tuple(median.tolist()), tuple(low.tolist()), tuple(high.tolist()))


def _spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread(0)
    low, median, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
    return Spread(len(values), median, low, high)
