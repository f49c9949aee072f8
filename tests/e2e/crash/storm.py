"""A storm: every process is killed again and again, at random moments, each on its own."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from tests.e2e.crash.fleet import Fleet, Servers
from tests.e2e.crash.programs import Postgres, Program

LIFE: Final = (0.1, 2.5)
"""How long a process may live, in seconds."""
AWAY: Final = (0.0, 1.0)
"""How long it is away."""
PATIENCE_SHARE: Final = 0.75
"""How often its life begins only once it is ready: else it may be killed in the middle of a start.
"""

Strike: TypeAlias = Callable[[], Awaitable[bool]]
"""Kills a process; whether it lived."""


class Victim(NamedTuple):
    """A process, and the ways to kill it by their names."""

    program: Program
    strikes: Sequence[tuple[str, Strike]]


def victims_of(servers: Servers, fleet: Fleet, seed: str) -> Sequence[Victim]:
    """All processes there are."""
    return (
        _postgres(servers.postgres, random.Random(seed)),  # noqa: S311 - a victim, not a secret
        Victim(servers.valkey, [("Redis kill -9", servers.valkey.kill)]),
        *(Victim(router, [("router kill -9", router.kill)]) for router in fleet.routers),
        *(Victim(worker, [("worker kill -9", worker.kill)]) for worker in fleet.workers),
    )


def _postgres(postgres: Postgres, generator: random.Random) -> Victim:
    async def kill_a_child() -> bool:
        return postgres.kill_a_child(generator)

    return Victim(
        postgres,
        [
            ("Postgres kill -9", postgres.kill),
            ("Postgres immediate stop", postgres.stop_at_once),
            ("Postgres child kill -9", kill_a_child),
        ],
    )


async def storm(victims: Sequence[Victim], kills_each: int, seed: str) -> Counter[str]:
    """Kill each victim so often, all at the same time; the kills by kind."""
    kills: Counter[str] = Counter()
    async with asyncio.TaskGroup() as tasks:
        for number, victim in enumerate(victims):
            generator = random.Random(f"{seed}-{number}")  # noqa: S311 - moments, not secrets
            tasks.create_task(_torment(victim, kills_each, generator, kills))
    return kills


async def _torment(
    victim: Victim, left: int, generator: random.Random, kills: Counter[str]
) -> None:
    program = victim.program
    while left:
        await asyncio.sleep(generator.uniform(*LIFE))
        kind, strike = generator.choice(victim.strikes)
        if await strike():
            kills[kind] += 1
            left -= 1
        if not program.wanted:
            await asyncio.sleep(generator.uniform(*AWAY))
            await program.start()
        if generator.random() < PATIENCE_SHARE:
            await program.until_ready()
