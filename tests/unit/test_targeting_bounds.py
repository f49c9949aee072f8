"""No rule and no context makes an evaluation long or large: it is given up, and raises."""

from typing import Any

import pytest

from experiments.targeting import MAX_WORK, TargetingError, compile_rule

VAR_A = {"var": "a"}
ITEM = {"var": ""}
ACCUMULATOR = {"var": "accumulator"}
LONG_TEXT = "1" * 65_000
LONG_LIST = ["x"] * 30_000
NUMBERS = list(range(10_000))


def maps(levels: int) -> Any:
    """Forty items, each made into forty, and so on."""
    return {"map": [list(range(40)), maps(levels - 1)]} if levels else ITEM


def repeated(expression: Any) -> Any:
    return {"or": [expression] * 200}


def folded_over(expression: Any, initial: Any, items: Any = VAR_A) -> Any:
    return {"!!": [{"reduce": [items, expression, initial]}]}


TOO_MUCH = {
    "loops in loops": (maps(8), []),
    "a list doubled again and again": (
        folded_over({"merge": [ACCUMULATOR, ACCUMULATOR]}, [1]),
        NUMBERS[:24],
    ),
    "text doubled again and again": (
        folded_over({"cat": [ACCUMULATOR, ACCUMULATOR]}, "ab"),
        NUMBERS[:24],
    ),
    "text of a list doubled again and again": (
        folded_over({"substr": [[ACCUMULATOR, ACCUMULATOR], 0]}, "ab"),
        NUMBERS[:24],
    ),
    "a number squared again and again": (
        folded_over({"*": [ACCUMULATOR, ACCUMULATOR]}, 3),
        NUMBERS[:24],
    ),
    "a number doubled again and again": (
        folded_over({"+": [ACCUMULATOR, ACCUMULATOR]}, 3),
        NUMBERS[:2_000],
    ),
    "a number lowered again and again": (
        folded_over({"-": [{"*": [ACCUMULATOR, 99]}, 1]}, -3),
        NUMBERS[:2_000],
    ),
    "a long list put into itself": (
        {"cat": [folded_over([ACCUMULATOR], 0)["!!"][0]]},
        NUMBERS[:200],
    ),
    "a long list compared with itself put into itself": (
        {"===": [folded_over([ACCUMULATOR], 0)["!!"][0], [0]]},
        NUMBERS[:200],
    ),
    "a loop over many items": ({"some": [VAR_A, repeated({"<": [ITEM, 0]})]}, NUMBERS),
    "many copies of a list": ({"merge": [VAR_A] * 200}, LONG_LIST),
    "many copies of a text": ({"cat": [VAR_A] * 200}, LONG_TEXT),
    "many readings of a list as text": (repeated({"==": [VAR_A, "x"]}), LONG_LIST),
    "many readings of a list as text, in order": (repeated({"<": [VAR_A, "a"]}), LONG_LIST),
    "many looks into a list": (repeated({"in": ["y", VAR_A]}), LONG_LIST),
    "many looks into a list for a list": (repeated({"in": [["y"], VAR_A]}), LONG_LIST),
    "many looks into a text": (repeated({"in": ["y", VAR_A]}), LONG_TEXT),
    "many pieces of a text": (repeated({"==": [{"substr": [VAR_A, 9]}, "y"]}), LONG_TEXT),
    "many readings of a text as number": (repeated({"==": [VAR_A, 7]}), LONG_TEXT),
    "many readings of a text as version": (repeated({"sem_ver": [VAR_A, "=", "1"]}), LONG_TEXT),
    "many readings of a text as name": (repeated({"var": [VAR_A]}), LONG_TEXT),
    "many comparisons of lists": (
        repeated({"===": [VAR_A, {"filter": [VAR_A, False]}]}),
        LONG_LIST,
    ),
    "many comparisons of objects": (
        repeated({"===": [VAR_A, [VAR_A]]}),
        {str(number): [number] for number in range(5_000)},
    ),
    "many missing names": ({"missing": [VAR_A]}, LONG_LIST * 4),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much_is_given_up(name: str) -> None:
    rule, attribute = TOO_MUCH[name]
    matches = compile_rule(rule)
    with pytest.raises(TargetingError, match=r"steps|range|deep"):
        matches({"a": attribute})


@pytest.mark.parametrize(
    ("rule", "attribute", "takes_part"),
    [
        ({"some": [VAR_A, {"==": [ITEM, 9_999]}]}, NUMBERS, True),
        ({"all": [VAR_A, {"in": [ITEM, ["x", "y"]]}]}, LONG_LIST[:9_000], True),
        ({"in": ["x", VAR_A]}, LONG_LIST, True),
        ({"in": ["2", {"cat": [VAR_A, VAR_A]}]}, LONG_TEXT, False),
        (folded_over({"+": [ACCUMULATOR, {"var": "current"}]}, 0), NUMBERS, True),
        ({"===": [VAR_A, VAR_A]}, LONG_LIST, True),
        ({"!==": [VAR_A, {"filter": [VAR_A, True]}]}, LONG_LIST[:9_000], False),
    ],
)
def test_what_a_context_can_hold_is_not_too_much(
    rule: Any, attribute: Any, takes_part: bool
) -> None:
    assert compile_rule(rule)({"a": attribute}) is takes_part


def test_every_evaluation_has_the_whole_budget() -> None:
    matches = compile_rule({"in": ["y", VAR_A]})
    context = {"a": ["x"] * (MAX_WORK // 2)}
    assert [matches(context) for _ in range(5)] == [False] * 5


def test_a_deep_value_is_given_up_at_the_same_depth_whoever_calls() -> None:
    def deep(levels: int) -> Any:
        return [deep(levels - 1)] if levels else 7

    matches = compile_rule({"==": [{"cat": [VAR_A]}, "7"]})

    def called_from(depth: int, context: dict[str, Any]) -> bool:
        return called_from(depth - 1, context) if depth else matches(context)

    for depth in (0, 400):
        assert called_from(depth, {"a": deep(65)}) is True
        with pytest.raises(TargetingError, match="nested more than 64 deep"):
            called_from(depth, {"a": deep(66)})
