-- A line is ours by its MAC and by the session that it stands in: the vector of sql/routines/19_lines.sql, and what is made of it.
begin;
set local search_path = tap, testing;
select no_plan();
insert into custody_keys.context_keys (kid, kind, secret, created_at) values ('00000000-0000-4000-8000-000000000001', 'line', sha256('pgcustody line'), '2000-01-01');
create temp table vector as
select 'PGCUSTODY 00000000-0000-4000-8000-000000000001.f1952a12d710458c3487187d05ecb6ec5fabf79c35e742fadaa5b14287aa67c4 '
  || '{"v":1,"what":"context","tenant":"acme","actor":"~0123456789abcdef","purpose":"care","login":"app","role":"app","pid":4711,"xact":1795305600000000}' as m,
  '6b023080.1267' as s;
grant select on vector to public;
set local role custody_worker;
create function pg_temp.ours(p_message text, p_session text) returns boolean language sql as $$ select (custody_data.lines_are_ours(array[p_message], array[p_session]))[1] $$;
select ok(pg_temp.ours(m, s), 'the vector') from vector;
select ok(pg_temp.ours(m, '6b023000.1267'), 'a session that began before the transaction') from vector;
select ok(not pg_temp.ours(m, w.s), w.what)
from vector, (values ('6b023081.1267', 'a session that began later'), ('6b023080.1268', 'another process'), ('6b023080', 'no session'), ('', 'nothing'), (null, 'null'),
  ('6B023080.1267', 'as the server does not write it'), ('x.1267', 'no number'), ('6b0230806b0230806b023080.1267', 'too long'), ('6b023080.6b0230806b023080', 'too long a process')) w (s, what);
select ok(not pg_temp.ours(w.m, s), w.what)
from vector, lateral (values (replace(m, 'care', 'cure'), 'another purpose'), (replace(m, '4711', '4712'), 'another process within'), (replace(m, 'f1952', 'f1953'), 'another MAC'),
  (replace(m, 'PGCUSTODY', 'pgcustody'), 'another word'), (' ' || m, 'a space before'), (m || ' ', 'a space behind'), (replace(m, '000000000001', '000000000002'), 'an unknown key'),
  (m || E'\n' || m, 'two'), (left(m, 120), 'cut'), ('PGCUSTODY', 'no more than the word'), ('', 'nothing'), (null, 'null'), (replace(m, 'f1952', 'F1952'), 'a MAC in capitals')) w (m, what);
select is(custody_data.lines_are_ours(array[m, 'x', m, null, m], array[s, s, 'x', s, s]), '{t,f,f,f,t}', 'many at once, in their order') from vector;
select is(custody_data.lines_are_ours('{}', '{}'), '{}', 'none');
select is(cardinality(custody_data.lines_are_ours((select array_agg(m) from vector, generate_series(1, 5000)), (select array_agg(s) from vector, generate_series(1, 5000)))), 5000, 'thousands');
reset role;
select is(attempt(g.name, format('select custody_data.lines_are_ours(array[%L], array[%L])', m, s)), case g.name when 'custody_worker' then 'ok' else '42501' end, format('%s asks', g.name)) from vector, groups g;

update custody_keys.context_keys set retired_at = clock_timestamp() - interval '34 days' where kid = '00000000-0000-4000-8000-000000000001';
set local role custody_worker;
select ok(pg_temp.ours(m, s), 'a key that is retired') from vector;
reset role;
insert into custody_keys.context_keys (kid, kind, secret, retired_at) values ('00000000-0000-4000-8000-000000000003', 'line', sha256('pgcustody line'), clock_timestamp() - interval '36 days');
set local role custody_worker;
select is(pg_temp.ours(replace(m, '0001.', '0003.'), s), null, 'or for longer than 35 days: nobody can tell') from vector;
select ok(not pg_temp.ours(replace(left(m, 60), '0001.', '0003.'), s), 'what has not the form is none') from vector;
select ok(not pg_temp.ours(replace(m, '0001.', '0003.'), 'x'), 'nor what stands in no session') from vector;
reset role;

-- Rotation keeps what late logs need.
select throws_ok($$insert into custody_keys.context_keys (kid, kind, secret, retired_at) values ('t', 'token', sha256('t'), now())$$, '23514', null, 'of other keys that are retired nothing is kept');
set local role custody_admin;
select enter('system', 'root') /* $1 */;
select lives_ok($$select custody.rotate_context_key()$$, 'rotation');
reset role;
select is((select count(*) from custody_keys.context_keys k where k.kind = 'line' and k.retired_at is null), 1::bigint, 'one key makes lines');
select is((last_event('system', 'context_key.rotate')).metadata ->> 'line_kid', (select k.kid collate "default" from custody_keys.context_keys k where k.kind = 'line' and k.retired_at is null), 'the event names it');
select is((select k.secret from custody_keys.context_keys k where k.kid = '00000000-0000-4000-8000-000000000003'), null, 'the secret of the old one is forgotten');
set local role custody_worker;
select is(pg_temp.ours(replace(m, '0001.', '0003.'), s), null, 'and still nobody can tell') from vector;
reset role;
select isnt((select k.secret from custody_keys.context_keys k where k.kid = '00000000-0000-4000-8000-000000000001'), null, 'that of the other is kept');
select * from finish();
rollback;
