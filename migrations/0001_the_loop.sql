-- Projects are tenants: nothing crosses them. `version` rises in the transaction of every change that
-- a router must learn of.
create table project (
    key text primary key,
    default_unit_type text not null default 'user',
    version bigint not null default 1,
    created_at timestamptz not null
);

-- A key is shown once; only the SHA-256 of its secret is kept.
create table api_key (
    id text primary key,
    project text not null references project (key),
    role text not null check (role in ('client', 'service', 'analyst', 'editor', 'admin')),
    secret_hash bytea not null,
    note text not null default '',
    created_at timestamptz not null,
    expires_at timestamptz,
    revoked_at timestamptz
);
create index on api_key (project);

-- Rows are never deleted, so that the key of an experiment is never used again.
create table experiment (
    id bigint generated always as identity primary key,
    project text not null references project (key),
    key text not null,
    state text not null check (
        state in ('draft', 'running', 'paused', 'concluded', 'rolled_back', 'archived')
    ),
    revision int not null,
    run int not null default 0,
    epoch int not null default 0,
    definition json not null,  -- json keeps a value as it was written: 1e30, the order of keys
    ship text,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    unique (project, key)
);

create table revision (
    experiment bigint not null references experiment (id),
    number int not null,
    definition json not null,  -- json keeps a value as it was written: 1e30, the order of keys
    at timestamptz not null,
    actor text not null,
    reason text not null,
    primary key (experiment, number)
);

-- How a write of the control plane was answered, so that a retry with the same Idempotency-Key is
-- answered alike and done once. `request` is a hash of door and body; the rest is null until then.
create table idempotency (
    project text not null references project (key),
    key text not null,
    request bytea not null,
    at timestamptz not null,
    status int,
    headers jsonb,
    body bytea,
    primary key (project, key)
);
create index on idempotency (at);

create table run (
    experiment bigint not null references experiment (id),
    number int not null,
    salt text not null,
    started_at timestamptz not null,
    ended_at timestamptz,
    -- The revision whose metrics and guardrails analysis has taken in.
    analysed_revision int not null default 0,
    primary key (experiment, number)
);

-- What the controller did, or a hand on the switch, with all that is needed to compute it again.
create table decision (
    id bigint generated always as identity primary key,
    experiment bigint not null references experiment (id),
    run int not null,
    kind text not null,
    epoch_before int not null,
    epoch_after int not null,
    term bigint,
    at timestamptz not null,
    actor text not null,
    reason text not null,
    evidence jsonb not null
);
create index on decision (experiment, id);

-- An epoch pins all that assignment reads, and is immutable. Its number rises over the whole life of
-- an experiment, so that (experiment, epoch) names it without the run.
create table epoch (
    experiment bigint not null,
    number int not null,
    run int not null,
    state text not null,
    salt text not null,
    allocation jsonb not null,
    -- The weights as they were stated, which whole slots can only come near to.
    weights jsonb not null,
    targeting jsonb,
    layer jsonb,
    holdout jsonb,
    stickiness text not null,
    ship text,
    -- Whether other slots are enrolled than in the epoch before: where the traffic changed.
    resized boolean not null,
    at timestamptz not null,
    actor text not null,
    reason text not null,
    decision bigint references decision (id),
    primary key (experiment, number),
    foreign key (experiment, run) references run (experiment, number)
);

create index on epoch (experiment, run, number) where resized;

-- The metrics of a run, as folding reads them. A version is a hash of what makes a unit's value, so
-- that a change of it starts new values; `closed_through` is the last enrolment block that is closed,
-- `late` counts the changes that came after closing.
create table run_metric (
    experiment bigint not null,
    run int not null,
    key text not null,
    version text not null,
    kind text not null,
    event text not null,
    aggregate text not null,
    cap double precision,
    window_length interval not null,
    block_seconds int not null check (block_seconds > 0),
    closed_through bigint not null,
    backfilled boolean not null default false,
    late bigint not null default 0,
    primary key (experiment, run, key, version),
    foreign key (experiment, run) references run (experiment, number)
);

-- A router's journal: `shipped_through` is the time up to which it has shipped its records.
create table journal (
    id uuid primary key,
    shipped_through timestamptz not null,
    heartbeat_at timestamptz not null
);

