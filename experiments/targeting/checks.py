"""What is wrong with an expression, each place by its path, when it is defined."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from itertools import islice
from typing import Any, Final, Literal, TypeAlias

from experiments import paths
from experiments.json_data import kind_of
from experiments.problems import FieldProblem
from experiments.targeting.budget import Budget
from experiments.targeting.grammar import ARITIES, excess, is_operator, parts
from experiments.targeting.lookup import RESERVED
from experiments.targeting.versions import COMPARISONS, read_version

MAX_PROBLEMS: Final = 32
"""How many places are named at once."""

Scope: TypeAlias = Literal["context", "item", "reduce"]
"""What `var` reads: the attributes, the item of a loop, or the pair that `reduce` makes."""

Problems: TypeAlias = Iterator[FieldProblem]

_LOOPS: Final = ("map", "filter", "reduce", "all", "none", "some")

_REFUSED: Final = {
    "fractional": (
        "the split is the experiment's own: `traffic` and the weights of its variants say it"
    ),
    "log": "a rule only answers, it writes nothing",
}


def expression_problems(expression: Any, path: str) -> list[FieldProblem]:
    """Every wrong place of an expression (the first `MAX_PROBLEMS`), found at `path`.

    Besides what cannot be evaluated, this names what can never be meant: a comparison with a
    version that is none, a name that is not text, a rule that nobody matches. Null, which is no
    targeting, and `true` are right as the whole.
    """
    if expression is None or expression is True:
        return []
    if not isinstance(expression, dict):
        return [FieldProblem(path, *_not_a_rule(expression))]
    too_much = excess(expression)
    if too_much is not None:
        return [FieldProblem(path, "value", too_much)]
    return list(islice(_problems(expression, path, "context"), MAX_PROBLEMS))


def _not_a_rule(value: Any) -> tuple[str, str]:
    if value is False:
        return "value", "nobody would be targeted; to enrol nobody, set `traffic` or pause"
    shape = "an operator with its arguments, such as {in: [{var: country}, [DE, AT]]}"
    return "type", f"must be {shape}; this is {kind_of(value)}"


def _problems(expression: Any, path: str, scope: Scope) -> Problems:
    if isinstance(expression, list):
        for index, item in enumerate(expression):
            yield from _problems(item, paths.item(path, index), scope)
    elif isinstance(expression, dict):
        yield from _operator_problems(expression, path, scope)
    elif not (expression is None or isinstance(expression, bool | int | float | str)):
        yield FieldProblem(path, "type", f"must be JSON, this is read as {kind_of(expression)}")


def _operator_problems(expression: dict[Any, Any], path: str, scope: Scope) -> Problems:
    if not is_operator(expression):
        names = ", ".join(f"`{str(name)[:40]}`" for name in islice(expression, 5)) or "none"
        detail = f"must have one operator, with its arguments in a list; this has {names}"
        yield FieldProblem(path, "value", detail)
        return
    name, arguments = parts(expression)
    where = paths.field(path, str(name))
    arity = ARITIES.get(name)
    if arity is None:
        yield _unknown(name, where)
        return
    is_right_number = arity.least <= len(arguments) <= arity.most
    if not is_right_number:
        noun = "argument" if str(arity).endswith("1") else "arguments"
        detail = f"`{name}` takes {arity} {noun}; this has {len(arguments)}"
        yield FieldProblem(where, "value", detail)
    is_listed = isinstance(expression[name], list)
    for index, argument in enumerate(arguments):
        at = paths.item(where, index) if is_listed else where
        if name == "reduce" and index == 2:
            yield from _start_problems(argument, at)
            continue
        found = list(_problems(argument, at, _scope_of(name, index, scope)))
        yield from found
        if is_right_number and not found and not is_operator(argument):
            yield from _constant_problems(name, index, argument, at, scope)


def _unknown(name: Any, path: str) -> FieldProblem:
    if name in _REFUSED:
        return FieldProblem(path, "value", f"`{name}` cannot be used: {_REFUSED[name]}")
    near = get_close_matches(str(name), ARITIES, n=1)
    hint = f" (did you mean `{near[0]}`?)" if near else ""
    detail = f"no operator has this name{hint}; there are {' '.join(ARITIES)}"
    return FieldProblem(path, "unknown", detail)


def _scope_of(name: str, index: int, scope: Scope) -> Scope:
    """What an argument of an operator reads from."""
    if name not in _LOOPS or index == 0:
        return scope
    return "reduce" if name == "reduce" else "item"


def _start_problems(argument: Any, path: str) -> Problems:
    if _holds_operator(argument):
        detail = "where `reduce` starts must be a constant: it is taken as it stands"
        yield FieldProblem(path, "value", detail)


def _holds_operator(argument: Any) -> bool:
    if isinstance(argument, list):
        return any(map(_holds_operator, argument))
    return isinstance(argument, dict)


def _constant_problems(name: str, index: int, value: Any, path: str, scope: Scope) -> Problems:
    check = _CONSTANTS.get(name)
    flaw = check(index, value, scope) if check is not None else None
    if flaw is not None:
        yield FieldProblem(path, "value", flaw)


# Why a constant is no argument of an operator, if so.


def _var(index: int, value: Any, scope: Scope) -> str | None:
    return _name_problem(value, scope) if index == 0 else None


def _missing(index: int, value: Any, scope: Scope) -> str | None:
    return _names_problem(value if isinstance(value, list) else [value], scope)


def _missing_some(index: int, value: Any, scope: Scope) -> str | None:
    if index == 0:
        return None
    if not isinstance(value, list):
        return f"must be a list of names; this is {kind_of(value)}"
    return _names_problem(value, scope)


def _loop(index: int, value: Any, scope: Scope) -> str | None:
    if index == 0 and not isinstance(value, list):
        return f"must be a list, or an operator that gives one; this is {kind_of(value)}"
    return None


def _in(index: int, value: Any, scope: Scope) -> str | None:
    if index == 1 and not isinstance(value, list | str):
        return f"must be a list or text to look in; this is {kind_of(value)}"
    return None


def _division(index: int, value: Any, scope: Scope) -> str | None:
    if index == 1 and isinstance(value, int | float) and value == 0:
        return "must not be 0: nothing can be divided by it"
    return None


def _affix(index: int, value: Any, scope: Scope) -> str | None:
    return None if isinstance(value, str) else f"must be text; this is {kind_of(value)}"


def _sem_ver(index: int, value: Any, scope: Scope) -> str | None:
    if index == 1:
        is_known = isinstance(value, str) and value in COMPARISONS
        return None if is_known else f"must be one of {' '.join(COMPARISONS)}"
    if not isinstance(value, str) or read_version(value, Budget()) is None:
        return "must be a version as text, such as 1.4.0, 1.4, v2 or 2.0.0-rc.1"
    return None


def _names_problem(values: list[Any], scope: Scope) -> str | None:
    for value in values:
        detail = None if is_operator(value) else _name_problem(value, scope)
        if detail is not None:
            return detail
    return None


def _name_problem(name: Any, scope: Scope) -> str | None:
    """Why a constant is no name of what can be read, if so."""
    if scope == "context" and (not isinstance(name, str) or not name):
        given = kind_of(name) if name != "" else "empty"
        return f"must be the name of an attribute, as text; this is {given}"
    if isinstance(name, bool | list):
        return f"must be a name or an index; this is {kind_of(name)}"
    if isinstance(name, str) and name.startswith(RESERVED):
        return (
            f"`{RESERVED}` cannot be read: assignment is a function of unit and attributes alone, "
            "whatever the time"
        )
    if scope == "reduce" and str(name).split(".")[0] not in {"accumulator", "current"}:
        return "within `reduce` there are only `current` and `accumulator`, and what is in them"
    return None


_CONSTANTS: Final[dict[str, Callable[[int, Any, Scope], str | None]]] = {
    "var": _var,
    "missing": _missing,
    "missing_some": _missing_some,
    "in": _in,
    "/": _division,
    "%": _division,
    "starts_with": _affix,
    "ends_with": _affix,
    "sem_ver": _sem_ver,
    **dict.fromkeys(_LOOPS, _loop),
}
