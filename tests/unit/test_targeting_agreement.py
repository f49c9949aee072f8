"""Targeting agrees with flagd's own evaluator, expression by expression and context by context."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.contrib.tools.flagd.core.targeting import targeting
from openfeature.evaluation_context import EvaluationContext

from experiments.targeting import compile_rule, expression_problems
from experiments.targeting.compiler import compile_value
from experiments.targeting.grammar import ARITIES
from experiments.targeting.versions import COMPARISONS

Context = dict[str, Any]
Expression = Any

FAILED = "an error"


@pytest.fixture(autouse=True, scope="module")
def quiet_flagd() -> None:
    """flagd's evaluator logs each version that it cannot read."""
    logging.getLogger("openfeature.contrib").setLevel(logging.CRITICAL)


def evaluation_context(context: Context) -> EvaluationContext:
    attributes = {name: value for name, value in context.items() if name != "targetingKey"}
    return EvaluationContext(context.get("targetingKey"), attributes)


def attempt(evaluate: Callable[[], Any]) -> Any:
    """A value, told apart from all that Python takes for equal; or that there is none."""
    try:
        return distinct(evaluate())
    except Exception:
        return FAILED


def distinct(value: Any) -> Any:
    match value:
        case bool() | None:
            return value
        case int() | float():
            return (type(value), "NaN" if math.isnan(value) else str(value))
        case list():
            return [distinct(item) for item in value]
        case dict():
            return {name: distinct(item) for name, item in value.items() if name != "$flagd"}
    return value


def value_of_flagd(expression: Expression, context: Context) -> Any:
    return attempt(lambda: targeting("flag", expression, evaluation_context(context)))


def value_of_ours(expression: Expression, context: Context) -> Any:
    return attempt(lambda: compile_value(expression)(context))


def is_targeted_by_flagd(expression: Expression, context: Context) -> bool:
    """What flagd's public evaluator says; an error is that of its caller's code default."""
    core = FlagdCore()
    core.set_flags(
        {
            "flags": {
                "flag": {
                    "state": "ENABLED",
                    "variants": {"in": "in", "out": "out"},
                    "defaultVariant": "out",
                    "targeting": {"if": [expression, "in", "out"]},
                }
            }
        }
    )
    try:
        found = core.resolve_string_value("flag", "out", evaluation_context(context))
    except Exception:
        return False
    return found.value == "in"


def is_targeted_by_us(expression: Expression, context: Context) -> bool:
    try:
        return compile_rule(expression)(context)
    except Exception:
        return False


# Cases by hand: the expression, the context, its value for both

TWO: Context = {
    "cart": {"items": [{"sku": "a", "n": 2}, {"sku": "b", "n": 0}]},
    "tags": ["x", "beta"],
}
VAR_A = {"var": "a"}

