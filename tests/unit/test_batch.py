"""A batch says what `/v1/assign` would say of each pair, and a bad unit costs itself alone."""

import asyncio
import json
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.problems import ProblemError
from router.assign import Assignment, assign, control_while_stale
from router.batch import (
    FEW,
    LARGE_BODY,
    MAX_PAIRS,
    AssignBatch,
    BatchAnswer,
    BatchExperiment,
    BatchRequest,
    Plan,
    decide,
    read_assign_batch,
)
from router.items import MAX_ITEM_BYTES
from router.snapshot import Entry, ProjectSnapshot
from tests.unit.entries import held, overridden, owners, project, shaped, span

PLAIN = shaped("plain", owners=owners((0, 3_000), (1, 6_000)))
LAYERED = shaped("layered", layer=span(1_000, 7_000))
HELD = shaped("held", layer=span(1_000, 7_000), holdout=held(5_000, 8_000))
TARGETED = shaped("targeted", rule=lambda context: context["country"] == "AT")
TARGETED_WITHIN = shaped(
    "targeted-within", rule=TARGETED.rule, layer=HELD.layer, holdout=HELD.holdout
)
OVERRIDDEN = shaped("overridden", overrides=overridden({"u1": 1}))
STALE = shaped("stale", stale_after=timedelta(minutes=10), control=1)
STICKY = shaped("sticky", sticky=True)
PAUSED = shaped("paused", state="paused")
CONCLUDED = shaped("concluded", state="concluded", default=1)
KEEPING = shaped("keeping", recorded_attributes=("country",))
ALL = (
    PLAIN,
    LAYERED,
    HELD,
    TARGETED,
    TARGETED_WITHIN,
    OVERRIDDEN,
    STALE,
    STICKY,
    PAUSED,
    CONCLUDED,
    KEEPING,
)
SHOP = project(*ALL)

attributes = st.dictionaries(
    st.sampled_from(["country", "plan", "targetingKey"]), st.sampled_from(["AT", "DE", 1, None])
)
ids = st.sampled_from(["u1", "u2", "ünït-😀", "a" * 36]) | st.integers().map("user-{}".format)
good = ids | st.fixed_dictionaries({"unit": ids}, optional={"attributes": st.none() | attributes})
BAD: list[tuple[Any, str, str]] = [
    ("", "value", "$"),
    ("u" * 257, "value", "$"),
    ("a\0b", "value", "$"),
    (7, "type", "$"),
    (None, "type", "$"),
    (["u1"], "type", "$"),
    ({"unit": ""}, "value", "unit"),
    ({"unit": "é" * 129}, "value", "unit"),
    ({"unit": 7}, "type", "unit"),
    ({}, "missing", "unit"),
    ({"unit": "u1", "attributes": []}, "type", "attributes"),
    ({"unit": "u1", "colour": "red"}, "unknown", "colour"),
    ({"unit": "u1", "attributes": {"country": "a\0b"}}, "value", "attributes.country"),
]


def assign_or_control(entry: Entry, unit: str, context: Mapping[str, Any]) -> Assignment:
    """`assign`, at a router that has had no news for too long."""
    stale = entry.stale_after is not None
    return control_while_stale(entry) if stale else assign(entry, unit, context)


async def stick(
    entry: Entry, units: Sequence[str], answers: Sequence[Assignment]
) -> list[Assignment]:
    """Each unit had the first variant before, in epoch 1."""
    return [
        Assignment(entry.arms[0], "sticky", answer.slot, 1, 0.25)
        for _, answer in zip(units, answers, strict=True)
    ]


async def read(
    units: Any, experiments: Any = None, project: ProjectSnapshot = SHOP, **others: Any
) -> AssignBatch:
    """A request as it is read."""
    named = {} if experiments is None else {"experiments": experiments}
    return await read_assign_batch(
        json.dumps({"units": units, **named, **others}).encode(), project
    )


async def plan(units: Any, experiments: Any = None, project: ProjectSnapshot = SHOP) -> Plan:
    """What becomes of a request."""
    return await decide(await read(units, experiments, project), assign_or_control, stick)


def decoded(plan: Plan, recorded: bool = False) -> BatchAnswer:
    """An answer as a client reads it."""
    return msgspec.json.decode(plan.answer(recorded), type=BatchAnswer)


