"""When what a hand does was done: within an experiment no time goes back, whichever door it came
by, whatever it waited for, and however the clocks of the processes differ."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from experiments import store
from tests.running import Turnout, eventually

STEPS: Final = [{"traffic": share, "approval": True} for share in (0.1, 0.5, 1.0)]
_AHEAD: Final = """
    with held as (  -- in one order, as the controller takes them
        select id from experiment where project = $1 order by id for update
    ), moved as (
        update experiment x set updated_at = updated_at + interval '1 minute'
        from held where x.id = held.id returning x.id
    )
    update epoch set at = at + interval '1 minute' where experiment in (select id from moved)
"""
_WAITING: Final = """
    select from pg_locks
    where not granted and locktype = 'advisory' and database = (
        select oid from pg_database where datname = current_database()
    )
"""


async def post(turnout: Turnout, path: str, **body: Any) -> Any:
    """What a door answers to an editor who knocks with this body."""
    answer = await turnout.client("editor").post(path, json={"reason": "a test", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def epochs(turnout: Turnout, key: str) -> list[dict[str, Any]]:
    """All epochs of an experiment, the oldest first."""
    answer = await turnout.client("analyst").get(f"/v1/experiments/{key}/allocations")
    items: list[dict[str, Any]] = answer.json()["items"]
    return items[::-1]


def time(text: str) -> datetime:
    """A time out of an answer."""
    return datetime.fromisoformat(text)


async def test_no_door_dates_what_it_does_before_what_was_done_last(turnout: Turnout) -> None:
    """As if another process, whose clock was ahead, had done all that was done so far."""
    key, ramp = await turnout.start(), await turnout.start(policy={"kind": "ramp", "steps": STEPS})
    await turnout.put("/v1/holdout", share=0.1, reason="a test")
    await turnout.rows(_AHEAD)
    latest = {each: (await epochs(turnout, each))[-1]["at"] for each in (key, ramp, "$holdout")}
    path = f"/v1/experiments/{key}"
    patched = await turnout.client("editor").patch(
        path, json={"traffic": 0.5}, headers={"If-Match": '"1"'}
    )
    assert patched.json()["updated_at"] == latest[key]
    await turnout.put(f"{path}/allocation", weights={"old": 0.7, "new": 0.3}, reason="a test")
    await turnout.put("/v1/holdout", share=0.2, reason="a test")
    for verb, more in (
        ("pause", {}),
        ("resume", {}),
        ("rollback", {"variant": "new"}),
        ("resume", {"variant": "new"}),
        ("conclude", {"ship": "new"}),
        ("start", {}),
    ):
        await post(turnout, f"{path}/{verb}", **more)
    await post(turnout, f"/v1/experiments/{ramp}/ramp/jump", step=3)
    await turnout.put("/v1/holdout", share=0, reason="a test")
    for each, count in ((key, 12), (ramp, 5), ("$holdout", 3)):
        found = [epoch["at"] for epoch in await epochs(turnout, each)]
        assert len(found) == count
        assert set(found[-2:]) == {latest[each]}
        assert found == sorted(found)
        rows = await turnout.rows(
            """select r.started_at, r.ended_at from run r join experiment x on x.id = r.experiment
               where x.project = $1 and x.key = $2 order by r.number""",
            each,
        )
        for row in rows[1:]:
            assert row["started_at"] == time(latest[each])
    archived = await post(turnout, f"/v1/experiments/{ramp}/conclude", ship="old")
    assert archived["updated_at"] == latest[ramp]


async def test_replay_by_time_names_the_epoch_in_force_after_changes_of_the_holdout(
    turnout: Turnout,
) -> None:
    key = await turnout.start()
    await turnout.put("/v1/holdout", share=0.1, reason="a test")
    await turnout.rows(_AHEAD)
    await turnout.put("/v1/holdout", share=0.2, reason="a test")
    found = await epochs(turnout, key)
    later = max(time(epoch["at"]) for epoch in found) + timedelta(seconds=1)
    answer = await turnout.client("analyst").get(
        "/v1/replay", params={"experiment": key, "unit": "u1", "at": later.isoformat()}
    )
    assert answer.json()["epoch"] == found[-1]["number"] == 3


@pytest.mark.parametrize("door", ["experiment", "holdout"])
async def test_what_waited_for_a_lock_is_dated_by_when_it_was_done(
    turnout: Turnout, door: str
) -> None:
    """Else another change that was made meanwhile would be later, and yet lie behind it."""
    key = await turnout.start()
    async with turnout.host.pool.acquire() as connection, connection.transaction():
        await store.enter_alone(connection, turnout.project)
        asked = asyncio.create_task(
            post(turnout, f"/v1/experiments/{key}/pause")
            if door == "experiment"
            else turnout.put("/v1/holdout", share=0.1, reason="a test")
        )

        async def waits() -> bool | None:
            return True if await connection.fetch(_WAITING) else None

        await eventually(waits, "request that waits")
        await asyncio.sleep(0.5)
        freed = datetime.now(UTC)
    await asked
    at = time((await epochs(turnout, key))[-1]["at"])
    assert at > freed - timedelta(seconds=0.25), "the database's clock is as good as known"
