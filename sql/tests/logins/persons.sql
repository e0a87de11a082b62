-- A person's login acts as one actor in one tenant, for the purposes it was given: whatever else it claims, by set_context or
-- by settings, is refused or worth nothing.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('person'), tenant('person_2');
select populate('person'), populate('person_2') /* $1 */;

set local role custody_admin;
select enter('person', 'root') /* $1 */;
select lives_ok($$select custody.register_login('custody_dpo', 'dora', 'person', '{erasure,access}')$$, 'a login is bound');
select set_eq($$select l.tenant_id::text, l.role_name, l.mode, l.actor, l.purposes, l.ended_at from custody.logins l where l.ended_at is null and l.tenant_id = 'person'$$,
  $$values ('person', 'custody_dpo', 'person', 'dora', '{erasure,access}'::text[], null::timestamptz)$$, 'the view says how');
select is((last_event('person', 'login.register')).metadata, '{"login": "custody_dpo", "purposes": ["erasure", "access"]}', 'the binding is an event');
select is((last_event('person', 'login.register')).subject_id, identity('person', 'dora'), 'about who it is bound to');

select refuses($$select custody.register_login('custody_dpo', 'dora', 'person_2')$$, 'PC015', 'in another tenant''s context');
select refuses($$select custody.register_login('custody_dpo', '', 'person')$$, 'PC003', 'no actor');
select refuses($$select custody.register_login('nobody at all', 'dora', 'person')$$, 'PC023', 'no role');
select refuses($$select custody.register_login('custody_privacy', 'dora', 'person')$$, 'PC023', 'a role that cannot log in');
select refuses($$select custody.register_login('custody_dpo', 'dora', 'person', '{}')$$, 'PC023', 'no purpose');
select refuses($$select custody.register_login('custody_dpo', 'dora', 'person', '{a,null}')$$, 'PC023', 'a null as purpose');
select refuses(format('select custody.register_login(%L, %L, %L)', s, 'dora', 'person'), 'PC023', 'a superuser, whom no check holds') from (select rolname from pg_roles where rolsuper limit 1) r (s);
select refuses($$select custody.retire_login('custody_audit')$$, 'PC023', 'a login that is not registered');
select enter('person', 'root', null, 'ada') /* $1 */;
select refuses($$select custody.register_login('custody_dpo', 'dora', 'person')$$, 'PC015', 'confined to one person');
select refuses($$select custody.retire_login('custody_dpo')$$, 'PC015', 'confined to one person');
reset role;

-- The first context since the server's start needs a key, which a transaction that reads only cannot make.
create function pg_temp.read_only_context() returns void language plpgsql as $$
begin
  set local session authorization custody_dpo;
  perform set_config('transaction_read_only', 'on', true);
  perform custody.set_context('person', 'dora', 'erasure');
end
$$;
select refuses($$select pg_temp.read_only_context()$$, 'PC062', 'read only, before there is a key');

set local session authorization custody_dpo;
select lives_ok($$select custody.set_context('person', 'dora', 'erasure')$$, 'what it is bound to');
select is(custody.current_tenant() || custody.current_actor() || custody.current_purpose(), 'persondoraerasure', 'is its context');
select is((select string_agg(distinct p.tenant_id, ' ') from custody_data.user_profiles p), 'person', 'in which it sees its tenant');
select lives_ok($$select custody.set_context('person', 'dora', 'access', 'ada')$$, 'it may confine itself');
select is((select count(*) from custody_data.user_profiles p), 1::bigint, 'and then sees that person');
select refuses($$select custody.set_context('person_2', 'dora', 'erasure')$$, 'PC061', 'another tenant');
select refuses($$select custody.set_context('person', 'clerk', 'erasure')$$, 'PC061', 'another actor');
select refuses($$select custody.set_context('person', 'unheard of', 'erasure')$$, 'PC061', 'an actor nobody knows');
select refuses($$select custody.set_context('person', 'dora', 'curiosity')$$, 'PC061', 'another purpose');
select refuses($$select custody.set_context('person', 'dora')$$, 'PC061', 'no purpose');
select refuses($$select custody.set_context('system', 'dora', 'erasure')$$, 'PC015', 'tenant system');

