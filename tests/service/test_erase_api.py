"""`POST /v1/units/erase`: a unit is forgotten, and may come again as a new one."""

import asyncio
import hashlib
from typing import Any

import asyncpg
import pytest

from analysis.folding.position import hold_moments
from tests.running import Turnout, eventually, problem

ERASE = "/v1/units/erase"
REASON = {"reason": "ticket 12"}


async def erase(turnout: Turnout, body: dict[str, Any], **headers: str) -> dict[str, int]:
    """What an erasure found."""
    answer = await turnout.client("admin").post(ERASE, json=REASON | body, headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, int] = answer.json()
    return found


async def lived(turnout: Turnout, *units: str) -> str:
    """Units meet an experiment and click, and all of it is folded; the experiment's key."""
    key = await turnout.start()
    for unit in units:
        assert (await turnout.assign(key, unit))["recorded"]
        await click(turnout, unit=unit)
    await turnout.shipped("outcome", len(units))
    await folded(turnout, key, len(units))
    return key


async def click(turnout: Turnout, **whose: Any) -> None:
    """A click is recorded."""
    answer = await turnout.client("service").post("/v1/outcomes", json={"event": "click"} | whose)
    assert answer.json()["accepted"] == 1


async def folded(turnout: Turnout, key: str, units: int) -> None:
    """Wait until the report counts so many units."""

    async def counts() -> bool | None:
        answer = await turnout.client("analyst").get(f"/v1/experiments/{key}/report")
        return True if sum(answer.json()["units"].values()) == units else None

    await eventually(counts, f"report on {units} units")


async def test_a_unit_is_forgotten(turnout: Turnout) -> None:
    key = await lived(turnout, "ann", "ben", "cid")
    assert await erase(turnout, {"unit": "ben"}) == {
        "exposures": 1,
        "outcomes": 1,
        "enrolments": 1,
        "dead_letters": 0,
    }
    for table in ("exposure", "outcome", "enrolment"):
        rows = await turnout.rows(f"select unit from {table} where project = $1")  # noqa: S608
        assert sorted(row["unit"] for row in rows) == ["ann", "cid"]
    await folded(turnout, key, 2)


async def test_units_of_several_types_are_forgotten_at_once(turnout: Turnout) -> None:
    both = {"user": "ann", "session": "s-1"}
    await click(turnout, units=both)
    await click(turnout, unit="s-1")
    await turnout.shipped("outcome", 3)
    assert (await erase(turnout, {"units": both}))["outcomes"] == 2
    [row] = await turnout.rows("select unit_type, unit from outcome where project = $1")
    assert tuple(row) == ("user", "s-1")


async def test_erasing_again_is_fine(turnout: Turnout) -> None:
    await lived(turnout, "ann")
    assert (await erase(turnout, {"unit": "ann"}))["exposures"] == 1
    assert set((await erase(turnout, {"unit": "ann"})).values()) == {0}
    assert set((await erase(turnout, {"unit": "nobody"})).values()) == {0}


async def test_a_retry_is_answered_as_the_first_time(turnout: Turnout) -> None:
    await lived(turnout, "ann")
    headers = {"Idempotency-Key": "erase-1"}
    first = await erase(turnout, {"unit": "ann"}, **headers)
    assert await erase(turnout, {"unit": "ann"}, **headers) == first
    assert len(await turnout.rows("select from erasure where project = $1")) == 1
    other = await turnout.client("admin").post(
        ERASE, json=REASON | {"unit": "ben"}, headers=headers
    )
    assert problem(other, 409, "conflict") == []


async def test_an_erased_unit_that_comes_again_is_recorded_again(turnout: Turnout) -> None:
    """Exposures have an id of their own making, which a router remembers."""
    key = await lived(turnout, "ann", "ben")
    before = await turnout.assign(key, "ann")
    await erase(turnout, {"unit": "ann"})

    async def recorded() -> list[asyncpg.Record] | None:
        again = await turnout.assign(key, "ann")
        assert again == before, "assignment is a function of the unit, and has not changed"
        rows = await turnout.rows("select unit from exposure where project = $1 and unit = 'ann'")
        return rows or None

    await eventually(recorded, "exposure of a unit that came again")
    await folded(turnout, key, 2)


async def test_the_audit_says_who_and_why_but_not_whom(turnout: Turnout) -> None:
    await lived(turnout, "a-person")
    await erase(turnout, {"unit": "a-person"}, **{"Idempotency-Key": "erase-2"})
    [audit] = await turnout.rows("select * from erasure where project = $1")
    assert audit["actor"] == f"key:{turnout.keys['admin'].split('_')[1]}"
    assert (audit["reason"], audit["unit_type"]) == ("ticket 12", "user")
    assert "a-person" not in str(dict(audit))
    without_a_key = {
        hashlib.new(name, text).digest()
        for name in ("sha256", "blake2b", "md5")
        for text in (b"a-person", b"user\0a-person", b"shop\0user\0a-person")
    }
    assert audit["unit_hash"] not in without_a_key
    [kept] = await turnout.rows("select * from idempotency where project = $1")
    sent = b'{"reason":"ticket 12","unit":"a-person"}'
    assert kept["request"] != hashlib.sha256(f"POST {ERASE}\0".encode() + sent).digest()


