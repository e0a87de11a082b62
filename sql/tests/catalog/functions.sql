-- Every function: a fixed search_path or a body that was bound when it was made, the owner, a comment; SECURITY
-- DEFINER only where the page says so.
begin;
set local search_path = tap, testing;
select no_plan();
select is((select p.prosqlbody is not null or coalesce(p.proconfig @> array['search_path=pg_catalog, pg_temp'], false) from pg_proc p where p.oid = f.oid), true, format('%s has a fixed search_path', f.signature)) from functions f;
select is((select pg_get_userbyid(p.proowner) from pg_proc p where p.oid = f.oid), 'custody_owner', format('%s belongs to custody_owner', f.signature)) from functions f;
select isnt(obj_description(f.oid, 'pg_proc'), null, format('%s has a comment', f.signature)) from functions f;
select is_empty($$select f.signature from functions f join pg_proc p on p.oid = f.oid cross join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x
  where f.prorettype = 'trigger'::regtype and x.grantee <> p.proowner$$, 'trigger functions are run by their triggers and called by nobody');
select is_empty($$select f.signature from functions f where f.prosecdef and not exists (select from pg_proc p where p.oid = f.oid and p.proconfig is not null)$$, 'no definer function without settings of its own');
select is_empty($$select p.oid::regprocedure from pg_proc p join pg_language l on l.oid = p.prolang where p.pronamespace::regnamespace::text like 'custody%' and l.lanname not in ('sql', 'plpgsql')$$, 'no other language than SQL and PL/pgSQL');
select is_empty($$select p.oid::regprocedure from pg_proc p where p.pronamespace::regnamespace::text in ('custody_keys', 'custody_check')$$, 'no functions beside those');
select set_eq('select f.schema || ''.'' || f.name from functions f where f.prosecdef', array[
  'custody.acknowledge_erasure', 'custody.approve_retention_change', 'custody.add_restored_events', 'custody.begin_restore', 'custody.finish_restore', 'custody.archive_due', 'custody.archive_totals', 'custody.plan_expiry', 'custody.plan_months', 'custody.audit_complete_from', 'custody.audit_event', 'custody.audit_events', 'custody.audit_months', 'custody.cancel_request', 'custody.complete_export',
  'custody.reconcile_logs', 'custody.add_access_events', 'custody.add_log_findings', 'custody.mark_log_batch_deleted', 'custody.mark_sink', 'custody.record_log_batch', 'custody.trim_log_spool',
  'custody.drop_access_months', 'custody_data.ensure_access_partitions',
  'custody.drop_archived_partitions', 'custody.expire_segments', 'custody.find_segments', 'custody.held_segments', 'custody.record_segment_gone', 'custody.record_segment_hold', 'custody.segment_leaves', 'custody.due_requests', 'custody.enforce_retention', 'custody.ensure_audit_partitions', 'custody.erase_subject', 'custody.export_items', 'custody.export_subject',
  'custody.extend_request', 'custody.finish_run', 'custody.get_certificate', 'custody.list_requests', 'custody.list_tenants', 'custody.mark_notice_sent', 'custody.open_incarnation', 'custody.open_segments', 'custody.place_hold',
  'custody.plan_erasure', 'custody.record_audit_event', 'custody.record_audit_event', 'custody.record_segment', 'custody.register_holder', 'custody.register_tenant', 'custody.reject_retention_change', 'custody.release_hold', 'custody.replay_erasures', 'custody.request_erasure', 'custody.request_export',
  'custody.request_status', 'custody.retention_due_at', 'custody.search_residue', 'custody.set_context', 'custody.set_retention_policy', 'custody.start_run', 'custody.verify_erasure',
  'custody.put_profile', 'custody.patch_profile', 'custody.delete_profile', 'custody.put_preferences', 'custody.patch_preferences', 'custody.delete_preferences', 'custody.record_consent',
  'custody.save_conversation', 'custody.append_message', 'custody.update_conversation', 'custody.delete_conversation', 'custody.set_unique_fields',
  'custody_data.lines_are_ours', 'custody_data.same_values', 'custody.find_subject', 'custody.access_by_actor', 'custody.access_of_subject', 'custody.access_summary', 'custody.access_to_person', 'custody.acknowledge_alert', 'custody.close_alert', 'custody.detect', 'custody.mark_alert_sent',
  'custody.plant_canary', 'custody.remove_canary', 'custody.set_actor_hours', 'custody.set_detection_networks', 'custody.set_detection_rule',
  'custody_data.blind_indexes', 'custody_data.index_taken', 'custody_data.seal_profile',
  'custody.claim_data_keys', 'custody.find_erased', 'custody.remember_erased', 'custody.current_kek', 'custody.expire_data_keys', 'custody.list_key_ages', 'custody.list_sealed_values', 'custody.mark_kek_destroyed', 'custody.reindex_profiles', 'custody.rotate_data_keys', 'custody.rotate_index_key',
  'custody.list_keks', 'custody.mark_certificate_stored', 'custody.unstored_certificates', 'custody.open_value', 'custody.register_kek', 'custody.retire_kek', 'custody.rewrap_keys', 'custody.seal_value', 'custody.unlock', 'custody_data.claim_data_key', 'custody_data.data_key', 'custody_data.open_values', 'custody_data.seal_column', 'custody_data.seal_values',
  'custody.begin_context', 'custody.register_login', 'custody.register_token_key', 'custody.require_tokens', 'custody.retire_login', 'custody.retire_token_key', 'custody.rotate_context_key',
  'custody_data.context_is_authentic', 'custody_data.live_logins', 'custody_data.tg_list_logins', 'custody.adopt_events', 'custody.consistency_proof', 'custody.inclusion_proof', 'custody.ledger_head', 'custody.ledger_root', 'custody.record_checkpoint', 'custody.seal_audit_log', 'custody.sealing_status', 'custody.take_over_leaves', 'custody.verify_ledger',
  'custody_data.active_holds', 'custody_data.claim_identities', 'custody_data.claim_identity', 'custody_data.expires_at', 'custody_data.holds_on',
  'custody_data.keep_of', 'custody_data.require_actor', 'custody_data.require_partition', 'custody_data.require_person', 'custody_data.tg_reject_early_delete',
  'custody_data.tg_reject_held', 'custody_data.tg_require_live_identity',
  'custody_data.logins_here'], 'functions that run with the owner''s rights');
