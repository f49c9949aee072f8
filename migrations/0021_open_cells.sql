-- What a tick of the controller asks: which metrics have blocks that are still open, and since when,
-- and which experiments live, however many there were before.
create index on cell (metric, block) where block > 0;
create index on experiment (id) where state in ('running', 'paused');
