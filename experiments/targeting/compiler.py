"""From an expression to closures, made once; what can be known beforehand is worked out here.

Every part of an expression becomes a `Code`. Its closures take what the part reads from (the
context, or within a loop the item) and the budget of the evaluation. A value that is only asked for
its truth is never made where a test does: `and` of two comparisons is two tests.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from experiments import paths
from experiments.problems import invalid
from experiments.targeting.budget import Budget
from experiments.targeting.checks import expression_problems
from experiments.targeting.grammar import is_operator, parts, weight
from experiments.targeting.lookup import look_up, missing, missing_some, parse_name, walk
from experiments.targeting.operations import OPERATIONS, Operation
from experiments.targeting.values import truth
from experiments.targeting.versions import COMPARISONS, read_version

Rule: TypeAlias = Callable[[Mapping[str, Any]], bool]
"""Whether a context matches. Any `Exception` that it raises means that it does not."""

Run: TypeAlias = Callable[[Any, Budget], Any]
Test: TypeAlias = Callable[[Any, Budget], bool]


class _Varying:
    """The type of `_VARYING`."""


_VARYING: Final = _Varying()
"""Stands for the constant of what is none."""


class Code(NamedTuple):
    """A part of an expression, compiled.

    Attributes:
        run: Its value.
        test: The truth of its value.
        constant: Its value if that is always the same scalar.
        members: Its items if it is a list of constants.
        attribute: The attribute of the context that it gives as it is.
    """

    run: Run
    test: Test
    constant: Any = _VARYING
    members: tuple[Any, ...] | None = None
    attribute: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether its value can be told without a context."""
        return self.constant is not _VARYING or self.members is not None


def compile_rule(expression: Any) -> Rule:
    """The rule that an expression states; null is the rule that everyone matches.

    The context that a rule takes is JSON data by attribute, `targetingKey` among them; what it
    lacks is null. A rule raises `TargetingError` where it would take too much work or number, and
    what Python raises where an operation has no answer (`ZeroDivisionError`, `OverflowError`,
    `ValueError`).

    Raises:
        ProblemError: `invalid`, with every wrong place, where `expression_problems` finds any.
    """
    problems = expression_problems(expression, paths.ROOT)
    if problems:
        raise invalid(problems)
    test = _compile(True if expression is None else expression, at_top=True).test

    def rule(context: Mapping[str, Any]) -> bool:
        return test(context, Budget())

    return rule


def compile_value(expression: Any) -> Callable[[Mapping[str, Any]], Any]:
    """As `compile_rule`, but for the value of an expression that has no problems."""
    run = _compile(expression, at_top=True).run

    def value(context: Mapping[str, Any]) -> Any:
        return run(context, Budget())

    return value


def _compile(expression: Any, at_top: bool) -> Code:
    if isinstance(expression, list):
        return _list([_compile(item, at_top) for item in expression])
    if not is_operator(expression):
        return _constant(expression)
    name, arguments = parts(expression)
    if name == "var":
        return _var(arguments, at_top)
    if name in _LOOPS:
        return _LOOPS[name](arguments, at_top)
    codes = [_compile(argument, at_top) for argument in arguments]
    if name in _READERS:
        return _of_run(_reader(_READERS[name], codes))
    code = _FORMS[name](codes) if name in _FORMS else _operation(name, codes)
    return _folded(code) if all(part.is_known for part in codes) else code


# Codes


def _constant(value: Any) -> Code:
    is_true = truth(value)
    return Code(lambda data, budget: value, lambda data, budget: is_true, constant=value)


def _of_run(run: Run) -> Code:
    return Code(run, lambda data, budget: truth(run(data, budget)))


def _of_test(test: Test) -> Code:
    return Code(test, test)


def _list(codes: list[Code]) -> Code:
    # `==` compares lists by identity, so each evaluation makes its own.
    if all(code.constant is not _VARYING for code in codes):
        members = tuple(code.constant for code in codes)
        is_true = bool(members)
        return Code(
            lambda data, budget: list(members), lambda data, budget: is_true, members=members
        )
    runs = [code.run for code in codes]
    return _of_run(lambda data, budget: [run(data, budget) for run in runs])


def _folded(code: Code) -> Code:
    """The constant that code of constants is; itself where that is a list, or where it raises,
    which it is to do when it is evaluated, if ever it is."""
    try:
        value = code.run({}, Budget())
    except Exception:
        return code
    return code if isinstance(value, list | dict) else _constant(value)


# What is read


def _var(arguments: list[Any], at_top: bool) -> Code:
    name, *defaults = [_compile(argument, at_top) for argument in arguments]
    default = defaults[0] if defaults else _constant(None)
    if name.constant is None or name.constant == "":
        return _of_run(lambda data, budget: data)
    if not isinstance(name.constant, str):
        look_up_of = _reader(look_up, [name, default])
        return _of_run(look_up_of)
    first, *rest = steps = parse_name(name.constant)
    if at_top and not rest and default.constant is None:
        return _attribute(first.name)
    get = default.run
    # A default is evaluated also where it is not needed: it may raise.
    return _of_run(lambda data, budget: walk(data, steps, get(data, budget)))


