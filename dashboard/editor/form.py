"""The form of a definition: which fields it has, what they show, and what they say. Pure.

A field changes the document only where its text is another than the one that it was shown with, so
that to send a form back as it was changes nothing, whatever the document holds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from dashboard.editor import layout
from dashboard.editor.documents import MISSING, drop, get, put
from dashboard.editor.fields import NO_FIELD, Field, Unreadable, text_of, value_of
from dashboard.editor.layout import Block, Part
from experiments import paths
from experiments.problems import FieldProblem

PREFIX: Final = "f."
"""What the names of the fields of a definition begin with in a form."""
CONTROL: Final = "control"
"""The name of the buttons that say which variant is the control."""

Held = Callable[[str], str]
"""Why a path cannot be changed now; empty where it can."""


class FieldView(msgspec.Struct, frozen=True):
    """A field as it is shown. `wrong` is what is wrong with it, `is_left` whether it is only still
    to be filled in, `held` why it cannot be changed."""

    field: Field
    text: str
    wrong: tuple[str, ...] = ()
    is_left: bool = False
    held: str = ""

    @property
    def note(self) -> str:
        """What is said below it; why it is held is told once for its part."""
        if self.held == NO_FIELD:
            return NO_FIELD
        return "" if self.wrong or self.held else self.field.help

    @property
    def name(self) -> str:
        """Under which it is sent."""
        return PREFIX + self.field.path

    @property
    def id(self) -> str:
        """By which its label and links find it."""
        return anchor(self.field.path)


class BlockView(msgspec.Struct, frozen=True):
    """A variant, a metric or a step. `more` are the fields that are seldom needed."""

    block: Block
    fields: tuple[FieldView, ...]
    more: tuple[FieldView, ...]
    wrong: tuple[str, ...] = ()
    held: str = ""

    @property
    def id(self) -> str:
        """By which links find it."""
        return anchor(self.block.path)

    @property
    def is_more_open(self) -> bool:
        """Whether one of the fields that are seldom needed is set, or wrong."""
        return any(view.text or view.wrong for view in self.more)


class PartView(msgspec.Struct, frozen=True):
    """A part of the form, with what is wrong with it as a whole."""

    part: Part
    fields: tuple[FieldView, ...]
    blocks: tuple[BlockView, ...]
    wrong: tuple[str, ...] = ()
    held: str = ""

    @property
    def id(self) -> str:
        """By which links find it."""
        return anchor(self.part.code)

    @property
    def all_fields(self) -> tuple[FieldView, ...]:
        """Those of its own, and those of its blocks."""
        of_blocks = (view for block in self.blocks for view in (*block.fields, *block.more))
        return (*self.fields, *of_blocks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why some of its fields cannot be changed, each told once."""
        found = (view.held for view in self.all_fields)
        return tuple(dict.fromkeys(why for why in found if why and why != NO_FIELD))

    @property
    def is_open(self) -> bool:
        """Whether it is shown unfolded at first."""
        is_idle = self.part.is_folded or all(view.held for view in self.all_fields)
        return not is_idle or bool(
            self.wrong or any(view.text or view.wrong for view in self.all_fields)
        )


class Told(msgspec.Struct, frozen=True):
    """A problem as the list on top tells it: `target` is the id of the place in the form that it
    links to, empty where the form has none; `line` that of the YAML."""

    path: str
    detail: str
    target: str
    line: int | None
    is_left: bool


class FormView(msgspec.Struct, frozen=True):
    """The whole form."""

    parts: tuple[PartView, ...]
    told: tuple[Told, ...]


class Sent(msgspec.Struct, frozen=True):
    """What a form makes of a document; `unreadable` are texts that stand for nothing, by path."""

    document: dict[str, Any]
    unreadable: Mapping[str, Unreadable]


def anchor(path: str) -> str:
    """The id of the place of a path: letters, digits and dashes."""
    return "f-" + "".join(c if c.isalnum() and c.isascii() else f"-{ord(c):x}-" for c in path)


def fields_of(document: Mapping[str, Any]) -> Iterator[Field]:
    """All fields that the form of a document has."""
    for part in layout.parts_of(document):
        yield from part.fields
        for block in part.blocks:
            yield from block.fields
            yield from block.more


def apply_fields(document: dict[str, Any], sent: Mapping[str, str]) -> Sent:
    """What a form that was shown for this document makes of it."""
    changed: dict[str, Any] = document
    unreadable: dict[str, Unreadable] = {}
    kinds: list[tuple[str, Any]] = []
    for field in fields_of(document):
        shown = text_of(field.kind, get(document, field.path))
        text = sent.get(PREFIX + field.path)
        if text is None or shown is None or _plain(text) == _plain(shown):
            continue
        value = value_of(field.kind, text)
        if isinstance(value, Unreadable):
            unreadable[field.path] = value
        elif field.path in layout.KINDS or field.path.endswith("].kind"):
            kinds.append((field.path, value))
        else:
            changed = (
                drop(changed, field.path) if value is MISSING else put(changed, field.path, value)
            )
    for path, value in kinds:  # last, for what is another kind has other fields
        changed = layout.with_kind(changed, path, value)
    return Sent(_with_control(changed, sent.get(CONTROL, "")), unreadable)


