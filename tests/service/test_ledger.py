"""The ledger of decisions against a real Postgres: all that was done stands in it, each row can be
computed again bit by bit, and a number that was changed afterwards is found."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from analysis.control.decisions import read_whole
from experiments import holdout, lifecycle, ramp_hand
from experiments.holdout import Wish
from experiments.records import Decision
from tests.running import Turnout, problem
from tests.service.loop import SHOP, Service, Visitors, definition, metric, rates
from turnout.cli import main
from turnout.client import ClientError
from turnout.recomputing import Recomputed, lines, recompute

HARM = {"ok": rates(a=0.9, b=0.1)}
THOMPSON = {
    "kind": "thompson",
    "metric": "ok",
    "every": "1s",
    "floor": 0.05,
    "warmup": 50,
    "max_step": 0.1,
}
_CHANGE = """
    update decision set evidence = jsonb_set(
        evidence, $2::text[], to_jsonb((evidence #>> $2::text[])::numeric + 1)
    ) where id = $1
"""
_UNSEAL = "update decision set seal = null"


async def again(service: Service, decision: Decision) -> Recomputed:
    """A decision computed again from what the door tells of it, in JSON."""
    async with service.pool.acquire() as connection:
        whole = await read_whole(connection, SHOP, decision.id)
    assert whole is not None
    return recompute(msgspec.json.decode(msgspec.json.encode(whole)))


def wrong(found: Recomputed) -> dict[str, list[str]]:
    """The paths at which each check found something else, of those that did."""
    return {
        check.of: [difference.path for difference in check.differences]
        for check in found.checks
        if check.differences
    }


async def only(service: Service, kind: str) -> Decision:
    """The first decision of this kind."""
    return next(d for d in await service.ledger("x") if d.kind == kind)


async def rolled_back(service: Service) -> Decision:
    """A decision of the guard."""
    await service.begin(definition("x", metric("ok", "guardrail")))
    visitors = Visitors(service, "x", seed=1)
    for _ in range(12):
        await visitors.come(40, HARM)
        await service.tick()
    return await only(service, "rollback")


async def reallocated(service: Service) -> Decision:
    """A decision of the bandit."""
    weights = {"dddd": 0.25, "ccc": 0.25, "bb": 0.25, "a": 0.25}
    await service.begin(definition("x", metric("ok", "primary"), weights=weights, policy=THOMPSON))
    visitors = Visitors(service, "x", seed=2)
    for _ in range(12):
        await visitors.come(60, {"ok": rates(a=0.6, bb=0.3, ccc=0.25, dddd=0.2)})
        await service.tick()
    return await only(service, "reallocate")


async def warming_up(service: Service) -> Decision:
    """A bandit that holds."""
    policy = THOMPSON | {"warmup": 5_000}
    await service.begin(definition("x", metric("ok", "primary"), policy=policy))
    visitors = Visitors(service, "x", seed=3)
    for _ in range(5):
        await visitors.come(40, HARM)
        await service.tick()
    return await only(service, "hold")


async def variant_rolled_back(service: Service) -> Decision:
    """The guard takes one variant of three out."""
    guard = {"action": "rollback_variant"}
    weights = {"a": 0.4, "b": 0.3, "c": 0.3}
    await service.begin(definition("x", metric("ok", "guardrail"), weights=weights, guard=guard))
    visitors = Visitors(service, "x", seed=4)
    for _ in range(12):
        await visitors.come(60, {"ok": rates(a=0.9, b=0.1, c=0.9)})
        await service.tick()
    return await only(service, "rollback_variant")


async def variant_resumed(service: Service) -> Decision:
    """A hand gives it its slots again."""
    await variant_rolled_back(service)
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, SHOP, "x", lock=True)
        await lifecycle.resume_variant(connection, record, "b", service.change("it was mended"))
    return await only(service, "resume_variant")


async def no_data(service: Service) -> Decision:
    """A health check finds that no units come any more."""
    guard = {"health": {"no_data": {"action": "pause", "after": "10s"}}}
    await service.begin(definition("x", metric("ok", "primary"), guard=guard))
    await Visitors(service, "x", seed=5).come(40, HARM)
    await service.settle(30)
    return await only(service, "pause")


async def advanced(service: Service) -> Decision:
    """A ramp goes on to its next step."""
    ramp = {"kind": "ramp", "steps": [{"traffic": 0.1, "hold": "5s"}, {"traffic": 1.0}]}
    await service.begin(definition("x", metric("ok", "guardrail"), policy=ramp))
    visitors = Visitors(service, "x", seed=6)
    for _ in range(15):
        await visitors.come(40, {"ok": rates(a=0.5, b=0.5)})
        await service.tick()
    return await only(service, "advance")


async def approved(service: Service) -> Decision:
    """A ramp goes on to a step that a hand has approved: approvals go by the number of the step."""
    ramp = {"kind": "ramp", "steps": [{"traffic": 0.1, "approval": True}, {"traffic": 1.0}]}
    await service.begin(definition("x", metric("ok", "guardrail"), policy=ramp))
    visitors = Visitors(service, "x", seed=9)
    for second in range(15):
        await visitors.come(40, {"ok": rates(a=0.5, b=0.5)})
        await service.tick()
        if second == 2:
            async with service.pool.acquire() as connection, connection.transaction():
                record = await lifecycle.find(connection, SHOP, "x", lock=True)
                await ramp_hand.approve(connection, record, 1, service.change())
    decision = await only(service, "advance")
    assert decision.evidence["state"]["approvals"].keys() == {"1"}
    return decision


async def advised(service: Service) -> Decision:
    """The stop rule of a bandit has seen enough."""
    policy = THOMPSON | {"stop": {"loss": {"absolute": 0.05}}}
    await service.begin(definition("x", metric("ok", "primary"), policy=policy))
    visitors = Visitors(service, "x", seed=7)
    for _ in range(8):
        await visitors.come(60, HARM)
        await service.tick()
    return await only(service, "advise")


async def stale(service: Service) -> Decision:
    """A bandit that holds since its routers are silent."""
    await service.begin(definition("x", metric("ok", "primary"), policy=THOMPSON))
    await Visitors(service, "x", seed=8).come(400, HARM)
    service.clock.advance(120)
    await service.tick()
    return await only(service, "hold")


async def by_hand(service: Service) -> Decision:
    """Another split by a hand."""
    await service.begin(definition("x"))
    await service.allocate("x", {"a": 0.3, "b": 0.7})
    return await only(service, "allocate")


MADE: dict[str, Callable[[Service], Any]] = {
    "guard": rolled_back,
    "bandit": reallocated,
    "hold": warming_up,
    "variant": variant_rolled_back,
    "resumed": variant_resumed,
    "health": no_data,
    "ramp": advanced,
    "approved": approved,
    "stop": advised,
    "stale": stale,
    "manual": by_hand,
}
CHANGES: dict[str, dict[str, str | None]] = {
    "guard": {
        "log_peak": "evidence.log_peak",
        "log_threshold": "evidence.log_threshold",
        "blocks,0,0,control,n": "evidence",
        "state_before,units": "evidence.state_after.units",
        "state_after,log_stakes,3": "evidence.state_after.log_stakes[3]",
        "rule,margin": "evidence.log_peak",
        "generation": None,
    },
    "bandit": {
        "weights,a": "evidence.weights.a",
        "probability_best,bb": "evidence.probability_best.bb",
        "inputs,finished,arms,a,converted": "evidence.probability_best.a",
    },
    "hold": {"warmup": None},
    "variant": {"log_peak": "evidence.log_peak"},
    "resumed": {},
    "health": {"finding,value": "evidence.finding.value", "seen,units": None},
    "ramp": {"outcome,state,step": "evidence.outcome.state.step", "observed,enrolled": None},
    "approved": {"outcome,state,step": "evidence.outcome.state.step"},
    "stop": {"threshold": "evidence.threshold", "expected_loss,a": "evidence.expected_loss.a"},
    "stale": {},
    "manual": {"asked,weights,a": None},
}
"""Numbers of the evidence, and where a change of each is found by computing alone; None where only
the seal tells of it, since it decided nothing."""


@pytest.mark.parametrize("kind", MADE)
async def test_a_decision_is_the_same_again_until_a_number_of_it_is_changed(
    service: Service, kind: str
) -> None:
    decision = await MADE[kind](service)
    found = await again(service, decision)
    assert wrong(found) == {}
    assert found.same
    moved = {"epoch"} if decision.epoch_after > decision.epoch_before else set()
    assert {check.of for check in found.checks} - {"consequence"} == {
        "seal",
        "evidence",
        "allocation",
        *moved,
    }
    assert [*lines(found)][-1] == "The same again, bit by bit."
    for path, of in CHANGES[kind].items():
        await service.execute(_CHANGE, decision.id, path.split(","))
        found = await again(service, decision)
        assert "seal" in wrong(found), path
        assert not found.same
        assert [*lines(found)][-1] == "It is not the same again."
        if of is not None:
            await service.execute(_UNSEAL)
            assert of in wrong(await again(service, decision))["evidence"], path
        await service.execute(
            "update decision set evidence = $2, seal = $3 where id = $1",
            decision.id,
            msgspec.json.encode(decision.evidence).decode(),
            decision.seal,
        )
    assert (await again(service, decision)).same


async def test_a_row_that_was_changed_is_found(service: Service) -> None:
    decision = await by_hand(service)
    for change in (
        "reason = 'another'",
        "at = at + interval '1 microsecond'",
        "actor = 'nobody'",
        "code = 'another'",
        "term = 1",
        """basis = '{"closed_through": {}, "watermark": null, "generation": 1, "alpha_spent": 0}'
        """,
    ):
        async with service.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(f"update decision set {change} where id = $1", decision.id)  # noqa: S608 - of this test
            whole = await read_whole(connection, SHOP, decision.id)
            await transaction.rollback()
        assert "seal" in wrong(recompute(msgspec.to_builtins(whole)))


async def test_an_epoch_whose_slots_were_changed_is_found(service: Service) -> None:
    decision = await by_hand(service)
    await service.execute(
        """update epoch set allocation = '{"runs": [["a", 3001], ["b", 6999]]}'
           where number = $1""",
        decision.epoch_after,
    )
    assert {"epoch", "allocation"} <= wrong(await again(service, decision)).keys()


@pytest.mark.parametrize("unlinked", [False, True])
async def test_a_move_that_was_changed_together_with_its_slots_is_found(
    service: Service, unlinked: bool
) -> None:
    """The one follows from the other, so that only the epoch's seal tells of it."""
    decision = await rolled_back(service)
    await service.execute(
        """update epoch set move = '{"how": "end", "ship": "b"}',
                            allocation = '{"runs": [["b", 10000]]}'
           where number = $1""",
        decision.epoch_after,
    )
    if unlinked:
        await service.execute("update epoch set decision = null")
    assert wrong(await again(service, decision)) == {"epoch": ["seal_of_epoch"]}


async def test_a_state_and_a_move_that_are_gone_are_found(service: Service) -> None:
    decision = await rolled_back(service)
    for change in ("state = 'running'", "move = null"):
        async with service.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(f"update epoch set {change}")  # noqa: S608 - of this test
            whole = await read_whole(connection, SHOP, decision.id)
            await transaction.rollback()
        assert "epoch" in wrong(recompute(msgspec.to_builtins(whole)))


async def test_weights_that_the_evidence_does_not_name_are_found(service: Service) -> None:
    """The slots follow from the move, but the move not from the evidence."""
    decision = await reallocated(service)
    await service.execute(
        "update epoch set move = jsonb_set(move, '{weights,0,1}', '0.26') where number = $1",
        decision.epoch_after,
    )
    assert "consequence" in wrong(await again(service, decision))


@pytest.mark.parametrize("made", [rolled_back, reallocated])
async def test_rows_of_older_releases_are_computed_again(
    service: Service, made: Callable[[Service], Any]
) -> None:
    """Their evidence names no type, they have no seal and no basis, their epochs no move; and those
    that a worker of such a release wrote after the database was brought to this one, no rule."""
    decision = await made(service)
    await service.execute(
        "update decision set evidence = evidence - 'type', seal = null, basis = null"
    )
    await service.execute("update epoch set move = null, seal = null")
    for change in ("code = code", "rule = 'manual', code = ''"):
        await service.execute(f"update decision set {change}")  # noqa: S608 - of this test
        found = await again(service, decision)
        assert found.same
        assert [check.of for check in found.checks if check.of != "consequence"] == [
            "evidence",
            "allocation",
        ]


async def test_evidence_of_a_newer_release_is_said_to_be_unknown(service: Service) -> None:
    decision = await rolled_back(service)
    await service.execute(
        """update decision set seal = null, evidence = '{"type": "of-tomorrow"}'"""
    )
    with pytest.raises(ClientError, match="no evidence of the type 'of-tomorrow'"):
        await again(service, decision)


async def test_the_basis_says_where_the_moments_were_and_what_alpha_was_spent(
    service: Service,
) -> None:
    decision = await rolled_back(service)
    assert decision.basis is not None
    assert decision.basis.watermark == decision.at
    [row] = await service.fetch("select closed_through from run_metric")
    assert decision.basis.closed_through["ok"] <= row["closed_through"]
    last = max(cell["block"] for cells in decision.evidence["blocks"] for cell in cells)
    assert decision.basis.closed_through["ok"] >= last
    [spent] = await service.fetch(
        "select sum(alpha) as alpha, max(generation) as n from guard_ledger"
    )
    assert decision.basis.alpha_spent == pytest.approx(spent["alpha"])
    assert decision.basis.generation == spent["n"] == 1


async def test_whatever_a_hand_does_stands_in_the_ledger(service: Service) -> None:
    await service.begin(definition("x"))
    await service.allocate("x", {"a": 0.3, "b": 0.7})
    await service.amend("x", {"traffic": 0.5})
    await service.amend("x", {"targeting": {"in": [{"var": "country"}, ["AT", "DE"]]}})
    await service.pause("x")
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, SHOP, "x", lock=True)
        await lifecycle.resume(connection, record, service.change("go on"))
    await service.conclude("x")
    await service.start("x")
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, SHOP, "x", lock=True)
        record = await lifecycle.roll_back(connection, record, service.change("it broke"))
        await lifecycle.archive(connection, record, service.change("tidy"))
    ledger = await service.ledger("x")
    assert [d.kind for d in ledger] == [
        "start",
        "allocate",
        "amend",
        "amend",
        "pause",
        "resume",
        "conclude",
        "start",
        "rollback",
        "archive",
    ]
    assert {(d.rule, d.actor, d.term, d.basis) for d in ledger} == {
        ("manual", "tester", None, None)
    }
    assert [d.run for d in ledger] == [1] * 7 + [2] * 3
    assert ledger[5].reason == "go on"
    assert ledger[6].evidence == {"type": "manual", "asked": {"ship": "a"}}
    epochs = await service.epochs("x")
    assert [e.decision for e in epochs] == [d.id for d in ledger[:-1]]
    assert [(d.epoch_before, d.epoch_after) for d in ledger[:-1]] == [
        (e.number - 1, e.number) for e in epochs
    ]
    assert ledger[-1].epoch_before == ledger[-1].epoch_after == len(epochs)
    for decision in ledger:
        assert wrong(await again(service, decision)) == {}


