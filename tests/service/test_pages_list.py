"""The page of all experiments."""

import re
from typing import Final

import pytest

from tests.running import Turnout, eventually
from tests.service.visiting import visit

_MANY: Final = """
    insert into experiment (project, key, state, revision, definition, created_at, updated_at)
    select $1, 'x-' || n, 'draft', 1,
           json_build_object('key', 'x-' || n, 'name', 'Experiment ' || n, 'variants',
               json_build_array(json_build_object('key', 'a', 'control', true, 'weight', 0.5,
                                                  'value', 1),
                                json_build_object('key', 'b', 'weight', 0.5, 'value', 2))),
           now(), now()
    from generate_series(1, 620) n
"""


def keys(text: str) -> list[str]:
    """The experiments that a page shows, in order."""
    return re.findall(r'<tr id="x-([^"]+)">', text)


async def test_one_who_may_write_is_told_how_to_begin(turnout: Turnout) -> None:
    async with visit(turnout, "editor") as client:
        page = (await client.get("/experiments")).text
    assert "No experiments yet" in page
    assert 'href="/editor"' in page
    assert f"curl -X POST {turnout.url}/v1/experiments" in page
    async with visit(turnout, "analyst") as client:
        page = (await client.get("/experiments")).text
    assert "No experiments yet" in page
    assert 'href="/editor"' not in page


async def test_it_is_searched_and_filtered_by_its_address(
    turnout: Turnout, stranger: Turnout
) -> None:
    await turnout.define(key="ranker-v7", name="Ranker SIEBEN", owner="Search", tags=["web", "ml"])
    await turnout.define(key="checkout", hypothesis="50% more buy", owner="growth", tags=["web"])
    await turnout.define(key="mail", name="日本語 & <b>")
    await stranger.define(key="elsewhere", tags=["web"])
    async with visit(turnout, "analyst") as client:

        async def shown(query: str) -> set[str]:
            return set(keys((await client.get(f"/experiments?{query}")).text))

        assert await shown("") == {"ranker-v7", "checkout", "mail"}
        assert await shown("q=sieben") == {"ranker-v7"}
        assert await shown("q=web+SEARCH") == {"ranker-v7"}, "every word has to be found"
        assert await shown("q=50%25") == {"checkout"}
        assert await shown("q=%25") == {"checkout"}, "a wildcard is what it looks like"
        assert await shown("q=日本") == {"mail"}
        assert await shown("tag=web") == {"ranker-v7", "checkout"}
        assert await shown("tag=we") == set()
        assert await shown("tag=web&owner=growth") == {"checkout"}
        assert await shown("state=running") == set()
        page = (await client.get("/experiments?q=nothing+like+it")).text
        assert "No experiment matches" in page
        assert 'href="/experiments">Clear search and filters' in page
        assert "日本語 &amp; &lt;b&gt;" in (await client.get("/experiments?q=mail")).text


async def test_a_search_by_script_shows_the_address_of_its_view(turnout: Turnout) -> None:
    await turnout.define(key="checkout")
    async with visit(turnout, "analyst") as client:
        answer = await client.get(
            "/experiments?q=check&health=any&tag=&owner=", headers={"HX-Request": "true"}
        )
    assert answer.headers["hx-push-url"] == "/experiments?q=check"
    assert keys(answer.text) == ["checkout"]


async def test_hundreds_are_shown_in_pages_each_once(turnout: Turnout) -> None:
    await turnout.host.pool.execute(_MANY, turnout.project)
    async with visit(turnout, "analyst") as client:
        first = (await client.get("/experiments?sort=name")).text
        following = re.search(r'href="([^"]+)" rel="next"', first)
        assert following is not None
        second = (await client.get(following[1].replace("&amp;", "&"))).text
    assert (len(keys(first)), len(keys(second))) == (500, 120)
    assert len({*keys(first), *keys(second)}) == 620
    assert "620 experiments" in second
    assert 'rel="next"' not in second


async def test_a_row_says_how_it_stands(turnout: Turnout) -> None:
    key = await turnout.start(name="Ranker", owner="Search")
    ended = await turnout.start(name="Old")
    await turnout.move(ended, "conclude", ship="new")
    gone = await turnout.define(name="Gone")
    await turnout.move(gone, "archive")
    async with visit(turnout, "analyst") as client:

        async def seen() -> str | None:
            text = (await client.get("/experiments")).text
            return text if "No units yet" in text else None

        page = await eventually(seen, "report at a glance")
        archived = (await client.get("/experiments?state=archived")).text
    assert keys(page) == [key, ended]
    assert "all get new" in page
    assert "new shipped" in page
    assert 'aria-label="Traffic: old 50' in page
    assert keys(archived) == [gone]
    assert "/experiments/$holdout" not in page


@pytest.mark.parametrize(("share", "there"), [(0.1, True), (0.0, False)])
async def test_a_holdout_is_linked_while_it_is_in_force(
    turnout: Turnout, share: float, there: bool
) -> None:
    await turnout.define()
    await turnout.put("/v1/holdout", share=0.2, reason="to measure all together")
    await turnout.put("/v1/holdout", share=share, reason="a change")
    async with visit(turnout, "analyst") as client:
        page = (await client.get("/experiments")).text
    assert ('href="/experiments/$holdout"' in page) is there
    assert len(keys(page)) == 1, "the holdout itself is no row"
