-- Which epoch was in force at a time is found by one step into an index, however many there were.
create index on epoch (experiment, at, number);