CASES: list[tuple[Expression, Context, Any]] = [
    # What is read
    (VAR_A, {}, None),
    (VAR_A, {"a": None}, None),
    (VAR_A, {"a": 0}, 0),
    ({"var": ["a"]}, {"a": "x"}, "x"),
    ({"var": ["a", "none"]}, {}, "none"),
    ({"var": ["a", "none"]}, {"a": None}, "none"),
    ({"var": ["a", "none"]}, {"a": ""}, ""),
    ({"var": ["a", {"var": "b"}]}, {"b": 7}, 7),
    ({"var": ["a", {"/": [1, {"var": "b"}]}]}, {"a": 1, "b": 0}, FAILED),
    ({"var": "cart.items.0.sku"}, TWO, "a"),
    ({"var": "cart.items.1.n"}, TWO, 0),
    ({"var": "cart.items.2.sku"}, TWO, None),
    ({"var": "cart.items.-1.sku"}, TWO, None),
    ({"var": "cart.items.01.sku"}, TWO, None),
    ({"var": "cart.items.length"}, TWO, 2),
    ({"var": "tags.1.0"}, TWO, "b"),
    ({"var": "tags.1.length"}, TWO, 4),
    ({"var": "cart.items.sku"}, TWO, None),
    ({"var": "a.b"}, {"a.b": 1}, None),
    ({"var": "a.b"}, {"a": 5}, None),
    ({"var": {"cat": ["a", ".", "b"]}}, {"a": {"b": 1}}, 1),
    ({"var": [{"+": [1]}]}, {"1": "x"}, None),
    ({"var": "targetingKey"}, {"targetingKey": "u"}, "u"),
    ({"missing": ["a", "b"]}, {"a": 1}, ["b"]),
    ({"missing": [["a", "b"]]}, {"b": ""}, ["a", "b"]),
    ({"missing": "a"}, {"a": 0}, []),
    ({"missing": {"merge": ["a", {"if": [{"var": "b"}, "c"]}]}}, {"b": 1, "a": 1}, ["c"]),
    ({"missing_some": [1, ["a", "b"]]}, {"b": 1}, []),
    ({"missing_some": [2, ["a", "b"]]}, {"b": 1}, ["a"]),
    ({"missing_some": ["2", ["a", "b"]]}, {"b": 1}, ["a"]),
    # What is true
    ({"!!": [[]]}, {}, False),
    ({"!!": VAR_A}, {"a": []}, False),
    ({"!!": VAR_A}, {"a": [0]}, True),
    ({"!!": VAR_A}, {"a": {}}, True),
    ({"!!": "0"}, {}, True),
    ({"!!": VAR_A}, {"a": "0"}, True),
    ({"!!": VAR_A}, {"a": ""}, False),
    ({"!!": VAR_A}, {"a": 0.0}, False),
    ({"!!": {"+": "nan"}}, {}, False),
    ({"!": VAR_A}, {}, True),
    ({"!": [VAR_A]}, {"a": "0"}, False),
    ({"and": [VAR_A, {"var": "b"}]}, {"a": 1, "b": "x"}, "x"),
    ({"and": [VAR_A, {"var": "b"}]}, {"a": 0, "b": "x"}, 0),
    ({"and": [False, {"/": [1, VAR_A]}]}, {"a": 0}, False),
    ({"or": [VAR_A, {"var": "b"}]}, {"a": [], "b": "0"}, "0"),
    ({"or": [VAR_A, []]}, {}, []),
    ({"or": [True, {"/": [1, VAR_A]}]}, {"a": 0}, True),
    ({"if": [VAR_A, "yes"]}, {}, None),
    ({"if": [VAR_A, "yes", "no"]}, {"a": []}, "no"),
    ({"?:": [VAR_A, "yes", {"var": "b"}, "b", "no"]}, {"b": "0"}, "b"),
    ({"if": [VAR_A, "yes", {"var": "b"}, "b"]}, {}, None),
    # What is equal
    ({"==": ["1", 1]}, {}, True),
    ({"==": [VAR_A, "1"]}, {"a": 1}, True),
    ({"==": [VAR_A, "1"]}, {"a": True}, True),
    ({"==": [VAR_A, " 1.0 "]}, {"a": 1}, True),
    ({"==": [VAR_A, "1"]}, {"a": "1.0"}, False),
    ({"==": [VAR_A, ""]}, {"a": 0}, False),
    ({"==": [VAR_A, 0]}, {}, True),
    ({"==": [VAR_A, ""]}, {}, False),
    ({"==": [VAR_A, None]}, {}, True),
    ({"==": [VAR_A, "null"]}, {}, False),
    ({"==": ["null", VAR_A]}, {}, False),
    ({"==": [VAR_A, False]}, {"a": "0"}, True),
    ({"==": [VAR_A, "1,2"]}, {"a": [1, 2]}, True),
    ({"==": [VAR_A, "[object Object]"]}, {"a": {}}, True),
    ({"==": [VAR_A, 5]}, {"a": [[5]]}, True),
    ({"==": [VAR_A, [1]]}, {"a": [1]}, False),
    ({"==": [VAR_A, VAR_A]}, {"a": [1]}, True),
    ({"==": [[1], [1]]}, {}, False),
    (
        {"some": [[{"map": [[1, 2], {"merge": [9]}]}], {"==": [{"var": "0"}, {"var": "1"}]}]},
        {},
        False,
    ),
    ({"==": [VAR_A, "inf"]}, {"a": math.inf}, False),
    ({"!=": [VAR_A, "pro"]}, {}, True),
    ({"!=": [VAR_A, "pro"]}, {"a": "pro"}, False),
    ({"===": [VAR_A, 1]}, {"a": "1"}, False),
    ({"===": [VAR_A, 1]}, {"a": True}, True),
    ({"===": [VAR_A, 1]}, {"a": 1.0}, True),
    ({"===": [VAR_A, [1]]}, {"a": [1]}, True),
    ({"!==": [VAR_A, None]}, {}, False),
    # What comes first
    ({"<": [VAR_A, 18]}, {"a": "7"}, True),
    ({"<": ["10", "9"]}, {}, True),
    ({"<": [VAR_A, 1]}, {}, True),
    ({"<": [VAR_A, "b"]}, {"a": ["a", "z"]}, True),
    ({">": [VAR_A, 1]}, {"a": "x"}, False),
    ({"<=": [VAR_A, 1]}, {"a": "x"}, False),
    ({"<": [1, VAR_A, 3]}, {"a": 2}, True),
    ({"<": [1, VAR_A, 3]}, {"a": 3}, False),
    ({"<=": [1, VAR_A, 3]}, {"a": 3}, True),
    ({"<=": [1, VAR_A, {"var": "b"}]}, {"a": 3}, True),
    ({">": [3, VAR_A, 1]}, {"a": 1}, False),
    ({">=": [3, VAR_A, 1]}, {"a": 1}, True),
    ({"max": [1, "3", VAR_A]}, {"a": 2}, 3.0),
    ({"min": [1, "3", VAR_A]}, {}, 0),
    # Numbers
    ({"+": ["1", 2, True]}, {}, 4.0),
    ({"+": "3.5"}, {}, 3.5),
    ({"+": VAR_A}, {"a": []}, 0),
    ({"+": VAR_A}, {"a": " +INF "}, math.nan),
    ({"+": VAR_A}, {"a": "infinity"}, math.inf),
    ({"-": [VAR_A]}, {"a": "2"}, -2.0),
    ({"-": [5, "2"]}, {}, 3.0),
    ({"*": [VAR_A, 2]}, {"a": 3}, 6),
    ({"/": [VAR_A, 2]}, {"a": 3}, 1.5),
    ({"/": [1, VAR_A]}, {"a": 0}, FAILED),
    ({"%": [VAR_A, 3]}, {"a": -1}, 2),
    ({"%": [1, VAR_A]}, {}, FAILED),
    # Text
    ({"cat": ["a", 1, 1.0, 1.5, True, None, VAR_A]}, {"a": [1, None]}, "a111.5Truenull1,null"),
    ({"substr": ["jsonlogic", 4]}, {}, "logic"),
    ({"substr": ["jsonlogic", -5]}, {}, "logic"),
    ({"substr": ["jsonlogic", -50]}, {}, "jsonlogic"),
    ({"substr": ["jsonlogic", 1, 3]}, {}, "son"),
    ({"substr": ["jsonlogic", 4, -2]}, {}, "log"),
    ({"substr": ["jsonlogic", 4, -50]}, {}, ""),
    ({"substr": ["jsonlogic", 0, -12]}, {}, ""),
    ({"substr": ["jsonlogic", 50]}, {}, ""),
    ({"substr": [VAR_A, 1]}, {}, "ull"),
    ({"in": ["beta", {"var": "tags"}]}, TWO, True),
    ({"in": [VAR_A, ["DE", "AT"]]}, {"a": "AT"}, True),
    ({"in": [VAR_A, ["DE", "AT"]]}, {}, False),
    ({"in": [VAR_A, [None, "AT"]]}, {}, True),
    ({"in": [VAR_A, [1]]}, {"a": True}, True),
    ({"in": [VAR_A, ["1"]]}, {"a": 1}, False),
    ({"in": [VAR_A, [["DE"], "AT"]]}, {"a": ["DE"]}, True),
    ({"in": [VAR_A, ["DE"]]}, {"a": ["DE"]}, False),
    ({"in": [VAR_A, ["DE"]]}, {"a": {}}, False),
    ({"in": [{"var": "a.b"}, ["DE"]]}, {"a": {"b": ["DE"]}}, False),
    ({"in": ["ring", VAR_A]}, {"a": "Spring"}, True),
    ({"in": [VAR_A, "annulled"]}, {}, True),
    ({"in": ["a", VAR_A]}, {"a": 5}, False),
    ({"in": ["a", VAR_A]}, {"a": {"a": 1}}, False),
    ({"starts_with": [VAR_A, "ab"]}, {"a": "abc"}, True),
    ({"starts_with": [VAR_A, "ab"]}, {"a": 5}, None),
    ({"starts_with": [VAR_A, "ab"]}, {}, None),
    ({"ends_with": [VAR_A, "@x.org"]}, {"a": "me@x.org"}, True),
    ({"ends_with": [VAR_A, "@x.org"]}, {"a": ["@x.org"]}, None),
    # Versions
    ({"sem_ver": [VAR_A, ">=", "1.2"]}, {"a": "1.2.0"}, True),
    ({"sem_ver": [VAR_A, ">=", "1.2"]}, {"a": "v1.10"}, True),
    ({"sem_ver": [VAR_A, "<", "1.2.0"]}, {"a": "1.2.0-rc.1"}, True),
    ({"sem_ver": [VAR_A, "<", "1.2.0-rc.10"]}, {"a": "1.2.0-rc.9"}, True),
    ({"sem_ver": [VAR_A, "<", "1.2.0-rc.1.0"]}, {"a": "1.2.0-rc.1"}, True),
    ({"sem_ver": [VAR_A, "<", "1.0.0-alpha"]}, {"a": "1.0.0-1"}, True),
    ({"sem_ver": [VAR_A, "=", "1.2.0"]}, {"a": "1.2.0+build.7"}, True),
    ({"sem_ver": [VAR_A, "=", "1.2.0"]}, {"a": 1.2}, True),
    ({"sem_ver": [VAR_A, "=", "1"]}, {"a": 1}, True),
    ({"sem_ver": [VAR_A, "!=", "1.2.0"]}, {"a": "1.2.1"}, True),
    ({"sem_ver": [VAR_A, "^", "1.2.0"]}, {"a": "1.9.1"}, True),
    ({"sem_ver": [VAR_A, "^", "1.2.0"]}, {"a": "1.0.0"}, True),
    ({"sem_ver": [VAR_A, "~", "1.2.0"]}, {"a": "1.3.0"}, False),
    ({"sem_ver": [VAR_A, "~", "1.2.0"]}, {"a": "1.2.9"}, True),
    ({"sem_ver": [VAR_A, "=", "1.2.0"]}, {"a": "1.02.0"}, None),
    ({"sem_ver": [VAR_A, "=", "1.2.0"]}, {"a": "vv1.2.0"}, None),
    ({"sem_ver": [VAR_A, "=", "1.2.0"]}, {"a": "1.2.0.0"}, None),
    ({"sem_ver": [VAR_A, "=", "1.2.0"]}, {"a": "1.2.0\n"}, None),
    ({"sem_ver": [VAR_A, "=", "1.2.0"]}, {"a": True}, None),
    ({"sem_ver": [VAR_A, "=", "1.2.0"]}, {"a": "9" * 5_000 + ".0.0"}, None),
    ({"sem_ver": [VAR_A, "=", "1.2.0"]}, {}, None),
    ({"sem_ver": ["1.2.0", VAR_A, "1.2.0"]}, {"a": "=="}, None),
    ({"sem_ver": ["1.2.0", VAR_A, "1.2.0"]}, {"a": "="}, True),
    # Lists
    ({"merge": [1, [2, [3]], VAR_A]}, {}, [1, 2, [3], None]),
    ({"map": [{"var": "cart.items"}, {"var": "n"}]}, TWO, [2, 0]),
    ({"map": [[1, 2], {"*": [{"var": ""}, 2]}]}, {}, [2, 4]),
    ({"map": [["ab", [5]], {"var": 0}]}, {}, ["a", 5]),
    ({"map": [VAR_A, 1]}, {"a": "text"}, []),
    ({"filter": [{"var": "cart.items"}, {"var": "n"}]}, TWO, TWO["cart"]["items"][:1]),
    ({"filter": [VAR_A, True]}, {}, []),
    ({"all": [VAR_A, True]}, {"a": []}, False),
    ({"all": [VAR_A, {"<": [{"var": ""}, 3]}]}, {"a": [1, 2]}, True),
    ({"some": [VAR_A, {"<": [{"var": ""}, 3]}]}, {"a": [5, 2]}, True),
    ({"some": [VAR_A, True]}, {"a": {}}, False),
    ({"none": [VAR_A, True]}, {}, True),
    ({"none": [VAR_A, {"<": [{"var": ""}, 3]}]}, {"a": [5, 2]}, False),
    ({"some": [{"var": "tags"}, {"==": [{"var": "tags"}, "x"]}]}, TWO, False),
    (
        {"reduce": [VAR_A, {"+": [{"var": "current"}, {"var": "accumulator"}]}, 10]},
        {"a": [1, 2]},
        13,
    ),
    ({"reduce": [VAR_A, {"var": "current"}, 10]}, {}, 10),
    ({"reduce": [VAR_A, {"var": "current"}]}, {}, None),
    ({"reduce": [VAR_A, {"var": "accumulator.0"}, [7]]}, {"a": [1]}, 7),
    (
        {"in": [VAR_A, {"map": [{"var": "cart.items"}, {"var": "sku"}]}]},
        TWO | {"a": "b"},
        True,
    ),
]


