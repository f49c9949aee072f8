"""Three weeks of a shop's experiments, made in seconds: what pages are looked at with.

Units come and respond, and the controller decides as it does in service, on a clock that is moved:
nothing is made up but who came and what they did, and that by seeds. The clock stops now, so
that a Turnout that is started afterwards finds weeks behind it, and goes on from there.
"""

import random
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeAlias

import asyncpg
import msgspec
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from analysis.chronicle.chronicler import Chronicler
from analysis.chronicle.telemetry import ChronicleMetrics
from experiments import lifecycle, store
from experiments.allocation import propensities, traffic_of
from experiments.keys import ROLES, Role, key_id_of, new_key
from experiments.lifecycle import Change
from experiments.records import ExperimentRecord
from router.records import Record
from tests.service.loop import LATENESS, Service

PROJECT: Final = "shop"
DAY: Final = timedelta(days=1)
WEEKS: Final = 21 * DAY
STEPS: Final = 168
"""Moments at which records are shipped and the controller looks."""
_RECEIVED_AFTER: Final = timedelta(milliseconds=300)
_COUNTRIES: Final = ("DE", "AT", "FR", "JP", "US")
_SHARES: Final = (0.4, 0.15, 0.2, 0.1, 0.15)

Happening: TypeAlias = tuple[str, float, float | None]
"""An event, the seconds after enrolment, and its value."""
Respond: TypeAlias = Callable[[str, float, random.Random], list[Happening]]
"""What a unit does, by its variant and the day of the world on which they meet."""


class Crowd(msgspec.Struct, frozen=True):
    """The units of an experiment: how many a day there would be at full traffic, what they do, and
    between which days of the world they come; the first is that of its start. `split` is by what
    they are really split, where that is not what the epoch says."""

    key: str
    a_day: float
    respond: Respond
    since: float = 0.0
    until: float = 99.0
    split: Mapping[str, float] | None = None


# What is measured.


def _proportion(key: str, role: str, window: str = "1d", **others: Any) -> dict[str, Any]:
    measured = {"key": key, "role": role, "kind": "proportion", "event": key, "window": window}
    return measured | {"goal": "increase"} | others


CLICK: Final = _proportion("click", "primary")
ERRORS: Final = _proportion(
    "errors", "guardrail", "10m", goal="decrease", event="error", margin={"absolute": 0.01}
)
REVENUE: Final = {
    "key": "revenue",
    "role": "secondary",
    "kind": "mean",
    "event": "purchase",
    "aggregate": "sum",
    "window": "3d",
    "cap": 400,
    "goal": "increase",
}
LATENCY: Final = {
    "key": "latency_p95",
    "role": "guardrail",
    "kind": "quantile",
    "quantile": 0.95,
    "event": "latency_ms",
    "window": "10m",
    "goal": "decrease",
    "margin": {"relative": 0.1},
}


def _variants(*keys: str) -> list[dict[str, Any]]:
    share = round(1 / len(keys), 6)
    return [
        {
            "key": key,
            "control": place == 0,
            "weight": share if place else round(1 - share * (len(keys) - 1), 6),
            "value": {"model": f"models:/{key}"},
        }
        for place, key in enumerate(keys)
    ]


LONG: Final = "headline-lab_every-script.of-the-world-and-a-key-of-64-letters.x"
"""A key as long as keys may be."""

