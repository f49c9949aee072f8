"""Live pages: they hear of what changes, of when data stop, and of nothing that is not theirs."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import pytest

from dashboard.sessions import begin
from dashboard.streams import LATE, Beat, Live, Pace, Topic
from experiments.problems import ProblemError
from tests.running import PATIENCE, Turnout, eventually, running
from turnout.embedded import LiveServers
from turnout.serving import DRAIN_SECONDS

QUICK = Pace(look=0.02, beat=0.05, state=0.02, figures=0.3)


class Stream:
    """A stream that a browser has opened."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def block(self) -> dict[str, str]:
        """The next fields that stand together; empty at the end."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE):
            async for line in self._lines:
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = value.strip()
                elif fields:
                    break
        return fields

    async def event(self, name: str) -> dict[str, str]:
        """The next event of this name."""
        while (block := await self.block()).get("event") != name:
            assert block, "the stream has ended"
        return block


@asynccontextmanager
async def browser(turnout: Turnout, role: Any = "analyst") -> AsyncIterator[httpx.AsyncClient]:
    """A browser in which somebody has signed in."""
    async with httpx.AsyncClient(base_url=turnout.url, timeout=30) as client:
        answer = await client.post("/sign-in", data={"key": turnout.keys[role]})
        assert answer.status_code == 303
        yield client


@asynccontextmanager
async def following(client: httpx.AsyncClient, path: str, **headers: str) -> AsyncIterator[Stream]:
    """A page that follows the data."""
    async with client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        yield Stream(response)


async def test_pages_hear_of_changes_of_state_and_of_figures(turnout: Turnout) -> None:
    key = await turnout.start()
    path = f"/live?experiment={key}"

    async def enrolled() -> bool | None:
        rows = await turnout.rows(
            """select from run r join experiment x on x.id = r.experiment
               where x.project = $1 and r.enrolments > 0"""
        )
        return True if rows else None

    async with browser(turnout) as client:
        async with following(client, path) as page, following(client, "/live") as listing:
            beat = json.loads((await page.event("beat"))["data"])
            assert set(beat) == {"now", "data_until", "state"}
            started = await page.event("changed")  # a moment ago
            await listing.event("changed")
            metrics = (await turnout.client(None).get("/metrics")).text
            (line,) = [each for each in metrics.splitlines() if each.startswith("turnout_page_str")]
            assert float(line.split()[1]) >= 2
        await turnout.assign(key, "u1")
        await eventually(enrolled, "enrolment")
        async with following(client, path, **{"Last-Event-ID": started["id"]}) as page:
            figures = await page.event("changed")
            await turnout.move(key, "pause")
            paused = await page.event("changed")
    states = [event["id"].partition(".")[0] for event in (started, figures, paused)]
    assert states[0] == states[1] != states[2]
    assert started["id"] != figures["id"]


class Client:
    """A browser without a server: what it was sent; it may take nothing for a while, or leave."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.takes = asyncio.Event()
        self.takes.set()
        self.left = asyncio.Event()
        self.names: set[str] = set()
        """Of the events that came."""

    async def receive(self) -> Any:
        """ASGI: that the browser has left."""
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """ASGI: take a message."""
        await self.takes.wait()
        self.sent.put_nowait(message)

    async def event(self, name: str) -> dict[str, str]:
        """The next event of this name."""
        while True:
            async with asyncio.timeout(PATIENCE):
                body = (await self.sent.get()).get("body", b"").decode()
            fields = dict(line.split(": ", 1) for line in body.splitlines() if ": " in line)
            self.names |= {fields["event"]} if "event" in fields else set()
            if fields.get("event") == name:
                return fields


async def project_with_session(pool: asyncpg.Pool) -> tuple[Topic, bytes]:
    """A project with one experiment, and the session of somebody who looks at it."""
    now = datetime.now(UTC)
    await pool.execute("insert into project (key, created_at) values ('shop', $1)", now)
    await pool.execute(
        """insert into api_key (id, project, role, secret_hash, created_at)
           values ('k', 'shop', 'analyst', '', $1)""",
        now,
    )
    number = await pool.fetchval(
        """insert into experiment (project, key, state, revision, definition, created_at,
                                   updated_at)
           values ('shop', 'e', 'draft', 1, '{}', $1, $1) returning id""",
        now - timedelta(hours=1),
    )
    async with pool.acquire() as connection:
        assert await begin(connection, "k", now, lambda size: b"1" * size) is not None
    session = await pool.fetchval("select token_hash from page_session")
    return Topic("shop", number), session


