"""Pages that follow the data: server-sent events that say when a page has to be read again.

    retry: 1700                       how many ms to wait before coming back

    event: known                      the version that the page has, as far as we know
    id: 5b2e….09af…
    data: {}

    event: changed
    id: 5b2e….7c41…
    data: {}

    event: beat
    data: {"now":"2026-03-01T12:00:05Z","data_until":"2026-03-01T12:00:04Z","state":"flowing"}

The id of an event is a hash of what a page is made from, so every process gives the same: whichever
a browser comes back to knows from `Last-Event-ID` (or `seen=` in the address) whether it has missed
anything. Only the newest version matters, so nothing is queued. A beat comes every few seconds, and
as soon as its state is another.

One task of a process asks Postgres for all that is watched, once a second and with three queries at
most, however many watch, and not at all when nobody does. It reads rows by their keys: what an
experiment is, its latest decision, how far the fold and the chronicle have come. That a fold wrote
other sums is seen by the transaction that wrote their row (`xmin`), without reading them. For a
list it is a row for each experiment of the project.
"""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple, TypeAlias

import asyncpg
import msgspec
from litestar.types import Receive, Send
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dashboard import sessions
from experiments import store
from experiments.doors import Clock
from experiments.problems import ProblemError
from experiments.store import Connection

MAX_STREAMS: Final = 200
"""Streams of one process, beside those of OFREP: each is a connection."""
SHARE: Final = 4
"""A project may have as many times the places that are left, as for the streams of OFREP."""
SEND_SECONDS: Final = 5.0
"""How long a browser may take nothing before its stream is given up."""
LOOK_SECONDS: Final = 2.0
"""How long a look at Postgres may wait for it, before pages say that it does not answer."""
LATE: Final = timedelta(seconds=30)
"""What the figures contain is this far behind: no new data come in."""
RETRY_AFTER_SECONDS: Final = 5

_FRESH: Final = timedelta(seconds=10)
_RETRY_MS: Final = (1000, 3000)
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-accel-buffering", b"no"),  # nginx would keep events until it has a buffer full
]

_EXPERIMENTS: Final = """
    select x.id, greatest(x.updated_at, d.at) as changed_at,
           concat_ws(',', x.version, x.revision, x.epoch, x.updated_at, d.id,
                     (select max(number) from report_snapshot where experiment = x.id)) as state,
           concat_ws(',', r.enrolments, c.last_at,
                     (select string_agg(concat_ws('.', t.metric, t.block, t.xmin), ','
                                        order by t.metric, t.block)
                      from run_metric m join metric_total t on t.metric = m.id
                      where m.experiment = x.id and m.run = x.run and t.segment = 0)) as figures
    from experiment x
    left join lateral (select id, at from decision where experiment = x.id
                       order by id desc limit 1) d on true
    left join run r on r.experiment = x.id and r.number = x.run
    left join course c on c.experiment = x.id and c.run = x.run
    where x.id = any($1)
"""
_PROJECTS: Final = """
    select x.project, max(x.updated_at) as changed_at,
           concat_ws(',', count(*), max(x.version), max(x.updated_at)) as state,
           concat_ws(',', max(g.at)) as figures
    from experiment x left join glance g on g.experiment = x.id
    where x.project = any($1) group by x.project
"""
_WATERMARK: Final = "select nullif(watermark, '-infinity') from fold_position"

logger = logging.getLogger(__name__)

Flow: TypeAlias = Literal["flowing", "late", "unavailable"]


class Pace(msgspec.Struct, frozen=True):
    """How often things happen, in seconds."""

    look: float = 1.0
    """Between two looks at Postgres."""
    beat: float = 5.0
    """Between two beats of a stream."""
    state: float = 2.0
    """At least between two words of changes, so that what comes at once is told once."""
    figures: float = 5.0
    """At least before a word of a change that is of figures only, which change all the time."""


class Beat(msgspec.Struct, frozen=True):
    """What a stream says to show that it lives.

    `data_until` is the time up to which all data are in the figures. `state` says whether they come
    in: they are `late` where that is long ago, and nothing is known where Postgres is
    `unavailable`.
    """

    now: datetime
    data_until: datetime | None
    state: Flow


class Topic(NamedTuple):
    """What a page shows: an experiment, or, where that is None, all of a project."""

    project: str
    experiment: int | None


