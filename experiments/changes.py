"""What of a definition may change in which state.

| what                                    | draft | running, paused | ended     | archived |
| --------------------------------------- | ----- | --------------- | --------- | -------- |
| key                                     | no    | no              | no        | no       |
| name, hypothesis, owner, tags, record   | yes   | yes             | yes       | no       |
| traffic, weights                        | yes   | yes             | next run  | no       |
| targeting                               | yes   | yes             | next run  | no       |
| metrics that are not primary, guard,    | yes   | yes             | yes       | no       |
| policy, when_stale                      |       |                 |           |          |
| salt, stickiness, layer                 | yes   | no              | next run  | no       |
| variants (number, order, keys, values,  | yes   | no              | no        | no       |
| control), unit, analysis, primary       |       |                 |           |          |
| metrics                                 |       |                 |           |          |

Ended is concluded or rolled back; what changes there takes effect in the next run.

- A running experiment's variants, unit, salt and stickiness are what its units met: another value
  under the same key, or another split, would be another experiment.
- Targeting says who enters, not what they meet: a change of it while a run goes on is a new epoch
  with the same slots. Contrasts are taken within epochs, so nothing else needs to know of it; what
  they are of is the mixture of those who entered before and after.
- The analysis plan, and which metrics are primary, is a promise made before the data came in, so
  data ends the right to change it.
- A ramp begins with a run. While that goes on, its steps to come may change, and the conditions of
  the current one; what is done, and the traffic in force, stays (`ramp_checks.py`).
- The guard's alpha is a ledger: while a run goes on it may rise, but not fall, since what is spent
  cannot be taken back.
- An experiment that has ended still answers with the variant that it ships, and its report still
  stands on its variants, unit and plan. What the next run would need different there is a new
  experiment.

The table lists what is allowed, so that a field that is new in the model is held until someone
decides about it.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

import msgspec

from experiments import paths
from experiments.model import Experiment, State
from experiments.problems import FieldProblem

_LIVE: Final = (
    "name",
    "hypothesis",
    "owner",
    "tags",
    "record",
    "traffic",
    "variants[*].weight",
    "metrics",
    "guard",
    "policy",
    "targeting",
    "when_stale",
)
_ENDED: Final = (*_LIVE, "salt", "stickiness", "layer")
_DRAFT: Final = (*_ENDED, "variants", "unit", "analysis")

CHANGEABLE: Final[dict[State, tuple[str, ...]]] = {
    "draft": _DRAFT,
    "running": _LIVE,
    "paused": _LIVE,
    "concluded": _ENDED,
    "rolled_back": _ENDED,
    "archived": (),
}
"""State -> the patterns of paths that may change in it."""

_PRIMARY_IS_PLANNED: Final = (
    "primary metrics are part of the plan: from the first run on they cannot be added, changed or "
    "removed; others can join as secondary ones"
)
_ALPHA_IS_SPENT: Final = "may rise while a run goes on, but not fall: what is spent stays spent"


def change_problems(before: Experiment, after: Experiment, state: State) -> list[FieldProblem]:
    """Each field of a change that may not change in this state, as `immutable`."""
    held = [
        path
        for path in changed_paths(before, after)
        if not any(paths.covers(pattern, path) for pattern in CHANGEABLE[state])
    ]
    detail = f"cannot be changed in an experiment that is {state}"
    problems = [FieldProblem(path, "immutable", detail) for path in held]
    if state in {"running", "paused"} and after.guard.alpha < before.guard.alpha:
        problems.append(FieldProblem("guard.alpha", "immutable", _ALPHA_IS_SPENT))
    if state != "draft" and _primary(before) != _primary(after):
        problems.append(FieldProblem("metrics", "immutable", _PRIMARY_IS_PLANNED))
    return problems


def _primary(definition: Experiment) -> list[bytes]:
    return sorted(_written(metric) for metric in definition.metrics if metric.role == "primary")


def changed_paths(before: Any, after: Any, path: str = paths.ROOT) -> Iterator[str]:
    """The paths at which two definitions differ, as deep as their Structs go; a list of another
    length differs as a whole."""
    if isinstance(before, msgspec.Struct) and type(before) is type(after):
        parts = (
            changed_paths(getattr(before, name), getattr(after, name), paths.field(path, name))
            for name in before.__struct_fields__
        )
        yield from chain.from_iterable(parts)
    elif isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from changed_paths(old, new, paths.item(path, index))
    elif _written(before) != _written(after):
        yield path


def _written(value: object) -> bytes:
    # As JSON, because to Python True, 1 and 1.0 are equal, but not to the clients of a variant.
    return msgspec.json.encode(value, order="deterministic")