async def alone(entry: Entry, item: Any) -> tuple[str, Any, Assignment]:
    """What a unit gets in an experiment by itself: its id, its attributes and its assignment."""
    unit = item if isinstance(item, str) else item["unit"]
    known = None if isinstance(item, str) else item.get("attributes")
    answer = assign_or_control(entry, unit, {**(known or {}), "targetingKey": unit})
    if entry.sticky:
        [answer] = await stick(entry, [unit], [answer])
    return unit, known or None, answer


@given(
    units=st.lists(good | st.sampled_from([item for item, *_ in BAD]), max_size=3 * FEW),
    repeat=st.sampled_from([1, FEW]),
)
async def test_a_batch_says_what_each_pair_gets_alone(units: list[Any], repeat: int) -> None:
    """With few units and with many, in all kinds of experiments, with bad units between them."""
    units = units * repeat if len(units) * repeat * len(ALL) <= MAX_PAIRS else units
    made = await plan(units, [entry.key for entry in ALL])
    answer = decoded(made)
    bad = {error.index for error in answer.errors}
    met: list[tuple[str, str, Any, str, int, bool | None]] = []
    counts: Counter[tuple[str, str, str]] = Counter()
    for entry, columns in zip(ALL, answer.experiments, strict=True):
        assert (columns.experiment, columns.run) == (entry.key, entry.run)
        rows = zip(
            columns.variant,
            columns.reason,
            columns.epoch,
            columns.propensity,
            columns.slot,
            strict=True,
        )
        for index, (item, row) in enumerate(zip(units, rows, strict=True)):
            if index in bad:
                assert row == (None,) * 5
                continue
            unit, known, given = await alone(entry, item)
            assert row == (
                given.arm.key,
                given.reason,
                given.epoch,
                given.propensity,
                given.slot,
            )
            counts[entry.key, given.arm.key, given.reason] += 1
            if given.enrolled or given.held is not None:
                met.append((entry.key, unit, known, given.reason, given.epoch, given.held))
    assert met == [
        (m.entry.key, m.unit, m.attributes or None, m.answer.reason, m.answer.epoch, m.answer.held)
        for m in made.met()
    ]
    assert counts == sum(
        (Counter({(e.key, a.arm.key, a.reason): n}) for e, a, n in made.counts()), Counter()
    )


async def test_every_reason_occurs_in_what_was_compared() -> None:
    """So that the agreement above is one about all of them."""
    units = [{"unit": f"u{n}", "attributes": {"country": "AT"} if n % 3 else {}} for n in range(99)]
    units += [{"unit": f"v{n}", "attributes": {"country": "DE"}} for n in range(99)]
    answer = decoded(await plan(units, [entry.key for entry in ALL]))
    reasons = {reason for columns in answer.experiments for reason in columns.reason}
    running = {"split", "sticky", "override", "stale"}
    assert reasons == running | {
        "not_enrolled",
        "not_targeted",
        "targeting_failed",
        "out_of_layer",
        "held_out",
        "paused",
        "concluded",
    }


@pytest.mark.parametrize("size", [1, 3 * FEW])
async def test_a_value_is_written_once(size: int) -> None:
    body = (await plan([f"u{n}" for n in range(size)], ["plain"])).answer(recorded=True)
    assert body.count(b'{"model": "old"}') == 1
    answer = json.loads(body)
    assert answer["recorded"] is True
    assert answer["experiments"][0]["values"] == {"a": {"model": "old"}, "b": {"model": "new"}}


async def test_without_experiments_all_that_run_are_meant_by_key() -> None:
    found = [entry.key for entry in (await read(["u1"])).entries]
    assert found == sorted(entry.key for entry in ALL if entry.state == "running")
    assert decoded(await plan(["u1"], None, project())).experiments == []


async def test_experiments_come_in_the_order_in_which_they_were_named() -> None:
    answer = decoded(await plan(["u1"], ["sticky", "plain", "paused"]))
    assert [found.experiment for found in answer.experiments] == ["sticky", "plain", "paused"]


