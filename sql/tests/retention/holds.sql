-- A hold keeps from retention what it covers, of each scope, and nothing else; released, it goes.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('retention_holds');
set local session authorization custody_app;
select enter('retention_holds', 'clerk') /* $1 */;
select custody.save_conversation(u, c, '[{"role": "user", "text": "x", "at": "2026-01-01T00:00:00Z"}]') from (values ('ada', 'a1'), ('ada', 'a2'), ('bob', 'b1'), ('bob', 'a1')) v (u, c);
select custody.record_consent('ada', 'mail', true, '1', p_occurred_at => now() - interval '9 years', p_consent_id => '11111111-1111-4111-8111-111111111111');
select custody.record_consent('ada', 'mail', false, '1', p_occurred_at => now() - interval '8 years');
select custody.record_consent('ada', 'post', true, '1', p_occurred_at => now() - interval '9 years');
select custody.record_consent('ada', 'post', false, '1', p_occurred_at => now() - interval '8 years');

create function pg_temp.due_and_held() returns text language sql as $$
  select string_agg(format('%s %s/%s', d.class, d.due_rows, d.held_rows), ', ' order by d.class) from custody.retention_due d where d.class in ('conversations', 'consent');
$$;
create function pg_temp.under(p_scope jsonb) returns text language plpgsql as $$
declare
  v_hold uuid := custody.place_hold(p_scope, 'case', 'litigation');
  v_due text := pg_temp.due_and_held();
begin
  perform custody.release_hold(v_hold, 'over');
  return v_due;
end
$$;
set local session authorization custody_dpo;
select enter('retention_holds', 'dpo') /* $1 */;
select is(pg_temp.due_and_held(), 'consent 4/0, conversations 4/0', 'without a hold all is due');
select is(pg_temp.under('{"tenant": true}'), 'consent 0/4, conversations 0/4', 'a hold on the tenant keeps all');
select is(pg_temp.under('{"user_id": "ada"}'), 'consent 0/4, conversations 2/2', 'a hold on a person keeps the person''s');
select is(pg_temp.under('{"table": "conversations", "row": "a2"}'), 'consent 4/0, conversations 3/1', 'a hold on a row keeps the row');
select is(pg_temp.under('{"table": "conversations", "row": "a1", "user_id": "bob"}'), 'consent 4/0, conversations 3/1', 'a row that two people have is one person''s');
select is(pg_temp.under('{"table": "consent_records", "row": "11111111-1111-4111-8111-111111111111"}'), 'consent 2/2, conversations 4/0', 'a hold on a grant keeps the withdrawal after it');
select is(pg_temp.under('{"table": "user_profiles", "row": "ada"}'), 'consent 4/0, conversations 4/0', 'a hold on the profile keeps no conversation');

-- By which holds, and how much.
create function pg_temp.held_by(p_class text) returns text[] language sql as $$ select d.held_by from custody.retention_due d where d.class = p_class $$;
select ok(bool_and(d.due_bytes between d.due_rows * 100 and d.due_rows * 2000), 'an estimate of what a conversation and a consent take') from custody.retention_due d where d.class in ('conversations', 'consent');
select custody.place_hold('{"user_id": "bob"}', 'case of bob', 'litigation'), custody.place_hold('{"table": "user_profiles", "row": "ada"}', 'case of a profile', 'litigation'), custody.place_hold('{"tenant": true}', 'case of all', 'litigation');
select is(pg_temp.held_by('conversations'), array['case of all', 'case of bob'], 'conversations are kept by the holds on the tenant and on their people');
select is(pg_temp.held_by('consent'), array['case of all'], 'bob has no consent');
select is(pg_temp.held_by('entry_ids'), '{}', 'no hold keeps ids');
select is((select d.due_bytes from custody.retention_due d where d.class = 'conversations'), 0::bigint, 'nothing goes');
select is((select d.held_by from custody.retention_due_at(now() - interval '20 years') d where d.class = 'conversations'), '{}', 'where nothing is due nothing is kept');
select custody.release_hold(h.hold_id, 'over') from custody.holds h where h.active;
select is(pg_temp.held_by('conversations'), '{}', 'no hold, none named');

select custody.place_hold('{"table": "conversations", "row": "a1", "user_id": "ada"}', 'case 1', 'litigation');
select custody.place_hold('{"table": "consent_records", "row": "11111111-1111-4111-8111-111111111111"}', 'case 2', 'litigation');
select is(custody.enforce_retention('conversations', 100), 3::bigint, 'what is not held goes');
select is(custody.enforce_retention('conversations', 100), 0::bigint, 'what is held does not keep the loop going');
select is((select array_agg(c.conversation_id::text) from custody_data.conversations c), array['a1'], 'and stays');
select is(custody.enforce_retention('consent', 1), 1::bigint, 'a batch of consents passes the held ones over');
select is(custody.enforce_retention('consent', 100), 1::bigint, 'and takes the others');
select is(custody.has_consent('ada', 'mail'), false, 'the held grant is not in force, because its withdrawal stayed');
select is((select count(*) from custody_data.consent_records), 2::bigint, 'both stay');
select custody.release_hold(h.hold_id, 'over') from custody.holds h where h.active;
select is(custody.enforce_retention('conversations', 100) + custody.enforce_retention('consent', 100), 3::bigint, 'released, they go');
select custody.place_hold('{"tenant": true}', 'case 3', 'litigation', now() + interval '1 day');
select is(pg_temp.due_and_held(), 'consent 0/0, conversations 0/0', 'nothing is left');
select * from finish();
rollback;
