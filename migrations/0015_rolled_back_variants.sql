-- The variants of the current run that are rolled back: nothing gives them traffic until they are
-- resumed. An epoch pins them, for assignment reads it: a sticky unit does not keep such a variant.
alter table experiment add column rolled_back text[] not null default '{}';
alter table epoch add column rolled_back text[] not null default '{}';

-- The epoch that rolled a variant back last, so that resuming finds what it owned before.
create table variant_rollback (
    experiment bigint not null,
    run int not null,
    variant text not null,
    epoch int not null,
    primary key (experiment, run, variant),
    foreign key (experiment, epoch) references epoch (experiment, number)
);

-- Whether the guard has paused a run, so that resuming it opens a generation; and when it went on
-- after its last pause: what stood still then is no silence.
alter table run add column paused_by_guard boolean not null default false;
alter table run add column resumed_at timestamptz;

-- The generations of a run's guard after the first, each with alpha of its own: which epoch opened
-- it, when, by whom, and the decision.
create table guard_generation (
    experiment bigint not null,
    run int not null,
    number int not null check (number > 1),
    epoch int not null,
    at timestamptz not null,
    actor text not null,
    reason text not null,
    decision bigint references decision (id),
    -- Whether the ledger has its rows.
    taken_in boolean not null default false,
    primary key (experiment, run, number),
    foreign key (experiment, run) references run (experiment, number),
    foreign key (experiment, epoch) references epoch (experiment, number)
);

-- What was done on the evidence of a row; null while nothing was.
alter table guard_ledger add column acted text;
create index on guard_ledger (experiment, run, generation);

-- What the health checks of a run have found and acted on, until it clears.
create table health_finding (
    experiment bigint not null,
    run int not null,
    name text not null,
    action text not null,
    since timestamptz not null,
    primary key (experiment, run, name),
    foreign key (experiment, run) references run (experiment, number)
);
