"""Pages of other origins: which may call, and which may read what they are answered."""

import httpx
import pytest
import pytest_asyncio

from tests.running import Turnout, eventually

ASSIGN = "/v1/assign"
READABLE = "access-control-allow-origin"


@pytest_asyncio.fixture
async def shop(turnout: Turnout) -> Turnout:
    """A project that names an origin, and the router knows."""
    # Tests share a Turnout: each project names an origin that no other does.
    await turnout.client("admin").patch("/v1/project", json={"origins": [origin_of(turnout)]})

    async def knows() -> bool | None:
        answer = await preflight(turnout, origin_of(turnout))
        return True if READABLE in answer.headers else None

    await eventually(knows, "answer to the origin")
    return turnout


def origin_of(turnout: Turnout) -> str:
    """The origin that a project names."""
    return f"https://{turnout.project}.example.com"


async def preflight(turnout: Turnout, origin: str, path: str = ASSIGN) -> httpx.Response:
    """What a browser asks before a page calls."""
    return await turnout.client(None).options(
        path,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )


async def test_a_browser_may_ask_before_it_calls(shop: Turnout) -> None:
    for path in (ASSIGN, "/ofrep/v1/evaluate/flags", "/ofrep/v1/evaluate/flags/ranker-v7"):
        answer = await preflight(shop, origin_of(shop), path)
        assert answer.status_code == 204
        assert answer.headers[READABLE] == origin_of(shop)
        assert "Authorization" in answer.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v1/keys", "/v1/outcomes", "/v1/experiments", "/", "/metrics"])
async def test_doors_that_are_not_for_browsers_say_nothing(shop: Turnout, path: str) -> None:
    assert READABLE not in (await preflight(shop, origin_of(shop), path)).headers
    answer = await shop.client("admin").get(path, headers={"Origin": origin_of(shop)})
    assert READABLE not in answer.headers


async def test_a_page_reads_its_answers_and_its_errors(shop: Turnout) -> None:
    key = await shop.start()
    headers = {"Origin": origin_of(shop)}
    body = {"experiment": key, "unit": "ann"}
    client = shop.client("client")
    answers = {
        200: await client.post(ASSIGN, json=body, headers=headers),
        422: await client.post(ASSIGN, json={}, headers=headers),
        404: await client.post(ASSIGN, json=body | {"experiment": "none"}, headers=headers),
        401: await shop.client(None).post(ASSIGN, json=body, headers=headers),
        403: await shop.client("analyst").post(ASSIGN, json=body, headers=headers),
    }
    for status, answer in answers.items():
        assert answer.status_code == status, answer.text
        assert answer.headers[READABLE] == origin_of(shop)
        assert "Retry-After" in answer.headers["access-control-expose-headers"]
        assert "Origin" in answer.headers["vary"]
    assert answers[200].json() == await shop.assign(key, "ann")


async def test_only_the_origins_of_the_keys_project_read_its_answers(
    shop: Turnout, stranger: Turnout
) -> None:
    key = await stranger.start()
    body = {"experiment": key, "unit": "ann"}
    for origin in (origin_of(shop), "https://evil.example.com", "null"):
        answer = await stranger.client("client").post(ASSIGN, json=body, headers={"Origin": origin})
        assert answer.status_code == 200
        assert READABLE not in answer.headers
    assert READABLE not in (await preflight(stranger, "https://evil.example.com")).headers


async def test_a_browser_hears_events_by_its_ticket(shop: Turnout) -> None:
    headers = {"Origin": origin_of(shop)}
    answer = await shop.client("client").post(
        "/ofrep/v1/evaluate/flags", json={"context": {"targetingKey": "ann"}}, headers=headers
    )
    assert answer.headers[READABLE] == origin_of(shop)
    [stream] = answer.json()["eventStreams"]
    where = stream["endpoint"]["requestUri"]
    async with shop.client(None).stream("GET", where, headers=headers) as events:
        assert events.status_code == 200
        assert events.headers[READABLE] == origin_of(shop)