-- A segment is shipped in the transaction of its rows, so it goes in once; `id` is dense enough to
-- fold by, but segments are chosen by `folded_at is null`, never by an id above a mark.
create table segment (
    id bigint generated always as identity primary key,
    journal uuid not null,
    number bigint not null,
    records int not null,
    shipped_at timestamptz not null,
    folded_at timestamptz,
    unique (journal, number)
);
create index on segment (id) where folded_at is null;

create table exposure (
    segment bigint not null,
    id uuid not null,
    project text not null,
    experiment bigint not null,
    run int not null,
    epoch int not null,
    variant text not null,
    unit_type text not null,
    unit text not null,
    at timestamptz not null,
    received_at timestamptz not null,
    attributes jsonb
) partition by range (received_at);
create index on exposure (segment);

-- An outcome that names several units is a row for each, with the same (segment, ordinal).
create table outcome (
    segment bigint not null,
    ordinal int not null,
    id uuid,
    project text not null,
    event text not null,
    unit_type text not null,
    unit text not null,
    value double precision,
    at timestamptz not null,
    received_at timestamptz not null,
    attributes jsonb
) partition by range (received_at);
create index on outcome (segment);
create index on outcome (project, unit_type, unit, event);

-- Partitions cannot enforce a key without their day, so clients' ids have a table of their own.
create table outcome_id (
    id uuid primary key,
    received_at timestamptz not null
);
create index on outcome_id (received_at);

-- A record that cannot be stored is set aside with its reason and blocks nothing.
create table dead_letter (
    segment bigint not null,
    ordinal int not null,
    reason text not null,
    record bytea not null,
    primary key (segment, ordinal)
);

create function ensure_day(day date) returns void language plpgsql as $$
declare
    parent text;
    child text;
begin
    foreach parent in array array['exposure', 'outcome'] loop
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        if to_regclass(child) is null then
            execute format(
                'create table %I partition of %I for values from (%L) to (%L)',
                child, parent,
                day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC'
            );
        end if;
    end loop;
end
$$;

-- A unit's first exposure in a run. `several` says that it met another variant, too.
create table enrolment (
    id bigint generated always as identity primary key,
    experiment bigint not null,
    run int not null,
    project text not null,
    unit_type text not null,
    unit text not null,
    variant text not null,
    epoch int not null,
    at timestamptz not null,
    several boolean not null default false,
    unique (experiment, run, unit),
    foreign key (experiment, epoch) references epoch (experiment, number)
);
create index on enrolment (project, unit_type, unit);

create table enrolled (
    experiment bigint not null,
    run int not null,
    variant text not null,
    epoch int not null,
    units bigint not null,
    several bigint not null default 0,
    primary key (experiment, run, variant, epoch)
);

-- A unit's value of a metric; a unit without a row has 0.
create table unit_value (
    enrolment bigint not null references enrolment (id),
    metric text not null,
    version text not null,
    value double precision not null,
    primary key (enrolment, metric, version)
) with (fillfactor = 70);

-- Mergeable moments. Block 0 holds the closed blocks of an epoch, compacted. `m2` is the packed upper
-- triangle of the centred cross-products.
create table cell (
    experiment bigint not null,
    run int not null,
    metric text not null,
    version text not null,
    variant text not null,
    epoch int not null,
    block bigint not null,
    n bigint not null,
    mean double precision[] not null,
    m2 double precision[] not null,
    primary key (experiment, run, metric, version, block, variant, epoch)
);
create index on cell (experiment, run) where block > 0;

-- The guard's ledger of alpha: one row a (guardrail, variant) and generation. `alpha` is what it was
-- given, `opened_block` the last enrolment block that it does not see, `state` the evidence so far.
create table guard_ledger (
    experiment bigint not null,
    run int not null,
    generation int not null,
    metric text not null,
    version text not null,
    variant text not null,
    alpha double precision not null,
    opened_block bigint not null,
    opened_at timestamptz not null,
    closed_at timestamptz,
    rule jsonb not null,
    state jsonb not null,
    id bigint generated always as identity primary key,
    foreign key (experiment, run) references run (experiment, number)
);
create unique index on guard_ledger (experiment, run, metric, variant) where closed_at is null;

-- How far folding has come: the time up to which every live router's records are in the moments.
create table fold_position (
    only_row boolean primary key default true check (only_row),
    watermark timestamptz not null
);
insert into fold_position (watermark) values ('-infinity');

-- One leader among many processes, by the database's clock.
create table lease (
    name text primary key,
    holder text not null,
    term bigint not null,
    expires_at timestamptz not null
);
