"""Writes of the control plane: each in one transaction, once for an `Idempotency-Key`, noted in the
audit, and told to routers after its commit."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import msgspec
from litestar import MediaType, Request, Response
from litestar.di import NamedDependency
from litestar.params import SkipValidation
from redis.asyncio import Redis

from experiments import store
from experiments.announce import announce
from experiments.audit.log import Entry, note
from experiments.doors import Clock, principal_of
from experiments.once import Answer, attempt_of, begin, keep
from experiments.seals import canonical

MOST_TOLD: Final = 16 * 1024
"""Bytes of a body that the audit holds; of a longer one, what the revision has whole, its hash."""


class ControlPlane(msgspec.Struct, frozen=True):
    """What the control plane works with, handed in."""

    pool: store.Pool
    redis: Redis
    clock: Clock
    random_bytes: Callable[[int], bytes]


Control: TypeAlias = NamedDependency[SkipValidation[ControlPlane]]


async def write(
    control: ControlPlane,
    request: Request[Any, Any, Any],
    body: Any,
    act: Callable[[store.Connection], Awaitable[Answer]],
    *,
    action: str,
    target: str,
    told: Callable[[], Any] | None = None,
) -> Response[bytes]:
    """Do what a request asks for, or answer it as before where it was done before.

    Args:
        body: what was asked for, to know it again by.
        action: what is done, in the audit: `experiment.start`.
        target: what it is done to: `experiments/ranker-v7`.
        told: what the audit may keep of the body, for ever: no secret, no unit. It is asked once
            `act` is done. Without it the body is told as it is.
    """
    attempt = attempt_of(request, body)
    async with store.borrow(control.pool) as connection, connection.transaction():
        if attempt is not None:
            earlier = await begin(connection, attempt, control.clock())
            if earlier is not None:
                return _response(earlier, {"Idempotent-Replayed": "true"})
        answer = await act(connection)
        if attempt is not None:
            await keep(connection, attempt, answer)
        tale = body if told is None else told()
        await note(connection, _entry(control, request, action, target, tale, answer))
    await announce(control.redis, principal_of(request).project)
    return _response(answer, {})


def _entry(
    control: ControlPlane,
    request: Request[Any, Any, Any],
    action: str,
    target: str,
    told: Any,
    answer: Answer,
) -> Entry:
    caller = principal_of(request)
    detail: dict[str, Any] = {
        "door": f"{request.method} {request.scope.get('path_template') or request.url.path}",
        "status": answer.status,
    }
    if "Location" in answer.headers:  # what was made
        detail["location"] = answer.headers["Location"]
    text = canonical(told)
    if len(text) > MOST_TOLD:
        detail["body_sha256"] = hashlib.sha256(text).hexdigest()
        detail["body_bytes"] = len(text)
    elif told is not None:
        detail["body"] = told
    return Entry(
        project=caller.project,
        kind="write",
        action=action,
        target=target,
        actor=caller.actor,
        at=control.clock(),
        request_id=request.scope["state"].get("request_id", ""),
        detail=detail,
    )


def _response(answer: Answer, headers: dict[str, str]) -> Response[bytes]:
    return Response(
        answer.body,
        status_code=answer.status,
        media_type=MediaType.JSON,
        headers={**answer.headers, **headers},
    )
