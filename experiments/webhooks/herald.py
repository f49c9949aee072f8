"""The herald: takes deliveries whose time has come, and sends them until they arrive.

Any number of processes may have one. Within a lane (a webhook and an experiment) deliveries go one
after another, in the order of the decisions; the first waits until it has arrived or was given up.
Lanes go beside each other, a few at a time.

A delivery arrives at least once: a process that dies between sending and noting leaves it to be
sent again, with the same id, by which a receiver knows it.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Final

from experiments import store
from experiments.webhooks import outbox
from experiments.webhooks.courier import ATTEMPT_SECONDS, Courier
from experiments.webhooks.messages import body_of
from experiments.webhooks.model import message_id
from experiments.webhooks.outbox import Attempt, Claim, Head
from experiments.webhooks.signing import SealError, SigningKey, signed_headers
from experiments.webhooks.telemetry import HeraldMetrics

AT_ONCE: Final = 16
"""Deliveries on their way at a time, `AT_ONCE_EACH` to a webhook: one that hangs leaves room."""
AT_ONCE_EACH: Final = 4
POLL_SECONDS: Final = 0.5
STOP_SECONDS: Final = 2.0
TIDY_SECONDS: Final = 60.0
MEASURE_SECONDS: Final = 5.0
FAILING_LIMIT: Final = timedelta(days=5)
"""A webhook at which nothing arrived for so long is disabled."""
PATIENCE: Final = timedelta(days=1)
"""A delivery that fails when it is older is given up, and so is one that was tried `MOST_ATTEMPTS`
times."""
MOST_ATTEMPTS: Final = 11
FIRST_SECONDS: Final = 5.0
LONGEST_SECONDS: Final = 6 * 3600.0
_STATEMENT_SECONDS: Final = 10.0

logger = logging.getLogger(__name__)


def pause_after(attempts: int, jitter: Callable[[], float]) -> timedelta | None:
    """How long to wait after so many attempts that failed; None to give up.

    5 s, 20 s, 80 s, 5 min, 21 min, 85 min, 5.7 h, then 6 h: 11 attempts within about a day. Each
    pause is between 80 % and 120 % of that, so that what failed together is not sent together.

    Args:
        jitter: gives a number in [0, 1), each time another.
    """
    if attempts >= MOST_ATTEMPTS:
        return None
    seconds = min(FIRST_SECONDS * 4.0 ** (attempts - 1), LONGEST_SECONDS)
    return timedelta(seconds=seconds * (0.8 + 0.4 * jitter()))


class Herald:
    """Delivers what waits, while it runs."""

    def __init__(
        self,
        pool: store.Pool,
        courier: Courier,
        key: SigningKey | None,
        clock: Callable[[], datetime],
        jitter: random.Random,
        metrics: HeraldMetrics,
        public_url: str = "",
    ) -> None:
        """`key` is None where the installation has none: then it only counts what waits."""
        self._pool = pool
        self._courier = courier
        self._key = key
        self._clock = clock
        self._jitter = jitter
        self._metrics = metrics
        self._public_url = public_url
        self._under_way: dict[asyncio.Task[None], str] = {}
        self._free = asyncio.Event()
        self._measured_at = self._tidied_at = -TIDY_SECONDS
        self._warned = False

    async def run(self) -> None:
        """Deliver until cancelled. What is on its way then has a moment to arrive; if it does not,
        it is sent again by another process once the claim has run out."""
        try:
            while True:
                await self._round_safely()
                self._free.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._free.wait()
        finally:
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=STOP_SECONDS)
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)
            await self._courier.close()

    async def deliver_due(self) -> None:
        """Send all that is due, and what becomes due by that; return when nothing is on its way."""
        while True:
            await self._start_due()
            if not self._under_way:
                return
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)

    async def _round_safely(self) -> None:
        try:
            await self._start_due()
            await self._look_after()
        except (OSError, TimeoutError, *store.PostgresError) as error:
            self._metrics.failures.inc()
            logger.warning("webhooks wait", extra={"error": error})
        except Exception:  # a fault of ours must not stop the routers, which live beside this
            self._metrics.failures.inc()
            logger.exception("webhooks wait")

    async def _start_due(self) -> None:
        """Take lanes that are due, as many as there is room for, and start on them."""
        if self._key is None:
            return
        loop = asyncio.get_running_loop()
        while len(self._under_way) < AT_ONCE:
            begun = loop.time()  # before it is claimed: the claim is younger than we think
            counted = Counter(self._under_way.values())
            busy = [webhook for webhook, n in counted.items() if n >= AT_ONCE_EACH]
            async with self._borrow() as connection:
                lane = await outbox.claim(connection, self._key.id, busy)
            if lane is None:
                return
            task = loop.create_task(self._deliver_safely(lane, begun), name="webhook")
            self._under_way[task] = lane.webhook
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._free.set()

    async def _deliver_safely(self, lane: Claim, begun: float) -> None:
        try:
            await self._deliver(lane, begun)
        except (OSError, TimeoutError, *store.PostgresError) as error:
            self._metrics.failures.inc()
            logger.warning("a webhook waits", extra={"webhook": lane.webhook, "error": error})
        except Exception:
            self._metrics.failures.inc()
            logger.exception("a webhook waits", extra={"webhook": lane.webhook})

    async def _deliver(self, lane: Claim, begun: float) -> None:
        """Send the first delivery of a lane, and note what came of it."""
        async with self._borrow() as connection:
            head = await outbox.head_of(connection, lane)
        if head is None:
            return
        # Whoever was frozen in between has used this time up: others may have sent it, and more.
        left = ATTEMPT_SECONDS - (asyncio.get_running_loop().time() - begun)
        if left <= 0:
            return
        attempt = await self._attempt(lane, head, left)
        async with self._borrow() as connection:
            await self._note(connection, lane, head, attempt)

    async def _attempt(self, lane: Claim, head: Head, seconds: float) -> Attempt:
        assert self._key is not None, "no lane is claimed without a key"  # noqa: S101 - an invariant
        try:
            url = self._key.unseal(head.address, lane.webhook)
        except SealError as error:
            return Attempt(None, str(error))
        body = body_of(head.story, head.format, self._public_url)
        now = self._clock()
        headers = {}
        if head.format == "standard":
            headers = signed_headers(
                self._key.secrets(lane.webhook, head.generation, head.rotated_at, now),
                message_id(lane.webhook, head.story.decision),
                now,
                body,
            )
        return await self._courier.post(url, body, headers, seconds, head.trace)

    async def _note(
        self, connection: store.Connection, lane: Claim, head: Head, attempt: Attempt
    ) -> None:
        project = head.story.project
        if attempt.arrived:
            if await outbox.finish(connection, lane, head, attempt):
                self._metrics.deliveries.labels(project, "delivered").inc()
                await outbox.note_arrival(connection, lane.webhook)
            return
        pause = pause_after(head.attempts + 1, self._jitter.random)
        gone = attempt.status == 410
        if gone or pause is None or head.age > PATIENCE:
            noted = await outbox.finish(connection, lane, head, attempt)
            outcome = "given_up"
        else:
            pause = max(pause, attempt.retry_after or pause)
            noted = await outbox.put_off(connection, lane, head, attempt, pause)
            outcome = "failed"
        if not noted:
            return
        self._metrics.deliveries.labels(project, outcome).inc()
        logger.warning(
            "a webhook was not delivered",
            extra={
                "project": project,
                "webhook": lane.webhook,
                "decision": head.story.decision,
                "attempt": head.attempts + 1,
                "outcome": outcome,
                "error": attempt.error,
            },
        )
        failing = await outbox.note_failure(connection, lane.webhook)
        if gone:
            await self._disable(connection, lane, project, "it answered 410 Gone")
        elif failing >= FAILING_LIMIT:
            why = f"nothing arrived for {FAILING_LIMIT.days} days; the last time, {attempt.error}"
            await self._disable(connection, lane, project, why)

    async def _disable(
        self, connection: store.Connection, lane: Claim, project: str, why: str
    ) -> None:
        if await outbox.disable(connection, lane.webhook, why):
            logger.error(
                "a webhook was disabled",
                extra={"project": project, "webhook": lane.webhook, "why": why},
            )

    async def _look_after(self) -> None:
        """Count what waits, and tidy up, each now and then."""
        now = asyncio.get_running_loop().time()
        if now - self._measured_at >= MEASURE_SECONDS:
            self._measured_at = now
            async with self._borrow() as connection:
                backlog = await outbox.backlog(connection)
            self._metrics.waiting.set(backlog.waiting)
            self._metrics.oldest.set(backlog.oldest)
            self._metrics.disabled.set(backlog.disabled)
            if backlog.waiting and self._key is None and not self._warned:
                self._warned = True
                logger.error("webhooks wait: this process has no TURNOUT_SIGNING_KEY")
        if now - self._tidied_at >= TIDY_SECONDS:
            self._tidied_at = now
            async with self._borrow() as connection:
                given_up = await outbox.tidy(connection)
            if given_up:
                logger.error("webhooks were given up", extra={"deliveries": given_up})

    @asynccontextmanager
    async def _borrow(self) -> AsyncIterator[store.Connection]:
        """A connection for a few statements, which together may take so long and no longer."""
        async with asyncio.timeout(_STATEMENT_SECONDS), store.borrow(self._pool) as connection:
            yield connection