@pytest.mark.parametrize("size", [1, 10 * FEW])
@pytest.mark.parametrize("known", [{}, {"targetingKey": "another"}], ids=["ids", "attributes"])
async def test_targeting_is_asked_for_those_alone_whom_nothing_keeps_out(
    size: int, known: dict[str, str]
) -> None:
    asked: list[str] = []

    def rule(context: Mapping[str, Any]) -> bool:
        asked.append(context["targetingKey"])
        return True

    kept_out = {"layer": span(0, 5_000), "holdout": held(0, 5_000)}
    entry = shaped("asks", rule=rule, **kept_out)
    units = [f"u{n}" for n in range(size)]
    items = [{"unit": unit, "attributes": known} for unit in units]
    made = await plan(items, ["asks"], project(entry))
    assert asked == [
        unit for unit in units if assign(shaped("asks", **kept_out), unit, {}).slot is not None
    ]
    assert [met.unit for met in made.met() if met.answer.enrolled] == asked


async def test_a_batch_may_be_empty() -> None:
    answer = decoded(await plan([], ["plain", "targeted"]))
    assert [found.variant for found in answer.experiments] == [[], []]
    assert answer.errors == []


@pytest.mark.parametrize("others", [[], ["u"] * FEW, ["u" * 200] * 6_000], ids=len)
async def test_each_bad_unit_is_named_and_the_others_are_answered(others: list[str]) -> None:
    """However large the body is."""
    units = ["first", *(item for item, *_ in BAD), *others, "last"]
    made = await plan(units, ["keeping"])
    answer = decoded(made)
    assert [(error.index, error.type, error.path) for error in answer.errors] == [
        (index, kind, path) for index, (_, kind, path) in enumerate(BAD, 1)
    ]
    assert all(error.detail for error in answer.errors)
    variants = answer.experiments[0].variant
    assert [index for index, found in enumerate(variants) if found is None] == [
        error.index for error in answer.errors
    ]
    assert [met.unit for met in made.met()] == ["first", *others, "last"]


