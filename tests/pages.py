"""A real browser for tests: Debian's Chromium, which sees the pages as people do.

`open_page` signs a role in and gives its page. Whatever a browser complains about while a test runs
fails that test, unless the test has said that it expects it.
"""

import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    async_playwright,
)

from experiments.keys import Role
from tests.running import Turnout

CHROMIUM: Final = "/usr/bin/chromium"
FLAGS: Final = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
DESKTOP: Final = (1280, 900)
PHONE: Final = (390, 844)
PATIENCE_MS: Final = 20_000
"""A bound, not a wait: machines that run tests may be busy."""
RULES: Final = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
"""What axe-core holds a page to: WCAG 2.2, levels A and AA."""

_LEFT_OFF: Final = "net::ERR_ABORTED"
"""Nothing failed: the page was left while it was loading, or still listening."""


class Complaints:
    """What browsers complained about: scripts, the Content-Security-Policy, the network."""

    def __init__(self) -> None:
        self._heard: list[str] = []
        self._expected: list[re.Pattern[str]] = []

    def expect(self, pattern: str) -> None:
        """Say that a test brings about complaints in which this regular expression is found."""
        self._expected.append(re.compile(pattern))

    @property
    def unexpected(self) -> list[str]:
        """What no test has said that it would bring about."""
        return [
            text
            for text in self._heard
            if not any(pattern.search(text) for pattern in self._expected)
        ]

    def listen(self, context: BrowserContext) -> None:
        """Hear all pages of a context."""
        context.on("console", self._console)
        context.on("weberror", lambda error: self._heard.append(f"script: {error.error}"))
        context.on("requestfailed", self._request)
        context.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            where = message.location["url"]
            self._heard.append(f"console: {message.text} ({where})")

    def _request(self, request: Request) -> None:
        if request.failure != _LEFT_OFF:
            self._heard.append(f"request: {request.method} {request.url} {request.failure}")

    def _response(self, response: Response) -> None:
        if response.status >= 500:
            self._heard.append(f"response: {response.status} {response.url}")


OpenPage: TypeAlias = Callable[..., Awaitable[Page]]
"""`await open_page(turnout, "editor")`: a new page in a browser of its own, signed in with the key
of that role in the project; with None nobody is. `dark`, `phone` and `script` say what kind of
browser it is."""


async def launch() -> tuple[Any, Browser]:
    """Playwright and a browser; stop both."""
    playwright = await async_playwright().start()
    return playwright, await playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])


async def new_context(
    browser: Browser, url: str, *, dark: bool = False, phone: bool = False, **options: Any
) -> BrowserContext:
    """A browser with nothing in its memory, on a desk or in a hand."""
    width, height = PHONE if phone else DESKTOP
    context = await browser.new_context(
        base_url=url,
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        has_touch=phone,
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="Asia/Tokyo",  # far from UTC, in which all times are told
        **options,
    )
    context.set_default_timeout(PATIENCE_MS)
    return context


async def sign_in(context: BrowserContext, key: str) -> None:
    """Begin a session as the form of the page does, without drawing it."""
    answer = await context.request.post("/sign-in", form={"key": key, "to": "/"}, max_redirects=0)
    assert answer.status == 303, await answer.text()


@pytest_asyncio.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The browser of a process that runs tests; each page has its own memory in it."""
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"tests in a browser need {CHROMIUM}: apt-get install chromium")
    playwright, started = await launch()
    try:
        yield started
    finally:
        await started.close()
        await playwright.stop()


@pytest_asyncio.fixture
async def complaints() -> AsyncIterator[Complaints]:
    """What browsers complain about in a test: nothing, but for what it expects."""
    heard = Complaints()
    yield heard
    assert heard.unexpected == []


@pytest_asyncio.fixture
async def open_page(browser: Browser, complaints: Complaints) -> AsyncIterator[OpenPage]:
    """How a test opens pages (`OpenPage`); their browsers are closed after it."""
    contexts: list[BrowserContext] = []

    async def opened(
        turnout: Turnout,
        role: Role | None,
        *,
        dark: bool = False,
        phone: bool = False,
        script: bool = True,
    ) -> Page:
        context = await new_context(
            browser, turnout.url, dark=dark, phone=phone, java_script_enabled=script
        )
        contexts.append(context)
        complaints.listen(context)
        if role is not None:
            await sign_in(context, turnout.keys[role])
        return await context.new_page()

    yield opened
    for context in contexts:
        await context.close()


async def accessibility_faults(page: Page, rules: Sequence[str] | None = None) -> list[str]:
    """What axe-core finds wrong with a page: the rule, and where.

    Args:
        rules: only these; all of WCAG 2.2 AA unless told.
    """
    chosen = {"type": "tag", "values": [*RULES]}
    if rules is not None:
        chosen = {"type": "rule", "values": [*rules]}
    found = await Axe().run(page, options={"runOnly": chosen, "resultTypes": ["violations"]})
    violations: list[Mapping[str, Any]] = found.response["violations"]
    return [
        f"{violation['id']}: {node['target']} {node['failureSummary']}"
        for violation in violations
        for node in violation["nodes"]
    ]


async def overflow(page: Page) -> int:
    """By how many pixels a page is wider than its window."""
    wider: int = await page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return wider
