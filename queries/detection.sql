-- name: AcknowledgeAlert :exec
select custody.acknowledge_alert(@alert_id);

-- name: AlertToSend :one
select a.tenant_id, a.rule, a.severity, a.state, a.opened_at, a.first_at, a.last_at, a.count, a.events, a.sent_at
from custody_data.alerts a
where a.alert_id = @alert_id;

-- name: AlertsToSend :many
-- Alerts that the webhook has not taken, and that are still of use to it.
select a.alert_id
from custody_data.alerts a
where a.sent_at is null and a.closed_at is null and a.opened_at > @opened_after::timestamptz
order by a.opened_at, a.alert_id
limit @max_rows;

-- name: CloseAlert :exec
select custody.close_alert(@alert_id, @reason);

-- name: CountAlerts :many
select r.rule, r.severity, r.enabled, (count(a.alert_id) filter (where a.state = 'open'))::bigint as open, (count(a.alert_id) filter (where a.state = 'acknowledged'))::bigint as acknowledged
from custody_data.detection_rules r
left join custody_data.alerts a on a.rule = r.rule and a.closed_at is null
group by r.rule, r.severity, r.enabled
order by r.rule;

-- name: Detect :many
select d.rule::text as rule, d.severity::text as severity, d.outcome::text as outcome, d.alert_id, d.tenant_id::text as tenant_id, d.object_key::text as object_key,
  d.actor_id, d.login, d.events::bigint as events, d.first_at, d.last_at, d.detail
from custody.detect(sqlc.narg(from_at), sqlc.narg(to_at), @dry_run) d;

-- name: DetectedTo :one
select h.detected_to from custody_data.detection_heads h where h.tenant_id = 'system';

-- name: ListAlerts :many
select a.tenant_id, a.alert_id, a.rule, a.severity, a.state, a.object_key, a.actor_id, a.actor, a.login, a.first_at, a.last_at, a.count, a.events, a.detail,
  a.opened_at, a.acknowledged_at, a.closed_at, a.close_reason
from custody.alerts a
where a.closed_at is null or @closed::boolean
order by array_position(array['critical', 'high', 'medium', 'low'], a.severity::text), a.opened_at desc, a.alert_id
limit @max_rows;

-- name: MarkAlertSent :exec
select custody.mark_alert_sent(@alert_id, @status, @delivered);