def typed_in(sent: Mapping[str, str]) -> dict[str, str]:
    """The texts of the fields of a form, by path."""
    return {
        name.removeprefix(PREFIX): text for name, text in sent.items() if name.startswith(PREFIX)
    }


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _with_control(document: dict[str, Any], chosen: str) -> dict[str, Any]:
    variants = document.get("variants")
    if not isinstance(variants, list) or not chosen.isdecimal():
        return document
    place = int(chosen)
    if place >= len(variants) or get(document, f"variants[{place}].control") is True:
        return document
    for index in range(len(variants)):
        path = f"variants[{index}].control"
        if index == place and isinstance(variants[index], dict):
            document = put(document, path, True)
        elif get(document, path) is True:
            document = drop(document, path)
    return document


def show(
    document: Mapping[str, Any],
    problems: Sequence[FieldProblem],
    *,
    unreadable: Mapping[str, Unreadable] | None = None,
    typed: Mapping[str, str] | None = None,
    held: Held = lambda _path: "",
    line_of: Callable[[str], int | None] = lambda _path: None,
    is_new: bool = False,
) -> FormView:
    """The form of a document.

    Arguments:
        problems: all wrong fields; each is shown at its field, or at the nearest place above it.
        unreadable: texts that were sent and stand for nothing.
        typed: what fields show instead of what the document has for them, by path.
        held: why fields cannot be changed.
        line_of: where the YAML has a path.
        is_new: nobody has tried to save it yet: what is missing is only still to be filled in.
    """
    parts = layout.parts_of(document)
    raw = unreadable or {}
    wrong: dict[str, list[FieldProblem]] = {}
    told = []
    places = _places(parts)
    for problem in (*problems, *(FieldProblem(p, "value", text.why) for p, text in raw.items())):
        place = _nearest(places, problem.path)
        wrong.setdefault(place, []).append(problem)
        is_left = is_new and _is_left(problem, document)
        target = anchor(place) if place else ""
        told.append(Told(problem.path, problem.detail, target, line_of(problem.path), is_left))

    def view(field: Field) -> FieldView:
        text = (
            raw[field.path].text
            if field.path in raw
            else text_of(field.kind, get(document, field.path))
        )
        text = (typed or {}).get(field.path, text)
        found = wrong.get(field.path, [])
        return FieldView(
            field=field,
            text=text or "",
            wrong=_words(found, field.path),
            is_left=is_new and all(_is_left(problem, document) for problem in found),
            held=NO_FIELD if text is None else held(field.path),
        )

    shown = tuple(
        PartView(
            part=part,
            fields=tuple(view(field) for field in part.fields),
            blocks=tuple(
                BlockView(
                    block=block,
                    fields=tuple(view(field) for field in block.fields),
                    more=tuple(view(field) for field in block.more),
                    wrong=_words(wrong.get(block.path, []), block.path),
                    held=held(block.path),
                )
                for block in part.blocks
            ),
            wrong=_words(wrong.get(part.code, []), part.code),
            held="" if not part.add else held(part.add),
        )
        for part in parts
    )
    return FormView(shown, tuple(sorted(told, key=lambda one: one.is_left)))


def _is_left(problem: FieldProblem, document: Mapping[str, Any]) -> bool:
    return problem.type == "missing" and get(document, problem.path) in (MISSING, "", None)


def _words(problems: Iterable[FieldProblem], path: str) -> tuple[str, ...]:
    """What is wrong at a place; what lies deeper in it is named."""
    return tuple(
        problem.detail if problem.path == path else f"{problem.path}: {problem.detail}"
        for problem in problems
    )


def _places(parts: Iterable[Part]) -> dict[tuple[str, ...], str]:
    """Where a problem can be shown: the steps of its path, and the place's."""
    places: dict[tuple[str, ...], str] = {}
    for part in parts:
        for root in part.roots:
            places.setdefault(paths.steps(root), part.code)
        for block in part.blocks:
            places[paths.steps(block.path)] = block.path
            for field in (*block.fields, *block.more):
                places[paths.steps(field.path)] = field.path
        for field in part.fields:
            places[paths.steps(field.path)] = field.path
    return places


def _nearest(places: Mapping[tuple[str, ...], str], path: str) -> str:
    steps = paths.steps(path)
    for length in range(len(steps), 0, -1):
        if steps[:length] in places:
            return places[steps[:length]]
    return ""
