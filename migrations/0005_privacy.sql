-- Units can be forgotten, and their ids need not be stored as they are sent (experiments/units.py).

-- `units` says how a project's units are stored; it is fixed once `has_events`, which is set before
-- the first event goes in, or once an experiment was started. `unit_key` is the secret that their
-- hashes are made with; null until it is needed. `erasures` is how many there were: what a router
-- remembers of a project's exposures holds for one such number.
alter table project add column units text not null default 'plain'
    check (units in ('plain', 'hashed'));
alter table project add column unit_key bytea;
alter table project add column has_events boolean not null default false;
alter table project add column erasures bigint not null default 0;
update project set has_events = true
where key in (select project from exposure union select project from outcome);

-- Tombstones, and the audit of erasures: `unit_hash` is keyed, and nothing here names the unit.
-- What was received at or before `erased_at` does not come in any more.
create table erasure (
    id bigint generated always as identity primary key,
    project text not null references project (key),
    unit_type text not null,
    unit_hash bytea not null,
    erased_at timestamptz not null,
    actor text not null,
    reason text not null,
    counts json not null
);
create index on erasure (erased_at);

-- How many enrolments of a run were erased: their ordinals stay unused.
alter table run add column erased bigint not null default 0;

-- A unit's exposures are found as its outcomes are.
create index on exposure (hashtextextended(unit, 0));
