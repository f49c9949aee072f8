"""Somebody who is told: an HTTP server that keeps what it gets, and answers as a test says."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web


class Received(msgspec.Struct, frozen=True):
    """A request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """Its `webhook-id`."""
        return self.headers["webhook-id"]

    @property
    def data(self) -> Any:
        """The `data` of its body."""
        return json.loads(self.body)["data"]


class Receiver:
    """Where webhooks go. `status` is what it answers, `refused` the experiments for which it
    answers 503, and while `gate` is not set it does not answer at all."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.refused: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.got: list[Received] = []
        self.at_once = self.most_at_once = 0
        self.url = ""

    def kinds(self, experiment: str | None = None) -> list[str]:
        """The kinds of what was received, in order; of one experiment, or of all."""
        return [
            received.data["kind"]
            for received in self.got
            if experiment is None or received.data["experiment"] == experiment
        ]

    async def handle(self, request: web.Request) -> web.Response:
        """Keep a request."""
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            headers = {name.lower(): value for name, value in request.headers.items()}
            received = Received(request.path, headers, await request.read())
            await self.gate.wait()
            experiment = json.loads(received.body).get("data", {}).get("experiment")
            if experiment in self.refused:
                return web.Response(status=503)
            self.got.append(received)
            return web.Response(status=self.status, headers=self.headers)
        finally:
            self.at_once -= 1


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on a free port."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{rest:.*}", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/secret-token"
        yield receiver
    finally:
        receiver.gate.set()
        await runner.cleanup()
