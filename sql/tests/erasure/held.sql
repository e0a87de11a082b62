-- Under a hold an erasure returns held, which is on record, and goes on when the hold has ended.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('erase_held');
set local session authorization custody_app;
select enter('erase_held', 'clerk') /* $1 */;
select custody.put_profile('ada', '{}'), custody.save_conversation('ada', 'c1', '[{"role": "user", "text": "x"}]');
select custody.record_audit_event('account.login', p_log_entry_id => '22222222-2222-4222-8222-222222222222');
select set_config('testing.request', request('erase_held', 'ada')::text, true);
set local session authorization custody_dpo;
select enter('erase_held', 'dpo') /* $1 */;

create function pg_temp.under(p_scope jsonb) returns text language plpgsql as $$
declare
  v_hold uuid := custody.place_hold(p_scope, 'case', 'litigation');
  v_result jsonb := custody.erase_subject(current_setting('testing.request')::uuid);
begin
  if v_result <> jsonb_build_object('request_id', current_setting('testing.request'), 'status', 'held', 'holds', jsonb_build_array(v_hold)) then
    return v_result::text;
  end if;
  return format('held, resumed %s', custody.release_hold(v_hold, 'over'));
end
$$;
select is(pg_temp.under('{"tenant": true}'), 'held, resumed 1', 'a hold on the tenant');
select is(pg_temp.under('{"user_id": "ada"}'), 'held, resumed 1', 'a hold on the person');
select is(pg_temp.under('{"table": "conversations", "row": "c1"}'), 'held, resumed 1', 'a hold on a row of the person');
select is(pg_temp.under('{"table": "user_profiles", "row": "ada"}'), 'held, resumed 1', 'a hold on the profile');
select is((select count(*) from events('erase_held', 'account.erase') e where e.result = 'denied'), 4::bigint, 'each time it is an event');
select is(rows_of('erase_held', 'user_profiles') + rows_of('erase_held', 'conversations'), 2::bigint, 'nothing was deleted');

select set_config('testing.hold', custody.place_hold('{"user_id": "ada"}', 'case 9', 'litigation')::text, true);
select is(custody.erase_subject(current_setting('testing.request')::uuid) ->> 'status', 'held', 'held');
select is(custody.erase_subject(current_setting('testing.request')::uuid) ->> 'status', 'held', 'and held again');
select is((select count(*) from events('erase_held', 'account.erase')), 5::bigint, 'which is one event');
select is((last_event('erase_held', 'account.erase')).metadata, jsonb_build_object('request_id', current_setting('testing.request'), 'holds', jsonb_build_array(current_setting('testing.hold'))), 'that names the hold');
select is(custody.request_status(current_setting('testing.request')::uuid) ->> 'status', 'held', 'the request says so');
select is(custody.verify_erasure(current_setting('testing.request')::uuid) ->> 'status', 'held', 'so does verify_erasure');
select is(custody.get_certificate(current_setting('testing.request')::uuid), null, 'there is no certificate');
select custody.release_hold(current_setting('testing.hold')::uuid, 'over');
select custody.place_hold('{"table": "audit_logs", "row": "22222222-2222-4222-8222-222222222222"}', 'case 10', 'litigation');
select is(custody.erase_subject(current_setting('testing.request')::uuid) ->> 'status', 'complete', 'when it has ended the erasure goes on; a hold on an event does not keep it');
select is(rows_of('erase_held', 'user_profiles') + rows_of('erase_held', 'conversations'), 0::bigint, 'and deletes');
select * from finish();
rollback;
