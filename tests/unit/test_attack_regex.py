"""No regular expression of ours can be made to explode by whoever writes the text.

The patterns are found in the source. Each is matched, by a small matcher that backtracks as
Python's does and counts what it looks at, against texts made of what stands in it, n and 4n times
over. The count takes all ways to match, so that whatever follows may fail.
"""

import ast
import importlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from re import _constants as sre  # there is no other way to a parsed pattern
from re import _parser
from typing import Any, Final

import pytest

import turnout
from experiments.targeting.budget import Budget
from experiments.targeting.versions import read_version

ROOT: Final = Path(turnout.__file__).parent.parent
ROOMS: Final = ("experiments", "router", "analysis", "dashboard", "turnout")
SHORT, LONG = 10, 40
MOST: Final = 6.0
"""How many times more may be looked at in a text four times as long: a square would be about 13."""
_ENDLESS: Final = 1_000
_CLAMP: Final = 3


def patterns() -> Iterator[tuple[str, str, int]]:
    """Where each pattern stands, its text, and its flags."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and (found := _pattern_of(node)) is not None:
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield where, *_valued(path, found, node)


def _pattern_of(call: ast.Call) -> ast.expr | None:
    name = call.func
    is_of_re = isinstance(name, ast.Attribute) and ast.unparse(name.value) == "re"
    if is_of_re and ast.unparse(name) not in {"re.escape", "re.purge"}:
        return call.args[0]
    return next((each.value for each in call.keywords if each.arg == "pattern"), None)


class _Known(dict[str, Any]):
    """What a module knows; where a pattern is made of the argument of a function, a word."""

    def __missing__(self, name: str) -> str:
        return "word"


def _valued(path: Path, pattern: ast.expr, call: ast.Call) -> tuple[str, int]:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    known = _Known(vars(module))
    text = eval(ast.unparse(pattern), {}, known)  # noqa: S307 - our own source
    is_compiled = ast.unparse(call.func) == "re.compile" and len(call.args) > 1
    flags = int(eval(ast.unparse(call.args[1]), {}, known)) if is_compiled else 0  # noqa: S307
    return text.decode("latin-1") if isinstance(text, bytes) else text, flags


class Matcher:
    """Matches at the beginning of a text in all ways, and counts the characters looked at."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.looked = 0

    def ends(self, items: Any, at: int, first: int = 0) -> Iterator[int]:
        """Where a match of these items may end."""
        if first == len(items):
            yield at
            return
        operation, argument = items[first]
        for end in self._ends_of(operation, argument, at):
            yield from self.ends(items, end, first + 1)

    def _ends_of(self, operation: Any, argument: Any, at: int) -> Iterator[int]:
        self.looked += 1
        if self.looked > 100_000:
            return
        if operation in {sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT}:
            least, most, items = argument
            least = min(least, _CLAMP)
            if most < _ENDLESS:
                most = min(most, _CLAMP)
            yield from self._repeated(items, least, most, at)
        elif operation is sre.SUBPATTERN:
            yield from self.ends(argument[-1], at)
        elif operation is sre.ATOMIC_GROUP:
            yield from itertools.islice(self.ends(argument, at), 1)
        elif operation is sre.BRANCH:
            for items in argument[1]:
                yield from self.ends(items, at)
        elif operation in {sre.ASSERT, sre.ASSERT_NOT}:
            any(True for _ in self.ends(argument[1], at))
            yield at  # whether it holds is left open
        elif operation is sre.AT:
            if argument is not sre.AT_BEGINNING or at == 0:
                yield at
        elif at < len(self.text) and is_in(operation, argument, self.text[at]):
            yield at + 1

    def _repeated(self, items: Any, least: int, most: int, at: int) -> Iterator[int]:
        if most > 0:
            for end in self.ends(items, at):
                if end > at:
                    yield from self._repeated(items, max(0, least - 1), most - 1, end)
        if least == 0:
            yield at


def is_in(operation: Any, argument: Any, character: str) -> bool:
    """Whether what stands for one character stands for this one."""
    code = ord(character)
    if operation is sre.LITERAL:
        return bool(code == argument)
    if operation is sre.NOT_LITERAL:
        return bool(code != argument)
    if operation in {sre.ANY, sre.GROUPREF}:  # what a group has matched may be any character
        return True
    if operation is sre.RANGE:
        return bool(argument[0] <= code <= argument[1])
    if operation is sre.CATEGORY:
        letter = _CATEGORIES[str(argument)]
        return re.match(letter, character) is not None
    assert operation is sre.IN, f"{operation} is not known here"
    negated = argument[0][0] is sre.NEGATE
    return negated != any(is_in(each[0], each[1], character) for each in argument[negated:])


