"""Lines for a terminal: what somebody wrote into a note or a name must not move its cursor, change
its title or pass for a line of ours."""

import re
from typing import Final

_CONTROLS: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


def plain(text: str) -> str:
    """A text of several lines, in which control characters but line feeds and tabs are escaped."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def plain_line(text: str) -> str:
    """A text in one line, in which all control characters are escaped."""
    return plain(text).replace("\n", "\\n")
