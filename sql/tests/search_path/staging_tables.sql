-- An import reads the caller's own temporary tables, so it runs with the caller's rights: a trap in their place
-- catches the caller, never the owner.
begin;
set local search_path = tap, testing;
set local client_min_messages = error;
select no_plan();
select tenant('staging_attack');
create table testing.trapped (what text, who text);
grant insert, select on testing.trapped to public;
set local session authorization custody_runner;
select enter('staging_attack', 'runner') /* $1 */;
select custody.prepare_import('user_profiles');
create function pg_temp.trap() returns trigger language plpgsql as $$
begin
  insert into testing.trapped values (tg_table_name, current_user);
  return coalesce(new, old);
end
$$;
create trigger evil before delete or update on pg_temp.staged_user_profiles for each row execute function pg_temp.trap();
create trigger evil before insert on pg_temp.import_people for each row execute function pg_temp.trap();
insert into pg_temp.staged_user_profiles (line, user_id, full_name) values (1, 'ada', 'Ada'), (2, 'ada', 'Ada'), (3, 'bob', 'Bob');
select is(custody.import_profiles(), '{"added": 2, "changed": 0, "unchanged": 1, "refused": 0}', 'the import runs');
select isnt_empty('select * from testing.trapped', 'through the trap');
select is_empty($$select t.who from testing.trapped t where t.who <> 'custody_runner'$$, 'as nobody but its caller');
-- A view in the place of a staging table.
select custody.prepare_import('user_preferences');
drop table pg_temp.staged_user_preferences;
create function pg_temp.rows() returns table (line bigint, user_id text, preferences jsonb) language plpgsql as $$
begin
  insert into testing.trapped values ('view', current_user);
  return query select 1::bigint, 'ada'::text, '{}'::jsonb;
end
$$;
create temp view staged_user_preferences as select * from pg_temp.rows();
select isnt(attempt('custody_runner', 'select custody.import_preferences()'), 'ok', 'is refused');
select is_empty($$select t.who from testing.trapped t where t.who <> 'custody_runner'$$, 'and runs as nobody but its caller');
select is_empty($$select f.signature from functions f where f.prosecdef and (select p.prosrc from pg_proc p where p.oid = f.oid) ~ 'pg_temp\.'$$, 'no definer function names the caller''s temporary tables');
select * from finish();
rollback;