def _attribute(name: str) -> Code:
    return Code(
        lambda data, budget: data.get(name),
        lambda data, budget: truth(data.get(name)),
        attribute=name,
    )


_READERS: Final[dict[str, Operation]] = {"missing": missing, "missing_some": missing_some}


def _reader(operation: Operation, codes: list[Code]) -> Run:
    """An operation on the data itself and on its arguments."""
    runs = [code.run for code in codes]
    return lambda data, budget: operation(budget, data, *[run(data, budget) for run in runs])


# What is decided


def _if(codes: list[Code]) -> Code:
    conditions = [code.test for code in codes[:-1:2]]
    outcomes = codes[1::2]
    otherwise = codes[-1] if len(codes) % 2 else _constant(None)
    runs = [code.run for code in outcomes]
    tests = [code.test for code in outcomes]

    def run(data: Any, budget: Budget) -> Any:
        for condition, outcome in zip(conditions, runs, strict=True):
            if condition(data, budget):
                return outcome(data, budget)
        return otherwise.run(data, budget)

    def test(data: Any, budget: Budget) -> bool:
        for condition, outcome in zip(conditions, tests, strict=True):
            if condition(data, budget):
                return outcome(data, budget)
        return otherwise.test(data, budget)

    return Code(run, test)


def _and(codes: list[Code]) -> Code:
    *runs, last = [code.run for code in codes]

    def run(data: Any, budget: Budget) -> Any:
        for part in runs:
            value = part(data, budget)
            if not truth(value):
                return value
        return last(data, budget)

    return Code(run, _all_of([code.test for code in codes]))


def _all_of(tests: list[Test]) -> Test:
    if len(tests) == 2:
        first, second = tests
        return lambda data, budget: first(data, budget) and second(data, budget)

    def test(data: Any, budget: Budget) -> bool:
        for part in tests:  # noqa: SIM110  a generator would cost as much as three parts
            if not part(data, budget):
                return False
        return True

    return test


def _or(codes: list[Code]) -> Code:
    *runs, last = [code.run for code in codes]

    def run(data: Any, budget: Budget) -> Any:
        for part in runs:
            value = part(data, budget)
            if truth(value):
                return value
        return last(data, budget)

    return Code(run, _any_of([code.test for code in codes]))


def _any_of(tests: list[Test]) -> Test:
    if len(tests) == 2:
        first, second = tests
        return lambda data, budget: first(data, budget) or second(data, budget)

    def test(data: Any, budget: Budget) -> bool:
        for part in tests:  # noqa: SIM110  a generator would cost as much as three parts
            if part(data, budget):
                return True
        return False

    return test


def _not(codes: list[Code]) -> Code:
    test = codes[0].test
    return _of_test(lambda data, budget: not test(data, budget))


def _truth(codes: list[Code]) -> Code:
    return _of_test(codes[0].test)


# What is compared and computed


def _operation(name: str, codes: list[Code]) -> Code:
    operation = OPERATIONS[name]
    if len(codes) == 1:
        only = codes[0].run
        return _of_run(lambda data, budget: operation(budget, only(data, budget)))
    if len(codes) == 2:
        left, right = codes[0].run, codes[1].run
        return _of_run(
            lambda data, budget: operation(budget, left(data, budget), right(data, budget))
        )
    runs = [code.run for code in codes]
    return _of_run(lambda data, budget: operation(budget, *[run(data, budget) for run in runs]))


def _comparison(name: str) -> Callable[[list[Code]], Code]:
    """The form of an operator whose value is true or false."""

    def form(codes: list[Code]) -> Code:
        return _of_test(_operation(name, codes).run)

    return form


def _equal(codes: list[Code]) -> Code:
    return _of_test(_equality(codes))


def _different(codes: list[Code]) -> Code:
    test = _equality(codes)
    return _of_test(lambda data, budget: not test(data, budget))


def _equality(codes: list[Code]) -> Test:
    left, right = codes
    equal = OPERATIONS["=="]
    if left.attribute is not None and isinstance(right.constant, str):
        attribute, text = left.attribute, right.constant

        def test(data: Any, budget: Budget) -> bool:
            value = data.get(attribute)
            if value.__class__ is str:
                return bool(value == text)
            return bool(equal(budget, value, text))

        return test
    return _operation("==", codes).run


def _strictly_equal(codes: list[Code]) -> Code:
    return _of_test(_strict_equality(codes))


def _strictly_different(codes: list[Code]) -> Code:
    test = _strict_equality(codes)
    return _of_test(lambda data, budget: not test(data, budget))


