"""What changed from one definition to the next, field by field. Pure.

Items of a list that have keys, such as variants and metrics, are matched by them, so that one that
is added in the middle is one change. To apply a diff to the old definition gives the new one, which
is how it is tested.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec

from experiments import paths

Kind: TypeAlias = Literal["added", "removed", "changed", "order"]


class Field(msgspec.Struct, frozen=True):
    """A step of a path: the field of an object."""

    name: str


class Item(msgspec.Struct, frozen=True):
    """A step of a path: the item of a list that has this key."""

    key: str


class Place(msgspec.Struct, frozen=True):
    """A step of a path: the item of a list at this index, counted from 0."""

    index: int


Step: TypeAlias = Field | Item | Place


class Change(msgspec.Struct, frozen=True):
    """One field that is not as it was.

    Arguments:
        steps: where it is, from the whole on.
        kind: whether it was added, removed or changed; `order` of a list whose items are the same,
            by their keys, and stand in another order: then `before` and `after` are the keys.
        before, after: what it was and is, in JSON's types; None where there was, or is, nothing.
    """

    steps: tuple[Step, ...]
    kind: Kind
    before: Any = None
    after: Any = None

    @property
    def path(self) -> str:
        """Where it is, as people write it: `metrics[click].window`."""
        path = paths.ROOT
        for step in self.steps:
            match step:
                case Field(name):
                    path = paths.field(path, name)
                case Item(key):
                    path = f"{'' if path == paths.ROOT else path}[{key}]"
                case Place(index):
                    path = paths.item(path, index)
        return path


def diff(before: Any, after: Any) -> list[Change]:
    """All that changed from one value in JSON's types to another, in the order of the new one;
    what was removed stands last in its object or list."""
    return _diff((), before, after)


def apply(before: Any, changes: Iterable[Change]) -> Any:
    """The new value, from the old one and what changed."""
    value = before
    for change in changes:
        value = _applied(value, change.steps, change)
    return value


def _diff(steps: tuple[Step, ...], before: Any, after: Any) -> list[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        return _of_objects(steps, before, after)
    if isinstance(before, list) and isinstance(after, list):
        old, new = _by_key(before), _by_key(after)
        if old is not None and new is not None and (old or new):
            return _of_keyed(steps, old, new)
        if _are_objects(before) and _are_objects(after):
            return _of_places(steps, before, after)
    return [] if _same(before, after) else [Change(steps, "changed", before, after)]


def _of_objects(
    steps: tuple[Step, ...], before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[Change]:
    changes = []
    for name, value in after.items():
        at = (*steps, Field(name))
        if name in before:
            changes += _diff(at, before[name], value)
        else:
            changes.append(Change(at, "added", None, value))
    gone = (name for name in before if name not in after)
    return changes + [Change((*steps, Field(n)), "removed", before[n], None) for n in gone]


def _of_keyed(
    steps: tuple[Step, ...], before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[Change]:
    changes = []
    for key, value in after.items():
        at = (*steps, Item(key))
        if key in before:
            changes += _diff(at, before[key], value)
        else:
            changes.append(Change(at, "added", None, value))
    changes += [
        Change((*steps, Item(key)), "removed", before[key], None)
        for key in before
        if key not in after
    ]
    added_last = [key for key in before if key in after] + [k for k in after if k not in before]
    if added_last != list(after):
        changes.append(Change(steps, "order", added_last, list(after)))
    return changes


def _of_places(
    steps: tuple[Step, ...], before: Sequence[Any], after: Sequence[Any]
) -> list[Change]:
    common = min(len(before), len(after))
    changes = [
        change
        for index in range(common)
        for change in _diff((*steps, Place(index)), before[index], after[index])
    ]
    changes += [
        Change((*steps, Place(index)), "added", None, after[index])
        for index in range(common, len(after))
    ]
    # The last one first, so that those before it keep their places.
    changes += [
        Change((*steps, Place(index)), "removed", before[index], None)
        for index in reversed(range(common, len(before)))
    ]
    return changes


def _by_key(items: Sequence[Any]) -> dict[str, Any] | None:
    """Items by their keys, or None where they have none, or not each its own."""
    found = {
        item["key"]: item
        for item in items
        if isinstance(item, dict) and isinstance(item.get("key"), str)
    }
    return found if len(found) == len(items) else None


def _are_objects(items: Sequence[Any]) -> bool:
    return all(isinstance(item, dict) for item in items)


_JSON: Final = msgspec.json.Encoder(order="deterministic")


def _same(before: Any, after: Any) -> bool:
    # As JSON: to Python True, 1 and 1.0 are equal, but not to the clients of a variant.
    return _JSON.encode(before) == _JSON.encode(after)


def _applied(value: Any, steps: Sequence[Step], change: Change) -> Any:
    if not steps:
        if change.kind == "order":
            by_key = _by_key(value) or {}
            return [by_key[key] for key in change.after]
        return change.after
    step, rest = steps[0], steps[1:]
    removed = change.kind == "removed" and not rest
    if isinstance(step, Field):
        left = dict(value)
        if removed:
            del left[step.name]
        else:
            left[step.name] = _applied(value.get(step.name), rest, change)
        return left
    items = list(value)
    index = step.index if isinstance(step, Place) else _index_of(items, step.key)
    if removed:
        del items[index]
    elif index == len(items):
        items.append(_applied(None, rest, change))
    else:
        items[index] = _applied(items[index], rest, change)
    return items


def _index_of(items: Sequence[Any], key: str) -> int:
    """Where the item of this key is, or would be."""
    keys = [item.get("key") for item in items]
    return keys.index(key) if key in keys else len(items)
