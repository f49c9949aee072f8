"""A thread that does one thing after the other for an event loop."""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Writer:
    """A thread of its own, for work that blocks.

    An executor makes a future with locks for each piece of work, and wakes a task that waits for
    it; here the thread calls back into the event loop, which costs a tenth. That is what a batch of
    requests that are answered once they are on disk waits for, thousands of times a second.
    """

    def __init__(self) -> None:
        """It works for the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None]
        self._jobs = SimpleQueue()
        threading.Thread(target=self._work, name="journal", daemon=True).start()

    def do(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """Have the thread do some work, which must not raise, and the event loop hear of what it
        gave."""
        self._jobs.put((work, done))

    def stop(self) -> None:
        """End the thread, once it has done what was asked of it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, done = job
            self._loop.call_soon_threadsafe(done, work())
