"""What the leader sees of all experiments, for Prometheus. No units or events are scanned."""

from typing import Final

import msgspec

from analysis.control.telemetry import Ratio, Sight
from analysis.inference.ratio_watch import RatioWatch
from experiments.model import State
from experiments.store import Connection

STATES: Final[tuple[State, ...]] = (
    "draft",
    "running",
    "paused",
    "concluded",
    "rolled_back",
    "archived",
)
_STATES: Final = "select state, count(*) as experiments from experiment group by state"
_RUNNING: Final = """
    select e.project, e.key, h.health -> 'ratio' as ratio,
           exists (select from health_finding f
                   where f.experiment = e.id and f.run = e.run and f.name = 'sample_ratio') as found
    from experiment e left join run_health h on h.experiment = e.id and h.run = e.run
    where e.state = 'running'
    order by e.id
"""
_DECIDED: Final = "select at from decision order by id desc limit 1"


async def look(connection: Connection) -> Sight:
    """Look at all experiments."""
    counted = {row["state"]: row["experiments"] for row in await connection.fetch(_STATES)}
    ratios: list[Ratio] = []
    for row in await connection.fetch(_RUNNING):
        watch = msgspec.json.decode(row["ratio"] or "{}", type=RatioWatch)
        log_e = float("inf") if watch.impossible else watch.log_peak
        ratios.append(Ratio(row["project"], row["key"], row["found"], log_e))
    return Sight(
        {state: counted.get(state, 0) for state in STATES},
        ratios,
        await connection.fetchval(_DECIDED),
    )