_CATEGORIES: Final = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_LETTERS: Final = " 1aZ-_.:/~\"'\n"


def characters(items: Any) -> Iterator[str]:
    """A character for each thing that stands for one."""
    for operation, argument in items:
        if operation in {sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT}:
            yield from characters(argument[2])
        elif operation is sre.SUBPATTERN:
            yield from characters(argument[-1])
        elif operation is sre.ATOMIC_GROUP:
            yield from characters(argument)
        elif operation is sre.BRANCH:
            for each in argument[1]:
                yield from characters(each)
        elif operation in {sre.ASSERT, sre.ASSERT_NOT}:
            yield from characters(argument[1])
        elif operation is sre.LITERAL:
            yield chr(argument)
        elif operation is not sre.AT:
            yield from [each for each in _LETTERS if is_in(operation, argument, each)][:2]


def shortest(items: Any) -> str:
    """A text that these items match, as far as that is easily told."""
    text = ""
    for operation, argument in items:
        if operation in {sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT}:
            text += shortest(argument[2]) * max(1, argument[0])
        elif operation is sre.SUBPATTERN:
            text += shortest(argument[-1])
        elif operation is sre.ATOMIC_GROUP:
            text += shortest(argument)
        elif operation is sre.BRANCH:
            text += shortest(argument[1][0])
        elif operation not in {sre.AT, sre.ASSERT, sre.ASSERT_NOT}:
            text += next(characters([(operation, argument)]), "")
    return text


def is_endless(items: Any) -> bool:
    """Whether anything in there may come again without an end."""
    repeats = {sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT}
    for operation, argument in items:
        inside: list[Any] = []
        if operation in repeats:
            if argument[1] >= _ENDLESS:
                return True
            inside = [argument[2]]
        elif operation is sre.SUBPATTERN:
            inside = [argument[-1]]
        elif operation is sre.ATOMIC_GROUP:
            inside = [argument]
        elif operation is sre.BRANCH:
            inside = argument[1]
        elif operation in {sre.ASSERT, sre.ASSERT_NOT}:
            inside = [argument[1]]
        if any(is_endless(each) for each in inside):
            return True
    return False


def growth(pattern: str, flags: int = 0) -> tuple[float, str]:
    """How many times more is looked at in a text four times as long, at worst; and what is repeated
    in that text."""
    items = list(_parser.parse(pattern, flags))
    if not is_endless(items):
        return 1.0, ""
    letters = list(dict.fromkeys(characters(items)))[:8]
    pumps = [*letters, *("".join(pair) for pair in itertools.permutations(letters, 2))]
    before = dict.fromkeys(shortest(items[:number]) for number in range(len(items)))
    worst = (0.0, "")
    for prefix, pump in itertools.product(before, pumps):
        counts = []
        for number in (SHORT, LONG):
            matcher = Matcher(prefix + pump * number)
            for _ in matcher.ends(items, 0):
                pass
            counts.append(matcher.looked)
        worst = max(worst, (counts[1] / counts[0], pump))
    return worst


@pytest.mark.parametrize(
    "pattern", [r"(a+)+b", r"(a|a)*b", r"a*a*b", r"(?:x\w*\w*)c", r"(\s*\n*)*"]
)
def test_one_that_explodes_is_found(pattern: str) -> None:
    assert growth(pattern)[0] > MOST


@pytest.mark.parametrize(
    "pattern", [r"a*b", r"^[a-z]{1,64}$(?!\n)", r"(?:\.[a-z]+)*", r"\d+[a-z]*"]
)
def test_one_that_does_not_is_not(pattern: str) -> None:
    assert growth(pattern)[0] <= MOST


def test_no_pattern_of_ours_explodes() -> None:
    found = list(patterns())
    assert len(found) > 40
    wrong = {
        where: (pattern, worst)
        for where, pattern, flags in found
        if (worst := growth(pattern, flags))[0] > MOST
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "text", ["1." * 30_000, "1.2.3-" + "1." * 30_000, "9" * 60_000, "v" * 60_000]
)
def test_a_version_that_a_user_sends_is_read_or_not_in_no_time(text: str) -> None:
    budget = Budget()
    assert read_version(text, budget) is None
    assert budget.left < Budget.left, "reading it is paid for"
