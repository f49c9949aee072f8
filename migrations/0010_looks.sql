-- The looks that a fixed or planned reading took: once, when enough units had finished, and never
-- again, whatever came later. `information` is the share of the planned units; `comparison` is all
-- that was read then.
create table look (
    experiment bigint not null,
    run int not null,
    metric text not null,
    version text not null,
    treatment text not null,
    number int not null,
    taken_at timestamptz not null,
    units bigint not null,
    information double precision not null,
    difference double precision,
    std_error double precision,
    statistic double precision,
    comparison json not null,
    primary key (experiment, run, metric, treatment, number),
    foreign key (experiment, run) references run (experiment, number)
);
