-- Whoever seals outside the database gets the keys of many people at once, as the key in hand wraps them.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('claimed', false);
create function pg_temp.id(p_user_id text) returns uuid language sql as $$ select testing.identity('claimed', p_user_id) $$;
create function pg_temp.ids(variadic p_users text[]) returns uuid[] language sql as $$ select array_agg(testing.identity('claimed', u)) from unnest(p_users) u $$;
-- What a claimed key seals, and under which version.
create function pg_temp.seals(p_ids uuid[], p_kek integer) returns setof text language plpgsql as $$
declare
  c custody.wrapped_data_key;
begin
  for c in select * from custody.claim_data_keys(p_ids) loop
    return next format('%s v%s %s', (select i.user_id from custody_data.identities i where i.identity_id = c.identity_id), c.key_version, custody_data.data_key(c.identity_id, c.key_version) =
      custody_data.open_bytes(testing.kek('claimed', p_kek), custody_data.sealing_place('claimed', c.identity_id, 'wrapped_keys', 'wrapped', c.key_version::text), c.wrapped));
  end loop;
end
$$;
set local session authorization custody_runner;
select refuses($$select custody.claim_data_keys('{}')$$, 'PC001', 'without a context');
select custody.set_context('claimed', 'op');
select register_kek('claimed') /* $1 */;
set local session authorization custody_app;
select custody.set_context('claimed', 'clerk');
select custody.record_consent('p' || n, 'mail', true, '1') from generate_series(1, 4) n;
set local session authorization custody_runner;
select custody.set_context('claimed', 'op');
select refuses($$select custody.claim_data_keys('{}')$$, 'PC033', 'locked, those of nobody');
select refuses($$select custody.claim_data_keys(pg_temp.ids('p1'))$$, 'PC033', 'locked');
select unlock('claimed') /* $1 */;
select is_empty($$select custody.claim_data_keys('{}')$$, 'nobody has no keys');
select refuses($$select custody.claim_data_keys(null)$$, 'PC023', 'identities that are null');
select refuses($$select custody.claim_data_keys(array['00000000-0000-0000-0000-000000000000'::uuid])$$, 'PC023', 'the tenant''s own');
select refuses($$select custody.claim_data_keys(pg_temp.ids('p1') || gen_random_uuid())$$, 'PC021', 'an unknown identity');
select refuses($$select custody.claim_data_keys(pg_temp.ids('p1') || null::uuid)$$, 'PC021', 'one that is null');
select custody.seal_value(pg_temp.id('p2'), 't', 'c', 'r', 'x');
reset session authorization;
select bag_eq($$select pg_temp.seals(pg_temp.ids('p1', 'p2', 'p1'), 1)$$, array['p1 v1 t', 'p2 v1 t'], 'keys that are there and keys that are made, each once');
select bag_eq($$select pg_temp.seals(pg_temp.ids('p1', 'p2'), 1)$$, array['p1 v1 t', 'p2 v1 t'], 'the same again');
select is((select count(*) from custody_keys.wrapped_keys w where w.tenant_id = 'claimed'), 2::bigint, 'makes none anew');
select bag_eq($$select k.created_at = now(), k.destroyed_at from custody_keys.data_keys k where k.tenant_id = 'claimed'$$, 'values (true, null::timestamptz), (true, null)', 'and is what the page of keys says');

-- Seals what custody.seal_value seals.
select is(custody_data.seal_bytes(custody_data.open_bytes(testing.kek('claimed'), custody_data.sealing_place('claimed', c.identity_id, 'wrapped_keys', 'wrapped', '1'), c.wrapped), 1,
  custody_data.sealing_place('claimed', c.identity_id, 't', 'c', 'r'), 'x'), custody.seal_value(c.identity_id, 't', 'c', 'r', 'x'), 'such a key seals the same bytes')
from custody.claim_data_keys(pg_temp.ids('p1')) c;

-- While a key-encryption key is replaced, whoever has either gets what theirs opens.
set local session authorization custody_runner;
select register_kek('claimed', 2) /* $1 */;
select unlock('claimed', 2) /* $1 */;
reset session authorization;
select bag_eq($$select pg_temp.seals(pg_temp.ids('p1', 'p2', 'p3'), 2)$$, array['p1 v1 t', 'p2 v1 t', 'p3 v1 t'], 'the new key, before anything is wrapped anew, and of somebody new');
select unlock('claimed', 1) /* $1 */;
select bag_eq($$select pg_temp.seals(pg_temp.ids('p1', 'p3', 'p4'), 1)$$, array['p1 v1 t', 'p3 v1 t', 'p4 v1 t'], 'the old one, also of whom the new one met first');
select is((select count(*) from custody_keys.wrapped_keys w where w.tenant_id = 'claimed' and w.identity_id = pg_temp.id('p3')), 2::bigint, 'a key made now is wrapped by both');

-- The newest of several versions.
set local session authorization custody_runner;
select unlock('claimed', 2) /* $1 */;
select custody.rewrap_keys();
select custody.rotate_data_keys(now() + interval '1 hour');
reset session authorization;
select bag_eq($$select pg_temp.seals(pg_temp.ids('p1', 'p4'), 2)$$, array['p1 v2 t', 'p4 v2 t'], 'after a rotation of data keys, the new ones');
update custody_keys.key_encryption_keys set retired_at = now() where tenant_id = 'claimed' and kek_version = 2;
select custody.set_context('claimed', 'clerk');
select custody.record_consent('late', 'mail', true, '1');
select set_config('custody.kek', encode(testing.kek('claimed', 2), 'hex'), true), set_config('custody.kek_version', '2', true);
set local session authorization custody_runner;
select refuses($$select custody.claim_data_keys(pg_temp.ids('late'))$$, 'PC034', 'a key that was retired meanwhile makes none');
reset session authorization;
delete from custody_keys.wrapped_keys where tenant_id = 'claimed' and identity_id = pg_temp.id('p1');
set local session authorization custody_runner;
select refuses($$select custody.claim_data_keys(pg_temp.ids('p1'))$$, 'PC035', 'a key of which no copy is left');
select custody.set_context('claimed', 'op', null, 'p2');
select refuses($$select custody.claim_data_keys(pg_temp.ids('p2'))$$, 'PC015', 'confined to one person');

-- The erased get none.
reset session authorization;
select set_config('testing.p2', pg_temp.id('p2')::text, true), set_config('testing.request', request('claimed', 'p2')::text, true);
set local session authorization custody_dpo;
select custody.set_context('claimed', 'dpo');
select custody.erase_subject(current_setting('testing.request')::uuid);
reset session authorization;
select custody.set_context('claimed', 'op');
select set_config('custody.kek', encode(testing.kek('claimed', 2), 'hex'), true), set_config('custody.kek_version', '2', true);
set local session authorization custody_runner;
select refuses($$select custody.claim_data_keys(array[current_setting('testing.p2')::uuid])$$, 'PC021', 'an identity that was erased');
select * from finish();
rollback;
