-- Reports as they were when somebody took a snapshot of them. An id has 128 random bits, so that a
-- link cannot be guessed. Actor and name are kept as they were, for a key may be revoked.
create table report_snapshot (
    id text primary key check (id ~ '^[0-9a-f]{32}$'),
    number bigint generated always as identity unique,
    project text not null references project (key),
    experiment bigint not null references experiment (id),
    run int not null,
    epoch int not null,
    state text not null,
    conclusion text not null,
    data_until timestamptz,
    taken_at timestamptz not null,
    actor text not null,
    taken_by text not null,
    note text not null
);
create index on report_snapshot (experiment, number);
create index on report_snapshot (project, taken_at);

-- What a snapshot is: the bytes that are served, by gzip, and the SHA-256 and number of those bytes.
create table report_snapshot_file (
    snapshot text not null references report_snapshot (id),
    format text not null check (format in ('json', 'html', 'markdown', 'csv')),
    digest bytea not null check (length(digest) = 32),
    size int not null,
    packed bytea not null,
    primary key (snapshot, format)
);
alter table report_snapshot_file alter column packed set storage external;

create function refuse_change_of_snapshot() returns trigger language plpgsql as $$
begin
    raise exception 'a snapshot of a report never changes';
end
$$;
create trigger never_changes before update or delete or truncate on report_snapshot
    for each statement execute function refuse_change_of_snapshot();
create trigger never_changes before update or delete or truncate on report_snapshot_file
    for each statement execute function refuse_change_of_snapshot();

-- What the list of experiments is searched and filtered by, taken out of the definition once when it
-- is written, so that a search reads no definitions.
alter table experiment
    add column name text generated always as (coalesce(definition ->> 'name', '')) stored,
    add column owner text generated always as (coalesce(definition ->> 'owner', '')) stored,
    add column tags jsonb
        generated always as (coalesce((definition -> 'tags')::jsonb, '[]'::jsonb)) stored,
    add column words text generated always as (
        lower(
            key || ' ' || coalesce(definition ->> 'name', '')
            || ' ' || coalesce(definition ->> 'owner', '')
            || ' ' || coalesce(definition ->> 'tags', '')
            || ' ' || coalesce(definition ->> 'hypothesis', '')
        )
    ) stored;
