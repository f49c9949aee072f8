-- Caps at a quantile of the data. Each is resolved once, pooled over the variants, when enough units
-- have finished, and is a number from then on. `version` is that of the metric without a cap, by
-- whose values it is found; `tried_at` says how many finished units there were when it was last
-- tried, and there were too few with a value.
create table quantile_cap (
    experiment bigint not null,
    run int not null,
    metric text not null,
    version text not null,
    quantile double precision not null,
    cap double precision,
    units bigint,
    resolved_at timestamptz,
    tried_at bigint not null default 0,
    primary key (experiment, run, metric, version, quantile),
    foreign key (experiment, run) references run (experiment, number)
);
create index on quantile_cap (experiment, run) where cap is null;
