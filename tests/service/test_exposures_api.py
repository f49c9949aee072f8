"""`POST /v1/exposures`: what was evaluated elsewhere is computed again, and kept only if true."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext

from router.records import SuspectRecord, decode
from tests.running import Turnout, eventually, problem

NOTHING = {"accepted": 0, "duplicates": 0, "not_enrolled": 0, "mismatched": 0, "errors": []}


async def send(turnout: Turnout, body: Any, **headers: str) -> httpx.Response:
    """Send exposures as JSON."""
    return await turnout.client("service").post("/v1/exposures", json=body, headers=headers)


async def report(turnout: Turnout, body: Any) -> dict[str, Any]:
    """The answer to a batch that was taken."""
    answer = await send(turnout, body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def met(turnout: Turnout, key: str, unit: str, **attributes: Any) -> dict[str, Any]:
    """The exposure that a true evaluator would report; nothing is recorded of it here."""
    given = await turnout.assign(key, unit, expose=False, attributes=attributes)
    told = {name: given[name] for name in ("epoch", "variant")}
    return {"experiment": key, "unit": unit, "attributes": attributes, **told}


def other(exposure: dict[str, Any]) -> dict[str, Any]:
    """The same exposure with the variant that it cannot have been."""
    return exposure | {"variant": "old" if exposure["variant"] == "new" else "new"}


async def suspects(turnout: Turnout, number: int) -> list[tuple[str, SuspectRecord]]:
    """This project's suspects that were set aside, with their reasons, once there are so many."""

    async def enough() -> list[tuple[str, SuspectRecord]] | None:
        rows = await turnout.rows(
            "select reason, record from dead_letter where position($1::text::bytea in record) > 0"
        )
        found = [(row["reason"], decode(row["record"])) for row in rows]
        ours = [
            (reason, record)
            for reason, record in found
            if isinstance(record, SuspectRecord) and record.project == turnout.project
        ]
        return ours if len(ours) >= number else None

    return await eventually(enough, f"{number} suspects")


async def metric(turnout: Turnout, name: str, **labels: str) -> float:
    """The value of a counter with these labels."""
    text = (await turnout.client(None).get("/metrics")).text
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    for line in text.splitlines():
        if line.startswith(f"{name}_total{{") and all(label in line for label in wanted):
            return float(line.rpartition(" ")[2])
    return 0.0


async def hold(turnout: Turnout, share: float, key: str, epoch: int) -> None:
    """Hold a share of the units out of all experiments, from this epoch of one of them on."""
    await turnout.put("/v1/holdout", share=share, reason="a test")
    await turnout.wait_for_assignable(key, epoch=epoch)


async def test_what_a_local_evaluator_met_is_recorded(turnout: Turnout) -> None:
    key = await turnout.start(record=["country"], targeting={"==": [{"var": "country"}, "AT"]})
    core = FlagdCore()
    core.set_flags((await turnout.client("service").get("/v1/flagd")).json())
    at = (datetime.now(UTC) - timedelta(minutes=2)).isoformat()
    attributes = {"country": "AT", "email": "a@example.org"}
    body = []
    for number in range(20):
        found = core.resolve_object_value(key, {}, EvaluationContext(f"u{number}", attributes))
        told = {name: found.flag_metadata[name] for name in ("experiment", "epoch")}
        what = {"unit": f"u{number}", "variant": found.variant}
        body.append({**told, **what, "at": at, "attributes": attributes})
    assert await report(turnout, body) == NOTHING | {"accepted": 20}
    rows = await turnout.shipped("exposure", 20)
    assert {(row["unit"], row["variant"]) for row in rows} == {
        (item["unit"], item["variant"]) for item in body
    }
    for row in rows:
        assert (row["epoch"], row["at"]) == (1, datetime.fromisoformat(at))
        assert row["received_at"] > row["at"]
        assert row["attributes"] == '{"country": "AT"}'


