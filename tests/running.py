"""A whole Turnout for tests, in this process: doors, journal, shipper, controller, on a free port.

One runs for all tests of a worker; each test has a project of its own in it, with a key for every
role, so that no test meets what another left. `running` starts another where a test needs its own.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import msgspec
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from experiments import store
from experiments.announce import announce
from experiments.keys import ROLES, Role, new_key
from turnout.embedded import LiveServers
from turnout.service import run
from turnout.settings import Settings

T = TypeVar("T")
PATIENCE: Final = 60.0  # a bound, not a wait: machines that run tests may be busy
_numbers = count(1)


async def eventually(probe: Callable[[], Awaitable[T | None]], what: str) -> T:
    """What a probe finds, asked again and again until it finds something."""
    try:
        async with asyncio.timeout(PATIENCE):
            while (found := await probe()) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the other side sets no event that we could wait for
            return found
    except TimeoutError:
        raise AssertionError(f"in {PATIENCE} s there was no {what}") from None


def readings_of(report: Any) -> Any:
    """The metrics of a report but for the verdicts, which forecast from the time that passed."""
    return [
        metric | {"comparisons": [c | {"verdict": None} for c in metric["comparisons"]]}
        for metric in report["metrics"]
    ]


def definition(**changes: Any) -> dict[str, Any]:
    """A sound definition under a key that no other has, with these fields changed."""
    return {
        "key": f"experiment-{next(_numbers)}",
        "variants": [
            {"key": "old", "control": True, "weight": 0.5, "value": {"model": "ranker/6"}},
            {"key": "new", "weight": 0.5, "value": {"model": "ranker/7"}},
        ],
        "metrics": [
            {"key": "click", "role": "primary", "kind": "proportion", "event": "click"}
            | {"window": "1d"},
        ],
        **changes,
    }


def problem(answer: httpx.Response, status: int, kind: str) -> list[tuple[str, str]]:
    """The wrong fields, as (path, type), of an answer that is this problem (RFC 9457)."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["type"], body["status"]) == (kind, status)
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return [(error["path"], error["type"]) for error in body.get("errors", [])]


class Running(msgspec.Struct, frozen=True):
    """A Turnout that runs: where it serves, and every line that it told its operator."""

    url: str
    announced: tuple[str, ...]

    @property
    def admin_key(self) -> str:
        """The admin key, which the first start on a database tells."""
        return self.announced[0].rpartition(" ")[2]


@contextlib.asynccontextmanager
async def running(
    database_url: str, redis_url: str, data_dir: Path, **settings: Any
) -> AsyncIterator[Running]:
    """Run a Turnout in this process on a free port, and stop it in order."""
    quick = {"tick": "250ms", "lateness": "100ms", "ship_every": "50ms", "snapshot_poll": "500ms"}
    quick["sticky_timeout"] = "2s"  # a busy machine must not turn answers into those by the slot
    chosen = Settings(
        database_url=database_url,
        redis_url=redis_url,
        data_dir=str(data_dir),
        port=0,
        **{**quick, **settings},
    )
    lines: list[str] = []
    serves, stop = asyncio.Event(), asyncio.Event()

    def hear(line: str) -> None:
        lines.append(line)
        if "serves on" in line:
            serves.set()

    service = asyncio.create_task(run(chosen, hear, stop))
    heard = asyncio.create_task(serves.wait())
    await asyncio.wait([service, heard], return_when=asyncio.FIRST_COMPLETED)
    heard.cancel()
    if service.done():
        service.result()
    try:
        yield Running(lines[-1].rpartition(" ")[2], tuple(lines))
    finally:
        stop.set()
        await service


class Host(msgspec.Struct, frozen=True):
    """The Turnout that the tests of a worker share, and the servers behind it."""

    url: str
    pool: store.Pool
    redis: Redis

    async def make_key(self, project: str, role: Role, life: timedelta | None = None) -> str:
        """The text of a new key, made as `turnout keys create` does; the project is made with it.
        The service may not have heard of it yet."""
        now = datetime.now(UTC)
        expires_at = None if life is None else now + life
        text, key = new_key(project, role, "for a test", now, secrets.token_bytes, expires_at)
        async with self.pool.acquire() as connection, connection.transaction():
            await store.create_project(connection, project, now)
            await store.insert_key(connection, key)
        await announce(self.redis, project)
        return text


