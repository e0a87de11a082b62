-- set_context says for whom, by whom and why the transaction runs; the getters give it back.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('set_context');
set local session authorization custody_app;

select is(custody.current_tenant(), null, 'without a context there is no tenant');
select is(custody.current_actor(), null, 'without a context there is no actor');
select is(custody.current_actor_id(), null, 'without a context the actor has no identity');
select is(custody.current_purpose(), null, 'without a context there is no purpose');
select is(custody.current_subject(), null, 'without a context there is no subject');
select is(custody.current_subject_id(), null, 'without a context the subject has no identity');
select ok(not custody.has_subject(), 'without a context the transaction is not confined');

select enter('set_context', 'clerk', 'support', 'ada') /* $1 */;
select is(custody.current_tenant(), 'set_context', 'the tenant is that of the context');
select is(custody.current_actor(), 'clerk', 'the actor is that of the context');
select is(custody.current_purpose(), 'support', 'the purpose is that of the context');
select is(custody.current_subject(), 'ada', 'the subject is that of the context');
select ok(custody.has_subject(), 'with a subject the transaction is confined');
select is(custody.current_actor_id(), null, 'an actor who was never seen has no identity yet');
select is(custody.current_subject_id(), null, 'a subject who was never seen has no identity yet');
select is(rows_of('set_context', 'identities'), 0::bigint, 'entering a context makes nobody known');

select custody.put_preferences('ada', '{}');
select is(custody.current_subject_id(), identity('set_context', 'ada'), 'the subject''s identity is in the context once there is one');
select is(custody.current_actor_id(), identity('set_context', 'clerk'), 'so is the actor''s');

select custody.set_context('set_context', 'clerk');
select is(custody.current_purpose(), null, 'a second context brings its own purpose');
select ok(not custody.has_subject(), 'a second context without a subject is not confined');
select is(custody.current_actor_id(), identity('set_context', 'clerk'), 'a known actor is looked up at once');

select lives_ok(format('select custody.set_context(%L, %L)', 'set_context', repeat('ä', 256)), 'an actor may have 256 characters');
select * from finish();
rollback;
