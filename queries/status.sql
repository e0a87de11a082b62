-- name: LastSegments :many
-- The last segment that was recorded, if there is one.
select s.day, s.part, s.recorded_at
from custody_data.archive_segments s
where s.recorded_at is not null
order by s.day desc, s.part desc
limit 1;

-- name: NoticeState :one
select
  count(*) filter (where n.sent_at is null)::bigint as unsent,
  count(*) filter (where n.sent_at is not null)::bigint as unacknowledged
from custody_data.erasure_notices n
where n.acknowledged_at is null;

-- name: SegmentState :one
select
  count(*) filter (where s.recorded_at is null and s.superseded_at is null)::bigint as open,
  count(*) filter (where s.recorded_at is not null)::bigint as recorded
from custody_data.archive_segments s;
