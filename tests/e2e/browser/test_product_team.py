"""The way of a product team: define an experiment, start it, follow it, and end it."""

import re

from playwright.async_api import Page, expect

from tests.e2e.browser.traffic import come
from tests.pages import Complaints, OpenPage
from tests.running import Turnout

ALIKE = {"control": {"click": 0.3}, "treatment": {"click": 0.5}}


async def act(page: Page, name: str, reason: str, submit: str, choice: str | None = None) -> None:
    """Press the button of an action, and carry it out."""
    button = page.get_by_role("main").get_by_role("link", name=name, exact=True).first
    if not await button.is_visible():
        await page.get_by_label("More actions").click()
    await button.click()
    dialog = page.get_by_role("dialog")
    if choice is not None:
        await dialog.get_by_role("radio", name=re.compile(choice)).check()
    await dialog.get_by_label("Reason").fill(reason)
    await dialog.get_by_role("button", name=submit).click()
    await expect(dialog).to_be_hidden()


async def test_an_experiment_is_defined_in_a_form_started_followed_and_concluded(
    turnout: Turnout, open_page: OpenPage
) -> None:
    page = await open_page(turnout, None)
    await page.goto("/")
    await page.get_by_label("API key").fill(turnout.keys["editor"])
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name="New experiment").click()

    # A mistake is told while one types, in the words of the API, and goes when it is mended.
    basics = page.locator("details", has=page.get_by_role("heading", name="Basics"))
    key = basics.get_by_label("Key", exact=True)
    await key.fill("Checkout 2")
    told = basics.locator(".field-wrong")
    await expect(told).to_contain_text("must be 1 to 64 of a-z")
    await expect(key).to_have_attribute("aria-invalid", "true")
    await key.fill("checkout-2")
    await expect(told).to_be_hidden()
    await basics.get_by_label("Name", exact=True).fill("Checkout, second try")
    metric = page.locator("details", has=page.get_by_role("heading", name="Metrics"))
    await metric.get_by_label("Event", exact=True).fill("click")
    await metric.get_by_label("Window", exact=True).fill("1s")

    # The YAML and the plan follow.
    await page.get_by_role("tab", name="YAML").click()
    yaml = page.get_by_role("textbox", name="YAML")
    await expect(yaml).to_have_value(re.compile("key: checkout-2"))
    await page.get_by_role("tab", name="Power").click()
    plan = page.get_by_role("tabpanel", name="Power")
    await plan.get_by_label(re.compile("aseline")).fill("0.3")
    await plan.get_by_label(re.compile("ffect")).first.fill("0.1")
    await expect(plan.get_by_role("table")).to_be_visible()

    # Started with a reason, after a look at the checklist.
    await page.get_by_role("button", name="Save and start").click()
    await page.get_by_label("Reason").fill("The team agreed")
    await page.get_by_role("button", name="Start").click()
    await page.wait_for_url("**/experiments/checkout-2*")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Checkout, second try")
    await expect(page.locator(".experiment-facts")).to_contain_text("Running")

    # Figures come by themselves.
    await page.evaluate("window.wasNotReloaded = true")
    await turnout.wait_for_assignable("checkout-2")
    await come(turnout, "checkout-2", 300, ALIKE)
    units = page.get_by_role("table").filter(has_text="Expected")
    await expect(units).to_contain_text(re.compile("300 units"))
    assert await page.evaluate("window.wasNotReloaded")

    # Paused, resumed and concluded, each with its reason in the ledger.
    await act(page, "Pause", "Somebody asks", "Pause")
    await expect(page.locator(".experiment-facts")).to_contain_text("Paused")
    await act(page, "Resume", "Nothing was wrong", "Resume")
    await expect(page.locator(".experiment-facts")).to_contain_text("Running")
    await act(page, "Conclude", "Good enough for us", "Conclude", choice="treatment")
    await expect(page.locator(".experiment-facts")).to_contain_text("Concluded")
    decisions = page.locator("#decisions")
    for reason in ("The team agreed", "Somebody asks", "Nothing was wrong", "Good enough for us"):
        await expect(decisions).to_contain_text(reason)
    answer = await turnout.client("analyst").get("/v1/experiments/checkout-2")
    assert (answer.json()["state"], answer.json()["ship"]) == ("concluded", "treatment")


async def test_a_step_of_a_ramp_is_approved_and_the_ramp_rolled_back(
    turnout: Turnout, open_page: OpenPage
) -> None:
    steps = [{"traffic": 0.2, "approval": True}, {"traffic": 1.0, "hold": "1h"}]
    key = await turnout.start(policy={"kind": "ramp", "steps": steps})
    page = await open_page(turnout, "editor", phone=True)
    await page.goto(f"/experiments/{key}")
    ramp = page.locator("#ramp")
    await expect(ramp).to_contain_text("20 %")
    await act(page, "Approve step 1", "It looks well", "Approve")
    await act(page, "Roll back", "We changed our minds", "Roll back")
    await expect(page.locator(".experiment-facts")).to_contain_text("Rolled back")
    answer = await turnout.client("analyst").get(f"/v1/experiments/{key}/decisions")
    kinds = [decision["code"] for decision in answer.json()["items"]]
    assert {"approve", "rollback"} <= {*kinds}


async def test_an_action_can_be_called_off_by_the_keyboard_alone(
    turnout: Turnout, open_page: OpenPage
) -> None:
    key = await turnout.start()
    page = await open_page(turnout, None)
    await page.goto(f"/experiments/{key}")
    await page.keyboard.type(turnout.keys["editor"])  # the field has the focus
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text(key)
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    pause = page.get_by_role("link", name="Pause", exact=True)
    for _ in range(12):
        if await pause.evaluate("element => element === document.activeElement"):
            break
        await page.keyboard.press("Tab")
    await expect(pause).to_be_focused()
    await page.keyboard.press("Enter")
    reason = page.get_by_role("dialog").get_by_label("Reason")
    await expect(reason).to_be_focused()
    await page.keyboard.type("It was a mistake")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await expect(pause).to_be_focused()
    answer = await turnout.client("analyst").get(f"/v1/experiments/{key}")
    assert answer.json()["state"] == "running"


async def test_without_scripts_an_experiment_is_still_read_and_paused(
    turnout: Turnout, open_page: OpenPage
) -> None:
    key = await turnout.start()
    page = await open_page(turnout, "editor", script=False)
    await page.goto(f"/experiments/{key}")
    await page.get_by_role("link", name="Pause", exact=True).click()
    await page.get_by_label("Reason").fill("No scripts here")
    await page.get_by_role("button", name="Pause").click()
    await expect(page.locator(".experiment-facts")).to_contain_text("Paused")


async def test_a_change_that_another_was_faster_with_is_not_made_unseen(
    turnout: Turnout, open_page: OpenPage, complaints: Complaints
) -> None:
    complaints.expect("status of 412")
    key = await turnout.start()
    page = await open_page(turnout, "editor")
    await page.goto(f"/experiments/{key}")
    await page.get_by_role("link", name="Conclude", exact=True).click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("radio").first.check()
    await dialog.get_by_label("Reason").fill("We have seen enough")
    await turnout.move(key, "pause")
    await dialog.get_by_role("button", name="Conclude").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("Somebody has changed")
    answer = await turnout.client("analyst").get(f"/v1/experiments/{key}")
    assert answer.json()["state"] == "paused"
