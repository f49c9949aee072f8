"""A definition as YAML text: read with the line of every field, written in the model's order. Pure.

What is read is bounded, whatever it says: aliases and merges are followed with a budget, since a
few lines of them can stand for more than a machine holds.
"""

from collections.abc import Mapping
from typing import Any, Final, get_args

import msgspec
import yaml

from experiments import paths
from experiments.json_data import MAX_DEPTH, MAX_VALUES
from experiments.model import Experiment, Metric, Policy

MAX_TEXT: Final = 256 * 1024
"""Characters of YAML: more than any definition has."""
_LONGEST_NUMBER: Final = 100
"""Characters of a number. A longer one in base 60 (`1:1:1`) takes its length squared to be read."""
_NUMBERS: Final = frozenset(("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"))
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE: Final = "tag:yaml.org,2002:merge"
_DEEPER: Final = 8
"""How much deeper it is read than a definition may be: the usual check then names the place."""
_WIDTH: Final = 72
_SHORT: Final = 56


class Reading(msgspec.Struct, frozen=True):
    """What a text says.

    Arguments:
        data: what it stands for; None where it cannot be read.
        lines: the line, counted from 1, of each field, by path.
        wrong: why it cannot be read, in a sentence; empty where it can.
        line: at which this was seen, None where at none.
    """

    data: Any
    lines: Mapping[str, int]
    wrong: str = ""
    line: int | None = None

    def line_of(self, path: str) -> int | None:
        """The line of a field, or of the nearest one above it that the text has."""
        steps = paths.steps(path)
        for length in range(len(steps), 0, -1):
            line = self.lines.get(_joined(steps[:length]))
            if line is not None:
                return line
        return 1 if self.lines else None


class _RefusedError(Exception):
    def __init__(self, wrong: str, line: int | None) -> None:
        super().__init__(wrong)
        self.wrong, self.line = wrong, line


def read(text: str) -> Reading:
    """The one definition in a text. A key that stands twice is refused, as by `turnout apply`."""
    if len(text) > MAX_TEXT:
        return Reading(None, {}, f"The text has more than {MAX_TEXT:,} characters")
    lines: dict[str, int] = {}
    try:
        _expect_shallow(text)
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Reading({}, {})
            data = _Builder(loader, lines).build(node, paths.ROOT, 0)
        finally:
            loader.dispose()
    except _RefusedError as refused:
        return Reading(None, lines, refused.wrong, refused.line)
    except yaml.MarkedYAMLError as error:
        return Reading(None, lines, _in_words(error), _line(error.problem_mark))
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        return Reading(None, lines, " ".join(str(error).split()))
    return Reading(data, lines)


def _expect_shallow(text: str) -> None:
    """Refuse what is nested too deep before nodes are made of it: that takes a stack."""
    loader = _LOADER(text)
    try:
        depth = 0
        while loader.check_event():
            event = loader.get_event()
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH + _DEEPER:
                wrong = f"It is nested more than {MAX_DEPTH} deep"
                raise _RefusedError(wrong, _line(event.start_mark))
    finally:
        loader.dispose()


class _Builder:
    """Builds data of nodes, and notes where each field stands."""

    def __init__(self, loader: Any, lines: dict[str, int]) -> None:
        self._loader = loader
        self._lines = lines
        self._left = MAX_VALUES

    def build(self, node: Any, path: str, depth: int) -> Any:
        self._left -= 1
        line = _line(node.start_mark)
        if self._left < 0:
            raise _RefusedError(f"It stands for more than {MAX_VALUES:,} values", line)
        if depth > MAX_DEPTH + _DEEPER:
            raise _RefusedError(f"It is nested more than {MAX_DEPTH} deep", line)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            self._note(path, node)
            return [
                self.build(item, paths.item(path, index), depth + 1)
                for index, item in enumerate(node.value)
            ]
        self._note(path, node)
        return self._scalar(node)

    def _scalar(self, node: Any) -> Any:
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            wrong = f"A number has more than {_LONGEST_NUMBER} characters"
            raise _RefusedError(wrong, _line(node.start_mark))
        return self._loader.construct_object(node)

    def _note(self, path: str, node: Any) -> None:
        self._lines.setdefault(path, node.start_mark.line + 1)

    def _mapping(self, node: Any, path: str, depth: int) -> dict[Any, Any]:
        self._note(path, node)
        own: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for name_node, value_node in node.value:
            line = _line(name_node.start_mark)
            if name_node.tag == _MERGE:
                for part in self._merged(value_node, path, depth):
                    merged = {**part, **merged}
                continue
            if not isinstance(name_node, yaml.ScalarNode):
                raise _RefusedError("A name must be text, not a list or an object", line)
            name = self._scalar(name_node)
            if name in own:
                raise _RefusedError(f"The key {name_node.value!r} stands twice", line)
            place = paths.field(path, str(name))
            self._lines[place] = name_node.start_mark.line + 1
            own[name] = self.build(value_node, place, depth + 1)
        return {**merged, **own}

    def _merged(self, node: Any, path: str, depth: int) -> list[dict[Any, Any]]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(part, yaml.MappingNode) for part in nodes):
            raise _RefusedError("`<<` takes an object, or a list of them", _line(node.start_mark))
        return [self.build(part, path, depth + 1) for part in nodes]


