-- COPY shows what SELECT shows; COPY FROM is refused; a function in WHERE does not see the rows that a policy hides.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('copy_a'), tenant('copy_b');
select populate('copy_a'), populate('copy_b') /* $1 */;
set local session authorization custody_app;
copy custody_data.user_profiles to stdout \g /dev/null
select is(:ROW_COUNT, 0, 'without a context COPY shows nothing');
select enter('copy_a', 'clerk') /* $1 */;
copy custody_data.user_profiles to stdout \g /dev/null
select is(:ROW_COUNT, 1, 'in a context it shows its tenant''s rows');
copy (select * from custody_data.conversations c where c.tenant_id = 'copy_b' or true) to stdout \g /dev/null
select is(:ROW_COUNT, 1, 'a query in it, too');
copy (select * from custody.consents) to stdout \g /dev/null
select is(:ROW_COUNT, 1, 'a view, too');
select enter('copy_a', 'clerk', null, 'somebody') /* $1 */;
copy custody_data.user_profiles to stdout \g /dev/null
select is(:ROW_COUNT, 0, 'confined to somebody else it shows nothing');
select enter('copy_a', 'clerk') /* $1 */;
select refuses(format('copy custody_data.%I to %L', t, '/tmp/x'), '42501', format('%s to a file of the server', t)) from unnest(array['user_profiles', 'audit_logs', 'conversations']) t;
select refuses($$copy custody_data.user_profiles to program 'cat'$$, '42501', 'to a program');
select refuses($$copy custody_data.user_profiles (tenant_id, identity_id) from '/dev/null'$$, '42501', 'from a file');
select refuses('copy custody_data.audit_logs_' || to_char(now() at time zone 'UTC', 'YYYY_MM') || $$ to program 'cat'$$, '42501', 'a partition');
set local row_security = off;
select refuses('select count(*) from custody_data.user_profiles', '42501', 'with row_security off the rows are refused, not shown');
set local row_security = on;

-- A cheap function is planned first wherever it may be: it must not be here.
create temp table leaked (value text);
create function pg_temp.leak(p_value text) returns boolean language plpgsql cost 0.0000001 as $$
begin
  insert into leaked values (p_value);
  return true;
end
$$;
select count(*) as profiles from custody_data.user_profiles p where pg_temp.leak(concat_ws(' ', p.tenant_id, p.identity_id, p.full_name)) \gset
select count(*) as titles from custody_data.conversations c where pg_temp.leak(concat_ws(' ', c.tenant_id, c.identity_id, c.messages)) and c.title is null \gset
select count(*) as consents from custody.consents c where pg_temp.leak(c.identity_id::text) \gset
select count(*) as summaries from custody.conversation_summaries s where pg_temp.leak(s.tenant_id) \gset
select count(*) as people from custody_data.identities i where pg_temp.leak(i.tenant_id || i.user_id) \gset
select isnt_empty('select value from leaked', 'the function is called');
select is((select count(*) from leaked l where l.value ~ 'copy_b' or l.value = identity('copy_b', 'ada')::text), 0::bigint, 'with nothing of another tenant');
-- Errors do not tell either: a division by zero over hidden rows does not happen.
select lives_ok($$select 1 / (case when p.tenant_id = 'copy_b' then 0 else 1 end) from custody_data.user_profiles p$$, 'what is hidden makes no error');
select is((select count(*) from pg_stats s where s.schemaname = 'custody_data' and s.tablename in ('user_profiles', 'conversations', 'user_preferences', 'identities')), 0::bigint, 'the planner''s samples are hidden');
select * from finish();
rollback;
