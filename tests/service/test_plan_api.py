"""The planner's door, and what it observes of an experiment."""

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from analysis.planning.answer import Plan
from analysis.planning.api import MOST_WORK, move_cost
from analysis.planning.observed import completed, observe
from analysis.planning.plan import Observed, make_plan
from analysis.planning.request import PlanRequest
from experiments import lifecycle
from experiments.decoding import decode
from experiments.problems import ProblemError
from tests.running import Turnout, problem
from tests.service.loop import Service, Visitors, definition, mean, metric, rates
from turnout.cli import main

RATE = {"kind": "proportion", "baseline": 0.1}


async def plan(turnout: Turnout, **body: Any) -> Plan:
    answer = await turnout.client("analyst").post("/v1/plan", json=body)
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=Plan)


async def refused(turnout: Turnout, **body: Any) -> list[tuple[str, str]]:
    return problem(await turnout.client("analyst").post("/v1/plan", json=body), 422, "invalid")


async def test_an_analyst_plans_with_stated_figures(turnout: Turnout) -> None:
    found = await plan(
        turnout, metric=RATE, effect={"relative": 0.1}, reading="fixed", units_per_day=2_000
    )
    assert (found.asked, found.units, found.days) == ("units", 29_498, 14.749)
    assert [cost.reading for cost in found.readings] == ["fixed", "planned", "continuous"]
    assert len(found.curve) == 21


async def test_every_wrong_field_is_named_at_once(turnout: Turnout) -> None:
    wrong = await refused(turnout, metric={"kind": "proportion", "baseline": 2}, alpha=7, extra=1)
    assert sorted(wrong) == [("alpha", "value"), ("extra", "unknown"), ("metric.baseline", "value")]
    assert await refused(turnout, metric=RATE) == [("effect", "missing")]


async def test_a_bandit_is_simulated_within_bounds(turnout: Turnout) -> None:
    simulation = {"runs": 4, "steps": 4, "seed": 1}
    body = {"metric": RATE, "effect": {"relative": 0.5}, "units": 4_000, "simulation": simulation}
    first, again = [await plan(turnout, **body) for _ in range(2)]
    assert first.bandit is not None
    assert (first.bandit.runs, first.bandit.units) == (4, 4_000)
    assert first == again
    for variants in (2, 10):
        runs = MOST_WORK // move_cost(variants) // 20 + 1
        wanted = {"simulation": {"runs": runs, "steps": 20}, "weights": [1.0] * variants}
        assert await refused(turnout, **body | wanted) == [("simulation.runs", "value")]
    floor = await refused(turnout, **body, policy={"kind": "thompson", "floor": 0.7})
    assert floor == [("policy.floor", "conflict")]


