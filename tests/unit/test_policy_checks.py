"""A bandit that contradicts its variants, its metrics or itself is refused, field by field."""

import re
from typing import Any

import pytest

from experiments.definition import definition_to_builtins, parse_definition
from experiments.model import Margin, StopRule, ThompsonPolicy
from experiments.problems import ProblemError


def definition(variants: int = 3, **policy: Any) -> dict[str, Any]:
    """An experiment of variants a, the control, b and so on, under a bandit."""
    return {
        "key": "x",
        "variants": [
            {"key": chr(ord("a") + k), "value": k, "weight": 1 / variants, "control": k == 0}
            for k in range(variants)
        ],
        "metrics": [
            {
                "key": "click",
                "role": "primary",
                "kind": "proportion",
                "event": "click",
                "window": "1h",
            }
        ],
        "policy": {"kind": "thompson", "metric": "click"} | policy,
    }


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ({"floors": {"z": 0.2}}, ("policy.floors.z", "reference", "there are a, b, c")),
        ({"floors": {"b": 0.01}}, ("policy.floors.b", "conflict", "at least `floor`, 0.05")),
        (
            {"floors": {"a": 0.2}, "pin_control": 0.5},
            ("policy.floors.a", "conflict", "leave its floor out"),
        ),
        (
            {"floors": {"b": 0.6, "c": 0.4}},
            ("policy.floors", "conflict", "sum to at most 1.*they sum to 1.05"),
        ),
        ({"pin_control": 0.95}, ("policy.pin_control", "conflict", "at most 0.9")),
        (
            {"pin_control": 0.5, "floors": {"b": 0.5}},
            ("policy.pin_control", "conflict", "at most 0.45: the floors .* take 0.55"),
        ),
        ({"floor": 0.34}, ("policy.floor", "conflict", "at most 0.3333")),
        ({"every": "31d"}, ("policy.every", "value", "at most 30d")),
        ({"every": "999ms"}, ("policy.every", "value", "at least 1s")),
        ({"half_life": "59s"}, ("policy.half_life", "conflict", "at least `every`, 1m")),
        ({"half_life": "366d"}, ("policy.half_life", "value", "at most 365d")),
        ({"sampling": "softmax"}, ("policy.sampling", "value", "top_two")),
        ({"metric": "sale"}, ("policy.metric", "reference", "there are click")),
        ({"stop": {"loss": {}}}, ("policy.stop.loss", "value", "name one of")),
        (
            {"stop": {"loss": {"absolute": 0.1, "relative": 0.1}}},
            ("policy.stop.loss", "conflict", "not both"),
        ),
        (
            {"stop": {"loss": {"relative": 0}}},
            ("policy.stop.loss.relative", "value", "above 0.*the loss that no longer matters"),
        ),
        (
            {"stop": {"loss": {"absolute": 1}}},
            ("policy.stop.loss.absolute", "value", "of a proportion no more can be lost"),
        ),
    ],
)
def test_a_wrong_option_is_named_with_what_would_be_right(
    policy: dict[str, Any], wrong: tuple[str, str, str]
) -> None:
    path, kind, detail = wrong
    with pytest.raises(ProblemError) as error:
        parse_definition(definition(**policy))
    [problem] = error.value.errors
    assert (problem.path, problem.type) == (path, kind)
    assert re.search(detail, problem.detail)


def test_all_options_together() -> None:
    policy: dict[str, Any] = {
        "every": "1s",
        "floor": 0.02,
        "floors": {"b": 0.3},
        "pin_control": 0.2,
        "sampling": "exploration",
        "half_life": "7d",
        "stop": {"loss": {"relative": 0.01}, "action": "conclude"},
    }
    parsed = parse_definition(definition(**policy))
    assert parsed.policy == ThompsonPolicy(
        metric="click",
        every="1s",
        floor=0.02,
        floors={"b": 0.3},
        pin_control=0.2,
        sampling="exploration",
        half_life="7d",
        stop=StopRule(loss=Margin(relative=0.01), action="conclude"),
    )
    assert parse_definition(definition_to_builtins(parsed)) == parsed


def test_floors_and_a_pin_may_take_all_there_is() -> None:
    parse_definition(definition(pin_control=0.9, floor=0.05))
    parse_definition(definition(floors={"a": 0.5, "b": 0.3, "c": 0.2}))
    parse_definition(definition(variants=10, floor=0.1))