async def test_two_projects_know_a_unit_by_different_hashes(
    turnout: Turnout, stranger: Turnout
) -> None:
    for project in (turnout, stranger):
        await lived(project, "ann")
    await erase(turnout, {"unit": "ann"})
    assert len(await stranger.rows("select from exposure where project = $1")) == 1
    await erase(stranger, {"unit": "ann"})
    [one] = await turnout.rows("select unit_hash from erasure where project = $1")
    [other] = await stranger.rows("select unit_hash from erasure where project = $1")
    assert one["unit_hash"] != other["unit_hash"]


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({}, ("unit", "missing")),
        ({"unit": "a", "units": {"user": "a"}}, ("unit", "conflict")),
        ({"unit": ""}, ("unit", "value")),
        ({"unit": 7}, ("unit", "type")),
        ({"unit": "x" * 257}, ("unit", "value")),
        ({"unit": "a\0"}, ("unit", "value")),
        ({"units": {}}, ("units", "value")),
        ({"units": {"user": "é" * 129}}, ("units.user", "value")),
        ({"unit": "a", "user": "a"}, ("user", "unknown")),
        ({"unit": "a", "reason": ""}, ("reason", "value")),
        ({"unit": "42", "reason": "user 42 asked for it"}, ("reason", "value")),
    ],
)
async def test_a_wrong_body_is_told_field_by_field(
    turnout: Turnout, body: dict[str, Any], wrong: tuple[str, str]
) -> None:
    answer = await turnout.client("admin").post(ERASE, json=REASON | body)
    assert problem(answer, 422, "invalid") == [wrong]


async def test_a_reason_is_needed_and_may_have_the_digits_of_a_unit_in_it(
    turnout: Turnout,
) -> None:
    answer = await turnout.client("admin").post(ERASE, json={"unit": "a"})
    assert problem(answer, 422, "invalid") == [("reason", "missing")]
    await erase(turnout, {"unit": "42", "reason": "ticket 4217"})


async def test_only_an_admin_erases(turnout: Turnout) -> None:
    answer = await turnout.client("editor").post(ERASE, json=REASON | {"unit": "a"})
    assert problem(answer, 403, "forbidden") == []


async def firsts_of(turnout: Turnout, unit: str) -> list[str]:
    """The names under which Redis keeps first variants of a unit."""
    [row] = await turnout.rows("select sticky_id from project where key = $1")
    pattern = f"turnout:sticky:{row['sticky_id'].hex}:*:{unit}"
    return sorted([name.decode() async for name in turnout.host.redis.scan_iter(pattern)])


async def test_a_unit_is_forgotten_where_redis_kept_its_first_variants(turnout: Turnout) -> None:
    """Of earlier runs, too, and whatever the definition says by now."""
    key = await turnout.start(stickiness="sticky")
    for _ in range(2):
        for unit in ("ann", "ben"):
            await turnout.assign(key, unit)
        revision = (await turnout.move(key, "conclude", ship="old"))["revision"]
        await turnout.move(key, "start")
    await turnout.move(key, "conclude", ship="old")
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}", json={"stickiness": "slot"}, headers={"If-Match": "*"}
    )
    assert answer.json()["revision"] == revision + 1
    await turnout.move(key, "start")
    kept = await firsts_of(turnout, "ben")
    assert len(await firsts_of(turnout, "ann")) == len(kept) == 2
    await erase(turnout, {"unit": "ann"})
    assert await firsts_of(turnout, "ann") == []
    assert await firsts_of(turnout, "ben") == kept


async def test_a_unit_that_comes_while_it_is_erased_is_forgotten(turnout: Turnout) -> None:
    key = await turnout.start(stickiness="sticky")
    await turnout.assign(key, "ann")
    async with turnout.host.pool.acquire() as connection:
        async with connection.transaction():
            await hold_moments(connection)  # the erasure has to wait for this
            erasing = asyncio.create_task(erase(turnout, {"unit": "ann"}))

            async def is_forgotten() -> bool | None:
                return True if await firsts_of(turnout, "ann") == [] else None

            await eventually(is_forgotten, "erasure that has come to its events")
            await turnout.assign(key, "ann")
            assert await firsts_of(turnout, "ann") != []
        await erasing
    assert await firsts_of(turnout, "ann") == []
