-- Who is told of a project's decisions. The secret that signs is derived from TURNOUT_SIGNING_KEY,
-- and the address is sealed under it: `key_id` says which key that was, `origin` is what is shown.
-- `types` null stands for all but holds, `experiments` null for all. A row is never deleted while a
-- decision may be about to refer to it: `deleted_at` says that it is no more.
create table webhook (
    id text primary key,
    project text not null references project (key),
    format text not null check (format in ('standard', 'slack')),
    origin text not null,
    address bytea not null,
    key_id text not null,
    types text[],
    experiments text[],
    note text not null,
    generation int not null default 1,
    rotated_at timestamptz,
    enabled boolean not null default true,
    why_disabled text not null default '',
    failing_since timestamptz,
    created_at timestamptz not null,
    actor text not null,
    deleted_at timestamptz
);
create index on webhook (project) where deleted_at is null;

-- A decision on its way to a webhook. What is sent is made of the decision and its epochs, which do
-- not change. No key refers to the webhook: a decision must not wait for who changes that.
create table delivery (
    id bigint generated always as identity primary key,
    webhook text not null,
    experiment bigint not null,
    decision bigint not null references decision (id),
    type text not null,
    offered_at timestamptz not null,
    attempts int not null default 0,
    tried_at timestamptz,
    status int,
    error text not null default '',
    finished_at timestamptz,
    delivered boolean not null default false
);
create unique index on delivery (webhook, decision);
create index on delivery (webhook, experiment, decision) where finished_at is null;
create index on delivery (offered_at) where finished_at is null;
create index on delivery (finished_at) where finished_at is not null;

-- The deliveries of an experiment to a webhook go one after another: its lane. `waiting` counts those
-- that are not finished, `due_at` is when the first of them is to be tried, and `claim` rises each
-- time that a process takes it on, which puts `due_at` off: who dies with it loses it by then.
create table delivery_lane (
    webhook text not null,
    experiment bigint not null,
    due_at timestamptz not null,
    waiting int not null check (waiting >= 0),
    claim bigint not null default 0,
    primary key (webhook, experiment)
);
create index on delivery_lane (due_at) where waiting > 0;
