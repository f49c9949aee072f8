-- Two sessions that see a new day at once both want to make its partitions. The lock lets one after
-- the other; but within one statement the second may not yet see what the first has made, and finds
-- out when it makes it, too.
create or replace function ensure_day(day date) returns void language plpgsql as $$
declare
    parent text;
    child text;
begin
    foreach parent in array array['exposure', 'outcome'] loop
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        if to_regclass(child) is null then
            -- The number only has to be ours.
            perform pg_advisory_xact_lock(8391739299316724738);
            begin
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
            exception when duplicate_table then
                null; -- the other one has made it
            end;
        end if;
    end loop;
end
$$;
