"""The page of an experiment, as it is served: who sees what of it."""

from collections.abc import AsyncIterator

import httpx
import pytest_asyncio

from experiments.keys import Role
from tests.running import Turnout


@pytest_asyncio.fixture
async def browser(turnout: Turnout) -> AsyncIterator[httpx.AsyncClient]:
    """A browser in which nobody is signed in yet."""
    async with httpx.AsyncClient(base_url=turnout.url, timeout=30) as client:
        yield client


async def see(browser: httpx.AsyncClient, turnout: Turnout, role: Role, path: str) -> str:
    """The page at a path, as a role sees it."""
    browser.cookies.clear()
    await browser.post("/sign-in", data={"key": turnout.keys[role], "to": "/"})
    page = await browser.get(path, headers={"Accept": "text/html"})
    assert page.status_code == 200, page.text
    return page.text


async def test_all_roles_that_read_see_the_results_and_writers_the_way_to_change_them(
    turnout: Turnout, browser: httpx.AsyncClient
) -> None:
    key = await turnout.start(
        name="Ranker <7> العربية",
        hypothesis="It lifts clicks",
        owner="search-team",
        tags=["search"],
    )
    editing = f'href="/editor?experiment={key}"'
    roles: dict[Role, bool] = {"analyst": False, "editor": True, "admin": True}
    for role, writes in roles.items():
        page = await see(browser, turnout, role, f"/experiments/{key}")
        for text in ("Ranker &lt;7&gt; العربية", "It lifts clicks", "search-team", "No units yet"):
            assert text in page
        assert (editing in page) == writes
        assert page.count("<h1") == 1
        assert f'data-live="/live?experiment={key}"' in page


async def test_a_draft_says_what_it_will_measure(
    turnout: Turnout, browser: httpx.AsyncClient
) -> None:
    key = await turnout.define()
    page = await see(browser, turnout, "analyst", f"/experiments/{key}")
    assert "Not started yet" in page
    assert "share of users with click" in page
    assert 'id="quality"' not in page


async def test_a_paused_experiment_says_who_paused_it_and_why(
    turnout: Turnout, browser: httpx.AsyncClient
) -> None:
    key = await turnout.start()
    await turnout.move(key, "pause", reason="A release is <late>")
    page = await see(browser, turnout, "analyst", f"/experiments/{key}")
    assert "<strong>Paused</strong>" in page
    assert "A release is &lt;late&gt;" in page


async def test_what_an_address_chooses_wrongly_is_not_chosen(
    turnout: Turnout, browser: httpx.AsyncClient
) -> None:
    key = await turnout.start()
    page = await see(
        browser,
        turnout,
        "analyst",
        f"/experiments/{key}?reading=x&metric=y&by=z&decisions=w&done=v",
    )
    assert 'aria-current="true">Any time' in page
    fixed = await see(browser, turnout, "analyst", f"/experiments/{key}?reading=fixed")
    assert 'aria-current="true">One look' in fixed


async def test_an_experiment_of_another_project_is_not_there(
    turnout: Turnout, stranger: Turnout, browser: httpx.AsyncClient
) -> None:
    key = await turnout.define()
    await browser.post("/sign-in", data={"key": stranger.keys["admin"], "to": "/"})
    page = await browser.get(f"/experiments/{key}", headers={"Accept": "text/html"})
    assert page.status_code == 404
    assert "<h1>" in page.text
