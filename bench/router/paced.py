"""Requests at a fixed rate, and how long each took from the moment when it was due.

    python -m bench.router.paced HOST PORT KEY RATE SECONDS CONNECTIONS FIRST_UNIT

A client that waits for an answer before it sends the next request does not send while the server is
slow, and so leaves out just the latencies that matter ("coordinated omission"). Here the times are
set beforehand: what is due goes out on any connection that is free, and the wait for one counts.
`wrk` has no such mode. It prints the latencies in milliseconds as a list of JSON.
"""

import gc
import json
import re
import select
import socket
import sys
import time
from collections import deque
from typing import Final

from bench.router.scene import UNIT_DIGITS, request_around_unit

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_END_OF_HEAD: Final = b"\r\n\r\n"
_PATIENCE: Final = 10.0
"""Seconds beyond the planned end until it gives up."""


class Connection:
    """A connection with at most one request on its way."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=_PATIENCE)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._received = b""

    def send(self, request: bytes, due: float) -> None:
        """Send a request that was due at this time."""
        self.due = due
        if self.socket.send(request) != len(request):
            raise RuntimeError("the server takes no whole request at once")

    def answered(self) -> bool:
        """Read what has come; whether the answer is whole.

        Raises:
            RuntimeError: if the connection was closed, or the answer is not a good one.
        """
        data = self.socket.recv(65_536)
        if not data:
            raise RuntimeError("the server closed the connection")
        self._received += data
        end = self._received.find(_END_OF_HEAD)
        if end < 0:
            return False
        head = self._received[:end]
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200") or length is None:
            raise RuntimeError(f"refused: {self._received[:200]!r}")
        if len(self._received) < end + len(_END_OF_HEAD) + int(length.group(1)):
            return False
        self._received = b""
        return True


def latencies(
    connections: list[Connection], head: str, tail: str, rate: float, count: int, first_unit: int
) -> list[float]:
    """The latency of each request in seconds, in the order of the answers.

    Raises:
        RuntimeError: if the server refuses a request, or cannot serve this rate.
    """
    epoll = select.epoll()
    by_number = {connection.socket.fileno(): connection for connection in connections}
    for number in by_number:
        epoll.register(number, select.EPOLLIN)
    idle = deque(connections)
    found: list[float] = []
    sent = 0
    begun = time.perf_counter()
    give_up = begun + count / rate + _PATIENCE
    while len(found) < count:
        now = time.perf_counter()
        if now > give_up:
            raise RuntimeError(f"the server does not serve {rate:.0f} requests a second")
        while idle and sent < count and begun + sent / rate <= now:
            request = f"{head}{first_unit + sent:0{UNIT_DIGITS}}{tail}".encode()
            idle.popleft().send(request, begun + sent / rate)
            sent += 1
        until = begun + sent / rate if idle and sent < count else give_up
        # `epoll` itself waits whole milliseconds only.
        select.select([epoll], [], [], max(until - time.perf_counter(), 0))
        for number, _ in epoll.poll(0):
            connection = by_number[number]
            if connection.answered():
                found.append(time.perf_counter() - connection.due)
                idle.append(connection)
    return found


def main(arguments: list[str]) -> None:
    """Measure, and print."""
    host, port, key, rate, seconds, wanted, first_unit = arguments
    connections = [Connection(host, int(port)) for _ in range(int(wanted))]
    head, tail = request_around_unit(host, key)
    gc.disable()  # a pause of ours would be taken for one of the server
    count = int(float(rate) * float(seconds))
    found = latencies(connections, head, tail, float(rate), count, int(first_unit))
    print(json.dumps([round(latency * 1e3, 4) for latency in found]))


if __name__ == "__main__":
    main(sys.argv[1:])
