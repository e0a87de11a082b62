-- name: AccessByActor :many
select a.occurred_at, a.kind::text as kind, a.action, a.object_name, a.rows, a.purpose, a.actor, a.actor_id, a.actor_pseudonym, a.login, a.role, a.subject, a.subject_id, a.client, a.session_id::text as session_id, a.rolled_back
from custody.access_by_actor(@from_at, @to_at, sqlc.narg(user_id), sqlc.narg(identity_id), @max_rows) a;

-- name: AccessOfSubject :many
select a.occurred_at, a.object_name, a.purpose, a.by_whom::text as by_whom
from custody.access_of_subject(@from_at, @to_at, sqlc.narg(user_id), sqlc.narg(identity_id), @max_rows) a;

-- name: AccessSummary :many
select a.object_name::text as object_name, a.role::text as role, a.hour, a.reads::bigint as reads, a.rows::bigint as rows, a.people::bigint as people, a.actors::bigint as actors
from custody.access_summary(@from_at, @to_at) a;

-- name: AccessToPerson :many
select a.occurred_at, a.kind::text as kind, a.action, a.object_name, a.rows, a.purpose, a.actor, a.actor_id, a.actor_pseudonym, a.login, a.role, a.subject, a.subject_id, a.client, a.session_id::text as session_id, a.rolled_back
from custody.access_to_person(@from_at, @to_at, sqlc.narg(user_id), sqlc.narg(identity_id), @max_rows) a;
