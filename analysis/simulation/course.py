"""One run of an experiment on a simulated clock, decided on by the controller's own rules.

In each tick of the clock (`clock.py`) the units are drawn, what has finished is closed, and the
rules are asked in the order of `control.decide.RULES`, through the same functions: the guard's
ledger and evidence, the ramp's state machine, the bandit and its stop rule, and the moves of slots
that follow from them. Health checks have nothing to find here, and hands do nothing but approve a
ramp's steps as soon as they are asked: a guard that pauses ends the run.
"""

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.random import Generator

from analysis.control import bandit_rule, guard, ramp, ramp_rule, stop_rule
from analysis.control.guard import LedgerRow
from analysis.control.ramp import Observed
from analysis.control.ruling import Advise, Conclude
from analysis.folding.blocks import Closed
from analysis.folding.fading import scored_cells
from analysis.folding.metrics import run_metric
from analysis.inference import discounted
from analysis.inference.bandit import Inputs, propose
from analysis.inference.discounted import Discounted
from analysis.inference.epoch_sums import Population, of_epoch
from analysis.inference.evidence import alarms, start
from analysis.inference.exact import combined
from analysis.inference.generations import share_of
from analysis.inference.guard_model import BlockCell, GuardState
from analysis.inference.moments import Cells, Moments, merge
from analysis.inference.value_counts import Buckets
from analysis.simulation.clock import clock_of
from analysis.simulation.draws import draw
from analysis.simulation.world import Scene, window_of
from experiments import moves
from experiments import ramp as ramps
from experiments.allocation import Allocation, enrols_same, is_too_small, propensities, traffic_of
from experiments.lifecycle import without
from experiments.model import Metric, RampPolicy, ThompsonPolicy, parse_duration
from experiments.ramp import RampState, current_step
from experiments.records import ExperimentRecord

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
LATENESS: Final = timedelta(seconds=5)
"""How late an outcome may come by default (`TURNOUT_LATENESS`)."""

Ending: TypeAlias = Literal["rollback", "pause", "conclude", "complete", "length"]
"""How a run ends: by the guard, by the stop rule, by a ramp's last step, or at its full length."""


class Block(msgspec.Struct, frozen=True):
    """An enrolment block, or as many of them as a tick is long.

    Arguments:
        begins, ends: in seconds after the start of the run, on whole blocks of the metric.
        cells, values: what its units come to, by (epoch, variant).
    """

    begins: int
    ends: int
    cells: dict[tuple[int, str], Moments]
    values: dict[tuple[int, str], Buckets]


class Course(msgspec.Struct, frozen=True):
    """What came of a run.

    Arguments:
        ending: how it ended.
        ended: when, in seconds after its start.
        rolled_back: variants that lost their traffic on evidence of harm, with the time of each.
        alarmed: variants with evidence of harm, whatever was done, with the time of the first.
        shipped: what the stop rule shipped, or advised last.
        decided: when that was, or when a ramp was through; None where neither was.
        units: enrolled, by variant.
        shares: of all traffic, not only of what is enrolled, by variant, in every tick of the
            whole length. What has ended stays as it ended.
        epochs: how many there were.
    """

    ending: Ending
    ended: float
    rolled_back: dict[str, float]
    alarmed: dict[str, float]
    shipped: str | None
    decided: float | None
    units: dict[str, int]
    shares: dict[str, list[float]]
    epochs: int


def play(scene: Scene, random: Generator) -> Course:
    """Play an experiment once."""
    run = _Run(scene, random)
    while run.goes_on:
        run.enrol()
        ended = run.decide()
        if ended is not None:
            return run.course(ended)
    # A ramp that is through goes on with its guard, as long as the run does.
    return run.course("complete" if run.is_through else "length")


class _Metric:
    """A metric of a run: what waits to be closed, and what is."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.made = run_metric(metric)
        window = window_of(metric)
        self._finishes = (window + min(LATENESS, window / 2)).total_seconds()
        self._waiting: list[Block] = []
        self.cells: dict[int, dict[str, Moments]] = {}
        self.terms: dict[int, Population] = {}

    def wait(
        self,
        begins: float,
        ends: float,
        cells: dict[tuple[int, str], Moments],
        values: dict[tuple[int, str], Buckets],
    ) -> None:
        """Keep the units of a tick until they have finished."""
        own = self.made.block_seconds
        block = Block(math.floor(begins / own) * own, math.ceil(ends / own) * own, cells, values)
        if self._waiting and self._waiting[-1].begins == block.begins:
            block = _merged(self._waiting.pop(), block)
        self._waiting.append(block)

    def close(self, at: float) -> tuple[Block, ...]:
        """What has finished at a time."""
        through = sum(block.ends + self._finishes <= at for block in self._waiting)
        ready, self._waiting = self._waiting[:through], self._waiting[through:]
        return tuple(ready)

    def closed(self, blocks: Sequence[Block]) -> Closed:
        """The same as the controller's rules are told of it."""
        return Closed(
            self.made,
            tuple((_stamp(block.begins), block.cells) for block in blocks),
            {_stamp(block.begins): block.values for block in blocks if block.values},
        )

    def remember(self, cells: Cells) -> None:
        """Keep closed cells for the sums over epochs."""
        for (epoch, variant), moments in cells.items():
            of_this = self.cells.setdefault(epoch, {})
            known = of_this.get(variant)
            of_this[variant] = moments if known is None else merge(known, moments)
            self.terms.pop(epoch, None)

    def total(self, variants: Sequence[str], control: str) -> Population:
        """The sums over the epochs of the finished units."""
        for epoch, cells in self.cells.items():
            if epoch not in self.terms:
                self.terms[epoch] = of_epoch(cells, variants, control, self.made.kind)
        return combined(list(self.terms.values())) if self.terms else Population()


