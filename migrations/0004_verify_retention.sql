-- Raw events that are older than an operator wants to keep are dropped a day at a time. What they
-- came to stays as an opening balance: `verify` starts from it, and so does folding wherever it
-- makes a unit's state anew (see analysis/retention.py).

-- The first of a unit's exposures that were dropped, and whether they were of several variants.
alter table enrolment add column opening_arm int;
alter table enrolment add column opening_at timestamptz;
alter table enrolment add column opening_several boolean;

-- What the dropped outcomes alone make of the units, in the layout of `state`.
alter table unit_value add column opening double precision[];
alter table unit_value alter column opening set storage external;

-- Raw events that were received before `kept_from` are dropped, or about to be.
alter table fold_position add column kept_from timestamptz not null default '-infinity';

-- A metric that joined a run whose first raw events were dropped by then counts the units that were
-- enrolled at this time or later; null where it counts all of them.
alter table run_metric add column since timestamptz;

-- Between which times a segment's records were received, the ends included, so that folding looks
-- into the partitions of these days only; null where the shipper did not say.
alter table segment add column received_from timestamptz;
alter table segment add column received_to timestamptz;
create index on segment (shipped_at);

-- A partition is made by itself and then attached, which waits for nobody who reads or writes the
-- parent; to make it in place would wait for every long query, with all writers queued behind.
create or replace function ensure_day(day date) returns void language plpgsql as $$
declare
    parent text;
    child text;
begin
    foreach parent in array array['exposure', 'outcome'] loop
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        if to_regclass(child) is null then
            -- Two that see a new day at once would both make it; the number only has to be ours.
            perform pg_advisory_xact_lock(8391739299316724738);
            if to_regclass(child) is null then
                -- Rows come once and are read once: to vacuum what was only inserted, again and
                -- again while the day grows, would cost more than it ever saves.
                execute format(
                    'create table %I (like %I including all) with ('
                    'autovacuum_vacuum_insert_threshold = -1, '
                    'autovacuum_analyze_scale_factor = 0.5)',
                    child, parent
                );
                execute format(
                    'alter table %I attach partition %I for values from (%L) to (%L)',
                    parent, child,
                    day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC'
                );
            end if;
        end if;
    end loop;
end
$$;

-- Drop the partitions of a day whose rows were all moved into opening balances. What came in since
-- belongs to segments that are not folded: then nothing is dropped, and the answer is false.
create function drop_day(day date) returns boolean language plpgsql as $$
declare
    parent text;
    child text;
    waiting boolean;
begin
    lock table only exposure, only outcome in access exclusive mode;
    foreach parent in array array['exposure', 'outcome'] loop
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        execute format(
            'select exists (
                select from segment s join %I x on x.segment = s.id where s.folded_at is null
            )', child
        ) into waiting;
        if waiting then
            return false;
        end if;
    end loop;
    foreach parent in array array['exposure', 'outcome'] loop
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        execute format('drop table %I', child);
    end loop;
    return true;
end
$$;
