"""Rules decide who takes part; wrong ones are refused with each wrong place, when they are defined.

That the answers are flagd's is in `test_targeting_agreement`, that they are bounded in
`test_targeting_bounds`.
"""

import re
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.problems import FIELD_TYPES, FieldProblem, ProblemError
from experiments.targeting import (
    MAX_NODES,
    TargetingError,
    compile_rule,
    expression_problems,
)
from experiments.targeting.checks import MAX_PROBLEMS
from experiments.targeting.grammar import ARITIES

COUNTRY = {"in": [{"var": "country"}, ["DE", "AT"]]}
PRO = {"==": [{"var": "plan"}, "pro"]}
VAR_A = {"var": "a"}


def problems(expression: Any) -> list[FieldProblem]:
    return expression_problems(expression, "targeting")


def only_problem(expression: Any) -> FieldProblem:
    (problem,) = problems(expression)
    return problem


# Who takes part


@pytest.mark.parametrize(
    ("rule", "context", "takes_part"),
    [
        (COUNTRY, {"country": "AT"}, True),
        (COUNTRY, {"country": "CH"}, False),
        (COUNTRY, {"country": ["AT"]}, False),
        (COUNTRY, {}, False),
        ({"!": COUNTRY}, {}, True),
        (PRO, {"plan": "pro"}, True),
        (PRO, {"plan": 1}, False),
        ({"and": [COUNTRY, PRO]}, {"country": "DE", "plan": "pro"}, True),
        ({"and": [COUNTRY, PRO]}, {"country": "DE"}, False),
        ({"and": [COUNTRY, PRO, VAR_A]}, {"country": "DE", "plan": "pro", "a": "0"}, True),
        ({"and": [COUNTRY, PRO, VAR_A]}, {"country": "DE", "plan": "pro", "a": []}, False),
        ({"or": [COUNTRY, PRO]}, {"plan": "pro"}, True),
        ({"or": [COUNTRY, PRO]}, {}, False),
        ({"or": [COUNTRY, PRO, VAR_A]}, {"a": {}}, True),
        ({"or": [COUNTRY, PRO, VAR_A]}, {}, False),
        ({"if": [COUNTRY, PRO, True]}, {"country": "CH"}, True),
        ({"if": [COUNTRY, PRO, True]}, {"country": "AT", "plan": "free"}, False),
        ({"var": "beta"}, {"beta": "no"}, True),
        ({"ends_with": [{"var": "targetingKey"}, "@example.org"]}, {"targetingKey": "x@a"}, False),
        (True, {}, True),
        (None, {}, True),
    ],
)
def test_whoever_matches_takes_part(rule: Any, context: dict[str, Any], takes_part: bool) -> None:
    assert problems(rule) == []
    matches = compile_rule(rule)
    assert matches(context) is takes_part
    assert matches(MappingProxyType(context)) is takes_part


def test_a_rule_may_be_asked_any_number_of_times() -> None:
    matches = compile_rule({"some": [{"var": "tags"}, {"in": ["beta", {"var": ""}]}]})
    contexts: list[dict[str, Any]] = [{"tags": ["x", "beta-2"]}, {"tags": ["x"]}, {"tags": "beta"}]
    assert [matches(context) for context in contexts * 500] == [True, False, False] * 500


def test_a_rule_leaves_expression_and_context_as_they_are() -> None:
    text = "{reduce: [{merge: [[1], {var: a}]}, {merge: [{var: accumulator}, {var: current}]}, []]}"
    expression, context = yaml.safe_load(text), {"a": [[2], 3]}
    compile_rule(expression)(context)
    assert expression == yaml.safe_load(text)
    assert context == {"a": [[2], 3]}


@pytest.mark.parametrize(
    ("rule", "context"),
    [
        ({"/": [1, VAR_A]}, {"a": 0}),
        ({"%": [1, VAR_A]}, {}),
        ({"substr": ["abc", VAR_A]}, {"a": "1e999"}),
    ],
)
def test_a_rule_without_an_answer_raises(rule: Any, context: dict[str, Any]) -> None:
    matches = compile_rule(rule)
    with pytest.raises(ArithmeticError):
        matches(context)


def test_what_is_not_evaluated_raises_nothing() -> None:
    guarded = {"and": [VAR_A, {">": [{"/": [1, VAR_A]}, 0]}]}
    assert compile_rule(guarded)({"a": 0}) is False
    assert compile_rule({"or": [True, {"<": [{"/": [1, {"-": [1, 1]}]}, 0]}]})({}) is True