async def test_a_repeat_is_one_exposure_also_with_one_of_our_own(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.assign(key, "u1")
    exposure = await met(turnout, key, "u1")
    fresh = await met(turnout, key, "u2")
    assert await report(turnout, [exposure, fresh, fresh]) == NOTHING | {
        "accepted": 1,
        "duplicates": 2,
    }
    assert await report(turnout, fresh) == NOTHING | {"duplicates": 1}
    rows = await turnout.shipped("exposure", 2)
    assert sorted(row["unit"] for row in rows) == ["u1", "u2"]


async def test_an_exposure_that_cannot_be_is_set_aside_and_counted(turnout: Turnout) -> None:
    key = await turnout.start()
    true, false = await met(turnout, key, "u1"), other(await met(turnout, key, "u2"))
    no_variant = await met(turnout, key, "u3") | {"variant": "newest"}
    no_epoch = await met(turnout, key, "u4") | {"epoch": 9}
    body = [false, true, no_variant, no_epoch, false]
    assert await report(turnout, body) == NOTHING | {"accepted": 1, "mismatched": 4}
    found = {record.unit: (reason, record) for reason, record in await suspects(turnout, 3)}
    assert set(found) == {"u2", "u3", "u4"}
    assert "epoch 1 gives" in found["u2"][0]
    assert "no variant 'newest'" in found["u3"][0]
    assert "no epoch 9" in found["u4"][0]
    assert (found["u2"][1].variant, found["u2"][1].epoch) == (false["variant"], 1)
    assert [row["unit"] for row in await turnout.shipped("exposure", 1)] == ["u1"]
    counted = {"project": turnout.project, "experiment": key}
    assert await metric(turnout, "turnout_exposures_mismatched", **counted) == 4


async def test_a_suspect_is_set_aside_once(turnout: Turnout) -> None:
    key = await turnout.start()
    false = other(await met(turnout, key, "u1"))
    for _ in range(3):
        assert (await report(turnout, false))["mismatched"] == 1
    await report(turnout, other(await met(turnout, key, "u2")))
    assert len(await suspects(turnout, 2)) == 2


async def test_a_unit_that_is_not_enrolled_makes_no_exposure(turnout: Turnout) -> None:
    key = await turnout.start(traffic=0.5, targeting={"==": [{"var": "country"}, "AT"]})
    outside = [await met(turnout, key, f"u{number}", country="DE") for number in range(5)]
    inside = [await met(turnout, key, f"v{number}", country="AT") for number in range(40)]
    answer = await report(turnout, outside + inside)
    assert answer["not_enrolled"] > 5
    assert answer["accepted"] + answer["not_enrolled"] == 45
    assert (answer["mismatched"], answer["errors"]) == (0, [])
    rows = await turnout.shipped("exposure", answer["accepted"])
    assert len(rows) == answer["accepted"]
    assert {row["unit"][0] for row in rows} == {"v"}


async def test_an_exposure_is_judged_by_the_epoch_that_it_names(turnout: Turnout) -> None:
    key = await turnout.start()
    before = [await met(turnout, key, f"u{number}") for number in range(30)]
    await turnout.allocate(key, weights={"old": 0.1, "new": 0.9})
    after = [await met(turnout, key, f"u{number}") for number in range(30)]
    moved = [
        old for old, new in zip(before, after, strict=True) if old["variant"] != new["variant"]
    ]
    assert moved
    assert await report(turnout, moved) == NOTHING | {"accepted": len(moved)}
    wrong = [exposure | {"epoch": 2} for exposure in moved]
    assert await report(turnout, wrong) == NOTHING | {"mismatched": len(moved)}
    assert await report(turnout, after) == NOTHING | {"accepted": len(after)}
    rows = await turnout.shipped("exposure", len(moved) + len(after))
    assert {row["epoch"] for row in rows} == {1, 2}


@pytest.mark.parametrize("verb", ["pause", "rollback"])
async def test_what_was_met_before_an_experiment_stopped_counts(
    turnout: Turnout, verb: str
) -> None:
    key = await turnout.start()
    before = await met(turnout, key, "u1")
    await turnout.move(key, verb)
    assert await report(turnout, before) == NOTHING | {"accepted": 1}
    stopped = await met(turnout, key, "u2")
    assert await report(turnout, stopped) == NOTHING | {"not_enrolled": 1}


async def test_the_epoch_of_an_earlier_run_has_its_own_salt(turnout: Turnout) -> None:
    key = await turnout.start()
    before = [await met(turnout, key, f"u{number}") for number in range(20)]
    await turnout.move(key, "conclude", ship="new")
    await turnout.move(key, "start")
    assert await report(turnout, before) == NOTHING | {"accepted": 20}
    assert {row["run"] for row in await turnout.shipped("exposure", 20)} == {1}


async def test_the_holdout_hears_of_it_too(turnout: Turnout) -> None:
    key = await turnout.start()
    await hold(turnout, 0.3, key, 2)
    body = [await met(turnout, key, f"u{number}") for number in range(40)]
    answer = await report(turnout, body)
    accepted, held = answer["accepted"], answer["not_enrolled"]
    assert min(accepted, held) > 0
    assert accepted + held == 40
    rows = await turnout.shipped("exposure", 40 + accepted)
    own = {row["id"] for row in await turnout.rows("select id from experiment where project = $1")}
    assert len(own) == 2
    assert sorted(row["variant"] for row in rows if row["variant"] in {"held", "open"}) == sorted(
        ["held"] * held + ["open"] * accepted
    )


async def test_who_has_an_override_makes_no_exposure(turnout: Turnout) -> None:
    key = await turnout.start()
    by_slot = await met(turnout, key, "tester")
    given = other(by_slot)
    await turnout.override(key, given["variant"], unit="tester")
    # Whether the evaluator has heard of the override or not.
    assert await report(turnout, [given, by_slot]) == NOTHING | {"not_enrolled": 2}
    false = by_slot | {"variant": "newest"}
    assert await report(turnout, false) == NOTHING | {"mismatched": 1}


async def test_targeting_reads_the_attributes_that_are_sent(turnout: Turnout) -> None:
    key = await turnout.start(targeting={">": [{"var": "age"}, 17]}, traffic=1.0)
    exposures = [await met(turnout, key, f"u{number}", age=30) for number in range(10)]
    new = [exposure for exposure in exposures if exposure["variant"] == "new"]
    assert new
    assert await report(turnout, new) == NOTHING | {"accepted": len(new)}
    bare = [{**exposure, "unit": exposure["unit"], "attributes": {}} for exposure in new]
    assert await report(turnout, bare) == NOTHING | {"mismatched": len(new)}


async def test_hashed_units_are_hashed_wherever_they_go(turnout: Turnout) -> None:
    answer = await turnout.client("admin").patch("/v1/project", json={"units": "hashed"})
    assert answer.status_code == 200, answer.text
    key = await turnout.start()
    await turnout.assign(key, "u1")
    assert await report(turnout, await met(turnout, key, "u1")) == NOTHING | {"duplicates": 1}
    await report(turnout, await met(turnout, key, "u2"))
    await report(turnout, other(await met(turnout, key, "u3")))
    rows = await turnout.shipped("exposure", 2)
    assert {len(row["unit"]) for row in rows} == {32}
    ((_, suspect),) = await suspects(turnout, 1)
    assert len(suspect.unit) == 32


async def test_a_suspect_is_forgotten_with_its_unit(turnout: Turnout) -> None:
    key = await turnout.start()
    await report(turnout, [other(await met(turnout, key, unit)) for unit in ("u1", "u2")])
    await suspects(turnout, 2)
    answer = await turnout.client("admin").post(
        "/v1/units/erase", json={"unit": "u1", "reason": "a test"}
    )
    assert answer.status_code == 200, answer.text
    ((_, left),) = await suspects(turnout, 1)
    assert left.unit == "u2"


async def only_error(turnout: Turnout, **changes: Any) -> tuple[str, str]:
    """The path and type of what is wrong with an item, between two good ones, which are kept."""
    key = await turnout.start()
    good = [await met(turnout, key, unit) for unit in ("g1", "g2")]
    item = {**await met(turnout, key, "u1"), **changes}
    item = {name: value for name, value in item.items() if value is not None}
    answer = await report(turnout, [good[0], item, good[1]])
    assert answer["accepted"] == 2
    (error,) = answer["errors"]
    assert error["index"] == 1
    assert error["detail"]
    assert problem(await send(turnout, item), 422, "invalid") == [(error["path"], error["type"])]
    return error["path"], error["type"]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"experiment": "nowhere"}, ("experiment", "reference")),
        ({"experiment": None}, ("experiment", "missing")),
        ({"unit": None}, ("unit", "missing")),
        ({"unit": ""}, ("unit", "value")),
        ({"unit": "é" * 129}, ("unit", "value")),
        ({"epoch": 0}, ("epoch", "value")),
        ({"epoch": "1"}, ("epoch", "type")),
        ({"variant": "No Key"}, ("variant", "value")),
        ({"propensity": 0.5}, ("propensity", "unknown")),
        ({"at": "2020-01-01T00:00:00Z"}, ("at", "value")),
        ({"at": "2120-01-01T00:00:00Z"}, ("at", "value")),
        ({"at": "2026-01-01T00:00:00"}, ("at", "value")),
        ({"at": (datetime.now(UTC) - timedelta(hours=2)).isoformat()}, ("at", "conflict")),
        ({"attributes": []}, ("attributes", "type")),
    ],
)
async def test_a_bad_item_costs_itself_alone(
    turnout: Turnout, changes: dict[str, Any], wrong: tuple[str, str]
) -> None:
    assert await only_error(turnout, **changes) == wrong


