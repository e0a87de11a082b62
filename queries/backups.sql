-- name: OpenIncarnation :one
select (custody.open_incarnation()).incarnation_id::uuid as incarnation_id;

-- name: ReplayErasures :one
select custody.replay_erasures(@certificates, sqlc.narg(release_reason))::jsonb as outcome;

-- name: UnfinishedRunsOf :many
-- Runs of a job that only one process does at a time, and that never ended: their process died.
select r.run_id from custody_data.job_runs r where r.job = @job and r.status = 'running';
