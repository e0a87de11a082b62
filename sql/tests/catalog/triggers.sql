-- The guards: which triggers stand on which table, in which order, with which arguments, all ENABLE ALWAYS.
begin;
set local search_path = tap, testing;
select no_plan();
create temp table guards (tbl text, trg text, says text);
insert into guards values
  ('user_profiles', 'a_reject_held', 'AFTER DELETE STATEMENT tg_reject_held(identity_id)'),
  ('user_profiles', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, identity_id, created_at)'),
  ('user_profiles', 'a_reject_truncate', 'BEFORE TRUNCATE STATEMENT tg_reject_mutation()'),
  ('user_profiles', 'a_require_live_identity', 'AFTER INSERT STATEMENT tg_require_live_identity()'),
  ('user_profiles', 'm_touch_row', 'BEFORE UPDATE ROW tg_touch_profile()'),
  ('user_profiles', 'z_audit_delete', 'AFTER DELETE STATEMENT tg_audit_people()'),
  ('user_profiles', 'z_audit_insert', 'AFTER INSERT STATEMENT tg_audit_people()'),
  ('user_profiles', 'z_audit_update', 'AFTER UPDATE STATEMENT tg_audit_people()'),
  ('consent_records', 'a_reject_early_delete', 'BEFORE DELETE ROW tg_reject_early_delete(consent)'),
  ('consent_records', 'a_reject_held', 'AFTER DELETE STATEMENT tg_reject_held(consent_id)'),
  ('consent_records', 'a_reject_mutation', 'BEFORE UPDATE TRUNCATE STATEMENT tg_reject_mutation()'),
  ('consent_records', 'a_require_live_identity', 'AFTER INSERT STATEMENT tg_require_live_identity()'),
  ('consent_records', 'z_audit_delete', 'AFTER DELETE STATEMENT tg_audit_consents()'),
  ('consent_records', 'z_audit_insert', 'AFTER INSERT STATEMENT tg_audit_consents()'),
  ('audit_entry_ids', 'a_reject_truncate', 'BEFORE TRUNCATE STATEMENT tg_reject_mutation()'),
  ('erased_user_ids', 'a_reject_truncate', 'BEFORE TRUNCATE STATEMENT tg_reject_mutation()'),
  ('identities', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, identity_id, kind, created_at, +erased_at)'),
  ('requests', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, request_id, kind, identity_id, reason, requested_by, received_at, xid, +closed_at)'),
  ('legal_holds', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, hold_id, scope, identity_id, table_name, row_id, event_day, reference, reason, placed_by, placed_at, +released_at)'),
  ('retention_policies', 'a_require_approval', 'BEFORE INSERT UPDATE ROW tg_require_approval()'),
  ('retention_changes', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, change_id, class, keep, keep_before, basis, proposed_by, proposed_login, proposed_at, expires_at, +decided_at)'),
  ('job_runs', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, run_id, job, river_job_id, started_at, +ended_at)'),
  ('archive_segments', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, day, part, leaves, events, opened_at, =object_key, =manifest_key, =plain_bytes, =compressed_bytes, =stored_bytes, =plain_sha256, =compressed_sha256, =stored_sha256, =manifest_sha256, =root_hash, =first_occurred_at, =last_occurred_at, =recipients, =retain_until, =recorded_at, =superseded_at, =expired_at, =objects_deleted_at)'),
  ('archive_restores', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, restore_id, range_from, range_to, of_tenant, identity_id, log_entry_id, action, reason, restored_by, begun_at, expires_at, +finished_at)'),
  ('restored_events', 'a_reject_mutation', 'BEFORE UPDATE TRUNCATE STATEMENT tg_reject_mutation()'),
  ('logins', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, role_name)'),
  ('logins', 'z_list_logins', 'AFTER INSERT UPDATE STATEMENT tg_list_logins()'),
  ('erasure_notices', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, notice_id, request_id, holder, created_at, +acknowledged_at)');
insert into guards select 'user_preferences', trg, replace(says, 'tg_touch_profile', 'tg_touch_preferences') from guards where tbl = 'user_profiles';
insert into guards select 'conversations', trg, replace(replace(replace(replace(says, 'tg_touch_profile', 'tg_touch_conversation'), 'tg_audit_people', 'tg_audit_conversations'), '(identity_id)', '(conversation_id)'), 'identity_id, created_at', 'identity_id, conversation_id, created_at') from guards where tbl = 'user_profiles';
insert into guards select t, 'a_reject_mutation', 'BEFORE DELETE UPDATE TRUNCATE STATEMENT tg_reject_mutation()'
from unnest(array['audit_logs', 'erasure_certificates', 'stored_certificates', 'imports', 'incarnations', 'partition_drops', 'ledger_checkpoints'] || array(select p.name from partitions p)
  || array['log_findings']) t;
insert into guards select t, 'a_reject_row_mutation', 'BEFORE DELETE UPDATE ROW tg_reject_mutation()'
from unnest(array['audit_logs', 'erasure_certificates', 'stored_certificates', 'imports', 'incarnations', 'partition_drops', 'ledger_checkpoints'] || array(select p.name from partitions p where p.parent = 'custody_data.audit_logs'::regclass)
  || array['log_findings']) t;
