"""Where two versions of a definition differ from the one that both grew out of. Pure."""

from typing import Any

import msgspec

from dashboard.editor.documents import MISSING, differing, get


class Difference(msgspec.Struct, frozen=True):
    """A field of two versions that grew out of one: as it was, as it stands, as it was to be."""

    path: str
    before: str
    theirs: str
    mine: str
    is_conflict: bool


def differences(before: Any, theirs: Any, mine: Any) -> tuple[Difference, ...]:
    """Where two versions of a document differ from the one that both grew out of."""
    changed = {*differing(before, theirs)}, {*differing(before, mine)}
    order = [*differing(before, theirs), *differing(before, mine)]
    return tuple(
        Difference(
            path,
            _said(get(before, path)),
            _said(get(theirs, path)),
            _said(get(mine, path)),
            path in changed[0]
            and path in changed[1]
            and _said(get(theirs, path)) != _said(get(mine, path)),
        )
        for path in dict.fromkeys(order)
    )


def _said(value: Any) -> str:
    return "–" if value is MISSING else msgspec.json.encode(value).decode()
