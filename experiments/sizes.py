"""Sizes in a definition: one positive number, in the metric's unit or as a share."""

from collections.abc import Iterator

from experiments.model import Margin
from experiments.problems import FieldProblem


def size_problems(path: str, size: Margin, what: str) -> Iterator[FieldProblem]:
    """What is wrong with a size.

    Args:
        what: that it is the size of, in words that end a sentence.
    """
    both = {"absolute": size.absolute, "relative": size.relative}
    given = {name: value for name, value in both.items() if value is not None}
    if not given:
        yield FieldProblem(path, "value", "must name one of `absolute` and `relative`")
    if len(given) > 1:
        yield FieldProblem(path, "conflict", "must name `absolute` or `relative`, not both")
    for name, value in given.items():
        if value <= 0:
            detail = f"must be above 0: it is the size of {what}; `goal` says in which direction"
            yield FieldProblem(f"{path}.{name}", "value", detail)
