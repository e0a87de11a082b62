-- Consents stay while they are in force and seven years after: a grant from its replacement on, a withdrawal from
-- itself on, both from the person's erasure on; and never does a withdrawal go before its grant.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('retain_consents');
set local session authorization custody_app;
select enter('retain_consents', 'clerk') /* $1 */;
create function pg_temp.decide(p_user_id text, p_purpose text, p_years numeric, p_granted boolean) returns uuid language sql as $$
  select custody.record_consent(p_user_id, p_purpose, p_granted, '1', p_occurred_at => now() - p_years * interval '1 year');
$$;
select pg_temp.decide('ada', 'in force', 9, true);
select pg_temp.decide('ada', 'ended long ago', 9, true), pg_temp.decide('ada', 'ended long ago', 8, false);
select pg_temp.decide('ada', 'ended lately', 9, true), pg_temp.decide('ada', 'ended lately', 6, false);
select pg_temp.decide('ada', 'renewed', 10, true), pg_temp.decide('ada', 'renewed', 8, true), pg_temp.decide('ada', 'renewed', 1, true);
select pg_temp.decide('ada', 'refused', 8, false);
select pg_temp.decide('ada', 'refused then given', 9, false), pg_temp.decide('ada', 'refused then given', 8, true);

create function pg_temp.left() returns text[] language sql as $$
  select array_agg(c.purpose || ' ' || round(extract(epoch from now() - c.occurred_at) / 31557600) order by c.purpose, c.occurred_at)::text[]
  from custody_data.consent_records c;
$$;
set local session authorization custody_runner;
select enter('retain_consents', 'runner') /* $1 */;
select is((select d.due_rows from custody.retention_due d where d.class = 'consent'), 5::bigint, 'what is due');
select is((select d.oldest_at from custody.retention_due d where d.class = 'consent'), now() - interval '10 years', 'and since when');
select is(custody.enforce_retention('consent', 1), 1::bigint, 'a batch of one');
select is(pg_temp.left(), array['ended lately 9', 'ended lately 6', 'ended long ago 9', 'ended long ago 8', 'in force 9', 'refused 8', 'refused then given 9', 'refused then given 8', 'renewed 8', 'renewed 1'], 'takes the oldest');
select is(custody.enforce_retention('consent', 1), 1::bigint, 'the next');
select is(custody.enforce_retention('consent', 1), 1::bigint, 'and the next');
select is(custody.has_consent('ada', 'ended long ago'), false, 'a grant goes before its withdrawal, so it never comes into force again');
select is(custody.enforce_retention('consent', 100), 2::bigint, 'the rest');
select is(pg_temp.left(), array['ended lately 9', 'ended lately 6', 'in force 9', 'refused then given 8', 'renewed 8', 'renewed 1'], 'what is in force or ended less than seven years ago stays');
select is(custody.enforce_retention('consent', 100), 0::bigint, 'nothing is left to do');
select is((select sum((e.metadata ->> 'rows')::int) from events('retain_consents', 'retention.run') e), 5::bigint, 'each batch is an event');
select is((select d.due_rows from custody.retention_due_at(now() + interval '1 year 1 second') d where d.class = 'consent'), 2::bigint, 'in a year two more');

-- Among many people each batch takes as many as it is told until nothing is left.
set local session authorization custody_app;
select enter('retain_consents', 'clerk') /* $1 */;
select pg_temp.decide('person ' || p, 'news', 9, true), case when p % 3 <> 0 then pg_temp.decide('person ' || p, 'news', 8, false) end from generate_series(1, 100) p;
set local session authorization custody_runner;
select enter('retain_consents', 'runner') /* $1 */;
select is(array(select custody.enforce_retention('consent', 3) from generate_series(1, 46)), array_fill(3::bigint, array[44]) || array[2::bigint, 0], 'batches of three');
select is((select count(*) from custody_data.consent_records c where c.purpose = 'news'), 33::bigint, 'leave the grants that nothing followed');
select is((select bool_and(c.granted) from custody_data.consent_records c where c.purpose = 'news'), true, 'and no withdrawal');

-- And of those people alone that it is told.
set local session authorization custody_app;
select enter('retain_consents', 'clerk') /* $1 */;
select pg_temp.decide('person ' || p, 'offers', 9, true), case when p % 3 <> 0 then pg_temp.decide('person ' || p, 'offers', 8, false) end from generate_series(1, 30) p;
set local session authorization custody_runner;
select enter('retain_consents', 'runner') /* $1 */;
create temporary table people as select c.identity_id, row_number() over (order by c.identity_id) as n, count(*) filter (where not c.granted) * 2 as due
  from custody_data.consent_records c where c.purpose = 'offers' group by 1;
create function pg_temp.person(p_n integer) returns uuid language sql as $$ select p.identity_id from people p where p.n = p_n $$;
create function pg_temp.due(p_from integer, p_to integer) returns bigint language sql as $$ select sum(p.due)::bigint from people p where p.n between p_from and p_to $$;
create function pg_temp.goes(p_after integer, p_to integer) returns bigint language sql as $$ select custody.enforce_retention('consent', 100, now(), pg_temp.person(p_after), pg_temp.person(p_to)) $$;
select cmp_ok(pg_temp.due(11, 20), '>', 0::bigint, 'some are due among ten');
select is(pg_temp.goes(10, 20), pg_temp.due(11, 20), 'after one person up to another');
select is(pg_temp.goes(10, 20), 0::bigint, 'of whom nothing is left');
select is(pg_temp.goes(null, 10), pg_temp.due(1, 10), 'from the first on');
select is(pg_temp.goes(20, null), pg_temp.due(21, 30), 'to the last');
select is(pg_temp.goes(20, 10), 0::bigint, 'between nobody');
select is((select array_agg(distinct c.granted) from custody_data.consent_records c where c.purpose = 'offers'), array[true], 'no withdrawal stays');
select is((select count(*) from custody_data.consent_records c where c.purpose = 'offers'), 10::bigint, 'and the grants that nothing followed do');
drop table people;

-- The guard asks the policy, not the caller.
reset session authorization;
set local role custody_owner;
select refuses($$delete from custody_data.consent_records where purpose = 'in force'$$, 'PC020', 'the owner deletes none that is in force');
select refuses($$delete from custody_data.consent_records where purpose = 'ended lately'$$, 'PC020', 'nor one that ended lately');
reset role;
set local session authorization custody_dpo;
select enter('retain_consents', 'dpo') /* $1 */;
select custody.set_retention_policy('consent', interval '5 years', 'limitation');
set local session authorization custody_runner;
select enter('retain_consents', 'runner') /* $1 */;
select custody.approve_retention_change(c.change_id) from custody.retention_changes c where c.status = 'proposed';
reset session authorization;
set local role custody_owner;
select enter('retain_consents', 'owner') /* $1 */;
select lives_ok($$delete from custody_data.consent_records where purpose = 'ended lately'$$, 'what the policy has released may go');
reset role;

-- Erasure ends what was in force.
update custody_data.identities set user_id = null, erased_at = now() - interval '5 years 1 day' where identity_id = identity('retain_consents', 'ada');
set local session authorization custody_runner;
select enter('retain_consents', 'runner') /* $1 */;
select is(custody.enforce_retention('consent', 100), 3::bigint, 'the policy''s time after it, that goes too');
select * from finish();
rollback;