class Version(NamedTuple):
    """What a page is made from, by hashes: the state of things, and the figures."""

    state: str
    figures: str

    @property
    def id(self) -> str:
        """As the id of an event."""
        return f"{self.state}.{self.figures}"


class Seen(msgspec.Struct, frozen=True):
    """A topic as it was found last; `changed_at` is when its state changed."""

    version: Version
    changed_at: datetime


class _Stream:
    """A stream, and whether it has to end."""

    __slots__ = ("ends_at", "leaving", "session", "topic")

    def __init__(
        self, topic: Topic, session: bytes, ends_at: datetime | None, leaving: asyncio.Task[None]
    ) -> None:
        self.topic, self.session, self.ends_at, self.leaving = topic, session, ends_at, leaving


class Live:
    """The live pages of a process."""

    def __init__(
        self, pool: store.Pool, clock: Clock, limit: int = MAX_STREAMS, pace: Pace | None = None
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._limit = limit
        self._pace = pace or Pace()
        self._streams: set[_Stream] = set()
        self._open_of: Counter[str] = Counter()
        self._begun = 0
        self._closing = False
        self._watched = asyncio.Event()
        self._looked = asyncio.Event()
        """Replaced with every look, after it was set."""
        self._seen: dict[Topic, Seen] = {}
        self._data_until: datetime | None = None
        self._answers: bool | None = None
        """Whether Postgres answered the last look; None before the first."""

    @property
    def open(self) -> int:
        """How many streams there are."""
        return len(self._streams)

    def close(self) -> None:
        """End all streams, and begin none any more: the process is about to stop."""
        self._closing = True
        for stream in self._streams:
            stream.leaving.cancel()

    async def run(self) -> None:
        """Look at what is watched, as long as somebody watches, until cancelled."""
        loop = asyncio.get_running_loop()
        sessions_at = 0.0
        while True:
            if not self._watched.is_set():
                self._answers = None  # what is known grows old
            await self._watched.wait()
            try:
                # The limit of the acquiring is that of giving back, too, which waits for Postgres.
                async with (
                    self._pool.acquire(timeout=LOOK_SECONDS) as database,
                    asyncio.timeout(LOOK_SECONDS),
                ):
                    await self._look(database)
                    if loop.time() >= sessions_at:
                        sessions_at = loop.time() + self._pace.beat
                        await self._end_sessions(database)
                self._answers = True
            except (OSError, TimeoutError, *store.PostgresError) as error:
                if self._answers is not False:
                    logger.warning("live pages stand still", extra={"error": error})
                self._answers = False
            except Exception:  # whatever it is: pages that do not move must say so
                logger.exception("live pages stand still")
                self._answers = False
            looked, self._looked = self._looked, asyncio.Event()
            looked.set()
            await asyncio.sleep(self._pace.look)

    async def serve(
        self,
        topic: Topic,
        session: bytes,
        seen: str | None,
        receive: Receive,
        send: Send,
        ends_at: datetime | None = None,
    ) -> None:
        """Answer a request with a stream, until the browser leaves, its session ends or the process
        stops.

        Args:
            session: the digest of the session's token.
            seen: the id of the last event that the browser knows, None if it knows none.
            ends_at: when the session ends, whether Postgres can be asked about it then or not.

        Raises:
            ProblemError: `unavailable` where there are too many, of all projects or of this one;
                nothing was sent then.
        """
        left = self._limit - self.open
        if self._closing or self._open_of[topic.project] >= SHARE * left:
            raise ProblemError(
                "unavailable",
                "This process has no place for another live page: it still shows what is known"
                " when it is loaded",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        stream = _Stream(topic, session, ends_at, asyncio.create_task(_gone(receive)))
        self._streams.add(stream)
        self._open_of[topic.project] += 1
        self._begun += 1
        self._watched.set()
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await self._tell(stream, seen, send)
            await _write(send, b"", more=False)
        except TimeoutError:  # it takes nothing, so there is nobody to say goodbye to
            return
        finally:
            self._streams.discard(stream)
            self._open_of -= Counter([topic.project])  # which forgets what is 0
            if all(other.topic != topic for other in self._streams):
                self._seen.pop(topic, None)
            if not self._streams:
                self._watched.clear()
            stream.leaving.cancel()
            await asyncio.gather(stream.leaving, return_exceptions=True)

    async def _tell(self, stream: _Stream, seen: str | None, send: Send) -> None:
        loop = asyncio.get_running_loop()
        least, most = _RETRY_MS
        # Those who lose their streams at once do not come back at once.
        await _write(send, b"retry: %d\n\n" % (least + self._begun * 7919 % (most - least)))
        while self._answers is None and not self._ends(stream):
            await _first_of(self._looked, stream.leaving, self._pace.beat)
        told = seen
        flow: Flow | None = None
        told_at, beat_at = -self._pace.figures, loop.time()
        while not self._ends(stream):
            looked, now = self._looked, loop.time()
            found = self._seen.get(stream.topic) if self._answers else None
            if found is not None and told is None:
                # The page was made a moment ago. What changed in that moment it may lack.
                told = found.version.id
                is_new = self._clock() - found.changed_at < _FRESH
                await _write(send, _event("changed" if is_new else "known", b"{}", told))
            elif found is not None and told is not None and found.version.id != told:
                waits = self._pace.figures
                if found.version.state != told.partition(".")[0]:
                    waits = self._pace.state
                if now - told_at >= waits:
                    told, told_at = found.version.id, now
                    await _write(send, _event("changed", b"{}", told))
            beat = self._beat()
            if now >= beat_at or beat.state != flow:
                beat_at, flow = now + self._pace.beat, beat.state
                await _write(send, _event("beat", msgspec.json.encode(beat)))
            await _first_of(looked, stream.leaving, max(beat_at - loop.time(), 0.0))

    def _ends(self, stream: _Stream) -> bool:
        is_over = stream.ends_at is not None and stream.ends_at <= self._clock()
        return self._closing or is_over or stream.leaving.done()

    def _beat(self) -> Beat:
        now = self._clock()
        if not self._answers:
            return Beat(now, self._data_until, "unavailable")
        is_late = self._data_until is None or now - self._data_until > LATE
        return Beat(now, self._data_until, "late" if is_late else "flowing")

    async def _look(self, database: Connection) -> None:
        topics = {stream.topic for stream in self._streams}
        experiments = {t.experiment: t for t in topics if t.experiment is not None}
        projects = {t.project: t for t in topics if t.experiment is None}
        found: dict[Topic, Seen] = {}
        if experiments:
            rows = await database.fetch(_EXPERIMENTS, list(experiments))
            found |= {experiments[row["id"]]: _seen(row) for row in rows}
        if projects:
            rows = await database.fetch(_PROJECTS, list(projects))
            found |= {projects[row["project"]]: _seen(row) for row in rows}
        self._data_until = await database.fetchval(_WATERMARK)
        self._seen = found

    async def _end_sessions(self, database: Connection) -> None:
        """End the streams whose session has ended, or the key of it."""
        digests = {stream.session for stream in self._streams}
        alive = await sessions.alive(database, digests, self._clock())
        for stream in self._streams:
            if stream.session in digests - alive:
                stream.leaving.cancel()


class LiveCollector(Collector):
    """How many streams there are, read when Prometheus asks."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def collect(self) -> Iterator[Metric]:
        """The metric as it is now."""
        yield GaugeMetricFamily(
            "turnout_page_streams",
            "Pages in browsers that follow the data",
            value=float(self._live.open),
        )


def _seen(row: asyncpg.Record) -> Seen:
    return Seen(Version(_hash(row["state"]), _hash(row["figures"])), row["changed_at"])


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _event(name: str, data: bytes, version: str = "") -> bytes:
    known = f"id: {version}\n" if version else ""
    return f"event: {name}\n{known}data: ".encode() + data + b"\n\n"


async def _first_of(looked: asyncio.Event, leaving: asyncio.Task[None], seconds: float) -> None:
    """Wait for the next look, for the end, or for so long."""
    news = asyncio.create_task(looked.wait())
    try:
        await asyncio.wait({news, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        news.cancel()
        await asyncio.gather(news, return_exceptions=True)


async def _write(send: Send, data: bytes, *, more: bool = True) -> None:
    # Where the browser takes nothing, the server keeps a buffer and then lets us wait.
    async with asyncio.timeout(SEND_SECONDS):
        await send({"type": "http.response.body", "body": data, "more_body": more})


async def _gone(receive: Receive) -> None:
    """Wait until the browser leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
