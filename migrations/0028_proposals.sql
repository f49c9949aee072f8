-- Writes that wait for a second pair of eyes. `experiment` is a key, for the holdout may be proposed
-- before it is there; null where the project's own settings are to change. Bodies are kept as they
-- were sent, and are carried out as if they were sent again; none names a unit.
create table proposal (
    id bigint generated always as identity primary key,
    project text not null references project (key),
    experiment text,
    verb text not null,
    demand text not null check (demand in ('start', 'change', 'allocation', 'approvals')),
    body json not null,
    reason text not null,
    proposer text not null,
    -- What it was made to: where that has moved on by a hand, a guard or a ramp, it is stale.
    revision int not null,
    run int not null,
    epoch int not null,
    at timestamptz not null,
    expires_at timestamptz not null,
    state text not null default 'pending'
        check (state in ('pending', 'approved', 'rejected', 'withdrawn', 'expired', 'stale')),
    settled_at timestamptz,
    settled_by text,
    settled_reason text,
    check ((state = 'pending') = (settled_at is null))
);
create index on proposal (project, id);
create index on proposal (project, experiment, id) where state = 'pending';
