"""Writes of the control plane: each in one transaction, once for an `Idempotency-Key`, and told to
routers after its commit."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec
from litestar import MediaType, Request, Response
from litestar.di import NamedDependency
from litestar.params import SkipValidation
from redis.asyncio import Redis

from experiments import store
from experiments.announce import announce
from experiments.doors import Clock, principal_of
from experiments.once import Answer, attempt_of, begin, keep


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
) -> Response[bytes]:
    """Do what a request asks for, or answer it as before where it was done before."""
    attempt = attempt_of(request, body)
    async with store.borrow(control.pool) as connection, connection.transaction():
        if attempt is not None:
            earlier = await begin(connection, attempt, control.clock())
            if earlier is not None:
                return _response(earlier, {"Idempotent-Replayed": "true"})
        answer = await act(connection)
        if attempt is not None:
            await keep(connection, attempt, answer)
    await announce(control.redis, principal_of(request).project)
    return _response(answer, {})


def _response(answer: Answer, headers: dict[str, str]) -> Response[bytes]:
    return Response(
        answer.body,
        status_code=answer.status,
        media_type=MediaType.JSON,
        headers={**answer.headers, **headers},
    )
