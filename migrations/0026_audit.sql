-- What was done to a project, by whom and when: entries that are neither changed nor removed, chained
-- by their hashes (experiments/audit). `number` counts from 1 in each project without a gap, in the
-- order of commits; `detail` is kept as the text that was hashed. `decision` names the decision that
-- an entry tells of; `detail` has it, too.
create table audit (
    project text not null,
    number bigint not null check (number > 0),
    at timestamptz not null check (isfinite(at)),
    kind text not null,
    action text not null,
    target text not null,
    actor text not null,
    request_id text not null,
    detail json not null,
    decision bigint,
    previous bytea not null,
    hash bytea not null,
    primary key (project, number)
);
create unique index on audit (decision) where decision is not null;
create index on audit (project, at, number);
create index on audit (project, kind, number);
create index on audit (project, actor, number);
create index on audit (project, action, number);
create index on audit (project, target, number);

-- Where the chain of a project ends. It tells a chain that was cut off from one that is whole.
create table audit_head (
    project text primary key,
    number bigint not null,
    hash bytea not null
) with (fillfactor = 25);

-- What a transaction has noted, until it commits. No other ever sees a row here. The transaction
-- leads the key, so that a seal finds its own rows among those that others left dead.
create table audit_entry (
    transaction xid8 not null default pg_current_xact_id(),
    id bigint generated always as identity,
    project text not null,
    at timestamptz not null check (isfinite(at)),
    kind text not null,
    action text not null,
    target text not null,
    actor text not null,
    request_id text not null,
    detail json not null,
    decision bigint,
    primary key (transaction, id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

create function audit_genesis(project text) returns bytea language sql immutable as $$
    select sha256(convert_to('turnout audit of ' || project, 'UTF8'))
$$;

-- SHA-256 over the fields as netstrings (their length in bytes, a colon, the bytes, a comma), which
-- can be read in one way only.
create function audit_hash(
    previous bytea, project text, number bigint, at timestamptz, kind text, action text, target text,
    actor text, request_id text, detail text
) returns bytea language sql stable as $$
    select sha256(convert_to(
        string_agg(octet_length(convert_to(field, 'UTF8')) || ':' || field || ',', '' order by place),
        'UTF8'
    ))
    from unnest(array[
        encode(previous, 'hex'), project, number::text,
        to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        kind, action, target, actor, request_id, detail
    ]) with ordinality as fields (field, place)
$$;

-- Runs at the commit, once for each entry; the first time it seals all that the transaction noted,
-- and then finds nothing. So the lock of a chain is held while the server commits, never while a
-- client thinks, and heads are locked in one order, whatever was noted first.
create function audit_seal() returns trigger language plpgsql as $$
declare
    entry audit_entry;
    head audit_head;
    sealed bytea;
begin
    -- Whatever the first has sealed is gone; to look for it by its key costs the same however many
    -- there were.
    perform from audit_entry where transaction = new.transaction and id = new.id;
    if not found then
        return null;
    end if;
    for entry in
        select * from audit_entry where transaction = pg_current_xact_id()
        order by project collate "C", id
    loop
        if head.project is distinct from entry.project then
            update audit_head set number = head.number, hash = head.hash
            where project = head.project;
            -- Who waits here reads, once it has the lock, what the one before has made of the row.
            select * into head from audit_head where project = entry.project for update;
            if not found then
                raise 'project % has no audit chain', entry.project
                    using errcode = 'data_corrupted', hint = 'run turnout audit verify';
            end if;
        end if;
        sealed := audit_hash(
            head.hash, entry.project, head.number + 1, entry.at, entry.kind, entry.action,
            entry.target, entry.actor, entry.request_id, entry.detail::text
        );
        insert into audit (
            project, number, at, kind, action, target, actor, request_id, detail, decision,
            previous, hash
        ) values (
            entry.project, head.number + 1, entry.at, entry.kind, entry.action, entry.target,
            entry.actor, entry.request_id, entry.detail, entry.decision, head.hash, sealed
        );
        head.number := head.number + 1;
        head.hash := sealed;
    end loop;
    -- Once for a chain: a row that one transaction changes n times is found in n steps.
    update audit_head set number = head.number, hash = head.hash where project = head.project;
    delete from audit_entry where transaction = pg_current_xact_id();
    return null;
end
$$;

create function audit_refuse() returns trigger language plpgsql as $$
begin
    raise 'the table % is append-only, and written by Turnout alone', tg_table_name
        using errcode = 'insufficient_privilege';
end
$$;

-- A project's chain begins with the project.
create function audit_open() returns trigger language plpgsql as $$
begin
    insert into audit_head (project, number, hash) values (new.key, 0, audit_genesis(new.key));
    return null;
end
$$;

-- Every decision, the controller's and a hand's.
create function audit_decision() returns trigger language plpgsql as $$
begin
    insert into audit_entry (
        project, at, kind, action, target, actor, request_id, detail, decision
    )
    select project, new.at, 'decision', 'decision.' || new.kind, 'experiments/' || key, new.actor, '',
           jsonb_build_object(
               'decision', new.id, 'kind', new.kind, 'rule', new.rule, 'code', new.code,
               'run', new.run, 'epoch_before', new.epoch_before, 'epoch_after', new.epoch_after,
               'seal', new.seal
           )::text::json,
           new.id
    from experiment where id = new.experiment;
    return null;
end
$$;

-- Functions of triggers find the tables of this schema, whatever a session says.
do $$
declare
    name text;
begin
    foreach name in array array['audit_seal', 'audit_open', 'audit_decision'] loop
        execute format(
            'alter function %I() set search_path = %I, pg_temp', name, current_schema()
        );
    end loop;
end
$$;

-- In the order in which writers take them; for a moment.
lock table decision in share row exclusive mode;
lock table project in share row exclusive mode;

create constraint trigger seal after insert on audit_entry
    deferrable initially deferred for each row execute function audit_seal();
create trigger open_audit after insert on project
    for each row execute function audit_open();
create trigger note_decision after insert on decision
    for each row execute function audit_decision();

-- Only triggers write here: they stand at a depth of one.
create trigger append_only before insert on audit
    for each statement when (pg_trigger_depth() = 0) execute function audit_refuse();
create trigger unchanged before update or delete or truncate on audit
    for each statement execute function audit_refuse();
create trigger unchanged before update or truncate on audit_entry
    for each statement execute function audit_refuse();
create trigger append_only before delete on audit_entry
    for each statement when (pg_trigger_depth() = 0) execute function audit_refuse();

-- Projects that are there already begin now: decisions up to this number have no entry.
insert into audit_head (project, number, hash)
select key, 0, audit_genesis(key) from project;
insert into audit_entry (project, at, kind, action, target, actor, request_id, detail)
select key, now(), 'command', 'audit.begin', 'projects/' || key, 'system', '',
       jsonb_build_object('decisions_through', (select coalesce(max(id), 0) from decision))::text::json
from project;

create trigger append_only before insert or update or delete on audit_head
    for each statement when (pg_trigger_depth() = 0) execute function audit_refuse();
create trigger unchanged before truncate on audit_head
    for each statement execute function audit_refuse();
