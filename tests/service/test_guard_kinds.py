"""Guardrails of every kind against a real Postgres: from outcomes to a rollback, and to none."""

import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from analysis.control import guard
from analysis.folding import blocks
from analysis.inference.bins import bucket
from analysis.inference.evidence import BURN_IN_UNITS, GuardRule, GuardState, alarms
from experiments import store
from experiments.allocation import propensities
from experiments.records import Decision
from router.records import Record
from tests.service.loop import LATENESS, Service, definition

PER_TICK = 100

Happens = Callable[[str, random.Random], dict[str, list[float]]]
"""The values of a unit's outcomes, by event, given its variant."""


def guardrail(key: str, kind: str, **others: Any) -> dict[str, Any]:
    """A guardrail for which less is better, unless told otherwise."""
    named = {"key": key, "role": "guardrail", "kind": kind, "goal": "decrease", "window": "2s"}
    return named | others


LATENCY = guardrail("latency", "quantile", event="ms", quantile=0.95, margin={"relative": 0.05})
SPEED = guardrail(
    "speed", "quantile", event="speed", quantile=0.5, goal="increase", margin={"absolute": 1.0}
)
ERRORS = guardrail(
    "errors", "ratio", numerator="error", denominator="request", margin={"absolute": 0.01}
)
ORDER = guardrail(
    "order",
    "ratio",
    numerator="revenue",
    denominator="order",
    covariate="1h",
    goal="increase",
    margin={"relative": 0.1},
)
COST = guardrail("cost", "mean", event="cost", covariate="1h", margin={"absolute": 0.5})


def latencies(**scale: float) -> Happens:
    """One unit in ten has none."""

    def happen(variant: str, rng: random.Random) -> dict[str, list[float]]:
        return {"ms": [scale[variant] * rng.lognormvariate(3.0, 0.6)] * (rng.random() < 0.9)}

    return happen


def speeds(**scale: float) -> Happens:
    return lambda variant, rng: {"speed": [scale[variant] * rng.gauss(10.0, 2.0)]}


def failures(**rate: float) -> Happens:
    def happen(variant: str, rng: random.Random) -> dict[str, list[float]]:
        requests = rng.randrange(6)
        failed = sum(rng.random() < rate[variant] for _ in range(requests))
        return {"request": [1.0] * requests, "error": [1.0] * failed}

    return happen


def orders(**worth: float) -> Happens:
    """What a unit spends is near to what it is used to (`Crowd.come`)."""

    def happen(variant: str, rng: random.Random) -> dict[str, list[float]]:
        n = rng.randrange(4)
        return {"order": [1.0] * n, "revenue": [worth[variant] * rng.gauss(1.0, 0.2)] * n}

    return happen


def costs(**cost: float) -> Happens:
    return lambda variant, rng: {"cost": [cost[variant] * rng.gauss(1.0, 0.1)]}


class Crowd:
    """Units that come once each, with a past."""

    def __init__(self, service: Service, key: str, seed: int) -> None:
        self._service, self._key = service, key
        self._random = random.Random(seed)  # noqa: S311 - a simulation
        self.seen: list[tuple[str, dict[str, list[float]]]] = []
        """Variant and outcomes of all who came."""

    async def come(self, happens: Happens, past: Sequence[str] = ()) -> None:
        """A second in which units come, meet a variant, and do what they do; events of `past`
        happened to them before, too, and values other than counts follow from what each is used
        to."""
        service, rng = self._service, self._random
        record = await service.find(self._key)
        async with service.pool.acquire() as connection:
            epoch = await store.get_epoch(connection, record.id, record.epoch)
        shares = propensities(epoch.allocation)
        service.clock.advance(1)
        at = service.clock.now
        records: list[Record] = []
        for _ in range(PER_TICK):
            unit = f"{self._key}-{len(self.seen)}"
            [variant] = rng.choices([*shares], [*shares.values()])
            used_to = rng.lognormvariate(1.0, 0.7) if past else 1.0
            worth = {"order": 1.0}
            for event in past:
                value = worth.get(event, used_to)
                before = at - timedelta(minutes=rng.randrange(1, 50))
                records.append(service.outcome(event, unit, before, value))
            records.append(service.exposure(record, unit, variant, at))
            outcomes = {
                event: [value * worth.get(event, used_to) for value in values]
                for event, values in happens(variant, rng).items()
            }
            for event, values in outcomes.items():
                records += [service.outcome(event, unit, at, value) for value in values]
            self.seen.append((variant, outcomes))
        await service.ship(records)
        await service.shipped()


async def live(
    service: Service,
    crowd: Crowd,
    seconds: int,
    happens: Happens,
    past: Sequence[str] = (),
    tick_every: int = 1,
) -> int:
    """Let units come and the controller tick, until a rollback; the seconds that it took. Whatever
    the rhythm of ticks, each closed block is looked at."""
    for second in range(seconds):
        await crowd.come(happens, past)
        if (second + 1) % tick_every:
            continue
        await service.tick()
        if (await service.find("x")).state == "rolled_back":
            return second
    return seconds


