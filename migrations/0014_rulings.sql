-- Every decision names the rule that made it, and why by a code that does not change with numbers.
-- What a hand did is of the rule `manual`.
alter table decision add column rule text not null default 'manual';
alter table decision add column code text not null default '';
update decision set rule = 'guard', code = 'harm' where kind = 'rollback' and term is not null;
update decision set rule = 'bandit', code = 'better' where kind = 'reallocate' and term is not null;

-- What each rule said last, so that a rule that goes on holding for the same reason writes nothing.
create table standing_ruling (
    experiment bigint not null,
    run int not null,
    rule text not null,
    code text not null,
    at timestamptz not null,
    primary key (experiment, run, rule),
    foreign key (experiment, run) references run (experiment, number)
);

-- When the bandit last looked: a new leader keeps the pace of the old one.
alter table run add column considered_at timestamptz;
