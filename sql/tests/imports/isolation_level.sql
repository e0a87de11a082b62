-- An import runs read committed: at a stricter level it would not see what it waited for.
begin isolation level repeatable read;
set local search_path = tap, testing;
select no_plan();
select tenant('import_isolation');
set local session authorization custody_runner;
select enter('import_isolation', 'runner') /* $1 */;
select custody.prepare_import(t) from unnest(array['user_profiles', 'user_preferences', 'consent_records', 'conversations', 'audit_logs']) t;
select refuses($$select custody.import_profiles()$$, 'PC026', 'profiles');
select refuses($$select custody.import_known('user_profiles', sha256('x'))$$, 'PC026', 'a known file');
select refuses($$select custody.import_preferences()$$, 'PC026', 'preferences');
select refuses($$select custody.import_consents()$$, 'PC026', 'consents');
select refuses($$select custody.import_conversations()$$, 'PC026', 'conversations');
select refuses($$select custody.import_audit_events(gen_random_uuid(), sha256('x'))$$, 'PC026', 'events');
select * from finish();
rollback;
