-- The guards: what stands between a grant and a mistake, for the owner too.
-- control: HIPAA 164.312(b), (c)(1); SOC 2 CC7.2, CC8.1; ISO 27001 A.8.15; GDPR Art. 5(1)(f)
-- reviewed by: DBA, auditor
--
-- Triggers run in the order of their names: a_ refuses, m_ keeps columns in order, z_ audits. All are
-- ENABLE ALWAYS, so that session_replication_role does not pass them. Statement triggers of a partitioned
-- parent do not stand on its partitions: custody.ensure_audit_partitions gives each its own.
-- locks: SHARE ROW EXCLUSIVE on each table, for an instant. rewrite cost: none.

-- +goose Up
-- +goose StatementBegin
do $$
declare
  v_table text;
  v_audit text;
begin
  -- Append-only as a whole.
  foreach v_table in array array['audit_logs', 'erasure_certificates', 'stored_certificates', 'imports', 'incarnations', 'partition_drops'] loop
    execute pg_catalog.format(
      'create trigger a_reject_mutation before update or delete or truncate on custody_data.%I
         for each statement execute function custody_data.tg_reject_mutation()', v_table);
    -- What logical replication applies comes row by row. (Partitions have this one from their parent.)
    execute pg_catalog.format(
      'create trigger a_reject_row_mutation before update or delete on custody_data.%I
         for each row execute function custody_data.tg_reject_mutation()', v_table);
  end loop;

  -- Rows that end but are never deleted.
  foreach v_table in array array['tenants', 'identities', 'requests', 'legal_holds', 'holders', 'erasure_notices', 'job_runs',
    'archive_heads', 'archive_segments', 'audit_actions', 'audit_resource_types', 'retention_policies', 'retention_changes'] loop
    execute pg_catalog.format(
      'create trigger a_reject_delete before delete or truncate on custody_data.%I
         for each statement execute function custody_data.tg_reject_mutation()', v_table);
  end loop;

  -- Tables of record that erasure and retention delete from, row by row: never all at once.
  foreach v_table in array array['user_profiles', 'user_preferences', 'conversations', 'audit_entry_ids', 'erased_user_ids'] loop
    execute pg_catalog.format(
      'create trigger a_reject_truncate before truncate on custody_data.%I
         for each statement execute function custody_data.tg_reject_mutation()', v_table);
  end loop;

  -- Keys of a row and its time of creation are for life.
  foreach v_table in array array['user_profiles', 'user_preferences', 'conversations'] loop
    execute pg_catalog.format(
      'create trigger a_reject_key_change before update on custody_data.%I
         for each row execute function custody_data.tg_reject_column_change(%s)', v_table,
      case v_table when 'conversations' then $a$'tenant_id', 'identity_id', 'conversation_id', 'created_at'$a$
        else $a$'tenant_id', 'identity_id', 'created_at'$a$ end);
    execute pg_catalog.format(
      'create trigger m_touch_row before update on custody_data.%I
         for each row execute function custody_data.%I()', v_table,
      case v_table when 'user_profiles' then 'tg_touch_profile' when 'user_preferences' then 'tg_touch_preferences' else 'tg_touch_conversation' end);
  end loop;

  -- No row about somebody who has been erased.
  foreach v_table in array array['user_profiles', 'user_preferences', 'consent_records', 'conversations'] loop
    execute pg_catalog.format(
      'create trigger a_require_live_identity after insert on custody_data.%I referencing new table as new_rows
         for each statement execute function custody_data.tg_require_live_identity()', v_table);
  end loop;

  -- What a legal hold covers stays, whoever deletes.
  foreach v_table in array array['user_profiles', 'user_preferences', 'consent_records', 'conversations'] loop
    execute pg_catalog.format(
      'create trigger a_reject_held after delete on custody_data.%I referencing old table as old_rows
         for each statement execute function custody_data.tg_reject_held(%s)', v_table,
      case v_table when 'consent_records' then $a$'consent_id'$a$ when 'conversations' then $a$'conversation_id'$a$ else $a$'identity_id'$a$ end);
  end loop;

  -- Every write to a table of record is an event of the trail.
  foreach v_table in array array['user_profiles', 'user_preferences', 'consent_records', 'conversations'] loop
    v_audit := case v_table when 'consent_records' then 'tg_audit_consents' when 'conversations' then 'tg_audit_conversations' else 'tg_audit_people' end;
    execute pg_catalog.format(
      'create trigger z_audit_insert after insert on custody_data.%I referencing new table as new_rows
         for each statement execute function custody_data.%I()', v_table, v_audit);
    execute pg_catalog.format(
      'create trigger z_audit_delete after delete on custody_data.%I referencing old table as old_rows
         for each statement execute function custody_data.%I()', v_table, v_audit);
    if v_table <> 'consent_records' then
      execute pg_catalog.format(
        'create trigger z_audit_update after update on custody_data.%I referencing old table as old_rows new table as new_rows
           for each statement execute function custody_data.%I()', v_table, v_audit);
    end if;
  end loop;
end
$$;
-- +goose StatementEnd

-- Consents are append-only until the policy's time has passed: the guard asks the policy, not the caller.
create trigger a_reject_mutation before update or truncate on custody_data.consent_records
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_early_delete before delete on custody_data.consent_records
  for each row execute function custody_data.tg_reject_early_delete('consent');

-- A shorter policy names the change that a second person approved.
create trigger a_require_approval before insert or update on custody_data.retention_policies
  for each row execute function custody_data.tg_require_approval();

-- An erased identity stays erased; the names of a run, a request and a segment are for life.
create trigger a_reject_key_change before update on custody_data.identities
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'identity_id', 'kind', 'created_at', '+erased_at');
create trigger a_reject_key_change before update on custody_data.requests
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'request_id', 'kind', 'identity_id', 'reason', 'requested_by', 'received_at', 'xid', '+closed_at');
create trigger a_reject_key_change before update on custody_data.legal_holds
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'hold_id', 'scope', 'identity_id', 'table_name', 'row_id', 'event_day', 'reference', 'reason', 'placed_by', 'placed_at', '+released_at');
create trigger a_reject_key_change before update on custody_data.retention_changes
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'change_id', 'class', 'keep', 'keep_before', 'basis', 'proposed_by', 'proposed_login', 'proposed_at', 'expires_at', '+decided_at');
create trigger a_reject_key_change before update on custody_data.job_runs
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'run_id', 'job', 'river_job_id', 'started_at', '+ended_at');
create trigger a_reject_key_change before update on custody_data.archive_segments
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'day', 'part', 'leaves', 'events', 'opened_at', '=object_key', '=manifest_key',
    '=plain_bytes', '=compressed_bytes', '=stored_bytes', '=plain_sha256', '=compressed_sha256', '=stored_sha256', '=manifest_sha256', '=root_hash',
    '=first_occurred_at', '=last_occurred_at', '=recipients', '=retain_until', '=recorded_at', '=superseded_at', '=expired_at', '=objects_deleted_at');
create trigger a_reject_key_change before update on custody_data.erasure_notices
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'notice_id', 'request_id', 'holder', 'created_at', '+acknowledged_at');

-- +goose StatementBegin
do $$
declare
  v_trigger record;
begin
  for v_trigger in
    select t.tgname, c.relname from pg_catalog.pg_trigger t
    join pg_catalog.pg_class c on c.oid = t.tgrelid
    where c.relnamespace = 'custody_data'::regnamespace and not t.tgisinternal
  loop
    execute pg_catalog.format('alter table custody_data.%I enable always trigger %I', v_trigger.relname, v_trigger.tgname);
  end loop;
end
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
do $$
declare
  v_trigger record;
begin
  for v_trigger in
    select t.tgname, c.relname from pg_catalog.pg_trigger t
    join pg_catalog.pg_class c on c.oid = t.tgrelid
    where c.relnamespace = 'custody_data'::regnamespace and not t.tgisinternal and t.tgparentid = 0
  loop
    execute pg_catalog.format('drop trigger %I on custody_data.%I', v_trigger.tgname, v_trigger.relname);
  end loop;
end
$$;
-- +goose StatementEnd
