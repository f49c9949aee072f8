"""Signing in to the pages: who gets in, how far, and that nobody acts for them."""

import gzip
import re
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Final, TypeAlias

import httpx
import pytest
import pytest_asyncio

from dashboard.app import GUARDED
from dashboard.security import COOKIE, HEADERS, SECURE_COOKIE
from experiments.keys import Role
from tests.running import Turnout, eventually, problem

HTML: Final = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ADDRESSES: Final = sorted(
    {
        (method, re.sub(r"\{[^}]*\}", "thing", path))
        for handler in GUARDED
        for method in handler.http_methods
        for path in handler.paths
    }
)
WRITES: Final = [address for address in ADDRESSES if address[0] != "GET"]

Browser: TypeAlias = Callable[[], httpx.AsyncClient]


@pytest_asyncio.fixture
async def browser(turnout: Turnout) -> AsyncIterator[Browser]:
    """Makes browsers with nothing in their memory."""
    made: list[httpx.AsyncClient] = []

    def new() -> httpx.AsyncClient:
        made.append(httpx.AsyncClient(base_url=turnout.url, headers=HTML, timeout=30))
        return made[-1]

    yield new
    for client in made:
        await client.aclose()


async def sign_in(
    client: httpx.AsyncClient, key: str, to: str = "/", **headers: str
) -> httpx.Response:
    """What signing in with a key gives."""
    return await client.post("/sign-in", data={"key": key, "to": to}, headers=headers)


async def signed_in(browser: Browser, turnout: Turnout, role: Role = "editor") -> httpx.AsyncClient:
    """A browser in which a role's key of the project is signed in."""
    client = browser()
    answer = await sign_in(client, turnout.keys[role])
    assert answer.status_code == 303, answer.text
    return client


async def csrf_of(client: httpx.AsyncClient) -> str:
    """The token of a page that was just loaded."""
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', (await client.get("/experiments")).text)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("role", ["analyst", "editor", "admin"])
async def test_a_key_that_may_read_leads_to_the_page_that_was_asked_for(
    turnout: Turnout, browser: Browser, role: Role
) -> None:
    client = browser()
    sent_away = await client.get("/experiments?q=a&state=running")
    assert sent_away.status_code == 303
    assert sent_away.headers["location"] == "/sign-in?to=%2Fexperiments%3Fq%3Da%26state%3Drunning"
    asked = await client.get(sent_away.headers["location"])
    assert 'value="/experiments?q=a&amp;state=running"' in asked.text
    answer = await sign_in(client, f" {turnout.keys[role]}\n", "/experiments?q=a&state=running")
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        "/experiments?q=a&state=running",
    )
    page = await client.get("/experiments")
    assert page.status_code == 200
    assert turnout.project in page.text
    assert (await client.get("/sign-in?to=/experiments")).headers["location"] == "/experiments"


@pytest.mark.parametrize("role", ["client", "service"])
async def test_a_key_of_a_service_sees_no_pages(
    turnout: Turnout, browser: Browser, role: Role
) -> None:
    client = browser()
    answer = await sign_in(client, turnout.keys[role])
    assert answer.status_code == 403
    assert "analyst, editor or admin" in answer.text
    assert (await client.get("/experiments")).status_code == 303


async def test_a_wrong_key_is_refused_in_words_and_never_repeated(
    turnout: Turnout, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    client = browser()
    key_id, secret = turnout.keys["admin"].split("_")[1:]
    wrong = f"to_{key_id}_{secret[:-4]}0000"
    for text in (wrong, "", "to_", "nonsense é 日本", "to_" + "x" * 5000):
        answer = await sign_in(client, text)
        assert answer.status_code == 401
        assert "This is no valid key" in answer.text
        assert "set-cookie" not in answer.headers
        assert secret[:8] not in answer.text
    refused = [record for record in caplog.records if record.message == "sign-in refused"]
    assert len(refused) == 5
    assert refused[0].__dict__["key_id"] == key_id
    assert all(len(record.__dict__["key_id"]) <= 12 for record in refused)
    assert secret[:8] not in caplog.text
    metrics = (await turnout.client(None).get("/metrics")).text
    assert re.search(r'turnout_requests_total\{[^}]*door="/sign-in"[^}]*status="401"', metrics)


@pytest.mark.parametrize(
    "to",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "/experiments\r\nSet-Cookie: a=b",
        "/é",
        "",
    ],
)
async def test_signing_in_leads_nowhere_else(turnout: Turnout, browser: Browser, to: str) -> None:
    client = browser()
    answer = await sign_in(client, turnout.keys["analyst"], to)
    assert answer.headers["location"] == "/"
    assert (await client.get("/sign-in", params={"to": to})).headers["location"] == "/"


