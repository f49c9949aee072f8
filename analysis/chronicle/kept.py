"""What the chronicle has kept, in Postgres: each function takes a connection, so that its caller
owns the transaction."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec

from analysis.chronicle.course import Figures, Following, Said, beginning, following
from analysis.chronicle.model import Course, CourseLine, CoursePoint, Glance
from experiments.model import is_key
from experiments.records import ExperimentRecord
from experiments.store import Connection

_GLANCES: Final = "select experiment, content from glance where experiment = any($1)"
_KEEP_GLANCE: Final = """
    insert into glance (experiment, at, run, state, revision, rolled_back, final, content)
    values ($1, $2, $3, $4, $5, $6, $7, $8)
    on conflict (experiment) do update
    set at = excluded.at, run = excluded.run, state = excluded.state,
        revision = excluded.revision, rolled_back = excluded.rolled_back,
        final = excluded.final, content = excluded.content
"""
_POINTS: Final = """
    select at, metric, figures from course_point
    where experiment = $1 and run = $2 and ($3::text[] is null or metric = any($3)) order by at
"""
_FOLLOWING: Final = """
    select spacing, points, last_at from course where experiment = $1 and run = $2
"""
_LAST_SAID: Final = """
    select metric, figures from course_point where experiment = $1 and run = $2 and at = $3
"""
_FOLLOW: Final = """
    insert into course (experiment, run, spacing, points, last_at) values ($1, $2, $3, $4, $5)
    on conflict (experiment, run) do update
    set spacing = excluded.spacing, points = excluded.points, last_at = excluded.last_at
"""
_THIN: Final = """
    with placed as (
        select at, row_number() over (order by at) as place
        from (select distinct at from course_point where experiment = $1 and run = $2) times
    )
    delete from course_point p using placed
    where p.experiment = $1 and p.run = $2 and p.at = placed.at and placed.place % 2 = 0
"""
_ADD: Final = """
    insert into course_point (experiment, run, at, metric, figures)
    select $1, $2, $3, said.metric, said.figures
    from unnest($4::text[], $5::text[]::json[]) as said (metric, figures)
"""
_BESIDE: Final = 2_000
"""Rows of a course that are decoded in the event loop; more of them beside it."""

_FIGURES: Final = msgspec.json.Decoder(tuple[Figures, ...])


async def read_glances(connection: Connection, experiments: Iterable[int]) -> dict[int, Glance]:
    """The last glance at each of these experiments, by id. Those without one are left out, as
    drafts are, and what a newer release has written that this one cannot read."""
    found = {}
    for row in await connection.fetch(_GLANCES, [*experiments]):
        try:
            found[row["experiment"]] = msgspec.json.decode(row["content"], type=Glance)
        except msgspec.ValidationError:
            continue
    return found


async def keep_glance(connection: Connection, record: ExperimentRecord, glance: Glance) -> None:
    """Keep the glance at an experiment in the place of the one before.

    Args:
        record: as it was when the report was made.
    """
    await connection.execute(
        _KEEP_GLANCE,
        record.id,
        glance.at,
        record.run,
        record.state,
        record.revision,
        record.rolled_back,
        glance.final,
        msgspec.json.encode(glance).decode(),
    )


async def read_course(
    connection: Connection,
    record: ExperimentRecord,
    run: int | None = None,
    metrics: Collection[str] | None = None,
) -> Course:
    """How a run went.

    Args:
        run: the current one unless told; one that there is not has no lines.
        metrics: the keys of those wanted; all of them unless told. A page that shows some of many
            had better say so.
    """
    number = record.run if run is None else run
    wanted = None if metrics is None else [key for key in metrics if is_key(key)]
    rows = await connection.fetch(_POINTS, record.id, number, wanted)
    order = [metric.key for metric in record.definition.metrics]
    treatments = [*record.definition.weights]
    if len(rows) <= _BESIDE:
        return _course(number, rows, order, treatments)
    return await asyncio.to_thread(_course, number, rows, order, treatments)


def _course(
    run: int, rows: Sequence[asyncpg.Record], order: list[str], treatments: list[str]
) -> Course:
    """The lines of rows; what the definition no longer has comes last."""
    found: dict[tuple[str, str], list[CoursePoint]] = defaultdict(list)
    for at, metric, text in rows:
        for said in _FIGURES.decode(text):
            found[metric, said.treatment].append(
                CoursePoint(
                    at,
                    said.n_control,
                    said.n_treatment,
                    said.mean_control,
                    said.mean_treatment,
                    said.difference,
                    said.low,
                    said.high,
                    said.p_value,
                )
            )

    def place(line: tuple[str, str]) -> tuple[int, str, int, str]:
        metric, treatment = line
        return _place(metric, order), metric, _place(treatment, treatments), treatment

    return Course(
        run, tuple(CourseLine(*line, tuple(found[line])) for line in sorted(found, key=place))
    )


def _place(item: str, order: list[str]) -> int:
    return order.index(item) if item in order else len(order)


async def add_point(
    connection: Connection, record: ExperimentRecord, at: datetime, said: Said, *, last: bool
) -> bool:
    """Add to the course of the current run what its report says; whether that was done. It is not
    before a spacing has passed (the last point waits for none), nor where nothing has changed since
    the last point.

    Args:
        at: when the report was made.
        last: whether no other point will come.
    """
    if not said:
        return False
    row = await connection.fetchrow(_FOLLOWING, record.id, record.run)
    if row is None:
        after = beginning(at)
    else:
        before = Following(row["spacing"], row["points"], row["last_at"])
        if not (before.due(at) or (last and at > before.last_at)):
            return False
        if await _last_said(connection, record, before.last_at) == said:
            return False
        if before.full:
            await connection.execute(_THIN, record.id, record.run)
        after = following(before, at)
    place: tuple[Any, ...] = record.id, record.run
    await connection.execute(_FOLLOW, *place, after.spacing, after.points, after.last_at)
    texts = [msgspec.json.encode(figures).decode() for figures in said.values()]
    await connection.execute(_ADD, *place, at, [*said], texts)
    return True


async def _last_said(connection: Connection, record: ExperimentRecord, at: datetime) -> Said:
    rows = await connection.fetch(_LAST_SAID, record.id, record.run, at)
    return {row["metric"]: _FIGURES.decode(row["figures"]) for row in rows}