@pytest.mark.parametrize("reads", ["var", "missing"])
@pytest.mark.parametrize("name", ["$flagd.timestamp", "$flagd", "$flagd.flagKey"])
def test_no_name_made_at_run_time_reads_a_clock(reads: str, name: str) -> None:
    matches = compile_rule({reads: [VAR_A]})
    with pytest.raises(TargetingError, match=r"\$flagd cannot be read"):
        matches({"a": name, "$flagd": {"timestamp": 1}})


# What is refused


@pytest.mark.parametrize(
    ("expression", "path", "kind", "detail"),
    [
        (False, "", "value", "nobody would be targeted"),
        ("DE", "", "type", "must be an operator with its arguments.*this is text"),
        (1, "", "type", "this is a number"),
        ([COUNTRY], "", "type", "this is a list"),
        ({}, "", "value", "one operator.*this has none"),
        ({"and": [PRO], "or": [PRO]}, "", "value", "one operator.*this has `and`, `or`"),
        ({"and": [PRO, {}]}, ".and[1]", "value", "one operator"),
        ({"or": [{"var": "a", "in": []}]}, ".or[0]", "value", "one operator"),
        ({"eq": [VAR_A, 1]}, ".eq", "unknown", "no operator has this name.*there are var missing"),
        ({"and": [{"startswith": [VAR_A, "x"]}]}, ".and[0].startswith", "unknown", "`starts_with`"),
        ({"=": [VAR_A, 1]}, '["="]', "unknown", "did you mean"),
        ({"!!": {"log": "x"}}, '["!!"].log', "value", "`log` cannot be used"),
        ({"fractional": [["a", 50], ["b", 50]]}, ".fractional", "value", "`traffic` and the weigh"),
        # Arguments
        ({"==": [VAR_A]}, '["=="]', "value", "`==` takes 2 arguments; this has 1"),
        ({"==": VAR_A}, '["=="]', "value", "`==` takes 2 arguments; this has 1"),
        ({"in": [VAR_A, "DE", "AT"]}, ".in", "value", "`in` takes 2 arguments; this has 3"),
        ({"!": [VAR_A, VAR_A]}, '["!"]', "value", "takes 1 argument; this has 2"),
        ({"<": [1, 2, 3, 4]}, '["<"]', "value", "takes 2 to 3 arguments; this has 4"),
        ({"and": []}, ".and", "value", "takes at least 1 argument; this has 0"),
        ({"if": [VAR_A]}, ".if", "value", "takes at least 2 arguments; this has 1"),
        ({"var": []}, ".var", "value", "takes 1 to 2 arguments; this has 0"),
        ({"max": []}, ".max", "value", "takes at least 1 argument"),
        ({"sem_ver": [VAR_A, "1.0.0"]}, ".sem_ver", "value", "takes 3 arguments; this has 2"),
        # Names
        ({"var": ""}, ".var", "value", "must be the name of an attribute.*this is empty"),
        ({"var": None}, ".var", "value", "must be the name of an attribute.*this is null"),
        ({"var": 1}, ".var", "value", "must be the name of an attribute.*this is a number"),
        ({"var": [["a"]]}, ".var[0]", "value", "must be the name.*this is a list"),
        ({"var": "$flagd.timestamp"}, ".var", "value", r"`\$flagd` cannot be read: assignment is"),
        ({"var": ["$flagd", 1]}, ".var[0]", "value", r"`\$flagd` cannot be read"),
        ({"missing": ["a", "$flagd.flagKey"]}, ".missing[1]", "value", r"`\$flagd` cannot"),
        ({"missing": [["a", 1]]}, ".missing[0]", "value", "must be the name of an attribute"),
        ({"missing_some": [1, ["a", "$flagd"]]}, ".missing_some[1]", "value", "cannot be read"),
        ({"missing_some": [1, "a"]}, ".missing_some[1]", "value", "must be a list of names"),
        ({"some": [VAR_A, {"var": "$flagd.x"}]}, ".some[1].var", "value", "cannot be read"),
        ({"some": [VAR_A, {"var": True}]}, ".some[1].var", "value", "a name or an index"),
        ({"some": [{"var": ""}, True]}, ".some[0].var", "value", "must be the name"),
        ({"reduce": [VAR_A, {"var": "item"}, 0]}, ".reduce[1].var", "value", "only `current` and"),
        ({"reduce": [VAR_A, {"var": ""}, 0]}, ".reduce[1].var", "value", "only `current` and"),
        # What can never be meant
        ({"reduce": [VAR_A, True, VAR_A]}, ".reduce[2]", "value", "must be a constant"),
        ({"reduce": [VAR_A, True, [[VAR_A]]]}, ".reduce[2]", "value", "must be a constant"),
        ({"filter": ["a", True]}, ".filter[0]", "value", "must be a list, or an op.*this is text"),
        ({"in": [VAR_A, 5]}, ".in[1]", "value", "must be a list or text to look in"),
        ({"/": [VAR_A, 0]}, '["/"][1]', "value", "must not be 0"),
        ({"%": [VAR_A, 0.0]}, '["%"][1]', "value", "must not be 0"),
        ({"starts_with": [VAR_A, 5]}, ".starts_with[1]", "value", "must be text; this is a number"),
        ({"ends_with": [VAR_A, ["x"]]}, ".ends_with[1]", "value", "must be text; this is a list"),
        ({"sem_ver": [VAR_A, "==", "1.0.0"]}, ".sem_ver[1]", "value", "must be one of = != < <="),
        ({"sem_ver": [VAR_A, "=", "one"]}, ".sem_ver[2]", "value", "must be a version as text"),
        ({"sem_ver": [VAR_A, "=", 1.10]}, ".sem_ver[2]", "value", "must be a version as text"),
        ({"sem_ver": ["1.0.0.0", "=", VAR_A]}, ".sem_ver[0]", "value", "must be a version as text"),
        ({"!!": [{1, 2}]}, '["!!"][0]', "type", "must be JSON"),
    ],
)
def test_a_wrong_place_is_named(expression: Any, path: str, kind: str, detail: str) -> None:
    problem = only_problem(expression)
    assert (problem.path, problem.type) == (f"targeting{path}", kind)
    assert re.search(detail, problem.detail)


