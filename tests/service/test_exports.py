"""The report to take away: by the pages, and by `Accept` at its door."""

import csv
import io
import re

import pytest

from tests.running import Turnout
from tests.service.visiting import BROWSERS_ACCEPT, csrf_of, visit


@pytest.mark.parametrize(
    ("suffix", "media_type", "says"),
    [
        ("html", "text/html; charset=utf-8", "<!doctype html>"),
        ("md", "text/markdown; charset=utf-8", "# "),
        ("csv", "text/csv; charset=utf-8", "experiment,run,metric"),
        ("json", "application/json", '{"project":'),
    ],
)
async def test_a_report_is_downloaded_under_a_name_that_says_what_it_is(
    turnout: Turnout, suffix: str, media_type: str, says: str
) -> None:
    key = await turnout.start()
    async with visit(turnout, "analyst") as client:
        answer = await client.get(f"/experiments/{key}/report.{suffix}")
        missing = await client.get(f"/experiments/none/report.{suffix}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == media_type
    name = re.fullmatch(r'attachment; filename="(.*)"', answer.headers["content-disposition"])
    assert name is not None
    assert re.fullmatch(rf"report-{key}-run1-\d{{8}}T\d{{4}}Z\.{suffix}", name[1])
    assert answer.text.startswith(says)
    assert missing.status_code == 404


async def test_the_door_of_the_report_gives_html_to_who_asks_for_it(turnout: Turnout) -> None:
    key = await turnout.start(name="A <b>bold</b> try", tags=["search"])
    analyst, address = turnout.client("analyst"), f"/v1/experiments/{key}/report"
    page = await analyst.get(address, headers={"Accept": BROWSERS_ACCEPT})
    assert page.headers["content-type"].startswith("text/html")
    assert "A &lt;b&gt;bold&lt;/b&gt; try" in page.text
    for said in ("run 1, epoch 1", "by for a test", "alpha 0.05", "tags: [search]"):
        assert said in page.text
    for accept, media_type in (
        ("*/*", "application/json"),
        ("text/markdown", "text/markdown"),
        ("text/csv;q=0.9, text/html;q=0.1", "text/csv"),
        ("image/png", "application/json"),
    ):
        answer = await analyst.get(address, headers={"Accept": accept})
        assert answer.headers["content-type"].startswith(media_type)


async def test_a_draft_has_a_report_that_says_so(turnout: Turnout) -> None:
    key = await turnout.define()
    async with visit(turnout, "analyst") as client:
        page = await client.get(f"/experiments/{key}/report.html")
        table = await client.get(f"/experiments/{key}/report.csv")
    assert "never started" in page.text
    assert "NaN" not in page.text
    for row in csv.DictReader(io.StringIO(table.text)):
        assert row["difference"] == ""


async def test_a_snapshot_is_taken_by_a_form_and_shown_for_good(turnout: Turnout) -> None:
    key = await turnout.start()
    async with visit(turnout, "analyst") as client:
        form = {"csrf": csrf_of(await client.get(f"/experiments/{key}")), "note": "<i>now</i>"}
        taken = await client.post(f"/experiments/{key}/snapshots", data=form)
        assert taken.status_code == 303, taken.text
        address = taken.headers["location"]
        page = await client.get(address)
        shown = await client.get(f"{address}/report.html")
        files = {
            suffix: await client.get(f"{address}/report.{suffix}")
            for suffix in ("md", "csv", "json")
        }
        listed = await client.get(f"/experiments/{key}")
    assert "will not change" in page.text
    assert "&lt;i&gt;now&lt;/i&gt;" in page.text
    assert f'sandbox src="{address}/report.html"' in page.text
    assert "frame-src 'self'" in page.headers["content-security-policy"]
    assert shown.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert shown.headers["x-frame-options"] == "SAMEORIGIN"
    assert shown.headers["cache-control"] == "no-store", "a shared computer keeps nothing"
    assert all("attachment" in answer.headers["content-disposition"] for answer in files.values())
    assert files["json"].json()["experiment"] == key
    assert f'href="{address}"' in listed.text


async def test_a_snapshot_of_another_project_is_not_there(
    turnout: Turnout, stranger: Turnout
) -> None:
    key = await turnout.define()
    taken = await turnout.client("analyst").post(f"/v1/experiments/{key}/snapshots", json={})
    address = f"/snapshots/{taken.json()['id']}"
    async with visit(stranger, "admin") as client:
        for path in (address, f"{address}/report.html", f"{address}/report.json"):
            assert (await client.get(path)).status_code == 404
