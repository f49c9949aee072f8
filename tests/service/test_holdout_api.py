"""The project's holdout: who takes part in nothing, and the report of what all experiments do."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from analysis.upkeep.erase import Order, erase
from experiments import holdout, layers, lifecycle, overrides, store
from experiments.allocation import runs_of
from experiments.problems import ProblemError
from experiments.projects import unit_key
from experiments.records import ExperimentRecord
from router.hashing import slot
from router.records import Record, names_unit
from tests.running import Turnout, definition, problem
from tests.service.loop import SHOP, Service, metric
from tests.service.loop import definition as defined
from tests.service.recount import check

HOLDOUT: Final = "/v1/holdout"
BUILT_IN: Final = "/v1/experiments/$holdout"
CLICK: Final = {"key": "click", "role": "primary", "kind": "proportion", "event": "click"} | {
    "window": "2s"
}


async def hold(turnout: Turnout, share: float, **more: Any) -> dict[str, Any]:
    """Hold a share of the units out; how the holdout is shown."""
    return await turnout.put(HOLDOUT, **{"share": share, "reason": "a test", **more})


async def get(turnout: Turnout, path: str) -> Any:
    """What a reader gets at a door."""
    answer = await turnout.client("analyst").get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def epochs(turnout: Turnout, key: str) -> list[dict[str, Any]]:
    """All epochs, the oldest first."""
    items: list[dict[str, Any]] = (await get(turnout, f"/v1/experiments/{key}/allocations"))[
        "items"
    ]
    return items[::-1]


# The door


async def test_at_first_nobody_is_held_out(turnout: Turnout) -> None:
    view = await get(turnout, HOLDOUT)
    assert (view["share"], view["revision"], view["run"], view["epoch"]) == (0.0, 0, 0, 0)
    assert (view["experiment"], view["unit_type"], view["metrics"]) == ("$holdout", None, [])
    problem(await turnout.client("analyst").get(BUILT_IN), 404, "not-found")


async def test_a_holdout_is_an_experiment_of_ours(turnout: Turnout) -> None:
    view = await hold(turnout, 0.05, metrics=[CLICK], record=["country"])
    assert (view["share"], view["run"], view["epoch"], view["salt"]) == (0.05, 1, 1, "#holdout")
    assert (view["unit_type"], view["record"]) == ("user", ["country"])
    assert [m["key"] for m in view["metrics"]] == ["click"]
    assert await get(turnout, HOLDOUT) == view
    shown = await get(turnout, BUILT_IN)
    assert (shown["key"], shown["state"]) == ("$holdout", "running")
    assert shown["weights"] == {"held": 0.05, "open": 0.95}
    assert [(v["key"], v["control"], v["value"]) for v in shown["definition"]["variants"]] == [
        ("held", True, True),
        ("open", False, False),
    ]
    assert (await get(turnout, f"{BUILT_IN}/report"))["units"] == {"held": 0, "open": 0}
    [started] = (await get(turnout, f"{BUILT_IN}/decisions"))["items"]
    assert (started["kind"], started["rule"], started["epoch_after"]) == ("start", "manual", 1)
    assert len((await get(turnout, f"{BUILT_IN}/revisions"))["items"]) == 1
    assert [e["number"] for e in await epochs(turnout, "$holdout")] == [1]


async def test_a_holdout_is_listed_where_it_is_asked_for(turnout: Turnout) -> None:
    await hold(turnout, 0.05)
    key = await turnout.define()
    for query, keys in (("", [key]), ("?built_in=true", [key, "$holdout"])):
        items = (await get(turnout, f"/v1/experiments{query}"))["items"]
        assert [item["key"] for item in items] == keys


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"share": None}, [("share", "type")]),
        ({"share": 1}, [("share", "value")]),
        ({"share": -0.1}, [("share", "value")]),
        ({"share": "some"}, [("share", "type")]),
        ({"reason": ""}, [("reason", "value")]),
        ({"units": 5}, [("units", "unknown")]),
        ({"metrics": [CLICK, CLICK]}, [("metrics[1].key", "duplicate")]),
        ({"metrics": [CLICK | {"window": "91d"}]}, [("metrics[0].window", "value")]),
        ({"metrics": [CLICK | {"window": "soon"}]}, [("metrics[0].window", "value")]),
        ({"metrics": [CLICK | {"role": "guardrail"}]}, [("metrics[0].role", "conflict")]),
        ({"record": ["a", "a"]}, [("record[1]", "duplicate")]),
    ],
)
async def test_a_wrong_holdout_is_refused_by_its_fields(
    turnout: Turnout, change: dict[str, Any], problems: list[tuple[str, str]]
) -> None:
    body = {"share": 0.1, "reason": "a test"} | change
    answer = await turnout.client("editor").put(HOLDOUT, json=body)
    assert problem(answer, 422, "invalid") == problems
    assert (await get(turnout, HOLDOUT))["revision"] == 0


async def test_a_change_of_the_holdout_honours_if_match(turnout: Turnout) -> None:
    await hold(turnout, 0.1)
    body = {"share": 0.2, "reason": "a test"}
    editor = turnout.client("editor")
    stale = await editor.put(HOLDOUT, json=body, headers={"If-Match": '"7"'})
    problem(stale, 412, "revision-mismatch")
    latest = (await editor.get(HOLDOUT)).headers["etag"]
    changed = await editor.put(HOLDOUT, json=body, headers={"If-Match": latest})
    assert (changed.status_code, changed.json()["share"]) == (200, 0.2)
    assert changed.headers["etag"] == '"2"'


async def test_no_other_door_changes_the_holdout(turnout: Turnout) -> None:
    await hold(turnout, 0.1)
    before = await get(turnout, BUILT_IN)
    editor, reason = turnout.client("editor"), {"reason": "a test"}
    attempts: list[tuple[str, str, dict[str, Any]]] = [
        *(("POST", f"/{verb}", reason) for verb in ("start", "pause", "resume", "rollback")),
        ("POST", "/archive", reason),
        ("POST", "/conclude", reason | {"ship": "open"}),
        ("PUT", "/allocation", reason | {"traffic": 0.5}),
        ("POST", "/overrides", reason | {"unit": "ann", "variant": "open"}),
        ("PATCH", "", {"name": "mine"}),
    ]
    for method, door, body in attempts:
        answer = await editor.request(
            method, BUILT_IN + door, json=body, headers={"If-Match": '"1"'}
        )
        assert problem(answer, 409, "conflict") == [], door
        assert "PUT /v1/holdout" in answer.json()["detail"]
    answer = await editor.post("/v1/experiments", json=definition(key="$holdout"))
    assert problem(answer, 422, "invalid") == [("key", "value")]
    assert await get(turnout, BUILT_IN) == before
    one = {"experiment": "$holdout", "unit": "ann"}
    answer = await turnout.client("service").post("/v1/assign", json=one)
    assert answer.status_code in {404, 422}


# Who is held


async def test_who_is_held_takes_part_in_nothing(turnout: Turnout) -> None:
    view = await hold(turnout, 0.3)
    keys = [await turnout.start() for _ in range(2)]
    reasons: Counter[str] = Counter()
    for number in range(200):
        unit = f"u{number}"
        answers = [await turnout.assign(key, unit, expose=False) for key in keys]
        assert len({answer["reason"] for answer in answers}) == 1
        held = slot(view["salt"], unit) < 3_000
        assert (answers[0]["reason"] == "held_out") == held
        if held:
            assert {answer["variant"] for answer in answers} == {"old"}
        reasons[answers[0]["reason"]] += 1
    assert 30 < reasons["held_out"] < 90


async def test_every_experiment_that_runs_or_pauses_pins_the_holdout(turnout: Turnout) -> None:
    running = await turnout.start(traffic=0.5)
    paused = await turnout.start()
    await turnout.move(paused, "pause")
    ended = await turnout.start()
    await turnout.move(ended, "conclude", ship="new")
    sessions = await turnout.start(unit={"type": "session"})
    drafted = await turnout.define()
    await hold(turnout, 0.1)
    shown = await get(turnout, BUILT_IN)
    for key, count in ((running, 2), (paused, 3)):
        found = await epochs(turnout, key)
        assert len(found) == count
        before, after = found[-2:]
        assert after == before | {
            "number": before["number"] + 1,
            "at": after["at"],
            "reason": "the holdout: a test",
            "decision": after["decision"],
            "holdout": {
                "experiment": after["holdout"]["experiment"],
                "run": 1,
                "epoch": shown["epoch"],
                "salt": "#holdout",
                "held": [[0, 1_000]],
            },
        }
        assert before["holdout"] is None
        assert (await get(turnout, f"/v1/experiments/{key}"))["epoch"] == after["number"]
    for key in (ended, sessions):  # it has no traffic, or other units
        assert {e["holdout"] is None for e in await epochs(turnout, key)} == {True}
        assert all("holdout" not in e["reason"] for e in await epochs(turnout, key))
    await turnout.move(drafted, "start")
    assert (await epochs(turnout, drafted))[0]["holdout"]["held"] == [[0, 1_000]]


async def test_a_holdout_grows_and_shrinks_slot_by_slot(turnout: Turnout) -> None:
    key = await turnout.start()
    for share in (0.05, 0.0501, 0.2, 0.1):
        view = await hold(turnout, share)
        assert view["share"] == share
        pin = (await epochs(turnout, key))[-1]["holdout"]
        assert sum(end - first for first, end in pin["held"]) == round(share * 10_000)
        assert pin["epoch"] == view["epoch"]
    sizes = []
    for epoch in await epochs(turnout, "$holdout"):
        ends = 0
        held = set()
        for owner, count in epoch["slots"]:
            held |= set(range(ends, ends + count)) if owner == "held" else set()
            ends += count
        sizes.append(held)
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[3] < sizes[2]


async def test_a_holdout_that_stays_as_it_is_makes_no_epoch(turnout: Turnout) -> None:
    key = await turnout.start()
    first = await hold(turnout, 0.1)
    again = await hold(turnout, 0.1)
    assert again == first
    named = await hold(turnout, 0.1, metrics=[CLICK | {"role": "secondary"}])
    assert (named["revision"], named["epoch"]) == (2, 1)
    assert len(await epochs(turnout, key)) == 2
    kept = await hold(turnout, 0.2)
    assert [m["key"] for m in kept["metrics"]] == ["click"]


async def test_what_is_primary_is_settled_while_somebody_is_held(turnout: Turnout) -> None:
    await hold(turnout, 0.1, metrics=[CLICK])
    answer = await turnout.client("editor").put(
        HOLDOUT, json={"share": 0.1, "reason": "a test", "metrics": []}
    )
    assert problem(answer, 422, "invalid") == [("metrics", "immutable")]
    await hold(turnout, 0)
    assert (await hold(turnout, 0.1, metrics=[]))["metrics"] == []


async def test_nobody_held_ends_the_run_and_the_next_one_holds_others(turnout: Turnout) -> None:
    key = await turnout.start()
    await hold(turnout, 0.1)
    view = await hold(turnout, 0)
    assert (view["share"], view["salt"], view["run"]) == (0.0, None, 1)
    assert (await get(turnout, BUILT_IN))["state"] == "concluded"
    assert (await get(turnout, BUILT_IN))["ship"] == "open"
    assert (await hold(turnout, 0)) == view
    again = await hold(turnout, 0.2)
    assert (again["run"], again["salt"], again["share"]) == (2, "#holdout#2", 0.2)
    pins = [epoch["holdout"] for epoch in await epochs(turnout, key)]
    assert [pin and (pin["run"], pin["salt"]) for pin in pins] == [
        None,
        (1, "#holdout"),
        None,
        (2, "#holdout#2"),
    ]


async def test_the_holdout_of_a_project_is_its_own(turnout: Turnout, stranger: Turnout) -> None:
    key = await stranger.start()
    await hold(turnout, 0.1)
    assert (await get(stranger, HOLDOUT))["share"] == 0.0
    assert len(await epochs(stranger, key)) == 1
    problem(await stranger.client("analyst").get(BUILT_IN), 404, "not-found")


# What came of it


async def test_the_report_compares_the_held_with_all_others(service: Service) -> None:
    await service.begin(defined("x"))
    wish = holdout.Wish(0.2, [CLICK])
    async with service.pool.acquire() as connection, connection.transaction():
        record = await holdout.put_holdout(connection, SHOP, wish, service.change())
    generator = random.Random(5)  # noqa: S311 - a simulation
    met, clicked = Counter[str](), Counter[str]()
    records: list[Record] = []
    for number in range(2_000):
        unit, at = f"u{number}", service.clock.now
        variant = "held" if slot("#holdout", unit) < 2_000 else "open"
        records.append(service.exposure(record, unit, variant, at))
        met[variant] += 1
        if generator.random() < {"held": 0.2, "open": 0.4}[variant]:
            records.append(service.outcome("click", unit, at))
            clicked[variant] += 1
    service.clock.advance(1)
    await service.ship(records)
    await service.settle()
    report = await service.report("$holdout")
    assert (report.experiment, report.control) == ("$holdout", "held")
    assert report.units == dict(met)
    assert not report.sample_ratio.mismatch
    [comparison] = report.metrics[0].comparisons
    assert comparison.treatment == "open"
    assert comparison.fixed.mean_control == pytest.approx(clicked["held"] / met["held"])
    assert comparison.fixed.mean_treatment == pytest.approx(clicked["open"] / met["open"])
    assert report.conclusion.startswith("Ship open. open is better on")
    assert (await service.find("$holdout")).state == "running", "nothing is rolled back here"
    async with service.pool.acquire() as connection:
        await check(connection)


async def test_a_report_goes_on_over_a_change_of_the_share(service: Service) -> None:
    await service.begin(defined("x"))
    units = iter(range(10_000))
    for share, held_slots in ((0.5, 5_000), (0.25, 2_500)):
        wish = holdout.Wish(share, [metric("click")])
        async with service.pool.acquire() as connection, connection.transaction():
            record = await holdout.put_holdout(connection, SHOP, wish, service.change())
        epoch = (await service.epochs("$holdout"))[-1]
        held = {s for first, end in runs_of(epoch.allocation, "held") for s in range(first, end)}
        assert len(held) == held_slots
        records: list[Record] = []
        for _ in range(1_000):
            unit = f"u{next(units)}"
            variant = "held" if slot("#holdout", unit) in held else "open"
            records.append(service.exposure(record, unit, variant, service.clock.now))
            if next(units) % 3 == 0:
                records.append(service.outcome("click", unit, service.clock.now))
        await service.ship(records)
        await service.settle()
    report = await service.report("$holdout")
    assert (report.epochs, sum(report.units.values())) == (2, 2_000)
    assert not report.sample_ratio.mismatch
    assert report.metrics[0].comparisons[0].fixed.epochs_used == 2


# At once


class Crowd:
    """Writers of every kind, on eight experiments of which every two want the same slots."""

    keys: Final = [f"e{number}" for number in range(8)]

    def __init__(self, service: Service) -> None:
        self.service = service

    async def prepare(self) -> None:
        """Make the layer, and the drafts."""
        service = self.service
        async with service.pool.acquire() as connection, connection.transaction():
            await store.create_project(connection, SHOP, service.clock.now)
            change = layers.LayerChange("", None, "tester", service.clock.now)
            await layers.put_layer(connection, SHOP, "shared", change)
        for number, key in enumerate(self.keys):
            first = 1_000 * (number // 2)
            place = {"key": "shared", "slots": [first, first + 1_000]}
            await service.draft(defined(key, layer=place))

    async def hold(self, number: int) -> None:
        """Hold nobody out, or a tenth, or a fifth."""
        wish = holdout.Wish([0.0, 0.1, 0.2][number % 3])
        async with self.service.pool.acquire() as connection, connection.transaction():
            await holdout.put_holdout(connection, SHOP, wish, self.service.change())

    async def move(self, number: int) -> None:
        """Move an experiment to another state."""
        verbs: list[Callable[..., Awaitable[Any]]] = [
            lifecycle.start,
            lifecycle.pause,
            lifecycle.resume,
            lifecycle.roll_back,
        ]
        async with self.service.pool.acquire() as connection, connection.transaction():
            record = await self._find(connection, number)
            await verbs[number // 7 % 4](connection, record, self.service.change())

    async def amend(self, number: int) -> None:
        """Change the targeting of an experiment."""
        patch = {"targeting": {"==": [{"var": "n"}, number]}}
        async with self.service.pool.acquire() as connection, connection.transaction():
            record = await self._find(connection, number)
            await lifecycle.amend(connection, record, patch, self.service.change())

    async def override(self, number: int) -> None:
        """Give somebody a variant."""
        now = self.service.clock.now
        wish = overrides.Wish("b", f"u{number % 3}", None, None, "tester", "a test", now)
        async with self.service.pool.acquire() as connection, connection.transaction():
            record = await self._find(connection, number)
            await overrides.add_override(connection, record, wish)

    async def forget(self, number: int) -> None:
        """Erase a unit, as the door does."""
        order = Order(SHOP, [("user", f"u{number % 3}")], "tester", "a request")
        async with self.service.pool.acquire() as connection:
            secret = await unit_key(connection, SHOP, bytes)
        async with self.service.pool.acquire() as connection, connection.transaction():
            await erase(connection, order, secret, self.service.clock, names_unit)

    async def tick(self, _: int) -> None:
        """The controller takes definitions in, and decides."""
        await self.service.controller.tick()

    async def _find(self, connection: store.Connection, number: int) -> ExperimentRecord:
        return await lifecycle.find_to_change(connection, SHOP, self.keys[number % 8])


async def in_turn(act: Callable[[int], Awaitable[None]], numbers: range) -> None:
    """Do it with each number; a state that does not allow it is no failure."""
    for number in numbers:
        try:
            await act(number)
        except ProblemError as error:
            if error.type != "conflict":
                raise


async def test_writers_at_once_never_wait_for_each_other_in_a_circle(service: Service) -> None:
    """Whatever comes together: in the end all that runs pins the holdout that is in force, no two
    have the same slots of a layer, and nobody was told that the database gave up."""
    crowd = Crowd(service)
    await crowd.prepare()
    async with asyncio.TaskGroup() as writers:
        writers.create_task(in_turn(crowd.hold, range(20)))
        writers.create_task(in_turn(crowd.hold, range(1, 21)))
        writers.create_task(in_turn(crowd.move, range(60)))
        writers.create_task(in_turn(crowd.move, range(30, 90)))
        writers.create_task(in_turn(crowd.amend, range(40)))
        writers.create_task(in_turn(crowd.override, range(40)))
        writers.create_task(in_turn(crowd.forget, range(15)))
        writers.create_task(in_turn(crowd.tick, range(10)))
    assert service.failures() == 0
    in_force = await service.find("$holdout")
    pinned = (in_force.run, in_force.epoch) if in_force.state == "running" else None
    for key in crowd.keys:
        record, history = await service.find(key), await service.epochs(key)
        assert [epoch.number for epoch in history] == list(range(1, record.epoch + 1))
        if record.state in {"running", "paused"}:
            pin = history[-1].holdout
            assert (None if pin is None else (pin.run, pin.epoch)) == pinned
    async with service.pool.acquire() as connection:
        [owners] = (await layers.owners(connection, SHOP, "shared")).values()
    taken = [owner.slots for owner in owners]
    assert len(set(taken)) == len(taken) > 0


async def test_a_start_waits_for_a_change_of_the_holdout_and_pins_it(service: Service) -> None:
    await service.draft(defined("x"))
    async with service.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        wish = holdout.Wish(0.1)
        await holdout.put_holdout(connection, SHOP, wish, service.change())
        starting = asyncio.create_task(service.start("x"))
        done, _ = await asyncio.wait([starting], timeout=0.2)
        assert not done
        await transaction.commit()
    await starting
    [epoch] = await service.epochs("x")
    assert epoch.holdout is not None
    assert epoch.holdout.held == ((0, 1_000),)
