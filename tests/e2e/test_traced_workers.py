"""Traces of a fleet: each worker has a thread of its own that exports, begun after the fork."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.commands import PLAIN, Variables, until, up
from tests.e2e.traffic import QUICK

PASSWORD: Final = "password-zq81"  # noqa: S105 - what must not be found


@contextmanager
def collector() -> Iterator[tuple[str, dict[int, set[str]]]]:
    """A collector's address, and the names of the spans that it got of each process."""
    got: dict[int, set[str]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                pids = [a.value for a in resource.resource.attributes if a.key == "process.pid"]
                names = {span.name for scope in resource.scope_spans for span in scope.spans}
                got.setdefault(pids[0].int_value, set()).update(names)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://collector:{PASSWORD}@127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


def test_where_nobody_traces_nothing_that_exports_is_loaded() -> None:
    script = (
        "import sys, turnout.service, turnout.fleet;"
        "print([name for name in sys.modules if 'otlp' in name or name == 'requests'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() == "[]"


def test_each_worker_sends_its_spans_and_logs_as_itself(
    data_dir: Any, database_url: str, redis_url: str
) -> None:
    with collector() as (endpoint, got):
        variables: Variables = {
            "TURNOUT_DATABASE_URL": database_url,
            "TURNOUT_REDIS_URL": redis_url,
            "TURNOUT_OTLP_ENDPOINT": endpoint,
            "TURNOUT_TRACE_SAMPLE": "1",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        flags = (*QUICK, "--workers", "2", "--log-level", "debug")
        with up(data_dir, *flags, variables=variables, command="serve") as service:

            def both_have_told() -> bool:
                httpx.get(f"{service.url}/healthz", verify=PLAIN)  # each time a new connection
                return sum("GET /healthz" in names for names in got.values()) == 2

            until(both_have_told, "spans of two workers")
            assert service.process.pid not in got
            service.stop()
        lines = [json.loads(line) for line in service.logged.splitlines()]
        asked = [line for line in lines if line["message"] == "request"]
        assert {line["pid"] for line in asked} == {*got}
        assert {line["process"] for line in lines} == {"serve"}
        assert all(line["request_id"] and line["trace_id"] for line in asked)
        assert PASSWORD not in service.logged