@asynccontextmanager
async def live_on(pool: asyncpg.Pool, **options: Any) -> AsyncIterator[Live]:
    """What a process has for live pages; all of it has ended afterwards."""
    live = Live(pool, lambda: datetime.now(UTC), pace=QUICK, **options)
    task = asyncio.create_task(live.run())
    try:
        yield live
        live.close()
        async with asyncio.timeout(PATIENCE):
            while live.open:  # noqa: ASYNC110 - nothing tells that the last has gone
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Counting:
    """A pool that counts how often it is asked for a connection."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool, self.count = pool, 0

    def acquire(self, timeout: float) -> Any:
        """A connection."""
        self.count += 1
        return self._pool.acquire(timeout=timeout)


async def test_however_many_watch_postgres_is_asked_once_a_look_and_not_when_nobody_does(
    pool: asyncpg.Pool,
) -> None:
    topic, session = await project_with_session(pool)
    counting: Any = Counting(pool)
    async with live_on(counting) as live:
        await asyncio.sleep(5 * QUICK.look)
        assert counting.count == 0
        clients = [Client() for _ in range(20)]
        streams = [
            asyncio.create_task(live.serve(topic, session, None, c.receive, c.send))
            for c in clients
        ]
        await asyncio.gather(*(c.event("beat") for c in clients))
        before, began = counting.count, asyncio.get_running_loop().time()
        await asyncio.gather(*(c.event("beat") for c in clients))
        looks = (asyncio.get_running_loop().time() - began) / QUICK.look
        assert 1 <= counting.count - before <= looks + 2
        for client in clients:
            client.left.set()
        await asyncio.gather(*streams)
        await asyncio.sleep(2 * QUICK.look)
        after = counting.count
        await asyncio.sleep(5 * QUICK.look)
        assert counting.count == after


async def test_a_page_misses_nothing_while_it_is_away(pool: asyncpg.Pool) -> None:
    topic, session = await project_with_session(pool)

    async def first(live: Live, seen: str | None, name: str) -> str:
        client = Client()
        stream = asyncio.create_task(live.serve(topic, session, seen, client.receive, client.send))
        found = (await client.event(name))["id"]
        client.left.set()
        await stream
        return found

    async with live_on(pool) as live:
        known = await first(live, None, "known")
        await pool.execute("update experiment set revision = 2")
        now = await first(live, known, "changed")
        assert now != known
        client = Client()
        stream = asyncio.create_task(live.serve(topic, session, now, client.receive, client.send))
        await client.event("beat")
        await client.event("beat")
        assert client.names == {"beat"}
        live.close()
        await stream


async def test_a_stream_ends_with_its_key(pool: asyncpg.Pool) -> None:
    topic, session = await project_with_session(pool)
    client = Client()
    async with live_on(pool) as live:
        stream = asyncio.create_task(live.serve(topic, session, None, client.receive, client.send))
        await client.event("beat")
        await client.event("beat")
        await pool.execute("update api_key set revoked_at = now()")
        async with asyncio.timeout(PATIENCE):
            await stream


async def test_changes_of_figures_are_told_less_often_than_changes_of_state(
    pool: asyncpg.Pool,
) -> None:
    topic, session = await project_with_session(pool)
    client = Client()
    async with live_on(pool) as live:
        stream = asyncio.create_task(
            live.serve(topic, session, "old.old", client.receive, client.send)
        )
        await client.event("changed")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await pool.execute(
            """insert into run (experiment, number, salt, started_at, enrolments)
               values ($1, 0, 'e', now(), 1)""",
            topic.experiment,
        )
        await client.event("changed")
        figures = loop.time() - began
        await pool.execute("update run set enrolments = 2")
        await pool.execute("update experiment set revision = 2")
        began = loop.time()
        await client.event("changed")
        assert loop.time() - began < figures
        assert figures >= QUICK.figures / 2
        live.close()
        await stream


async def test_a_beat_says_whether_data_come_in(pool: asyncpg.Pool) -> None:
    topic, session = await project_with_session(pool)
    client = Client()

    async def state(wanted: str) -> Beat:
        while (found := json.loads((await client.event("beat"))["data"]))["state"] != wanted:
            pass
        return Beat(**found)

    async with live_on(pool) as live:
        stream = asyncio.create_task(live.serve(topic, session, None, client.receive, client.send))
        assert (await state("late")).data_until is None
        await pool.execute("update fold_position set watermark = now()")
        await state("flowing")
        await pool.execute("update fold_position set watermark = now() - $1::interval", LATE * 2)
        assert (await state("late")).data_until is not None
        live.close()
        await stream


async def test_one_project_cannot_take_every_place(pool: asyncpg.Pool) -> None:
    topic, session = await project_with_session(pool)
    async with live_on(pool, limit=10) as live:
        clients = [Client() for _ in range(8)]
        streams = [
            asyncio.create_task(live.serve(topic, session, None, c.receive, c.send))
            for c in clients
        ]
        await asyncio.gather(*(c.event("beat") for c in clients))
        with pytest.raises(ProblemError) as refused:
            await live.serve(topic, session, None, Client().receive, Client().send)
        assert (refused.value.type, refused.value.headers["Retry-After"]) == ("unavailable", "5")
        other = Client()
        streams.append(
            asyncio.create_task(
                live.serve(Topic("other", None), session, None, other.receive, other.send)
            )
        )
        await other.event("beat")
        live.close()
        await asyncio.gather(*streams)
        with pytest.raises(ProblemError):
            await live.serve(topic, session, None, Client().receive, Client().send)


async def test_a_browser_that_takes_nothing_is_given_up(
    pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashboard.streams.SEND_SECONDS", 0.05)
    topic, session = await project_with_session(pool)
    client = Client()
    async with live_on(pool) as live:
        stream = asyncio.create_task(live.serve(topic, session, None, client.receive, client.send))
        await client.event("beat")
        client.takes.clear()
        async with asyncio.timeout(PATIENCE):
            await stream
        assert live.open == 0


class Way:
    """A way to a Postgres that can be cut: its socket's folder under a name of ours."""

    def __init__(self, url: str) -> None:
        (folder,) = parse_qs(urlsplit(url).query)["host"]
        self._real = Path(folder)
        self._name = Path(f"/tmp/way-{os.getpid()}")  # noqa: S108 - names of sockets are short
        self.url = url.partition("?")[0] + f"?host={self._name}"
        self.mend()

    def cut(self) -> None:
        """Let nobody through who comes now."""
        self._name.unlink(missing_ok=True)

    def mend(self) -> None:
        """Let everybody through again."""
        self._name.symlink_to(self._real)


