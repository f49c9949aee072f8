"""Segments of units: what they had recorded of them when they were enrolled.

A unit is in one segment of each attribute that its enrolling exposure has. All its segments
together are its profile, of which the enrolment keeps the number. The units of an arm that are in a
segment are counted in cells of their own, under a number that no arm has: so whatever is done with
cells is done with these, and whoever asks for an arm's cells gets those of all its units.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.folding.cells import CLOSED
from analysis.folding.wire import Layout, read_rows
from analysis.inference.epoch_sums import Population
from analysis.inference.segments import (
    LONGEST_VALUE,
    MOST_ATTRIBUTES,
    MOST_VALUES,
    Segment,
    SegmentFacts,
)
from experiments.store import Connection

Integers: TypeAlias = NDArray[np.int64]
Value: TypeAlias = tuple[int, str | None]
"""The number of an attribute, and a value's JSON text; None for any value without a segment."""

# An attribute is known before an exposure that has it is folded: the revision that records it was
# there before. All revisions since the run began count, also one that was soon changed again.
_KNOW_ATTRIBUTES = """
    insert into run_attribute (experiment, run, name)
    select $1, $2, name
    from (
        select a.name, min(array[v.number, a.place::int]) as first
        from run r
        join revision v on v.experiment = r.experiment and v.number > $3 and v.number >= coalesce(
            (select max(p.number) from revision p
             where p.experiment = r.experiment and p.at < r.started_at), 0)
        cross join lateral json_array_elements_text(v.definition -> 'record')
            with ordinality as a (name, place)
        where r.experiment = $1 and r.number = $2 and r.broken_down
        group by a.name
    ) as named
    where not exists (
        select from run_attribute k where (k.experiment, k.run, k.name) = ($1, $2, named.name)
    )
    order by first
    limit greatest(
        $4 - (select count(*) from run_attribute k where (k.experiment, k.run) = ($1, $2)), 0)
"""
_MET = """
    select experiment, run, attributes::text as attributes
    from moved where attributes is not null
    group by experiment, run, attributes order by min(at), attributes
"""
_ATTRIBUTES = """
    select a.id, a.experiment, a.run, a.name
    from run_attribute a join unnest($1::bigint[], $2::int[]) as wanted (experiment, run)
    using (experiment, run)
    order by a.id
"""
_SEGMENTS = "select id, attribute, value, other from unit_segment where attribute = any($1)"
_ADD_SEGMENTS = """
    insert into unit_segment (attribute, value, other)
    select attribute, value, value is null
    from unnest($1::int[], $2::text[]) with ordinality as fresh (attribute, value, place)
    order by place
    returning id, attribute, value
"""
_ADD_PROFILES = """
    insert into profile (segments)
    select segments::int[] from unnest($1::text[]) as wanted (segments)
    where not exists (select from profile p where p.segments = wanted.segments::int[])
"""
_PROFILES = """
    select p.id, wanted.segments
    from unnest($1::text[]) as wanted (segments)
    join profile p on p.segments = wanted.segments::int[]
"""
_MAKE_ROOM = """
    create temp table if not exists profiled (
        experiment bigint, run int, attributes jsonb, profile int
    ) on commit delete rows;
    truncate profiled
"""
_KEEP_PROFILED = """
    insert into profiled select * from unnest($1::bigint[], $2::int[], $3::jsonb[], $4::int[])
"""
# Both tables are as large as the batch, and have no index: here a hash is the way (`BY_INDEX`).
_BY_HASH = "set local enable_hashjoin = on; set local enable_seqscan = on"
_GIVE_PROFILES = """
    update moved m set profile = p.profile
    from profiled p
    where p.experiment = m.experiment and p.run = m.run and p.attributes = m.attributes
"""
_BY_INDEX_AGAIN = "set local enable_hashjoin = off; set local enable_seqscan = off"
_ADD_ARMS = """
    insert into segment_arm (arm, segment)
    select m.arm, g.segment
    from (select distinct arm, profile from moved where profile <> 0 and arm <> 0) as m
    join profile p on p.id = m.profile
    cross join lateral unnest(p.segments) as g (segment)
    where not exists (
        select from segment_arm s where s.arm = m.arm and s.segment = g.segment
    )
    group by m.arm, g.segment
    order by m.arm, g.segment
"""
_COUNT = """
    update segment_arm s set units = s.units + change.units
    from (
        select m.arm, g.segment, sum(m.units) as units
        from (
            select arm, profile, count(*) as units from moved where arm <> 0 and profile <> 0
            group by arm, profile
            union all
            select old_arm, old_profile, -count(*) from moved
            where old_arm is not null and old_profile <> 0
            group by old_arm, old_profile
        ) as m
        join profile p on p.id = m.profile
        cross join lateral unnest(p.segments) as g (segment)
        group by m.arm, g.segment having sum(m.units) <> 0
    ) as change
    where s.arm = change.arm and s.segment = change.segment
"""
# By a subquery, or the planner, who knows nothing of the table, would read all segments of an arm.
_OF_PROFILES = """
    select (k.place - 1)::int,
           (select s.id from segment_arm s where s.arm = k.arm and s.segment = g.segment)
    from unnest($1::int[], $2::int[]) with ordinality as k (arm, profile, place)
    join profile p on p.id = k.profile
    cross join lateral unnest(p.segments) as g (segment)
    order by k.place
"""
_PLACES_LAYOUT: Final = Layout({"place": "int4", "arm": "int4"})
_ARMS_OF = "select id, arm from segment_arm where id = any($1)"
# An erased unit's value may be what it alone had: what no unit of the run has any more is
# forgotten, also where the unit itself had moved out of its segment before. The segment keeps its
# number, so that values which came later stay in the one that they are in.
_FORGET_VALUES = """
    update unit_segment s set value = null
    where s.value is not null
      and s.attribute in (
          select a.id from run_attribute a join moved m using (experiment, run)
      )
      and not exists (select from segment_arm a where a.segment = s.id and a.units <> 0)
"""
_TOTALS = """
    select t.metric, t.block, t.sums, a.name, s.value
    from run_metric m
    join metric_total t on t.metric = m.id and t.segment <> 0
    join unit_segment s on s.id = t.segment and (s.value is not null or s.other)
    join run_attribute a on a.id = s.attribute
    where m.experiment = $1 and m.run = $2
    order by t.metric, a.id, s.other, s.id
"""


