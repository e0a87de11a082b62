-- The names that tables, policies and guards refer to before the routines are there.
-- control: fail closed (DESIGN guarantee 4)
-- reviewed by: DBA
--
-- Each stub refuses or returns null, so that a database whose routines were never applied shows nothing and
-- accepts nothing. The files under routines/ replace them on every migrate.
-- locks: none. rewrite cost: none.

-- +goose Up
-- +goose StatementBegin
create function custody.current_tenant() returns text
language sql stable parallel safe
return null::text;

create function custody.current_actor_id() returns uuid
language sql stable parallel safe
return null::uuid;

create function custody.current_subject_id() returns uuid
language sql stable parallel safe
return null::uuid;

create function custody.has_subject() returns boolean
language sql stable parallel safe
return true;

create function custody_data.writes_system() returns boolean
language sql stable parallel restricted
return false;
-- +goose StatementEnd

-- +goose StatementBegin
do $$
declare
  v_name text;
begin
  foreach v_name in array array[
    'tg_reject_mutation', 'tg_reject_early_delete', 'tg_reject_column_change', 'tg_reject_held',
    'tg_touch_profile', 'tg_touch_preferences', 'tg_touch_conversation', 'tg_require_live_identity', 'tg_audit_people', 'tg_audit_conversations', 'tg_audit_consents',
    'tg_require_approval', 'tg_keep_tiles', 'tg_keep_entries', 'tg_keep_stretches', 'tg_list_logins'
  ] loop
    execute pg_catalog.format(
      $f$create function custody_data.%I() returns trigger language plpgsql set search_path = pg_catalog, pg_temp
         as $b$ begin
           raise exception using errcode = 'PC031', message = pg_catalog.format('guard %%s is not installed', %L),
             hint = 'Run pgcustody migrate up: it applies the routines.';
         end $b$ $f$, v_name, v_name);
  end loop;
end
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
do $$
declare
  v_function text;
begin
  -- The routines leave views and functions behind that no versioned file knows.
  foreach v_function in array array(
    select p.oid::regprocedure::text from pg_catalog.pg_proc p
    where p.pronamespace in ('custody'::regnamespace, 'custody_data'::regnamespace)
  ) loop
    execute pg_catalog.format('drop function if exists %s cascade', v_function);
  end loop;
end
$$;
-- +goose StatementEnd