def _strict_equality(codes: list[Code]) -> Test:
    left, right = codes
    if left.attribute is not None and right.constant is not _VARYING:
        attribute, wanted = left.attribute, right.constant
        return lambda data, budget: bool(data.get(attribute) == wanted)
    return _operation("===", codes).run


def _in(codes: list[Code]) -> Code:
    needle, haystack = codes
    if haystack.members is None:
        return _of_test(_operation("in", codes).run)
    members = frozenset(haystack.members)
    find = needle.run

    def test(data: Any, budget: Budget) -> bool:
        try:
            return find(data, budget) in members
        except TypeError:  # a list or an object, which cannot be among constants
            return False

    if needle.attribute is None:
        return _of_test(test)
    attribute = needle.attribute

    def test_attribute(data: Any, budget: Budget) -> bool:
        try:
            return data.get(attribute) in members
        except TypeError:
            return False

    return _of_test(test_attribute)


def _sem_ver(codes: list[Code]) -> Code:
    left, comparison, right = codes
    if not (isinstance(comparison.constant, str) and isinstance(right.constant, str)):
        return _operation("sem_ver", codes)
    find = left.run
    compare, wanted = COMPARISONS[comparison.constant], read_version(right.constant, Budget())

    def run(data: Any, budget: Budget) -> bool | None:
        version = read_version(find(data, budget), budget)
        return None if version is None or wanted is None else compare(version, wanted)

    return Code(run, lambda data, budget: bool(run(data, budget)))


_FORMS: Final[dict[str, Callable[[list[Code]], Code]]] = {
    "if": _if,
    "?:": _if,
    "and": _and,
    "or": _or,
    "!": _not,
    "!!": _truth,
    "==": _equal,
    "!=": _different,
    "===": _strictly_equal,
    "!==": _strictly_different,
    "in": _in,
    "sem_ver": _sem_ver,
    **{name: _comparison(name) for name in ("<", "<=", ">", ">=")},
}


# What is done for each item. Within the loop the item is all that can be read.


def _loop(arguments: list[Any], at_top: bool) -> tuple[Run, Code, int]:
    """The list, what is done for each item, and how many steps that takes."""
    return (
        _compile(arguments[0], at_top).run,
        _compile(arguments[1], at_top=False),
        sum(map(weight, arguments[1:])),
    )


def _map(arguments: list[Any], at_top: bool) -> Code:
    find, body, cost = _loop(arguments, at_top)
    make = body.run

    def run(data: Any, budget: Budget) -> list[Any]:
        items = find(data, budget)
        if not isinstance(items, list):
            return []
        budget.spend(len(items) * cost)
        return [make(item, budget) for item in items]

    return _of_run(run)


def _filter(arguments: list[Any], at_top: bool) -> Code:
    find, body, cost = _loop(arguments, at_top)
    holds = body.test

    def run(data: Any, budget: Budget) -> list[Any]:
        items = find(data, budget)
        if not isinstance(items, list):
            return []
        budget.spend(len(items) * cost)
        return [item for item in items if holds(item, budget)]

    return _of_run(run)


def _reduce(arguments: list[Any], at_top: bool) -> Code:
    find, body, cost = _loop(arguments, at_top)
    make = body.run
    initial = arguments[2] if len(arguments) > 2 else None

    def run(data: Any, budget: Budget) -> Any:
        items = find(data, budget)
        if not isinstance(items, list):
            return initial
        budget.spend(len(items) * cost)
        scope = {"accumulator": initial}
        for item in items:
            scope["current"] = item
            scope["accumulator"] = make(scope, budget)
        return scope["accumulator"]

    return _of_run(run)


def _all(arguments: list[Any], at_top: bool) -> Code:
    find, body, cost = _loop(arguments, at_top)
    holds = body.test

    def test(data: Any, budget: Budget) -> bool:
        items = find(data, budget)
        if not isinstance(items, list) or not items:  # JsonLogic: not even of an empty list
            return False
        budget.spend(len(items) * cost)
        return all(holds(item, budget) for item in items)

    return _of_test(test)


def _some(arguments: list[Any], at_top: bool) -> Code:
    find, body, cost = _loop(arguments, at_top)
    holds = body.test

    def test(data: Any, budget: Budget) -> bool:
        items = find(data, budget)
        if not isinstance(items, list):
            return False
        budget.spend(len(items) * cost)
        return any(holds(item, budget) for item in items)

    return _of_test(test)


def _none(arguments: list[Any], at_top: bool) -> Code:
    test = _some(arguments, at_top).test
    return _of_test(lambda data, budget: not test(data, budget))


_LOOPS: Final[dict[str, Callable[[list[Any], bool], Code]]] = {
    "map": _map,
    "filter": _filter,
    "reduce": _reduce,
    "all": _all,
    "some": _some,
    "none": _none,
}
