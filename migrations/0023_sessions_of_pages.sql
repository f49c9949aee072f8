-- Who is signed in to the pages: a session is of a key, and ends with it. Of its token only the
-- SHA-256 is kept.
create table page_session (
    token_hash bytea primary key,
    key_id text not null references api_key (id),
    created_at timestamptz not null,
    expires_at timestamptz not null
);
create index on page_session (expires_at);
