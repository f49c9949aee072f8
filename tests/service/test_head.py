"""HEAD is answered as GET at every door and page, without a body."""

from typing import Final

import httpx
import pytest

from dashboard import live
from experiments.keys import Role
from router import streams
from tests.running import Turnout
from turnout.app import DOORS

CHANGING: Final = frozenset(
    {"x-request-id", "date", "etag", "content-length", "transfer-encoding", "set-cookie"}
)
"""Headers that two answers to the same question need not share."""
OPEN: Final = ("/healthz", "/readyz", "/metrics", "/problems", "/schema", "/", "/sign-in", "/keys")
"""What asks for no key, or sends whoever has none to sign in."""


def path_of(path: str, key: str) -> str:
    """The address of a door, of one experiment."""
    return path.replace("{key}", key).replace("{key:str}", key).replace("{number:str}", "1")


async def both(turnout: Turnout, path: str, role: Role | None) -> tuple[httpx.Response, ...]:
    """What GET and HEAD answer."""
    client = turnout.client(role)
    return await client.get(path), await client.head(path)


def told(answer: httpx.Response) -> dict[str, str]:
    """The headers that say something of what is there."""
    return {name: value for name, value in answer.headers.items() if name not in CHANGING}


async def test_head_is_get_without_a_body_at_every_door(turnout: Turnout) -> None:
    key = await turnout.start()
    paths = {
        path_of(path, key) for door in DOORS if "GET" in door.http_methods for path in door.paths
    }
    assert len(paths) > 20
    for path in sorted(paths - {streams.PATH}):
        got, head = await both(turnout, path, "admin")
        assert (head.status_code, told(head)) == (got.status_code, told(got)), path
        assert head.content == b""
        assert ("content-length" in head.headers) == ("content-length" in got.headers), path


@pytest.mark.parametrize("path", OPEN)
async def test_head_is_get_without_a_body_where_no_key_is_asked_for(
    turnout: Turnout, path: str
) -> None:
    got, head = await both(turnout, path, None)
    assert (head.status_code, told(head)) == (got.status_code, told(got))
    assert head.content == b""


async def test_head_of_an_answer_that_stays_names_its_length(turnout: Turnout) -> None:
    got, head = await both(turnout, "/healthz", None)
    assert head.headers["content-length"] == str(len(got.content)) == "15"


async def test_what_is_refused_to_get_is_refused_to_head(turnout: Turnout) -> None:
    refused: tuple[tuple[str, Role | None], ...] = (
        ("/v1/keys", "analyst"),
        ("/v1/experiments", None),
        ("/v1/assign", "admin"),
    )
    for path, role in refused:
        got, head = await both(turnout, path, role)
        assert 400 <= got.status_code == head.status_code < 500
        assert head.content == b""


async def test_an_event_stream_has_nothing_to_look_at(turnout: Turnout) -> None:
    for path in (streams.PATH, live.PATH):
        assert (await turnout.client("service").head(path)).status_code == 405


async def test_a_head_is_counted_as_one(turnout: Turnout) -> None:
    await turnout.client("analyst").head("/v1/experiments")
    metrics = (await turnout.client(None).get("/metrics")).text
    assert 'turnout_requests_total{door="/v1/experiments",method="HEAD",status="200"}' in metrics
