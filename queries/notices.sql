-- name: DueNotices :many
-- Notices to send: those never taken, and those taken before remind_before and not acknowledged yet.
select n.notice_id, n.sent_at
from custody_data.erasure_notices n
join custody_data.holders h on h.tenant_id = n.tenant_id and h.holder = n.holder
where n.acknowledged_at is null and h.endpoint is not null and h.retired_at is null
  and (n.sent_at is null or n.sent_at < @remind_before::timestamptz)
order by n.created_at, n.notice_id
limit @max_rows;

-- name: MarkNoticeSent :exec
select custody.mark_notice_sent(@notice_id, @status, @delivered);

-- name: Notice :one
select n.request_id, n.holder, n.user_id, n.created_at, n.sent_at, n.acknowledged_at, h.endpoint, h.retired_at
from custody_data.erasure_notices n
join custody_data.holders h on h.tenant_id = n.tenant_id and h.holder = n.holder
where n.notice_id = @notice_id;

-- name: OpenNotices :many
select n.request_id, n.holder, n.created_at, n.sent_at, n.attempts, n.last_status, h.retired_at, (h.endpoint is null)::boolean as by_hand
from custody_data.erasure_notices n
join custody_data.holders h on h.tenant_id = n.tenant_id and h.holder = n.holder
where n.acknowledged_at is null
order by n.created_at, n.notice_id
limit @max_rows;

-- name: RequestNotices :many
select n.notice_id, n.holder, n.created_at, n.sent_at, n.attempts, n.last_status, n.acknowledged_at, h.retired_at
from custody_data.erasure_notices n
join custody_data.holders h on h.tenant_id = n.tenant_id and h.holder = n.holder
where n.request_id = @request_id
order by n.holder;
