"""Carries a message to an address: one attempt, bounded in time, which follows no redirect and
keeps nothing of the answer but its status."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import aiohttp

from experiments.spans import NO_SPAN, NO_TRACES, TraceContext, Tracer, current_trace
from experiments.webhooks.outbox import Attempt
from experiments.webhooks.reach import open_socket

ATTEMPT_SECONDS: Final = 10.0
"""For all of an attempt: the name, the connection, and the head of the answer."""
LONGEST_PAUSE: Final = timedelta(hours=6)
"""A receiver that asks to be left alone is, for so long at most."""
_LONGEST_ERROR: Final = 200
USER_AGENT: Final = "turnout-webhooks/1"


class Courier:
    """Posts messages. Each has a connection of its own, so that one which was due before its
    process froze is not sent on the moment it wakes."""

    def __init__(self, proxy: str = "", tracer: Tracer = NO_TRACES) -> None:
        """`proxy` is the HTTP proxy to go through; empty for none."""
        self._proxy = proxy or None
        self._tracer = tracer
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        seconds: float = ATTEMPT_SECONDS,
        trace: TraceContext | None = None,
    ) -> Attempt:
        """Send a message; what came of it. `seconds` is the time that is left for it, and `trace`
        where it belongs, if that is not the work which is going on; the receiver is told that."""
        # The address is a secret, so that the span does not name it.
        with self._tracer.span(
            "POST webhook", "client", {"http.request.method": "POST"}, parent=trace
        ) as span:
            # Where nobody traces the work that is going on is another's, and what led to the
            # message is passed on as it came.
            below = trace if span is NO_SPAN and trace is not None else current_trace.get()
            passed_on = {} if below is None else below.headers()
            attempt = await self._post(url, body, {**headers, **passed_on}, seconds)
            if attempt.status is not None:
                span.set("http.response.status_code", attempt.status)
            if not attempt.arrived:
                span.fail("no answer" if attempt.status is None else str(attempt.status))
            return attempt

    async def _post(
        self, url: str, body: bytes, headers: Mapping[str, str], seconds: float
    ) -> Attempt:
        try:
            async with (
                asyncio.timeout(seconds),
                self._open().post(
                    url,
                    data=body,
                    headers={
                        **headers,
                        "Content-Type": "application/json",
                        "User-Agent": USER_AGENT,
                    },
                    allow_redirects=False,
                    proxy=self._proxy,
                ) as answer,
            ):
                return _judged(answer.status, answer.headers)
        except TimeoutError:
            return Attempt(None, f"no answer within {ATTEMPT_SECONDS:g} s")
        except ValueError:  # no address, or no name; what it says would show it
            return Attempt(None, "the address cannot be read")
        except (aiohttp.ClientError, OSError) as error:
            return Attempt(None, _line_of(error))

    async def close(self) -> None:
        """Let all connections go."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # A proxy judges by itself where to go, and an operator has chosen it.
                connector=aiohttp.TCPConnector(
                    force_close=True, socket_factory=None if self._proxy else open_socket
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


def _judged(status: int, headers: Mapping[str, str]) -> Attempt:
    """Success is 2xx, and nothing else is."""
    if 200 <= status < 300:
        return Attempt(status, "")
    pause = headers.get("Retry-After", "")
    if pause.isascii() and pause.isdigit() and len(pause) <= 9:
        asked = min(timedelta(seconds=int(pause)), LONGEST_PAUSE)
        return Attempt(status, f"the answer was {status}", asked)
    where = " (redirects are not followed)" if 300 <= status < 400 else ""
    return Attempt(status, f"the answer was {status}{where}")


def _line_of(error: Exception) -> str:
    """What went wrong, in a line: such errors name the host at most, never the path."""
    if isinstance(error, aiohttp.ClientConnectorError):
        text = f"no connection: {error.os_error or type(error).__name__}"
    else:
        text = type(error).__name__
    return " ".join(text.split())[:_LONGEST_ERROR]
