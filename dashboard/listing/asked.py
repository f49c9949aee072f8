"""What a visitor asks of the list, as the address says it, which others may open too. Pure."""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, cast, get_args
from urllib.parse import urlencode

import msgspec

from experiments.model import State

PATH: Final = "/experiments"
MAX_TEXT: Final = 200
Tab: TypeAlias = Literal["all", "attention"] | State
Health: TypeAlias = Literal["any", "critical", "warning", "ok"]
Order: TypeAlias = Literal["attention", "name", "state", "health", "units", "owner", "started"]

TABS: Final[tuple[Tab, ...]] = ("all", "attention", *get_args(State))
HEALTHS: Final[tuple[Health, ...]] = get_args(Health)
ORDERS: Final[tuple[Order, ...]] = get_args(Order)
_LARGEST_FIRST: Final[frozenset[Order]] = frozenset({"units", "started"})
"""Orders that begin with the largest, or the latest, unless they are turned round."""


class Asked(msgspec.Struct, frozen=True):
    """What is asked for.

    Arguments:
        text: to search for.
        tab: which states: `all` leaves archived ones out; `attention` is what needs a person.
        health: the worst finding.
        tag, owner: empty for any.
        order: the first order is by what needs a person; `turned` turns another one round.
        after: the id of the experiment behind which the page begins; None at the first page.
    """

    text: str = ""
    tab: Tab = "all"
    health: Health = "any"
    tag: str = ""
    owner: str = ""
    order: Order = "attention"
    turned: bool = False
    after: int | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether experiments may be left out for more than their state."""
        return bool(self.text or self.tag or self.owner) or self.health != "any"

    def address(self, **changes: Any) -> str:
        """The address of this view, with changes; of a view that changed, its first page."""
        there = msgspec.structs.replace(self, **{"after": None, **changes})
        order = f"-{there.order}" if there.turned else there.order
        fields = {
            "q": there.text,
            "state": "" if there.tab == "all" else there.tab,
            "health": "" if there.health == "any" else there.health,
            "tag": there.tag,
            "owner": there.owner,
            "sort": "" if order == "attention" else order,
            "after": "" if there.after is None else str(there.after),
        }
        query = urlencode({name: value for name, value in fields.items() if value})
        return f"{PATH}?{query}" if query else PATH

    def by(self, order: Order) -> str:
        """The address of this view in another order, or in the same turned round."""
        return self.address(order=order, turned=order == self.order and not self.turned)

    def direction(self, order: Order) -> str:
        """How a column is ordered, in ARIA's words."""
        if order != self.order:
            return "none"
        descending = self.turned != (order in _LARGEST_FIRST)
        return "descending" if descending else "ascending"

    @property
    def largest_first(self) -> bool:
        """Whether the order begins with the largest."""
        return self.turned != (self.order in _LARGEST_FIRST)


def read_asked(query: Mapping[str, str]) -> Asked:
    """What an address asks for; what it says that is none of ours is left out."""
    sort = query.get("sort", "")
    order, after = sort.removeprefix("-"), query.get("after", "")
    known = order in ORDERS
    return Asked(
        text=query.get("q", "").replace("\0", "").strip()[:MAX_TEXT],
        tab=cast("Tab", _one_of(TABS, query.get("state", ""))),
        health=cast("Health", _one_of(HEALTHS, query.get("health", ""))),
        tag=query.get("tag", "").replace("\0", "")[:MAX_TEXT],
        owner=query.get("owner", "").replace("\0", "")[: 4 * 1000],
        order=cast("Order", order) if known else "attention",
        turned=known and order != "attention" and sort.startswith("-"),
        after=int(after) if after.isascii() and after.isdigit() and len(after) <= 18 else None,
    )


def _one_of(known: tuple[str, ...], word: str) -> str:
    return word if word in known else known[0]
