-- Every column that holds something about a person says so in its comment, in a form that machines read.
begin;
set local search_path = tap, testing;
select no_plan();
select set_eq('select p.table_name, p.column_name, p.sensitivity, p.retention from custody_check.personal_columns p', $$values
  ('identities', 'user_id', 'identifying', 'until_erasure'), ('user_profiles', 'full_name', 'identifying', 'until_erasure'), ('user_profiles', 'email', 'contact', 'until_erasure'),
  ('user_profiles', 'phone', 'contact', 'until_erasure'), ('user_profiles', 'organisation', 'identifying', 'until_erasure'), ('user_profiles', 'title', 'identifying', 'until_erasure'),
  ('user_profiles', 'address', 'contact', 'until_erasure'), ('user_profiles', 'city', 'contact', 'until_erasure'), ('user_profiles', 'region', 'contact', 'until_erasure'),
  ('user_profiles', 'postal_code', 'contact', 'until_erasure'), ('user_profiles', 'country', 'contact', 'until_erasure'), ('user_profiles', 'attributes', 'content', 'until_erasure'),
  ('user_profiles', 'email_index', 'contact', 'until_erasure'), ('user_profiles', 'phone_index', 'contact', 'until_erasure'), ('user_preferences', 'preferences', 'content', 'until_erasure'), ('consent_records', 'evidence', 'evidence', 'consent'),
  ('conversations', 'title', 'content', 'conversations'), ('conversations', 'messages', 'content', 'conversations'), ('audit_logs', 'personal', 'content', 'audit'), ('restored_events', 'personal', 'content', 'restored'), ('archive_restores', 'reason', 'content', 'audit'), ('requests', 'reason', 'content', 'requests'),
  ('requests', 'extension_reason', 'content', 'requests'), ('requests', 'close_reason', 'content', 'requests'), ('legal_holds', 'release_reason', 'content', 'holds'),
  ('erasure_notices', 'evidence', 'evidence', 'requests'), ('erased_user_ids', 'user_id_index', 'identifying', 'erased_ids'),
  ('erasure_notices', 'user_id', 'identifying', 'until_acknowledged'), ('legal_holds', 'reference', 'content', 'holds'), ('legal_holds', 'reason', 'content', 'holds'), ('retention_changes', 'reason', 'content', 'audit'),
  ('alerts', 'close_reason', 'content', 'alerts'),
  ('access_events', 'client', 'contact', 'access'), ('access_events', 'application', 'content', 'access')$$, 'these are personal');
select is_empty($$select p.table_name, p.column_name from custody_check.personal_columns p where p.sensitivity not in ('identifying', 'contact', 'content', 'evidence') or p.retention is null or coalesce(p.description, '') = ''$$,
  'each with its sensitivity, retention and what it is');
select is_empty($$select a.attrelid::regclass, a.attname from pg_attribute a join tables t on t.oid = a.attrelid
  where t.name in ('user_profiles', 'user_preferences', 'conversations') and a.attnum > 0 and a.atttypid in ('text'::regtype, 'jsonb'::regtype, 'bytea'::regtype, 'custody_data.sealed_value'::regtype) and a.attname <> 'conversation_id'
    and coalesce(col_description(a.attrelid, a.attnum), '') !~ '@custody\{'$$, 'no text, JSON or sealed value of a profile, of preferences or of a conversation is without a class');
select set_eq($$select p.table_name || '.' || p.column_name from custody_check.personal_columns p where not p.sealed$$, array['identities.user_id', 'erased_user_ids.user_id_index', 'user_profiles.email_index', 'user_profiles.phone_index', 'requests.reason',
  'requests.extension_reason', 'requests.close_reason', 'legal_holds.release_reason', 'legal_holds.reference', 'legal_holds.reason', 'retention_changes.reason', 'erasure_notices.user_id', 'erasure_notices.evidence', 'archive_restores.reason',
  'alerts.close_reason',
  'access_events.client', 'access_events.application'], 'all but these are sealed');
select is_empty($$select p.table_name from custody_check.personal_columns p where p.table_name ~ '_\d{4}_\d\d$'$$, 'partitions are not listed beside their parent');
select is((select count(*) from pg_description d join pg_class c on c.oid = d.objoid where c.relnamespace = 'custody_data'::regnamespace and d.description like '%@custody{%' and not c.relispartition),
  (select count(*) from custody_check.personal_columns), 'none is lost');
select * from finish();
rollback;
