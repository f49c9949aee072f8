-- How the data of a run came, and whether its units are split as their propensities say: counters
-- that folding brings up to date, one row for each run (analysis/inference/health.py).
create table run_health (
    experiment bigint not null,
    run int not null,
    health json not null,
    primary key (experiment, run),
    foreign key (experiment, run) references run (experiment, number)
) with (fillfactor = 50);

-- The runs that outcomes may still count for, however many there were before.
create index on run (experiment, number) where ended_at is null;
