"""`POST /v1/assign/batch`: many units at once get what each gets alone, and are recorded alike."""

from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from router.batch import MAX_PAIRS
from tests.running import Turnout, definition, eventually, problem, running

COUNTRIES = ["AT", "DE", "FR", None]
UNITS: list[dict[str, Any]] = [
    {"unit": f"u{n}", "attributes": {"country": COUNTRIES[n % 4]}} for n in range(120)
]
COLUMNS = ("variant", "reason", "epoch", "propensity", "slot")


async def send(turnout: Turnout, units: Any, *keys: str, **more: Any) -> httpx.Response:
    """Ask for units in these experiments; without any, in all that run."""
    named = {"experiments": keys} if keys else {}
    return await turnout.client("service").post(
        "/v1/assign/batch", json={"units": units, **named, **more}
    )


async def ask(turnout: Turnout, units: Any, *keys: str, **more: Any) -> dict[str, Any]:
    """The answer to a request that is taken."""
    answer = await send(turnout, units, *keys, **more)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def rows_of(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """What an answer says of an experiment, as `/v1/assign` would say it of each unit."""
    names = ("experiment", "run")
    return [
        {name: columns[name] for name in names}
        | dict(zip(COLUMNS, row, strict=True))
        | {"value": columns["values"][row[0]]}
        for row in zip(*(columns[name] for name in COLUMNS), strict=True)
    ]


async def one_by_one(turnout: Turnout, key: str) -> list[dict[str, Any]]:
    """What `/v1/assign` says of each unit; whether it recorded it is left out."""
    answers = [await turnout.assign(key, **unit, expose=False) for unit in UNITS]
    return [{name: a[name] for name in a if name != "recorded"} for a in answers]


async def met(turnout: Turnout, number: int) -> list[tuple[str, str, str]]:
    """The exposures in Postgres, as (experiment, unit, variant), once there are so many."""
    rows = await turnout.shipped("exposure", number)
    known = await turnout.rows("select id, key from experiment where project = $1")
    keys = {row["id"]: row["key"] for row in known}
    return sorted((keys[row["experiment"]], row["unit"], row["variant"]) for row in rows)


async def test_all_get_what_each_gets_alone(turnout: Turnout) -> None:
    await turnout.put("/v1/layers/ranking", description="one at a time")
    await turnout.put("/v1/holdout", share=0.2, reason="what is it worth?")
    keys = [
        await turnout.start(traffic=0.5),
        await turnout.start(layer={"key": "ranking", "slots": [0, 6_000]}),
        await turnout.start(targeting={"in": [{"var": "country"}, ["AT", "DE"]]}),
        await turnout.start(targeting={">": [{"/": [1, {"var": "country"}]}, 0]}),
        await turnout.start(),
    ]
    await turnout.move(keys[-1], "conclude", ship="new")
    answer = await ask(turnout, UNITS, *keys, expose=False)
    assert [found["experiment"] for found in answer["experiments"]] == keys
    reasons = set()
    for key, found in zip(keys, answer["experiments"], strict=True):
        assert rows_of(found) == await one_by_one(turnout, key)
        reasons |= {*found["reason"]}
    assert reasons == {
        "split",
        "not_enrolled",
        "out_of_layer",
        "not_targeted",
        "targeting_failed",
        "held_out",
        "concluded",
    }


async def test_a_sticky_unit_keeps_its_first_variant_at_either_door(turnout: Turnout) -> None:
    key = await turnout.start(stickiness="sticky")
    [first] = (await ask(turnout, UNITS, key))["experiments"]
    assert {*first["reason"]} == {"split"}
    await turnout.allocate(key, weights={"old": 0.05, "new": 0.95})
    [again] = (await ask(turnout, UNITS, key))["experiments"]
    assert again["variant"] == first["variant"]
    assert {*again["reason"]} == {"sticky"}
    assert rows_of(again) == await one_by_one(turnout, key)


async def test_each_who_took_part_is_in_postgres_once(turnout: Turnout) -> None:
    await turnout.put("/v1/holdout", share=0.5, reason="a test")
    keys = [await turnout.start(traffic=0.6), await turnout.start()]
    units = [unit["unit"] for unit in UNITS]
    first = await ask(turnout, [*units, *units], *keys)
    again = await ask(turnout, [*units, "last"])
    assert first["recorded"]
    assert again["recorded"]
    rows = [row for found in again["experiments"] for row in rows_of(found)]
    named = [*units, "last"] * len(keys)
    held = {unit for unit, row in zip(named, rows, strict=True) if row["reason"] == "held_out"}
    assert 0 < len(held) < len(units)
    expected = sorted(
        [
            *(
                (row["experiment"], unit, row["variant"])
                for unit, row in zip(named, rows, strict=True)
                if row["reason"] == "split"
            ),
            *(("$holdout", u, "held" if u in held else "open") for u in (*units, "last")),
        ]
    )
    assert await met(turnout, len(expected)) == expected


async def test_the_attributes_that_an_experiment_keeps_are_kept(turnout: Turnout) -> None:
    key = await turnout.start(record=["country"])
    await ask(turnout, [{"unit": "u1", "attributes": {"country": "AT", "email": "a@b.at"}}], key)
    [row] = await turnout.shipped("exposure", 1)
    assert row["attributes"] == '{"country": "AT"}'


async def test_nothing_is_recorded_where_nothing_is_to_be_exposed(turnout: Turnout) -> None:
    key = await turnout.start()
    hidden = await ask(turnout, ["u1", "u2"], key, expose=False)
    assert not hidden["recorded"]
    shown = await ask(turnout, ["u1"], key)
    assert shown["recorded"]
    assert shown["experiments"][0]["variant"] == hidden["experiments"][0]["variant"][:1]
    assert [unit for _, unit, _ in await met(turnout, 1)] == ["u1"]


async def test_where_nobody_takes_part_nothing_is_recorded(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.move(key, "pause")
    answer = await ask(turnout, ["u1", "u2"], key)
    assert answer["experiments"][0]["reason"] == ["paused", "paused"]
    assert not answer["recorded"]


async def test_without_experiments_all_that_run_are_answered(turnout: Turnout) -> None:
    keys = sorted([await turnout.start(), await turnout.start()])
    await turnout.move(await turnout.start(), "pause")
    await turnout.define()
    answer = await ask(turnout, ["u1"])
    assert [found["experiment"] for found in answer["experiments"]] == keys


async def test_a_bad_unit_costs_itself_alone(turnout: Turnout) -> None:
    key = await turnout.start(record=["country"])
    bad = [7, "", {"unit": "u", "attributes": {"country": "\0"}}, {"id": "u"}]
    answer = await ask(turnout, ["first", *bad, "last"], key)
    assert [(error["index"], error["path"], error["type"]) for error in answer["errors"]] == [
        (1, "$", "type"),
        (2, "$", "value"),
        (3, "attributes.country", "value"),
        (4, "id", "unknown"),
        (4, "unit", "missing"),
    ]
    [found] = answer["experiments"]
    assert [variant is None for variant in found["variant"]] == [False, *[True] * 4, False]
    assert answer["recorded"]
    assert [unit for _, unit, _ in await met(turnout, 2)] == ["first", "last"]


async def test_an_experiment_that_was_not_started_here_is_named(
    turnout: Turnout, stranger: Turnout
) -> None:
    keys = [await turnout.start(), await turnout.define(), await stranger.start()]
    answer = await send(turnout, ["u1"], *keys)
    assert problem(answer, 422, "invalid") == [
        ("experiments[1]", "reference"),
        ("experiments[2]", "reference"),
    ]


@pytest.mark.parametrize("experiments", [1, 2])
async def test_more_than_ten_thousand_pairs_are_too_many(
    turnout: Turnout, experiments: int
) -> None:
    keys = [await turnout.start() for _ in range(experiments)]
    units = [f"u{n}" for n in range(MAX_PAIRS // experiments)]
    assert (await send(turnout, units, *keys, expose=False)).status_code == 200
    assert problem(await send(turnout, [*units, "one"], *keys), 413, "too-large") == []


async def test_a_body_beyond_eight_mebibytes_is_too_large(turnout: Turnout) -> None:
    answer = await turnout.client("service").post(
        "/v1/assign/batch", content=b" " * (8 * 1024 * 1024 + 1)
    )
    problem(answer, 413, "too-large")


async def test_what_is_no_json_is_malformed(turnout: Turnout) -> None:
    answer = await turnout.client("service").post("/v1/assign/batch", content=b'{"units": ["u1"')
    problem(answer, 400, "malformed")


async def test_each_assignment_is_counted(turnout: Turnout) -> None:
    key = await turnout.start()
    await ask(turnout, [unit["unit"] for unit in UNITS], key, expose=False)
    metrics = (await turnout.client(None).get("/metrics")).text
    ours = [line for line in metrics.splitlines() if f'experiment="{key}"' in line]
    counted = [line for line in ours if line.startswith("turnout_assignments_total{")]
    probes = 1  # `Turnout.start` asks until it is answered, and an answer is counted
    assert sum(float(line.rpartition(" ")[2]) for line in counted) == len(UNITS) + probes


async def test_with_a_full_journal_all_are_answered_and_told_so(
    pool: asyncpg.Pool, migrated_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Nothing can be shipped meanwhile, for a transaction holds the table that it goes into."""
    async with running(migrated_url, redis_url, tmp_path, journal_limit_mib=1) as here:
        headers = {"Authorization": f"Bearer {here.admin_key}"}
        async with httpx.AsyncClient(base_url=here.url, headers=headers, verify=False) as client:  # noqa: S501 - plain HTTP
            data = definition()
            assert (await client.post("/v1/experiments", json=data)).status_code == 201
            path = f"/v1/experiments/{data['key']}/start"
            assert (await client.post(path, json={"reason": "a test"})).status_code == 200
            batch = {"units": ["u1", "u2"], "experiments": [data["key"]]}

            async def answered() -> bool | None:
                answer = await client.post("/v1/assign/batch", json={**batch, "expose": False})
                return True if answer.status_code == 200 else None

            await eventually(answered, "answer")
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("lock table segment in access exclusive mode")
                outcomes = [{"event": "click", "unit": f"{n}-{'x' * 200}"} for n in range(10_000)]
                assert (await client.post("/v1/outcomes", json=outcomes)).status_code == 200
                answer = await client.post("/v1/outcomes", json=outcomes)
                problem(answer, 503, "journal-full")
                full = (await client.post("/v1/assign/batch", json=batch)).json()
            assert (full["recorded"], full["errors"]) == (False, [])
            assert full["experiments"][0]["reason"] == ["split", "split"]

            async def recorded() -> bool | None:
                answer = await client.post("/v1/assign/batch", json=batch)
                return True if answer.json()["recorded"] else None

            await eventually(recorded, "room in the journal")
