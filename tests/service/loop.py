"""The loop from the far end of the journal to decisions and reports, on a clock that tests move."""

import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import msgspec
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from analysis.control.controller import Controller, Pace
from analysis.control.telemetry import AnalysisMetrics
from analysis.reports.facts import read_facts
from analysis.reports.report import Report, make_report
from experiments import lifecycle, store
from experiments.allocation import propensities
from experiments.definition import parse_definition
from experiments.lifecycle import Change
from experiments.records import Decision, Epoch, ExperimentRecord
from experiments.spans import NO_TRACES, Tracer
from router.load import prepare
from router.records import ExposureRecord, OutcomeRecord, Record, encode
from router.rows import EXPOSURES, OUTCOMES, copy_rows

START = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
LATENESS = timedelta(seconds=1)
SHOP = "shop"

_SEGMENT = """
    insert into segment (journal, number, records, shipped_at, received_from, received_to)
    values ($1, $2, $3, $4, $5, $6) returning id
"""
_SHIPPED = """
    insert into journal (id, shipped_through, heartbeat_at) values ($1, $2, clock_timestamp())
    on conflict (id) do update
    set shipped_through = excluded.shipped_through, heartbeat_at = excluded.heartbeat_at
"""

Respond: TypeAlias = Callable[[str, random.Random], float | None]
"""The value of a unit's outcome, given its variant; None where there is none."""


def after(seconds: float) -> datetime:
    """A time, in seconds after the start."""
    return START + timedelta(seconds=seconds)


def metric(key: str, role: str = "secondary", **others: Any) -> dict[str, Any]:
    """A metric of a definition: a proportion with a window of 2 s, of the event of its key."""
    return {"key": key, "role": role, "kind": "proportion", "event": key, "window": "2s"} | others


def mean(key: str, role: str = "secondary", **others: Any) -> dict[str, Any]:
    """A mean metric of a definition."""
    return metric(key, role, kind="mean", **others)


def definition(
    key: str, *metrics: dict[str, Any], weights: Mapping[str, float] | None = None, **others: Any
) -> dict[str, Any]:
    """A definition whose first variant is the control: a and b in halves unless told otherwise."""
    weights = {"a": 0.5, "b": 0.5} if weights is None else weights
    variants = [
        {"key": variant, "value": variant, "weight": weight, "control": place == 0}
        for place, (variant, weight) in enumerate(weights.items())
    ]
    return {"key": key, "variants": variants, "metrics": list(metrics)} | others


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


