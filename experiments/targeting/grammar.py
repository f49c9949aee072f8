"""What an expression is made of: operators with their numbers of arguments, and its limits."""

import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from experiments.json_data import MAX_DEPTH
from experiments.targeting.budget import CHARACTERS_PER_STEP

MAX_NODES: Final = 2_000
"""Objects, lists, texts, numbers and so on of one expression."""


class Arity(NamedTuple):
    """How many arguments an operator takes."""

    least: int
    most: int = sys.maxsize

    def __str__(self) -> str:
        if self.most == sys.maxsize:
            return f"at least {self.least}"
        return f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"


_ONE: Final = Arity(1, 1)
_TWO: Final = Arity(2, 2)
_ANY: Final = Arity(1)

ARITIES: Final[dict[str, Arity]] = {
    "var": Arity(1, 2),
    "missing": _ANY,
    "missing_some": _TWO,
    "if": Arity(2),
    "?:": Arity(2),
    "and": _ANY,
    "or": _ANY,
    "!": _ONE,
    "!!": _ONE,
    "==": _TWO,
    "===": _TWO,
    "!=": _TWO,
    "!==": _TWO,
    ">": Arity(2, 3),
    ">=": Arity(2, 3),
    "<": Arity(2, 3),
    "<=": Arity(2, 3),
    "max": _ANY,
    "min": _ANY,
    "+": _ANY,
    "-": Arity(1, 2),
    "*": _ANY,
    "/": _TWO,
    "%": _TWO,
    "map": _TWO,
    "filter": _TWO,
    "reduce": Arity(2, 3),
    "all": _TWO,
    "none": _TWO,
    "some": _TWO,
    "merge": _ANY,
    "in": _TWO,
    "cat": _ANY,
    "substr": Arity(2, 3),
    "starts_with": _TWO,
    "ends_with": _TWO,
    "sem_ver": Arity(3, 3),
}
"""Every operator, and how many arguments it takes."""


def is_operator(expression: Any) -> bool:
    """Whether an expression is an operator with its arguments."""
    return isinstance(expression, dict) and len(expression) == 1


def parts(expression: dict[str, Any]) -> tuple[str, list[Any]]:
    """The operator of an expression and its arguments; a single one needs no list."""
    ((name, arguments),) = expression.items()
    return name, arguments if isinstance(arguments, list) else [arguments]


def excess(expression: Any) -> str | None:
    """What is too much about an expression, in words, if anything."""
    # It counts what a reader would visit, and stops in time: Python's own structures may hold
    # cycles, and exponentially many values in a few lines.
    waiting: list[Iterator[Any]] = [iter((expression,))]
    nodes = 0
    while waiting:
        for value in waiting[-1]:
            nodes += 1
            if nodes > MAX_NODES:
                return f"must have at most {MAX_NODES} values and operators"
            if isinstance(value, dict | list):
                if len(waiting) > MAX_DEPTH:
                    return f"must be nested at most {MAX_DEPTH} deep"
                waiting.append(iter(value.values() if isinstance(value, dict) else value))
                break
        else:
            waiting.pop()
    return None


def weight(expression: Any) -> int:
    """How many steps evaluating an expression once takes at most, loops within it counted once."""
    if isinstance(expression, dict):
        return 1 + sum(weight(value) for value in expression.values())
    if isinstance(expression, list):
        return 1 + sum(weight(value) for value in expression)
    return 1 + (len(expression) // CHARACTERS_PER_STEP if isinstance(expression, str) else 0)