async def test_attributes_that_would_be_kept_must_be_storable(turnout: Turnout) -> None:
    key = await turnout.start(record=["country"])
    exposure = await met(turnout, key, "u1") | {"attributes": {"country": "A\0T"}}
    (error,) = (await report(turnout, [exposure]))["errors"]
    assert error["path"].startswith("attributes")


async def test_ndjson_is_a_batch(turnout: Turnout) -> None:
    key = await turnout.start()
    lines = [json.dumps(await met(turnout, key, "u1")), "{", json.dumps({"experiment": key})]
    answer = await turnout.client("service").post(
        "/v1/exposures",
        content="\n".join(lines),
        headers={"Content-Type": "application/x-ndjson"},
    )
    body = answer.json()
    assert body["accepted"] == 1
    assert {error["index"] for error in body["errors"]} == {1, 2}


async def test_a_body_that_is_no_json_is_refused(turnout: Turnout) -> None:
    answer = await turnout.client("service").post("/v1/exposures", content="{")
    problem(answer, 400, "malformed")
    problem(await send(turnout, [{}] * 10_001), 413, "too-large")


@pytest.mark.parametrize("role", ["client", "analyst", "editor"])
async def test_exposures_are_taken_from_those_who_may_record(turnout: Turnout, role: Any) -> None:
    answer = await turnout.client(role).post("/v1/exposures", json=[])
    problem(answer, 403, "forbidden")


async def test_an_experiment_of_another_project_is_not_known(
    turnout: Turnout, stranger: Turnout
) -> None:
    key = await stranger.start()
    exposure = await met(stranger, key, "u1")
    (error,) = (await report(turnout, [exposure]))["errors"]
    assert (error["path"], error["type"]) == ("experiment", "reference")
