"""The real nginx and HAProxy on the configurations in deploy/proxies, for tests."""

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx

from tests.e2e.commands import PLAIN, until
from tests.tools import tool

PROXIES: Final = Path(__file__).parents[2] / "deploy" / "proxies"
NGINX_AROUND: Final = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log notice;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def upstream(name: str) -> Iterator[int]:
    """A service that answers with its name, and with what it was told in headers; its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer()

        def _answer(self) -> None:
            self.send_response(200)
            self.send_header("X-Served-By", name)
            self.send_header("X-Told", self.headers.get("X-Turnout-Variant", "nothing"))
            self.send_header("X-Unit", self.headers.get("X-Turnout-Unit", ""))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with serving_with(Handler) as port:
        yield port


@contextlib.contextmanager
def serving_with(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """A small server on any free port; the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """A configuration with these places changed, each of which must be there."""
    for old, new in changes.items():
        assert old in text, f"the configuration does not say {old!r}"
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def nginx(folder: Path, site: str, port: int, key: str = "") -> Iterator[str]:
    """nginx on a configuration for conf.d; where it serves."""
    program = tool("nginx")
    folder.mkdir()
    (folder / "site.conf").write_text(site)
    main = folder / "nginx.conf"
    main.write_text(NGINX_AROUND.format(folder=folder))
    key_file = folder / "turnout-key.conf"
    key_file.touch(mode=0o600)
    key_file.write_text(f'proxy_set_header Authorization "Bearer {key}";\n')
    command = [str(program), "-p", str(folder), "-c", str(main), "-e", str(folder / "start.log")]
    with _running(command, port, {}) as url:
        yield url


@contextlib.contextmanager
def haproxy(folder: Path, text: str, port: int, key: str = "") -> Iterator[str]:
    """HAProxy on a configuration; where it serves."""
    program = tool("haproxy")
    folder.mkdir()
    file = folder / "haproxy.cfg"
    file.write_text(text)
    with _running([str(program), "-f", str(file)], port, {"TURNOUT_API_KEY": key}) as url:
        yield url


@contextlib.contextmanager
def _running(command: list[str], port: int, variables: Mapping[str, str]) -> Iterator[str]:
    with subprocess.Popen(
        command,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until(lambda: _listens(port) or process.poll() is not None, f"{command[0]} serves")
            if process.poll() is not None:
                assert process.stderr is not None
                raise AssertionError(process.stderr.read())
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.communicate(timeout=10)  # a full pipe would keep it from ending
            except subprocess.TimeoutExpired:
                process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def client(url: str) -> httpx.Client:
    """A client of a proxy."""
    return httpx.Client(base_url=url, timeout=30, verify=PLAIN)
