-- Every view runs with its reader's rights, says what it is, and hides no function of the owner's.
begin;
set local search_path = tap, testing;
select no_plan();
select ok(coalesce(c.reloptions @> array['security_invoker=true'], false), format('%s runs with its reader''s rights', c.oid::regclass)) from pg_class c where c.relnamespace::regnamespace::text like 'custody%' and c.relkind = 'v';
select set_eq($$select c.oid::regclass::text from pg_class c where c.relnamespace::regnamespace::text like 'custody%' and c.relkind = 'v'$$, array['custody.alerts', 'custody.detection', 'custody.detection_rules', 'custody.access_record', 'custody.access_count', 'custody.own_access',
  'custody.archive_restores', 'custody.restored_events', 'custody.archive_segments', 'custody.archive_total', 'custody.month_plan', 'custody.expiry_plan', 'custody.archive_window', 'custody.audit_entries',
  'custody.audit_month', 'custody.audit_trail', 'custody.consents', 'custody.conversation_summaries', 'custody.export_item', 'custody.held_segment', 'custody.segment_slice', 'custody.holds', 'custody.job_runs', 'custody.logins', 'custody.kek_status', 'custody.kek_reference', 'custody.ledger_checkpoints', 'custody.ledger_finding', 'custody.sealing_state', 'custody.key_age_status', 'custody.sealed_value_status', 'custody.wrapped_data_key', 'custody.requests', 'custody.retention_due',
  'custody.log_reconciliation',
  'custody.retention_item', 'custody.retention_policies', 'custody.retention_changes', 'custody_check.findings', 'custody_check.personal_columns',
  'custody_check.log_findings', 'custody_check.logins'], 'these are the views');
select is_empty($$select c.oid::regclass from pg_class c cross join aclexplode(c.relacl) x where c.relnamespace::regnamespace::text like 'custody%' and c.relkind = 'v' and x.grantee <> c.relowner and x.privilege_type <> 'SELECT'$$,
  'nobody writes through a view');
select * from finish();
rollback;
