"""What a bandit costs and saves, beside a split that stays as it is: by simulation.

The bandit of the simulation is that of the controller: the same `propose` on the same sums over
epochs, and at the end the same `read_fixed`. Only the units are drawn instead of enrolled, many at
once: a cell of moments knows them by their count, mean and spread only.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.random import Generator

from analysis.inference.bandit import Inputs, propose
from analysis.inference.choice import read_fixed
from analysis.inference.epoch_sums import Population, of_epoch
from analysis.inference.estimate import Comparison
from analysis.inference.kinds import Goal, Kind, Sampling
from analysis.inference.moments import EMPTY, Moments, merge
from analysis.inference.trail import Trail, TrailCell, follow, start
from analysis.planning.answer import BanditCost, Plan
from analysis.planning.request import BanditPolicy, Simulation
from experiments.model import parse_duration
from experiments.problems import FieldProblem, invalid

_CONTROL: Final = "00"
_LEAST_MOVE: Final = 0.01
"""The share of the traffic that has to move for a new epoch (DESIGN 5)."""
_WIDTH: Final = 1.96
_ROUNDING: Final = 1e-9
_SECONDS_A_DAY: Final = 86_400.0

Progress = Callable[[int, int], None]
"""Told how many of how many runs are done."""


def _unheard(_done: int, _runs: int) -> None:
    """The progress that nobody asked for."""


class Setting(msgspec.Struct, frozen=True):
    """One experiment to be simulated.

    Arguments:
        means: of the variants in truth, the control first; `sd` of a unit, where they are means.
        shares: of the traffic that they begin with.
        floor, warmup, max_step, pin_control, sampling: of the policy; `floors` are those of its
            variants, the control first, where they have their own.
        units: in all, which come in `steps` equal parts; after each the bandit may move, and knows
            those of all but the last `lag` parts.
        alpha: of the comparison that is read at the end.
    """

    kind: Kind
    goal: Goal
    means: tuple[float, ...]
    sd: float
    shares: tuple[float, ...]
    floor: float
    warmup: int
    max_step: float
    units: int
    steps: int
    lag: int
    alpha: float
    floors: tuple[float, ...] = ()
    pin_control: float | None = None
    sampling: Sampling = "thompson"

    @property
    def variants(self) -> tuple[str, ...]:
        """Keys of the variants, in their order, the control first."""
        return tuple(f"{place:02d}" for place in range(len(self.means)))

    @property
    def best(self) -> int:
        """The place of the best variant."""
        return self._best(range(len(self.means)))

    @property
    def rival(self) -> int:
        """The place of the best variant but for the control: the one that is compared with it."""
        return self._best(range(1, len(self.means)))

    def _best(self, places: Sequence[int]) -> int:
        sign = 1.0 if self.goal == "increase" else -1.0
        return max(places, key=lambda place: sign * self.means[place])


def with_bandit(plan: Plan, simulation: Simulation, progress: Progress = _unheard) -> Plan:
    """A plan with what its bandit costs; the one of default settings, if it names none.

    Arguments:
        progress: told after each run.

    Raises:
        ProblemError: `invalid`, with every field that does not go with the plan.
    """
    what = setting(plan, simulation)
    random = np.random.default_rng(simulation.seed)
    cost = simulate(what, simulation.runs, random, progress)
    return msgspec.structs.replace(plan, bandit=cost)


def setting(plan: Plan, simulation: Simulation) -> Setting:
    """What to simulate for a plan.

    Raises:
        ProblemError: `invalid`, with every field that does not go with the plan.
    """
    policy = plan.policy or BanditPolicy()
    problems = list(_problems(plan, policy, simulation))
    if problems or plan.units is None:
        raise invalid(problems)
    metric = plan.metric
    effect = 0.0 if plan.effect is None else plan.effect.absolute
    others = (metric.baseline,) * (len(plan.weights) - 1)
    steps, lag = simulation.steps, 0
    if plan.units_per_day is not None:
        seconds = plan.units / plan.units_per_day * _SECONDS_A_DAY
        steps = min(steps, math.ceil(seconds / parse_duration(policy.every).total_seconds()))
        if plan.window is not None:
            lag = math.ceil(parse_duration(plan.window).total_seconds() / seconds * steps)
    steps = max(1, min(steps, plan.units))
    return Setting(
        kind=metric.kind,
        goal=metric.goal,
        means=simulation.means or (*others, metric.baseline + effect),
        sd=math.sqrt(metric.variance),
        shares=plan.weights,
        floor=policy.floor,
        warmup=policy.warmup,
        max_step=policy.max_step,
        units=plan.units,
        steps=steps,
        lag=min(lag, steps),
        alpha=plan.alpha_each,
        floors=policy.floors or (),
        pin_control=policy.pin_control,
        sampling=policy.sampling,
    )


def _problems(plan: Plan, policy: BanditPolicy, simulation: Simulation) -> list[FieldProblem]:
    problems = []
    if plan.metric.kind == "ratio" or plan.metric.variance_left < 1.0:
        detail = "bandits take proportions and means without a covariate"
        problems.append(FieldProblem("policy", "unsupported", detail))
    if plan.units is None or plan.units < len(plan.weights):
        detail = "a bandit is simulated with a number of units, and the plan has none"
        problems.append(FieldProblem("units", "missing", detail))
    problems += _floor_problems(policy, len(plan.weights))
    means = simulation.means
    if means is not None:
        if len(means) != len(plan.weights):
            detail = f"must name the mean of each of the {len(plan.weights)} variants"
            problems.append(FieldProblem("simulation.means", "conflict", detail))
        if plan.metric.kind == "proportion" and not all(0.0 <= rate <= 1.0 for rate in means):
            detail = "the rates of a proportion lie within 0 and 1"
            problems.append(FieldProblem("simulation.means", "conflict", detail))
    return problems


def _floor_problems(policy: BanditPolicy, variants: int) -> Iterable[FieldProblem]:
    """Floors and the pin are of the plan's variants, and leave room for one another."""
    floors = policy.floors or (policy.floor,) * variants
    if len(floors) != variants:
        detail = f"must name the floor of each of the {variants} variants"
        yield FieldProblem("policy.floors", "conflict", detail)
        return
    least = [max(floor, policy.floor) for floor in floors]
    if policy.pin_control is not None:
        least[0] = policy.pin_control
    if math.fsum(least) > 1.0 + _ROUNDING:
        path = "policy.floor" if policy.floors is None else "policy.floors"
        path = path if policy.pin_control is None else "policy.pin_control"
        yield FieldProblem(path, "conflict", f"is more than there is for {variants} variants")