class SegmentOf(NamedTuple):
    """Rows that are counted in segments, once for each: the row, and the segment's arm."""

    row: Integers
    arm: Integers


async def know_attributes(
    connection: Connection, experiment: int, run: int, analysed_revision: int
) -> None:
    """Take in what the revisions after this one record, until a run has enough attributes."""
    await connection.execute(_KNOW_ATTRIBUTES, experiment, run, analysed_revision, MOST_ATTRIBUTES)


async def give_profiles(connection: Connection) -> None:
    """Give the units in `moved` the profiles that their `attributes` make, and make their arms."""
    rows = await connection.fetch(_MET)
    if not rows:
        return
    runs = sorted({(row["experiment"], row["run"]) for row in rows})
    names: dict[tuple[int, int], dict[str, int]] = defaultdict(dict)
    for known in await connection.fetch(_ATTRIBUTES, *map(list, zip(*runs, strict=True))):
        names[known["experiment"], known["run"]][known["name"]] = known["id"]
    values = [
        values_of(row["attributes"], names.get((row["experiment"], row["run"]), {})) for row in rows
    ]
    segments = await _segments(connection, values)
    profiles = [
        tuple(sorted(segments.get(v) or segments[v[0], None] for v in of_row)) for of_row in values
    ]
    numbers = await _profiles(connection, {profile for profile in profiles if profile})
    await connection.execute(_MAKE_ROOM)
    await connection.execute(
        _KEEP_PROFILED,
        [row["experiment"] for row in rows],
        [row["run"] for row in rows],
        [row["attributes"] for row in rows],
        [numbers.get(profile, 0) for profile in profiles],
    )
    await connection.execute(_BY_HASH)
    await connection.execute(_GIVE_PROFILES)
    await connection.execute(_BY_INDEX_AGAIN)
    await connection.execute(_ADD_ARMS)


def values_of(attributes: str, names: Mapping[str, int]) -> list[Value]:
    """What an exposure's attributes say of those that a run is broken down by.

    Strings, booleans and numbers are values; of null, of lists and of objects there is none.
    Numbers that are equal are one value, however they were written.

    Args:
        attributes: a JSON object.
        names: the number of each attribute that counts.
    """
    found: list[Value] = []
    for name, raw in msgspec.json.decode(attributes, type=dict[str, msgspec.Raw]).items():
        if name not in names:
            continue
        text = bytes(raw).decode()
        if text.startswith(("{", "[")) or text == "null":
            continue
        if "." in text and not text.startswith('"'):
            text = text.rstrip("0").rstrip(".")  # Postgres writes no exponents
        length = len(msgspec.json.decode(text, type=str)) if text.startswith('"') else len(text)
        found.append((names[name], None if length > LONGEST_VALUE else text))
    return found