-- By settings: one changed is a context that stands no more.
create function pg_temp.after(p_setting text, p_value text) returns text language plpgsql as $$
begin
  perform custody.set_context('person', 'dora', 'erasure', 'ada');
  perform set_config(p_setting, p_value, true);
  return concat_ws(' ', custody.current_tenant(), custody.current_actor(), custody.current_actor_id(), custody.current_purpose(), custody.current_subject(), custody.current_subject_id(),
    (select count(*) from custody_data.user_profiles), (select count(*) from custody_data.identities), custody.has_subject());
end
$$;
select is(pg_temp.after(s, v), '0 0 t', format('%s = %L', s, v)) from (values ('custody.tenant', 'person_2'), ('custody.tenant', 'system'), ('custody.tenant', ''), ('custody.actor', 'clerk'),
  ('custody.actor_id', identity('person', 'clerk')::text), ('custody.purpose', 'access'), ('custody.subject', ''), ('custody.subject', 'clerk'), ('custody.subject_id', identity('person', 'clerk')::text), ('custody.subject_id', ''),
  ('custody.mac', ''), ('custody.mac', 'x'), ('custody.mac', '.'), ('custody.mac', repeat('0', 36) || '.' || repeat('0', 64))) t (s, v);
select refuses($$select custody.set_context('person', 'dora', 'erasure'), set_config('custody.purpose', 'access', true), custody.plan_erasure('ada')$$, 'PC001', 'and functions find no context');
-- A statement that takes the subject away half-way: the policy's helpers are not all evaluated at its beginning.
select custody.set_context('person', 'dora', 'erasure', 'ada');
create function pg_temp.forget(p_n integer, p_id uuid) returns uuid language plpgsql stable as $$ begin perform set_config('custody.subject', '', true) where p_n = 2; return p_id; end $$;
select set_config(s, 'off', true) from unnest(array['enable_hashjoin', 'enable_mergejoin', 'enable_seqscan', 'enable_bitmapscan']) s;
select is((select count(*) from (values (1, '00000000-0000-4000-8000-000000000000'::uuid), (2, identity('person', 'clerk'))) o (n, id) cross join lateral (select pg_temp.forget(o.n, o.id) as id offset 0) x join custody_data.identities i on i.identity_id = x.id), 0::bigint, 'what was confined stays so within a statement');
select is(current_setting('custody.subject'), '', 'which took the subject away');

-- Who is not known yet has no identity in the context.
select custody.set_context('person', 'dora', 'access', 'newcomer');
select is(custody.current_subject_id(), null, 'a subject nobody knows');

reset session authorization;
set local role custody_admin;
select enter('person', 'root') /* $1 */;
select lives_ok($$select custody.register_login('custody_dpo', 'dora', 'person')$$, 'it is bound anew');
reset role;
set local session authorization custody_dpo;
select lives_ok($$select custody.set_context('person', 'dora', 'curiosity')$$, 'for any purpose now');
select lives_ok($$select custody.set_context('person', 'dora')$$, 'or none');

reset session authorization;
set local role custody_admin;
select enter('person_2', 'root') /* $1 */;
select refuses($$select custody.retire_login('custody_dpo')$$, 'PC023', 'another tenant''s login');
select enter('person', 'root') /* $1 */;
select lives_ok($$select custody.retire_login('custody_dpo')$$, 'a login is retired');
select is((last_event('person', 'login.retire')).metadata, '{"login": "custody_dpo"}', 'which is an event');
reset role;
set local session authorization custody_dpo;
select refuses($$select custody.set_context('person', 'dora', 'erasure')$$, 'PC061', 'it gets no context any more');
select refuses($$select custody.begin_context('x')$$, 'PC061', 'nor by a token');
set local custody.tenant = 'person';
select is((select count(*) from custody_data.user_profiles), 0::bigint, 'nor by hand');
select refuses($$select custody.register_login('custody_dpo', 'dora', 'person')$$, '42501', 'it does not register itself');

-- It moves to another tenant: the old row ends.
reset session authorization;
set local role custody_admin;
select enter('person_2', 'root') /* $1 */;
select custody.register_login('custody_dpo', 'dora', 'person_2');
reset role;
select set_eq($$select l.tenant_id::text, l.mode, l.ended_at is null from custody_data.logins l where l.role_name = 'custody_dpo'$$, $$values ('person', 'retired', false), ('person_2', 'person', true)$$, 'one row of a login holds');
select refuses($$delete from custody_data.logins$$, 'PC020', 'rows of logins stay');
select refuses($$update custody_data.logins set role_name = 'x'$$, 'PC030', 'under their names');
select * from finish();
rollback;
