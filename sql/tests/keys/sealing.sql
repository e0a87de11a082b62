-- The cipher is A256CBC-HS512 to the byte, and whatever was altered or moved is refused with one error.
begin;
set local search_path = tap, testing;
select no_plan();
-- RFC 7518, Appendix B.3
create temp table rfc as select
  decode('000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f', 'hex') as key,
  decode('1af38c2dc2b96ffdd86694092341bc04', 'hex') as iv,
  convert_to('The second principle of Auguste Kerckhoffs', 'UTF8') as aad,
  convert_to('A cipher system must not be required to be secret, and it must be able to fall into the hands of the enemy without inconvenience', 'UTF8') as plain,
  decode('4affaaadb78c31c5da4b1b590d10ffbd3dd8d5d302423526912da037ecbcc7bd822c301dd67c373bccb584ad3e9279c2e6d12a1374b77f077553df829410446b36ebd97066296ae6427ea75c2e0846a11a09ccf5370dc80bfecbad28c73f09b3a3b75e662a2594410ae496b2e2e6609e31e6e02cc837f053d21f37ff4f51950bbe2638d09dd7a4930930806d0703b1f6', 'hex') as cipher,
  decode('4dd3b4c088a7f45c216839645b2012bf2e6269a8c56a816dbc1b267761955bc5', 'hex') as tag;
