"""The work of one OFREP evaluation as an idiomatic Litestar handler does it.

    python -m bench.router.idiomatic OPTIONS    # as JSON

A guard checks the key, the body is a typed Struct, and so is the answer that Litestar encodes. The
targeting rule is a line of Python, the slot a hash and a look into a table. The answer is counted
for Prometheus. Its exposure is in the journal before the answer, and goes to Postgres from there:
journal and shipper are those of a router. What a router has and this has not: a rule, variants and
keys that come from data and change while it serves; overrides, layers and holdout; the memory of
exposures that need not be written again.
"""

import asyncio
import contextlib
import hashlib
import hmac
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncpg
import mmh3
import msgspec
import uvicorn
from litestar import Litestar, MediaType, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import NotAuthorizedException, NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath
from prometheus_client import Counter

from bench.router.scene import COUNTRIES, DEFINITION, EXPERIMENT
from router.journal import Durability, Journal
from router.records import ExposureRecord, exposure_id
from router.shipper import Pace, Shipper

_SLOTS: Final = 10_000
_OWNERS: Final = bytes(slot * 2 // _SLOTS for slot in range(_SLOTS))
_VARIANTS: Final = DEFINITION["variants"]
_ASSIGNMENTS: Final = Counter("assignments", "By variant and reason", ["variant", "reason"])
_QUERY_SECONDS: Final = 30.0


class Options(msgspec.Struct, frozen=True):
    """What the handler is told."""

    port: int
    journals: str
    """The folder for its journal."""
    durability: Durability
    key: str
    database_url: str
    experiment: int
    """The number of the experiment in the database."""


class Context(msgspec.Struct, rename={"targeting_key": "targetingKey"}):
    """What is known of the unit."""

    targeting_key: str
    country: str | None = None


class Evaluation(msgspec.Struct):
    """The body of the request."""

    context: Context


class Answer(msgspec.Struct):
    """A successful evaluation (OFREP 0.3)."""

    key: str
    reason: str
    variant: str
    value: dict[str, Any]
    metadata: dict[str, str | int | bool]


async def check_key(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let nobody in without the key."""
    digest = hashlib.sha256(connection.headers.get("x-api-key", "").encode()).digest()
    if not hmac.compare_digest(digest, connection.app.state.key_hash):
        raise NotAuthorizedException


@post("/ofrep/v1/evaluate/flags/{key:str}", status_code=200, guards=[check_key])
async def evaluate(key: FromPath[str], data: Evaluation, state: State) -> Answer:
    """Which variant a unit gets; its exposure is in the journal before the answer."""
    if key != EXPERIMENT:
        raise NotFoundException
    unit = data.context.targeting_key
    targeted = data.context.country in COUNTRIES
    slot = (mmh3.hash(f"{EXPERIMENT}:{unit}", signed=False) * _SLOTS) >> 32
    variant = _VARIANTS[_OWNERS[slot] if targeted else 0]
    why = "split" if targeted else "not_targeted"
    if targeted:
        now = datetime.now(UTC)
        record = ExposureRecord(
            id=exposure_id(state.experiment, 1, 1, variant["key"], unit),
            project="default",
            experiment=state.experiment,
            run=1,
            epoch=1,
            variant=variant["key"],
            unit_type="user",
            unit=unit,
            at=now,
            received_at=now,
        )
        await state.journal.append([record])
    _ASSIGNMENTS.labels(variant["key"], why).inc()
    return Answer(
        key=key,
        reason="SPLIT" if targeted else "DEFAULT",
        variant=variant["key"],
        value=variant["value"],
        metadata={"run": 1, "epoch": 1, "why": why, "recorded": targeted},
    )


@get("/metrics", media_type=MediaType.TEXT)
async def metrics(state: State) -> str:
    """What Postgres lacks, under the name that a router has for it."""
    return f"turnout_journal_bytes {float(state.journal.depth)}\n"


@asynccontextmanager
async def recording(options: Options, app: Litestar) -> AsyncIterator[None]:
    """Keep a journal while the app serves, and ship it."""

    def now() -> datetime:
        return datetime.now(UTC)

    async with asyncpg.create_pool(
        options.database_url, min_size=1, max_size=4, command_timeout=_QUERY_SECONDS
    ) as pool:
        journal = await Journal.begin(Path(options.journals), now, durability=options.durability)
        jitter = random.Random()  # noqa: S311 - no secret
        shipper = Shipper(pool, journal, now, jitter, Pace(interval=0.5))
        shipping = asyncio.create_task(shipper.run())
        app.state.journal = journal
        try:
            yield
        finally:
            shipping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await shipping
            await shipper.finish()
            await journal.close()


def main(options: Options) -> None:
    """Serve."""
    app = Litestar([evaluate, metrics], lifespan=[partial(recording, options)], openapi_config=None)
    app.state.key_hash = hashlib.sha256(options.key.encode()).digest()
    app.state.experiment = options.experiment
    uvicorn.run(
        app,
        port=options.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Options))
