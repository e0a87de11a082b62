-- find_subject looks people up by e-mail address, without case and surrounding blanks, in Unicode NFKC, and by telephone number,
-- in E.164 where it says its country, through indexes that differ between tenants and between fields.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('find_subject');
select tenant('find_subject_2');
set local session authorization custody_app;
select enter('find_subject_2', 'clerk') /* $1 */;
select custody.put_profile('eve', '{"email": "ada@example.org", "phone": "+49 30 123456"}');
select enter('find_subject', 'clerk') /* $1 */;
select is_empty($$select custody.find_subject('ada@example.org')$$, 'before anybody has an address, nobody is found');
select custody.put_profile('ada', '{"email": " Ada@Example.ORG "}');
select custody.put_profile('ada2', '{"email": "ada@example.org"}');
select custody.put_profile('zoe', U&'{"email": "zo\00eb@example.org"}');
select custody.put_profile('bob', '{"full_name": "Bob"}');

select results_eq($$select custody.find_subject('ada@example.org')$$, array['ada', 'ada2'], 'all who have the address, in order; no other tenant''s');
select results_eq($$select custody.find_subject('  ADA@example.org')$$, array['ada', 'ada2'], 'without case and blanks');
select results_eq($$select custody.find_subject(U&'zoe\0308@example.org')$$, array['zoe'], 'composed or not is the same letter');
select results_eq($$select custody.find_subject(U&'\FF5Aoe\0308\FF20example.org')$$, array['zoe'], 'wide letters too');
select results_eq($$select custody.find_subject('ada@example.org', p_limit => 1)$$, array['ada'], 'a page of them');
select results_eq($$select custody.find_subject('ada@example.org', p_limit => 1, p_after => 'ada')$$, array['ada2'], 'and the next');
select refuses(format('select custody.find_subject(''x'', p_limit => %s)', l), 'PC023', format('p_limit %s', l)) from unnest(array['null', '0', '10001']) l;
select refuses($$select custody.find_subject(null)$$, 'PC023', 'nothing to look for');
select refuses($$select custody.find_subject()$$, 'PC023', 'at all');
select is_empty($$select custody.find_subject('ada')$$, 'not by a part of it');
select is_empty($$select custody.find_subject('%')$$, 'not by a pattern');
select is_empty($$select custody.find_subject('')$$, 'not the people without an address');
select is_empty($$select custody.find_subject('   ')$$, 'nor by blanks');
select custody.delete_profile('ada2');
select results_eq($$select custody.find_subject('ada@example.org')$$, array['ada'], 'a deleted profile is not found');
select custody.patch_profile('ada', '{"email": "other@example.org"}');
select is_empty($$select custody.find_subject('ada@example.org')$$, 'nor one that has another address now');
select results_eq($$select custody.find_subject('other@example.org')$$, array['ada'], 'by which it is found');
select custody.patch_profile('ada', '{"city": "London"}');
select results_eq($$select custody.find_subject('other@example.org')$$, array['ada'], 'whatever else changes');
select custody.put_profile('ada', '{"city": "London"}');
select is_empty($$select custody.find_subject('other@example.org')$$, 'until there is none');

-- Telephone numbers.
select custody.put_profile(u, jsonb_build_object('phone', p)) from (values ('p1', '+49 (0)30 123-456'), ('p2', '0049 30 123456'), ('p3', '030 123456'), ('p4', '(030) 12 34 56'), ('p5', '+49 30 1234567'),
  ('p6', 'none'), ('p7', U&'\FF0B4930\FF11\FF12\FF13456')) v (u, p);
select results_eq(format('select custody.find_subject(p_phone => %L)', p), array['p1', 'p2', 'p7'], format('by %s', p))
from unnest(array['+4930123456', '+49 (0)30 123-456', '0049 30 123456', '0049(0)30/123456', '+49.30.123.456', U&' \FF0B49 30 123456 ']) p;
select results_eq(format('select custody.find_subject(p_phone => %L)', p), array['p3', 'p4'], format('by the digits of %s: it does not say its country', p)) from unnest(array['030123456', '030 / 123 456', '030-12-34-56']) p;
select is_empty(format('select custody.find_subject(p_phone => %L)', p), format('not by %s', p)) from unnest(array['30 123456', '123456', '+49 30 12345', '', 'none', '+', '%']) p;
select refuses($$select custody.find_subject(null, null)$$, 'PC023', 'neither');

