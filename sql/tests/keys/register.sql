-- A key-encryption key is made known once, strong, and by somebody who has the one that it replaces.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('register_key', false);
set local session authorization custody_app;
select custody.set_context('register_key', 'clerk');
select custody.record_consent('ada', 'mail', true, '1');
set local session authorization custody_runner;
select custody.set_context('register_key', 'op', null, 'ada');
select refuses($$select custody.register_kek(testing.kek('register_key'), 'x')$$, 'PC015', 'confined to one person, by $1');
select custody.set_context('register_key', 'op');
select refuses(format('select custody.register_kek(%s, ''x'')', k), 'PC034', format('weak: %s, by $1', k)) from unnest(array['null', 'repeat(''a'', 64)::bytea', 'sha256(''x'')', 'sha512(''x'') || ''\x00''',
  'decode(repeat(md5(''x''), 4), ''hex'')']) k;
select refuses($$select custody.register_kek(testing.kek('register_key'), '')$$, 'PC023', 'no reference, by $1');
select refuses($$select custody.register_kek(testing.kek('register_key'), repeat('x', 4097))$$, 'PC023', 'a reference that is too long, by $1');
select refuses($$select custody.register_kek(testing.kek('register_key'), 'x')$$, 'PC036', 'a statement without a parameter');
select is(register_kek('register_key'), 1, 'the first version') /* $1 */;
select refuses($$select testing.register_kek('register_key')$$, 'PC034', 'the same key again, by $1');
select refuses($$select custody.register_kek(testing.kek('register_key', 2), 'x')$$, 'PC034', 'another one without the one that it replaces, by $1');
select refuses($$select custody.register_kek(testing.kek('register_key', 2), 'x', testing.kek('register_key', 3))$$, 'PC034', 'or with a wrong one, by $1');
set local session authorization custody_app;
select custody.set_context('register_key', 'clerk');
select unlock('register_key') /* $1 */;
create temp table sealed as select custody.seal_value(identity('register_key', 'ada'), 't', 'c', 'r', 'before') as v;
set local session authorization custody_runner;
select custody.set_context('register_key', 'op');
select refuses($$select custody.register_kek(testing.kek('register_key', 2), 'x', '\x3031')$$, 'PC036', 'the one that it replaces as a literal beside $1');
select is(register_kek('register_key', 2), 2, 'the second version') /* $1 */;
select refuses($$select custody.register_kek(testing.kek('register_key', 3), 'x', testing.kek('register_key', 2))$$, 'PC037', 'a third one while the second replaces the first, by $1');
-- Both are valid meanwhile, and who has either one reads all.
set local session authorization custody_app;
select custody.set_context('register_key', 'clerk');
select custody.record_consent('bob', 'mail', true, '1');
select is(unlock('register_key', 2), 2, 'the new key') /* $1 */;
select is(custody.open_value(identity('register_key', 'ada'), 't', 'c', 'r', v), 'before', 'opens what the old one wrapped') from sealed;
create temp table sealed_2 as select custody.seal_value(identity('register_key', 'bob'), 't', 'c', 'r', 'after') as v;
select is(unlock('register_key', 1), 1, 'the old key') /* $1 */;
select is(custody.open_value(identity('register_key', 'bob'), 't', 'c', 'r', v), 'after', 'opens what was made under the new one') from sealed_2;
reset session authorization;
select is_empty($$select 1 from custody_keys.key_encryption_keys k where k.tenant_id = 'register_key' and (position(testing.kek('register_key', 1) in k.previous) > 0 or position(testing.kek('register_key', 2) in k.previous) > 0)$$, 'no key rests in the database');
select is((select array_agg(w.kek_version order by w.kek_version) from custody_keys.wrapped_keys w where w.tenant_id = 'register_key' and w.identity_id = identity('register_key', 'bob')), '{1,2}', 'a data key made meanwhile is wrapped by both');
-- The guards of the tables.
set local role custody_owner;
select custody.set_context('register_key', 'owner');
select refuses($$delete from custody_keys.key_encryption_keys$$, 'PC020', 'known keys are not forgotten');
select refuses($$delete from custody_keys.data_keys$$, 'PC020', 'nor data keys');
select refuses($$truncate custody_keys.wrapped_keys$$, 'PC020', 'wrapped keys go one by one');
select refuses($$update custody_keys.wrapped_keys set wrapped = '\x00'$$, 'PC030', 'and never change');
select refuses($$update custody_keys.key_encryption_keys set check_value = '\x00'$$, 'PC030', 'nor what a key is told by');
reset role;
select is(attempt(g.name, format('select * from custody_keys.%I', t)), case g.name when 'custody_backup' then 'ok' else '42501' end, format('%s and %s', g.name, t))
from groups g, unnest(array['key_encryption_keys', 'data_keys', 'wrapped_keys']) t;
select * from finish();
rollback;
