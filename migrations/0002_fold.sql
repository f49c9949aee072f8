-- Folding by columns: per-unit values in chunks, cells by numbers, totals over epochs. All that is
-- dropped here is made again from the raw events, which stay: every segment is folded once more.
-- Blocks that were closed stay closed, so that no evidence counts twice.
drop table unit_value;
drop table cell;
drop table enrolled;
drop table enrolment;
update segment set folded_at = null;

-- Nothing is decided before all is folded again, and what is folded again is not late.
alter table fold_position add column refolding boolean not null default false;
update fold_position
set watermark = '-infinity', refolding = exists (select from segment);

-- `enrolments` is how many ordinals were given to units; `unit_sums` are the units by variant, over
-- all epochs, against what their propensities made expect: exact sums, as analysis writes them.
alter table run add column enrolments bigint not null default 0;
alter table run add column unit_sums json;

-- A unit's values of a metric are kept for ordinals below `covered`, for all where it is null: a
-- metric that comes later is filled in from there, while folding goes on.
alter table run_metric add column id int generated always as identity;
alter table run_metric add unique (id);
alter table run_metric add column covered bigint;
alter table run_metric drop column backfilled;

-- What a unit's value of a metric is made of: an aggregate of one event over a stretch of time
-- around its enrolment. Part 0 is the value, or the numerator of a ratio, whose denominator is part
-- 1; then come their covariates.
create table metric_part (
    metric int not null references run_metric (id),
    part int not null,
    experiment bigint not null,
    run int not null,
    event text not null,
    aggregate text not null,
    cap double precision,
    begins interval not null,
    ends interval not null,
    primary key (metric, part)
);
create index on metric_part (experiment, run, event);
insert into metric_part (metric, part, experiment, run, event, aggregate, cap, begins, ends)
select id, 0, experiment, run, event, aggregate, cap, interval '0', window_length from run_metric;
alter table run_metric drop column event;
alter table run_metric drop column aggregate;
alter table run_metric drop column cap;

-- A variant in one epoch, and the units that were enrolled in it.
create table arm (
    id int generated always as identity primary key,
    experiment bigint not null,
    run int not null,
    epoch int not null,
    variant text not null,
    units bigint not null default 0,
    several bigint not null default 0,
    unique (experiment, epoch, variant),
    foreign key (experiment, epoch) references epoch (experiment, number)
);

-- A unit's first exposure in a run. `ordinal` numbers the units of a run as they came in, so that
-- those of one time stand together; `several` says that it met another variant, too.
create table enrolment (
    experiment bigint not null,
    run int not null,
    ordinal bigint not null,
    project text not null,
    unit_type text not null,
    unit text collate "C" not null,
    arm int not null,
    at timestamptz not null,
    several boolean not null default false,
    primary key (unit, experiment, run),
    unique (experiment, run, ordinal)
);

-- What is known of the units with ordinals from 128 `chunk` on, 128 of them: for each number that
-- their parts are made of, 128 numbers one after another (see analysis/aggregates.py). A unit that
-- did nothing has zeros, and a chunk of those has no row.
create table unit_value (
    metric int not null references run_metric (id),
    chunk int not null,
    state double precision[] not null,
    primary key (metric, chunk)
) with (fillfactor = 50);
alter table unit_value alter column state set storage external;

-- Mergeable moments: count, means and `m2`, the packed upper triangle of the centred
-- cross-products. Block 0 holds the closed blocks of an arm, block -1 all of its units.
create table cell (
    metric int not null references run_metric (id),
    block bigint not null,
    arm int not null references arm (id),
    n bigint not null,
    mean double precision[] not null,
    m2 double precision[] not null,
    primary key (metric, block, arm)
) with (fillfactor = 70);

-- For quantiles: how many units of a cell have a value in a bucket (see analysis/histogram.py).
create table histogram (
    metric int not null references run_metric (id),
    block bigint not null,
    arm int not null references arm (id),
    bucket int not null,
    n bigint not null,
    primary key (metric, block, arm, bucket)
) with (fillfactor = 70);

-- Sums over epochs that estimates are made of, exact, so that they are the sums of what stands in
-- the cells however often that changed (see analysis/totals.py). Block 0 and -1 as for cells.
create table metric_total (
    metric int not null references run_metric (id),
    block bigint not null,
    sums json not null,
    primary key (metric, block)
) with (fillfactor = 50);

-- Old ids are purged by their time, a range of pages at once.
drop index outcome_id_received_at_idx;
create index on outcome_id using brin (received_at);

-- A unit's raw events are found by a hash: far smaller than an index of the text, and as quick.
drop index outcome_project_unit_type_unit_event_idx;
create index on outcome (hashtextextended(unit, 0));
