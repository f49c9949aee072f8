"""Streams of news: server-sent events that tell clients to evaluate again (OFREP 0.3, ADR-0008).

    retry: 1700                       how many ms to wait before coming back
    id: 41                            the version that the client has

    event: message
    id: 42
    data: {"type":"refetchEvaluation","etag":"42"}

The id of an event is the project's version, which all routers agree on: whichever a client comes
back to knows from `Last-Event-ID` whether it has missed anything. Only the newest version matters,
so nothing is queued: a stream that was slow to take one event skips to the newest.

A browser's EventSource sends no headers of its own, so a stream is opened with a ticket in its
address. A ticket is made of a key and ends by itself; every router can check it without asking.
"""

import asyncio
import base64
import hmac
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Final

import msgspec
from litestar.types import Receive, Send
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from experiments.doors import Clock, KeyRing
from experiments.keys import ApiKey
from experiments.problems import ProblemError
from router.refresher import Refresher

PATH: Final = "/ofrep/v1/events"
TICKET_SECONDS: Final = 6 * 3600
"""A ticket opens streams for between one and two of these spans. All that a key is given within a
span are the same: a client that gets an address which it knows keeps its stream."""
MAX_STREAMS: Final = 500
"""Streams of one process: each is a connection, and a process may commonly have 1,024 files."""
SHARE: Final = 4
"""A project may have as many times the places that are left: alone it gets four fifths of all, and
however many want more than there is, some are left for who comes next (dynamic thresholds:
Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998)."""
HEARTBEAT_SECONDS: Final = 15.0
SEND_SECONDS: Final = 5.0
"""How long a client may take nothing before its stream is given up."""
RETRY_AFTER_SECONDS: Final = 5

_SPREAD_SECONDS: Final = 0.0005
_LONGEST_SPREAD: Final = 1.0
_RETRY_MS: Final = (1000, 3000)
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would keep events until it has a buffer full
]
_COMMENT: Final = b":\n\n"


class News(msgspec.Struct, frozen=True):
    """What an event says: evaluate again, for the project has this version now."""

    etag: str
    type: str = "refetchEvaluation"


def address(key: ApiKey, version: int, now: datetime) -> str:
    """Where a client that was answered from this version hears of later ones: path and query. It is
    a secret, as a key is: not to be logged."""
    return f"{PATH}?token={new_ticket(key, now)}&since={version}"