DEFINITIONS: Final[Mapping[str, dict[str, Any]]] = {
    "ranker-v7": {
        "name": "Ranker v7 against v6",
        "hypothesis": "v7 lifts clicks without costing latency",
        "owner": "search-team",
        "tags": ["search", "ranking"],
        "record": ["country", "plan"],
        "variants": _variants("v6", "v7"),
        "metrics": [CLICK, REVENUE, LATENCY, ERRORS],
        "guard": {"alpha": 0.01, "action": "rollback"},
    },
    "assistant-prompt": {
        "name": "Which prompt the assistant opens with",
        "owner": "assist",
        "tags": ["llm", "bandit"],
        "unit": {"type": "request"},
        "variants": _variants("plain", "few-shot", "chain-of-thought", "persona"),
        "metrics": [
            _proportion("solved", "primary", "1h"),
            ERRORS,
        ],
        "policy": {
            "kind": "thompson",
            "metric": "solved",
            "every": "1h",
            "floor": 0.05,
            "warmup": 100,
            "max_step": 0.1,
        },
    },
    "embedder-ramp": {
        "name": "Ramp of the new embedder",
        "hypothesis": "The new embedder answers as well, at half the price",
        "owner": "search-team",
        "tags": ["search"],
        "variants": _variants("e5-small", "e5-turnout"),
        "metrics": [CLICK, ERRORS],
        "policy": {
            "kind": "ramp",
            "steps": [
                {"traffic": 0.2, "hold": "3d"},
                {"traffic": 0.5, "hold": "3d", "approval": True},
                {"traffic": 1.0, "hold": "7d"},
            ],
        },
    },
    "summariser-2": {
        "name": "Summariser 2",
        "hypothesis": "Shorter summaries are read to the end",
        "owner": "content",
        "tags": ["llm"],
        "variants": _variants("one", "two"),
        "metrics": [_proportion("read", "primary"), ERRORS],
        "guard": {"alpha": 0.01, "action": "rollback"},
    },
    "checkout-one-page": {
        "name": "Checkout on one page",
        "hypothesis": "Fewer steps, fewer baskets left behind",
        "owner": "checkout",
        "tags": ["web"],
        "variants": _variants("three-steps", "one-page"),
        "metrics": [_proportion("purchase", "primary", "7d"), REVENUE],
    },
    "search-suggestions": {
        "name": "Suggestions while typing",
        "owner": "search-team",
        "tags": ["search", "web"],
        "variants": _variants("off", "on"),
        "metrics": [CLICK, ERRORS],
    },
    "signup-redirect": {
        "name": "Sign-up behind a redirect",
        "owner": "growth",
        "tags": ["web"],
        "variants": _variants("inline", "redirect"),
        "metrics": [_proportion("signup", "primary")],
    },
    LONG: {
        "name": "Überschriften im Vergleich: ein Name, der über jede vernünftige Breite hinausgeht,"
        " 日本語の見出し, عناوين عربية, заголовки, <b>kein Markup</b>",
        "hypothesis": "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichenverordnung" * 2,
        "owner": "redaktion-und-übersetzung-für-alle-märkte-der-welt",
        "tags": ["web", "redaktion", "eine-sehr-lange-marke-die-nicht-umbricht"],
        "variants": _variants(
            "heute",
            "kurz",
            "lang-und-ausfuehrlich-mit-vielen-worten-die-niemand-liest",
            "frage",
            "zahl",
            "zitat",
            "bild",
            "neu-07",
            "neu-08",
            "neu-09",
        ),
        "metrics": [CLICK, REVENUE],
    },
    "onboarding-mail": {
        "name": "Welcome mail with a video",
        "owner": "growth",
        "tags": ["mail"],
        "variants": _variants("text", "video"),
        "metrics": [_proportion("activated", "primary", "2d")],
    },
    "pricing-page": {
        "name": "Three layouts of the pricing page",
        "hypothesis": "A table says more than cards",
        "owner": "growth",
        "tags": ["web"],
        "record": ["country"],
        "variants": _variants("today", "cards", "table"),
        "metrics": [_proportion("trial", "primary"), REVENUE],
    },
}


# What people do.


def _chance(event: str, rate: float, within: float, source: random.Random) -> list[Happening]:
    """An event that this share of the units has, once, within so many seconds."""
    return [(event, source.uniform(1, within), None)] if source.random() < rate else []


def _bought(rate: float, source: random.Random) -> list[Happening]:
    if source.random() >= rate:
        return []
    return [("purchase", source.uniform(60, 200_000), round(source.lognormvariate(3.2, 0.8), 2))]


def _ranker(variant: str, _: float, source: random.Random) -> list[Happening]:
    better = variant == "v7"
    return [
        *_chance("click", 0.33 if better else 0.265, 40_000, source),
        *_bought(0.055 if better else 0.05, source),
        ("latency_ms", 1.0, round(source.lognormvariate(4.5, 0.4) * (1.02 if better else 1), 2)),
        *_chance("error", 0.006, 60, source),
    ]


def _prompts(variant: str, _: float, source: random.Random) -> list[Happening]:
    solved = {"plain": 0.30, "few-shot": 0.36, "chain-of-thought": 0.40, "persona": 0.28}
    return [
        *_chance("solved", solved[variant], 600, source),
        *_chance("error", 0.01, 60, source),
    ]