-- Both.
select custody.put_profile('both', '{"email": "ada@example.org", "phone": "+49 30 123456"}'), custody.put_profile('mail', '{"email": "ada@example.org", "phone": "+49 30 999999"}');
select results_eq($$select custody.find_subject('ADA@example.org', '0049 30 123456')$$, array['both'], 'who has both');
select results_eq($$select custody.find_subject('ADA@example.org')$$, array['both', 'mail'], 'who has the one');
select results_eq($$select custody.find_subject(p_phone => '0049 30 123456')$$, array['both', 'p1', 'p2', 'p7'], 'or the other');
select is_empty($$select custody.find_subject('', '0049 30 123456')$$, 'an empty address is nobody''s, whatever the number');

-- By import as by function.
set local session authorization custody_runner;
select enter('find_subject', 'runner') /* $1 */;
select custody.prepare_import('user_profiles');
insert into pg_temp.staged_user_profiles (line, user_id, email, phone) values (1, 'imported', ' IMPORTED@example.org', '0049 30 77 77 77'), (2, 'mail', 'mail@example.org', null);
select custody.import_profiles();
set local session authorization custody_app;
select enter('find_subject', 'clerk') /* $1 */;
select results_eq($$select custody.find_subject('imported@example.org', '+4930777777')$$, array['imported'], 'an imported profile is found');
select results_eq($$select custody.find_subject('ADA@example.org')$$, array['both'], 'what an import changes is not found by what it was');

-- The index of an address is another one in another tenant and in another field, and the same for two people.
reset session authorization;
select is((select count(distinct p.email_index) from custody_data.user_profiles p join custody_data.identities i using (tenant_id, identity_id) where (i.tenant_id, i.user_id) in (('find_subject', 'both'), ('find_subject_2', 'eve'))), 2::bigint, 'the same address in two tenants');
select is((select count(distinct p.phone_index) from custody_data.user_profiles p join custody_data.identities i using (tenant_id, identity_id) where (i.tenant_id, i.user_id) in (('find_subject', 'both'), ('find_subject_2', 'eve'))), 2::bigint, 'the same number');
select is((select count(distinct p.phone_index) from custody_data.user_profiles p join custody_data.identities i using (tenant_id, identity_id) where i.tenant_id = 'find_subject' and i.user_id in ('p1', 'p2', 'p7', 'both')), 1::bigint, 'one number, however written, has one index');
set local session authorization custody_app;
select enter('find_subject', 'clerk') /* $1 */;
select custody.put_profile('digits', '{"email": "030555", "phone": "030555"}');
select is((select count(*) from custody_data.user_profiles p where p.email_index = p.phone_index), 0::bigint, 'nor is the index of a field that of another');
select is((select count(*) from custody_data.user_profiles p where octet_length(coalesce(p.email_index, p.phone_index)) <> 36), 0::bigint, 'all are of the same length');
select is((select array_agg(distinct substr(p.email_index, 1, 4)) from custody_data.user_profiles p where p.email_index is not null), array['\x00000001'::bytea], 'and begin with the version of the index key');
select refuses($$select custody.find_subject(null, '+4930123456', 0)$$, 'PC023', 'a limit of none');
select custody.set_context('find_subject', 'clerk');
select refuses($$select custody.find_subject('ada@example.org')$$, 'PC033', 'locked');

select enter('find_subject', 'clerk', null, 'bob') /* $1 */;
select is_empty($$select custody.find_subject('ada@example.org')$$, 'a context confined to somebody else finds nobody');
select enter('find_subject', 'clerk', null, 'both') /* $1 */;
select results_eq($$select custody.find_subject(p_phone => '+4930123456')$$, array['both'], 'one confined to somebody who has it finds that one');
select * from finish();
rollback;
