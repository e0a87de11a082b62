-- Who may read what the migrator recorded: everybody who may connect has to know the version.
-- control: SOC 2 CC8.1, ISO 27001 A.8.32 (change management)
-- reviewed by: DBA
-- locks: none. rewrite cost: none.

grant select on custody_data.schema_migrations, custody_data.schema_steps to
  custody_readonly, custody_readwrite, custody_admin, custody_worker, custody_privacy, custody_auditor, custody_backup;
grant select on sequence custody_data.schema_steps_step_id_seq to custody_backup;