def named(case: tuple[Expression, Context, Any]) -> str:
    return f"{case[0]} of {case[1]}"[:120]


@pytest.mark.parametrize(("expression", "context", "value"), CASES, ids=map(named, CASES))
def test_a_value_by_hand_is_that_of_both(
    expression: Expression, context: Context, value: Any
) -> None:
    assert expression_problems(expression, "$") == []
    assert value_of_ours(expression, context) == distinct(value)
    assert value_of_flagd(expression, context) == distinct(value)
    ours, theirs = (f(expression, context) for f in (is_targeted_by_us, is_targeted_by_flagd))
    assert ours is theirs


def test_every_operator_has_a_case_by_hand() -> None:
    used = str([expression for expression, _, _ in CASES])
    assert [name for name in ARITIES if f"'{name}':" not in used] == []


# Cases at random

TEXTS = [
    *["", "0", "1", "1.0", " 1 ", "-2", "1e3", "1_0", "0x10", "inf", "infinity", "nan", "٣"],
    *["a", "b", "ab", "DE", "null", "None", "true", "True", "1,2", "[object Object]", "é😀"],
    *["1.2.3", "v1.2", "1.2.3-rc.1", "1.2.3-rc.10", "1.2.3+b", "1.2.3-", "2.0.0-0a"],
]
NAMES = [
    *["a", "b", "c", "targetingKey", "absent", "a.0", "a.1", "b.a", "b.a.0", "c.length", "a.01"],
    *["a.-0", "b.", ".a", "a.0.0", "b.b.length"],
]
ITEM_NAMES = [*NAMES, "", "0", "1", "length", 0, 1, -1, 1.0, 0.5, None]
REDUCE_NAMES = ["current", "accumulator", "current.a", "current.0", "accumulator.0", "current.b.a"]
VERSIONS = ["1.2.3", "1.2", "v1", "1.2.3-rc.1", "1.2.3-rc.9", "1.2.4+x", "0.0.0-0"]
LOOPS = ("map", "filter", "all", "none", "some", "reduce")

