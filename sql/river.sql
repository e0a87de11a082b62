-- What the runner may do with River's tables. The tables are River's, their migrations too.
-- control: ISO 27001 A.5.15, SOC 2 CC6.1 (least privilege)
-- reviewed by: DBA
--
-- Run as custody_owner after River's own migrations. Jobs carry ids and counts, no personal data. Not granted:
-- CREATE, TRUNCATE, REFERENCES, TRIGGER; river_notification, which River uses on SQLite only; and REINDEX, which
-- belongs to the owner: the runner switches River's reindexer off.
-- locks: none that wait. rewrite cost: none.

comment on schema river is 'The job queue, by River (riverqueue.com). Finished jobs are deleted after a day: what must be kept of a run stands in custody_data.job_runs.';

revoke all on schema river from public;
revoke all on all tables in schema river from public;
grant usage on schema river to custody_worker, custody_backup;
grant select, insert, update, delete on river.river_job, river.river_leader, river.river_queue to custody_worker;
grant select on river.river_migration to custody_worker;
grant usage on sequence river.river_job_id_seq to custody_worker;
grant execute on all functions in schema river to custody_worker;
grant select on all tables in schema river to custody_backup;
grant select on all sequences in schema river to custody_backup;
