-- Rows that are written at a start and at an end are final after it, and their names are for life.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('final_rows');
select populate('final_rows'), populate_shared() /* $1 */;
select enter('final_rows', 'owner') /* $1 */;
set local role custody_owner;
select refuses(format('update custody_data.%I set %s', t, s), 'PC030', format('%s: %s', t, s)) from (values
  ('user_profiles', 'identity_id = gen_random_uuid()'), ('user_profiles', 'created_at = now() - interval ''1 day'''), ('user_preferences', 'identity_id = gen_random_uuid()'),
  ('conversations', 'conversation_id = ''x'''), ('conversations', 'created_at = now() - interval ''1 day'''), ('identities', 'kind = ''service'''), ('identities', 'created_at = now() - interval ''1 day'''),
  ('erasure_notices', 'holder = ''x'''), ('erasure_notices', 'request_id = gen_random_uuid()')) v (t, s);
select refuses($$update custody_data.job_runs set error = 'x'$$, 'PC020', 'a run that has ended is final');
reset role;
set local role custody_admin;
select custody.set_context('system', 'owner');
select refuses($$update custody_data.archive_segments set leaves = '{[0,1)}'$$, 'PC030', 'an open segment keeps its leaves');
select refuses($$update custody_data.archive_segments set day = day + 1$$, 'PC030', 'and its day');
reset role;
update custody_data.archive_segments set object_key = 'k', manifest_key = 'm', plain_bytes = 1, compressed_bytes = 1, stored_bytes = 1, plain_sha256 = sha256('x'), compressed_sha256 = sha256('x'), stored_sha256 = sha256('x'), manifest_sha256 = sha256('x'), root_hash = sha256('x'), people = '', recipients = '{}', first_occurred_at = now(), last_occurred_at = now(),
  retain_until = now(), recorded_at = now() where day = '2020-01-01';
set local role custody_admin;
select refuses(format('update custody_data.archive_segments set %s', s), 'PC020', format('of a recorded segment: %s', s)) from unnest(array['object_key = ''x''', 'plain_bytes = 0', 'manifest_sha256 = null', 'retain_until = now() - interval ''1 day''']) s;
update custody_data.archive_segments set legal_hold = true, superseded_at = now(), expired_at = now();
select refuses($$update custody_data.archive_segments set expired_at = null$$, 'PC020', 'what has expired stays so');
select refuses($$update custody_data.archive_segments set superseded_at = null$$, 'PC020', 'and what is superseded');
select refuses($$update custody_data.archive_segments set recorded_at = null$$, 'PC020', 'and stays recorded');
select enter('final_rows', 'owner') /* $1 */;
-- version and updated_at are the trigger's: nobody sets them, the owner neither.
update custody_data.user_profiles set version = 99, updated_at = '2000-01-01', city = any_sealed();
select row_eq('select p.version, p.updated_at, p.city::bytea from custody_data.user_profiles p', row (2, now(), any_sealed()), 'version and updated_at are counted, not given');
update custody_data.user_preferences set version = 99;
select is((select p.version from custody_data.user_preferences p), 2, 'of preferences too');
update custody_data.conversations set version = 99;
select is((select c.version from custody_data.conversations c), 2, 'and of conversations');
select * from finish();
rollback;