async def test_what_moves_nothing_is_no_decision(service: Service) -> None:
    await service.begin(definition("x"))
    await service.allocate("x", {"a": 0.501, "b": 0.499})
    await service.amend("x", {"name": "Another"})
    assert [d.kind for d in await service.ledger("x")] == ["start"]


async def test_traffic_that_grows_and_shrinks_is_computed_again_with_its_history(
    service: Service,
) -> None:
    """Which slots were released decides which ones may come, so that the past has to be told."""
    await service.begin(definition("x", weights={"a": 0.3, "b": 0.3, "c": 0.4}, traffic=0.1))
    for traffic in (0.4, 0.2, 0.33, 0.2, 0.5, 0.1):
        await service.amend("x", {"traffic": traffic})
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, SHOP, "x", lock=True)
        weights = {"c": 0.25, "a": 0.5, "b": 0.25}
        await lifecycle.allocate(connection, record, weights, None, service.change())
    ledger = await service.ledger("x")
    assert len(ledger) == 8
    for decision in ledger:
        assert wrong(await again(service, decision)) == {}


async def test_a_holdout_is_a_decision_in_every_experiment_that_it_is_pinned_in(
    service: Service,
) -> None:
    for key in ("x", "y"):
        await service.begin(definition(key))
    await service.draft(definition("z"))
    async with service.pool.acquire() as connection, connection.transaction():
        await holdout.put_holdout(connection, SHOP, Wish(0.05), service.change("measure it all"))
    for key in ("x", "y"):
        *_, decision = await service.ledger(key)
        assert (decision.kind, decision.rule) == ("holdout", "manual")
        assert decision.reason == "the holdout: measure it all"
        assert decision.evidence["asked"] == {"held": 500}
        *_, epoch = await service.epochs(key)
        assert (epoch.decision, epoch.number) == (decision.id, decision.epoch_after)
        assert wrong(await again(service, decision)) == {}
    assert await service.ledger("z") == []
    assert [d.kind for d in await service.ledger("$holdout")] == ["start"]


