"""Finding experiments of a project: what a list of them is searched, filtered and ordered by.

One query by the project. It reads columns that were taken out of the definitions when these were
written (migration 0025), so its cost is a few microseconds for each experiment of the project,
whatever is looked for: text is searched within words, for which no index is needed at thousands.
"""

import asyncio
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

import asyncpg
import msgspec

from experiments.allocation import Allocation, counts
from experiments.model import HOLDOUT, SLOTS, State
from experiments.store import Connection

_FIND: Final = """
    select x.id, x.key, x.name, x.owner, x.state, x.run, x.epoch, x.created_at, x.updated_at,
           r.started_at, r.ended_at, array(select jsonb_array_elements_text(x.tags)) as tags
    from experiment x left join run r on r.experiment = x.id and r.number = x.run
    where x.project = $1 and x.key <> $2
      and ($3::text[] is null or x.words like all ($3))
      and ($4::text is null or x.tags ? $4)
      and ($5::text is null or x.owner = $5)
    order by x.id desc
"""
_LABELS: Final = """
    select distinct owner as label, false as is_tag from experiment
    where project = $1 and key <> $2 and state <> 'archived' and owner <> ''
    union all
    select distinct jsonb_array_elements_text(tags), true from experiment
    where project = $1 and key <> $2 and state <> 'archived'
    order by label
"""
MAX_WORDS: Final = 8
_BESIDE: Final = 500
"""Rows that are read in the event loop, which has assignments to answer; more of them beside it."""
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})


class Found(msgspec.Struct, frozen=True):
    """An experiment as a list needs it to be ordered and filtered; `started_at` and `ended_at` are
    of the current run, None of a draft, and where it has not ended."""

    id: int
    key: str
    name: str
    owner: str
    state: State
    run: int
    epoch: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    tags: tuple[str, ...]


class Labels(msgspec.Struct, frozen=True):
    """The owners and tags of a project's experiments, but for archived ones, in order."""

    owners: tuple[str, ...]
    tags: tuple[str, ...]


async def find_experiments(
    connection: Connection,
    project: str,
    text: str = "",
    tag: str | None = None,
    owner: str | None = None,
) -> list[Found]:
    """The experiments of a project, the newest first; not the built-in one.

    Args:
        text: words, each of which stands in the key, name, owner, tags or hypothesis, in any case;
            those after the eighth are left out.
        tag, owner: which they have.
    """
    words = text.lower().replace("\0", "").split()[:MAX_WORDS]
    patterns = [f"%{word.translate(_ESCAPES)}%" for word in words]
    rows = await connection.fetch(_FIND, project, HOLDOUT, patterns or None, tag, owner)
    if len(rows) <= _BESIDE:
        return _read(rows)
    return await asyncio.to_thread(_read, rows)


def _read(rows: Sequence[asyncpg.Record]) -> list[Found]:
    return [msgspec.convert({**row, "tags": tuple(row["tags"])}, Found) for row in rows]


async def read_labels(connection: Connection, project: str) -> Labels:
    """What experiments of a project can be filtered by."""
    rows = await connection.fetch(_LABELS, project, HOLDOUT)
    return Labels(
        owners=tuple(row["label"] for row in rows if not row["is_tag"]),
        tags=tuple(row["label"] for row in rows if row["is_tag"]),
    )


class Split(msgspec.Struct, frozen=True):
    """How an experiment splits traffic now: the variants in the order of the definition, the share
    of all traffic that each has (empty before the first run), the one that is shipped, and those
    that are rolled back while the run goes on."""

    variants: tuple[str, ...]
    shares: dict[str, float]
    ship: str | None
    rolled_back: tuple[str, ...]


class _Named(msgspec.Struct, frozen=True):
    key: str


_SPLITS: Final = """
    select x.id, x.definition -> 'variants' as variants, x.ship, x.rolled_back, e.allocation
    from experiment x left join epoch e on e.experiment = x.id and e.number = x.epoch
    where x.id = any($1)
"""


async def read_splits(connection: Connection, experiments: Collection[int]) -> dict[int, Split]:
    """How these experiments, by id, split traffic now."""
    rows = await connection.fetch(_SPLITS, list(experiments))
    return {row["id"]: _split(row) for row in rows}


def _split(row: asyncpg.Record) -> Split:
    named = msgspec.json.decode(row["variants"], type=list[_Named])
    shares: dict[str, float] = {}
    if row["allocation"] is not None:
        slots = counts(msgspec.json.decode(row["allocation"], type=Allocation))
        shares = {variant: number / SLOTS for variant, number in slots.items()}
    return Split(
        variants=tuple(variant.key for variant in named),
        shares=shares,
        ship=row["ship"],
        rolled_back=tuple(row["rolled_back"]),
    )