async def test_the_cookie_is_for_our_pages_alone(turnout: Turnout, browser: Browser) -> None:
    plain = (await sign_in(browser(), turnout.keys["analyst"])).headers["set-cookie"]
    assert plain.startswith(f"{COOKIE}=")
    for word in ("HttpOnly", "SameSite=lax", "Path=/", "Max-Age=43200"):
        assert word in plain
    assert "Secure" not in plain
    assert "Domain" not in plain
    host = httpx.URL(turnout.url).netloc.decode()
    for headers in (
        {"X-Forwarded-Proto": "https"},
        {"X-Forwarded-Proto": "https, http"},
        {"Origin": f"https://{host}"},
    ):
        client = browser()
        answer = await sign_in(client, turnout.keys["analyst"], **headers)
        secure = answer.headers["set-cookie"]
        assert secure.startswith(f"{SECURE_COOKIE}=")
        assert "Secure" in secure
        assert "Domain" not in secure


async def test_behind_https_no_cookie_counts_that_a_plain_connection_could_have_planted(
    turnout: Turnout, browser: Browser
) -> None:
    client = await signed_in(browser, turnout)
    assert (await client.get("/experiments")).status_code == 200
    behind = await client.get("/experiments", headers={"X-Forwarded-Proto": "https"})
    assert behind.status_code == 303


async def test_no_page_is_shown_to_nobody(turnout: Turnout, browser: Browser) -> None:
    client = browser()
    for method, path in ADDRESSES:
        answer = await client.request(method, path)
        assert answer.status_code == 303, (method, path)
        assert answer.headers["location"].startswith("/sign-in")
        for headers in ({"HX-Request": "true"}, {"Sec-Fetch-Mode": "cors"}):
            answer = await client.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path)
        client.cookies.set(COOKIE, "0" * 64)
        assert (await client.request(method, path)).status_code == 303
        client.cookies.clear()


async def test_no_write_is_taken_that_did_not_come_from_a_page_of_the_session(
    turnout: Turnout, browser: Browser
) -> None:
    # An admin, who may all: only the token is wrong.
    mine = await signed_in(browser, turnout, "admin")
    other = await signed_in(browser, turnout, "admin")
    own = await csrf_of(mine)
    foreign = await csrf_of(other)
    assert WRITES
    for method, path in WRITES:
        for token in ("", "x", own[:-1], own[:31] + "g" + own[32:], foreign, "é" * 96):
            answer = await mine.request(method, path, data={"csrf": token})
            assert answer.status_code == 403, (method, path, token)
            assert "load the page again" in answer.text
        for headers in ({"X-CSRF-Token": foreign}, {"Content-Type": "application/json"}):
            answer = await mine.request(method, path, content=b"{}", headers=headers)
            assert answer.status_code == 403, (method, path)
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
            answer = await mine.request(method, path, data={"csrf": own}, headers=headers)
            assert answer.status_code == 403, (method, path)
            assert "another address" in answer.text
    assert (await mine.get("/experiments")).status_code == 200


async def test_nobody_is_signed_in_by_a_page_of_somebody_else(
    turnout: Turnout, browser: Browser
) -> None:
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ):
        answer = await sign_in(browser(), turnout.keys["analyst"], **headers)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": turnout.url}):
        answer = await sign_in(browser(), turnout.keys["analyst"], **headers)
        assert answer.status_code == 303


async def test_who_signs_out_is_out_with_every_copy_of_the_cookie(
    turnout: Turnout, browser: Browser
) -> None:
    client = await signed_in(browser, turnout)
    token = client.cookies[COOKIE]
    csrf = await csrf_of(client)
    answer = await client.post("/sign-out", data={"csrf": csrf})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    client.cookies.set(COOKIE, token)
    assert (await client.get("/experiments")).status_code == 303


async def test_a_session_ends_with_its_key_at_once(turnout: Turnout, browser: Browser) -> None:
    client = await signed_in(browser, turnout, "analyst")
    assert (await client.get("/experiments")).status_code == 200
    key_id = turnout.keys["analyst"].split("_")[1]
    revoked = await turnout.client("admin").delete(f"/v1/keys/{key_id}")
    assert revoked.is_success
    assert (await client.get("/experiments")).status_code == 303


async def test_a_session_ends_when_its_key_expires(turnout: Turnout, browser: Browser) -> None:
    text = await turnout.host.make_key(turnout.project, "analyst", timedelta(hours=1))
    client = browser()

    async def knows() -> bool | None:
        return True if (await sign_in(client, text)).status_code == 303 else None

    await eventually(knows, "use for a new key")
    (row,) = await turnout.rows(
        """select max(s.expires_at - k.expires_at) as more from page_session s
           join api_key k on k.id = s.key_id where k.project = $1"""
    )
    assert row["more"] == timedelta(0)
    assert (await client.get("/experiments")).status_code == 200
    async with turnout.host.pool.acquire() as connection:
        await connection.execute(
            "update api_key set expires_at = now() - interval '1 s' where id = $1",
            text.split("_")[1],
        )
    assert (await client.get("/experiments")).status_code == 303


