"""Paths of fields, such as `metrics[0].margin.absolute`; `$` is the whole.

In a pattern, `[*]` stands for every index: `variants[*].weight`.
"""

import json
import re
from typing import Final

ROOT: Final = "$"
ANY_INDEX: Final = "[*]"

_PLAIN_NAME = re.compile(r"[A-Za-z_$][\w$-]*", re.ASCII)
_STEP = re.compile(r'\["(?:[^"\\]|\\.)*"\]|\[[^\]]*\]|[^.\[]+')
_INDEX = re.compile(r"\[\d+\]", re.ASCII)
_LONGEST_NAME = 80


def field(path: str, name: str) -> str:
    """The path of a field of an object."""
    if not _PLAIN_NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        return f"{'' if path == ROOT else path}[{json.dumps(name[:_LONGEST_NAME])}]"
    return name if path == ROOT else f"{path}.{name}"


def item(path: str, index: int) -> str:
    """The path of an item of a list."""
    return f"{'' if path == ROOT else path}[{index}]"


def covers(pattern: str, path: str) -> bool:
    """Whether a path is one that a pattern names, or lies within it."""
    wanted, given = steps(pattern), steps(path)
    return len(wanted) <= len(given) and all(
        want == step or (want == ANY_INDEX and _INDEX.fullmatch(step))
        for want, step in zip(wanted, given, strict=False)
    )


def overlap(one: str, other: str) -> bool:
    """Whether one path is the other, or lies within it."""
    return covers(one, other) or covers(other, one)


def steps(path: str) -> tuple[str, ...]:
    """The names and indices of a path, from the root on."""
    return () if path == ROOT else tuple(_STEP.findall(path))


def generalise(path_steps: tuple[str, ...]) -> tuple[str, ...]:
    """The steps of the pattern that has `[*]` for each index of a path."""
    return tuple(ANY_INDEX if _INDEX.fullmatch(step) else step for step in path_steps)