def _merged(first: Block, then: Block) -> Block:
    """A block of which a tick was a part only, with what the next one brings."""
    cells, values = dict(first.cells), dict(first.values)
    for key, moments in then.cells.items():
        cells[key] = merge(cells[key], moments) if key in cells else moments
    for key, buckets in then.values.items():
        sums = Counter(dict(values.get(key, ())))
        sums.update(dict(buckets))
        values[key] = tuple(sorted(sums.items()))
    return Block(first.begins, max(first.ends, then.ends), cells, values)


def passed(state: GuardState, blocks: int) -> GuardState:
    """The evidence, where so many more blocks are counted with the next one.

    A tick that stands for several blocks is one factor. But the weight with which a start enters
    the mixture falls with the number of blocks, not of ticks: what comes late in a long run has to
    win back more. So the starts of those blocks enter together before that factor. The evidence
    itself stays as it is, and a supermartingale.
    """
    if blocks == 0:
        return state
    t = state.blocks
    entering = math.log(blocks) - math.log(t + 2) - math.log(t + blocks + 2)
    stakes = tuple(float(np.logaddexp(stake, entering)) for stake in state.log_stakes)
    return msgspec.structs.replace(state, blocks=t + blocks, log_stakes=stakes)


def _met(block: Block, variants: Container[str], seconds: int) -> int:
    """In how many of the controller's blocks that this one stands for there was a unit of these
    variants, on average."""
    units = sum(cell.n for (_, variant), cell in block.cells.items() if variant in variants)
    blocks = (block.ends - block.begins) // seconds
    if blocks == 1:
        return 1
    return max(1, round(-blocks * math.expm1(units * math.log1p(-1.0 / blocks))))


def _stamp(block: int) -> int:
    return int(START.timestamp()) + block


def _with(history: list[Allocation], new: Allocation) -> list[Allocation]:
    """The history of a run as `store.run_allocations` keeps it: of each stretch of allocations that
    enrol the same slots the first and the last."""
    stretch = len(history) > 1 and enrols_same(history[-2], history[-1])
    if stretch and enrols_same(history[-1], new):
        return [*history[:-1], new]
    return [*history, new]


