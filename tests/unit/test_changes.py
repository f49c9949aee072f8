"""What may change in which state."""

from typing import Any, get_args

import pytest

from experiments.changes import CHANGEABLE, change_problems
from experiments.definition import apply_patch, parse_definition
from experiments.model import Experiment, State

BEFORE = parse_definition(
    {
        "key": "ranker",
        "variants": [
            {"key": "a", "control": True, "weight": 0.5, "value": 1},
            {"key": "b", "weight": 0.5, "value": 2},
        ],
        "metrics": [
            {"key": "m", "role": "secondary", "kind": "proportion", "event": "e", "window": "1d"}
        ],
        "tags": ["x"],
    }
)


def variants(*changes: dict[str, Any]) -> dict[str, Any]:
    standing = [
        {"key": "a", "control": True, "weight": 0.5, "value": 1},
        {"key": "b", "weight": 0.5, "value": 2},
    ]
    return {"variants": [old | new for old, new in zip(standing, changes, strict=True)]}


FREE: list[dict[str, Any]] = [
    {"name": "N", "hypothesis": "H", "owner": "O", "tags": ["y"], "record": ["country"]},
    {"tags": ["x", "y"]},
    {"traffic": 0.5},
    variants({"weight": 0.4}, {"weight": 0.6}),
    {"metrics": []},
    {"guard": {"alpha": 0.02}},
    {"policy": {"kind": "thompson", "metric": "m"}},
    {"targeting": {"==": [{"var": "country"}, "DE"]}},
    {"when_stale": {"after": "10m", "do": "control"}},
]
THIRD = {"key": "c", "weight": 0, "value": 3}
PATCHES: list[tuple[dict[str, Any], set[str]]] = [
    ({"unit": {"type": "session"}}, {"unit.type"}),
    ({"unit": {"attribute": "id"}}, {"unit.attribute"}),
    ({"analysis": {"alpha": 0.1}}, {"analysis.alpha"}),
    (
        {"analysis": {"reading": "fixed", "units": 100}},
        {"analysis.reading", "analysis.units"},
    ),
    (variants({}, {"key": "c"}), {"variants[1].key"}),
    (variants({}, {"value": 3}), {"variants[1].value"}),
    (
        variants({"control": False}, {"control": True}),
        {"variants[0].control", "variants[1].control"},
    ),
    ({"variants": [*variants({}, {})["variants"], THIRD]}, {"variants"}),
]
NEXT_RUN: list[tuple[dict[str, Any], set[str]]] = [
    ({"salt": "other"}, {"salt"}),
    ({"stickiness": "sticky"}, {"stickiness"}),
    ({"layer": {"key": "l", "slots": [0, 10]}}, {"layer"}),
]


def immutable(before: Experiment, after: Experiment, state: State) -> set[str]:
    problems = change_problems(before, after, state)
    return {problem.path for problem in problems if problem.type == "immutable"}


@pytest.mark.parametrize("state", get_args(State))
def test_no_change_is_no_problem(state: State) -> None:
    assert immutable(BEFORE, BEFORE, state) == set()


@pytest.mark.parametrize("patch", FREE)
def test_what_may_change_until_it_is_archived(patch: dict[str, Any]) -> None:
    after = apply_patch(BEFORE, patch)
    for state in get_args(State):
        assert bool(immutable(BEFORE, after, state)) == (state == "archived")


@pytest.mark.parametrize(("patch", "paths"), PATCHES)
def test_what_is_held_from_the_first_run_on(patch: dict[str, Any], paths: set[str]) -> None:
    after = apply_patch(BEFORE, patch)
    for state in get_args(State):
        assert immutable(BEFORE, after, state) == (set() if state == "draft" else paths)


@pytest.mark.parametrize(("patch", "paths"), NEXT_RUN)
def test_what_is_held_while_a_run_lasts(patch: dict[str, Any], paths: set[str]) -> None:
    after = apply_patch(BEFORE, patch)
    free = {"draft", "concluded", "rolled_back"}
    for state in get_args(State):
        assert immutable(BEFORE, after, state) == (set() if state in free else paths)


@pytest.mark.parametrize("state", get_args(State))
def test_what_is_primary_is_settled_before_the_first_unit(state: State) -> None:
    primary = {"key": "p", "role": "primary", "kind": "proportion", "event": "e", "window": "1d"}
    planned = apply_patch(BEFORE, {"metrics": [primary]})
    later = [BEFORE, apply_patch(BEFORE, {"metrics": [{**primary, "window": "2d"}]})]
    for before, after in [(BEFORE, planned), *((planned, other) for other in later)]:
        assert ("metrics" in immutable(before, after, state)) == (state != "draft")
    secondary = {**primary, "key": "s", "role": "secondary"}
    more = apply_patch(planned, {"metrics": [secondary, primary]})
    assert ("metrics" in immutable(planned, more, state)) == (state == "archived")


@pytest.mark.parametrize("state", ["running", "paused"])
def test_alpha_that_may_be_spent_cannot_fall(state: State) -> None:
    lower, higher = (apply_patch(BEFORE, {"guard": {"alpha": a}}) for a in (0.001, 0.02))
    assert immutable(BEFORE, lower, state) == {"guard.alpha"}
    assert immutable(BEFORE, higher, state) == set()
    assert immutable(BEFORE, lower, "draft") == set()


def test_all_that_is_held_is_named_at_once() -> None:
    after = apply_patch(
        BEFORE, {"salt": "s", "name": "N", "unit": {"type": "session"}} | variants({}, {"value": 9})
    )
    assert immutable(BEFORE, after, "running") == {"salt", "unit.type", "variants[1].value"}


def test_the_key_is_held_in_every_state() -> None:
    after = parse_definition(
        {"key": "other", "tags": ["x"]}
        | variants({}, {})
        | {
            "metrics": [
                {
                    "key": "m",
                    "role": "secondary",
                    "kind": "proportion",
                    "event": "e",
                    "window": "1d",
                }
            ]
        }
    )
    for state in get_args(State):
        assert immutable(BEFORE, after, state) == {"key"}


def test_a_value_of_another_json_type_is_a_change_though_equal_to_python() -> None:
    after = apply_patch(BEFORE, variants({"value": 1.0}, {}))
    assert immutable(BEFORE, after, "running") == {"variants[0].value"}


def test_every_field_of_the_model_was_decided_on() -> None:
    decided = {pattern.partition("[")[0] for pattern in CHANGEABLE["draft"]} | {"key"}
    assert decided == set(Experiment.__struct_fields__)
