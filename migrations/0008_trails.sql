-- Sums over epochs have a form, that of the release that made them: where a later one sums more, it
-- makes them again from the cells (analysis/folding/totals.py).
alter table metric_total add column form int not null default 1;

-- What adaptive inference needs of the closed blocks of a metric, by treatment: stepped once for each
-- block (analysis/inference/trail.py). Blocks up to `since_block` had been closed before there were
-- trails, and are not in it; null where it has all of them.
create table metric_trail (
    metric int primary key references run_metric (id),
    since_block bigint,
    trails json not null
) with (fillfactor = 50);
insert into metric_trail (metric, since_block, trails)
select m.id, m.closed_through, '{}' from run_metric m
where m.kind <> 'quantile' and exists (select from cell c where c.metric = m.id and c.block = 0);
