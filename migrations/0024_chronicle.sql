-- What pages need of reports for lists and over time, so that none has to make hundreds of reports
-- (analysis/chronicle). It is kept by workers, and holds aggregates only.

-- The last report of an experiment at a glance. `run`, `state`, `revision` and `rolled_back` are what
-- it was made of: where they differ from the experiment's, a new one is due at once. `final` says that
-- the run is over and all its data have come.
create table glance (
    experiment bigint primary key references experiment (id),
    at timestamptz not null,
    run int not null,
    state text not null,
    revision int not null,
    rolled_back text[] not null,
    final boolean not null,
    content json not null
) with (fillfactor = 50);
create index on glance (experiment) where not final;

-- How a run is followed: so many points are kept, at least so far apart.
create table course (
    experiment bigint not null references experiment (id),
    run int not null,
    spacing interval not null,
    points int not null,
    last_at timestamptz not null,
    primary key (experiment, run)
) with (fillfactor = 50);

-- What the report said at a time of the comparisons on a metric. A row never changes; every other one
-- is deleted when there are too many. All metrics of a run have their points at the same times.
create table course_point (
    experiment bigint not null,
    run int not null,
    at timestamptz not null,
    metric text not null,
    figures json not null,
    primary key (experiment, run, at, metric),
    foreign key (experiment, run) references course (experiment, run)
);