async def read(turnout: Turnout, path: str) -> Any:
    """What a door answers to an analyst."""
    answer = await turnout.client("analyst").get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_decision_shows_the_split_before_and_after(turnout: Turnout) -> None:
    key = await turnout.start(traffic=0.5)
    body = {"reason": "more of it", "weights": {"old": 0.25, "new": 0.75}}
    path = f"/v1/experiments/{key}"
    assert (await turnout.client("editor").put(f"{path}/allocation", json=body)).is_success
    [moved, started] = (await read(turnout, f"{path}/decisions"))["items"]
    assert started["before"] is None
    assert started["after"] == {
        "epoch": 1,
        "state": "running",
        "weights": {"old": 0.5, "new": 0.5},
        "traffic": 0.5,
    }
    assert moved["before"] == started["after"]
    assert moved["after"]["weights"] == {"old": 0.25, "new": 0.75}
    assert (moved["kind"], moved["reason"]) == ("allocate", "more of it")
    whole = await read(turnout, f"/v1/decisions/{moved['id']}")
    assert moved.items() <= whole.items()
    assert whole["slots_before"] == [["old", 2500], ["new", 2500], [None, 5000]]
    assert whole["move"] == {
        "how": "divide",
        "weights": [["old", 0.25], ["new", 0.75]],
        "traffic": 0.5,
    }
    assert recompute(whole).same


