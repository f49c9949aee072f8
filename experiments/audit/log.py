"""Noting what is done, in the transaction that does it.

What a transaction notes stands in `audit_entry` until it commits. There the server gives each entry
its number and its hash and moves it into `audit` (migration 0026): no client can hold the lock of a
chain, nothing that commits is left out, and nothing is noted that was rolled back.
"""

from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec

from experiments.seals import canonical
from experiments.store import Connection

Kind: TypeAlias = Literal["write", "sign_in", "key", "decision", "command"]
"""What an entry tells of: a write of the control plane, signing in or out, a key, a decision of the
controller or of a hand, a command of the operator's."""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

_INSERT: Final = """
    insert into audit_entry (project, kind, action, target, actor, at, request_id, detail)
    values ($1, $2, $3, $4, $5, $6, $7, $8)
"""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What was done.

    Arguments:
        project: the project whose chain it goes into.
        kind: what it tells of.
        action: what was done, such as `experiment.start` or `sign_in.refused`.
        target: what it was done to, such as `experiments/ranker-v7`.
        actor: `key:ID`, `command:USER`, `controller` or `system`.
        at: when, aware.
        request_id: the one in the log and in the answer; empty where no request asked for it.
        detail: a JSON object of what else there is to know. It holds no secret, and units only as
            keyed hashes: it is kept for ever.
    """

    project: str
    kind: Kind
    action: str
    target: str
    actor: str
    at: datetime
    request_id: str = ""
    detail: dict[str, Any] = msgspec.field(default_factory=dict)


async def note(connection: Connection, entry: Entry) -> None:
    """Note what was done, in the transaction that does it: both are done, or neither.

    Raises:
        ValueError: where the detail holds a number that is not finite.
    """
    await connection.execute(
        _INSERT,
        entry.project,
        entry.kind,
        entry.action,
        entry.target,
        entry.actor,
        entry.at,
        entry.request_id,
        canonical(entry.detail).decode(),
    )