def _embedder(variant: str, _: float, source: random.Random) -> list[Happening]:
    clicks = 0.31 if variant == "e5-turnout" else 0.30
    return [*_chance("click", clicks, 40_000, source), *_chance("error", 0.005, 60, source)]


FAILS_ON: Final = 12.0
"""The day of the world on which the second summariser begins to fail."""


def _summaries(variant: str, day: float, source: random.Random) -> list[Happening]:
    fails = variant == "two" and day >= FAILS_ON
    return [
        *_chance("read", 0.5 if variant == "two" else 0.48, 5_000, source),
        *_chance("error", 0.2 if fails else 0.008, 60, source),
    ]


def _signups(_: str, __: float, source: random.Random) -> list[Happening]:
    return _chance("signup", 0.12, 3_000, source)


def _headlines(variant: str, _: float, source: random.Random) -> list[Happening]:
    return [
        *_chance("click", 0.2 + 0.04 * (variant == "frage"), 40_000, source),
        *_bought(0.04, source),
    ]


def _mails(variant: str, _: float, source: random.Random) -> list[Happening]:
    return _chance("activated", 0.26 if variant == "video" else 0.25, 100_000, source)


def _prices(variant: str, _: float, source: random.Random) -> list[Happening]:
    trial = {"today": 0.08, "cards": 0.083, "table": 0.125}
    return [*_chance("trial", trial[variant], 40_000, source), *_bought(0.03, source)]


CROWDS: Final = (
    Crowd("ranker-v7", 700, _ranker),
    Crowd("assistant-prompt", 400, _prompts),
    Crowd("embedder-ramp", 900, _embedder, since=9),
    Crowd("summariser-2", 300, _summaries, since=8),
    Crowd("signup-redirect", 300, _signups, since=12, split={"inline": 0.56, "redirect": 0.44}),
    Crowd(LONG, 700, _headlines, since=14),
    Crowd("onboarding-mail", 200, _mails, since=6, until=16.3),
    Crowd("pricing-page", 400, _prices, until=14),
)


class World:
    """The clock, and what has not happened yet."""

    def __init__(self, service: Service, actor: str, a_day: float) -> None:
        self._service = service
        self._actor = actor
        self._a_day = a_day
        self._begun = service.clock.now
        # One for each crowd, so that what one does leaves the others as they were.
        self._sources = {
            crowd.key: random.Random(f"7 {crowd.key}")  # noqa: S311 - a simulation
            for crowd in CROWDS
        }
        self._coming: list[Record] = []
        self._came = 0
        self._chronicler = Chronicler(
            service.pool,
            self._time,
            self._elapsed,
            LATENESS,
            ChronicleMetrics(CollectorRegistry()),
        )

    async def _time(self, _: store.Connection) -> datetime:
        return self._service.clock.now

    def _elapsed(self) -> float:
        return self._service.clock.now.timestamp()

    @property
    def day(self) -> float:
        """Days since the beginning."""
        return (self._service.clock.now - self._begun) / DAY

    async def live(self, length: timedelta) -> None:
        """Let time pass, in which units come; ship what they did, and let the controller look, and
        once a day the chronicler."""
        service, begun, day = self._service, self._service.clock.now, int(self.day)
        for crowd in CROWDS:
            if crowd.since <= self.day < crowd.until:
                self._coming += await self._come(crowd, begun, length)
        service.clock.advance(length.total_seconds())
        happened = [r for r in self._coming if r.received_at <= service.clock.now]
        self._coming = [r for r in self._coming if r.received_at > service.clock.now]
        if happened:
            await service.ship(happened)
        await service.shipped()
        await service.tick()
        if int(self.day) > day:
            await self._chronicler.look_around()

    async def _come(self, crowd: Crowd, begun: datetime, length: timedelta) -> list[Record]:
        record = await self._service.find(crowd.key, PROJECT)
        if record.state != "running":
            return []
        async with self._service.pool.acquire() as connection:
            epoch = await store.get_epoch(connection, record.id, record.epoch)
        shares = crowd.split or propensities(epoch.allocation)
        source = self._sources[crowd.key]
        expected = crowd.a_day * self._a_day * (length / DAY)
        records: list[Record] = []
        for _ in range(int(expected * traffic_of(epoch.allocation) + source.random())):
            at = begun + length * source.random()
            [variant] = source.choices([*shares], [*shares.values()])
            records += self._visit(record, crowd, variant, at)
        return records

    def _visit(
        self, record: ExperimentRecord, crowd: Crowd, variant: str, at: datetime
    ) -> list[Record]:
        """A unit meets a variant, and does what it does."""
        source, service = self._sources[crowd.key], self._service
        self._came += 1
        unit = ((record.definition.unit.type, f"unit-{self._came}"),)
        [country] = source.choices(_COUNTRIES, _SHARES)
        known = {"country": country, "plan": source.choice(("free", "pro"))}
        received = at + _RECEIVED_AFTER
        met = service.exposure(
            record,
            unit[0][1],
            variant,
            at,
            received_at=received,
            attributes={name: known[name] for name in record.definition.record} or None,
        )
        records: list[Record] = [met]
        for event, delay, value in crowd.respond(variant, (at - self._begun) / DAY, source):
            later = timedelta(seconds=delay)
            outcome = service.outcome(event, unit, at + later, value, PROJECT)
            records.append(msgspec.structs.replace(outcome, received_at=received + later))
        return records

    async def decide(
        self, verb: Callable[..., Awaitable[Any]], key: str, *arguments: Any, reason: str
    ) -> None:
        """What somebody does through a door."""
        change = Change(self._actor, reason, self._service.clock.now)
        async with self._service.pool.acquire() as connection, connection.transaction():
            record = await lifecycle.find(connection, PROJECT, key, lock=True)
            await verb(connection, record, *arguments, change)

    async def act(self) -> None:
        """The last of what people do: it is there before any data."""
        await self.decide(lifecycle.start, "search-suggestions", reason="First look on Monday")


