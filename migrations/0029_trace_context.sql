-- The W3C trace context of what led to a delivery, passed on to its receiver: null where nobody
-- traces. Nullable and without a default, so the table is not rewritten, and the release before
-- goes on writing rows without them.
alter table delivery
    add column traceparent text,
    add column tracestate text;
