"""Whatever happens in whichever order, what folding keeps is what the raw events say."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar
from unittest.mock import patch
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from analysis.control.intake import take_in
from analysis.folding.backfill import backfill
from analysis.folding.fold import fold
from analysis.folding.metrics import Part, RunMetric, add_metric, run_metric
from analysis.upkeep.retention import Retention
from analysis.upkeep.verify import verify
from experiments import lifecycle
from experiments.lifecycle import Change
from experiments.model import QuantileMetric
from experiments.records import ExperimentRecord
from router.records import Record
from tests.service.conftest import database_named
from tests.service.loop import SHOP, Service, after, definition, mean, metric
from turnout.embedded import LiveServers

T = TypeVar("T")
Met: TypeAlias = tuple[int, int, int, int]
Done: TypeAlias = tuple[str, tuple[str, ...], int, int, float | None]
WINDOW = timedelta(seconds=30)
EVENTS = ("click", "buy", "look")
KEYS = ("users", "sessions")
VALUES = (None, 0.0, -0.0, 1.0, 1.0, 2.5, -3.25, 250.0, 1e6, 1e12, -1e12, 1e30)
BROKEN = (
    "analysis.folding.enrol.count_arms",
    "analysis.folding.values.keep_cells",
    "analysis.folding.fold.keep_totals",
    "analysis.folding.totals._store",
)
"""What fails in a fold that is aborted."""
KEPT = timedelta(days=1)
BROKEN_DROP = (
    "analysis.upkeep.retention.open_with",
    "analysis.upkeep.retention.meet",
    "analysis.folding.values.States.keep",
    "analysis.upkeep.retention._drop",
)
"""What fails while raw events are dropped."""

PLANS: tuple[dict[str, Any] | None, ...] = (None, {"plan": "free"}, {"plan": 1, "country": "DE"})
"""What exposures have recorded of a unit; `users` asks for its plan."""

unit_numbers = st.integers(0, 5)
# Whole seconds, so that times are often equal, or lie on the border of a window.
seconds = st.integers(-25, 60)
met_lists = st.lists(
    st.tuples(unit_numbers, st.integers(0, 2), seconds, st.integers(0, 3)), min_size=4, max_size=8
)
"""Units, the variants that they met, when, and how many epochs ago."""
done_lists = st.lists(
    st.tuples(
        st.sampled_from(EVENTS),
        st.sampled_from([("user",), ("session",), ("user", "session")]),
        unit_numbers,
        seconds,
        st.sampled_from(VALUES),
    ),
    min_size=8,
    max_size=20,
)
"""Events, the types and numbers of the units that they name, when, and of which value."""


class AbortedError(Exception):
    """A fold was interrupted on purpose."""


class Life(RuleBasedStateMachine):
    """Two experiments, one on users and one on sessions, and all that can happen to them."""

    servers: LiveServers
    template: str

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._runner = self._stack.enter_context(asyncio.Runner())
        self.service = self._run(self._open())
        self.waiting: list[Record] = []
        self.late: tuple[asyncpg.Connection[Any], Any] | None = None
        self.met: dict[str, list[tuple[int, int]]] = {}
        """The runs and epochs of an experiment."""
        self.changes = 0
        self.retention = Retention(KEPT)
        self.folded = False

    def _run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(doing)

    async def _open(self) -> Service:
        name = f"machine_{uuid4().hex[:12]}"
        admin = await asyncpg.connect(self.servers.database_url)
        try:
            await admin.execute(f'create database "{name}" template "{self.template}"')
        finally:
            await admin.close()
        self._url = database_named(self.servers, name)
        self._name = name
        self._pool = await asyncpg.create_pool(self._url, min_size=1, max_size=3)
        self._redis = Redis.from_url(self.servers.redis_url)
        return Service(self._pool, self._redis, KEPT)

    async def _close(self) -> None:
        if self.late is not None:
            await self.late[0].close()
        await self._redis.aclose()
        await self._pool.close()
        admin = await asyncpg.connect(self.servers.database_url)
        try:
            await admin.execute(f'drop database "{self._name}" with (force)')
        finally:
            await admin.close()

    def teardown(self) -> None:
        """Leave nothing behind."""
        self._run(self._close())
        self._stack.close()

    @initialize(met=met_lists, done=done_lists)
    def begin(self, met: list[Met], done: list[Done]) -> None:
        """Define and start what lives, and let something happen."""
        spent = mean("spent", event="buy", window="30s", cap=200, covariate="20s")
        self._run(
            self.service.begin(
                definition("users", metric("click", window="30s"), spent, record=["plan"])
            )
        )
        self._run(
            self.service.begin(
                definition(
                    "sessions",
                    mean("largest", event="buy", aggregate="max", window="45s"),
                    mean("final", event="buy", aggregate="last", window="10s"),
                    weights={"a": 0.2, "b": 0.3, "c": 0.5},
                    unit={"type": "session"},
                )
            )
        )
        for key in KEYS:
            self._note_epoch(key)
            self.live(key, met, done, 1)
        self.ship_and_tick()

    def _record(self, key: str) -> ExperimentRecord:
        return self._run(self.service.find(key))

    def _note_epoch(self, key: str) -> None:
        record = self._record(key)
        place = (record.run, record.epoch)
        if place not in self.met.setdefault(key, []):
            self.met[key].append(place)

    # What happens outside: exposures and outcomes, in any order, and segments of them.

    @rule(
        key=st.sampled_from(KEYS),
        met=met_lists,
        done=done_lists,
        repeats=st.integers(1, 2),
    )
    def live(
        self,
        key: str,
        met: list[Met],
        done: list[Done],
        repeats: int,
    ) -> None:
        """Units meet variants in any epoch that there was, also earlier than they did before, and
        things happen to units, also before they meet anything, too late, or to strangers."""
        record = self._record(key)
        variants = [*record.definition.weights]
        for number, variant, second, back in met:
            run, epoch = self.met[key][-1 - back % len(self.met[key])]
            exposure = self.service.exposure(
                record,
                f"ü{number}",
                variants[variant % len(variants)],
                after(second),
                run=run,
                epoch=epoch,
                attributes=PLANS[(number + second) % len(PLANS)],
            )
            self.waiting += [exposure] * repeats
        for event, types, number, second, value in done:
            units = tuple((unit_type, f"ü{number}") for unit_type in types)
            self.waiting.append(self.service.outcome(event, units, after(second), value))

    @rule()
    def ship(self) -> None:
        """A router ships what it has."""
        self._run(self.service.ship(self.waiting))
        self.waiting = []

    @rule()
    def ship_slowly(self) -> None:
        """A router ships what it has, in a transaction that stays open for a while; or one that did
        so commits, with a lower number than others."""
        self._run(self._commit_late() if self.late else self._begin_late())

    async def _begin_late(self) -> None:
        # A transaction that stays open must not be the one that makes a partition.
        for day in {record.received_at.date() for record in self.waiting}:
            await self.service.execute("select ensure_day($1)", day)
        connection = await asyncpg.connect(self._url)
        transaction = connection.transaction()
        await transaction.start()
        await self.service.load(connection, self.waiting)
        self.late = (connection, transaction)
        self.waiting = []

    async def _commit_late(self) -> None:
        assert self.late is not None
        connection, transaction = self.late
        await transaction.commit()
        await connection.close()
        self.late = None

    # What the controller does.

    @rule()
    def ship_and_tick(self) -> None:
        """A router ships, and the controller does all that is due."""
        self.ship()
        self._run(self.service.tick())
        self.folded = True

    @rule(passing=st.sampled_from([1, 10, 60, 86_400, 2 * 86_400]))
    def let_time_pass(self, passing: int) -> None:
        """Windows pass, so that blocks close; or days, and raw events are old enough to drop."""
        self._run(self.service.settle(passing))
        self.folded = True

    @rule(broken=st.sampled_from([None, *BROKEN]))
    def fold_only(self, broken: str | None) -> None:
        """What was shipped is folded, and new metrics wait for their values; or folding fails."""
        self._do_or_fail(self._fold, broken)

    async def _fold(self) -> None:
        async with self.service.pool.acquire() as connection, connection.transaction():
            await take_in(connection, self.service.clock.now)
            await fold(connection, self.service.clock.now)

    @rule()
    def fill_in(self) -> None:
        """A new metric gets the values of some units."""
        self._do_or_fail(self._fill_in, None)

    async def _fill_in(self) -> None:
        async with self.service.pool.acquire() as connection, connection.transaction():
            await backfill(connection)

    @rule(days=st.integers(0, 2), broken=st.sampled_from([None, None, *BROKEN_DROP]))
    def drop_some(self, days: int, broken: str | None) -> None:
        """Some raw events that are too old are dropped; or that fails."""
        self.service.clock.advance(days * 86_400)
        self._do_or_fail(self._drop, broken)

    async def _drop(self) -> None:
        for _ in range(2):
            async with self.service.pool.acquire() as connection, connection.transaction():
                await self.retention.step(connection, self.service.clock.now)

    def _do_or_fail(self, act: Callable[[], Coroutine[Any, Any, None]], broken: str | None) -> None:
        if broken is None:
            self._run(act())
        else:
            with suppress(AbortedError), patch(broken, side_effect=AbortedError):
                self._run(act())
        self.folded = True

    # What product teams do.

    @rule(key=st.sampled_from(KEYS), chosen=st.integers(0, 2))
    def allocate(self, key: str, chosen: int) -> None:
        """Weights move: a new epoch."""
        record = self._record(key)
        weights = dict.fromkeys(record.definition.weights, 0.1)
        weights[[*weights][chosen % len(weights)]] = 1.0 - 0.1 * (len(weights) - 1)
        self._run(self.service.allocate(key, weights))
        self._note_epoch(key)

    @rule(key=st.sampled_from(KEYS), again=st.booleans())
    def stop_and_go(self, key: str, again: bool) -> None:
        """A run ends and the next one begins; or there is a pause, which makes two epochs."""
        if again:
            self._run(self.service.conclude(key))
            self._run(self.service.start(key))
        else:
            self._run(self.service.pause(key))
            self._note_epoch(key)
            self._run(self._resume(key))
        self._note_epoch(key)

    async def _resume(self, key: str) -> None:
        async with self.service.pool.acquire() as connection, connection.transaction():
            record = await lifecycle.find(connection, SHOP, key, lock=True)
            await lifecycle.resume(
                connection, record, Change("tester", "a test", self.service.clock.now)
            )

    @rule(
        key=st.sampled_from(KEYS),
        aggregate=st.sampled_from(["sum", "count", "mean", "max", "last"]),
        event=st.sampled_from(EVENTS),
        cap=st.sampled_from([None, 2, 1e9]),
    )
    def change_metrics(self, key: str, aggregate: str, event: str, cap: float | None) -> None:
        """A metric joins, or one is changed."""
        self.changes += 1
        joined = [
            mean(f"m{self.changes % 3}", event=event, aggregate=aggregate, window="40s", cap=cap),
            metric("looks", event="look", window="20s"),
        ]
        self._run(self.service.amend(key, {"metrics": joined}))

    @rule(key=st.sampled_from(KEYS), kind=st.sampled_from(["ratio", "two", "quantile"]))
    def join(self, key: str, kind: str) -> None:
        """A metric of several numbers joins, or one with a histogram."""
        now = timedelta(0)
        match kind:
            case "ratio":
                joined = RunMetric(
                    "per_click",
                    "1",
                    "ratio",
                    WINDOW,
                    3,
                    (
                        Part("buy", "sum", None, now, WINDOW),
                        Part("click", "count", None, now, WINDOW),
                    ),
                )
            case "two":
                joined = RunMetric(
                    "adjusted",
                    "1",
                    "ratio",
                    WINDOW,
                    3,
                    (
                        Part("buy", "mean", 100.0, now, WINDOW),
                        Part("click", "total", None, now, WINDOW),
                        Part("buy", "mean", 100.0, -timedelta(seconds=20), now),
                        Part("click", "total", None, -timedelta(seconds=20), now),
                    ),
                )
            case _:
                joined = run_metric(
                    QuantileMetric(
                        key="typical", role="secondary", event="buy", window="30s", quantile=0.5
                    )
                )
        self._run(self._join(key, joined))

    async def _join(self, key: str, joined: RunMetric) -> None:
        record = await self.service.find(key)
        [run] = await self.service.fetch(
            "select started_at, enrolments from run where experiment = $1 and number = $2",
            record.id,
            record.run,
        )
        async with self.service.pool.acquire() as connection:
            covered = 0 if run["enrolments"] else None
            await add_metric(connection, record.id, record.run, joined, run["started_at"], covered)

    @invariant()
    def all_is_equal(self) -> None:
        """What stands is what the raw events say."""
        if not self.folded:
            return
        self.folded = False

        async def compare() -> list[str]:
            async with self.service.pool.acquire() as connection:
                verdict = await verify(connection, None, None, lambda _: None)
                return verdict.lines() if verdict.found else []

        assert self._run(compare()) == []


@pytest.fixture
def life(servers: LiveServers, template: str, monkeypatch: pytest.MonkeyPatch) -> type[Life]:
    """The machine, on these servers."""
    monkeypatch.setattr("analysis.folding.backfill.STEP", 4)
    monkeypatch.setattr("analysis.upkeep.retention.ROWS", 3)
    monkeypatch.setattr(Life, "servers", servers, raising=False)
    monkeypatch.setattr(Life, "template", template, raising=False)
    return Life


def _live(life: type[Life], lives: int, steps: int, *, same: bool) -> None:
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=lives,
            stateful_step_count=steps,
            deadline=None,
            derandomize=same,
            database=None,
            # To find a small example of a failure takes minutes: that is for the long test.
            phases=[Phase.generate] if same else [Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),  # a step takes as long as Postgres takes
        ),
    )


def test_any_life_leaves_what_its_raw_events_say(life: type[Life]) -> None:
    _live(life, lives=8, steps=25, same=True)


@pytest.mark.calibration
def test_many_long_lives_leave_what_their_raw_events_say(life: type[Life]) -> None:
    _live(life, lives=300, steps=50, same=False)