async def test_a_bandit_of_many_variants_is_simulated_less_often(turnout: Turnout) -> None:
    body = {"metric": RATE, "effect": {"relative": 0.5}, "units": 4_000, "weights": [1.0] * 24}
    policy = {"kind": "thompson", "floor": 0.01, "every": "2d"}
    found = await plan(turnout, **body, units_per_day=1_000, policy=policy)
    assert found.bandit is not None
    assert (found.bandit.runs, found.bandit.steps) == (MOST_WORK // move_cost(24) // 20, 2)


async def test_one_simulation_at_a_time(turnout: Turnout) -> None:
    client = turnout.client("analyst")
    body = {"metric": RATE, "effect": {"relative": 0.2}, "units": 20_000}
    long = body | {"simulation": {"runs": 40, "steps": 20}}
    one, other, without = await asyncio.gather(
        *(client.post("/v1/plan", json=wanted) for wanted in (long, long, body))
    )
    assert without.status_code == 200  # without a simulation there is nothing to wait for
    done, refused = sorted((one, other), key=lambda answer: answer.status_code)
    assert done.status_code == 200
    problem(refused, 503, "unavailable")
    assert int(refused.headers["retry-after"]) > 0
    await plan(turnout, **body, simulation={"runs": 2, "steps": 2})


async def test_an_experiment_stands_for_what_is_not_stated(turnout: Turnout) -> None:
    key = await turnout.define(analysis={"alpha": 0.1, "effect": {"absolute": 0.02}})
    assert await refused(turnout, experiment=key) == [("metric", "missing")]
    found = await plan(turnout, experiment=key, metric=RATE)
    assert (found.alpha, found.asked, found.units_per_day) == (0.1, "units", None)
    assert found.effect is not None
    assert found.effect.absolute == pytest.approx(0.02)
    assert found.traffic is not None
    assert (found.traffic.experiment, found.traffic.units) == (key, 0)
    stranger = await turnout.client("analyst").post("/v1/plan", json={"experiment": "nothing"})
    problem(stranger, 404, "not-found")


async def test_the_command_plans_with_what_the_server_knows(
    turnout: Turnout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = {"kind": "thompson", "metric": "click", "every": "1h", "floor": 0.2}
    key = await turnout.define(policy=policy, analysis={"effect": {"absolute": 0.1}})
    monkeypatch.setenv("TURNOUT_API_KEY", turnout.keys["analyst"])
    flags = ["plan", "--experiment", key, "--baseline", "0.3", "--url", turnout.url]
    bandit = ["--bandit", "--runs", "3", "--steps", "4"]
    assert await asyncio.to_thread(main, [*flags, *bandit, "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Plan)
    assert found.effect is not None
    assert found.effect.absolute == pytest.approx(0.1)
    assert found.policy is not None
    assert found.policy.floor == 0.2  # the experiment's own
    assert found.bandit is not None
    assert found.bandit.runs == 3
    assert (
        await asyncio.to_thread(main, ["plan", "--experiment", "none", "--url", turnout.url]) == 2
    )
    assert "404: Project" in capsys.readouterr().err


def request(**fields: Any) -> PlanRequest:
    decoded = decode(PlanRequest, fields)
    assert not decoded.problems
    return decoded.value


async def observed(service: Service, wanted: PlanRequest) -> tuple[PlanRequest, Observed]:
    """What the door makes a plan of."""
    async with service.pool.acquire() as connection:
        record = await lifecycle.find(connection, "shop", "x")
        full = completed(wanted, record.definition)
        return full, await observe(connection, record, full, service.clock())


async def test_traffic_and_metrics_are_those_that_were_observed(service: Service) -> None:
    await service.begin(
        definition(
            "x",
            metric("click", "primary"),
            mean("spent", "primary", covariate="1h"),
            metric("late", "secondary"),
        )
    )
    visitors = Visitors(service, "x", seed=1)
    responses = {
        "click": rates(a=0.2, b=0.25),
        "spent": lambda _variant, generator: generator.lognormvariate(1, 1),
    }
    for _ in range(4):
        await visitors.come(250, responses)
    await service.settle(86_400 / 2 - 4)

    full, found = await observed(service, request(experiment="x"))
    assert found.traffic.metric == "click"
    assert found.traffic.units == 1_000
    assert found.traffic.days == pytest.approx(0.5)
    assert found.units_per_day == pytest.approx(2_000)
    clicks = visitors.values("click", "a")
    share = sum(clicks) / len(clicks)
    assert found.metric is not None
    assert found.metric.baseline == pytest.approx(share)
    assert found.metric.variance == pytest.approx(share * (1 - share))
    made = make_plan(msgspec.structs.replace(full, units=2_000), found)
    assert made.days == pytest.approx(1.0 + 2 / 86_400)

    _, spent = await observed(service, request(experiment="x", metric_key="spent"))
    values = visitors.values("spent", "a")
    centre = sum(values) / len(values)
    variance = sum((v - centre) ** 2 for v in values) / (len(values) - 1)
    # Nothing was spent before enrolment, so the covariate explains nothing.
    assert spent.metric is not None
    assert (spent.metric.kind, spent.metric.goal) == ("mean", "increase")
    assert spent.metric.baseline == pytest.approx(centre)
    assert spent.metric.variance == pytest.approx(variance)
    assert spent.metric.variance_left == 1.0

    # A rate of 0 has no variance to plan with.
    with pytest.raises(ProblemError) as error:
        await observed(service, request(experiment="x", metric_key="late"))
    assert [(e.path, e.type) for e in error.value.errors] == [("metric", "missing")]


async def test_a_run_that_has_just_begun_tells_no_traffic(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary")))
    visitors = Visitors(service, "x", seed=1)
    await visitors.come(200, {"click": rates(a=0.5, b=0.5)})
    await service.settle()
    _, found = await observed(service, request(experiment="x"))
    assert found.units_per_day is None
    assert found.traffic.units == 200
    service.clock.advance(timedelta(hours=1).total_seconds())
    _, later = await observed(service, request(experiment="x"))
    assert later.units_per_day == pytest.approx(200 * 24, rel=0.05)
