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
select is(custody.rotate_data_keys(now() + interval '1 hour', 10), '{"identities": 2, "values": 12, "last": null}', 'every value that can change, of everybody');
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
select set_config('custody.resealing', '', true);

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
select is(custody.reindex_profiles(), '{"version": 2, "profiles": 1, "destroyed": [], "last": null}', 'the old index is made anew');
select is(custody.reindex_profiles(), '{"version": 2, "profiles": 0, "destroyed": [1], "last": null}', 'and then the old key goes');
select is(custody.reindex_profiles(), '{"version": 2, "profiles": 0, "destroyed": [], "last": null}', 'once');
select is((select array_agg(distinct v.key_version) from custody.list_sealed_values() v where v.column_name like '%\_index'), array[2], 'all under the new one');
set local session authorization custody_app;
select enter('reseal', 'clerk') /* $1 */;
select is((select array_agg(f) from custody.find_subject('ada@example.org') f), array['ada', 'eve'], 'both are still found');
select is((select array_agg(f) from custody.find_subject(p_phone => '0044 20 7946-0000') f), array['ada'], 'by telephone too');

-- what is old expires with what it sealed
reset session authorization;
alter table custody_keys.data_keys disable trigger a_reject_key_change;
update custody_keys.data_keys k set created_at = k.created_at - interval '8 years' where k.tenant_id = 'reseal';
alter table custody_keys.data_keys enable always trigger a_reject_key_change;
set local session authorization custody_runner;
select enter('reseal', 'runner') /* $1 */;
select results_eq($$select kind, keys, overdue from custody.list_key_ages()$$, $$values ('data', 3::bigint, 3::bigint), ('index', 1, 1), ('key_encryption', 1, 0)$$, 'keys of eight years are overdue');
select is(custody.expire_data_keys(), 4::bigint, 'all but the newest, and but what evidence and events are under');
select is(custody.expire_data_keys(), 0::bigint, 'once');
set local session authorization custody_app;
select enter('reseal', 'clerk') /* $1 */;
select is((select c.evidence from custody.current_consents('ada') c), '{"form": "web"}', 'evidence still opens');
select * from finish();
rollback;