async def test_sessions_that_have_ended_are_cleared_away_and_no_token_is_kept(
    turnout: Turnout, browser: Browser
) -> None:
    client = await signed_in(browser, turnout)
    token = client.cookies[COOKIE]
    sessions = "select s::text as text from page_session s join api_key k on k.id = s.key_id"
    (row,) = await turnout.rows(f"{sessions} where k.project = $1")
    assert token not in row["text"]
    async with turnout.host.pool.acquire() as connection:
        await connection.execute(
            """update page_session s set expires_at = now() - interval '1 s'
               from api_key k where k.id = s.key_id and k.project = $1""",
            turnout.project,
        )
    assert (await client.get("/experiments")).status_code == 303
    await signed_in(browser, turnout)
    assert len(await turnout.rows(f"{sessions} where k.project = $1")) == 1


async def test_an_analyst_is_refused_what_changes_something(
    turnout: Turnout, browser: Browser
) -> None:
    client = await signed_in(browser, turnout, "analyst")
    token = await csrf_of(client)
    writing = {
        (method, re.sub(r"\{[^}]*\}", "thing", path))
        for handler in GUARDED
        if handler.opt["permission"] == "write"
        for method in handler.http_methods
        for path in handler.paths
    }
    for method, path in writing:
        answer = await client.request(method, path, headers={"X-CSRF-Token": token})
        assert answer.status_code == 403, (method, path)
        assert "analyst has no permission to write" in answer.text
        assert "analyst</dd>" in answer.text  # who is signed in, with the way out


async def test_a_session_sees_nothing_of_another_project(
    turnout: Turnout, stranger: Turnout, browser: Browser
) -> None:
    theirs = await stranger.define(name="Nobody's business")
    client = await signed_in(browser, turnout)
    assert theirs not in (await client.get("/experiments")).text
    for path in (f"/experiments/{theirs}", f"/live?experiment={theirs}"):
        answer = await client.get(path)
        assert answer.status_code == 404
        assert "business" not in answer.text


async def test_pages_have_strict_headers(turnout: Turnout, browser: Browser) -> None:
    client = await signed_in(browser, turnout)
    for path in ("/experiments", "/sign-in", "/experiments/none", "/nothing/here", "/"):
        answer = await client.get(path)
        assert answer.headers["cache-control"] == "no-store", path
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (path, name)
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "*" not in policy
    page = (await client.get("/experiments")).text
    assert re.findall(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style|javascript:", page) == []


async def test_pages_are_compressed_and_their_tokens_cannot_be_felt_out(
    turnout: Turnout, browser: Browser
) -> None:
    client = await signed_in(browser, turnout)
    async with client.stream("GET", "/experiments", headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["vary"]
    assert b"</html>" in gzip.decompress(raw)
    plain = await client.get("/experiments", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    tokens = {await csrf_of(client) for _ in range(3)}
    assert len({token[:32] for token in tokens}) == len({token[32:] for token in tokens}) == 3


async def test_a_browser_gets_a_page_where_there_is_nothing_and_a_service_problem_details(
    turnout: Turnout, browser: Browser
) -> None:
    client = browser()
    for path in ("/nothing/here", "/assets/none.js"):
        answer = await client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"].startswith("text/html")
        assert "There is nothing at this address" in answer.text
        assert answer.headers["x-request-id"] in answer.text
    wrong = await client.put("/experiments")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, OPTIONS")
    assert wrong.headers["content-type"].startswith("text/html")
    for path in ("/v1/nothing", "/ofrep/v1/nothing"):
        problem(await client.get(path), 404, "not-found")
    problem(await client.get("/nothing/here", headers={"Accept": "*/*"}), 404, "not-found")
    problem(await client.get("/v1/experiments"), 401, "unauthenticated")


async def test_a_defect_is_a_page_with_the_id_that_finds_it_in_the_log(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr("dashboard.sign_in.visitor_of", broken)
    answer = await browser().get("/sign-in")
    assert answer.status_code == 500
    assert "Something broke" in answer.text
    assert answer.headers["x-request-id"] in answer.text
    assert "secret" not in answer.text
    assert answer.headers["content-security-policy"]
    assert [record.message for record in caplog.records if record.exc_info] == ["defect"]


async def test_options_tell_which_methods_there_are_and_nothing_else(
    turnout: Turnout, browser: Browser
) -> None:
    client = browser()
    for _, path in ADDRESSES:
        answer = await client.options(path)
        assert (answer.status_code, answer.content) == (204, b"")


async def test_assets_are_kept_for_good_by_their_content(
    turnout: Turnout, browser: Browser
) -> None:
    client = browser()
    page = (await client.get("/sign-in")).text
    addresses = re.findall(r'(?:src|href)="(/assets/[^"]+)"', page)
    assert len(addresses) >= 6
    for address in addresses:
        answer = await client.get(address)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"
        unnamed = await client.get(address.partition("?")[0])
        assert unnamed.headers["cache-control"] == "no-cache"
    for path in ("/assets/../app.py", "/assets/%2e%2e/app.py", "/assets//etc/passwd"):
        assert (await client.get(path)).status_code == 404
