"""What the tests in a browser share."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.e2e.browser.shop import shop_of
from tests.running import Turnout
from turnout.embedded import LiveServers


@pytest_asyncio.fixture(scope="session")
async def shop(
    browser: Browser, servers: LiveServers, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Turnout]:
    """Three weeks of a shop's experiments, for tests that only look. It is made where there is a
    browser to look with."""
    folder = tmp_path_factory.mktemp("shop")
    async with shop_of(servers, folder, a_day=0.25, steps=21) as running:
        yield running
