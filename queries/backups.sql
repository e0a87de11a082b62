-- name: ArchiveBranch :one
-- branch is empty in the first cluster that the database has lived in, and the beginning of its incarnation's id in
-- those that it was restored into. Between recorded_until and opened_at somebody may have gone on with the
-- database that was backed up.
select
  (case when count(*) > 1 then (array_agg(left(i.incarnation_id::text, 8) order by i.opened_at desc))[1] else '' end)::text as branch,
  coalesce(max(i.opened_at), '1970-01-01')::timestamptz as opened_at,
  coalesce((select max(s.recorded_at) from custody_data.archive_segments s
    where s.recorded_at < (select max(n.opened_at) from custody_data.incarnations n)), '1970-01-01')::timestamptz as recorded_until
from custody_data.incarnations i;

-- name: NewIncarnation :one
-- Also in the cluster where the database that was backed up has been.
select (custody.open_incarnation('{"guess": "restored_from_backup"}')).incarnation_id::uuid as incarnation_id;

-- name: OpenIncarnation :one
select (custody.open_incarnation()).incarnation_id::uuid as incarnation_id;

-- name: ReplayErasures :one
select custody.replay_erasures(@certificates, sqlc.narg(release_reason))::jsonb as outcome;

-- name: UnfinishedRunsOf :many
-- Runs of a job that only one process does at a time, and that never ended: their process died.
select r.run_id from custody_data.job_runs r where r.job = @job and r.status = 'running';
