"""What the audit and the list of keys tell of the use of keys."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest_asyncio

from experiments import store
from experiments.doors import Gate
from experiments.key_uses import Happened, Noted, UsesKeeper
from experiments.keys import ApiKey, new_key
from experiments.problems import ProblemError
from tests.running import Turnout, eventually

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Scene:
    """A gate before a project's keys, and the keeper of what it counts."""

    def __init__(self, turnout: Turnout) -> None:
        self.turnout = turnout
        self.pool = turnout.host.pool
        self.now = NOW
        self.keys: dict[str, ApiKey] = {}
        self.gate = Gate(self, lambda: self.now)
        self.keeper = self.another_keeper(self.gate)

    def another_keeper(self, gate: Gate) -> UsesKeeper:
        """That of another process."""
        return UsesKeeper(self.pool, gate.uses, gate.used, lambda: self.now)

    def find_key(self, key_id: str) -> ApiKey | None:
        """The live key of this id, or None."""
        return self.keys.get(key_id)

    async def make(self) -> str:
        """A new key, which the gate knows; its text."""
        text, key = new_key(
            self.turnout.project,
            "service",
            "",
            self.now,
            random.randbytes,
            created_by="command:ann",
        )
        async with self.pool.acquire() as connection, connection.transaction():
            await store.insert_key(connection, key)
        self.keys[key.id] = key
        return text

    def refused(self, text: str, times: int = 1) -> None:
        """Come with a key that may not write."""
        for _ in range(times):
            try:
                self.gate.admit(text, "write")
            except ProblemError:
                continue
            raise AssertionError("it was let in")

    async def told(self, key_id: str) -> list[tuple[str, str, int]]:
        """Action, actor and count of what the audit has of a key."""
        rows = await self.turnout.rows(
            """select action, actor, detail from audit
               where project = $1 and target = $2 and kind = 'key' order by number""",
            f"keys/{key_id}",
        )
        return [
            (row["action"], row["actor"], msgspec.json.decode(row["detail"])["count"])
            for row in rows
        ]

    async def last_used(self, key_id: str) -> datetime | None:
        """When the list of keys says that a key was used."""
        [row] = await self.turnout.rows(
            "select last_used_at from api_key where project = $1 and id = $2", key_id
        )
        at: datetime | None = row["last_used_at"]
        return at


@pytest_asyncio.fixture
async def scene(turnout: Turnout) -> AsyncIterator[Scene]:
    """A gate of our own, on a clock that tests move."""
    yield Scene(turnout)


def id_of(text: str) -> str:
    """The id in the text of a key."""
    return text.split("_")[1]


async def test_the_first_use_is_told_once_however_many_processes_see_it(scene: Scene) -> None:
    text = await scene.make()
    another = Gate(scene, lambda: scene.now)
    keepers = [scene.keeper, scene.another_keeper(another)]
    for _ in range(3):
        for gate in (scene.gate, another):
            gate.admit(text, "record")
        for keeper in keepers:
            await keeper.flush()
        scene.now += 2 * 60 * SECOND
    key_id = id_of(text)
    assert await scene.told(key_id) == [("key.first_use", f"key:{key_id}", 1)]
    assert await scene.last_used(key_id) == NOW + 4 * 60 * SECOND


async def test_the_last_use_is_written_once_a_minute(scene: Scene) -> None:
    text = await scene.make()
    seen = []
    for _ in range(4):
        scene.gate.admit(text, "record")
        await scene.keeper.flush()
        seen.append(await scene.last_used(id_of(text)))
        scene.now += 25 * SECOND
    assert seen == [NOW, NOW, NOW, NOW + 75 * SECOND]


async def test_refusals_are_told_at_once_and_then_together_by_the_minute(scene: Scene) -> None:
    text = await scene.make()
    key_id = id_of(text)
    scene.refused(text, 2)
    await scene.keeper.flush()
    first = ("key.refused", f"key:{key_id}", 2)
    assert first in await scene.told(key_id)
    for _ in range(10):
        scene.now += 5 * SECOND
        scene.refused(text, 7)
        await scene.keeper.flush()
    scene.now += 15 * SECOND
    await scene.keeper.flush()
    told = await scene.told(key_id)
    assert [entry for entry in told if entry[0] == "key.refused"] == [first, (*first[:2], 70)]


async def test_a_revoked_key_is_known_by_its_secret_though_no_router_has_it(scene: Scene) -> None:
    text = await scene.make()
    key_id = id_of(text)
    async with scene.pool.acquire() as connection, connection.transaction():
        assert await store.revoke_key(connection, scene.turnout.project, key_id, NOW)
    del scene.keys[key_id]
    scene.refused(text, 2)
    scene.refused(f"to_{key_id}_guess")
    scene.refused("to_000000000000_guess")
    await scene.keeper.flush()
    assert sorted(await scene.told(key_id)) == [
        ("key.used_after_revocation", f"key:{key_id}", 2),
        ("key.wrong_secret", "system", 1),
    ]
    assert scene.gate.uses.refusals["unknown_key"] == 4
    assert await scene.last_used(key_id) is None, "to knock is no use"


async def test_while_postgres_is_away_the_counting_goes_on(scene: Scene) -> None:
    text = await scene.make()
    key_id = id_of(text)
    async with asyncpg.create_pool(
        "postgresql://nobody@127.0.0.1:1/none", min_size=0, timeout=1
    ) as nobody:
        away = UsesKeeper(nobody, scene.gate.uses, scene.gate.used, lambda: NOW)
        for _ in range(3):
            scene.refused(text)
            try:
                await away.flush()
            except OSError:
                continue
            raise AssertionError("nobody answers there")
    await scene.keeper.flush()
    assert sorted(await scene.told(key_id)) == [
        ("key.first_use", f"key:{key_id}", 1),
        ("key.refused", f"key:{key_id}", 3),
    ]
    assert await scene.last_used(key_id) == NOW


async def test_a_process_that_stops_tells_what_it_has_counted(scene: Scene) -> None:
    key_id = id_of(await scene.make())
    for count in (1, 2):
        scene.gate.uses.note(Happened(key_id, "rate_limited"), Noted(count, NOW, NOW))
        await scene.keeper.flush(everything=count == 2)
    assert [entry[2] for entry in await scene.told(key_id)] == [1, 2]


async def test_the_list_of_keys_tells_who_made_them_and_when_they_were_used(
    turnout: Turnout,
) -> None:
    admin = turnout.client("admin")
    maker = turnout.keys["admin"].split("_")[1]
    wanted = {"role": "service", "scope": ["record"], "rate_limit": 50}
    made = (await admin.post("/v1/keys", json=wanted)).json()
    assert (made["scope"], made["rate_limit"]) == (["record"], 50)
    assert made["created_by"] == f"key:{maker}"
    headers = {"X-API-Key": made["key"]}

    async def used() -> dict[str, Any] | None:
        await turnout.client(None).post(
            "/v1/outcomes", headers=headers, json={"event": "click", "unit": "ann"}
        )
        listed = (await admin.get("/v1/keys")).json()["items"]
        [found] = [item for item in listed if item["id"] == made["id"]]
        return found if "last_used_at" in found else None

    found = await eventually(used, "time of use")
    assert found.keys() == made.keys() - {"key"} | {"last_used_at"}
    assert made["key"].rpartition("_")[2] not in (await turnout.client(None).get("/metrics")).text
