"""Who did something: a rule of the controller, or a hand, by the note of its key."""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from analysis.control.acting import ACTOR
from experiments.proposals.model import APPROVED_BY
from experiments.store import Connection

_KEY: Final = "key:"
_NOTES: Final = """
    select id, note from api_key where project = $1 and id = any($2) and note <> ''
"""
_RULES: Final[Mapping[str, str]] = {
    "guard": "Guard",
    "health": "Health checks",
    "ramp": "Ramp",
    "bandit": "Bandit",
    "stop": "Stop rule",
}


class Who(msgspec.Struct, frozen=True):
    """Whoever did something. `name` is how people know them, `actor` how the ledger names them;
    `rule` is the controller's, empty of a hand."""

    name: str
    actor: str
    rule: str = ""


async def read_notes(connection: Connection, project: str, actors: Iterable[str]) -> dict[str, str]:
    """The notes of the keys among these actors, by actor, those that were revoked too."""
    hands = [hand for actor in actors for hand in actor.split(APPROVED_BY)]
    ids = sorted({hand.removeprefix(_KEY) for hand in hands if hand.startswith(_KEY)})
    if not ids:
        return {}
    rows = await connection.fetch(_NOTES, project, ids)
    return {f"{_KEY}{row['id']}": row["note"] for row in rows}


def who(actor: str, rule: str, notes: Mapping[str, str]) -> Who:
    """Who an actor is.

    Args:
        rule: that a decision follows from; `manual`, or empty, of a hand.
    """
    if actor == ACTOR:
        return Who(_RULES.get(rule, "Controller"), actor, rule)
    names = [notes.get(hand) or hand.removeprefix(_KEY) for hand in actor.split(APPROVED_BY)]
    return Who(APPROVED_BY.join(names), actor)
