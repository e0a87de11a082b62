-- find_subject looks a person up by e-mail address, without case and surrounding blanks, in Unicode NFKC.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('find_subject');
select tenant('find_subject_2');
set local session authorization custody_app;
select enter('find_subject_2', 'clerk') /* $1 */;
select custody.put_profile('eve', '{"email": "ada@example.org"}');
select enter('find_subject', 'clerk') /* $1 */;
select custody.put_profile('ada', '{"email": " Ada@Example.ORG "}');
select custody.put_profile('ada2', '{"email": "ada@example.org"}');
select custody.put_profile('zoe', U&'{"email": "zo\00eb@example.org"}');
select custody.put_profile('bob', '{"full_name": "Bob"}');

select results_eq($$select custody.find_subject('ada@example.org')$$, array['ada', 'ada2'], 'all who have the address, in order; no other tenant''s');
select results_eq($$select custody.find_subject('  ADA@example.org')$$, array['ada', 'ada2'], 'without case and blanks');
select results_eq($$select custody.find_subject(U&'zoe\0308@example.org')$$, array['zoe'], 'composed or not is the same letter');
select results_eq($$select custody.find_subject('ada@example.org', 1)$$, array['ada'], 'a page of them');
select results_eq($$select custody.find_subject('ada@example.org', 1, 'ada')$$, array['ada2'], 'and the next');
select refuses(format('select custody.find_subject(''x'', %s)', l), 'PC023', format('p_limit %s', l)) from unnest(array['null', '0', '10001']) l;
select is_empty($$select custody.find_subject('ada')$$, 'not by a part of it');
select is_empty($$select custody.find_subject('%')$$, 'not by a pattern');
select is_empty($$select custody.find_subject(null)$$, 'not the people without an address');
select is_empty($$select custody.find_subject('')$$, 'nor by nothing');
select custody.delete_profile('ada2');
select results_eq($$select custody.find_subject('ada@example.org')$$, array['ada'], 'a deleted profile is not found');

select enter('find_subject', 'clerk', null, 'bob') /* $1 */;
select is_empty($$select custody.find_subject('ada@example.org')$$, 'a context confined to somebody else finds nobody');
select * from finish();
rollback;
