-- A log_entry_id given again is the first event where the content is the same, and refused where it is not.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('entry_ids_audit');
select tenant('entry_ids_audit_2');
\set id '11111111-1111-4111-8111-111111111111'
set local session authorization custody_app;
select enter('entry_ids_audit', 'clerk') /* $1 */;
select custody.put_profile('ada', '{}');
select set_config('testing.at', (clock_timestamp() - interval '1 hour')::text, true);

create function pg_temp.record(p_actor text default 'clerk', p_action text default 'phi.access', p_type text default 'document', p_resource text default 'd1', p_result text default 'success',
  p_metadata jsonb default '{"count": 1}', p_subject text default 'ada', p_at timestamptz default current_setting('testing.at')::timestamptz, p_personal jsonb default '{"ip": 1}') returns uuid
language plpgsql as $$
begin
  perform enter('entry_ids_audit', p_actor) /* $1 */;
  return custody.record_audit_event(p_action, p_type, p_resource, p_result, p_metadata, p_subject, p_at, '11111111-1111-4111-8111-111111111111', p_personal);
end
$$;
select is(pg_temp.record(), :'id', 'the id is the client''s') /* $1 */;
select is(pg_temp.record(), :'id', 'the same again returns it') /* $1 */;
set local timezone = 'Asia/Kathmandu';
select is(pg_temp.record(), :'id', 'whatever the TimeZone') /* $1 */;
set local timezone = 'UTC';
select is((select count(*) from events('entry_ids_audit', 'phi.access')), 1::bigint, 'it is one event');

select refuses($$select pg_temp.record(p_actor => 'other')$$, 'PC010', 'another actor') /* $1 */;
select refuses($$select pg_temp.record(p_action => 'phi.update')$$, 'PC010', 'another action') /* $1 */;
select refuses($$select pg_temp.record(p_type => 'account')$$, 'PC010', 'another resource type') /* $1 */;
select refuses($$select pg_temp.record(p_resource => 'd2')$$, 'PC010', 'another resource') /* $1 */;
select refuses($$select pg_temp.record(p_result => 'failure')$$, 'PC010', 'another result') /* $1 */;
select refuses($$select pg_temp.record(p_metadata => '{"count": 2}')$$, 'PC010', 'other metadata') /* $1 */;
select refuses($$select pg_temp.record(p_subject => 'clerk')$$, 'PC010', 'another subject') /* $1 */;
select refuses($$select pg_temp.record(p_subject => null)$$, 'PC010', 'no subject') /* $1 */;
select refuses($$select pg_temp.record(p_at => clock_timestamp())$$, 'PC010', 'another time') /* $1 */;
select refuses($$select pg_temp.record(p_at => null)$$, 'PC010', 'no time') /* $1 */;
select refuses($$select pg_temp.record(p_personal => '{"ip": 2}')$$, 'PC010', 'another personal part') /* $1 */;
select refuses($$select pg_temp.record(p_personal => null)$$, 'PC010', 'no personal part') /* $1 */;
select refuses($$select custody.record_audit_event('account.login', p_log_entry_id => '11111111-1111-4111-8111-111111111111')$$, 'PC010', 'another event altogether');

-- An event without a time is the same however much later it is sent again.
select enter('entry_ids_audit', 'clerk') /* $1 */;
select is(custody.record_audit_event('account.login', p_log_entry_id => '22222222-2222-4222-8222-222222222222'),
  custody.record_audit_event('account.login', p_log_entry_id => '22222222-2222-4222-8222-222222222222'), 'without a time the content says what is the same');
select is((select count(*) from events('entry_ids_audit', 'account.login')), 1::bigint, 'it is one event');
select is(rows_of('entry_ids_audit', 'audit_entry_ids'), 2::bigint, 'the ids that clients gave are kept');
select custody.record_audit_event('account.login');
select is(rows_of('entry_ids_audit', 'audit_entry_ids'), 2::bigint, 'those of the server need not be');

select enter('entry_ids_audit_2', 'clerk') /* $1 */;
select lives_ok($$select custody.record_audit_event('account.login', p_log_entry_id => '11111111-1111-4111-8111-111111111111')$$, 'another tenant has ids of its own');
select * from finish();
rollback;