async def _segments(connection: Connection, values: Iterable[Sequence[Value]]) -> dict[Value, int]:
    """The segments of values, made where there is room; all others are in that of (attribute,
    None). Values are given in the order in which they appeared."""
    seen = dict.fromkeys(value for of_row in values for value in of_row)
    segments: dict[Value, int] = {}
    taken: dict[int, int] = defaultdict(int)
    for row in await connection.fetch(_SEGMENTS, sorted({attribute for attribute, _ in seen})):
        if row["value"] is not None or row["other"]:
            segments[row["attribute"], row["value"]] = row["id"]
        taken[row["attribute"]] += not row["other"]
    fresh: dict[Value, None] = {}
    for attribute, value in seen:
        if (attribute, value) in segments:
            continue
        if value is not None and taken[attribute] < MOST_VALUES:
            taken[attribute] += 1
            fresh[attribute, value] = None
        elif (attribute, None) not in segments:
            fresh[attribute, None] = None
    added = await connection.fetch(_ADD_SEGMENTS, [a for a, _ in fresh], [v for _, v in fresh])
    return segments | {(row["attribute"], row["value"]): row["id"] for row in added}


async def _profiles(
    connection: Connection, profiles: Iterable[tuple[int, ...]]
) -> dict[tuple[int, ...], int]:
    """The numbers of profiles, which are made where they are new."""
    by_text = {f"{{{','.join(map(str, profile))}}}": profile for profile in sorted(profiles)}
    await connection.execute(_ADD_PROFILES, list(by_text))
    rows = await connection.fetch(_PROFILES, list(by_text))
    return {by_text[row["segments"]]: row["id"] for row in rows}


async def count_segments(connection: Connection) -> None:
    """Bring the units of segments from what stood to what `moved` says."""
    await connection.execute(_COUNT)


async def forget_values(connection: Connection) -> None:
    """Forget the values that no unit has any more, of the runs that units in `moved` leave."""
    await connection.execute(_FORGET_VALUES)


async def segments_of(connection: Connection, arm: Integers, profile: Integers) -> SegmentOf:
    """The segments that rows are counted in, given their arms and profiles."""
    rows = np.flatnonzero(profile)
    if not len(rows):
        return SegmentOf(rows, rows)
    pairs, pair = np.unique(np.stack([arm[rows], profile[rows]]), axis=1, return_inverse=True)
    found = await read_rows(
        connection, _OF_PROFILES, _PLACES_LAYOUT, pairs[0].tolist(), pairs[1].tolist()
    )
    pair = pair.reshape(-1)
    many = np.bincount(found["place"], minlength=pairs.shape[1])[pair]
    first = np.searchsorted(found["place"], pair)
    # The first place of each row's segments, and 0, 1, … after it.
    after = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    place = np.repeat(first, many) + after
    return SegmentOf(np.repeat(rows, many), found["arm"][place].astype(np.int64))


async def read_segments(
    connection: Connection, experiment: int, run: int
) -> dict[int, dict[Segment, SegmentFacts]]:
    """The sums over epochs of a run's segments, by metric: those of an attribute together, in the
    order in which their values appeared."""
    found: dict[int, dict[Segment, SegmentFacts]] = defaultdict(dict)
    for row in await connection.fetch(_TOTALS, experiment, run):
        name, value = row["name"], row["value"]
        segment = Segment(name, None, other=True) if value is None else Segment.of_json(name, value)
        facts = found[row["metric"]].get(segment, SegmentFacts())
        sums = msgspec.json.decode(row["sums"], type=Population)
        which = "finished" if row["block"] == CLOSED else "everyone"
        found[row["metric"]][segment] = msgspec.structs.replace(facts, **{which: sums})
    return found


async def arms_of(connection: Connection, arms: Sequence[int]) -> list[int]:
    """The arms whose units are counted under these numbers, be they arms or segments of them."""
    segments = {row["id"]: row["arm"] for row in await connection.fetch(_ARMS_OF, arms)}
    return sorted({segments.get(arm, arm) for arm in arms})