def test_all_wrong_places_are_named_at_once() -> None:
    expression = yaml.safe_load(
        """
        and:
        - {in: [{var: country}]}
        - {or: [{var: $flagd.timestamp}, {is: [{var: plan}, pro]}]}
        - {sem_ver: [{var: version}, '=>', one]}
        """
    )
    assert [(problem.path, problem.type) for problem in problems(expression)] == [
        ("targeting.and[0].in", "value"),
        ("targeting.and[1].or[0].var", "value"),
        ("targeting.and[1].or[1].is", "unknown"),
        ("targeting.and[2].sem_ver[1]", "value"),
        ("targeting.and[2].sem_ver[2]", "value"),
    ]


def test_an_unknown_operator_is_told_all_that_there_are() -> None:
    told = only_problem({"matches": [VAR_A, "x"]}).detail.split()
    assert set(ARITIES) <= set(told)
    assert not {"log", "fractional"} & set(told)


def test_no_more_places_are_named_than_anyone_reads() -> None:
    found = problems({"and": [{"x": 1}] * 500})
    assert len(found) == MAX_PROBLEMS


def test_a_rule_is_not_made_of_a_wrong_expression() -> None:
    with pytest.raises(ProblemError) as caught:
        compile_rule({"and": [{"in": []}, {"log": 1}]})
    assert caught.value.type == "invalid"
    assert [error.path for error in caught.value.errors] == ["and[0].in", "and[1].log"]


# Limits


def nested(levels: int) -> Any:
    expression: Any = VAR_A
    for _ in range(levels):
        expression = {"!": expression}
    return expression


def test_an_expression_is_nested_at_most_32_deep() -> None:
    assert problems(nested(31)) == []
    assert compile_rule(nested(31))({"a": 0}) is True
    assert only_problem(nested(32)).detail == "must be nested at most 32 deep"
    assert only_problem(nested(100_000)).detail == "must be nested at most 32 deep"


def test_an_expression_has_a_bounded_number_of_values() -> None:
    def members(count: int) -> Any:
        return {"in": [VAR_A, [str(number) for number in range(count)]]}

    fitting = MAX_NODES - 5  # the operators, their names' lists and what they read
    assert problems(members(fitting)) == []
    assert only_problem(members(fitting + 1)).detail.startswith(f"must have at most {MAX_NODES} ")
    assert only_problem({"a" * 100_000: [0] * 100_000}).path == "targeting"


def test_an_expression_that_contains_itself_is_refused() -> None:
    endless: dict[str, Any] = {"or": []}
    endless["or"] += [endless, endless]
    assert only_problem(endless).detail == "must be nested at most 32 deep"


def test_an_expression_that_grows_exponentially_is_refused() -> None:
    expression: Any = VAR_A
    for _ in range(14):
        expression = {"or": [expression] * 10}
    assert only_problem(expression).detail.startswith(f"must have at most {MAX_NODES} ")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*ARITIES, "x"]), inner, max_size=2),
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=500)
@given(json_values)
def test_whatever_is_written_is_a_rule_or_is_refused_by_its_places(expression: Any) -> None:
    found = problems(expression)
    assert {problem.type for problem in found} <= set(FIELD_TYPES)
    assert all(problem.path.startswith("targeting") for problem in found)
    if not found:
        assert callable(compile_rule(expression))
