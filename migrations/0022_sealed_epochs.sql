-- SHA-256 over what a decision did: the epoch's number, state, move and slots, and the decision that
-- it follows from. Null in epochs of older releases.
alter table epoch add column seal text;
