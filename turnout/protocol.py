"""uvicorn's HTTP protocol, with the bounds that it lacks: on how much a head may hold, on how long
a request, an answer and a silence may take, and on how many connections there may be at once.

Whoever holds a connection has shown no key yet. So each has a timer that looks at it now and then:
while a head comes in, a body, or while answers are not taken. What a request costs is the time at
which it began, and at a head that is known (`turnout.lane`) not even that.
"""

import asyncio
import resource
import socket
import struct
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from experiments.doors import problem_reply
from experiments.problems import ProblemError

MAX_HEAD_BYTES: Final = 64 * 1024
MOST_WAITING: Final = 16
"""Requests of a connection that wait for the framework's answers to those before them, before it is
read no further; and those that begin in the `_PIECE` bytes that are read by then."""
_PIECE: Final = 16 * 1024
_KEPT_FILES: Final = 256
"""Open files that are none of our visitors': journals, Postgres, Redis, webhooks."""
_TURNED_AWAY_SHARE: Final = 8
_TURNED_AWAY_SECONDS: Final = 1.0
_PROBE: Final = b"GET /healthz HTTP/1."
_LIVES: Final = (
    STATUS_LINE[200]
    + b"content-type: application/json\r\ncontent-length: 15\r\nconnection: close\r\n\r\n"
    + b'{"status":"ok"}'
)
_TCP_INFO: Final = getattr(socket, "TCP_INFO", None)
_BYTES_ACKED: Final = struct.Struct("=Q")
_BYTES_ACKED_AT: Final = 120
"""Where `struct tcp_info` of Linux (since 4.1) has `tcpi_bytes_acked`."""


