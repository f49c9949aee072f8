-- Keys that may do less than their role, and no oftener than told; who made them, and when they
-- were used last. What a project lets browsers do, and for which writes it asks a second pair of
-- eyes. All of it is optional: a release that knows nothing of it goes on.

-- What a key may do of what its role may: null for all of it.
alter table api_key add column scope text[] check (cardinality(scope) > 0);

-- Requests a second over the whole Turnout: null for the setting of the operator.
alter table api_key add column rate_limit int check (rate_limit > 0);

-- Null for keys that were made before this was kept.
alter table api_key add column created_by text;
alter table api_key add column last_used_at timestamptz;

-- Where browsers may call from with a key of this project: exact origins, or * for any.
alter table project add column origins text[] not null default '{}';

-- start, change, allocation: what a second editor approves before it is done.
alter table project add column approvals text[] not null default '{}'
    check (approvals <@ array['start', 'change', 'allocation']);
