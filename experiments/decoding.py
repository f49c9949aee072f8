"""Decode JSON data into Structs and name every wrong field at once; msgspec stops at the first.

msgspec remains the judge of what is right: `decode` accepts what it accepts. Only data that it
refuses is walked field by field, to say all that is wrong with it.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache, cached_property, lru_cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import msgspec
from msgspec import NODEFAULT, Meta, UnsetType
from msgspec.structs import FieldInfo

from experiments import paths
from experiments.json_data import UNREADABLE, clean, kind_of
from experiments.problems import FieldProblem

T = TypeVar("T")

MAX_UNKNOWN: Final = 16
"""How many unknown fields of one object are named: enough for any author, and no work for noise."""


class Decoded(msgspec.Struct, Generic[T], frozen=True, dict=True):
    """What was decoded, and what is wrong with it.

    `value` is as complete as the data allows, so that checks of the whole can go on: whatever is
    wrong or missing is stood in for by its default, or else by an empty value of its type, which
    may break the type's constraints. A check asks first whether what it reads is `sound`.
    """

    value: T
    problems: tuple[FieldProblem, ...]

    def sound(self, pattern: str) -> bool:
        """Whether nothing is wrong at, above or within a path, or the paths of a pattern in which
        every index is `[*]`."""
        steps = paths.steps(pattern)
        above_or_at = (steps[:length] for length in range(len(steps) + 1))
        return steps not in self._touched and self._wrong.isdisjoint(above_or_at)

    @cached_property
    def _wrong(self) -> frozenset[tuple[str, ...]]:
        """Where something is wrong, by path and by pattern."""
        exact = {paths.steps(problem.path) for problem in self.problems}
        return frozenset(exact | {paths.generalise(steps) for steps in exact})

    @cached_property
    def _touched(self) -> frozenset[tuple[str, ...]]:
        """Where something is wrong, and all that lies above."""
        return frozenset(
            steps[:length] for steps in self._wrong for length in range(len(steps) + 1)
        )


class _Read(NamedTuple):
    value: Any
    problems: list[FieldProblem]


def decode(kind: type[T], data: object) -> Decoded[T]:
    """A Struct out of what a JSON or YAML reader gave, with all that is wrong with it."""
    cleaned = clean(data)
    if not cleaned.problems:
        try:
            return Decoded(msgspec.convert(cleaned.data, kind), ())
        except msgspec.ValidationError as error:
            refusal = FieldProblem(paths.ROOT, "value", str(error))
    value, problems = _read(kind, cleaned.data, paths.ROOT)
    problems = cleaned.problems + problems
    return Decoded(value, tuple(problems or [refusal]))


def _read(hint: Any, data: Any, path: str) -> _Read:
    bare, _ = _unwrap(hint)
    options = _options(bare)
    if data is UNREADABLE:  # its problem is named already
        return _Read(_stand_in(hint), [])
    if bare is Any or (data is None and NoneType in options):
        return _Read(data, [])
    options = [option for option in options if option is not NoneType]
    kinds = [option for option in options if _is_struct(option)]
    if kinds and (len(kinds) == len(options) or isinstance(data, dict)):
        return _read_object(kinds, data, path)
    if kinds:
        options = [option for option in options if option not in kinds]
    if options != [bare] and len(options) == 1:
        return _read(options[0], data, path)
    reader = {list: _read_list, tuple: _read_list, dict: _read_map}.get(_origin(bare), _read_scalar)
    return reader(hint, data, path)


def _read_scalar(hint: Any, data: Any, path: str) -> _Read:
    try:
        return _Read(msgspec.convert(data, hint), [])
    except msgspec.ValidationError:
        if type(data) in _json_types(hint):
            problem = FieldProblem(path, "value", _must_be(hint))
        else:
            problem = _wrong_type(hint, data, path)
        return _Read(_stand_in(hint), [problem])


def _read_list(hint: Any, data: Any, path: str) -> _Read:
    if not isinstance(data, list):
        return _Read(_stand_in(hint), [_wrong_type(hint, data, path)])
    bare, _ = _unwrap(hint)
    args = get_args(bare) or (Any, ...)
    is_fixed = _origin(bare) is tuple and args[-1] is not ...
    if is_fixed and len(args) != len(data):
        problem = FieldProblem(path, "value", f"must be a list of exactly {len(args)} items")
        return _Read(_stand_in(hint), [problem])
    _, most = _size_limits(hint)
    readable = data[:most]  # an author who went over the limit has enough to do below it
    item_hints = args if is_fixed else args[:1] * len(readable)
    reads = [
        _read(item_hint, value, paths.item(path, index))
        for index, (item_hint, value) in enumerate(zip(item_hints, readable, strict=True))
    ]
    return _Read(
        _origin(bare)(read.value for read in reads),
        _wrong_size(hint, data, path) + [problem for read in reads for problem in read.problems],
    )


def _read_map(hint: Any, data: Any, path: str) -> _Read:
    if not isinstance(data, dict):
        return _Read({}, [_wrong_type(hint, data, path)])
    bare, _ = _unwrap(hint)
    key_hint, value_hint = get_args(bare) or (Any, Any)
    problems = _wrong_size(hint, data, path)
    value = {}
    for name, given in data.items():
        place = paths.field(path, name)
        key, wrong_name = _read(key_hint, name, place)
        value[key], wrong_value = _read(value_hint, given, place)
        problems += [*wrong_name, *wrong_value]
    return _Read(value, problems)


def _read_object(kinds: Sequence[Any], data: Any, path: str) -> _Read:
    """Read an object as the one of `kinds` that its tag names; without one that it could be, as
    what all of them have in common."""
    if not isinstance(data, dict):
        return _Read(_stand_in(kinds[0]), [_wrong_type(kinds[0], data, path)])
    chosen, problems = _choose(kinds, data, path)
    problems += _unknown_fields(chosen, data, path)
    values: dict[str, Any] = {}
    for info in _common_fields(chosen):
        place = paths.field(path, info.encode_name)
        if info.encode_name in data:
            values[info.name], wrong = _read(info.type, data[info.encode_name], place)
            problems += wrong
        elif info.required:
            problems.append(FieldProblem(place, "missing", _must_be(info.type)))
    return _Read(_complete(chosen[0], values), problems)


def _choose(
    kinds: Sequence[Any], data: Mapping[str, Any], path: str
) -> tuple[Sequence[Any], list[FieldProblem]]:
    field = kinds[0].__struct_config__.tag_field
    if field is None:
        return kinds, []
    by_tag = {kind.__struct_config__.tag: kind for kind in kinds}
    place = paths.field(path, field)
    if field not in data:
        # Alone in its place, a kind needs no tag to be known by.
        missing = FieldProblem(place, "missing", _one_of(by_tag))
        return kinds, [missing] if len(kinds) > 1 else []
    tag = data[field]
    if tag is UNREADABLE:
        return kinds, []
    if not isinstance(tag, str | int) or tag not in by_tag:
        problem = "value" if type(tag) in set(map(type, by_tag)) else "type"
        return kinds, [FieldProblem(place, problem, _one_of(by_tag))]
    return [by_tag[tag]], []


def _unknown_fields(kinds: Sequence[Any], data: Mapping[str, Any], path: str) -> list[FieldProblem]:
    if not all(kind.__struct_config__.forbid_unknown_fields for kind in kinds):
        return []
    known = {info.encode_name for kind in kinds for info in _fields(kind)}
    known |= {kind.__struct_config__.tag_field for kind in kinds} - {None}
    unknown = [name for name in data if name not in known]
    return [
        FieldProblem(paths.field(path, name), "unknown", _suggestion(name, tuple(sorted(known))))
        for name in unknown[:MAX_UNKNOWN]
    ]


def _common_fields(kinds: Sequence[Any]) -> list[FieldInfo]:
    first, *others = ({info.name: info for info in _fields(kind)} for kind in kinds)
    return [
        info
        for name, info in first.items()
        if all(name in other and other[name].type == info.type for other in others)
    ]


@lru_cache(maxsize=1024)  # a batch has one misspelt name in thousands of items
def _suggestion(name: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(name, known, 1)
    if close:
        return f"no field has this name; did you mean `{close[0]}`?"
    return f"no field has this name; there are {', '.join(known)}" if known else "must be absent"


# Stand-ins


def _stand_in(hint: Any) -> Any:
    """An empty value of a type."""
    bare, _ = _unwrap(hint)
    options = _options(bare)
    if bare is Any or NoneType in options:
        return None
    first = options[0]
    origin, args = _origin(first), get_args(first)
    if _is_struct(first):
        return _complete(first, {})
    if origin is Literal:
        return args[0]
    if origin is tuple and args and args[-1] is not ...:
        return tuple(_stand_in(arg) for arg in args)
    return _EMPTY.get(origin, NoneType)()


_EMPTY: Final[dict[Any, Callable[[], Any]]] = {
    kind: kind for kind in (bool, int, float, str, list, tuple, dict)
} | {datetime: lambda: datetime.fromtimestamp(0, UTC)}


def _complete(kind: Any, values: Mapping[str, Any]) -> Any:
    """A Struct with these values; a field without one has its default or a stand-in. None where the
    Struct's own check refuses them."""
    complete = {info.name: values.get(info.name, _default(info)) for info in _fields(kind)}
    try:
        return kind(**complete)
    except (TypeError, ValueError):  # what msgspec takes for a refusal by __post_init__
        return None


