-- Which columns may be written, and by whom: what the server fills in is nobody's to give. And which alone may be read.
begin;
set local search_path = tap, testing;
select no_plan();
create temp table may (name text, privilege text, columns text, roles text);
insert into may values
  ('user_profiles', 'INSERT', 'tenant_id identity_id full_name email phone organisation title address city region postal_code country attributes email_index phone_index', 'custody_worker'),
  ('user_profiles', 'UPDATE', 'full_name email phone organisation title address city region postal_code country attributes email_index phone_index', 'custody_worker'),
  ('user_preferences', 'INSERT', 'tenant_id identity_id preferences', 'custody_worker'),
  ('user_preferences', 'UPDATE', 'preferences', 'custody_worker'),
  ('consent_records', 'INSERT', 'tenant_id consent_id identity_id purpose granted policy_version legal_basis evidence occurred_at', 'custody_worker'),
  ('conversations', 'INSERT', 'tenant_id identity_id conversation_id title messages message_count started_at last_message_at', 'custody_worker'),
  ('conversations', 'UPDATE', 'title messages message_count started_at last_message_at', 'custody_worker'),
  ('audit_logs', 'INSERT', 'tenant_id log_entry_id occurred_at actor_id subject_id action resource_type resource_id result purpose metadata', 'custody_privacy custody_readwrite custody_worker'),
  ('audit_logs', 'INSERT', 'personal import_id', 'custody_worker'),
  ('audit_entry_ids', 'INSERT', 'tenant_id log_entry_id occurred_at content', 'custody_worker'),
  ('audit_actions', 'INSERT', 'tenant_id action metadata_keys description', 'custody_admin custody_readwrite custody_worker'),
  ('audit_actions', 'UPDATE', 'metadata_keys description', 'custody_admin custody_readwrite custody_worker'),
  ('audit_resource_types', 'INSERT', 'tenant_id resource_type description', 'custody_admin custody_readwrite custody_worker'),
  ('audit_resource_types', 'UPDATE', 'description', 'custody_admin custody_readwrite custody_worker'),
  ('archive_segments', 'SELECT', 'tenant_id day part leaves events opened_at object_key manifest_key plain_bytes compressed_bytes stored_bytes plain_sha256 compressed_sha256 stored_sha256 manifest_sha256 root_hash first_occurred_at last_occurred_at recipients retain_until recorded_at superseded_at legal_hold expired_at objects_deleted_at',
    'custody_auditor custody_privacy custody_worker'),
  ('access_events', 'SELECT', 'tenant_id recorded_at batch line part occurred_at kind class object_name login actor_id actor_pseudonym session_id event_line event_xid rolled_back', 'custody_auditor custody_privacy'),
  ('imports', 'INSERT', 'tenant_id import_id run_id table_name file_sha256 rows_read rows_added rows_changed rows_rejected', 'custody_worker');
-- custody_pgaudit, where a DBA has set it up, is nobody's role: it marks columns for the log.
select set_eq($$
  select c.relname::text collate "default", x.privilege_type, a.attname::text collate "default", pg_get_userbyid(x.grantee)::text collate "default"
  from pg_class c join pg_attribute a on a.attrelid = c.oid cross join aclexplode(a.attacl) x
  where c.relnamespace = 'custody_data'::regnamespace and pg_get_userbyid(x.grantee) <> 'custody_pgaudit'$$,
  $$select m.name, m.privilege, c, r from may m, unnest(string_to_array(m.columns, ' ')) c, unnest(string_to_array(m.roles, ' ')) r$$, 'column grants are those of the page');
select set_eq($$
  select c.oid::regclass::text, pg_get_userbyid(x.grantee)::text, x.privilege_type
  from pg_class c cross join aclexplode(c.relacl) x
  where c.relnamespace in ('custody'::regnamespace, 'custody_check'::regnamespace) and x.grantee <> c.relowner$$,
  $$select v, 'custody_' || r as role, 'SELECT' as privilege
  from (values ('custody.audit_entries', 'worker'), ('custody.consents', 'privacy readonly readwrite worker'), ('custody.conversation_summaries', 'privacy readonly readwrite worker'),
    ('custody.holds', 'auditor privacy worker'), ('custody.retention_policies', 'admin auditor privacy readonly readwrite worker'), ('custody.retention_changes', 'admin auditor privacy worker'), ('custody.retention_due', 'auditor privacy worker'),
    ('custody.requests', 'auditor privacy worker'), ('custody.archive_segments', 'auditor privacy worker'), ('custody.archive_restores', 'auditor privacy worker'), ('custody.restored_events', 'auditor privacy worker'), ('custody.job_runs', 'auditor privacy worker'), ('custody.ledger_checkpoints', 'auditor privacy worker'),
    ('custody.log_reconciliation', 'auditor privacy worker'), ('custody.alerts', 'auditor privacy worker'), ('custody.detection_rules', 'admin auditor worker'),
    ('custody_check.personal_columns', 'admin auditor privacy worker'), ('custody.logins', 'admin auditor privacy worker'), ('custody_check.findings', 'admin auditor privacy worker'),
    ('custody_check.log_findings', 'admin auditor privacy worker'), ('custody_check.logins', 'admin auditor privacy worker')) p (v, rs), unnest(string_to_array(rs, ' ')) r$$,
  'views are read by those of the page, and written by nobody');
select * from finish();
rollback;
