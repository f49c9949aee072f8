"""How an operator, or what keeps us running, asks a process to stop."""

import asyncio
import signal


def stop_at_signal() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set, in the event loop that runs."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