def simulate(
    what: Setting, runs: int, random: Generator, progress: Progress = _unheard
) -> BanditCost:
    """The cost of a bandit, beside that of the split that it begins with.

    Arguments:
        runs: at least 2; the two designs draw their units independently in each.
        random: the generator of all that is random.
        progress: told after each run.

    Raises:
        ValueError: for fewer runs.
    """
    if runs < 2:
        raise ValueError(f"2 runs at least show a spread, not {runs}")
    fixed, moved = [], []
    for done in range(1, runs + 1):
        fixed.append(_run_fixed(what, random))
        moved.append(_run_bandit(what, random))
        progress(done, runs)
    lost_fixed, lost_bandit = (np.array([run.lost for run in side]) for side in (fixed, moved))
    saved = lost_fixed - lost_bandit
    half = _WIDTH * float(np.std(saved, ddof=1)) / math.sqrt(runs)
    mean = float(np.mean(saved))
    errors = _root_mean_square(fixed), _root_mean_square(moved)
    needed = None
    if errors[0] is not None and errors[1] is not None:
        needed = math.ceil(what.units * (errors[1] / errors[0]) ** 2)
    return BanditCost(
        runs=runs,
        steps=what.steps,
        units=what.units,
        means=what.means,
        best=what.best,
        lost_fixed=float(np.mean(lost_fixed)),
        lost_bandit=float(np.mean(lost_bandit)),
        saved=mean,
        saved_low=mean - half,
        saved_high=mean + half,
        best_share=tuple(np.mean([run.best_share for run in moved], axis=0).tolist()),
        power_fixed=_share(_shows(run.found) for run in fixed),
        power_bandit=_share(_shows(run.found) for run in moved),
        coverage_bandit=_share(_holds(what, run.found) for run in moved),
        std_error_fixed=errors[0],
        std_error_bandit=errors[1],
        units_for_precision=needed,
    )


class _Run(msgspec.Struct, frozen=True):
    """A simulated experiment: what it lost, where its traffic went, and what was found."""

    lost: float
    best_share: tuple[float, ...]
    found: Comparison


def _run_fixed(what: Setting, random: Generator) -> _Run:
    counts = random.multinomial(what.units, what.shares).tolist()
    cells = _cells(what, counts, random)
    population = of_epoch(cells, what.variants, _CONTROL, what.kind)
    share = what.shares[what.best]
    return _Run(
        lost=_lost(what, counts),
        best_share=(share,) * what.steps,
        found=_read(what, population, None, reallocated=False),
    )


