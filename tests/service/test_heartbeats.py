"""Since when a journal was heard of without a pause, as Postgres keeps it."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest

HEARD = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize(("silence", "pauses"), [(10, False), (15, False), (16, True), (600, True)])
async def test_a_silence_that_is_longer_than_any_wait_of_a_shipper_is_a_pause(
    pool: asyncpg.Pool, silence: int, pauses: bool
) -> None:
    journal = uuid4()
    await pool.execute(
        "insert into journal (id, shipped_through, heartbeat_at, beating_since)"
        " values ($1, $2, $2, $2)",
        journal,
        HEARD,
    )
    back = HEARD + timedelta(seconds=silence)
    for at in (back, back + timedelta(seconds=1)):
        since = await pool.fetchval(
            "update journal set heartbeat_at = $2 where id = $1 returning beating_since",
            journal,
            at,
        )
        assert since == (back if pauses else HEARD)


async def test_a_journal_that_is_new_was_not_heard_before(pool: asyncpg.Pool) -> None:
    assert await pool.fetchval(
        "insert into journal (id, shipped_through, heartbeat_at)"
        " values ($1, now(), now()) returning beating_since = heartbeat_at",
        uuid4(),
    )
