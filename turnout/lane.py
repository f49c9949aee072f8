"""The fast lane: the hot doors, answered in the callbacks of uvicorn's HTTP parser.

A request at one of them needs no scope, no task and no framework: what a framework does for a
request costs ten times what the door does. All else, and whatever of the hot doors is out of the
ordinary (an `Expect`, a header twice, a body too long), goes to the framework as if there were no
lane; and the lane calls the functions that the framework's handlers call, so both give the same
bytes.

The answers of one connection leave in the order of its requests. While the lane has some that wait
for the disk, requests for the framework queue up as behind one of its own.
"""

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import lru_cache, partial
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from experiments.doors import Gate, Reply, key_of
from experiments.keys import Principal
from experiments.problems import DEFECT, ProblemError
from experiments.spans import TraceContext, current_trace
from router.evaluation import Evaluation
from router.hot import ASSIGN, FLAG, MAX_ASSIGN_BODY, HotDoor, OfrepError
from router.plane import DataPlane, complete, count
from router.sticky import sticks
from turnout.logs import request_id
from turnout.protocol import BoundedProtocol
from turnout.telemetry import (
    TRACEPARENT,
    TRACESTATE,
    RequestLog,
    RequestSpan,
    RequestTracer,
    describe_answer,
    given_id,
    given_trace,
    request_attributes,
)

MOST_TURNS: Final = 128
"""Answers that one connection may wait for before it is read no further."""
_MOST_PATHS: Final = 4_096
_MOST_HEADS: Final = 1_024
_LONGEST_HEAD: Final = 2_048
_PATH: Final = re.compile(rb"/ofrep/v1/evaluate/flags/([A-Za-z0-9_.-]{1,64})")
_NOT_PLAIN: Final = frozenset({b"expect", b"upgrade", b"origin", b"content-encoding"})
_END_OF_HEAD: Final = b"\r\n\r\n"
_CLOSE: Final = b"\r\nconnection: close\r\n\r\n"

logger = logging.getLogger(__name__)


class _Ask(msgspec.Struct, frozen=True):
    """What the head of a request asks for: a door, the key in its path, with these credentials.
    `length` is that of the body, -1 where the head does not tell it."""

    door: HotDoor
    key: str
    credentials: str | None
    length: int
    keep_alive: bool


class Lane(msgspec.Struct, frozen=True):
    """What the lane works with, handed in.

    `paths` remembers what paths name. `heads` remembers heads that came again to the byte, as those
    of a service do: the same bytes are the same head, and need not be parsed again.
    """

    plane: DataPlane
    gate: Gate
    requests: RequestLog
    traces: RequestTracer | None = None
    paths: dict[bytes, tuple[HotDoor, str]] = msgspec.field(default_factory=dict)
    heads: dict[bytes, _Ask] = msgspec.field(default_factory=dict)

    def door_at(self, path: bytes) -> tuple[HotDoor, str] | None:
        """The hot door of a path, with the key in it; None where there is none."""
        if path == b"/v1/assign":
            return ASSIGN, ""
        found = self.paths.get(path)
        if found is None and (match := _PATH.fullmatch(path)) is not None:
            if len(self.paths) >= _MOST_PATHS:
                self.paths.clear()
            found = self.paths[path] = (FLAG, match[1].decode())
        return found

    def remember(self, head: bytes, ask: _Ask) -> None:
        """Know a head when it comes again."""
        if len(self.heads) >= _MOST_HEADS:
            self.heads.clear()
        self.heads[head] = ask


_LAST: Final = _Ask(ASSIGN, "", None, 0, keep_alive=False)
"""Stands for what came last and was no HTTP."""