async def test_a_large_body_is_read_as_a_small_one() -> None:
    units = [{"unit": f"u{n}", "attributes": {"country": "AT", "plan": [n]}} for n in range(9)]
    wrong = [{"unit": "x" * 60_000}] * (LARGE_BODY // 60_000)
    small = await read(units)
    large = await read([*units, *wrong, {"unit": "x" * (MAX_ITEM_BYTES + 1)}])
    assert (large.units, large.attributes) == (small.units, small.attributes)
    assert [(error.index, error.type, error.path) for error in large.errors] == [
        *((9 + n, "value", "unit") for n in range(len(wrong))),
        (9 + len(wrong), "too-large", "$"),
    ]


@pytest.mark.parametrize(
    ("start", "noise", "end", "kind"),
    [
        (b'{"units": [0', b",0", b"]}", "too-large"),
        (b'{"units": ["u"], "experiments": ["a"', b',"a"', b"]}", "too-large"),
        (b'{"units": {"a": [0', b",0", b"]}}", "invalid"),
        (b'{"units": ["u"], "noise": [0', b",0", b"]}", "invalid"),
    ],
)
async def test_nonsense_without_end_is_refused_before_much_is_made_of_it(
    start: bytes, noise: bytes, end: bytes, kind: str
) -> None:
    body = start + noise * (6 * 1024 * 1024 // len(noise)) + end
    tracemalloc.start()
    try:
        with pytest.raises(ProblemError) as refused:
            await read_assign_batch(body, SHOP)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.type == kind
    assert peak < 2 * len(body)


async def test_all_that_is_wrong_with_a_unit_is_named() -> None:
    wrong = {"unit": "u" * 257, "attributes": {"country": "a\0b"}}
    errors = (await read(["u1", wrong], ["keeping"])).errors
    assert [(error.index, error.path) for error in errors] == [
        (1, "unit"),
        (1, "attributes.country"),
    ]


async def test_an_attribute_that_nobody_keeps_may_be_anything() -> None:
    units = [{"unit": "u1", "attributes": {"country": "a\0b"}}]
    assert (await read(units, ["plain"])).errors == []
    assert [error.path for error in (await read(units, ["keeping"])).errors] == [
        "attributes.country"
    ]


def test_request_and_answer_have_schemas() -> None:
    _, components = msgspec.json.schema_components([BatchRequest, BatchAnswer])
    assert components["BatchRequest"]["required"] == ["units"]
    assert {*components["BatchExperiment"]["properties"]} == {*BatchExperiment.__struct_fields__}


async def test_exposures_are_wanted_unless_the_request_says_otherwise() -> None:
    assert (await read(["u1"])).expose
    assert not (await read(["u1"], expose=False)).expose


@pytest.mark.parametrize(
    ("request_", "problems"),
    [
        ({}, [("missing", "units")]),
        ([], [("type", "$")]),
        ({"units": "u1"}, [("type", "units")]),
        ({"units": ["u1"], "experiments": []}, [("value", "experiments")]),
        ({"units": [7], "experiments": "plain"}, [("type", "experiments")]),
        ({"units": ["u1"], "expose": "no"}, [("type", "expose")]),
        ({"units": ["u1"], "experiment": "plain"}, [("unknown", "experiment")]),
        (
            {"units": [7], "experiments": ["Plain", "plain"], "expose": 1},
            [("value", "experiments[0]"), ("type", "expose")],
        ),
        (
            {"units": ["u1"], "experiments": ["plain", "none", "held", "plain"]},
            [("reference", "experiments[1]"), ("duplicate", "experiments[3]")],
        ),
        (
            {"units": [{"unit": "u", "attributes": {"a": [0] * 60_000}}], "exposes": True},
            [("unknown", "exposes")],
        ),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_what_is_wrong_with_a_request_is_named(
    request_: Any, problems: list[tuple[str, str]]
) -> None:
    with pytest.raises(ProblemError) as refused:
        await read_assign_batch(json.dumps(request_).encode(), SHOP)
    assert refused.value.type == "invalid"
    assert [(problem.type, problem.path) for problem in refused.value.errors] == problems


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"units": ["u1"',
        b'{"units": ["\\ud83d"]}',
        b'{"units": [7, "\\udc00 half a pair"]}',
        b'{"units": ["\xff"]}',
        b'{"units": [7, "\xff"]}',
        b'{"units": ' + b"[" * 100_000,
    ],
    ids=lambda body: str(body[:30]),
)
async def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(ProblemError) as refused:
        await read_assign_batch(body, SHOP)
    assert refused.value.type == "malformed"


@pytest.mark.parametrize(
    ("units", "experiments"), [(10_001, ["plain"]), (5_001, ["plain", "held"]), (1_112, None)]
)
async def test_more_pairs_than_are_allowed_are_refused(
    units: int, experiments: list[str] | None
) -> None:
    names = [f"u{n}" for n in range(units)]
    for asked in (names, [7, *names[1:]]):
        with pytest.raises(ProblemError) as refused:
            await read(asked, experiments)
        assert refused.value.type == "too-large"
        assert f"{units} units" in refused.value.detail
    assert len((await read(names[1:], experiments)).units) == units - 1


async def test_units_are_limited_where_no_experiment_runs() -> None:
    with pytest.raises(ProblemError, match="at most 10000 pairs"):
        await read(["u"] * (MAX_PAIRS + 1), None, project())


async def turns_beside(work: Awaitable[Plan]) -> tuple[int, Plan]:
    """How many turns another task gets while this is done."""
    working = asyncio.ensure_future(work)
    turns = 0
    while not working.done():
        await asyncio.sleep(0)
        turns += 1
    return turns, working.result()


@pytest.mark.parametrize(
    ("units", "entry", "least"),
    [
        ([f"{n:0200}" for n in range(10_000)], PLAIN, 40),
        ([{"unit": f"u{n}", "attributes": {"country": "AT"}} for n in range(9_000)], KEEPING, 35),
        ([f"u{n}" for n in range(10_000)], TARGETED, 100),
        ([7] * 10_000, PLAIN, 40),
        (["u" * 257] * 10_000, PLAIN, 40),
    ],
    ids=["large", "attributes", "one by one", "bad", "too long"],
)
async def test_others_get_their_turns_meanwhile(units: list[Any], entry: Entry, least: int) -> None:
    turns, made = await turns_beside(plan(units, [entry.key]))
    assert turns >= least
    assert made.batch.size == len(units)


async def test_others_get_their_turns_between_experiments() -> None:
    many = project(*(shaped(f"e{n}") for n in range(100)))
    turns, made = await turns_beside(plan([f"u{n}" for n in range(FEW)], None, many))
    assert turns >= 100
    assert len(made.experiments) == 100
