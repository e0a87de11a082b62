-- A hold is placed on the tenant, a person or a row; its placing is an event; the view shows it.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('place_hold');
select tenant('place_hold_2');
set local session authorization custody_app;
select enter('place_hold', 'clerk') /* $1 */;
select custody.put_profile('ada', '{}');
select custody.save_conversation(u, c, '[{"role": "user", "text": "x"}]') from (values ('ada', 'a1'), ('ada', 'shared'), ('bob', 'shared')) v (u, c);
select custody.record_consent('ada', 'mail', true, '1', p_consent_id => '11111111-1111-4111-8111-11111111111a');
select custody.record_audit_event('account.login', p_log_entry_id => '22222222-2222-4222-8222-22222222222a');

set local session authorization custody_dpo;
select enter('place_hold', 'dpo') /* $1 */;
create function pg_temp.placed(p_scope jsonb) returns text language plpgsql as $$
declare
  v_hold uuid := custody.place_hold(p_scope, p_scope::text, 'litigation');
begin
  return (select format('%s %s %s %s', h.scope, (select i.user_id from custody_data.identities i where i.identity_id = h.identity_id), h.table_name,
    replace(h.row_id, identity('place_hold', 'ada')::text, 'ada')) from custody.holds h where h.hold_id = v_hold and h.active);
end
$$;
select is(pg_temp.placed('{"tenant": true}'), 'tenant   ', 'on the tenant');
select is(pg_temp.placed('{"user_id": "ada"}'), 'person ada  ', 'on a person');
select is(pg_temp.placed('{"table": "user_profiles", "row": "ada"}'), 'row ada user_profiles ada', 'on a profile, named by its person');
select is(pg_temp.placed('{"table": "user_preferences", "row": "ada"}'), 'row ada user_preferences ada', 'on preferences, named by their person');
select is(pg_temp.placed('{"table": "conversations", "row": "a1"}'), 'row ada conversations a1', 'on a conversation');
select is(pg_temp.placed('{"table": "conversations", "row": "shared", "user_id": "bob"}'), 'row bob conversations shared', 'on a conversation whose id two people have');
select is(pg_temp.placed('{"table": "consent_records", "row": "11111111-1111-4111-8111-11111111111A"}'), 'row ada consent_records 11111111-1111-4111-8111-11111111111a', 'on a consent, in whatever case');
select is(pg_temp.placed('{"table": "audit_logs", "row": "22222222-2222-4222-8222-22222222222A"}'), 'row  audit_logs 22222222-2222-4222-8222-22222222222a', 'on an event, in whatever case');

select set_config('testing.hold', custody.place_hold('{"user_id": "bob"}', 'case 7', 'litigation', now() + interval '1 year')::text, true);
select row_eq($$select h.reference, h.reason, h.placed_by, h.placed_at, h.until_at, h.released_at, h.active from custody.holds h where h.hold_id = current_setting('testing.hold')::uuid$$,
  row ('case 7'::text, 'litigation'::text, identity('place_hold', 'dpo'), now(), now() + interval '1 year', null::timestamptz, true), 'the view shows why, by whom and until when');
select row_eq($$select e.resource_type collate "default", e.resource_id collate "default", e.subject_id, e.metadata from last_event('place_hold', 'hold.place') e$$,
  row ('hold'::text, current_setting('testing.hold'), identity('place_hold', 'bob'), jsonb_build_object('hold_id', current_setting('testing.hold'), 'scope', 'person', 'until', custody_data.entry_time(now() + interval '1 year'), 'reason', 'litigation')),
  'the placing is an event about the person, with the reason');

