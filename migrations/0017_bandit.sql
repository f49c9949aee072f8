-- What closed blocks taught a bandit that discounts older units: of the metric that it follows,
-- stepped once for each block (analysis/inference/discounted.py).
create table discounted_evidence (
    metric int primary key references run_metric (id),
    state json not null
) with (fillfactor = 50);

-- The variant that the stop rule of a run advised to ship last: advice is not repeated.
alter table run add column advised text;
