"""Fields of a form: how a value reads as text, and what a text stands for. Pure."""

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import msgspec

from dashboard.editor.documents import MISSING

Kind: TypeAlias = Literal[
    "text", "area", "number", "percent", "choice", "check", "json", "words", "numbers"
]

NO_FIELD: Final = "The YAML says this in a way that no field can show: change it there."
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")
_BETWEEN: Final = re.compile(r"[,\n]")
_LONG_JSON: Final = 60
_DIGITS: Final = 12
_OF_LINES: Final = frozenset({"area", "json"})


class Field(msgspec.Struct, frozen=True):
    """A field of the form, before it has a value.

    Arguments:
        path: of what it sets in the document.
        placeholder: what holds while it is empty.
        help: a few words below it.
        options: (value, label) of a choice; the empty value leaves it to the default.
        size: how wide it is: a quarter, a third, a half or all of its row.
    """

    path: str
    label: str
    kind: Kind = "text"
    placeholder: str = ""
    help: str = ""
    options: tuple[tuple[str, str], ...] = ()
    size: Literal["quarter", "third", "half", "full"] = "half"


class Unreadable(msgspec.Struct, frozen=True):
    """A text that stands for no value of its field, and why."""

    text: str
    why: str


def text_of(kind: Kind, value: Any) -> str | None:
    """A value as the text of its field; None where no field of this kind can show it."""
    if value is MISSING:
        return ""
    text = _TEXTS.get(kind, _text)(value)
    breaks = "\r" if kind in _OF_LINES else "\r\n"  # browsers change them, or leave them out
    return None if text is None or any(sign in text for sign in breaks) else text


def value_of(kind: Kind, text: str) -> Any:
    """What a text stands for: a value, MISSING where it is empty, or `Unreadable`.

    A number that is none stays text: the definition's own check says what is wrong with it.
    """
    text = text.replace("\r\n", "\n").strip()
    return _VALUES.get(kind, str)(text) if text else MISSING


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _text_of_check(value: Any) -> str | None:
    return ("true" if value else "") if isinstance(value, bool) else None


def _text_of_words(value: Any) -> str | None:
    if not isinstance(value, list) or not all(map(_is_word, value)):
        return None
    return ", ".join(value)


def _is_word(part: Any) -> bool:
    is_plain = isinstance(part, str) and part == part.strip() and part != ""
    return is_plain and not _BETWEEN.search(part)


def _text_of_numbers(value: Any) -> str | None:
    if not isinstance(value, list):
        return value if isinstance(value, str) else None
    texts = [_text_of_number(part) for part in value]
    return None if None in texts else ", ".join(str(text) for text in texts)


def _text_of_number(value: Any) -> str | None:
    if isinstance(value, str):  # what was typed and is no number, to be put right
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return repr(_tidy(value))


def _text_of_percent(value: Any) -> str | None:
    text = _text_of_number(value)
    is_number = text is not None and not isinstance(value, str)
    return repr(_tidy(round(value * 100, _DIGITS))) if is_number else text


def _value_of_percent(text: str) -> Any:
    share = _value_of_number(text.removesuffix("%").rstrip())
    return share if isinstance(share, str) else _tidy(round(share / 100, _DIGITS))


def _value_of_words(text: str) -> Any:
    return [word for part in _BETWEEN.split(text) if (word := part.strip())]


def _value_of_numbers(text: str) -> Any:
    return [_value_of_number(part.strip()) for part in _BETWEEN.split(text)]


def _value_of_check(_text: str) -> Any:
    return True


def _json(value: Any) -> str:
    short = json.dumps(value, ensure_ascii=False)
    return short if len(short) <= _LONG_JSON else json.dumps(value, ensure_ascii=False, indent=2)


def _value_of_json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"an object names {name[:80]!r} twice")
        return dict(pairs)

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number in JSON")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        hint = "" if text[0] in '{["' else '; text is written in quotes: "v7"'
        return Unreadable(text, f"must be JSON: {error.msg} at {where}{hint}")
    except (ValueError, RecursionError) as error:
        return Unreadable(text, f"must be JSON: {error}")


def _value_of_number(text: str) -> Any:
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) and "_" not in text else text


def _tidy(value: float) -> float:
    """1 rather than 1.0."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2.0**53
    return int(value) if is_whole else value


_TEXTS: Final[dict[Kind, Callable[[Any], str | None]]] = {
    "json": _json,
    "check": _text_of_check,
    "words": _text_of_words,
    "numbers": _text_of_numbers,
    "number": _text_of_number,
    "percent": _text_of_percent,
}
_VALUES: Final[dict[Kind, Callable[[str], Any]]] = {
    "json": _value_of_json,
    "check": _value_of_check,
    "words": _value_of_words,
    "numbers": _value_of_numbers,
    "number": _value_of_number,
    "percent": _value_of_percent,
}