texts = st.sampled_from(TEXTS)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.0, -0.0, 0.5, -1.5, 2.0, 1e300, 1e16, 0.1, 2**53 + 1, -(2**63)]),
    texts,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    ),
    max_leaves=6,
)
contexts = st.fixed_dictionaries(
    {"targetingKey": st.sampled_from(["u1", "user-42", "1"])},
    optional=dict.fromkeys("abc", values),
)


def constants(draw: st.DrawFn) -> Any:
    return draw(st.one_of(scalars, st.lists(scalars, max_size=3)))


def names_of(scope: str) -> st.SearchStrategy[Any]:
    names: dict[str, list[Any]] = {"top": [*NAMES], "item": ITEM_NAMES, "reduce": [*REDUCE_NAMES]}
    return st.sampled_from(names[scope])


def an_operator(draw: st.DrawFn, depth: int, scope: str) -> Expression:
    """An operator with arguments that a definition may hold."""
    read = {"var": draw(names_of(scope))}
    if depth <= 0:
        return read
    name = draw(st.sampled_from([*ARITIES, "var", "var", "in", "=="]))
    arity = ARITIES[name]
    count = draw(st.integers(arity.least, min(arity.most, arity.least + 2)))
    arguments = [an_expression(draw, depth - 1, scope) for _ in range(count)]
    inner = an_operator(draw, depth - 1, scope)
    if name == "var":
        if draw(st.integers(0, 9)):
            arguments[0] = read["var"]
        else:
            arguments[0] = inner
    elif name == "missing":
        arguments = draw(st.sampled_from([[inner], [draw(names_of(scope)) for _ in arguments]]))
    elif name == "missing_some":
        arguments[1] = draw(st.sampled_from([inner, [draw(names_of(scope)) for _ in range(2)]]))
    elif name in LOOPS:
        within = "reduce" if name == "reduce" else "item"
        some = [an_expression(draw, depth - 2, scope) for _ in range(draw(st.integers(0, 3)))]
        arguments[0] = draw(st.sampled_from([inner, read, some]))
        arguments[1] = an_expression(draw, depth - 1, within)
        arguments[2:] = [constants(draw) for _ in arguments[2:]]
    elif name in {"in", "/", "%"} and not isinstance(arguments[1], dict):
        some = [draw(texts), [draw(scalars) for _ in range(3)]]
        arguments[1] = draw(st.sampled_from([inner, 3] if name in "/%" else [inner, *some]))
    elif name in {"starts_with", "ends_with"}:
        arguments = [draw(st.sampled_from([inner, draw(texts), read])) for _ in arguments]
    elif name == "sem_ver":
        a, b = draw(st.sampled_from(VERSIONS)), draw(st.sampled_from(VERSIONS))
        comparison = draw(st.sampled_from([*COMPARISONS]))
        arguments = [
            draw(st.sampled_from([read, inner, a])),
            draw(st.sampled_from([comparison, comparison, read])),
            draw(st.sampled_from([read, b, b])),
        ]
    if len(arguments) == 1 and not isinstance(arguments[0], list) and draw(st.booleans()):
        return {name: arguments[0]}
    return {name: arguments}


