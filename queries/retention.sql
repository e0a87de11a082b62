-- name: EnforceRetention :one
-- One batch; 0 says that nothing is left, of consents among the people given.
select custody.enforce_retention(@class, @batch, coalesce(sqlc.narg(as_of)::timestamptz, pg_catalog.now()), @after::uuid, sqlc.narg('to')::uuid)::bigint as rows;

-- name: PersonAfter :one
-- Whose is the consent record before which so many others are, by person, of the people after a person.
select c.identity_id
from custody_data.consent_records c
where c.tenant_id = custody.current_tenant() and c.identity_id > @after::uuid
order by c.identity_id
limit 1 offset @records::integer;

-- name: RetentionDue :many
select d.tenant_id, d.class, d.relation, d.keep, d.due_rows, d.held_rows, d.oldest_at, d.due_bytes, d.held_by
from custody.retention_due_at(coalesce(sqlc.narg(as_of)::timestamptz, pg_catalog.now())) d
order by d.class, d.relation;

-- name: SetRetentionPolicy :one
select c.change_id::uuid as change_id, coalesce(c.decision, '')::text as decision, c.keep::text as keep, c.keep_before::text as keep_before, c.expires_at::timestamptz as expires_at
from custody.set_retention_policy(@class, (@keep::text)::interval, @basis) c;

-- name: ApproveRetentionChange :one
select c.class::text as class, c.keep::text as keep, c.keep_before::text as keep_before
from custody.approve_retention_change(@change_id) c;

-- name: RejectRetentionChange :one
select c.class::text as class, c.decision::text as decision
from custody.reject_retention_change(@change_id, @reason) c;

-- name: RetentionPolicies :many
select p.class::text as class, p.keep::text as keep, p.basis, p.own::boolean as own, p.set_at
from custody.retention_policies p
order by p.class;

-- name: RetentionChanges :many
-- Newest first; of all that were decided too, or of those that wait.
select c.change_id, c.class::text as class, c.keep::text as keep, c.keep_before::text as keep_before, c.basis, c.status::text as status,
  c.proposed_by, c.proposed_login, c.proposed_at, c.expires_at, c.decided_by, c.decided_login, c.decided_at, c.reason
from custody.retention_changes c
where @decided::boolean or c.status = 'proposed'
order by c.proposed_at desc, c.change_id;
