"""Webhooks of a real process that is killed while one is on its way."""

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncpg

from tests.e2e.commands import checked, up
from tests.e2e.traffic import QUICK
from tests.receiving import Received
from tests.running import definition
from tests.unit.test_signing import accepts
from turnout.embedded import running

ANSWER_SECONDS = 20.0


class Ear:
    """A receiver in a thread. It answers only while `answers` is set."""

    def __init__(self) -> None:
        self.heard: queue.Queue[Received] = queue.Queue()
        self.answers = threading.Event()
        self.answers.set()
        self.url = ""

    def hear(self) -> Received:
        """The next message."""
        return self.heard.get(timeout=ANSWER_SECONDS)


@contextmanager
def listening() -> Iterator[Ear]:
    """A receiver on a free port."""
    ear = Ear()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            ear.heard.put(Received(self.path, headers, body))
            if ear.answers.wait(ANSWER_SECONDS):
                self.send_response(200)
                self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def handle(self) -> None:
            """A caller may die in the middle."""
            try:
                super().handle()
            except OSError:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        ear.url = f"http://127.0.0.1:{server.server_address[1]}/told"
        yield ear
    finally:
        ear.answers.set()
        server.shutdown()
        server.server_close()
        thread.join(ANSWER_SECONDS)


def end_claims(data_dir: Path) -> None:
    """Let the claims of a dead process run out at once, which takes half a minute otherwise."""
    servers = running(data_dir)
    assert servers is not None

    async def end() -> None:
        connection = await asyncpg.connect(servers.database_url)
        try:
            await connection.execute("update delivery_lane set due_at = clock_timestamp()")
        finally:
            await connection.close()

    asyncio.run(end())


def test_a_kill_in_the_middle_of_a_delivery_loses_nothing_and_keeps_the_order(
    data_dir: Path,
) -> None:
    with listening() as ear:
        with up(data_dir, *QUICK) as service, service.client(service.admin_key) as client:
            key_file = data_dir / "signing.key"
            assert key_file.stat().st_mode & 0o777 == 0o600
            admin_key = service.admin_key
            made = checked(client.post("/v1/webhooks", json={"url": ear.url}))
            webhook, secret = made["id"], made["secret"]
            assert key_file.read_text().strip() not in service.logged
            ear.answers.clear()
            experiment = definition()
            path = f"/v1/experiments/{experiment['key']}"
            checked(client.post("/v1/experiments", json=experiment))
            checked(client.post(f"{path}/start", json={"reason": "a test"}))
            first = ear.hear()
            checked(client.post(f"{path}/pause", json={"reason": "behind it"}))
            service.kill()
        ear.answers.set()
        with up(data_dir, *QUICK) as service, service.client(admin_key) as client:
            end_claims(data_dir)
            again, behind = ear.hear(), ear.hear()
            assert (again.id, again.body) == (first.id, first.body)
            assert [got.data["kind"] for got in (again, behind)] == ["start", "pause"]
            assert all(accepts(secret, got.headers, got.body) for got in (first, again, behind))

            trial = checked(client.post(f"/v1/webhooks/{webhook}/test"))
            assert trial["arrived"]
            told = checked(client.get(f"/v1/webhooks/{webhook}/deliveries"))["items"]
            assert [delivery["type"] for delivery in told] == [
                "experiment.pause",
                "experiment.start",
            ]
            assert service.metric("turnout_webhooks_disabled") == 0
            assert secret not in service.logged