async def make_world(
    pool: asyncpg.Pool, redis: Redis, *, a_day: float = 1.0, steps: int = STEPS
) -> dict[Role, str]:
    """Fill a migrated database with the shop's experiments, up to now; keys of its project, by
    their roles.

    Args:
        a_day: how many units come, as a share of those of a whole world.
        steps: moments at which the controller looks; each makes an epoch of the bandit at most.
    """
    service = Service(pool, redis)
    service.clock.now = datetime.now(UTC).replace(second=0, microsecond=0) - WEEKS
    keys = await _keys(service)
    world = World(service, f"key:{key_id_of(keys['editor'])}", a_day)
    for key, definition in DEFINITIONS.items():
        await service.draft({"key": key, **definition}, PROJECT)
    waiting = _deeds(world)
    for _ in range(steps):
        while waiting and world.day >= waiting[0][0]:
            await waiting.pop(0)[1]()
        await world.live(WEEKS / steps)
    await world.act()
    await service.execute("delete from journal")  # its router is gone, and holds nothing back
    await service.execute("update lease set expires_at = '-infinity'")
    return keys


async def _keys(service: Service) -> dict[Role, str]:
    names: dict[Role, str] = {
        "client": "web shop",
        "service": "search backend",
        "analyst": "Ana Prieto",
        "editor": "Lena Vogt",
        "admin": "Operations",
    }
    made: dict[Role, str] = {}
    async with service.pool.acquire() as connection, connection.transaction():
        await store.create_project(connection, PROJECT, service.clock.now)
        for role in ROLES:
            made[role], key = new_key(
                PROJECT, role, names[role], service.clock.now, secrets.token_bytes
            )
            await store.insert_key(connection, key)
    return made


def _deeds(world: World) -> list[tuple[float, Callable[[], Awaitable[None]]]]:
    """What people do while data come, by the day of the world, in order."""
    starts = [
        (crowd.since, partial(world.decide, lifecycle.start, crowd.key, reason="Reviewed by two"))
        for crowd in CROWDS
    ]
    others = [
        (
            2.0,
            partial(
                world.decide,
                lifecycle.amend,
                "ranker-v7",
                {"hypothesis": "v7 lifts clicks without costing latency or errors"},
                reason="Say what the guardrails are for",
            ),
        ),
        (
            14.0,
            partial(
                world.decide,
                lifecycle.conclude,
                "pricing-page",
                "table",
                reason="The table wins, and nothing else moved",
            ),
        ),
    ]
    return sorted([*starts, *others], key=lambda deed: deed[0])