class _Run:
    """An experiment under way. It changes from tick to tick, as the rows in the database do."""

    def __init__(self, scene: Scene, random: Generator) -> None:
        self.at = 0.0
        self.is_through = False
        self._scene = scene
        self._random = random
        self._edges = clock_of(scene).edges
        definition = scene.definition
        self._policy = definition.policy
        self._control = definition.control.key
        self._variants = list(definition.weights)
        traffic = definition.traffic
        self._ramp: RampState | None = None
        if isinstance(self._policy, RampPolicy):
            traffic = self._policy.steps[0].traffic
            self._ramp = ramps.begin(START, 1)
        self._record = ExperimentRecord(
            id=1,
            project="",
            key=definition.key,
            state="running",
            revision=1,
            run=1,
            epoch=0,
            definition=definition,
            ship=None,
            created_at=START,
            updated_at=START,
        )
        self._history: list[Allocation] = []
        self._allocation: Allocation
        self._weights = dict(definition.weights)
        self._propensities: dict[int, dict[str, float]] = {}
        self._move(moves.Begin(moves.in_order(self._weights), traffic))
        self._metrics = {m.key: _Metric(m) for m in scene.played}
        self._ledger = self._opened()
        self._acted: set[int] = set()
        followed = self._policy if isinstance(self._policy, ThompsonPolicy) else None
        self._faded: Discounted | None = None
        self._half_life: float | None = None
        if followed is not None and followed.half_life is not None:
            treatments = [variant for variant in self._variants if variant != self._control]
            self._faded = discounted.start(self._control, treatments)
            self._half_life = parse_duration(followed.half_life).total_seconds()
        self._looked = 0.0
        self._arrived = 0
        self._entered_units = 0
        self._units = dict.fromkeys(self._variants, 0)
        self._rolled_back: dict[str, float] = {}
        self._alarmed: dict[str, float] = {}
        self._shipped: str | None = None
        self._decided: float | None = None
        self._shares: list[dict[str, float]] = []

    def _opened(self) -> list[LedgerRow]:
        wanted = guard.pairs(self._scene.definition)
        if not wanted:
            return []
        share = share_of(self._scene.definition.guard.alpha, len(wanted), 0.0, None)
        rows = []
        for number, pair in enumerate(wanted, 1):
            made = self._metrics[pair.metric.key].made
            rule = pair.rule(share)
            rows.append(
                LedgerRow(
                    id=number,
                    metric=made.key,
                    version=made.version,
                    variant=pair.variant,
                    alpha=share,
                    opened_block=_stamp(-made.block_seconds),
                    rule=rule,
                    state=start(rule),
                )
            )
        return rows

    def _move(self, move: moves.AnyMove) -> None:
        """Move slots, and with that begin an epoch."""
        current = None if not self._history else self._allocation
        self._begin_epoch(moves.carry_out(move, current, self._history))

    def _begin_epoch(self, allocation: Allocation) -> None:
        self._allocation = allocation
        self._history = _with(self._history, allocation)
        number = self._record.epoch + 1
        self._record = msgspec.structs.replace(self._record, epoch=number)
        self._propensities[number] = propensities(allocation)

    @property
    def goes_on(self) -> bool:
        """Whether there is a tick left."""
        return len(self._shares) < len(self._edges) - 1

    @property
    def _now(self) -> datetime:
        return START + timedelta(seconds=self.at)

    def enrol(self) -> None:
        """Draw the units of a tick, and let it pass."""
        begins, ends = self.at, self._edges[len(self._shares) + 1]
        epoch, split = self._record.epoch, self._propensities[self._record.epoch]
        traffic = traffic_of(self._allocation)
        middle = (begins + ends) / 2.0
        a_second = self._scene.truth.units_a_second * traffic
        came = int(self._random.poisson(a_second * (ends - begins)))
        keys = [variant for variant in self._variants if split.get(variant, 0.0) > 0.0]
        chances = [split[variant] for variant in keys]
        counts = self._random.multinomial(came, [c / math.fsum(chances) for c in chances])
        for metric in self._metrics.values():
            cells: dict[tuple[int, str], Moments] = {}
            values: dict[tuple[int, str], Buckets] = {}
            for variant, units in zip(keys, counts.tolist(), strict=True):
                if units:
                    drawn = draw(
                        self._scene.truth, metric.metric, variant, middle, units, self._random
                    )
                    cells[epoch, variant] = drawn.moments
                    if drawn.buckets:
                        values[epoch, variant] = drawn.buckets
            if cells:
                metric.wait(begins, ends, cells, values)
        for variant, units in zip(keys, counts.tolist(), strict=True):
            self._units[variant] += units
        self._arrived += came
        self._shares.append(
            {variant: split.get(variant, 0.0) * traffic for variant in self._variants}
        )
        self.at = ends

    def decide(self) -> Ending | None:
        """Close what has finished, and do what the rules say; how the run ends, if it does."""
        blocks = {key: metric.close(self.at) for key, metric in self._metrics.items()}
        closed = {key: metric.closed(blocks[key]) for key, metric in self._metrics.items()}
        for key, of_metric in blocks.items():
            for block in of_metric:
                self._metrics[key].remember(block.cells)
        if self._faded is not None and isinstance(self._policy, ThompsonPolicy):
            assert self._half_life is not None  # noqa: S101 - they are set together
            for begins, cells in closed[self._policy.metric].blocks:
                seen = scored_cells(begins, cells, self._propensities)
                self._faded = discounted.follow(self._faded, seen, self._half_life)
        ended, acted = self._guard(blocks)
        if ended is not None or acted:
            return ended
        if isinstance(self._policy, RampPolicy):
            self._climb(self._policy, list(closed.values()))
        if isinstance(self._policy, ThompsonPolicy):
            return self._follow(self._policy)
        return None

    def _guard(self, closed: Mapping[str, Sequence[Block]]) -> tuple[Ending | None, bool]:
        new = []
        ledger: list[LedgerRow] = []
        for row in self._ledger:
            seen, state = self._watch(row, closed[row.metric])
            if alarms(row.rule, state) and row.id not in self._acted:
                new.append(guard.alarm_of(row, seen, state))
                self._acted.add(row.id)
                self._alarmed.setdefault(row.variant, self.at)
            ledger.append(msgspec.structs.replace(row, state=state))
        self._ledger = ledger
        action = self._scene.definition.guard.action
        rulings = guard.respond(action, new)
        if not rulings:
            return None, False
        if action == "rollback":
            self._rolled_back[new[0].variant] = self.at
            return "rollback", True
        if action == "pause":
            return "pause", True
        if action == "rollback_variant":
            for alarm in {alarm.variant: alarm for alarm in new}.values():
                self._withdraw(alarm.variant)
        return None, True

    def _watch(
        self, row: LedgerRow, blocks: Sequence[Block]
    ) -> tuple[list[tuple[BlockCell, ...]], GuardState]:
        metric, seen = self._metrics[row.metric], []
        for block in blocks:
            if row.state.blocks > 0:  # its burn-in is over
                arms = {self._control, row.variant}
                others = _met(block, arms, metric.made.block_seconds) - 1
                row = msgspec.structs.replace(row, state=passed(row.state, others))
            new, state = guard.follow(
                row, [metric.closed([block])], self._control, self._propensities
            )
            row = msgspec.structs.replace(row, state=state)
            seen += new
        return seen, row.state

    def _withdraw(self, variant: str) -> None:
        self._rolled_back[variant] = self.at
        self._weights = without(self._weights, [variant], self._control)
        self._move(moves.Withdraw(variant, self._control))
        gone = (*self._record.rolled_back, variant)
        self._record = msgspec.structs.replace(self._record, rolled_back=gone)
        self._ledger = [row for row in self._ledger if row.variant != variant]

    def _climb(self, policy: RampPolicy, closed: Sequence[Closed]) -> None:
        assert self._ramp is not None, "a ramp begins with its run"  # noqa: S101 - an invariant
        if self.is_through:
            return
        treatments = [
            variant
            for variant in self._propensities[self._record.epoch]
            if variant != self._control
        ]
        observed = Observed(
            now=self._now,
            epoch=self._record.epoch,
            enrolled=self._arrived,
            looked_through=self._arrived,
            arrived=self._arrived - self._entered_units - self._ramp.units,
            last_arrival=self._now,
            watched=ramp_rule.watched_of(
                self._record, self._ramp, treatments, self._ledger, closed
            ),
            has_treatment=bool(treatments),
        )
        outcome = ramp.step(policy, self._ramp, observed)
        self._ramp = outcome.state
        if outcome.code == "awaiting_approval":
            self._ramp = ramps.approve(self._ramp, self._ramp.step, self._now)
        if outcome.code == "advance":
            traffic = current_step(policy, self._ramp).traffic
            self._move(moves.Resize(moves.in_order(self._weights), traffic))
            self._entered_units = self._arrived
        if outcome.code == "complete":
            self.is_through, self._decided = True, self.at

    def _follow(self, policy: ThompsonPolicy) -> Ending | None:
        if self.at - self._looked < parse_duration(policy.every).total_seconds():
            return None
        self._looked = self.at
        inputs = self._inputs(policy)
        if len(inputs.live) == 1:
            return None
        stopping = stop_rule.ruling(inputs, policy, self._shipped)
        if stopping is not None and isinstance(stopping.act, Conclude | Advise):
            self._shipped, self._decided = stopping.act.ship, self.at
            if isinstance(stopping.act, Conclude):
                return "conclude"
        proposal = propose(inputs)
        if proposal is None or proposal.given_in_alarm:
            return None
        weights = without(proposal.weights, self._record.rolled_back, self._control)
        traffic = traffic_of(self._allocation)
        if not is_too_small(self._allocation, weights, traffic):
            self._weights = weights
            self._move(moves.Divide(moves.in_order(weights), traffic))
        return None

    def _inputs(self, policy: ThompsonPolicy) -> Inputs:
        shares = self._propensities[self._record.epoch]
        inputs = bandit_rule.inputs_of(self._record, policy, shares)
        inputs = bandit_rule.guarded(inputs, self._record, self._ledger)
        if self._half_life is not None:
            return bandit_rule.with_faded(inputs, self._faded)
        followed = self._metrics[policy.metric]
        return bandit_rule.with_total(inputs, followed.total(self._variants, self._control))

    def course(self, ending: Ending) -> Course:
        """What came of it."""
        return Course(
            ending=ending,
            ended=self.at,
            rolled_back=self._rolled_back,
            alarmed=self._alarmed,
            shipped=self._shipped,
            decided=self._decided,
            units=self._units,
            shares=self._all_shares(ending),
            epochs=self._record.epoch,
        )

    def _all_shares(self, ending: Ending) -> dict[str, list[float]]:
        left = len(self._edges) - 1 - len(self._shares)
        last = self._shares[-1]
        if ending in {"rollback", "pause"}:
            last = {self._control: 1.0}
        elif ending == "conclude" and self._shipped is not None:
            last = {self._shipped: 1.0}
        splits = [*self._shares, *([last] * left)]
        return {key: [split.get(key, 0.0) for split in splits] for key in self._variants}