async def test_the_ledger_is_read_by_kind_and_by_rule_and_in_pages(turnout: Turnout) -> None:
    key = await turnout.start()
    for verb in ("pause", "resume", "pause", "resume"):
        await turnout.move(key, verb)
    path = f"/v1/experiments/{key}/decisions"

    async def kinds(**query: Any) -> list[str]:
        answer = await turnout.client("analyst").get(path, params=query)
        return [item["kind"] for item in answer.json()["items"]]

    assert await kinds() == ["resume", "pause", "resume", "pause", "start"]
    assert await kinds(kind="pause") == ["pause", "pause"]
    assert await kinds(rule="manual", hold=False) == await kinds()
    assert await kinds(rule="guard") == []
    assert await kinds(rule="manual", kind="start") == ["start"]
    first = await read(turnout, f"{path}?kind=pause&limit=1")
    second = await read(turnout, f"{path}?kind=pause&limit=1&cursor={first['next_cursor']}")
    assert [first["items"][0]["kind"], second["items"][0]["kind"]] == ["pause", "pause"]
    assert first["items"][0]["id"] > second["items"][0]["id"]
    assert second["next_cursor"] is None


async def test_the_command_says_whether_a_decision_is_the_same_again(
    turnout: Turnout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = await turnout.start()
    [started] = (await read(turnout, f"/v1/experiments/{key}/decisions"))["items"]
    monkeypatch.setenv("TURNOUT_URL", turnout.url)
    monkeypatch.setenv("TURNOUT_API_KEY", turnout.keys["analyst"])

    async def told(*arguments: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, ["replay-decision", *arguments])
        return status, *capsys.readouterr()

    number = str(started["id"])
    status, printed, complaint = await told(number)
    assert (status, complaint) == (0, "")
    first, *_, last = printed.splitlines()
    assert first == f"decision {number}: start of {key}, run 1, by manual (start)"
    assert last == "The same again, bit by bit."
    status, printed, _ = await told(number, "--json")
    assert (status, msgspec.json.decode(printed)["same"]) == (0, True)

    await turnout.host.pool.execute(
        "update decision set reason = 'another' where id = $1", started["id"]
    )
    status, printed, complaint = await told(number)
    assert (status, complaint) == (1, "")
    assert "NOT THE SAME" in printed
    assert printed.splitlines()[-1] == "It is not the same again."

    status, printed, complaint = await told("999999999")
    assert (status, printed) == (2, "")
    assert complaint.startswith("turnout: 404: ")
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("number", ["0", "999999999999999999", "9999999999999999999", "-1", "x"])
async def test_what_is_no_decision_is_not_found(turnout: Turnout, number: str) -> None:
    problem(await turnout.client("analyst").get(f"/v1/decisions/{number}"), 404, "not-found")


async def test_a_decision_of_another_project_is_not_found(
    turnout: Turnout, stranger: Turnout
) -> None:
    key = await stranger.start()
    [started] = (await read(stranger, f"/v1/experiments/{key}/decisions"))["items"]
    problem(await turnout.client("analyst").get(f"/v1/decisions/{started['id']}"), 404, "not-found")


async def test_one_kind_out_of_a_long_ledger_is_found_in_an_index(service: Service) -> None:
    record = await service.begin(definition("x"))
    await service.execute(
        """insert into decision (experiment, run, kind, rule, code, epoch_before, epoch_after, at,
                                 actor, reason, evidence)
           select $1, 1, 'hold', 'bandit', 'too_small', 1, 1, now(), 'controller', '', '{}'
           from generate_series(1, 20000)""",
        record.id,
    )
    await service.execute("analyze decision")
    for where in ("kind = 'start'", "rule = 'manual'", "kind <> 'hold'"):
        plan = await service.fetch(
            f"""explain (analyze, format text) select * from decision
                where experiment = {record.id} and {where} order by id desc limit 101"""  # noqa: S608 - of this test
        )
        text = "\n".join(row[0] for row in plan)
        assert "Index Scan" in text
        assert "Rows Removed" not in text


async def test_a_filter_that_names_nothing_is_refused_with_what_there_is(
    turnout: Turnout,
) -> None:
    path = f"/v1/experiments/{await turnout.start()}/decisions"
    answer = await turnout.client("analyst").get(f"{path}?kind=rolback&rule=gaurd")
    assert problem(answer, 422, "invalid") == [("kind", "value"), ("rule", "value")]
    kinds, rules = (error["detail"] for error in answer.json()["errors"])
    assert kinds.startswith("there are start, pause, resume, conclude, rollback,")
    assert rules == "there are guard, health, ramp, bandit, stop, manual"