async def state(service: Service) -> GuardState:
    """The evidence of the only row of the ledger."""
    [row] = await service.fetch("select state from guard_ledger")
    return msgspec.json.decode(row["state"], type=GuardState)


def alarm_of(decision: Decision) -> guard.Alarm:
    """The evidence of a rollback, as it comes out of the API's JSON."""
    return msgspec.json.decode(msgspec.json.encode(decision.evidence), type=guard.Alarm)


CASES: dict[str, tuple[dict[str, Any], Happens, Happens, Sequence[str]]] = {
    "a tail that grows": (LATENCY, latencies(a=1.0, b=1.0), latencies(a=1.0, b=2.0), ()),
    "a median that falls": (SPEED, speeds(a=1.0, b=0.95), speeds(a=1.0, b=0.6), ()),
    "errors a request": (ERRORS, failures(a=0.01, b=0.02), failures(a=0.01, b=0.3), ()),
    "revenue an order, with a covariate": (
        ORDER,
        orders(a=1.0, b=0.92),
        orders(a=1.0, b=0.5),
        ("order", "revenue"),
    ),
    "a mean with a covariate": (COST, costs(a=1.0, b=1.1), costs(a=1.0, b=2.0), ("cost",)),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_guardrail_of_any_kind_is_patient_with_the_harmless_and_quick_with_harm(
    service: Service, case: str
) -> None:
    watched, healthy, harmful, past = CASES[case]
    begun = await service.begin(definition("x", watched))
    crowd = Crowd(service, "x", seed=21)
    assert await live(service, crowd, 25, healthy, past, tick_every=5) == 25
    assert await service.decisions("x") == []
    before = await state(service)
    assert before.blocks > 5
    assert before.burn_in_units >= BURN_IN_UNITS

    # Two seconds of window and one of lateness lie between a fault and its first closed block.
    assert await live(service, crowd, 12, harmful, past) < 10
    record = await service.find("x")
    assert (record.state, record.epoch, record.ship) == ("rolled_back", begun.epoch + 1, "a")
    [decision] = await service.decisions("x")
    alarm = alarm_of(decision)
    assert guard.recompute(alarm) == alarm.state_after == await state(service)
    assert alarms(alarm.rule, alarm.state_after)
    assert not alarms(alarm.rule, alarm.state_before)
    assert (alarm.guardrail, alarm.variant) == (watched["key"], "b")
    assert alarm.rule.quantile == watched.get("quantile")

    [view] = (await service.report("x")).guard
    assert (view.guardrail, view.bound, view.alarm) == (watched["key"], "asymptotic", True)


async def test_the_values_of_a_quantile_are_those_of_the_units(service: Service) -> None:
    """Ticks of any rhythm give what one block after the other gives."""
    await service.begin(definition("x", LATENCY | {"quantile": 0.75}))
    crowd = Crowd(service, "x", seed=22)
    for tick in range(8):
        await crowd.come(latencies(a=1.0, b=1.0))
        if tick % 3 == 0:
            await service.tick()
    await service.settle()
    found = await state(service)
    assert found.units == len(crowd.seen)
    for variant, values in (("a", found.control_values), ("b", found.treatment_values)):
        outcomes = [outcomes["ms"] for met, outcomes in crowd.seen if met == variant]
        assert values.units == len(outcomes)
        numbers = bucket(np.array([value for unit in outcomes for value in unit]))
        expected = zip(
            *(part.tolist() for part in np.unique(numbers, return_counts=True)), strict=True
        )
        assert values.buckets == tuple(expected)
    assert found.control_denominator.mean == pytest.approx(0.9, abs=0.05)
    rows = await service.fetch("select distinct block from histogram order by block")
    assert [row["block"] for row in rows] == [-1, 0]


async def test_a_backlog_of_histograms_is_closed_piece_by_piece(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.begin(definition("x", LATENCY))
    crowd = Crowd(service, "x", seed=23)
    for _ in range(6):
        await crowd.come(latencies(a=1.0, b=1.0))
    monkeypatch.setattr(blocks, "MOST_BUCKETS", 200)
    await service.settle()
    seen = [(await state(service)).units]
    while seen[-1] < len(crowd.seen):
        await service.tick()
        seen.append((await state(service)).units)
        assert seen[-1] > seen[-2]
    assert len(seen) > 2


async def test_another_level_of_a_quantile_is_another_guardrail(service: Service) -> None:
    await service.begin(definition("x", LATENCY))
    crowd = Crowd(service, "x", seed=24)
    assert await live(service, crowd, 6, latencies(a=1.0, b=1.0)) == 6
    await service.amend("x", {"metrics": [LATENCY | {"quantile": 0.5}]})
    await service.settle(LATENESS.total_seconds())
    rows = await service.fetch("select rule, state, closed_at from guard_ledger order by id")
    assert [row["closed_at"] is None for row in rows] == [False, True]
    rule = msgspec.json.decode(rows[1]["rule"], type=GuardRule)
    assert rule.quantile == 0.5
    assert msgspec.json.decode(rows[1]["state"], type=GuardState).units == 0