@pytest.fixture
def way(migrated_url: str) -> Iterator[Way]:
    """A way to a new database."""
    found = Way(migrated_url)
    yield found
    found.cut()


async def test_with_postgres_gone_pages_say_so_and_go_on_when_it_is_back(
    servers: LiveServers, way: Way, redis_url: str, tmp_path: Path
) -> None:
    async with httpx.AsyncClient(timeout=30) as client, AsyncExitStack() as stack:
        alone = await stack.enter_async_context(running(way.url, redis_url, tmp_path))
        client.base_url = httpx.URL(alone.url)
        key = {"key": alone.admin_key}
        assert (await client.post("/sign-in", data=key)).status_code == 303
        async with following(client, "/live") as page:
            await page.event("beat")
            way.cut()
            admin = await asyncpg.connect(servers.database_url)
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1",
                urlsplit(way.url).path.lstrip("/"),
            )
            await admin.close()
            while json.loads((await page.event("beat"))["data"])["state"] != "unavailable":
                pass
            for answer in (
                await client.get("/experiments"),
                await client.get("/sign-in"),
                await client.post("/sign-in", data=key),
            ):
                assert answer.status_code == 503
                assert answer.headers["retry-after"].isdigit()
                assert "The database does not answer" in answer.text
                assert "Services still get their variants" in answer.text
                assert answer.headers["x-request-id"] in answer.text
            way.mend()
            while json.loads((await page.event("beat"))["data"])["state"] == "unavailable":
                pass

            async def is_back() -> bool | None:
                return True if (await client.get("/experiments")).is_success else None

            await eventually(is_back, "list of experiments")
            # A Turnout that stops ends the streams of open pages, and does not wait for them.
            stopping = asyncio.create_task(stack.aclose())
            async with asyncio.timeout(DRAIN_SECONDS / 2):
                while await page.block():
                    pass
            await stopping