select is(custody_data.encrypt_a256cbc_hs512(key, iv, aad, plain), iv || cipher || tag, 'the vector of RFC 7518 B.3') from rfc;
select is(custody_data.decrypt_a256cbc_hs512(key, aad, iv || cipher || tag), plain, 'and back') from rfc;
select is(count(*) filter (where custody_data.decrypt_a256cbc_hs512(key, aad, set_byte(iv || cipher || tag, n, get_byte(iv || cipher || tag, n) # 1)) is not null), 0::bigint, 'no altered byte of it opens')
from rfc, generate_series(0, 191) n;
select is(count(*) filter (where custody_data.decrypt_a256cbc_hs512(key, aad, substr(iv || cipher || tag, 1, n)) is not null), 0::bigint, 'no part of it opens') from rfc, generate_series(0, 191) n;
select is(custody_data.decrypt_a256cbc_hs512(set_byte(key, n, get_byte(key, n) # 1), aad, iv || cipher || tag), null, format('not with byte %s of the MAC key altered', n)) from rfc, unnest(array[0, 31]) n;
select is(custody_data.decrypt_a256cbc_hs512(key, aad || '\x00', iv || cipher || tag), null, 'nor with other associated data') from rfc;

select tenant('sealing', false);
select tenant('sealing_2', false);
set local session authorization custody_runner;
select custody.set_context('sealing', 'op') /* $1 */;
select is(register_kek('sealing'), 1, 'a first key') /* $1 */;
select custody.set_context('sealing_2', 'op') /* $1 */;
select is(register_kek('sealing_2'), 1, 'and one of another tenant') /* $1 */;
set local session authorization custody_app;
select custody.set_context('sealing', 'clerk');
select custody.record_consent(u, 'mail', true, '1') from unnest(array['ada', 'bob']) u;
select is(unlock('sealing'), 1, 'unlock returns the version') /* $1 */;
create temp table sealed as select identity('sealing', 'ada') as id, custody.seal_value(identity('sealing', 'ada'), 'notes', 'body', 'r/1', 'hällo') as v;
select is(custody.open_value(id, 'notes', 'body', 'r/1', v), 'hällo', 'a value opens in its place') from sealed;
select is(substr(v, 1, 5), '\x0100000001', 'format 1, key 1') from sealed;
select is(octet_length(v), 5 + 16 + 16 + 32, 'of the documented length') from sealed;
select is(custody.seal_value(id, 'notes', 'body', 'r/1', 'hällo'), v, 'the same value has the same bytes') from sealed;
select isnt(substr(custody.seal_value(id, 'notes', p[1], p[2], p[3]), 6, 16), substr(v, 6, 16), 'another vector for ' || array_to_string(p, ', ')) from sealed,
  (values (array['body', 'r/1', 'hällo ']), (array['body', 'r/2', 'hällo']), (array['title', 'r/1', 'hällo'])) x (p);
select is(custody.seal_value(id, 'notes', 'body', 'r/1', null), null, 'null stays null') from sealed;
select is(custody.open_value(id, 'notes', 'body', 'r/1', null), null, 'both ways') from sealed;
select is(custody.open_value(id, 'notes', 'body', 'r', custody.seal_value(id, 'notes', 'body', 'r', t)), t, format('%s characters', length(t))) from sealed,
  unnest(array['', 'x', repeat('y', 15), repeat('z', 16), repeat('ß', 100000)]) t;
select refuses(format($$select custody.open_value(%L, 'notes', 'body', 'r/1', %L)$$, id, set_byte(v, n, get_byte(v, n) # 128)), 'PC035', format('byte %s altered', n))
from sealed, unnest(array[0, 1, 4, 5, 20, 21, 36, 37, 68]) n;
select refuses(format($$select custody.open_value(%L, 'notes', 'body', 'r/1', %L)$$, id, substr(v, 1, n)), 'PC035', format('cut to %s bytes', n)) from sealed, unnest(array[0, 1, 5, 37, 68]) n;
select refuses(format($$select custody.open_value(%L, 'notes', 'body', 'r/1', %L)$$, id, v || '\x00'), 'PC035', 'a byte more') from sealed;
select refuses(format($$select custody.open_value(%L, 'notes', 'body', 'r/2', %L)$$, id, v), 'PC035', 'in another row') from sealed;
select refuses(format($$select custody.open_value(%L, 'notes', 'title', 'r/1', %L)$$, id, v), 'PC035', 'in another column') from sealed;
select refuses(format($$select custody.open_value(%L, 'notices', 'body', 'r/1', %L)$$, id, v), 'PC035', 'in another table') from sealed;
select custody.seal_value(identity('sealing', 'bob'), 'notes', 'body', 'r/1', 'x');
select refuses(format($$select custody.open_value(%L, 'notes', 'body', 'r/1', %L)$$, identity('sealing', 'bob'), v), 'PC035', 'of another person') from sealed;
select refuses(format($$select custody.seal_value(%L, %s, 'r', 'x')$$, id, p), 'PC023', format('place %s', p)) from sealed, unnest(array['null, ''c''', '''t'', null', '''T'', ''c''', '''a/b'', ''c''']) p;
select refuses(format($$select custody.seal_value(%L, 't', 'c', 'r', 'x')$$, '00000000-0000-0000-0000-000000000000'), 'PC023', 'the tenant''s own key is not for values');
select refuses(format($$select custody.seal_value(%L, 't', 'c', 'r', 'x')$$, gen_random_uuid()), 'PC021', 'an unknown identity');
-- confined to one person
select custody.set_context('sealing', 'clerk', null, 'bob');
select is(unlock('sealing'), 1, 'unlocked again') /* $1 */;
select refuses(format($$select custody.open_value(%L, 'notes', 'body', 'r/1', %L)$$, id, v), 'PC015', 'opening for another person than the subject') from sealed;
select refuses(format($$select custody.seal_value(%L, 'notes', 'body', 'r/1', 'x')$$, id), 'PC015', 'sealing too') from sealed;
-- another tenant
select custody.set_context('sealing_2', 'clerk');
select refuses(format($$select custody.open_value(%L, 'notes', 'body', 'r/1', %L)$$, id, v), 'PC033', 'a new context is locked') from sealed;
select is(unlock('sealing_2'), 1, 'with the key of another tenant') /* $1 */;
select refuses(format($$select custody.open_value(%L, 'notes', 'body', 'r/1', %L)$$, id, v), 'PC035', 'nothing opens') from sealed;
-- destroyed
reset session authorization;
delete from custody_keys.wrapped_keys w where w.tenant_id = 'sealing' and w.identity_id = identity('sealing', 'ada');
update custody_keys.data_keys k set destroyed_at = now() where k.tenant_id = 'sealing' and k.identity_id = identity('sealing', 'ada');
set local session authorization custody_app;
select custody.set_context('sealing', 'clerk');
select unlock('sealing') /* $1 */;
select refuses(format($$select custody.open_value(%L, 'notes', 'body', 'r/1', %L)$$, id, v), 'PC021', 'what a destroyed key sealed is erased, not broken') from sealed;
select is(substr(custody.seal_value(id, 'notes', 'body', 'r/1', 'x'), 1, 5), '\x0100000002', 'whoever is not erased gets a key of a new version') from sealed;
select * from finish();
rollback;