def an_expression(draw: st.DrawFn, depth: int, scope: str) -> Expression:
    form = draw(st.integers(0, 9))
    if form == 0 or depth < 0:
        return constants(draw)
    if form == 1:
        return [an_expression(draw, depth - 1, scope) for _ in range(draw(st.integers(0, 2)))]
    if form == 2:
        return draw(scalars)
    return an_operator(draw, depth, scope)


@st.composite
def expressions(draw: st.DrawFn) -> Expression:
    return an_operator(draw, draw(st.integers(1, 4)), "top")


thorough = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])


@thorough
@given(expressions(), st.lists(contexts, min_size=2, max_size=4))
def test_values_are_those_of_flagd(expression: Expression, some: list[Context]) -> None:
    assert expression_problems(expression, "$") == []
    for context in some:
        assert value_of_ours(expression, context) == value_of_flagd(expression, context)


@thorough
@given(expressions(), st.lists(contexts, min_size=2, max_size=4))
def test_whoever_flagd_targets_is_targeted(expression: Expression, some: list[Context]) -> None:
    for context in some:
        ours = is_targeted_by_us(expression, context)
        assert ours is is_targeted_by_flagd(expression, context)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([*COMPARISONS]), st.data())
def test_versions_compare_as_those_of_flagd(comparison: str, data: st.DataObject) -> None:
    numbers = st.sampled_from(["0", "1", "2", "10", "01", ""])
    identifiers = st.sampled_from(["", "0", "1", "9", "10", "01", "a", "rc", "0a", "-", "B"])
    version = st.builds(
        lambda prefix, parts, before, build: prefix + ".".join(parts) + before + build,
        st.sampled_from(["", "v", "V", "vv", " "]),
        st.lists(numbers, min_size=1, max_size=4),
        st.lists(identifiers, max_size=3).map(lambda some: "-" + ".".join(some) if some else ""),
        st.sampled_from(["", "", "+1", "+a.b", "+"]),
    )
    context = {"a": data.draw(version), "b": data.draw(version)}
    expression = {"sem_ver": [VAR_A, comparison, {"var": "b"}]}
    assert value_of_ours(expression, context) == value_of_flagd(expression, context)
