"""Signing in, in a real browser."""

from tests.pages import Complaints, OpenPage, accessibility_faults, overflow
from tests.running import Turnout


async def test_a_wrong_key_is_told_at_its_field_and_a_good_one_leads_on(
    turnout: Turnout, open_page: OpenPage, complaints: Complaints
) -> None:
    complaints.expect("status of 401")
    page = await open_page(turnout, None, phone=True)
    await page.goto("/experiments")
    await page.get_by_label("API key").fill("to_wrong")
    await page.get_by_role("button", name="Sign in").click()
    alert = page.get_by_role("alert")
    assert "no valid key" in await alert.inner_text()
    assert await accessibility_faults(page) == []
    await page.get_by_label("API key").fill(turnout.keys["editor"])
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/experiments")
    assert await overflow(page) == 0
