"""A write of the control plane that is sent again with the same `Idempotency-Key` is done once, and
answered as it was the first time."""

import hashlib
from datetime import datetime
from typing import Any

import msgspec
from litestar import Request

from experiments.doors import principal_of
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.store import Connection

HEADER = "idempotency-key"
MAX_KEY = 256
_BEGIN = """
    insert into idempotency (project, key, request, at) values ($1, $2, $3, $4)
    on conflict (project, key) do nothing returning true
"""
_RECALL = "select request, status, headers, body from idempotency where project = $1 and key = $2"
_KEEP = """
    update idempotency set status = $3, headers = $4, body = $5 where project = $1 and key = $2
"""


class Answer(msgspec.Struct, frozen=True):
    """What a door answered: all of it that matters to whoever asks again."""

    status: int
    headers: dict[str, str]
    body: bytes


class Attempt(msgspec.Struct, frozen=True):
    """A write that carries an `Idempotency-Key`; `request` tells whether another is the same."""

    project: str
    key: str
    request: bytes


def attempt_of(request: Request[Any, Any, Any], body: Any) -> Attempt | None:
    """The attempt that a request is, or None where it carries no key.

    Raises:
        ProblemError: `invalid` where the key is empty or too long.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY:
        detail = f"must have 1 to {MAX_KEY} characters"
        raise invalid([FieldProblem("Idempotency-Key", "value", detail)])
    door = f"{request.method} {request.url.path}\0".encode()
    sent = door + msgspec.json.encode(body, order="deterministic")
    return Attempt(principal_of(request).project, key, hashlib.sha256(sent).digest())


async def begin(connection: Connection, attempt: Attempt, now: datetime) -> Answer | None:
    """Begin an attempt in the transaction of what it does; how it was answered before, if it was.

    While another transaction is at the same attempt, this waits for its end.

    Raises:
        ProblemError: `conflict` where the key stood for another request.
    """
    if await connection.fetchval(_BEGIN, attempt.project, attempt.key, attempt.request, now):
        return None
    row = await connection.fetchrow(_RECALL, attempt.project, attempt.key)
    if row is None or row["request"] != attempt.request:
        raise ProblemError(
            "conflict", f"Idempotency-Key {attempt.key!r} was used for another request"
        )
    return Answer(row["status"], msgspec.json.decode(row["headers"]), row["body"])


async def keep(connection: Connection, attempt: Attempt, answer: Answer) -> None:
    """Keep how an attempt is answered, in the transaction of what it did."""
    headers = msgspec.json.encode(answer.headers).decode()
    await connection.execute(
        _KEEP, attempt.project, attempt.key, answer.status, headers, answer.body
    )
