-- Which role may call which function: as a page to review, as the catalog has it, and as it turns out when tried.
begin;
set local search_path = tap, testing;
select no_plan();

create temp table may (schema text, name text, roles text[]);
grant select on may to public;
insert into may
select s, n, case when r = 'everybody' then '{everybody}' else (select array_agg('custody_' || x order by 'custody_' || x) from unnest(string_to_array(r, ' ')) x) end
from (values
  -- everybody who may connect: policies depend on these
  ('custody', 'everybody', 'current_actor current_actor_id current_purpose current_subject current_subject_id current_tenant has_subject'),
  ('custody_data', 'everybody', 'caller_is caller_role checked_logins context_is_authentic context_stands writes_system'),
  ('custody', 'admin auditor privacy readonly readwrite worker', 'begin_context set_context'),
  -- applications write
  ('custody', 'readwrite', 'append_message delete_conversation delete_preferences delete_profile patch_preferences patch_profile put_preferences put_profile record_consent save_conversation update_conversation'),
  ('custody', 'readwrite worker', 'register_action register_resource_type set_unique_fields'),
  ('custody', 'privacy readwrite worker', 'record_audit_event record_audit_events export_subject'),
  -- those who read the tables of record
  ('custody', 'privacy readonly readwrite worker', 'consent_history current_consents find_subject get_conversation get_preferences get_profile has_consent list_conversations'),
  -- keys
  ('custody', 'auditor privacy readonly readwrite worker', 'current_kek unlock'),
  ('custody', 'readwrite worker', 'seal_value'),
  ('custody', 'privacy readonly readwrite worker', 'open_value'),
  ('custody', 'admin worker', 'register_kek'),
  ('custody', 'worker', 'claim_data_keys expire_data_keys mark_kek_destroyed reindex_profiles retire_kek rewrap_keys rotate_data_keys rotate_index_key'),
  ('custody', 'auditor privacy worker', 'list_keks list_key_ages list_sealed_values'),
  ('custody_data', 'auditor privacy readonly readwrite worker', 'is_unlocked'),
  -- what views and readers with the caller's rights open by, and imports seal by; none of it does anything while locked
  ('custody_data', 'privacy readonly readwrite worker', 'open_conversation open_evidence open_preferences open_profile open_text open_values profile_fields profile_object'),
  ('custody_data', 'privacy readonly readwrite worker', 'sealed_profile'),
  ('custody_data', 'worker', 'blind_indexes lines_are_ours same_values'),
  ('custody_data', 'worker', 'normalize_email normalize_phone open_personal refuse_taken seal_column seal_profile seal_values'),
  -- the trail
  ('custody', 'auditor privacy readwrite', 'audit_event audit_events'),
  ('custody', 'auditor privacy readwrite worker', 'audit_complete_from list_requests request_status'),
  ('custody', 'auditor privacy worker', 'audit_entry get_certificate retention_due_at verify_erasure'),
  -- questions about reading, detection, alerts
  ('custody', 'auditor privacy', 'access_by_actor access_summary access_to_person acknowledge_alert close_alert'),
  ('custody', 'privacy readwrite', 'access_of_subject'),
  ('custody', 'auditor worker', 'detect'),
  ('custody', 'auditor', 'plant_canary remove_canary'),
  ('custody', 'admin', 'set_actor_hours set_detection_networks set_detection_rule'),
  ('custody', 'worker', 'mark_alert_sent'),
  -- requests, erasure, holds, retention
  ('custody', 'privacy readwrite', 'cancel_request extend_request request_erasure request_export'),
  ('custody', 'privacy worker', 'acknowledge_erasure complete_export due_requests enforce_retention erase_subject export_items pending_notices plan_erasure replay_erasures search_residue'),
  ('custody', 'privacy', 'find_erased remember_erased place_hold register_holder release_hold'),
  ('custody', 'admin privacy', 'approve_retention_change reject_retention_change set_retention_policy'),
  ('custody', 'auditor privacy worker', 'unstored_certificates'),
  -- the runner
  ('custody', 'admin worker', 'ensure_audit_partitions list_tenants register_tenant'),
  ('custody', 'auditor worker', 'archive_due archive_totals audit_months ledger_head plan_expiry plan_months sealing_status verify_ledger'),
  ('custody', 'auditor privacy worker', 'add_restored_events begin_restore finish_restore find_segments ledger_root segment_leaves segment_may_hold'),
  ('custody', 'auditor privacy readwrite worker', 'consistency_proof inclusion_proof'),
  ('custody', 'admin', 'adopt_events register_login register_token_key require_tokens retire_login retire_token_key'),
  ('custody', 'admin worker', 'rotate_context_key'),
  ('custody', 'worker', 'add_access_events add_log_findings drop_access_months due_log_batches mark_log_batch_deleted mark_sink reconcile_logs record_log_batch sealed_entries trim_log_spool'),
  ('custody_data', 'worker', 'ensure_access_partitions'),
  ('custody', 'worker', 'drop_archived_partitions expire_segments held_segments mark_certificate_stored exports_of_erased finish_import finish_run import_audit_events import_consents import_conversations import_known import_preferences import_profiles mark_notice_sent open_incarnation '
    'open_segments prepare_import record_checkpoint record_segment record_segment_gone record_segment_hold refuse_import seal_audit_log start_run take_over_leaves'),
  -- helpers that functions with the caller's rights need
  ('custody_data', 'auditor privacy readonly readwrite worker', 'entry_time find_identity'),
  ('custody_data', 'admin auditor privacy readonly readwrite worker', 'check_user_id require_context'),
  ('custody_data', 'auditor privacy readwrite worker', 'require_whole_tenant'),
  ('custody_data', 'privacy readwrite worker', 'append_event new_entry_id require_actor require_partition'),
  ('custody_data', 'auditor privacy worker', 'keep_of'),
  ('custody_data', 'admin auditor privacy worker', 'baseline definitions leaking_settings live_logins rights'),
  ('custody_data', 'admin auditor privacy worker', 'audit_classes logins_here'),
  ('custody_data', 'worker', 'append_record_events changed_columns event_content begin_import claim_identities claim_staged consent_content_id import_result indexed_later leaf_hash sealed_later settle_refused settle_repeated')
) v (s, r, ns), unnest(string_to_array(ns, ' ')) n;

