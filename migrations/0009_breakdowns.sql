-- Breakdowns: the units of an arm are counted by the values of recorded attributes, too. (The table
-- `segment` is of journals; a segment of units is a `unit_segment` here.)

-- What a run is broken down by: the attributes that it records, the first ones. A run that had units
-- before this stood is not broken down, for they are in no segment.
alter table run add column broken_down boolean not null default true;
update run set broken_down = enrolments = 0;
-- One that was taken in already, and had none, is taken in again: that knows its attributes.
update run r set analysed_revision = -1
from experiment x
where x.id = r.experiment and x.run = r.number and x.state in ('running', 'paused')
  and r.enrolments = 0 and r.analysed_revision > 0;
create table run_attribute (
    id int generated always as identity primary key,
    experiment bigint not null,
    run int not null,
    name text not null,
    unique (experiment, run, name),
    foreign key (experiment, run) references run (experiment, number)
);

-- The units with one value of an attribute: its JSON text. `other` are those with any value that has
-- no segment of its own. A value that is null without that is one of which an erasure left no unit.
create table unit_segment (
    id int generated always as identity primary key,
    attribute int not null references run_attribute (id),
    value text,
    other boolean not null default false,
    unique (attribute, value),
    check (not other or value is null)
);

-- The segments that a unit is in, by increasing number; who is in the same ones has one profile.
-- Profile 0 is that of a unit in none.
create table profile (
    id int generated always as identity primary key,
    segments int[] not null unique
);
alter table enrolment add column profile int not null default 0;

-- An arm's units in a segment. It has cells and sums as an arm has, so their numbers do not overlap.
create table segment_arm (
    id int primary key default nextval('arm_id_seq'),
    arm int not null references arm (id),
    segment int not null references unit_segment (id),
    units bigint not null default 0,
    unique (arm, segment)
);
create index on segment_arm (segment);
alter table cell drop constraint cell_arm_fkey;

-- Segment 0 are all units.
alter table metric_total add column segment int not null default 0;
alter table metric_total drop constraint metric_total_pkey;
alter table metric_total add primary key (metric, block, segment);
