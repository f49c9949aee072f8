"""A browser without scripts, in which somebody is signed in."""

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Final

import httpx

from experiments.keys import Role
from tests.running import Turnout

BROWSERS_ACCEPT: Final = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@contextlib.asynccontextmanager
async def visit(turnout: Turnout, role: Role) -> AsyncIterator[httpx.AsyncClient]:
    """A browser in which the project's key of a role is signed in."""
    async with httpx.AsyncClient(
        base_url=turnout.url, headers={"Accept": BROWSERS_ACCEPT}, timeout=30
    ) as client:
        answer = await client.post("/sign-in", data={"key": turnout.keys[role], "to": "/"})
        assert answer.status_code == 303, answer.text
        yield client


def csrf_of(page: httpx.Response) -> str:
    """The token that the forms of a page carry."""
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
    assert found is not None
    return found[1]
