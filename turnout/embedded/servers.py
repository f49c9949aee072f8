"""Both servers together: started in order, watched, stopped in order."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from turnout.embedded import postgres, valkey
from turnout.embedded.binaries import find_binaries, server_account
from turnout.embedded.errors import AlreadyRunningError, EmbeddedError
from turnout.embedded.folder import (
    Folder,
    Lock,
    Servers,
    claim,
    forget_postmaster,
    make_sockets,
    orphans,
    prepare,
    publish,
)
from turnout.embedded.process import KILLED_SECONDS, Child

CLAIM_SECONDS = 0.3
ORPHAN_SECONDS = 30.0
STOP_POSTGRES_SECONDS = 30.0
STOP_VALKEY_SECONDS = 10.0
TRIM_SECONDS = 60.0


class LiveServers(Servers, frozen=True):
    """Servers of this process, which can tell when they die."""

    death: asyncio.Future[str]

    async def died(self) -> str:
        """Wait until a server ends by itself, and say how.

        It never returns while all is well, nor after an ordinary stop: wait in a task, and cancel
        that at the end. Any number of tasks may wait.
        """
        return await asyncio.shield(self.death)


@asynccontextmanager
async def embedded_servers(
    data_dir: Path,
    *,
    durable: bool = True,
    with_postgres: bool = True,
    with_valkey: bool = True,
) -> AsyncIterator[LiveServers]:
    """Run a Postgres and a Valkey of our own, or one of them, on `data_dir`, on Unix sockets alone.

    The address of one that was not asked for is empty. They live as long as the context, and die
    with this process however that dies. Enter it in a thread that stays (the main one), for the
    kernel ties them to the thread.

    Raises:
        EmbeddedError: they cannot start; the text is one line for the operator.
    """
    async with AsyncExitStack() as stack:
        try:
            servers = await _start(
                stack,
                data_dir,
                durable=durable,
                with_postgres=with_postgres,
                with_valkey=with_valkey,
            )
        except OSError as error:
            raise EmbeddedError(f"the embedded servers cannot start: {error}") from error
        yield servers


async def _start(
    stack: AsyncExitStack, data_dir: Path, *, durable: bool, with_postgres: bool, with_valkey: bool
) -> LiveServers:
    folder = Folder(root=await asyncio.to_thread(data_dir.resolve))
    account = server_account()
    lock = await _claim(folder)
    stack.callback(lock.release)
    binaries = await asyncio.to_thread(find_binaries, account)
    await asyncio.to_thread(prepare, folder, account, binaries.major)
    await _end_orphans(folder)

    sockets = await asyncio.to_thread(make_sockets, account)
    stack.push_async_callback(asyncio.to_thread, shutil.rmtree, sockets, ignore_errors=True)
    await asyncio.to_thread(lock.note, sockets)

    redis = database = None
    if with_valkey:
        redis = await valkey.start(folder, binaries, account, sockets, durable=durable)
        stack.push_async_callback(redis.stop, STOP_VALKEY_SECONDS)
    if with_postgres:
        if not await asyncio.to_thread(folder.postgres.exists):
            await postgres.initialise(folder, binaries, account, durable=durable)
        database = await postgres.start(folder, binaries, account, sockets, durable=durable)
        stack.push_async_callback(database.stop, STOP_POSTGRES_SECONDS)
    # Both get ready at the same time, so each is waited for only after both were started.
    if redis:
        await valkey.until_ready(redis, sockets)
    if database:
        await postgres.until_ready(database, folder, sockets)

    servers = LiveServers(
        database_url=postgres.database_url(sockets) if database else "",
        redis_url=valkey.redis_url(sockets) if redis else "",
        pid=os.getpid(),
        death=asyncio.get_running_loop().create_future(),
    )
    children = tuple(child for child in (database, redis) if child)
    watcher = asyncio.create_task(_watch(children, servers.death), name="embedded watch")
    stack.push_async_callback(_cancel, watcher)
    record = Servers(
        database_url=servers.database_url, redis_url=servers.redis_url, pid=servers.pid
    )
    stack.push_async_callback(asyncio.to_thread, folder.run.unlink, missing_ok=True)
    await asyncio.to_thread(publish, folder, record)
    return servers


async def _claim(folder: Folder) -> Lock:
    deadline = time.monotonic() + CLAIM_SECONDS
    while True:
        try:
            return await asyncio.to_thread(claim, folder)
        except AlreadyRunningError:
            # Who asks whether we run holds the lock for a moment too.
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def _end_orphans(folder: Folder) -> None:
    """See servers off whose parent was killed: they are shutting down, or should be."""
    start = time.monotonic()
    told: set[int] = set()
    while left := await asyncio.to_thread(orphans, folder):
        waited = time.monotonic() - start
        if waited > ORPHAN_SECONDS + KILLED_SECONDS:
            pids = ", ".join(map(str, left))
            raise EmbeddedError(f"{folder.root}: old servers do not end (pid {pids})")
        for pid, program in left.items():
            with suppress(ProcessLookupError):
                if waited > ORPHAN_SECONDS:
                    os.kill(pid, signal.SIGKILL)
                elif pid not in told:
                    told.add(pid)
                    os.kill(pid, signal.SIGINT if program == "postgres" else signal.SIGTERM)
        await asyncio.sleep(0.05)
    await asyncio.to_thread(forget_postmaster, folder)


async def _watch(children: tuple[Child, ...], death: asyncio.Future[str]) -> None:
    waits = {asyncio.create_task(child.wait(), name=child.name): child for child in children}
    try:
        while True:
            done, _ = await asyncio.wait(
                waits, timeout=TRIM_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                death.set_result(await waits[done.pop()].obituary())
                return
            for child in children:
                with suppress(OSError):  # a full disk is no reason to stop
                    await asyncio.to_thread(child.log.trim)
    finally:
        await _cancel(*waits)


async def _cancel(*tasks: asyncio.Task[int] | asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
