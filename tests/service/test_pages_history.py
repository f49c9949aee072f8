"""The history on an experiment's page: epochs, decisions with their evidence, settings."""

import re
import time
from datetime import timedelta

from dashboard.experiment import history_allocation
from dashboard.experiment.history import make_history, read_history
from experiments import lifecycle
from tests.running import Turnout
from tests.service.test_pages_actions import browser

MANY = 3_000
# As a bandit would have made them: every epoch another split, none another traffic.
_EPOCHS = """
    insert into epoch (experiment, number, run, state, salt, allocation, weights, stickiness,
                       resized, at, actor, reason, decision)
    select e.experiment, e.number + n, e.run, e.state, e.salt, e.allocation,
           jsonb_build_object('old', 0.5 + 0.4 * sin(n / 50.0), 'new', 0.5 - 0.4 * sin(n / 50.0)),
           e.stickiness, false, e.at + n * interval '1 second', 'controller', 'thompson', d.id
    from epoch e join experiment x on x.id = e.experiment, generate_series(1, $3::int) n,
         lateral (
             select id from decision where experiment = e.experiment order by id limit 1
         ) d
    where x.project = $1 and x.key = $2 and e.number = x.epoch
"""
_GROWN = "update experiment set epoch = epoch + $3 where project = $1 and key = $2"


async def test_the_timeline_names_who_did_what_and_why(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.allocate(key, weights={"old": 0.2, "new": 0.8}, traffic=0.5)
    async with browser(turnout, "analyst") as someone:
        page = await someone.read(f"/experiments/{key}")
        words = re.sub(r"<[^>]+>|\s+", " ", page.split('id="decisions"')[1])
        assert "Traffic set for a test" in re.sub(r" +", " ", words)  # the note of the key
        assert "old 50 %, new 50 %" in words
        assert "old 10 %, new 40 %, 50 % not enrolled" in words
        guard = await someone.read(f"/experiments/{key}?decisions=guard")
        assert "There are no such decisions." in guard


async def test_a_decision_is_computed_again_before_ones_eyes(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.allocate(key, traffic=0.5)
    [row] = await turnout.rows(
        """select d.id from decision d join experiment x on x.id = d.experiment
           where x.project = $1 and x.key = $2 and d.kind = 'allocate'""",
        key,
    )
    address = f"/experiments/{key}/decisions/{row['id']}"
    async with browser(turnout, "analyst") as someone:
        page = await someone.read(address)
        assert "Computed again just now: the same, bit by bit." in page
        assert f"turnout replay-decision {row['id']}" in page
        part = await someone.read(address, by_script=True)
        assert part.startswith('<div class="proof">')
        await turnout.rows(
            "update decision set reason = 'another' where $1 <> '' and id = $2", row["id"]
        )
        assert "it is NOT the same" in await someone.read(address)


async def test_another_projects_history_is_not_found(turnout: Turnout, stranger: Turnout) -> None:
    key, own = await turnout.start(), await stranger.start()
    [row] = await turnout.rows(
        """select d.id from decision d join experiment x on x.id = d.experiment
           where x.project = $1 and x.key = $2""",
        key,
    )
    async with browser(stranger) as someone:
        for part in ("decisions", "epochs", "revisions", f"decisions/{row['id']}"):
            await someone.read(f"/experiments/{key}/{part}", 404)
        await someone.read(f"/experiments/{own}/decisions/{row['id']}", 404)
        await someone.read(f"/experiments/{own}/decisions/99999999", 404)


async def test_settings_are_told_as_what_changed(turnout: Turnout) -> None:
    key = await turnout.define()
    metric = {"key": "click", "role": "primary", "kind": "proportion", "event": "click"}
    await turnout.client("editor").patch(
        f"/v1/experiments/{key}",
        json={"metrics": [{**metric, "window": "2d"}], "owner": "<b>growth</b>"},
        headers={"If-Match": '"1"', "X-Reason": "late clicks count"},
    )
    async with browser(turnout, "analyst") as someone:
        page = await someone.read(f"/experiments/{key}")
    assert "late clicks count" in page
    change = page.split("metrics[click].window")[1][:200]
    assert "<del>1d</del>" in change
    assert "<ins>2d</ins>" in change
    assert "&lt;b&gt;growth&lt;/b&gt;" in page
    assert "<b>growth" not in page


async def test_thousands_of_epochs_cost_as_much_as_hundreds(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.allocate(key, traffic=0.5)
    await turnout.rows(_EPOCHS, key, MANY)
    await turnout.rows(_GROWN, key, MANY)
    async with turnout.host.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, turnout.project, key)
        began = time.perf_counter()
        facts = await read_history(connection, record, record.updated_at + timedelta(hours=1))
        history = make_history(facts)
        seconds = time.perf_counter() - began
    assert facts.allocation is not None
    drawn = [epoch.number for epoch in facts.allocation.drawn]
    assert len(drawn) <= history_allocation.MOST_DRAWN
    assert (drawn[0], drawn[1], drawn[-1]) == (1, 2, MANY + 2)  # the one by hand among them
    assert {epoch.traffic for epoch in facts.allocation.drawn[1:]} == {0.5}
    assert history.allocation is not None
    assert "3,002 epochs" in history.allocation.note
    assert seconds < 2  # tens of milliseconds, on a machine that does nothing else
    async with browser(turnout, "analyst") as someone:
        page = await someone.read(f"/experiments/{key}/epochs?before=21")
        assert re.findall(r'id="epoch-(\d+)"', page) == [str(n) for n in range(20, 0, -1)]
        assert "Older epochs" not in page
        page = await someone.read(f"/experiments/{key}/epochs")
        assert f"epochs?before={MANY + 2 - 19}" in page