def new_ticket(key: ApiKey, now: datetime) -> str:
    """A ticket of a key: its id, when the ticket ends (Unix time), and the seal on both."""
    ends = (int(now.timestamp()) // TICKET_SECONDS + 2) * TICKET_SECONDS
    return f"{key.id}.{ends}.{_seal(key, ends)}"


def check_ticket(text: str, keys: KeyRing, now: datetime) -> ApiKey | None:
    """The key that a ticket was made of, or None where ticket or key are no longer good."""
    parts = text.split(".")
    if len(parts) != 3 or not (parts[1].isascii() and parts[1].isdigit() and len(parts[1]) <= 12):
        return None
    key, ends = keys.find_key(parts[0]), int(parts[1])
    if key is None or ends <= now.timestamp() or not is_live(key, now):
        return None
    sealed = hmac.compare_digest(parts[2].encode("utf-8", "replace"), _seal(key, ends).encode())
    return key if sealed else None


def is_live(key: ApiKey, now: datetime) -> bool:
    """Whether a key that was not revoked still lets its holder evaluate."""
    return not key.has_expired(now) and "evaluate" in key.permissions


def _seal(key: ApiKey, ends: int) -> str:
    text = f"turnout.events\0{key.id}.{ends}".encode()
    digest = hmac.digest(key.secret_hash, text, "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


class Streams:
    """The streams of a process."""

    def __init__(
        self,
        refresher: Refresher,
        clock: Clock,
        limit: int = MAX_STREAMS,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        """`heartbeat` is how many seconds a stream is silent at most."""
        self._refresher = refresher
        self._clock = clock
        self._limit = limit
        self._heartbeat = heartbeat
        self._begun = 0
        self._open_of: Counter[str] = Counter()
        self._closing = False
        self._leaving: set[asyncio.Task[None]] = set()
        """One for each stream; it is done when the client has gone, or has to go."""

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._leaving)

    def close(self) -> None:
        """End all streams, and begin none any more: the process is about to stop."""
        self._closing = True
        for leaving in self._leaving:
            leaving.cancel()

    async def serve(self, key: ApiKey, seen: int | None, receive: Receive, send: Send) -> None:
        """Answer a request with a stream, until the client leaves, its key ends or the process
        stops.

        Args:
            seen: the version that the client knows, None if it cannot say.

        Raises:
            ProblemError: `unavailable` where there are too many, of all projects or of this one;
                nothing was sent then.
        """
        left = self._limit - self.open
        if self._closing or self._open_of[key.project] >= SHARE * left:
            raise ProblemError(
                "unavailable",
                "This process takes no further event streams; poll, or try another",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        leaving = asyncio.create_task(_gone(receive))
        self._leaving.add(leaving)
        self._open_of[key.project] += 1
        self._begun += 1
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await self._tell(key, seen, self._begun, leaving, send)
            await _write(send, b"", more=False)
        except TimeoutError:  # it takes nothing, so there is nobody to say goodbye to
            return
        finally:
            self._leaving.discard(leaving)
            self._open_of -= Counter([key.project])  # which forgets what is 0
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    async def _tell(
        self, key: ApiKey, known: int | None, place: int, leaving: asyncio.Task[None], send: Send
    ) -> None:
        seen = -1 if known is None else known
        least, most = _RETRY_MS
        # Those who lose their streams at once do not come back at once.
        retry = least + place * 7919 % (most - least)
        first = "" if known is None else f"id: {seen}\n"
        await _write(send, f"retry: {retry}\n{first}\n".encode())
        silent = False
        while not leaving.done() and not self._closing:
            kept = self._refresher.find_key(key.id)
            if kept is None or not is_live(kept, self._clock()):
                return
            version = self._refresher.current.projects[key.project].version
            # A client that knows more comes from a router that was quicker. It is told nothing
            # until this one has caught up, or a while later, since a restored database counts anew.
            if version > seen or (silent and version != seen):
                await _write(send, _event(version))
                seen = version
            elif silent:
                await _write(send, _COMMENT)
            silent = await self._silence(kept, version, leaving)
            if not silent and (share := place % max(self.open, 1)):
                # All who hear of a change will ask at once: some of them shall do so a bit later.
                pause = min(share * _SPREAD_SECONDS, _LONGEST_SPREAD)
                await asyncio.wait({leaving}, timeout=pause)

    async def _silence(self, key: ApiKey, version: int, leaving: asyncio.Task[None]) -> bool:
        """Wait for another version, or for the end of the key; whether there was none for as long
        as a stream is silent."""
        news = asyncio.create_task(self._refresher.changed(key.project, version))
        patience = self._heartbeat
        if key.expires_at is not None:
            left = (key.expires_at - self._clock()).total_seconds()
            patience = min(patience, max(left, 0.0))
        try:
            done, _ = await asyncio.wait(
                {news, leaving}, timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            news.cancel()
            await asyncio.gather(news, return_exceptions=True)
        return not done


class StreamCollector(Collector):
    """How many streams there are, read when Prometheus asks."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        """The metric as it is now."""
        yield GaugeMetricFamily(
            "turnout_event_streams", "Event streams that are open", value=float(self._streams.open)
        )


def _event(version: int) -> bytes:
    news = msgspec.json.encode(News(str(version)))
    return b"event: message\nid: %d\ndata: %b\n\n" % (version, news)


async def _write(send: Send, data: bytes, *, more: bool = True) -> None:
    # Where the client takes nothing, the server keeps a buffer and then lets us wait.
    async with asyncio.timeout(SEND_SECONDS):
        await send({"type": "http.response.body", "body": data, "more_body": more})


async def _gone(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
