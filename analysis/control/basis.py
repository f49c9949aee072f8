"""What a decision stands on besides its evidence: where the moments were, and what the guard had
spent."""

from typing import Final

import msgspec

from experiments.records import Basis, ExperimentRecord
from experiments.store import Connection

# A metric that was given another definition has several versions, and the last one is in use.
_BASIS: Final = """
    select
        (select nullif(watermark, '-infinity') from fold_position) as watermark,
        (select coalesce(json_object_agg(key, closed_through), '{}') from (
            select distinct on (key) key, closed_through from run_metric
            where experiment = $1 and run = $2 order by key, id desc
        ) closed) as closed_through,
        spent.generation,
        coalesce(spent.alpha, 0) as alpha_spent
    from (values (1)) one (row) left join lateral (
        select generation, sum(alpha) as alpha from guard_ledger
        where experiment = $1 and run = $2
        group by generation order by generation desc limit 1
    ) spent on true
"""


async def basis_of(connection: Connection, record: ExperimentRecord) -> Basis:
    """What is decided on now, in the transaction in which the leader decides."""
    row = await connection.fetchrow(_BASIS, record.id, record.run)
    assert row is not None, "one row whatever there is"  # noqa: S101 - an invariant
    return Basis(
        watermark=row["watermark"],
        closed_through=msgspec.json.decode(row["closed_through"], type=dict[str, int]),
        generation=row["generation"],
        alpha_spent=row["alpha_spent"],
    )