-- As the catalog has it. What is not on the page is the owner's alone.
select results_eq($$
  select f.schema::text collate "default", f.name::text collate "default",
    array_agg(coalesce(pg_get_userbyid(nullif(x.grantee, 0))::text, 'everybody') order by coalesce(pg_get_userbyid(nullif(x.grantee, 0))::text, 'everybody')) collate "default"
  from functions f join pg_proc p on p.oid = f.oid cross join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x
  where x.grantee <> p.proowner and x.privilege_type = 'EXECUTE'
  group by f.oid, f.schema, f.name order by 1, 2$$,
  'select m.schema, m.name, m.roles from may m order by 1, 2', 'the grants are those of the page');
select is((select count(*) from functions f join pg_proc p on p.oid = f.oid cross join aclexplode(p.proacl) x where x.is_grantable and x.grantee <> p.proowner), 0::bigint, 'nobody may pass them on');

-- As it turns out: every role, every function, without a context.
select is(attempt(g.name, call_of(f.oid)) = '42501', not (coalesce(m.roles, '{}') && array['everybody', g.name]), format('%s and %s', g.name, f.signature))
from functions f cross join groups g left join may m on m.schema = f.schema and m.name = f.name
where f.prorettype <> 'trigger'::regtype and not (f.schema = 'custody_data' and 'everybody' = any (coalesce(m.roles, '{}')))
order by f.name, g.name;
select isnt(attempt(g.name, call_of(f.oid)), '42501', format('%s and %s', g.name, f.signature))
from functions f cross join groups g join may m on m.schema = f.schema and m.name = f.name and m.schema = 'custody_data' and m.roles = '{everybody}';
-- A login has what its group has, and nothing beside.
select is((select array_agg(f.signature order by f.oid) from functions f where has_function_privilege(l.name, f.oid, 'execute')),
  (select array_agg(f.signature order by f.oid) from functions f where exists (select from unnest(l.groups) g where has_function_privilege(g, f.oid, 'execute'))), format('%s has what its groups have', l.name))
from (values ('custody_reports', '{custody_readonly}'::text[]), ('custody_app', '{custody_readwrite}'), ('custody_runner', '{custody_worker,custody_privacy}'), ('custody_dpo', '{custody_privacy}'),
  ('custody_audit', '{custody_auditor}'), ('custody_dump', '{custody_backup}')) l (name, groups);
select * from finish();
rollback;