class Turnout:
    """A running Turnout as one project sees it."""

    def __init__(self, host: Host, project: str, keys: Mapping[Role, str]) -> None:
        self.host = host
        self.project = project
        self.keys = keys
        self._clients: dict[Role | None, httpx.AsyncClient] = {}

    @property
    def url(self) -> str:
        """Where it serves."""
        return self.host.url

    def client(self, role: Role | None) -> httpx.AsyncClient:
        """An HTTP client that has this project's key of a role, or none."""
        if role not in self._clients:
            headers = {} if role is None else {"Authorization": f"Bearer {self.keys[role]}"}
            self._clients[role] = httpx.AsyncClient(
                base_url=self.url,
                headers=headers,
                timeout=30,
                verify=False,  # noqa: S501
            )
        return self._clients[role]

    async def define(self, **changes: Any) -> str:
        """Create a draft; its key."""
        answer = await self.client("editor").post("/v1/experiments", json=definition(**changes))
        assert answer.status_code == 201, answer.text
        key: str = answer.json()["key"]
        return key

    async def start(self, **changes: Any) -> str:
        """Create and start an experiment, and wait until units can be assigned; its key."""
        key = await self.define(**changes)
        await self.move(key, "start")
        return key

    async def move(self, key: str, verb: str, **body: Any) -> dict[str, Any]:
        """Move an experiment to another state, and wait until the router knows."""
        answer = await self.client("editor").post(
            f"/v1/experiments/{key}/{verb}", json={"reason": "a test", **body}
        )
        assert answer.status_code == 200, answer.text
        view: dict[str, Any] = answer.json()
        if view["state"] == "archived":
            await self.wait_for_assignable(key, status=404)
        else:
            await self.wait_for_assignable(key, epoch=view["epoch"])
        return view

    async def allocate(self, key: str, **change: Any) -> dict[str, Any]:
        """Set weights or traffic, and wait until the router knows."""
        answer = await self.client("editor").put(
            f"/v1/experiments/{key}/allocation", json={"reason": "a test", **change}
        )
        assert answer.status_code == 200, answer.text
        view: dict[str, Any] = answer.json()
        await self.wait_for_assignable(key, epoch=view["epoch"])
        return view

    async def put(self, path: str, **body: Any) -> dict[str, Any]:
        """Set something of the project, a layer or its holdout; what it is then."""
        answer = await self.client("editor").put(path, json=body)
        assert answer.is_success, answer.text
        view: dict[str, Any] = answer.json()
        return view

    async def override(self, key: str, variant: str, **who: Any) -> int:
        """Give somebody a variant, and wait until the router does; the override's id."""
        body = {"reason": "to try it", "variant": variant, **who}
        answer = await self.client("editor").post(f"/v1/experiments/{key}/overrides", json=body)
        assert answer.status_code == 201, answer.text
        attributes = {who["attribute"]: who["value"]} if "attribute" in who else {}

        async def in_force() -> bool | None:
            unit = who.get("unit", "anybody")
            given = await self.assign(key, unit, expose=False, attributes=attributes)
            return True if given["reason"] == "override" else None

        await eventually(in_force, "override")
        number: int = answer.json()["id"]
        return number

    async def wait_for_assignable(self, key: str, status: int = 200, epoch: int = 1) -> None:
        """Wait until the router answers for an experiment, from this epoch on."""

        async def answers() -> bool | None:
            answer = await self.client("service").post(
                "/v1/assign", json={"experiment": key, "unit": "probe", "expose": False}
            )
            known = status != 200 or answer.json().get("epoch", 0) >= epoch
            return True if answer.status_code == status and known else None

        await eventually(answers, f"{status} for {key}, epoch {epoch}")

    async def assign(self, key: str, unit: str, **more: Any) -> dict[str, Any]:
        """What the router answers for a unit."""
        answer = await self.client("service").post(
            "/v1/assign", json={"experiment": key, "unit": unit, **more}
        )
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Rows in Postgres; in the query $1 is the project."""
        rows: list[asyncpg.Record] = await self.host.pool.fetch(query, self.project, *arguments)
        return rows

    async def shipped(self, table: str, number: int) -> list[asyncpg.Record]:
        """This project's rows of `exposure` or `outcome`, once there are so many."""
        query = f"select * from {table} where project = $1 order by segment"  # noqa: S608

        async def enough() -> list[asyncpg.Record] | None:
            rows = await self.rows(query)
            return rows if len(rows) >= number else None

        return await eventually(enough, f"{number} rows in {table}")

    async def close(self) -> None:
        """Close the clients, and put all experiments away, so that they cost no time."""
        for client in self._clients.values():
            await client.aclose()
        async with self.host.pool.acquire() as connection, connection.transaction():
            await store.enter_alone(connection, self.project)  # for it changes several at once
            await connection.execute(
                "update experiment set state = 'archived' where project = $1", self.project
            )


@pytest_asyncio.fixture(scope="session")
async def host(
    servers: LiveServers, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Host]:
    """A Turnout for all tests of this process, on a database of its own."""
    name = f"shared_{os.getpid()}"
    admin = await asyncpg.connect(servers.database_url)
    try:
        await admin.execute(f'create database "{name}" template template0')
    finally:
        await admin.close()
    database_url = urlunsplit(urlsplit(servers.database_url)._replace(path=f"/{name}"))
    folder = tmp_path_factory.mktemp("turnout")
    async with (
        running(database_url, servers.redis_url, folder) as turnout,
        asyncpg.create_pool(database_url, min_size=1, max_size=3) as pool,
        Redis.from_url(servers.redis_url) as redis,
    ):
        yield Host(turnout.url, pool, redis)


@contextlib.asynccontextmanager
async def project_of(host: Host) -> AsyncIterator[Turnout]:
    """A new project in a running Turnout."""
    project = f"project-{next(_numbers)}"
    turnout = Turnout(host, project, {role: await host.make_key(project, role) for role in ROLES})

    async def knows_the_last_key() -> bool | None:
        answer = await turnout.client(ROLES[-1]).get("/v1/keys")
        return True if answer.status_code == 200 else None

    try:
        await eventually(knows_the_last_key, "use for new keys")
        yield turnout
    finally:
        await turnout.close()


@pytest_asyncio.fixture
async def turnout(host: Host) -> AsyncIterator[Turnout]:
    """A project of its own in a running Turnout, with a key for every role."""
    async with project_of(host) as project:
        yield project


@pytest_asyncio.fixture
async def stranger(host: Host) -> AsyncIterator[Turnout]:
    """Another project in the same Turnout."""
    async with project_of(host) as project:
        yield project
