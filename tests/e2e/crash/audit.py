"""What is in Postgres, against what clients were told."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import asyncpg

from tests.e2e.crash.load import EXPERIMENT, Exposure, Ledger
from tests.service.recount import check

_OUTCOMES = "select value::bigint as event, count(*) as copies from outcome group by value"
_EXPOSURES = """
    select x.unit, x.epoch, x.variant, count(distinct x.id) as ids
    from exposure x join experiment e on e.id = x.experiment
    where e.key = $1
    group by x.unit, x.epoch, x.variant
"""
_ENROLMENTS = """
    select n.unit from enrolment n join experiment e on e.id = n.experiment where e.key = $1
"""
_CHANGES = """
    select c.reason from epoch c join experiment e on e.id = c.experiment
    where e.key = $1 and c.reason like 'reallocation %'
    union all
    select c.reason from revision c join experiment e on e.id = c.experiment
    where e.key = $1 and c.reason like 'amendment %'
"""
_LETTERS = "select reason from dead_letter"

LOST: Final = "acknowledged events that are lost"
DOUBLED: Final = "events that count twice"

Findings: TypeAlias = dict[str, Sequence[object]]
"""What does not fit, by what is wrong with it."""


async def audit(connection: asyncpg.Connection, ledger: Ledger) -> Findings:
    """Compare a database in which all is shipped and folded with what clients were told.

    Raises:
        AssertionError: if moments are not what their recomputation from raw events gives.
    """
    copies = {row["event"]: row["copies"] for row in await connection.fetch(_OUTCOMES)}
    ids = {
        Exposure(row["unit"], row["epoch"], row["variant"]): row["ids"]
        for row in await connection.fetch(_EXPOSURES, EXPERIMENT)
    }
    exposed = {exposure.unit for exposure in ids}
    enrolled = [row["unit"] for row in await connection.fetch(_ENROLMENTS, EXPERIMENT)]
    changes = [row["reason"] for row in await connection.fetch(_CHANGES, EXPERIMENT)]
    await check(connection)
    return without_empty(
        {
            "answers that nobody should get": ledger.wrong,
            LOST: sorted(ledger.acknowledged - copies.keys()),
            DOUBLED: [event for event, number in copies.items() if number > 1],
            "events that were refused and count": sorted(ledger.refused & copies.keys()),
            "events that nobody sent": sorted(copies.keys() - ledger.sent),
            "acknowledged exposures that are lost": sorted(ledger.exposed - ids.keys()),
            "exposures with two ids": [exposure for exposure, number in ids.items() if number > 1],
            "exposed units that are not enrolled": sorted(exposed - set(enrolled)),
            "units that are enrolled twice": _repeated(enrolled),
            "acknowledged changes that are lost": sorted(ledger.changes - set(changes)),
            "changes that were made twice": _repeated(changes),
            "dead letters": [row["reason"] for row in await connection.fetch(_LETTERS)],
        }
    )


def figures(ledger: Ledger, findings: Findings) -> str:
    """What clients were told, and what came of it, in one line."""
    return (
        f"{len(ledger.acknowledged):,} events acknowledged, {len(findings.get(LOST, ()))} lost, "
        f"{len(findings.get(DOUBLED, ()))} doubled; {len(ledger.exposed):,} exposures and "
        f"{len(ledger.changes)} changes acknowledged; {ledger.unanswered:,} requests unanswered, "
        f"{ledger.refusals:,} refused, {ledger.sent_again:,} batches sent again"
    )


def without_empty(findings: Findings) -> Findings:
    """Those that there are."""
    return {wrong: items for wrong, items in findings.items() if items}


def _repeated(items: Iterable[str]) -> list[str]:
    return [item for item, number in Counter(items).items() if number > 1]
