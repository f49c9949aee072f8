"""All that decides which variant a unit gets: override, holdout, layer, targeting, stickiness."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from router.hashing import slot
from tests.running import Turnout, definition, eventually, problem, running
from turnout.embedded import LiveServers

UNITS = [f"u{i}" for i in range(60)]


async def until(turnout: Turnout, key: str, unit: str, reason: str, **more: Any) -> dict[str, Any]:
    """What the router answers for a unit, once it is for this reason."""

    async def answers() -> dict[str, Any] | None:
        answer = await turnout.assign(key, unit, expose=False, **more)
        return answer if answer["reason"] == reason else None

    return await eventually(answers, f"reason {reason} for {unit}")


async def test_only_those_who_match_the_targeting_take_part(turnout: Turnout) -> None:
    key = await turnout.start(targeting={"in": [{"var": "country"}, ["DE", "AT"]]})
    inside = await turnout.assign(key, "u1", attributes={"country": "DE"})
    assert (inside["reason"], inside["recorded"]) == ("split", True)
    for attributes in ({"country": "FR"}, {}, {"country": None}):
        outside = await turnout.assign(key, "u1", attributes=attributes)
        expected = ("not_targeted", "old", None, None, False)
        names = ("reason", "variant", "slot", "propensity", "recorded")
        assert tuple(outside[name] for name in names) == expected


async def test_targeting_that_fails_is_not_met_and_counted(turnout: Turnout) -> None:
    key = await turnout.start(targeting={">": [{"/": [10, {"var": "n"}]}, 2]})
    assert (await turnout.assign(key, "u1", attributes={"n": 2}))["reason"] == "split"
    failed = await turnout.assign(key, "u1", attributes={"n": 0})
    assert (failed["reason"], failed["variant"]) == ("targeting_failed", "old")
    metrics = (await turnout.client(None).get("/metrics")).text
    assert f'experiment="{key}",project="{turnout.project}",reason="targeting_failed"' in metrics


async def test_a_change_of_targeting_is_an_epoch_that_routers_follow(turnout: Turnout) -> None:
    key = await turnout.start(targeting={"==": [{"var": "plan"}, "pro"]})
    await until(turnout, key, "u1", "not_targeted", attributes={"plan": "free"})
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}",
        json={"targeting": {"==": [{"var": "plan"}, "free"]}},
        headers={"If-Match": "*"},
    )
    assert answer.status_code == 200, answer.text
    now = await until(turnout, key, "u1", "split", attributes={"plan": "free"})
    assert now["epoch"] == answer.json()["epoch"] == 2


async def test_a_unit_is_in_at_most_one_experiment_of_a_layer(turnout: Turnout) -> None:
    layer = await turnout.put("/v1/layers/ranking", description="one at a time")
    lower = await turnout.start(layer={"key": "ranking", "slots": [0, 5_000]})
    upper = await turnout.start(layer={"key": "ranking", "slots": [5_000, 10_000]})
    for unit in UNITS:
        first = await turnout.assign(lower, unit, expose=False)
        second = await turnout.assign(upper, unit, expose=False)
        place = slot(layer["salt"], unit)
        expected = ("split", "out_of_layer") if place < 5_000 else ("out_of_layer", "split")
        assert (first["reason"], second["reason"]) == expected


async def test_who_is_held_out_takes_part_in_nothing_and_is_counted(turnout: Turnout) -> None:
    held = await turnout.put("/v1/holdout", share=0.5, reason="what is it all worth?")
    key = await turnout.start()
    answers = {unit: await turnout.assign(key, unit) for unit in UNITS}
    reasons = {unit: answer["reason"] for unit, answer in answers.items()}
    inside = {unit for unit in UNITS if slot(held["salt"], unit) < 5_000}
    assert {unit for unit, reason in reasons.items() if reason == "held_out"} == inside
    assert 0 < len(inside) < len(UNITS)
    rows = await turnout.shipped("exposure", len(UNITS) + len(UNITS) - len(inside))
    known = await turnout.rows("select id, key from experiment where project = $1")
    ids = {row["id"]: row["key"] for row in known}
    met = {(ids[row["experiment"]], row["unit"], row["variant"]) for row in rows}
    assert met == {
        *(("$holdout", unit, "held" if unit in inside else "open") for unit in UNITS),
        *((key, unit, answers[unit]["variant"]) for unit in UNITS if unit not in inside),
    }


async def test_a_holdout_that_grows_takes_units_from_what_runs(turnout: Turnout) -> None:
    key = await turnout.start()
    assert {(await turnout.assign(key, unit))["reason"] for unit in UNITS} == {"split"}
    for share in (0.2, 0.6, 0.0):
        view = await turnout.put("/v1/holdout", share=share, reason="a test")
        salt = view["salt"]
        for unit in UNITS:
            held = salt is not None and slot(salt, unit) < share * 10_000
            await until(turnout, key, unit, "held_out" if held else "split")


async def test_an_override_is_answered_and_makes_no_exposure(turnout: Turnout) -> None:
    key = await turnout.start(traffic=0.5)
    await turnout.override(key, "new", unit="tester")
    made = await turnout.override(key, "new", attribute="email", value="qa@example.org")
    forced = await until(turnout, key, "tester", "override")
    assert (forced["variant"], forced["slot"], forced["propensity"]) == ("new", None, None)
    await until(turnout, key, "u1", "override", attributes={"email": "qa@example.org"})
    for unit, attributes in (("tester", {}), ("u1", {"email": "qa@example.org"})):
        answer = await turnout.assign(key, unit, attributes=attributes)
        assert (answer["variant"], answer["recorded"]) == ("new", False)
    flag = await turnout.client("client").post(
        f"/ofrep/v1/evaluate/flags/{key}", json={"context": {"targetingKey": "tester"}}
    )
    assert (flag.json()["variant"], flag.json()["reason"]) == ("new", "TARGETING_MATCH")
    gone = await turnout.client("editor").delete(f"/v1/experiments/{key}/overrides/{made}")
    assert gone.status_code in {200, 204}
    for unit in UNITS:
        await turnout.assign(key, unit)
        if (await turnout.assign(key, unit))["recorded"]:
            break
    rows = await turnout.shipped("exposure", 1)
    assert {row["unit"] for row in rows}.isdisjoint({"tester"})


async def test_an_override_of_a_hashed_unit_is_found(turnout: Turnout) -> None:
    answer = await turnout.client("admin").patch("/v1/project", json={"units": "hashed"})
    assert answer.status_code == 200
    key = await turnout.start()
    await turnout.override(key, "new", unit="tester")
    assert (await until(turnout, key, "tester", "override"))["variant"] == "new"
    stored = await turnout.rows(
        "select o.unit from override o join experiment e on e.id = o.experiment where project = $1"
    )
    assert stored[0]["unit"] != "tester"


async def test_a_sticky_unit_keeps_its_first_variant(turnout: Turnout) -> None:
    key = await turnout.start(stickiness="sticky")
    first = {unit: await turnout.assign(key, unit) for unit in UNITS}
    assert {answer["reason"] for answer in first.values()} == {"split"}
    await turnout.allocate(key, weights={"old": 0.05, "new": 0.95})
    again = {unit: await turnout.assign(key, unit) for unit in UNITS}
    assert {u: a["variant"] for u, a in again.items()} == {
        u: a["variant"] for u, a in first.items()
    }
    moved = [unit for unit in UNITS if again[unit]["reason"] == "sticky"]
    assert moved
    for unit in moved:
        assert (again[unit]["epoch"], again[unit]["propensity"]) == (1, 0.5)
    await turnout.assign(key, "new-one")
    rows = await turnout.shipped("exposure", len(UNITS) + 1)
    assert len({(row["unit"], row["variant"]) for row in rows}) == len(UNITS) + 1
    batch = await turnout.client("service").post(
        "/ofrep/v1/evaluate/flags", json={"context": {"targetingKey": moved[0]}}
    )
    flag = next(flag for flag in batch.json()["flags"] if flag["key"] == key)
    assert flag["variant"] == first[moved[0]]["variant"]
    assert "etag" not in batch.headers


async def test_a_rollback_overrides_stickiness(turnout: Turnout) -> None:
    key = await turnout.start(stickiness="sticky")
    answers = [await turnout.assign(key, unit) for unit in UNITS]
    assert "new" in {answer["variant"] for answer in answers}
    await turnout.move(key, "rollback")
    assert {(await turnout.assign(key, unit))["variant"] for unit in UNITS} == {"old"}


@pytest.mark.parametrize(
    ("verb", "more", "variant", "reason"),
    [
        ("pause", {}, "old", "paused"),
        ("rollback", {}, "old", "rolled_back"),
        ("conclude", {"ship": "new"}, "new", "concluded"),
    ],
)
async def test_what_does_not_run_answers_all_alike(
    turnout: Turnout, verb: str, more: dict[str, str], variant: str, reason: str
) -> None:
    await turnout.put("/v1/holdout", share=0.5, reason="a test")
    key = await turnout.start(targeting={"==": [{"var": "plan"}, "pro"]})
    await turnout.override(key, "new", unit="tester")
    await until(turnout, key, "tester", "override")
    await turnout.move(key, verb, **more)
    for unit in ("tester", *UNITS[:10]):
        answer = await turnout.assign(key, unit)
        assert (answer["variant"], answer["reason"], answer["recorded"]) == (variant, reason, False)


async def test_a_router_without_news_gives_the_control_where_that_is_asked_for(
    servers: LiveServers, migrated_url: str, pool: asyncpg.Pool, tmp_path: Path
) -> None:
    """Postgres does not answer any more: its sessions are ended and none is let in. No definition
    may ask for so little as a second, so the one that is stored is made to."""
    async with running(migrated_url, servers.redis_url, tmp_path, snapshot_poll="100ms") as here:
        headers = {"Authorization": f"Bearer {here.admin_key}"}
        async with httpx.AsyncClient(base_url=here.url, headers=headers, verify=False) as client:  # noqa: S501 - plain HTTP
            careful = definition(when_stale={"after": "30s", "do": "control"})
            for data in (careful, definition(key="careless")):
                assert (await client.post("/v1/experiments", json=data)).status_code == 201
                await pool.execute(
                    """update experiment
                       set definition = replace(definition::text, '"30s"', '"1s"')::json"""
                )
                body = {"reason": "a test"}
                started = await client.post(f"/v1/experiments/{data['key']}/start", json=body)
                assert started.status_code == 200

            async def reason(key: str, wanted: str) -> bool | None:
                sent = {"experiment": key, "unit": "u1", "expose": False}
                answer = await client.post("/v1/assign", json=sent)
                return True if answer.json().get("reason") == wanted else None

            await eventually(lambda: reason(careful["key"], "split"), "news")
            await eventually(lambda: reason("careless", "split"), "news")
            await _shut(servers, migrated_url, to=True)
            try:
                await eventually(
                    lambda: reason(careful["key"], "stale"), "control for want of news"
                )
                assert await reason("careless", "split")
            finally:
                await _shut(servers, migrated_url, to=False)
            await eventually(lambda: reason(careful["key"], "split"), "news again")


async def test_an_experiment_that_cannot_be_read_gives_the_control_and_others_go_on(
    turnout: Turnout,
) -> None:
    key, other = await turnout.start(), await turnout.start()
    found = [(unit, await turnout.assign(key, unit, expose=False)) for unit in UNITS]
    unit = next(unit for unit, answer in found if answer["variant"] == "new")
    # As a newer release may write it, while routers are upgraded one by one.
    await turnout.rows(
        """with moved as (
               update experiment set epoch = epoch where project = $1 and key = $2
               returning id, epoch
           )
           update epoch e set ship = 'nobody' from moved
           where e.experiment = moved.id and e.number = moved.epoch""",
        key,
    )
    answer = await until(turnout, key, unit, "stale")
    assert (answer["variant"], answer["slot"], answer["propensity"]) == ("old", None, None)
    assert not (await turnout.assign(key, unit))["recorded"]
    flag = await turnout.client("service").post(
        f"/ofrep/v1/evaluate/flags/{key}", json={"context": {"targetingKey": unit}}
    )
    assert flag.json()["variant"] == "old"
    batch = await turnout.client("service").post(
        "/v1/assign/batch", json={"units": UNITS, "experiments": [key]}
    )
    assert set(batch.json()["experiments"][0]["variant"]) == {"old"}
    await turnout.allocate(other, weights={"old": 0.1, "new": 0.9})
    assert (await turnout.assign(other, unit))["epoch"] == 2


async def _shut(servers: LiveServers, url: str, *, to: bool) -> None:
    """Let nobody into a database, or everybody again."""
    name = urlsplit(url).path.removeprefix("/")
    admin = await asyncpg.connect(servers.database_url)
    try:
        await admin.execute(f'alter database "{name}" with allow_connections {not to}')
        if to:
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name
            )
    finally:
        await admin.close()


async def test_units_with_redis_gone_are_answered_by_the_slot(
    servers: LiveServers, migrated_url: str, tmp_path: Path
) -> None:
    nowhere = "redis://127.0.0.1:1"
    async with running(migrated_url, nowhere, tmp_path, snapshot_poll="100ms") as here:
        headers = {"Authorization": f"Bearer {here.admin_key}"}
        async with httpx.AsyncClient(base_url=here.url, headers=headers, verify=False) as client:  # noqa: S501 - plain HTTP
            data = definition(stickiness="sticky")
            assert (await client.post("/v1/experiments", json=data)).status_code == 201
            path = f"/v1/experiments/{data['key']}/start"
            assert (await client.post(path, json={"reason": "a test"})).status_code == 200

            async def answers() -> list[dict[str, Any]] | None:
                sent = [{"experiment": data["key"], "unit": unit} for unit in UNITS]
                got = await asyncio.gather(*(client.post("/v1/assign", json=ask) for ask in sent))
                return [a.json() for a in got] if got[0].status_code == 200 else None

            found = await eventually(answers, "answers without Redis")
            assert {(answer["reason"], answer["recorded"]) for answer in found} == {("split", True)}
            metrics = (await client.get("/metrics")).text
            assert f'turnout_sticky_fallbacks_total{{experiment="{data["key"]}"' in metrics


async def test_a_snapshot_is_swapped_under_traffic_without_a_failed_request(
    turnout: Turnout,
) -> None:
    key = await turnout.start()
    done = asyncio.Event()

    async def ask(number: int) -> list[int]:
        epochs: list[int] = []
        while not done.is_set():
            answer = await turnout.assign(key, f"u{number}-{len(epochs)}")
            assert answer["recorded"]
            epochs.append(answer["epoch"])
        return epochs

    asking = [asyncio.create_task(ask(number)) for number in range(4)]
    for number in range(20):
        weight = 0.3 if number % 2 else 0.7
        await turnout.allocate(key, weights={"old": weight, "new": 1 - weight})
    done.set()
    for epochs in await asyncio.gather(*asking):
        assert epochs == sorted(epochs)
        assert len(set(epochs)) > 5


async def test_what_the_holdout_keeps_of_attributes_has_to_be_storable(turnout: Turnout) -> None:
    await turnout.put("/v1/holdout", share=0.5, reason="a test", record=["plan"])
    key = await turnout.start()
    client = turnout.client("service")
    for wrong in ("\0", 10**30):
        ask = {"experiment": key, "unit": "u1", "attributes": {"plan": wrong}}
        assert problem(await client.post("/v1/assign", json=ask), 422, "invalid") == [
            ("attributes.plan", "value")
        ]
        many = {"experiments": [key], "units": [{"unit": "u1", "attributes": {"plan": wrong}}]}
        answer = (await client.post("/v1/assign/batch", json=many)).json()
        assert [error["path"] for error in answer["errors"]] == ["attributes.plan"]
    assert (await turnout.assign(key, "u1", attributes={"plan": "pro"}))["reason"] in {
        "split",
        "held_out",
    }
