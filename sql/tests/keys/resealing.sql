-- Rotating data keys and the index key: values go under the new key and say the same, records are not touched by it,
-- append-only values keep their version, and what is old is destroyed once nothing is under it.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('reseal');
set local session authorization custody_app;
select enter('reseal', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"full_name": "Ada Byron", "email": "ada@example.org", "phone": "+44 20 7946 0000", "attributes": {"a": 1}}');
select custody.put_profile('bob', '{"full_name": "Bob"}');
select custody.put_profile('nil', '{}');
select custody.put_preferences('ada', '{"theme": "dark"}');
select custody.save_conversation('ada', 'c' || n, '[{"role": "user", "text": "hello"}]', 't' || n) from generate_series(1, 3) n;
select custody.record_consent('ada', 'mail', true, '1', p_evidence => '{"form": "web"}');
select custody.record_audit_event('account.login', p_subject_user_id => 'ada', p_personal => '{"ip": "192.0.2.7"}');
create temp table was as select custody.get_profile('ada') as profile, custody.get_preferences('ada') as preferences,
  (select jsonb_agg(custody.get_conversation('ada', 'c' || n) order by n) from generate_series(1, 3) n) as conversations;
grant select on was to public;
reset session authorization;
create temp table bytes_were as select p.email, p.email_index, p.identity_id from custody_data.user_profiles p where p.tenant_id = 'reseal';
create temp table events_were as select count(*) as n from events('reseal');
grant select on bytes_were, events_were to public;

set local session authorization custody_runner;
select custody.set_context('reseal', 'runner');
select refuses($$select custody.rotate_data_keys(now() + interval '1 day')$$, 'PC033', 'locked');
select refuses($$select custody.rotate_index_key()$$, 'PC033', 'the index key too');
select refuses($$select custody.reindex_profiles()$$, 'PC033', 'and indexing');
select enter('reseal', 'runner') /* $1 */;
select refuses(format('select custody.rotate_data_keys(%s)', a), 'PC023', format('rotate_data_keys(%s)', a)) from unnest(array['null', 'now(), 0', 'now(), null', 'now(), 10001']) a;
select refuses(format('select custody.reindex_profiles(%s)', a), 'PC023', format('reindex_profiles(%s)', a)) from unnest(array['0', 'null', '10001']) a;
select refuses(format('select custody.expire_data_keys(%s)', a), 'PC023', format('expire_data_keys(%s)', a)) from unnest(array['0', 'null', '10001']) a;
select is(custody.rotate_data_keys(now() - interval '1 hour'), '{"identities": 0, "values": 0, "last": null}', 'no key is that old');
select is(custody.rotate_data_keys(now() + interval '1 hour', 10), '{"identities": 3, "values": 12, "last": null}', 'every value that can change, of everybody');
select is(custody.rotate_data_keys(now() + interval '1 hour', 1) -> 'identities', '1', 'as many people as asked for');
select is(custody.rotate_data_keys(now() + interval '1 hour', 1, (custody.rotate_data_keys(now() + interval '1 hour', 1) ->> 'last')::uuid) -> 'identities', '1', 'and on from the last');
select is((select count(*) from custody.list_sealed_values() v where v.append_only and v.state = 'older' and v.key_version = 1), 2::bigint, 'evidence and personal parts stay where they are');
select is((select array_agg(distinct v.state) from custody.list_sealed_values() v where not v.append_only), array['current'], 'the rest is under the newest keys');
select is((select array_agg(distinct v.key_version) from custody.list_sealed_values() v where v.table_name = 'user_profiles' and v.column_name = 'email_index'), array[1], 'the index has a key of its own');
reset session authorization;
select is((select count(*) from events('reseal')) - n, (select count(*) from events('reseal', 'key.rotate')), 'the trail has the rotations and no change of a record') from events_were;
select is((last_event('reseal', 'key.rotate')).metadata ? 'values', true, 'with counts');
select isnt(p.email::bytea, b.email::bytea, 'the bytes are others') from custody_data.user_profiles p join bytes_were b using (identity_id) where b.email is not null;