def _default(info: FieldInfo) -> Any:
    if info.default is not NODEFAULT:
        return info.default
    if info.default_factory is not NODEFAULT:
        return info.default_factory()
    return _stand_in(info.type)


# What would be right


def _wrong_type(hint: Any, data: Any, path: str) -> FieldProblem:
    return FieldProblem(path, "type", f"{_must_be(hint)}; this is {kind_of(data)}")


def _wrong_size(
    hint: Any, data: Sequence[Any] | Mapping[str, Any], path: str
) -> list[FieldProblem]:
    least, most = _size_limits(hint)
    if least <= len(data) <= most:
        return []
    what = "an object" if isinstance(data, dict) else "a list"
    bound = f"at least {least}" if len(data) < least else f"at most {most}"
    return [FieldProblem(path, "value", f"must be {what} of {bound} entries; this has {len(data)}")]


def _size_limits(hint: Any) -> tuple[int, int]:
    _, metas = _unwrap(hint)
    least = [meta.min_length for meta in metas if meta.min_length is not None]
    most = [meta.max_length for meta in metas if meta.max_length is not None]
    return max(least, default=0), min(most, default=sys.maxsize)


def _must_be(hint: Any) -> str:
    bare, metas = _unwrap(hint)
    for meta in metas:
        if meta.description:
            return f"must be {meta.description}"
    options = [option for option in _options(bare) if option is not NoneType]
    if options[0] is not bare:
        return _must_be(options[0])
    if get_origin(bare) is Literal:
        return _one_of(get_args(bare))
    size_of = "characters" if bare is str else "entries"
    limits = [
        limit.format(value, size_of)
        for meta in metas
        for name, limit in _LIMITS.items()
        if (value := getattr(meta, name)) is not None
    ]
    name = _NAMES.get(_origin(bare), "an object" if _is_struct(bare) else "text")
    return f"must be {name}" + "".join(f", {limit}" for limit in limits)