def most_connections() -> int:
    """How many connections the files that this process may open leave room for, with those that
    are turned away."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = 8_192 if files == resource.RLIM_INFINITY else files - _KEPT_FILES
    return max(64, min(8_192, room * _TURNED_AWAY_SHARE // (_TURNED_AWAY_SHARE + 1)))


class Bounds(msgspec.Struct, frozen=True):
    """What a connection may take.

    Args:
        head_seconds: from the first byte of a request, or from the connection, to the end of the
            head; and for a connection on which nothing is asked.
        body_seconds: from the first byte of a request to the end of its body, and a second more for
            every `body_rate` bytes of it. Time in which we read nothing does not count.
        body_bytes: most that is read of one body, also behind an answer; no door takes half of it.
        write_seconds: how long a peer may take fewer than `write_rate` bytes a second of what is
            written for it.
        connections: most of a process at a time. An eighth as many more are told so.
    """

    head_seconds: float = 10.0
    body_seconds: float = 20.0
    body_rate: int = 8 * 1024
    body_bytes: int = 16 * 1024 * 1024
    write_seconds: float = 30.0
    write_rate: int = 1024
    connections: int = msgspec.field(default_factory=most_connections)


BOUNDS: Final = Bounds()


class _Flow(FlowControl):
    """Reads no further while requests are held, though the app asks for the rest of a body: the
    one that it is at has ended then."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_held = False

    def hold(self) -> None:
        """Read no further, whoever asks for it."""
        self._is_held = True
        self.pause_reading()

    def release(self) -> None:
        """Read on."""
        self._is_held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        """Read on, unless requests are held."""
        if not self._is_held:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    transport: asyncio.Transport
    flow: _Flow

    def __init__(self, *, bounds: Bounds = BOUNDS, **others: Any) -> None:
        super().__init__(**others)
        self._bounds = bounds
        self._head_bytes = 0  # that came since a message ended or a part of a body came
        self._body_bytes = 0  # of the body that comes in
        self._between = True  # one request has ended, and none has begun
        self._in_body = False  # a head has ended, and its request has not
        self._since = 0.0  # when the request began that comes in
        self._active_at = 0.0  # when the last answer was given
        self._last_words: bytes | None = None
        self._held = b""
        self._unsent: tuple[float, int, int] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class
        """Begin, or turn the peer away."""
        if len(self.connections) >= self._bounds.connections:
            _turn_away(self, transport, self._bounds)
            return
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._since = self._active_at = self.loop.time()
        self._timer = self.loop.call_later(self._bounds.head_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)

    # What comes in.

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._held:
            self._held += data
        elif len(data) <= _PIECE:
            self._feed(data)
        else:
            self._feed_pieces(data)

    def _feed(self, data: bytes) -> None:
        if self._last_words is not None:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.refuse(
                "head-too-large", f"A request's head may have at most {MAX_HEAD_BYTES} bytes"
            )

    def _feed_pieces(self, data: bytes) -> None:
        """Give the parser no more than the requests that may wait: it makes something of each."""
        for first in range(0, len(data), _PIECE):
            if len(self.pipeline) >= MOST_WAITING:
                self._held = data[first:]
                self.flow.hold()
                return
            self._feed(data[first : first + _PIECE])

    def _release(self) -> None:
        held, self._held = self._held, b""
        if held and not self.transport.is_closing():
            self.flow.release()
            self._feed_pieces(held)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._between = self._in_body = False
        self._since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Take the end of a head."""
        self._in_body = True
        self._body_bytes = 0
        super().on_headers_complete()
        if self.parser.should_upgrade():  # the parser reads no request behind one that wants to
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._head_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)
        # The doors have limits of their own. This is for what comes behind their answer.
        if self._body_bytes > self._bounds.body_bytes and self.cycle.response_complete:
            self.transport.close()

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        self._head_bytes = 0
        self._between, self._in_body = True, False
        super().on_message_complete()

    # What goes out where no door was asked.

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self.refuse("malformed", msg)

    def refuse(self, kind: str, detail: str) -> None:
        """Answer with a problem, behind the answers to what came before, and close."""
        if self._last_words is None and not self.transport.is_closing():
            self._last_words = _last_words(kind, detail)
            self._between = False  # nothing that comes now is a request
            self._say_last_words(self._last_words)

    def _say_last_words(self, words: bytes) -> None:
        busy = self._is_framework_busy()
        if busy and not self._in_body:
            self.flow.pause_reading()  # until the answer to the one before is complete
            return
        # A request that breaks off has no answer, unless that has begun.
        if not busy or not (self.pipeline or self.cycle.response_started):
            self.transport.write(words)
        self.transport.close()

    def on_response_complete(self) -> None:
        """Go on after an answer of the framework."""
        self._active_at = self.loop.time()
        super().on_response_complete()
        if self._held and len(self.pipeline) < MOST_WAITING // 2:
            self.loop.call_soon(self._release)
        if self._last_words is not None and not self.transport.is_closing():
            self._say_last_words(self._last_words)

    # Time.

    def _is_framework_busy(self) -> bool:
        return bool(self.pipeline) or not (self.cycle is None or self.cycle.response_complete)

    def _is_busy(self) -> bool:
        """Whether answers are outstanding."""
        return self._is_framework_busy()

    def _received(self) -> int:
        """How many bytes have come of the body that comes in."""
        return self._body_bytes

    def _look(self) -> None:
        """See whether the peer does its part, and when to look again."""
        now = self.loop.time()
        left = min(self._left_to_write(now), self._left_to_read(now))
        # It has to be looked at while it closes, too: what is unsent then keeps it open.
        self._timer = self.loop.call_later(max(left, 0.001), self._look)

    def _left_to_write(self, now: float) -> float:
        """Seconds until the peer must have taken more; ends the connection where it has not."""
        bounds, unsent = self._bounds, self.transport.get_write_buffer_size()
        if not unsent:
            self._unsent = None
            return bounds.head_seconds
        taken = _bytes_taken(self.transport, unsent)
        if self._unsent is None:
            self._unsent = (now, unsent, taken)
            return bounds.write_seconds
        since, then_unsent, then_taken = self._unsent
        if (left := since + bounds.write_seconds - now) > 0:
            return left
        # What was unsent then, or as much of it as the rate demands: who takes all that there is
        # is never too slow.
        due = min(then_unsent, int(bounds.write_rate * bounds.write_seconds))
        if taken - then_taken < due:
            self.transport.abort()
        self._unsent = (now, unsent, taken)
        return bounds.write_seconds

    def _left_to_read(self, now: float) -> float:
        """Seconds until the peer must have sent more; ends the connection where it has not."""
        bounds = self._bounds
        if self.transport.is_closing() or self._last_words is not None:
            return bounds.head_seconds
        if self.flow.read_paused:
            self._since = now
            return bounds.head_seconds
        if self._between:
            if self._is_busy():
                return bounds.head_seconds
            # The timers of keep-alive do this, but for those who asked nothing or send empty lines.
            if (left := self._active_at + bounds.head_seconds - now) <= 0:
                self.transport.close()
            return left
        if self._in_body:
            patience = bounds.body_seconds + self._received() / bounds.body_rate
        else:
            patience = bounds.head_seconds
        if (left := self._since + patience - now) <= 0:
            self.refuse("timeout", f"The request did not come within {patience:.0f} s")
        return left


class _TurnedAway(asyncio.Protocol):
    """A connection too many. It is told so when it asks: an answer to what was not read would be
    lost with the connection."""

    def __init__(self, connections: set[Any], transport: asyncio.Transport) -> None:
        self._connections = connections
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(_TURNED_AWAY_SECONDS, transport.abort)
        connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Answer that there is no room; but who asks whether the process lives hears that it does,
        or an orchestrator would end it when it has the most to do."""
        detail = "This process takes no further connections; try again, or another"
        is_probe = data.startswith(_PROBE)
        self._transport.write(_LIVES if is_probe else _last_words("unavailable", detail))
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._timer.cancel()
        self._connections.discard(self)

    def shutdown(self) -> None:
        """End, for the server stops."""
        self._transport.close()


def _turn_away(protocol: BoundedProtocol, transport: asyncio.Transport, bounds: Bounds) -> None:
    protocol.transport = transport
    most = bounds.connections + max(1, bounds.connections // _TURNED_AWAY_SHARE)
    if len(protocol.connections) >= most:
        transport.abort()
    else:
        transport.set_protocol(_TurnedAway(protocol.connections, transport))


def _last_words(kind: str, detail: str) -> bytes:
    headers = {"Retry-After": "1"} if kind == "unavailable" else {}
    reply = problem_reply(ProblemError(kind, detail, headers=headers))
    lines = [STATUS_LINE[reply.status]]
    lines += [f"{name.lower()}: {value}\r\n".encode() for name, value in reply.headers.items()]
    lines.append(f"content-type: {reply.media_type}\r\n".encode())
    lines.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(reply.body))
    return b"".join([*lines, reply.body])


def _bytes_taken(transport: asyncio.Transport, unsent: int) -> int:
    """A number that rises by the bytes that a peer takes."""
    peer = transport.get_extra_info("socket")
    if _TCP_INFO is not None and peer is not None:
        try:
            told = peer.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 192)
            return int(_BYTES_ACKED.unpack_from(told, _BYTES_ACKED_AT)[0])
        except (OSError, struct.error):
            pass  # no TCP, or an old kernel: then what is left of the buffer has to do
    return -unsent
