-- Who may touch which table. What is not granted here is reached through functions or not at all.
-- control: HIPAA 164.308(a)(4), 164.312(a)(1); ISO 27001 A.5.15, A.8.2; SOC 2 CC6.3; GDPR Art. 25(2)
-- reviewed by: DBA, security
--
-- Grants come first: nobody but the owner has UPDATE, DELETE or TRUNCATE on what is append-only. The guards
-- of the next file stand behind them. No grant on any partition but custody_backup's SELECT. The audit trail
-- is read through functions, because reading it is itself an event.
-- locks: none that matter. rewrite cost: none.

-- +goose Up
grant select on
  custody_data.user_profiles, custody_data.user_preferences, custody_data.consent_records, custody_data.conversations
  to custody_readonly, custody_readwrite, custody_worker, custody_privacy;
grant select on custody_data.tenants, custody_data.identities, custody_data.audit_actions, custody_data.audit_resource_types
  to custody_readonly, custody_readwrite, custody_worker, custody_privacy, custody_auditor;
grant select on custody_data.retention_policies to custody_readonly, custody_readwrite, custody_worker, custody_privacy, custody_auditor, custody_admin;

-- What applications write they write through functions, which seal it. The runner's imports bring sealed values.
grant insert (tenant_id, identity_id, full_name, email, phone, organisation, title, address, city, region, postal_code, country, attributes, email_index, phone_index),
  update (full_name, email, phone, organisation, title, address, city, region, postal_code, country, attributes, email_index, phone_index)
  on custody_data.user_profiles to custody_worker;
grant insert (tenant_id, identity_id, preferences), update (preferences)
  on custody_data.user_preferences to custody_worker;
grant insert (tenant_id, identity_id, conversation_id, title, messages, message_count, started_at, last_message_at),
  update (title, messages, message_count, started_at, last_message_at)
  on custody_data.conversations to custody_worker;
grant insert (tenant_id, consent_id, identity_id, purpose, granted, policy_version, legal_basis, evidence, occurred_at)
  on custody_data.consent_records to custody_worker;

-- Nobody gives xid, recorded_at or db_role; only the worker's imports give import_id.
grant insert (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, resource_id, result, purpose, metadata)
  on custody_data.audit_logs to custody_readwrite, custody_worker, custody_privacy;
grant insert (personal, import_id), select on custody_data.audit_logs to custody_worker;
grant insert (tenant_id, log_entry_id, occurred_at, content), select
  on custody_data.audit_entry_ids to custody_worker;

grant insert (tenant_id, action, metadata_keys, description), update (metadata_keys, description)
  on custody_data.audit_actions to custody_readwrite, custody_worker, custody_admin;
grant insert (tenant_id, resource_type, description), update (description)
  on custody_data.audit_resource_types to custody_readwrite, custody_worker, custody_admin;
grant select on custody_data.tenants, custody_data.audit_actions, custody_data.audit_resource_types to custody_admin;

grant select on custody_data.requests, custody_data.erasure_certificates, custody_data.stored_certificates, custody_data.holders, custody_data.legal_holds
  to custody_worker, custody_privacy, custody_auditor;
grant select on custody_data.erasure_notices to custody_worker, custody_privacy;
grant select on custody_data.job_runs, custody_data.imports, custody_data.archive_heads, custody_data.partition_drops, custody_data.incarnations
  to custody_worker, custody_privacy, custody_auditor;
-- Not people: of every tenant, whether somebody has events on a day.
grant select (tenant_id, day, part, leaves, events, opened_at, object_key, manifest_key, plain_bytes, compressed_bytes, stored_bytes, plain_sha256,
    compressed_sha256, stored_sha256, manifest_sha256, root_hash, first_occurred_at, last_occurred_at, recipients, retain_until, recorded_at,
    superseded_at, legal_hold, expired_at, objects_deleted_at)
  on custody_data.archive_segments to custody_worker, custody_privacy, custody_auditor;
grant insert (tenant_id, import_id, run_id, table_name, file_sha256, rows_read, rows_added, rows_changed, rows_rejected)
  on custody_data.imports to custody_worker;

-- +goose StatementBegin
do $$
declare
  v_table text;
begin
  for v_table in
    select c.relname from pg_catalog.pg_class c
    where c.relnamespace = 'custody_data'::regnamespace and c.relkind in ('r', 'p')
  loop
    execute pg_catalog.format('grant select on custody_data.%I to custody_backup', v_table);
  end loop;
end
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
do $$
begin
  revoke all on all tables in schema custody_data from
    custody_readonly, custody_readwrite, custody_worker, custody_privacy, custody_auditor, custody_admin, custody_backup;
end
$$;
-- +goose StatementEnd
