-- name: ArchiveTotals :one
select t.segments, t.objects, t.events, t.plain_bytes, t.compressed_bytes, t.stored_bytes, t.open_segments, t.held_segments, t.expired_segments,
  coalesce(t.oldest_unarchived_day::text, '')::text as oldest_unarchived_day, coalesce(t.last_day::text, '')::text as last_day
from custody.archive_totals() t;

-- name: PlanMonths :many
select m.partition_name, m.range_from, m.range_to, m.state, m.rows, coalesce(m.rows_kept, 0)::bigint as rows_kept, coalesce(m.detail, '')::text as detail, m.bytes, m.held_by
from custody.plan_months(coalesce(sqlc.narg(as_of)::timestamptz, pg_catalog.now())) m;

-- name: PlanExpiry :many
select e.day::date as day, e.part, e.events, e.stored_bytes, e.retain_until::timestamptz as retain_until, e.state
from custody.plan_expiry(coalesce(sqlc.narg(as_of)::timestamptz, pg_catalog.now())) e;
