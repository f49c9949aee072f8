-- Guardrails of the scope `exposure`: what units do is counted by the blocks of the time at which they
-- do it, however long ago they were enrolled (analysis/folding/visits.py).

-- Of a metric of this scope `closed_through` is the last block of outcomes that is closed, and `since`
-- the time from which it counts them.
alter table run_metric add column scope text not null default 'enrolment'
    check (scope in ('enrolment', 'exposure'));
create index on run_metric (experiment, run) where scope = 'exposure';

-- What an enrolled unit met after its enrolment, where a run has a metric of this scope: of each unit
-- the last arm before the open blocks, and those that it met since.
create table meeting (
    experiment bigint not null,
    run int not null,
    ordinal bigint not null,
    at timestamptz not null,
    arm int not null references arm (id),
    primary key (experiment, run, ordinal, at, arm)
);

-- A log of open blocks, with a row for each fold and block; it is read and deleted when the block
-- closes. `pieces` are `units` records of 28 bytes, little-endian: a unit's ordinal (int8), its arm
-- (int4), and what its outcomes of this fold add to numerator and denominator (float8 each). Arm 0
-- says that what the log has of the unit up to there counts no more. `last_at` is the latest outcome
-- in it.
create table visit (
    metric int not null references run_metric (id),
    block bigint not null,
    number bigint generated always as identity,
    units int not null,
    last_at timestamptz not null,
    pieces bytea not null,
    primary key (metric, block, number)
);
alter table visit alter column pieces set storage external;