def _run_bandit(what: Setting, random: Generator) -> _Run:
    shares = list(what.shares)
    epoch, lost = 1, 0.0
    trail, known = start(1), _Known(what)
    waiting: deque[tuple[int, dict[str, Moments]]] = deque()
    best_share = []
    for step in range(what.steps):
        best_share.append(shares[what.best])
        units = what.units * (step + 1) // what.steps - what.units * step // what.steps
        counts = random.multinomial(units, shares).tolist()
        cells = _cells(what, counts, random)
        lost += _lost(what, counts)
        trail = follow(trail, [_block(what, step, epoch, shares, units, cells)])
        waiting.append((epoch, cells))
        if len(waiting) > what.lag:
            known.learn(*waiting.popleft())
        moved = _next_shares(what, known.population, shares)
        if moved is not None:
            epoch, shares = epoch + 1, moved
    while waiting:
        known.learn(*waiting.popleft())
    return _Run(
        lost=lost,
        best_share=tuple(best_share),
        found=_read(what, known.population, trail, reallocated=epoch > 1),
    )


class _Known:
    """What has finished so far: the sums over epochs, brought up to date cell by cell."""

    def __init__(self, what: Setting) -> None:
        self._what = what
        self._before = Population()
        self._epoch = 0
        self._cells: dict[str, Moments] = {}

    def learn(self, epoch: int, cells: Mapping[str, Moments]) -> None:
        """Take the units of one step in; epochs come in their order."""
        if epoch != self._epoch:
            self._before = self.population
            self._epoch, self._cells = epoch, {}
        for key, cell in cells.items():
            self._cells[key] = merge(self._cells.get(key, EMPTY), cell)

    @property
    def population(self) -> Population:
        """The sums over all epochs."""
        what = self._what
        if not self._cells:
            return self._before
        return self._before + of_epoch(self._cells, what.variants, _CONTROL, what.kind)


def _next_shares(what: Setting, known: Population, shares: Sequence[float]) -> list[float] | None:
    """Where the bandit moves the traffic; None where it does not, or by too little for an epoch."""
    proposal = propose(
        Inputs(
            metric="simulated",
            version="",
            kind=what.kind,
            goal=what.goal,
            floor=what.floor,
            warmup=what.warmup,
            max_step=what.max_step,
            finished=known.together,
            weights=dict(zip(what.variants, shares, strict=True)),
            floors=dict(zip(what.variants, what.floors, strict=False)),
            pin_control=what.pin_control,
            sampling=what.sampling,
            control=_CONTROL,
        )
    )
    if proposal is None:
        return None
    moved = [proposal.weights[key] for key in what.variants]
    distance = 0.5 * math.fsum(abs(b - a) for a, b in zip(shares, moved, strict=True))
    return moved if distance >= _LEAST_MOVE else None


def _cells(what: Setting, counts: Sequence[int], random: Generator) -> dict[str, Moments]:
    """The moments of so many units of each variant, drawn."""
    return {
        key: _draw(what, mean, n, random)
        for key, mean, n in zip(what.variants, what.means, counts, strict=True)
        if n > 0
    }


def _draw(what: Setting, mean: float, n: int, random: Generator) -> Moments:
    if what.kind == "proportion":
        converted = int(random.binomial(n, mean))
        return Moments(n=n, mean=(converted / n,), m2=(converted * (n - converted) / n,))
    centre = random.normal(mean, what.sd / math.sqrt(n))
    spread = what.sd**2 * random.chisquare(n - 1) if n > 1 else 0.0
    return Moments(n=n, mean=(float(centre),), m2=(float(spread),))


def _block(
    what: Setting,
    step: int,
    epoch: int,
    shares: Sequence[float],
    units: int,
    cells: Mapping[str, Moments],
) -> TrailCell:
    rival = what.rival
    return TrailCell(
        block=step,
        epoch=epoch,
        propensity_control=shares[0],
        propensity_treatment=shares[rival],
        units=units,
        control=cells.get(_CONTROL, EMPTY),
        treatment=cells.get(what.variants[rival], EMPTY),
    )


def _read(
    what: Setting, population: Population, trail: Trail | None, *, reallocated: bool
) -> Comparison:
    return read_fixed(
        population,
        trail,
        _CONTROL,
        what.variants[what.rival],
        what.kind,
        reallocated=reallocated,
        alpha=what.alpha,
    )


def _lost(what: Setting, counts: Sequence[int]) -> float:
    """What these units lose, in expectation, against all of them on the best variant."""
    best = what.means[what.best]
    return math.fsum(n * abs(best - mean) for n, mean in zip(counts, what.means, strict=True))


def _shows(found: Comparison) -> bool:
    return found.p_value is not None and found.p_value < found.alpha


def _holds(what: Setting, found: Comparison) -> bool:
    if found.ci_low is None or found.ci_high is None:
        return True  # no interval excludes nothing
    truth = what.means[what.rival] - what.means[0]
    return found.ci_low <= truth <= found.ci_high


def _share(found: Iterable[bool]) -> float:
    return float(np.mean(list(found)))


def _root_mean_square(runs: Sequence[_Run]) -> float | None:
    errors = [run.found.std_error for run in runs if run.found.std_error is not None]
    return math.sqrt(float(np.mean(np.square(errors)))) if errors else None
