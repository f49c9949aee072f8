-- Layers, the holdout, overrides, stickiness, and what of a project is new since a version.

-- `version` is the project's version at which an experiment last changed in what a router reads of
-- it. It is given under the lock of the project's row, which is held to the commit: so who sees a
-- version of the project sees all that changed up to it.
alter table experiment add column version bigint not null default 0;
update experiment x set version = p.version from project p where p.key = x.project;
create index on experiment (project, version);

-- While routers are upgraded one by one, others still change experiments who know of no such version:
-- what they change is news as well, whatever it is.
create function experiment_changed() returns trigger language plpgsql as $$
begin
    update project set version = version + 1 where key = new.project
    returning version into new.version;
    return new;
end
$$;
create trigger experiment_changed before update on experiment
for each row when (new.version = old.version) execute function experiment_changed();

-- A layer is a slot space of its own: a salt, and units of one type. Who owns which of its slots
-- stands in the definitions of the experiments that run or pause. Layers are never deleted.
create table layer (
    id bigint generated always as identity primary key,
    project text not null references project (key),
    key text not null,
    description text not null,
    unit_type text not null,
    salt text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    actor text not null,
    unique (project, key)
);

-- Who always gets a variant: one unit, as the project stores units, or all with a value of an
-- attribute. `value` is JSON as it is compared, letter by letter. One that is ended stays; those of
-- an erased unit are deleted.
create table override (
    id bigint generated always as identity primary key,
    experiment bigint not null references experiment (id),
    variant text not null,
    unit_type text not null,
    unit text,
    attribute text,
    value text,
    created_at timestamptz not null,
    actor text not null,
    reason text not null,
    ended_at timestamptz,
    ended_by text,
    check ((unit is null) <> (attribute is null)),
    check ((attribute is null) = (value is null))
);
create unique index on override (experiment, unit) where ended_at is null and unit is not null;
create unique index on override (experiment, attribute, value)
    where ended_at is null and attribute is not null;
create index on override (experiment, id);
create index on override (unit) where unit is not null;

-- What is kept in Redis of a project's units is named by this. Numbers of experiments begin anew in
-- another database, which may use the same Redis; this is no other's. Where a database is put back
-- to an earlier time, another one leaves behind what was kept since.
alter table project add column sticky_id uuid not null default gen_random_uuid();
-- The runs of which something may be kept there; an erasure asks for them.
create index on epoch (experiment, run) where stickiness = 'sticky';
