"""What holds for every page, whatever it is about: anyone can read it, on any screen."""

import pytest
from playwright.async_api import Page, expect

from tests.e2e.browser.world import LONG
from tests.pages import DESKTOP, PHONE, Complaints, OpenPage, accessibility_faults, overflow
from tests.running import Turnout

PAGES = {
    "the list": "/experiments",
    "a search without hits": "/experiments?q=nothing-of-this-name",
    "a clear winner": "/experiments/ranker-v7",
    "a bandit": "/experiments/assistant-prompt",
    "a ramp that waits": "/experiments/embedder-ramp",
    "what was rolled back": "/experiments/summariser-2",
    "a draft": "/experiments/checkout-one-page",
    "no data yet": "/experiments/search-suggestions",
    "skewed traffic": "/experiments/signup-redirect",
    "ten variants with long names": f"/experiments/{LONG}",
    "data that stopped": "/experiments/onboarding-mail",
    "what was concluded": "/experiments/pricing-page",
    "a new experiment": "/editor",
    "a change of one": f"/editor?experiment={LONG}",
}


LOOKS = ("color-contrast", "link-in-text-block", "target-size")
"""The rules of axe-core that go by colours and sizes."""


async def show(page: Page, *, dark: bool, phone: bool) -> list[str]:
    """Show an open page on such a screen; what is too wide there."""
    width, height = PHONE if phone else DESKTOP
    await page.set_viewport_size({"width": width, "height": height})
    await page.emulate_media(color_scheme="dark" if dark else "light")
    wider = await overflow(page)
    return [f"wider than a window of {width} px by {wider} px"] if wider else []


@pytest.mark.parametrize("path", PAGES.values(), ids=PAGES)
async def test_everybody_can_read_it_on_any_screen(
    shop: Turnout, open_page: OpenPage, path: str
) -> None:
    page = await open_page(shop, "editor")
    answer = await page.goto(path)
    assert answer is not None
    assert answer.status == 200
    assert await page.get_by_role("heading", level=1).count() == 1
    found = await show(page, dark=False, phone=True)
    found += await accessibility_faults(page)
    found += await show(page, dark=True, phone=False)
    found += await accessibility_faults(page, LOOKS)
    assert found == []


async def test_what_is_not_there_is_told_on_a_page(
    shop: Turnout, open_page: OpenPage, complaints: Complaints
) -> None:
    complaints.expect("status of 404")
    page = await open_page(shop, "analyst", phone=True, dark=True)
    await page.goto("/experiments/nothing-of-this-name")
    await expect(page.get_by_role("main")).to_contain_text("nothing-of-this-name")
    assert await accessibility_faults(page) == []
