"""The way of an operator: what goes wrong is on the page at once, and nobody has to reload it."""

from playwright.async_api import Page, expect

from tests.e2e.browser.traffic import CLICK, ERRORS, come
from tests.pages import Complaints, OpenPage
from tests.running import Turnout

FAILING = {"old": {"error": 0.05}, "new": {"error": 0.95}}


async def marked(page: Page) -> None:
    """Leave a mark that a reload would wipe out."""
    await page.evaluate("window.wasNotReloaded = true")


async def test_a_failing_model_is_seen_to_be_rolled_back(
    turnout: Turnout, open_page: OpenPage
) -> None:
    key = await turnout.start(metrics=[CLICK, ERRORS])
    page = await open_page(turnout, "analyst", phone=True)
    await page.goto(f"/experiments/{key}")
    facts = page.locator(".experiment-facts")
    await expect(facts).to_contain_text("Running")
    await marked(page)
    for _ in range(3):
        await come(turnout, key, 300, FAILING)
        await page.wait_for_timeout(1000)  # each a block of its own
    await expect(facts).to_contain_text("Rolled back", timeout=20_000)
    await expect(page.locator("#decisions")).to_contain_text("errors")
    assert await page.evaluate("window.wasNotReloaded")


async def test_a_list_follows_what_others_do(turnout: Turnout, open_page: OpenPage) -> None:
    first = await turnout.start()
    page = await open_page(turnout, "analyst")
    await page.goto("/experiments")
    await marked(page)
    await turnout.move(first, "pause")
    await expect(page.locator(f"#x-{first}")).to_contain_text("Paused")
    second = await turnout.define()
    await expect(page.locator(f"#x-{second}")).to_contain_text("Draft")
    assert await page.evaluate("window.wasNotReloaded")


async def test_what_a_person_does_on_a_page_survives_that_it_follows(
    turnout: Turnout, open_page: OpenPage
) -> None:
    key = await turnout.start(metrics=[CLICK])
    page = await open_page(turnout, "editor")
    await page.goto(f"/experiments/{key}")
    settings = page.locator("#settings details").first
    await settings.locator("summary").click()
    await page.get_by_role("link", name="Pause", exact=True).click()
    reason = page.get_by_role("dialog").get_by_label("Reason")
    await reason.fill("Half a sent")
    await turnout.allocate(key, weights={"old": 0.8, "new": 0.2})
    await expect(page.locator("#decisions")).to_contain_text("epoch 2")
    await expect(reason).to_be_focused()
    await reason.press_sequentially("ence")
    await expect(reason).to_have_value("Half a sentence")
    assert await settings.evaluate("details => details.open")


async def test_a_lost_connection_is_told_and_so_is_its_return(
    turnout: Turnout, open_page: OpenPage, complaints: Complaints
) -> None:
    complaints.expect("ERR_INTERNET_DISCONNECTED")
    key = await turnout.start()
    page = await open_page(turnout, "analyst")
    await page.clock.install()
    await page.goto(f"/experiments/{key}")
    status = page.get_by_role("status").and_(page.locator("[data-live-status]"))
    await expect(status).to_have_text("Live")
    await page.context.set_offline(True)
    await page.clock.fast_forward(15_000)  # two beats are missing
    await expect(status).to_contain_text("Connection lost, figures as of")
    await page.context.set_offline(False)
    await page.clock.fast_forward(10_000)
    await expect(status).not_to_contain_text("Connection lost")


async def test_data_that_stop_coming_are_told(shop: Turnout, open_page: OpenPage) -> None:
    page = await open_page(shop, "analyst")
    # Another leader, which does nothing; and the last data an hour ago.
    await shop.host.pool.execute(
        "update lease set holder = 'idle', term = term + 1,"
        " expires_at = clock_timestamp() + interval '12 seconds'"
    )
    await shop.host.pool.execute(
        "update fold_position set watermark = watermark - interval '1 hour'"
    )
    try:
        await page.goto("/experiments/ranker-v7")
        status = page.locator("[data-live-status]")
        await expect(status).to_contain_text("No new data since", timeout=8_000)
    finally:
        await shop.host.pool.execute("update lease set expires_at = '-infinity'")


async def test_a_key_that_is_revoked_signs_its_holder_out(
    turnout: Turnout, open_page: OpenPage, complaints: Complaints
) -> None:
    complaints.expect("status of 401")
    key = await turnout.start()
    page = await open_page(turnout, "analyst")
    await page.goto(f"/experiments/{key}")
    known = (await turnout.client("admin").get("/v1/keys")).json()["items"]
    [held] = [each["id"] for each in known if each["role"] == "analyst"]
    answer = await turnout.client("admin").delete(f"/v1/keys/{held}")
    assert answer.is_success, answer.text
    await page.get_by_role("link", name="Experiments", exact=True).first.click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    await page.get_by_label("API key").fill(turnout.keys["analyst"])
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("revoked")