class Service:
    """Experiments, the far end of a journal, and a controller."""

    def __init__(self, pool: asyncpg.Pool, redis: Redis, keep: timedelta | None = None) -> None:
        """`keep` is for how long raw events are kept; None for ever."""
        self.pool = pool
        self._keep = keep
        self.clock = Clock()
        self._redis = redis
        self._journal = uuid4()
        self._numbers = count(1)
        self._registry = CollectorRegistry()
        self.controller = self.new_controller("first", self._registry)

    def new_controller(
        self, holder: str, registry: CollectorRegistry | None = None, tracer: Tracer = NO_TRACES
    ) -> Controller:
        """Another process that would lead."""
        metrics = AnalysisMetrics(registry or CollectorRegistry())
        return Controller(
            self.pool,
            self._redis,
            self._time,
            self._elapsed,
            holder,
            Pace(lateness=LATENESS, keep=self._keep, idle=timedelta(0)),
            metrics,
            tracer,
        )

    async def _time(self, _: store.Connection) -> datetime:
        return self.clock.now

    def _elapsed(self) -> float:
        return self.clock.now.timestamp()

    def change(self, reason: str = "a test") -> Change:
        """Who changes something now, and why."""
        return Change("tester", reason, self.clock.now)

    async def draft(self, data: dict[str, Any], project: str = SHOP) -> ExperimentRecord:
        """Define an experiment."""
        async with self.pool.acquire() as connection, connection.transaction():
            await store.create_project(connection, project, self.clock.now)
            definition = parse_definition(data)
            return await lifecycle.define(connection, project, definition, self.change())

    async def begin(self, data: dict[str, Any], project: str = SHOP) -> ExperimentRecord:
        """Define an experiment, and start it."""
        await self.draft(data, project)
        return await self.start(data["key"], project)

    async def amend(self, key: str, patch: dict[str, Any], project: str = SHOP) -> ExperimentRecord:
        """Change the definition of an experiment."""
        async with self.pool.acquire() as connection, connection.transaction():
            record = await lifecycle.find(connection, project, key, lock=True)
            return await lifecycle.amend(connection, record, patch, self.change())

    async def allocate(
        self, key: str, weights: Mapping[str, float], project: str = SHOP
    ) -> ExperimentRecord:
        """Split the traffic by hand."""
        async with self.pool.acquire() as connection, connection.transaction():
            record = await lifecycle.find(connection, project, key, lock=True)
            return await lifecycle.allocate(connection, record, weights, 1.0, self.change())

    async def conclude(self, key: str, project: str = SHOP) -> ExperimentRecord:
        """End a run, and ship the control."""
        async with self.pool.acquire() as connection, connection.transaction():
            record = await lifecycle.find(connection, project, key, lock=True)
            return await lifecycle.conclude(connection, record, "a", self.change())

    async def start(self, key: str, project: str = SHOP) -> ExperimentRecord:
        """Begin the first run, or the next one."""
        async with self.pool.acquire() as connection, connection.transaction():
            record = await lifecycle.find(connection, project, key, lock=True)
            return await lifecycle.start(connection, record, self.change())

    async def pause(self, key: str, project: str = SHOP) -> ExperimentRecord:
        """Pause an experiment."""
        async with self.pool.acquire() as connection, connection.transaction():
            record = await lifecycle.find(connection, project, key, lock=True)
            return await lifecycle.pause(connection, record, self.change())

    async def find(self, key: str, project: str = SHOP) -> ExperimentRecord:
        """An experiment as it stands."""
        async with self.pool.acquire() as connection:
            return await lifecycle.find(connection, project, key)

    async def epochs(self, key: str, project: str = SHOP) -> list[Epoch]:
        """All epochs of an experiment, the first one first."""
        async with self.pool.acquire() as connection:
            record = await lifecycle.find(connection, project, key)
            return (await store.list_epochs(connection, record.id, 1_000, None))[::-1]

    async def ledger(self, key: str, project: str = SHOP) -> list[Decision]:
        """The ledger of decisions, the first one first."""
        async with self.pool.acquire() as connection:
            record = await lifecycle.find(connection, project, key)
            return (await store.list_decisions(connection, record.id, 1_000, None))[::-1]

    async def decisions(self, key: str, project: str = SHOP) -> list[Decision]:
        """What the controller did, the first one first: the ledger without what only holds, and
        without what a hand did."""
        return [
            decision
            for decision in await self.ledger(key, project)
            if decision.kind != "hold" and decision.rule != "manual"
        ]

    async def report(self, key: str, project: str = SHOP) -> Report:
        """The report of an experiment."""
        async with self.pool.acquire() as connection:
            record = await lifecycle.find(connection, project, key)
            return make_report(await read_facts(connection, record, self.clock.now, LATENESS))

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """What is in the tables."""
        rows: list[asyncpg.Record] = await self.pool.fetch(query, *arguments)
        return rows

    async def execute(self, query: str, *arguments: Any) -> None:
        """Change what is in the tables."""
        await self.pool.execute(query, *arguments)

    async def ship(self, records: Sequence[Record]) -> int:
        """Put a segment into Postgres, as a shipper would; its id."""
        async with self.pool.acquire() as connection, connection.transaction():
            return await self.load(connection, records)

    async def load(self, connection: store.Connection, records: Sequence[Record]) -> int:
        """Put a segment into Postgres, in the caller's transaction; its id."""
        load = await prepare([encode(record) for record in records])
        assert not load.letters
        await connection.execute("select ensure_day(day) from unnest($1::date[]) day", load.days)
        segment: int = await connection.fetchval(
            _SEGMENT,
            self._journal,
            next(self._numbers),
            len(records),
            self.clock.now,
            load.received[0] if load.received else None,
            load.received[-1] if load.received else None,
        )
        for table, entries in ((EXPOSURES, load.exposures), (OUTCOMES, load.outcomes)):
            rows = [row for entry in entries for row in entry.rows]
            await connection.copy_to_table(
                table.name,
                columns=table.columns,
                source=_pieces(copy_rows(segment, table, rows)),
                format="binary",
            )
        return segment

    async def shipped(self, through: datetime | None = None, journal: UUID | None = None) -> None:
        """A router says that it has shipped all up to a time: now, unless told otherwise."""
        await self.execute(_SHIPPED, journal or self._journal, through or self.clock.now)

    async def tick(self) -> None:
        """The controller leads, does all that is due, and nothing fails."""
        assert await self.controller.tick()
        assert self.failures() == 0

    def failures(self) -> float:
        """How often the controller failed to do something."""
        return sum(
            self._registry.get_sample_value("turnout_controller_failures_total", {"of": part}) or 0
            for part in ("tick", "decision", "upkeep")
        )

    async def settle(self, seconds: float = 60) -> None:
        """Let so much time pass, and everything be shipped, that windows have passed; then tick."""
        self.clock.advance(seconds)
        await self.shipped()
        await self.tick()

    def exposure(
        self, record: ExperimentRecord, unit: str, variant: str, at: datetime, **others: Any
    ) -> ExposureRecord:
        """A unit meets a variant in the experiment's current epoch, unless told otherwise."""
        exposure = ExposureRecord(
            uuid4().bytes,
            record.project,
            record.id,
            record.run,
            record.epoch,
            variant,
            record.definition.unit.type,
            unit,
            at,
            self.clock.now,
        )
        return msgspec.structs.replace(exposure, **others)

    def outcome(
        self,
        event: str,
        units: str | tuple[tuple[str, str], ...],
        at: datetime,
        value: float | None = None,
        project: str = SHOP,
    ) -> OutcomeRecord:
        """Something happens to a user, or to several units."""
        named = (("user", units),) if isinstance(units, str) else units
        return OutcomeRecord(None, project, event, named, value, at, self.clock.now)


