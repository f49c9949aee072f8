"""How values read in a template."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from markupsafe import Markup

from dashboard import numbers


def when(at: datetime | None) -> Markup:
    """A time to the minute, in UTC, as an element that scripts can read."""
    if at is None:
        return Markup("–")
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat(), utc.strftime("%Y-%m-%d %H:%M UTC")
    )


ALL: Final[dict[str, Callable[..., Any]]] = {
    "when": when,
    "whole": numbers.count,
}
"""The filters of the templates, by name."""