class _Turn:
    """A request of the lane, until its answer is on its way."""

    __slots__ = ("answer", "ask", "began", "caller", "given", "id", "span")

    def __init__(self, ask: _Ask, identity: str, given: tuple[bytes, bytes] | None) -> None:
        """`given` are the headers of the caller's trace, which are read when somebody asks."""
        self.ask = ask
        self.id = identity
        self.given = given
        self.began = time.perf_counter()
        self.answer: bytes | None = None
        self.caller: Principal | None = None
        self.span: RequestSpan | None = None

    @property
    def context(self) -> TraceContext | None:
        """The trace that it belongs to, if any."""
        if self.span is not None:
            return self.span.context
        return None if self.given is None else given_trace(*self.given)


@contextmanager
def _belonging_to(turn: _Turn) -> Iterator[None]:
    """What is logged meanwhile is of this request."""
    identity, trace = request_id.set(turn.id), current_trace.set(turn.context)
    try:
        yield
    finally:
        current_trace.reset(trace)
        request_id.reset(identity)


class _Busy(RequestResponseCycle):
    """Stands where the base class looks for a cycle that is not complete."""

    def __init__(self) -> None:
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self.message_event = asyncio.Event()


@lru_cache(maxsize=4_096)
def _json_head(length: int) -> bytes:
    """The head of an answer with a body of this length, up to the request's id."""
    return (
        STATUS_LINE[200]
        + b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: " % length
    )


