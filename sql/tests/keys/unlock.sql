-- What a transaction has to do before it may open or seal, and what is refused.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('unlock_1', false);
select tenant('unlock_2', false);
set local session authorization custody_app;
select custody.set_context('unlock_1', 'clerk');
select custody.record_consent('ada', 'mail', true, '1');
select refuses($$select testing.unlock('unlock_1')$$, 'PC034', 'a tenant without a key, by $1');
set local session authorization custody_runner;
select custody.set_context('unlock_1', 'op') /* $1 */;
select is(register_kek('unlock_1'), 1, 'it gets one') /* $1 */;
select custody.set_context('unlock_2', 'op') /* $1 */;
select is(register_kek('unlock_2'), 1, 'another tenant too') /* $1 */;
select is((select e.metadata from last_event('unlock_1', 'key.register') e where e.resource_type = 'key'), '{"kek_version": 1}', 'that is an event');

set local session authorization custody_app;
select custody.set_context('unlock_1', 'clerk');
select refuses(format($$select custody.seal_value(%L, 't', 'c', 'r', 'x')$$, identity('unlock_1', 'ada')), 'PC033', 'sealing while locked');
select refuses(format($$select custody.open_value(%L, 't', 'c', 'r', '\x0100000001%s')$$, identity('unlock_1', 'ada'), repeat('00', 64)), 'PC033', 'opening while locked');
select is(custody_data.is_unlocked(), false, 'locked');
select refuses($$select testing.unlock('unlock_2')$$, 'PC034', 'the key of another tenant, by $1');
select refuses($$select custody.unlock(substr(testing.kek('unlock_1'), 1, 63))$$, 'PC034', 'a key that is too short, by $1');
select refuses($$select custody.unlock(testing.kek('unlock_1') || '\x00')$$, 'PC034', 'a key that is too long, by $1');
select refuses($$select custody.unlock('')$$, 'PC034', 'an empty key, by $1');
select refuses($$select custody.unlock(null)$$, 'PC034', 'no key, by $1');
select refuses($$select testing.unlock('unlock_1')$$, 'PC036', 'a statement without a parameter');
select refuses($$select custody.unlock('\x0101')$$, 'PC036', 'a literal');
select refuses(format($$select custody.unlock(%L)$$, '\x3031'::bytea), 'PC036', 'a literal beside $1, here \x3031');
select refuses($$select custody.unlock(convert_to('01', 'UTF8'))$$, 'PC036', 'in base64: $1 MDE=');
select is(custody_data.is_unlocked(), false, 'still locked');
select is(unlock('unlock_1'), 1, 'unlocked') /* $1 */;
select is(custody_data.is_unlocked(), true, 'for this transaction');
select refuses($$select testing.unlock('unlock_2')$$, 'PC034', 'a wrong key, by $1');
select custody.set_context('unlock_1', 'clerk');
select is(custody_data.is_unlocked(), false, 'a new context is locked, of the same tenant too');

-- Settings under which a bound parameter is logged.
reset session authorization;
create function pg_temp.leaks(p_setting text, p_value text) returns text[] language plpgsql as $$
declare
  v_found text[];
begin
  perform set_config(p_setting, p_value, true);
  v_found := custody_data.leaking_settings();
  raise exception using errcode = 'T0001', message = v_found::text;
exception when sqlstate 'T0001' then
  return sqlerrm::text[];
end
$$;
select is(custody_data.leaking_settings(), '{}', 'the settings of the stack leak nothing');
select is(pg_temp.leaks(s, v), array[n], format('%s = %s', s, v)) from (values
  ('log_parameter_max_length_on_error', '-1', 'log_parameter_max_length_on_error'),
  ('log_parameter_max_length_on_error', '64', 'log_parameter_max_length_on_error'),
  ('pgaudit.log_parameter', 'on', 'pgaudit.log_parameter'),
  ('debug_print_parse', 'on', 'debug_print_parse'),
  ('debug_print_rewritten', 'on', 'debug_print_rewritten'),
  ('debug_print_plan', 'on', 'debug_print_plan')) x (s, v, n);
set local log_parameter_max_length = -1;
select is(pg_temp.leaks(s, v), array['log_parameter_max_length'], format('%s = %s', s, v)) from (values
  ('log_statement', 'all'), ('log_statement', 'mod'), ('log_min_duration_statement', '0'), ('log_min_duration_statement', '5000'),
  ('log_min_duration_sample', '0'), ('log_transaction_sample_rate', '0.1')) x (s, v);
set local log_parameter_max_length = 0;
set local log_statement = 'all';
set local log_min_duration_statement = 0;
select is(custody_data.leaking_settings(), '{}', 'talkative settings without parameters do not');
load 'auto_explain';
set local auto_explain.log_min_duration = 0;
-- From Postgres 16 on it logs parameters, unless it is told not to.
select is(custody_data.leaking_settings(), array(select name from pg_settings where name = 'auto_explain.log_parameter_max_length'), 'auto_explain as it comes');
select set_config(name, '0', true) from pg_settings where name = 'auto_explain.log_parameter_max_length';
select is(pg_temp.leaks(s, 'on'), array[s], s) from unnest(array['auto_explain.log_nested_statements', 'auto_explain.log_verbose']) s;
select is(pg_temp.leaks('auto_explain.log_min_duration', '-1'), '{}', 'auto_explain that logs nothing does not');
set local pgaudit.log_parameter = on;
set local session authorization custody_app;
select custody.set_context('unlock_1', 'clerk');
select refuses($$select testing.unlock('unlock_1')$$, 'PC036', 'such a setting, by $1');
reset session authorization;
set local pgaudit.log_parameter = off;
set local log_parameter_max_length_on_error = -1;
set local session authorization custody_app;
select custody.set_context('unlock_1', 'clerk');
select is(unlock('unlock_1'), null, 'where an error would log the key there is none') /* $1 */;
select refuses(format($$select custody.seal_value(%L, 't', 'c', 'r', 'x')$$, identity('unlock_1', 'ada')), 'PC033', 'and the transaction stays locked');
select * from finish();
rollback;