def _one_of(choices: Any) -> str:
    return f"must be one of {', '.join(map(str, choices))}"


_NAMES: Final[dict[Any, str]] = {
    Any: "a value",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    datetime: "a time as RFC 3339 with an offset, such as 2026-01-31T12:00:00Z",
}

_LIMITS: Final = {
    "gt": "above {}",
    "ge": "at least {}",
    "lt": "below {}",
    "le": "at most {}",
    "multiple_of": "a multiple of {}",
    "pattern": "of the form {}",
    "min_length": "at least {} {}",
    "max_length": "at most {} {}",
}


# Types


@cache  # msgspec works them out anew at each call, which is most of what refusing a batch costs
def _fields(kind: Any) -> tuple[FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def _unwrap(hint: Any) -> tuple[Any, list[Meta]]:
    """A type without its annotations, and these."""
    if get_origin(hint) is Annotated:
        bare, *extras = get_args(hint)
        return bare, [extra for extra in extras if isinstance(extra, Meta)]
    return hint, []


def _options(bare: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    if get_origin(bare) not in (Union, UnionType):
        return [bare]
    return [option for option in get_args(bare) if option is not UnsetType]  # as if left out


def _origin(bare: Any) -> Any:
    """The class behind a type such as `list[int]`."""
    return get_origin(bare) or bare


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _json_types(hint: Any) -> tuple[type, ...]:
    """The types that JSON data of a scalar type has."""
    bare, _ = _unwrap(hint)
    if get_origin(bare) is Literal:
        return tuple({type(choice) for choice in get_args(bare)})
    return {bool: (bool,), int: (int,), float: (int, float)}.get(bare, (str,))