async def _pieces(data: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


class Visitors:
    """Units that come once each, meet a variant with the propensities of the day, and respond."""

    def __init__(self, service: Service, key: str, seed: int) -> None:
        self._service = service
        self.key = key
        self._random = random.Random(seed)  # noqa: S311 - a simulation
        self._numbers = count(1)
        self.seen: list[tuple[int, str, dict[str, float]]] = []
        """Epoch, variant and outcomes of all who came."""

    async def come(self, units: int, responses: Mapping[str, Respond], seconds: float = 1) -> None:
        """Let time pass, in which units come; and ship what they left behind.

        Args:
            responses: by event.
        """
        service = self._service
        record = await service.find(self.key)
        async with service.pool.acquire() as connection:
            epoch = await store.get_epoch(connection, record.id, record.epoch)
        shares = propensities(epoch.allocation)
        records: list[Record] = []
        begun = service.clock.now
        service.clock.advance(seconds)
        for place in range(units):
            unit = f"{self.key}-{next(self._numbers)}"
            at = begun + timedelta(seconds=seconds * place / units)
            [variant] = self._random.choices([*shares], [*shares.values()])
            records.append(service.exposure(record, unit, variant, at))
            values: dict[str, float] = {}
            for event, respond in responses.items():
                value = respond(variant, self._random)
                if value is not None:
                    values[event] = value
                    records.append(service.outcome(event, unit, at, value))
            self.seen.append((record.epoch, variant, values))
        await service.ship(records)
        await service.shipped()

    def values(self, event: str, variant: str, epochs: Iterable[int] | None = None) -> list[float]:
        """What came of the units of a variant: the event's value, 0 for those without."""
        wanted = None if epochs is None else set(epochs)
        return [
            values.get(event, 0.0)
            for epoch, met, values in self.seen
            if met == variant and (wanted is None or epoch in wanted)
        ]


def rates(**rate: float) -> Respond:
    """Units respond with these probabilities, by variant."""
    return lambda variant, generator: 1.0 if generator.random() < rate[variant] else None