insert into guards select t, 'a_reject_delete', 'BEFORE DELETE TRUNCATE STATEMENT tg_reject_mutation()'
from unnest(array['tenants', 'identities', 'requests', 'legal_holds', 'holders', 'erasure_notices', 'job_runs', 'archive_restores', 'archive_heads', 'archive_segments', 'archive_restores', 'audit_actions', 'audit_resource_types', 'retention_policies', 'retention_changes', 'ledger_heads', 'logins']
  || array['access_events', 'log_sources', 'log_batches', 'log_sinks']
  || array['canaries', 'detection_rules', 'detection_heads']) t;
-- Months of access events have from their parent what holds for each row.
insert into guards select t, x.trg, x.says
from unnest(array['access_events'] || array(select p.name from partitions p where p.parent = 'custody_data.access_events'::regclass)) t cross join (values
  ('a_reject_row_delete', 'BEFORE DELETE ROW tg_reject_mutation()'),
  ('a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, recorded_at, batch, line, part, occurred_at, kind, class, action, object_name, login, role, actor_id, actor_pseudonym, purpose, identity_id, rows, client, application, session_id, vxid, xact_at, event_line, event_xid, state_code, =rolled_back)')) x (trg, says);
insert into guards values
  ('log_spool', 'a_reject_truncate', 'BEFORE TRUNCATE STATEMENT tg_reject_mutation()'),
  ('detection_networks', 'a_reject_truncate', 'BEFORE TRUNCATE STATEMENT tg_reject_mutation()'),
  ('actor_settings', 'a_reject_truncate', 'BEFORE TRUNCATE STATEMENT tg_reject_mutation()'),
  ('access_baselines', 'a_reject_truncate', 'BEFORE TRUNCATE STATEMENT tg_reject_mutation()'),
  ('alerts', 'a_reject_truncate', 'BEFORE TRUNCATE STATEMENT tg_reject_mutation()'),
  ('alerts', 'a_reject_early_delete', 'BEFORE DELETE ROW tg_reject_early_delete(alerts)'),
  ('alerts', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, alert_id, rule, severity, object_key, actor_id, login, first_at, opened_at, =acknowledged_at, =acknowledged_by, =closed_at, =closed_by, =close_reason, =sent_at)'),
  ('canaries', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, identity_id, planted_at)'),
  ('detection_rules', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, rule, function_name)'),
  ('log_sources', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, source, format)'),
  ('log_batches', 'a_reject_key_change', 'BEFORE UPDATE ROW tg_reject_column_change(tenant_id, number, source, file_name, file_from, file_to, object_key, manifest_key, sha256, compressed_sha256, manifest_sha256, previous_sha256, lines, bytes, stored_bytes, first_occurred_at, last_occurred_at, counts, recorded_at, +deleted_at)');
insert into guards select t, x.trg, x.says
from unnest(array['ledger_tiles', 'ledger_entries', 'ledger_stretches']) t cross join lateral
  (values ('a_keep_anchored', 'BEFORE DELETE UPDATE ROW ' || replace(t, 'ledger_', 'tg_keep_') || '()'), ('a_reject_truncate', 'BEFORE TRUNCATE STATEMENT tg_reject_mutation()')) x (trg, says);

select set_eq($$
  select c.relname::text, t.tgname::text, concat_ws(' ', case when t.tgtype & 2 > 0 then 'BEFORE' else 'AFTER' end, case when t.tgtype & 4 > 0 then 'INSERT' end, case when t.tgtype & 8 > 0 then 'DELETE' end,
      case when t.tgtype & 16 > 0 then 'UPDATE' end, case when t.tgtype & 32 > 0 then 'TRUNCATE' end, case when t.tgtype & 1 > 0 then 'ROW' else 'STATEMENT' end,
      format('%s(%s)', p.proname, array_to_string((string_to_array(encode(t.tgargs, 'escape'), '\000'))[1:t.tgnargs], ', ')))
  from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_proc p on p.oid = t.tgfoid
  where c.relnamespace = 'custody_data'::regnamespace and not t.tgisinternal and p.pronamespace = 'custody_data'::regnamespace$$,
  'select tbl, trg, says from guards', 'the guards are those of the page');
select is_empty($$select c.relname, t.tgname, t.tgenabled from pg_trigger t join pg_class c on c.oid = t.tgrelid where c.relnamespace = 'custody_data'::regnamespace and not t.tgisinternal and t.tgenabled <> 'A'$$,
  'all are ENABLE ALWAYS, so that session_replication_role does not pass them');
select is_empty($$select c.relname, t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid where c.relnamespace = 'custody_data'::regnamespace and not t.tgisinternal and t.tgqual is not null$$, 'none has a condition');
select is_empty($$select c.relname from pg_class c join testing.tables x on x.oid = c.oid where x.name not like 'schema\_%' and not exists (
  select from pg_trigger t where t.tgrelid = c.oid and t.tgfoid = 'custody_data.tg_reject_mutation()'::regprocedure and t.tgtype & 32 > 0)$$, 'no table can be truncated');
select is_empty($$select evtname from pg_event_trigger where evtowner = 'custody_owner'::regrole$$, 'no event trigger, which would need a superuser');
select * from finish();
rollback;