select refuses(format('select custody.place_hold(%L, %L, %L)', s, 'r', 'r'), 'PC023', format('scope %s', coalesce(s, 'null')))
from unnest(array[null, '{}', '[]', '"x"', 'null', '{"tenant": false}', '{"tenant": true, "user_id": "ada"}', '{"table": "user_profiles"}', '{"row": "ada"}', '{"user_id": "ada", "x": 1}',
  '{"table": "requests", "row": "x"}', '{"table": "identities", "row": "ada"}', '{"table": null, "row": "ada"}', '{"table": "conversations", "row": "none"}', '{"table": "conversations", "row": "shared"}',
  '{"table": "conversations", "row": null}', '{"table": "consent_records", "row": "none"}', '{"table": "audit_logs", "row": "none"}', '{"table": "audit_logs", "row": "33333333-3333-4333-8333-333333333333"}']) s;
select refuses($$select custody.place_hold('{"user_id": "never seen"}', 'r', 'r')$$, 'PC011', 'on somebody who was never seen');
select refuses($$select custody.place_hold('{"user_id": ""}', 'r', 'r')$$, 'PC003', 'on nobody');
select refuses($$select custody.place_hold('{"table": "user_profiles", "row": "never seen"}', 'r', 'r')$$, 'PC011', 'on the profile of somebody who was never seen');
select refuses($$select custody.place_hold('{"tenant": true}', null, 'r')$$, 'PC023', 'without a reference');
select refuses($$select custody.place_hold('{"tenant": true}', ' ', 'r')$$, 'PC023', 'with a blank reference');
select refuses($$select custody.place_hold('{"tenant": true}', repeat('x', 257), 'r')$$, 'PC023', 'with a reference of 257 characters');
select refuses($$select custody.place_hold('{"tenant": true}', 'x' || repeat(' ', 256), 'r')$$, 'PC023', 'blanks count');
select refuses($$select custody.place_hold('{"tenant": true}', 'r', null)$$, 'PC023', 'without a reason');
select refuses($$select custody.place_hold('{"tenant": true}', 'r', repeat('x', 2001))$$, 'PC023', 'with a reason of 2001 characters');
select refuses($$select custody.place_hold('{"tenant": true}', 'r', 'r', now())$$, 'PC009', 'until now');
select refuses($$select custody.place_hold('{"tenant": true}', 'r', 'r', 'infinity')$$, 'PC009', 'until infinity');
select refuses($$select custody.place_hold('{"user_id": "bob"}', 'case 7', 'again')$$, 'PC013', 'a hold that is there already');
select lives_ok($$select custody.place_hold('{"user_id": "bob"}', 'case 8', 'other case')$$, 'the same scope in another case');
select lives_ok($$select custody.place_hold('{"user_id": "ada"}', 'case 7', 'other person')$$, 'another scope in the same case');

select enter('place_hold', 'dpo', null, 'ada') /* $1 */;
select refuses($$select custody.place_hold('{"user_id": "ada"}', 'r', 'r')$$, 'PC015', 'in a context of one person');
select is((select count(*) from custody.holds), 0::bigint, 'where holds are not seen either');
select enter('place_hold_2', 'dpo') /* $1 */;
select is((select count(*) from custody.holds), 0::bigint, 'another tenant sees none of them');
select refuses($$select custody.place_hold('{"table": "conversations", "row": "a1"}', 'r', 'r')$$, 'PC023', 'and holds none of its rows');
select refuses($$select custody.place_hold('{"table": "audit_logs", "row": "22222222-2222-4222-8222-22222222222a"}', 'r', 'r')$$, 'PC023', 'nor events');
set local session authorization custody_app;
select enter('place_hold', 'clerk', null, 'ada') /* $1 */;
select refuses($$select custody.place_hold('{"user_id": "ada"}', 'r', 'r')$$, '42501', 'applications place none');
set local session authorization custody_audit;
select enter('place_hold', 'auditor') /* $1 */;
select is((select count(*) from custody.holds), 11::bigint, 'auditors see them');
select refuses($$select custody.place_hold('{"tenant": true}', 'r', 'r')$$, '42501', 'and place none');
select * from finish();
rollback;