-- What a comment says of the callers is what the catalog has.
select is(regexp_replace(f.callers, '^.*Callers: ', '') ~ ('\m' || g.name || '\M'), has_function_privilege(g.name, f.oid, 'execute'), format('the comment of %s says whether %s may call it', f.signature, g.name))
from (select f.*, obj_description(f.oid, 'pg_proc') as callers from functions f where f.schema = 'custody') f cross join groups g
where f.callers ~ 'Callers: ' and f.name not in ('set_context', 'ensure_audit_partitions')
order by f.name, g.name;
select is_empty($$select f.signature from functions f where f.schema = 'custody' and obj_description(f.oid, 'pg_proc') !~ 'Callers: |Callable by everybody'$$, 'every function of the API says who may call it');
-- A function that somebody forgets to protect is protected.
set local role custody_owner;
create function custody.forgotten() returns int language sql return 1;
reset role;
select is(has_function_privilege(g.name, 'custody.forgotten()', 'execute'), false, format('%s does not call a function that nobody granted', g.name)) from groups g;
-- What opens values, or tells whose they are, and records nothing itself: functions that no role may call, and those of which a
-- caller sees no value. The rest goes by open_values, which records. A new one belongs here or writes a line.
select set_eq($$
  with bodies as materialized (
    select f.schema || '.' || f.name as name, regexp_replace(pg_get_functiondef(f.oid), '^.*?\n LANGUAGE', '') as body,
      exists (select from groups g where has_function_privilege(g.name, f.oid, 'execute')) as callable
    from functions f)
  select b.name from bodies b
  where b.callable and b.body !~ '\m(record_read|write_line)\('
    and b.body ~ '\m(open_unseen|open_bytes|unwrap_key|data_key|require_data_key|decrypt_a256cbc_hs512|aes_cbc_open|blind_indexes|index_key|previous_kek|same_values)\('$$,
  array['custody.append_message', 'custody.find_erased', 'custody.import_audit_events', 'custody.import_consents', 'custody.import_preferences', 'custody.import_profiles', 'custody.patch_profile',
    'custody.record_consent', 'custody.reindex_profiles', 'custody.rewrap_keys', 'custody.rotate_data_keys', 'custody_data.blind_indexes', 'custody_data.refuse_taken', 'custody_data.same_values',
    'custody_data.seal_column', 'custody_data.seal_profile', 'custody_data.seal_values'],
  'functions that open without a line');
-- Keys are touched by expressions alone: no statement of these functions names a variable that holds one.
select is_empty($$
  select f.signature, s.text
  from functions f join pg_proc p on p.oid = f.oid
  cross join lateral regexp_split_to_table(p.prosrc, ';|\mthen\M|\mloop\M|\mbegin\M|\mdeclare\M') s (text)
  where p.prosrc ~ '\m(seal_bytes|open_bytes|data_key|find_kek|wrap_key|refuse_exposed_key|hmac_sha512)\('
    and btrim(s.text, E' \n') ~* '^(select|insert|update|delete|perform|execute|with|for|return query)\M' and s.text ~ '\m(v_key|v_kek|p_key|p_kek|p_current)\M'$$,
  'no statement has a key among its parameters');
select * from finish();
rollback;