def _line(mark: Any) -> int | None:
    return None if mark is None else int(mark.line) + 1


def _in_words(error: yaml.MarkedYAMLError) -> str:
    said = ", ".join(part for part in (error.context, error.problem) if part)
    return said[:1].upper() + said[1:] if said else "It is no YAML"


def _joined(steps: tuple[str, ...]) -> str:
    path = "".join(step if step.startswith("[") else f".{step}" for step in steps)
    return path.removeprefix(".")


# Writing


class _Flow(dict[str, Any]):
    """An object that is written on one line."""


class _FlowList(list[Any]):
    """A list that is written on one line."""


class _Dumper(yaml.SafeDumper):
    """Writes lists within objects further in, as people do, and no aliases."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Never without an indent."""
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        """What stands twice is written twice."""
        return True


_Dumper.add_representer(
    _Flow, lambda dumper, data: dumper.represent_mapping(_MAP, data.items(), flow_style=True)
)
_Dumper.add_representer(
    _FlowList, lambda dumper, data: dumper.represent_sequence(_SEQ, data, flow_style=True)
)
_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(_STR, text, _style(text)))
_MAP: Final = "tag:yaml.org,2002:map"
_SEQ: Final = "tag:yaml.org,2002:seq"
_STR: Final = "tag:yaml.org,2002:str"
_ODD: Final = frozenset("\x85\u2028\u2029\ufeff")
"""What YAML takes for the end of a line, or of nothing, unless it is escaped."""


def _style(text: str) -> str | None:
    return '"' if _ODD & set(text) else None


def write(document: Any) -> str:
    """A document as YAML: its fields in the order of the model, each on a line of its own, and what
    is short and has no name in it on one."""
    if document == {}:
        return ""
    return yaml.dump(
        _styled(ordered(document), top=True),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=_WIDTH,
        default_flow_style=False,
    )


def ordered(document: Any) -> Any:
    """A document with its fields in the order of the model; those it does not know come last."""
    return _ordered(document, (Experiment,))


def _ordered(data: Any, kinds: tuple[Any, ...]) -> Any:
    if isinstance(data, list):
        return [_ordered(item, kinds) for item in data]
    if not isinstance(data, dict) or not kinds:
        return data
    fields = {
        info.encode_name: info.type for kind in kinds for info in msgspec.structs.fields(kind)
    }
    known = [name for name in _first_of(kinds, fields) if name in data]
    rest = [name for name in data if name not in known]
    return {name: _ordered(data[name], _structs(fields.get(name))) for name in [*known, *rest]}


def _first_of(kinds: tuple[Any, ...], fields: Mapping[str, Any]) -> list[str]:
    tags = {kind.__struct_config__.tag_field for kind in kinds} - {None}
    first = [name for name in _LEAD if name in fields or name in tags]
    return [*first, *(name for name in fields if name not in first)]


_LEAD: Final = (
    *("key", "name", "hypothesis", "owner", "tags", "unit", "record", "layer", "targeting"),
    *("stickiness", "when_stale", "salt", "traffic", "control", "weight", "role", "kind"),
    *("event", "numerator", "denominator", "aggregate", "quantile", "window"),
)
"""In which order people write what the model has in another, for Structs and their subclasses."""


def _structs(hint: Any) -> tuple[Any, ...]:
    """The Structs that a type has in it."""
    if hint in (Metric, Policy):
        return get_args(hint)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return (hint,)
    return tuple(kind for part in get_args(hint) for kind in _structs(part))


def _styled(data: Any, *, top: bool = False, item: bool = False) -> Any:
    if isinstance(data, dict):
        if not top and not item and _is_short(data):
            return _Flow(data)
        return {name: _styled(value) for name, value in data.items()}
    if isinstance(data, list):
        if _is_short(data):
            return _FlowList(data)
        return [_styled(value, item=True) for value in data]
    return data


def _is_short(data: Any) -> bool:
    """Whether it reads well on one line: short, and no list of objects."""
    if isinstance(data, list) and any(isinstance(part, dict) for part in data):
        return False
    return len(msgspec.json.encode(data)) <= _SHORT
