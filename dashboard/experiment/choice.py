"""What a reader has chosen to see on an experiment's page: it stands in the address, so that a link
leads to the same view."""

from typing import Final, get_args
from urllib.parse import quote, urlencode

import msgspec

from experiments.model import Reading

READINGS: Final[frozenset[str]] = frozenset(get_args(Reading))


class Choice(msgspec.Struct, frozen=True):
    """What is shown of what there is.

    Arguments:
        path: of the page that links belong to; empty where there is nothing to switch, as in a file
            that stands alone: then all is shown.
        reading: which one; None for the plan's.
        metric: which one is drawn over time and broken down; None for the first.
        attribute: by which one metrics are broken down; None for the first.
        defers: comparisons of segments that the report was made without, until they are asked for;
            0 of one that has all.
    """

    path: str = ""
    reading: Reading | None = None
    metric: str | None = None
    attribute: str | None = None
    defers: int = 0


EVERYTHING: Final = Choice()
"""Of a page that stands alone."""


def choice_of(key: str, reading: str | None, metric: str | None, attribute: str | None) -> Choice:
    """The choice that an address states; what it states wrongly counts as not stated."""
    known = reading if reading in READINGS else None
    return Choice(
        path=f"/experiments/{quote(key, safe='$')}",
        reading=known,  # type: ignore[arg-type] # one of them: it was looked up
        metric=metric or None,
        attribute=attribute or None,
    )


def link_to(
    choice: Choice,
    anchor: str,
    *,
    reading: str | None = None,
    metric: str | None = None,
    attribute: str | None = None,
) -> str:
    """The address of the same page with something else chosen; empty where there is no page."""
    if not choice.path:
        return ""
    chosen = {
        "reading": reading or choice.reading,
        "metric": metric or choice.metric,
        "by": attribute or choice.attribute,
    }
    query = urlencode({name: value for name, value in chosen.items() if value})
    return f"{choice.path}{f'?{query}' if query else ''}#{anchor}"
