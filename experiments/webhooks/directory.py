"""Webhooks in Postgres: made, read, changed, deleted. Nobody who decides waits for any of this: a
decision reads webhooks, and locks none."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import asyncpg

from experiments.store import Connection
from experiments.webhooks.model import Delivery, Webhook, message_id

_COLUMNS: Final = ", ".join(Webhook.__struct_fields__)
_INSERT: Final = """
    insert into webhook (id, project, format, origin, address, key_id, types, experiments, note,
                         generation, rotated_at, enabled, why_disabled, failing_since, created_at,
                         actor)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
"""
_LIST: Final = f"""
    select {_COLUMNS} from webhook
    where project = $1 and deleted_at is null and ($2::text is null or id = $2)
    order by created_at desc, id
"""  # noqa: S608 - constants
_LOCK: Final = f"""
    select {_COLUMNS} from webhook
    where project = $1 and deleted_at is null and id = $2 for no key update
"""  # noqa: S608 - constants
_SAVE: Final = """
    update webhook
    set origin = $2, address = $3, key_id = $4, types = $5, experiments = $6, note = $7,
        generation = $8, rotated_at = $9, enabled = $10, why_disabled = $11, failing_since = $12
    where id = $1
"""
# Its address is forgotten at once, its deliveries soon: the herald sweeps them away.
_DELETE: Final = """
    update webhook set deleted_at = $3, address = '', enabled = false
    where project = $1 and id = $2 and deleted_at is null
"""
_LOCK_CLASS: Final = 0x7765626D  # the number only has to be ours
_ALONE: Final = "select pg_advisory_xact_lock($1, hashtext($2))"
_UNKNOWN: Final = """
    select wanted.key from unnest($2::text[]) with ordinality as wanted (key, place)
    where not exists (select from experiment x where x.project = $1 and x.key = wanted.key)
    order by wanted.place
"""
_DELIVERIES: Final = """
    select d.id, d.webhook, d.type, x.key as experiment, d.decision, d.attempts, d.offered_at,
           d.tried_at, d.finished_at, d.delivered, d.status, d.error
    from delivery d join experiment x on x.id = d.experiment
    where d.webhook = $1 and ($3::bigint is null or d.decision < $3)
    order by d.decision desc limit $2
"""


async def add(connection: Connection, webhook: Webhook) -> None:
    """Keep a new webhook."""
    await connection.execute(
        _INSERT, *(getattr(webhook, name) for name in Webhook.__struct_fields__)
    )


async def find(connection: Connection, project: str, webhook: str) -> Webhook | None:
    """A webhook of a project, or None."""
    row = await connection.fetchrow(_LIST, project, webhook)
    return None if row is None else _webhook(row)


async def find_to_change(connection: Connection, project: str, webhook: str) -> Webhook | None:
    """A webhook of a project, locked until the transaction ends; or None."""
    row = await connection.fetchrow(_LOCK, project, webhook)
    return None if row is None else _webhook(row)


async def webhooks_of(connection: Connection, project: str) -> list[Webhook]:
    """All webhooks of a project, the newest first."""
    return [_webhook(row) for row in await connection.fetch(_LIST, project, None)]


async def enter_alone(connection: Connection, project: str) -> None:
    """Begin to add a webhook to a project: nobody else adds one until the transaction ends."""
    await connection.execute(_ALONE, _LOCK_CLASS, project)


async def save(connection: Connection, webhook: Webhook) -> None:
    """Store all of a webhook that can change."""
    await connection.execute(
        _SAVE,
        webhook.id,
        webhook.origin,
        webhook.address,
        webhook.key_id,
        webhook.types,
        webhook.experiments,
        webhook.note,
        webhook.generation,
        webhook.rotated_at,
        webhook.enabled,
        webhook.why_disabled,
        webhook.failing_since,
    )


async def delete(connection: Connection, project: str, webhook: str, now: datetime) -> bool:
    """Delete a webhook; whether there was one."""
    return await connection.execute(_DELETE, project, webhook, now) == "UPDATE 1"


async def unknown_experiments(
    connection: Connection, project: str, keys: Sequence[str]
) -> list[str]:
    """Those of these keys that no experiment of a project has."""
    return [row["key"] for row in await connection.fetch(_UNKNOWN, project, keys)]


async def deliveries_to(
    connection: Connection, webhook: str, limit: int, after: int | None
) -> list[Delivery]:
    """Up to `limit` deliveries to a webhook, the newest first, from behind the decision `after`."""
    rows = await connection.fetch(_DELIVERIES, webhook, limit, after)
    return [
        Delivery(
            id=row["id"],
            message=message_id(row["webhook"], row["decision"]),
            type=row["type"],
            experiment=row["experiment"],
            decision=row["decision"],
            state=(
                "waiting"
                if row["finished_at"] is None
                else "delivered"
                if row["delivered"]
                else "given_up"
            ),
            attempts=row["attempts"],
            offered_at=row["offered_at"],
            tried_at=row["tried_at"],
            finished_at=row["finished_at"],
            status=row["status"],
            error=row["error"],
        )
        for row in rows
    ]


def _webhook(row: asyncpg.Record) -> Webhook:
    fields = {name: row[name] for name in Webhook.__struct_fields__}
    for name in ("types", "experiments"):
        fields[name] = None if row[name] is None else tuple(row[name])
    return Webhook(**fields)
