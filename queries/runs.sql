-- name: FinishRun :exec
select custody.finish_run(@run_id, @status, @counts, @bytes, sqlc.narg(error));

-- name: LatestRuns :many
select distinct on (r.job) r.job, r.run_id, r.river_job_id, r.status, r.started_at, r.ended_at, r.counts, r.bytes, r.error
from custody_data.job_runs r
order by r.job, r.started_at desc;

-- name: Run :one
select r.job, r.run_id, r.river_job_id, r.status, r.started_at, r.ended_at, r.counts, r.bytes, r.error
from custody_data.job_runs r
where r.run_id = @run_id;

-- name: StartRun :one
select custody.start_run(@job, sqlc.narg(river_job_id), sqlc.narg(run_id))::uuid as run_id;

-- name: UnfinishedRuns :many
-- Runs of one River job that were started and never ended: their process died.
select r.run_id
from custody_data.job_runs r
where r.river_job_id = @river_job_id and r.job = @job and r.status = 'running'
  and r.started_at > pg_catalog.now() - interval '40 days';
