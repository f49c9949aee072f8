-- Where the ramp of a run stands (experiments/ramp.py): one row for each run that has one, changed in
-- the transaction of what changes it, so that a crash leaves it as it was before or after.
create table ramp (
    experiment bigint not null,
    run int not null,
    state json not null,
    primary key (experiment, run),
    foreign key (experiment, run) references run (experiment, number)
) with (fillfactor = 50);
