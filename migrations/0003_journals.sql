-- Since when a journal has been heard of without a pause. One that is silent is taken for dead only
-- once another was heard all the while: when Postgres itself was away, all were silent, and the
-- first to come back says nothing about the others.
alter table journal add column beating_since timestamptz not null default now();

create function note_pause() returns trigger language plpgsql as $$
begin
    if new.heartbeat_at - old.heartbeat_at > interval '15 seconds' then
        new.beating_since := new.heartbeat_at;
    end if;
    return new;
end
$$;

create trigger note_pause before update of heartbeat_at on journal
    for each row execute function note_pause();

-- A copy of a journal may bring a segment that was still being written: it has the first records of
-- it. `first` is the ordinal at which a row begins, so that the rest can follow.
alter table segment add column first int not null default 0;
alter table segment drop constraint segment_journal_number_key;
alter table segment add unique (journal, number, first);
