"""The way of an analyst: find an experiment, understand it, doubt it, and share what is known."""

import json
import re
from pathlib import Path

from playwright.async_api import Browser, expect

from tests.e2e.browser.traffic import CLICK, come
from tests.pages import OpenPage, accessibility_faults, overflow
from tests.running import Turnout

BETTER = {"old": {"click": 0.2}, "new": {"click": 0.6}}
ALIKE = {"old": {"click": 0.4}, "new": {"click": 0.4}}


async def test_an_experiment_is_found_by_search_and_by_filters(
    shop: Turnout, open_page: OpenPage
) -> None:
    page = await open_page(shop, "analyst")
    await page.goto("/experiments")
    rows = page.get_by_role("table").get_by_role("row")
    await expect(rows).to_have_count(11)
    await page.get_by_role("searchbox").fill("without costing latency")  # of its hypothesis
    await expect(rows).to_have_count(2)
    await expect(page).to_have_url(re.compile(r"q=without"))
    await page.get_by_role("searchbox").fill("")
    await page.get_by_label("Tag", exact=True).select_option("llm")
    await expect(rows).to_have_count(3)
    await page.get_by_role("link", name=re.compile("Rolled back")).click()
    await expect(rows).to_have_count(2)
    await page.get_by_role("link", name="Summariser 2").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Summariser 2")
    await page.go_back()
    await expect(page.get_by_label("Tag", exact=True)).to_have_value("llm")


async def test_a_result_is_read_from_its_conclusion_down_to_its_numbers(
    shop: Turnout, open_page: OpenPage
) -> None:
    page = await open_page(shop, "analyst")
    await page.goto("/experiments/ranker-v7")
    summary = page.locator("#summary")
    await expect(summary.get_by_role("heading")).to_contain_text("v7")
    await expect(summary).to_contain_text("How sure")

    # Another reading, which says that findings stay those of the plan.
    await page.get_by_label("Reading").get_by_role("link", name="One look").click()
    await expect(page.locator("#metrics")).to_contain_text("Findings stay those of the plan")

    # The table behind a chart.
    chart = page.locator("#course figure").first
    await expect(chart.get_by_role("img").first).to_be_visible()
    await chart.get_by_text("Numbers", exact=True).click()
    await expect(chart.get_by_role("row").nth(5)).to_be_visible()

    # The evidence of a decision, as it was stored.
    await page.goto("/experiments/summariser-2")
    decision = page.locator("#decisions li").filter(has_text="Rolled back").first
    await decision.locator("summary").first.click()
    await expect(decision.locator(".decision-evidence")).to_contain_text("errors")


async def test_an_analyst_is_offered_nothing_that_writes(
    shop: Turnout, open_page: OpenPage
) -> None:
    page = await open_page(shop, "analyst")
    await page.goto("/experiments")
    await expect(page.get_by_role("link", name="New experiment")).to_have_count(0)
    for key in ("ranker-v7", "embedder-ramp", "summariser-2", "checkout-one-page"):
        await page.goto(f"/experiments/{key}")
        await expect(page.get_by_role("group", name="Actions")).to_have_count(0)
        await expect(page.locator("[data-act]")).to_have_count(0)
        await expect(page.get_by_role("link", name="Edit", exact=True)).to_have_count(0)


async def test_a_report_stands_alone_in_a_file(
    shop: Turnout, open_page: OpenPage, browser: Browser, tmp_path: Path
) -> None:
    page = await open_page(shop, "analyst")
    await page.goto("/experiments/ranker-v7")
    await page.get_by_text("Export & share").click()
    files = {}
    for kind in ("html", "json"):
        async with page.expect_download() as downloading:
            await page.locator(f'a[download][href$=".{kind}"]').click()
        files[kind] = tmp_path / f"report.{kind}"
        await (await downloading.value).save_as(files[kind])
    assert json.loads(files["json"].read_text())["experiment"] == "ranker-v7"
    context = await browser.new_context(offline=True, viewport={"width": 390, "height": 844})
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    alone = await context.new_page()
    await alone.goto(files["html"].as_uri())
    await expect(alone.get_by_role("heading", level=1)).to_contain_text("Ranker v7")
    assert asked == [files["html"].as_uri()]
    assert await overflow(alone) == 0
    assert await accessibility_faults(alone) == []
    await context.close()


async def test_a_snapshot_stays_as_it_was_whatever_comes_later(
    turnout: Turnout, open_page: OpenPage
) -> None:
    key = await turnout.start(metrics=[CLICK])
    await come(turnout, key, 200, ALIKE)
    page = await open_page(turnout, "analyst")
    await page.goto(f"/experiments/{key}")
    await expect(page.get_by_text("200 units", exact=True)).to_be_visible()
    await page.get_by_text("Export & share").click()
    await page.get_by_label("Note").fill("For the meeting")
    await page.get_by_role("button", name="Take a snapshot").click()
    await page.wait_for_url("**/snapshots/*")
    address, taken = page.url, await page.get_by_role("main").inner_text()
    await come(turnout, key, 100, BETTER)
    await page.goto(f"/experiments/{key}")
    await expect(page.get_by_text("300 units", exact=True)).to_be_visible()
    await page.goto(address)
    assert await page.get_by_role("main").inner_text() == taken
    assert await accessibility_faults(page) == []
