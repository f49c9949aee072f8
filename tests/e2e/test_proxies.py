"""nginx and HAProxy in front of two services, with Turnout to say which: deploy/proxies, for real.

What is asked of both: a unit meets the variant that Turnout says, it is recorded, and whatever
Turnout does, no request fails because of it: the control serves.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final, TypeAlias

import httpx
import msgspec
import pytest

from tests.e2e.commands import Up, checked, until, up
from tests.e2e.proxies import (
    PROXIES,
    client,
    free_port,
    haproxy,
    nginx,
    replaced,
    serving_with,
    upstream,
)
from tests.e2e.traffic import QUICK, assign, start_experiment, units_of, until_assigned

PATIENT: Final = "30s"
"""Where what is looked at is what Turnout says: machines that run tests may be busy."""
AS_WRITTEN: Final = ""
SERVED_BY: Final = {"v6": "control", "v7": "other"}


class Place(msgspec.Struct, frozen=True):
    """What a proxy is in front of: the ports of Turnout and of both services; and what it asks
    for, with which key."""

    turnout: int
    control: int
    other: int
    experiment: str = "ranker"
    key: str = "to_none_none"


Proxy: TypeAlias = Callable[[Path, Place, str], AbstractContextManager[str]]


@contextlib.contextmanager
def with_nginx(folder: Path, place: Place, patience: str) -> Iterator[str]:
    """nginx as it is deployed, at this place."""
    port = free_port()
    changes = {
        "127.0.0.1:8080": f"127.0.0.1:{place.turnout}",
        "127.0.0.1:9006": f"127.0.0.1:{place.control}",
        "127.0.0.1:9007": f"127.0.0.1:{place.other}",
        "listen 8081": f"listen 127.0.0.1:{port}",
        "/v1/route/ranker;": f"/v1/route/{place.experiment};",
    }
    if patience:
        changes |= {"connect_timeout 50ms": f"connect_timeout {patience}"}
        changes |= {"read_timeout 100ms": f"read_timeout {patience}"}
    site = replaced((PROXIES / "nginx.conf").read_text(), changes)
    with nginx(folder / "nginx", site, port, place.key) as url:
        yield url


@contextlib.contextmanager
def with_haproxy(folder: Path, place: Place, patience: str) -> Iterator[str]:
    """HAProxy as it is deployed, at this place."""
    port, socket_name = free_port(), f"turnout-test-{free_port()}"
    script = (PROXIES / "turnout.lua").read_text()
    changes = {
        "127.0.0.1:8080": f"127.0.0.1:{place.turnout}",
        "127.0.0.1:9006": f"127.0.0.1:{place.control}",
        "127.0.0.1:9007": f"127.0.0.1:{place.other}",
        "bind :8081": f"bind 127.0.0.1:{port}",
        "/etc/haproxy/turnout.lua": str(folder / "turnout.lua"),
        "abns@turnout": f"abns@{socket_name}",
        "lua.turnout ranker": f"lua.turnout {place.experiment}",
        "inter 1s": "inter 100ms",
    }
    if patience:
        changes |= {"timeout connect 50ms": f"timeout connect {patience}"}
        changes |= {"timeout server 100ms": f"timeout server {patience}"}
        changes |= {"timeout client 1s": f"timeout client {patience}"}
        script = replaced(script, {"longest = 200": "longest = 30000"})
    (folder / "turnout.lua").write_text(replaced(script, {"abns@turnout": f"abns@{socket_name}"}))
    text = replaced((PROXIES / "haproxy.cfg").read_text(), changes)
    with haproxy(folder / "haproxy", text, port, place.key) as url:
        yield url


BOTH: Final = pytest.mark.parametrize("proxy", [with_nginx, with_haproxy], ids=["nginx", "haproxy"])


@pytest.fixture(scope="module")
def services() -> Iterator[tuple[int, int]]:
    """What serves the control, and what serves the other variant."""
    with upstream("control") as control, upstream("other") as other:
        yield control, other


def get(proxied: httpx.Client, unit: str, **more: Any) -> httpx.Response:
    """A visitor's request."""
    answer = proxied.get("/", headers={"Cookie": f"uid={unit}", **more})
    assert answer.status_code == 200, answer.text
    return answer


def is_routed(proxied: httpx.Client) -> bool:
    """Whether the proxy goes by what Turnout says."""
    return bool(get(proxied, "probe").headers["x-told"] != "nothing")


def key_of(service: Up, admin_key: str) -> tuple[str, str]:
    """A key for a proxy, with its id."""
    with service.client(admin_key) as turnout:
        made = checked(turnout.post("/v1/keys", json={"role": "client", "note": "a proxy"}))
    return made["key"], made["id"]


def port_of(service: Up) -> int:
    """Where a Turnout serves."""
    return int(service.url.rpartition(":")[2])