class LaneProtocol(BoundedProtocol):
    """One connection."""

    def __init__(self, lane: Lane, **others: Any) -> None:
        super().__init__(**others)
        self._lane = lane
        self._turns: deque[_Turn] = deque()
        self._ask: _Ask | None = None  # of the request whose body comes in
        self._given_id = ""
        self._given_trace: tuple[bytes, bytes] | None = None
        self._body = b""
        self._asked: _Ask | None = None  # by the request that has ended last
        self._last_head = b""
        self._idle_timer: asyncio.TimerHandle | None = None

    # What comes in.

    def data_received(self, data: bytes) -> None:
        """Take what came: requests whose heads are known at once, all else through the parser."""
        self._unset_keepalive_if_required()
        whole = self._between
        if whole:
            rest = self._take_known(data)
            if rest == len(data):
                return
            if rest:
                data = data[rest:]
        self._asked = None
        super().data_received(data)
        if whole and self._between and self._asked is not None:
            self._learn(data, self._asked)

    def _take_known(self, data: bytes) -> int:
        """Take the requests that data begins with, as far as their heads are known and their bodies
        complete; where the next one begins."""
        heads, first = self._lane.heads, 0
        while (end := data.find(_END_OF_HEAD, first)) >= 0:
            body = end + len(_END_OF_HEAD)
            ask = heads.get(data[first:body])
            if ask is None or body + ask.length > len(data) or self._is_framework_busy():
                break
            first = body + ask.length
            self._evaluate(ask, data[body:first], "", None)
        return first

    def _learn(self, data: bytes, ask: _Ask) -> None:
        """Remember the head of a request that came alone, if it is the second like it."""
        body = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        if body > _LONGEST_HEAD or body + ask.length != len(data):
            return
        head = data[:body]
        if head == self._last_head:
            self._lane.remember(head, ask)
        self._last_head = head

    # What the parser finds. The base class makes a scope for each request: here it is made for
    # those that leave the lane.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._between = self._in_body = False
        self._since = self.loop.time()
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Take the request into the lane, or give it to the framework."""
        self._in_body = True
        headers = dict(self.headers)
        found = self._lane.door_at(self.url)
        length = int(headers.get(b"content-length", b"-1"))
        if (
            found is None
            or len(headers) != len(self.headers)
            or self._is_framework_busy()
            or self.parser.get_method() != b"POST"
            or self.parser.get_http_version() != "1.1"
            or not _NOT_PLAIN.isdisjoint(headers)
            or length > MAX_ASSIGN_BODY
        ):
            self._leave_lane()
            return
        api_key = headers.get(b"x-api-key")
        credentials = key_of(
            headers.get(b"authorization", b"").decode("latin-1"),
            None if api_key is None else api_key.decode("latin-1"),
        )
        self._ask = _Ask(*found, credentials, length, self.parser.should_keep_alive())
        given = headers.get(b"x-request-id")
        self._given_id = "" if given is None else given_id(given)
        parent = headers.get(TRACEPARENT)
        self._given_trace = None if parent is None else (parent, headers.get(TRACESTATE, b""))
        self._body = b""

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        if self._ask is None:
            super().on_body(body)
            return
        self._head_bytes = 0
        self._body += body
        if len(self._body) > MAX_ASSIGN_BODY:
            self._ask = None
            self._leave_lane()
            super().on_body(self._body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        ask, self._ask = self._ask, None
        if ask is None:
            super().on_message_complete()
            return
        self._between, self._in_body = True, False
        self._head_bytes = 0
        if ask.keep_alive and ask.length >= 0 and not self._given_id and self._given_trace is None:
            self._asked = ask
        self._evaluate(ask, self._body, self._given_id, self._given_trace)

    def _is_busy(self) -> bool:
        return bool(self._turns) or self._is_framework_busy()

    def _received(self) -> int:
        return super()._received() if self._ask is None else len(self._body)

    def _leave_lane(self) -> None:
        url, headers = self.url, self.headers
        expects = self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        if self._turns and not self.pipeline:
            self.cycle = _Busy()
        super().on_headers_complete()

    # What becomes of a request of the lane.

    def _evaluate(
        self, ask: _Ask, body: bytes, identity: str, given: tuple[bytes, bytes] | None
    ) -> None:
        lane = self._lane
        turn = _Turn(ask, identity or lane.requests.new_id(), given)
        self._turns.append(turn)
        if lane.traces is not None:
            self._begin_span(lane.traces, turn)
        if len(self._turns) >= MOST_TURNS:
            self.flow.pause_reading()
        try:
            turn.caller = caller = lane.gate.admit(ask.credentials, "evaluate")
            asked = ask.door.evaluate(lane.plane, caller, ask.key, body)
            if sticks(asked.entry, asked.answer):
                self._complete_later(turn, asked)
            elif asked.exposes:
                lane.plane.recorder.expose_soon(asked, partial(self._answer, turn, asked))
            else:
                self._answer(turn, asked, False)
        except (ProblemError, OfrepError) as error:
            self._refuse(turn, error)
        except Exception as error:
            self._break(turn, error)

    def _begin_span(self, traces: RequestTracer, turn: _Turn) -> None:
        attributes = request_attributes("POST", turn.id)
        name = f"POST {turn.ask.door.template}"
        turn.span = traces.begin_request(name, attributes, turn.context)
        if turn.span is not None:
            turn.span.set("http.route", turn.ask.door.template)

    def _complete_later(self, turn: _Turn, asked: Evaluation) -> None:
        context = copy_context()
        context.run(current_trace.set, turn.context)
        context.run(request_id.set, turn.id)
        task = self.loop.create_task(self._complete(turn, asked), context=context)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _complete(self, turn: _Turn, asked: Evaluation) -> None:
        try:
            answer, recorded = await complete(self._lane.plane, asked)
            self._send(turn, turn.ask.door.encode(asked.entry, answer, recorded))
        except Exception as error:
            self._break(turn, error)

    def _answer(self, turn: _Turn, asked: Evaluation, recorded: bool) -> None:
        entry, answer = asked.entry, asked.answer
        try:
            count(self._lane.plane, entry, answer)
            self._send(turn, turn.ask.door.encode(entry, answer, recorded and answer.enrolled))
        except Exception as error:
            self._break(turn, error)

    def _refuse(self, turn: _Turn, error: ProblemError | OfrepError) -> None:
        self._reply(turn, turn.ask.door.refuse(error, turn.ask.key, turn.id))

    def _break(self, turn: _Turn, error: Exception) -> None:
        with _belonging_to(turn):
            logger.error("defect", exc_info=error)
        self._refuse(turn, ProblemError("internal", DEFECT))

    # The way out.

    def _send(self, turn: _Turn, body: bytes) -> None:
        """Answer in JSON."""
        turn.answer = b"".join(
            (
                _json_head(len(body)),
                turn.id.encode(),
                _END_OF_HEAD if turn.ask.keep_alive else _CLOSE,
                body,
            )
        )
        requests = self._lane.requests
        if turn.span is not None or requests.logs_all:
            self._tell(turn, 200)
        else:
            seconds = time.perf_counter() - turn.began
            requests.answered_well("POST", turn.ask.door.template, seconds)
        if self._turns and self._turns[0].answer is not None:
            self._write_answers()

    def _reply(self, turn: _Turn, reply: Reply) -> None:
        """Answer with headers of its own, in the order in which the framework has them."""
        lines = [STATUS_LINE[reply.status]]
        lines += [f"{name.lower()}: {value}\r\n".encode() for name, value in reply.headers.items()]
        charset = "; charset=utf-8" if reply.media_type.startswith("text/") else ""
        lines.append(f"content-type: {reply.media_type}{charset}\r\n".encode())
        lines.append(b"content-length: %d\r\n" % len(reply.body))
        lines.append(f"x-request-id: {turn.id}".encode())
        lines.append(_END_OF_HEAD if turn.ask.keep_alive else _CLOSE)
        turn.answer = b"".join([*lines, reply.body])
        self._tell(turn, reply.status)
        if self._turns and self._turns[0].answer is not None:
            self._write_answers()

    def _tell(self, turn: _Turn, status: int) -> None:
        """Tell the log, the metrics and the trace of an answer."""
        seconds = time.perf_counter() - turn.began
        door = turn.ask.door.template
        with _belonging_to(turn):
            self._lane.requests.answered("POST", door, status, seconds, turn.caller)
        if turn.span is not None:
            describe_answer(turn.span, status, turn.caller)
            turn.span.end()

    def _write_answers(self) -> None:
        turns, transport = self._turns, self.transport
        data, keep_alive = b"", True
        while turns and keep_alive and (answer := turns[0].answer) is not None:
            data = data + answer if data else answer
            keep_alive = turns.popleft().ask.keep_alive
            self.server_state.total_requests += 1
        if transport.is_closing():  # one write to a closed transport would stop all that follow
            turns.clear()
            return
        transport.write(data)
        if not keep_alive:
            turns.clear()
            transport.close()
        elif not turns:
            self._turns_are_over()

    def _turns_are_over(self) -> None:
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._idle_timer is None:
            # It looks when it is due: to stop and start it with every request costs more.
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)
        self._active_at = self.loop.time()
        if self.flow.read_paused and not self.flow.write_paused:
            self.flow.resume_reading()

    # Time and back-pressure.

    def _close_if_idle(self) -> None:
        self._idle_timer = None
        if self.transport.is_closing():
            return
        left = self._active_at + self.timeout_keep_alive - self.loop.time()
        if self._turns or not self._between or self._is_framework_busy():
            left = self.timeout_keep_alive
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._close_if_idle)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Read no more from a peer that does not take its answers."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """Close the connection, once what it waits for was answered."""
        if self._is_framework_busy():
            super().shutdown()
        elif self._ask is not None:
            self._ask = msgspec.structs.replace(self._ask, keep_alive=False)
        elif self._turns:
            last = self._turns[-1]
            last.ask = msgspec.structs.replace(last.ask, keep_alive=False)
        else:
            super().shutdown()

    def _say_last_words(self, words: bytes) -> None:
        """Refuse what is no request, behind the answers to those that were."""
        if not self._turns:
            super()._say_last_words(words)
        elif self._turns[-1].ask is not _LAST:
            turn = _Turn(_LAST, "", None)
            turn.answer = words
            self._turns.append(turn)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what can no longer be answered; what was recorded stays recorded."""
        self._turns.clear()
        self._ask = None
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)