set local session authorization custody_app;
select enter('reseal', 'clerk') /* $1 */;
select is(custody.get_profile('ada'), profile, 'a profile says the same, its version and times too') from was;
select is(custody.get_preferences('ada'), preferences, 'preferences too') from was;
select is((select jsonb_agg(custody.get_conversation('ada', 'c' || n) order by n) from generate_series(1, 3) n), conversations, 'and conversations') from was;
select is((select c.evidence from custody.current_consents('ada') c), '{"form": "web"}', 'evidence opens with the old key');
select is(custody.patch_profile('ada', '{"city": "London"}', 1), 2, 'who read version 1 before may change it');
-- Nobody can pass off a change as a resealing.
select set_config('custody.resealing', 'on', true);
select custody.patch_profile('ada', '{"city": "Paris"}');
reset session authorization;
select is((last_event('reseal', 'record.update')).metadata, '{"columns": ["city"]}', 'a change is in the trail whatever the setting says');
select is((select p.version from custody_data.user_profiles p where p.tenant_id = 'reseal' and p.city is not null), 3, 'and counted');
select set_config('custody.resealing', '', true);

-- what is refused
set local session authorization custody_runner;
select enter('reseal', 'runner', null, 'ada') /* $1 */;
select refuses($$select custody.rotate_data_keys(now())$$, 'PC015', 'rotating for one person');
select refuses($$select custody.rotate_index_key()$$, 'PC015', 'the index key');
select refuses($$select custody.reindex_profiles()$$, 'PC015', 'indexing');
select refuses($$select custody.expire_data_keys()$$, 'PC015', 'expiring');
select refuses($$select custody.list_sealed_values()$$, 'PC015', 'counting');
select refuses($$select custody.list_key_ages()$$, 'PC015', 'ages');
select refuses($$select custody.mark_kek_destroyed(1)$$, 'PC015', 'forgetting a key');
select enter('reseal', 'runner') /* $1 */;
select refuses(format('select custody.mark_kek_destroyed(%s)', v), 'PC023', format('version %s is not retired', v)) from unnest(array['1', '7', 'null']) v;
select is(array_agg(k), array[row (1, 'test:1')::custody.kek_reference], 'applications are told which key to take') from custody.current_kek() k;
reset session authorization;
savepoint altered;
update custody_data.user_preferences p set preferences = set_byte(p.preferences, 40, get_byte(p.preferences, 40) # 1) where p.tenant_id = 'reseal';
update custody_data.user_profiles p set phone = set_byte(p.phone, 40, get_byte(p.phone, 40) # 1), phone_index = '\x00000009'::bytea || substr(p.phone_index, 5) where p.tenant_id = 'reseal' and p.phone is not null;
set local session authorization custody_runner;
select enter('reseal', 'runner') /* $1 */;
select refuses($$select custody.rotate_data_keys(now() + interval '1 hour')$$, 'PC035', 'an altered value is not passed over');
select custody.rotate_index_key();
select refuses($$select custody.reindex_profiles()$$, 'PC035', 'nor an altered number');
rollback to altered;
savepoint retired;
set local session authorization custody_runner;
select enter('reseal', 'runner') /* $1 */;
reset session authorization;
update custody_keys.key_encryption_keys k set retired_at = now() where k.tenant_id = 'reseal';
set local session authorization custody_runner;
select refuses($$select custody.rotate_data_keys(now() + interval '1 hour')$$, 'PC034', 'a key that was retired meanwhile makes no data key');
select refuses($$select custody.rotate_index_key()$$, 'PC034', 'and no index key');
select is(custody.mark_kek_destroyed(1), true, 'a retired key may be forgotten');
select is(custody.mark_kek_destroyed(1), false, 'once');
select is((last_event('reseal', 'key.destroy')).metadata, '{"kek_version": 1}', 'which is an event');
rollback to retired;

-- the index key
set local session authorization custody_runner;
select enter('reseal', 'runner') /* $1 */;
select is(custody.rotate_index_key(), 2, 'a new index key');
select is(custody.rotate_index_key(), 2, 'no other while the old one is in use');
set local session authorization custody_app;
select enter('reseal', 'clerk') /* $1 */;
select is((select array_agg(f) from custody.find_subject('ADA@example.org') f), array['ada'], 'found by the old index');
select custody.put_profile('eve', '{"email": "ada@example.org"}');
select is((select array_agg(f) from custody.find_subject(' ada@example.org') f), array['ada', 'eve'], 'and by the new');
set local session authorization custody_runner;
select enter('reseal', 'runner') /* $1 */;
select is(custody.reindex_profiles(), '{"version": 2, "profiles": 1, "destroyed": [], "over": false, "last": null}', 'the old index is made anew');
select is(custody.reindex_profiles(), '{"version": 2, "profiles": 0, "destroyed": [1], "over": true, "last": null}', 'and then the old key goes');
select is(custody.reindex_profiles(), '{"version": 2, "profiles": 0, "destroyed": [], "over": true, "last": null}', 'once');
select is((select array_agg(distinct v.key_version) from custody.list_sealed_values() v where v.column_name like '%\_index'), array[2], 'all under the new one');
set local session authorization custody_app;
select enter('reseal', 'clerk') /* $1 */;
select is((select array_agg(f) from custody.find_subject('ada@example.org') f), array['ada', 'eve'], 'both are still found');
select is((select array_agg(f) from custody.find_subject(p_phone => '0044 20 7946-0000') f), array['ada'], 'by telephone too');

-- what is old expires with what it sealed: of three people the second's evidence, the third's event is under version 1
reset session authorization;
create temp table old as select gen_random_uuid() as id, n from generate_series(1, 3) n;
insert into custody_data.identities (tenant_id, identity_id, user_id) select 'reseal', o.id, 'old' || o.n from old o;
insert into custody_keys.data_keys (tenant_id, identity_id, key_version, created_at)
select 'reseal', o.id, v, now() - make_interval(years => 11 - v) from old o, generate_series(1, 3) v;
insert into custody_keys.wrapped_keys (tenant_id, identity_id, key_version, kek_version, wrapped) select 'reseal', o.id, v, 1, '\x00' from old o, generate_series(1, 3) v;
insert into custody_data.consent_records (tenant_id, identity_id, purpose, granted, policy_version, legal_basis, evidence, occurred_at)
select 'reseal', o.id, 'p', true, '1', 'consent', '\x0100000001'::bytea || decode(repeat('00', 64), 'hex'), now() from old o where o.n = 2;
insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, personal)
select 'reseal', gen_random_uuid(), now(), identity('reseal', 'clerk'), o.id, 'account.login', '\x0100000001'::bytea || decode(repeat('00', 64), 'hex') from old o where o.n = 3;
set local session authorization custody_runner;
select enter('reseal', 'runner') /* $1 */;
select is((select a.overdue from custody.list_key_ages() a where a.kind = 'data'), 3::bigint, 'keys of eight years are overdue');
select is(custody.expire_data_keys(1), 1::bigint, 'as many as asked for');
select is(custody.expire_data_keys(), 3::bigint, 'the old ones, but for those that something is still under');
select is(custody.expire_data_keys(), 0::bigint, 'once');
reset session authorization;
select results_eq($$select o.n, array_agg(k.key_version order by k.key_version) from custody_keys.data_keys k join old o on o.id = k.identity_id where k.destroyed_at is null group by 1 order by 1$$,
  $$values (1, '{3}'::integer[]), (2, '{1,3}'), (3, '{1,3}')$$, 'the newest stays whatever its age');
select is((select count(*) from custody_keys.wrapped_keys w join old o on o.id = w.identity_id), 5::bigint, 'and their wrapped copies');
set local session authorization custody_app;
select enter('reseal', 'clerk') /* $1 */;
select is((select c.evidence from custody.current_consents('ada') c), '{"form": "web"}', 'evidence still opens');
select * from finish();
rollback;
