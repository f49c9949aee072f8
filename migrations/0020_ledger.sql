-- What a decision stood on besides its evidence: the watermark of the moments, how far each metric's
-- blocks were closed, and what the guard had spent of its alpha. Null for what a hand did.
alter table decision add column basis jsonb;
-- SHA-256 over the row in its canonical form; null in rows of older releases.
alter table decision add column seal text;

-- How the allocation follows from the one before; null in epochs of older releases.
alter table epoch add column move jsonb;

-- One kind or one rule of a long ledger, without going through all of it.
create index on decision (experiment, kind, id);
create index on decision (experiment, rule, id);
-- Pages without what only holds.
create index on decision (experiment, id) where kind <> 'hold';