@BOTH
def test_every_unit_meets_the_variant_that_turnout_says(
    proxy: Proxy, tmp_path: Path, services: tuple[int, int], serving: Up
) -> None:
    experiment = f"routed-by-{proxy.__name__.removeprefix('with_')}"
    start_experiment(serving, serving.admin_key, experiment)
    key, identity = key_of(serving, serving.admin_key)
    place = Place(port_of(serving), *services, experiment, key)
    with proxy(tmp_path, place, PATIENT) as url, client(url) as visitor:
        until(lambda: is_routed(visitor), "the proxy asks Turnout")
        met = {}
        for unit in [f"visitor-{number}" for number in range(60)]:
            answers = [get(visitor, unit, **{"X-Turnout-Variant": "v7"}) for _ in range(2)]
            assert {answer.headers["x-unit"] for answer in answers} == {unit}
            [met[unit]] = {a.headers["x-served-by"] for a in answers}
            assert {SERVED_BY[answer.headers["x-told"]] for answer in answers} == {met[unit]}
        with serving.client(serving.admin_key) as turnout:
            for unit, served_by in met.items():
                said = checked(assign(turnout, unit, experiment, expose=False))
                assert SERVED_BY[said["variant"]] == served_by
        assert set(met.values()) == {"control", "other"}
        until(
            lambda: units_of(serving, serving.admin_key, experiment) == len(met) + 1,
            "every visitor is counted once, and the probe",
        )
        # A body is the service's, and not Turnout's.
        posted = visitor.post("/", content=b"x" * 50_000, headers={"Cookie": "uid=visitor-1"})
        assert posted.headers["x-served-by"] == met["visitor-1"]
        # Who is new gets a name that lasts; who has a strange one gets another.
        for cookie in ("", "uid=a%0d%0aX-Evil", 'uid="},{"'):
            new = visitor.get("/", headers={"Cookie": cookie})
            unit = new.cookies["uid"]
            assert unit == new.headers["x-unit"]
            assert get(visitor, unit).headers["x-served-by"] == new.headers["x-served-by"]
            visitor.cookies.clear()
        # A key that is revoked: the control serves, and nobody is told of it.
        with serving.client(serving.admin_key) as turnout:
            assert turnout.delete(f"/v1/keys/{identity}").is_success
        until(lambda: not is_routed(visitor), "Turnout refuses the key")
        [unit, *_] = [unit for unit, served_by in met.items() if served_by == "other"]
        assert get(visitor, unit).headers["x-served-by"] == "control"


@BOTH
def test_the_control_serves_while_turnout_is_away(
    proxy: Proxy, tmp_path: Path, services: tuple[int, int], database_url: str, redis_url: str
) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}
    port = free_port()
    flags = (*QUICK, "--port", str(port))
    with up(tmp_path / "data", *flags, variables=variables, command="serve") as service:
        admin_key = service.admin_key
        start_experiment(service, admin_key)
        place = Place(port, *services, key=key_of(service, admin_key)[0])
        with proxy(tmp_path, place, PATIENT) as url, client(url) as visitor:
            until(lambda: is_routed(visitor), "the proxy asks Turnout")
            units = [f"visitor-{number}" for number in range(20)]
            met = {unit: get(visitor, unit).headers["x-served-by"] for unit in units}
            assert set(met.values()) == {"control", "other"}
            service.kill()
            away = {unit: get(visitor, unit).headers["x-served-by"] for unit in units}
            assert set(away.values()) == {"control"}
            with up(
                tmp_path / "data", *flags, variables=variables, command="serve", name="again"
            ) as again:
                until_assigned(again, admin_key)
                until(lambda: is_routed(visitor), "the proxy asks Turnout again")
                assert {unit: get(visitor, unit).headers["x-served-by"] for unit in units} == met


@BOTH
def test_the_control_serves_while_turnout_is_silent(
    proxy: Proxy, tmp_path: Path, services: tuple[int, int]
) -> None:
    """It takes the question, and never answers it: only the limits of the files end that."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        place = Place(silent.getsockname()[1], *services)
        with proxy(tmp_path, place, AS_WRITTEN) as url, client(url) as visitor:
            for number in range(3):
                answer = get(visitor, f"visitor-{number}")
                assert answer.headers["x-served-by"] == "control"
                assert answer.headers["x-told"] == "nothing"


@BOTH
@pytest.mark.parametrize("status", [204, 302, 400, 401, 403, 404, 418, 429, 500, 503])
def test_no_answer_of_turnout_is_passed_on(
    proxy: Proxy, status: int, tmp_path: Path, services: tuple[int, int]
) -> None:
    class Strange(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/readyz" else status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with serving_with(Strange) as port:
        place = Place(port, *services)
        with proxy(tmp_path, place, PATIENT) as url, client(url) as visitor:
            answer = get(visitor, "anna", **{"X-Turnout-Variant": "v7"})
            assert answer.headers["x-served-by"] == "control"
            assert answer.headers["x-told"] == "nothing"
