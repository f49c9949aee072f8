"""OFREP 0.3, event streams: clients hear that something has changed, and miss nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import msgspec
import pytest

from tests.running import PATIENCE, Turnout
from tests.spec.ofrep import complaints

PATH: Final = "/ofrep/v1/events"


class Stream:
    """A stream that was opened."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def block(self) -> dict[str, str]:
        """The fields of the next block of lines, without comments; empty at the end."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE):
            async for line in self._lines:
                if line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif fields:
                    break
        return fields

    async def event(self) -> dict[str, str]:
        """The next event that a client hears of."""
        while "data" not in (block := await self.block()):
            assert block, "the stream has ended"
        assert complaints("sseEvent", block) == []
        return block


async def address(turnout: Turnout) -> str:
    """The address that a bulk answer gives."""
    answer = await turnout.client("client").post(
        "/ofrep/v1/evaluate/flags", json={"context": {"targetingKey": "u1"}}
    )
    found: str = answer.json()["eventStreams"][0]["endpoint"]["requestUri"]
    return found


async def version(turnout: Turnout) -> int:
    """The project's version."""
    return int((await address(turnout)).rpartition("=")[2])


@asynccontextmanager
async def opened(
    turnout: Turnout, path: str, role: Any = None, **headers: str
) -> AsyncIterator[Stream]:
    """A stream, closed with the block; `headers` have underscores for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with turnout.client(role).stream("GET", path, headers=named) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        yield Stream(response)


async def test_a_client_hears_of_each_change_with_its_version(turnout: Turnout) -> None:
    key = await turnout.start()
    async with opened(turnout, await address(turnout)) as stream:
        first = await stream.block()
        assert set(first) == {"retry", "id"}
        assert int(first["id"]) == await version(turnout)
        for verb in ("pause", "resume", "rollback"):
            await turnout.move(key, verb)
            event = await stream.event()
            known = str(await version(turnout))
            assert (event["event"], event["id"]) == ("message", known)
            data = msgspec.json.decode(event["data"])
            assert data == {"type": "refetchEvaluation", "etag": known}
            assert complaints("sseEventData", data) == []


async def test_a_change_of_another_project_is_no_news(turnout: Turnout, stranger: Turnout) -> None:
    key = await turnout.start()
    before = await version(turnout)
    async with opened(turnout, await address(turnout)) as stream:
        for _ in range(3):
            await stranger.start()
        await turnout.move(key, "pause")
        assert int((await stream.event())["id"]) > before


async def test_who_was_away_hears_at_once_of_what_was_missed(turnout: Turnout) -> None:
    key = await turnout.start()
    early = await address(turnout)
    seen = early.rpartition("=")[2]
    await turnout.move(key, "pause")
    now = str(await version(turnout))
    for path, headers in (
        (early, {}),  # answered before the change, connected after it
        (early, {"last_event_id": seen}),
        (f"{early}&lastEventId={seen}", {}),
        (early, {"last_event_id": "nonsense"}),
    ):
        async with opened(turnout, path, **headers) as stream:
            assert (await stream.event())["id"] == now


@pytest.mark.parametrize("tells", ["since", "header", "parameter"])
async def test_who_has_missed_nothing_hears_nothing_until_something_changes(
    turnout: Turnout, tells: str
) -> None:
    key = await turnout.start()
    early = await address(turnout)
    await turnout.move(key, "pause")
    now = await version(turnout)
    path, headers = {
        "since": (await address(turnout), {}),
        # What the last event said counts for more than the address.
        "header": (early, {"last_event_id": str(now)}),
        "parameter": (f"{early}&lastEventId={now}", {}),
    }[tells]
    async with opened(turnout, path, **headers) as stream:
        assert int((await stream.block())["id"]) == now
        await turnout.move(key, "resume")
        assert int((await stream.event())["id"]) == await version(turnout) > now


async def test_a_key_in_a_header_opens_a_stream_as_well(turnout: Turnout) -> None:
    await turnout.start()
    async with opened(turnout, PATH, "service") as stream:
        assert int((await stream.event())["id"]) == await version(turnout)


@pytest.mark.parametrize(
    ("role", "query", "status"),
    [
        (None, "", 401),
        (None, "?token=", 401),
        (None, "?token=abc.1.2", 401),
        (None, "?token=%00", 401),
        ("client", "?token=abc.1.2", 401),
        ("analyst", "", 403),
    ],
)
async def test_without_a_good_ticket_or_key_there_is_no_stream(
    turnout: Turnout, role: Any, query: str, status: int
) -> None:
    answer = await turnout.client(role).get(PATH + query)
    assert (answer.status_code, answer.content) == (status, b"")


async def test_a_ticket_of_another_key_does_not_pass_when_changed(
    turnout: Turnout, stranger: Turnout
) -> None:
    mine, theirs = await address(turnout), await address(stranger)
    key_id = theirs.partition("token=")[2].partition(".")[0]
    forged = mine.partition("token=")[0] + f"token={key_id}." + mine.partition(".")[2]
    assert (await turnout.client(None).get(forged)).status_code == 401


async def test_a_revoked_key_ends_its_streams_and_opens_no_more(turnout: Turnout) -> None:
    await turnout.start()
    path = await address(turnout)
    key_id = turnout.keys["client"].split("_")[1]
    async with opened(turnout, path) as stream, opened(turnout, PATH, "service") as other:
        await stream.block()
        assert (await turnout.client("admin").delete(f"/v1/keys/{key_id}")).is_success
        while await stream.block():
            pass  # to its end
        assert await other.event()
    assert (await turnout.client(None).get(path)).status_code == 401


async def test_the_metrics_count_streams_and_show_no_ticket(turnout: Turnout) -> None:
    path = await address(turnout)
    async with opened(turnout, path) as stream:
        await stream.block()
        metrics = (await turnout.client(None).get("/metrics")).text
        assert "turnout_event_streams 1.0" in metrics
    ticket = path.partition("token=")[2].partition("&")[0]
    assert ticket not in (await turnout.client(None).get("/metrics")).text
