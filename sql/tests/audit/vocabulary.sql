-- A tenant adds its own words to the shared vocabulary; its own go before, and stay its own.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('vocabulary');
select tenant('vocabulary_2');
set local session authorization custody_app;
select enter('vocabulary', 'clerk') /* $1 */;

select is(custody.register_action('ticket.open', '{priority}', 'A ticket was opened.'), 'ticket.open', 'register_action returns the action');
select lives_ok($$select custody.record_audit_event('ticket.open', p_metadata => '{"priority": 1}')$$, 'it is known from then on');
select refuses($$select custody.record_audit_event('ticket.open', p_metadata => '{"source": 1}')$$, 'PC006', 'with its own keys');
select is((last_event('vocabulary', 'vocabulary.register')).metadata, '{"action": "ticket.open", "metadata_keys": ["priority"]}', 'the registration is an event');
select is(custody.register_action('ticket.open', '{priority}', 'A ticket was opened.'), 'ticket.open', 'the same again');
select is((select count(*) from events('vocabulary', 'vocabulary.register')), 1::bigint, 'is no other event');
select custody.register_action('ticket.open', '{priority,source}', 'A ticket was opened.');
select lives_ok($$select custody.record_audit_event('ticket.open', p_metadata => '{"source": 1}')$$, 'its keys can be added to');
select is((select count(*) from events('vocabulary', 'vocabulary.register')), 2::bigint, 'which is an event');

select custody.register_action('account.login', '{device}', 'As this tenant means it.');
select lives_ok($$select custody.record_audit_event('account.login', p_metadata => '{"device": "phone"}')$$, 'the tenant''s word goes before the shared one');
select refuses($$select custody.record_audit_event('account.login', p_metadata => '{"method": "totp"}')$$, 'PC006', 'with its keys alone');
select is(custody.register_resource_type('ticket', 'A ticket.'), 'ticket', 'register_resource_type returns the type');
select lives_ok($$select custody.record_audit_event('ticket.open', 'ticket', '7')$$, 'it is known from then on');
select is(custody.register_resource_type('ticket', 'A ticket.'), 'ticket', 'the same again');
select is((select count(*) from events('vocabulary', 'vocabulary.register') e where e.metadata ? 'resource_type'), 1::bigint, 'is no other event');

select refuses(format('select custody.register_action(%L, %L, %L)', a, '{}', 'x'), 'PC023', format('action %s', coalesce(left(a, 20), 'null')))
from unnest(array[null, '', 'a b', '.a', 'ä', repeat('x', 129)]) a;
select refuses($$select custody.register_action('a', null, 'x')$$, 'PC023', 'no array of keys');
select refuses($$select custody.register_action('a', '{a,null}', 'x')$$, 'PC023', 'a key that is null');
select refuses(format('select custody.register_resource_type(%L, %L)', a, 'x'), 'PC023', format('resource type %s', coalesce(left(a, 20), 'null')))
from unnest(array[null, '', 'a b', '.a', 'ä', repeat('x', 129)]) a;

select enter('vocabulary_2', 'clerk') /* $1 */;
select refuses($$select custody.record_audit_event('ticket.open')$$, 'PC004', 'another tenant does not know the action');
select refuses($$select custody.record_audit_event('account.login', 'ticket')$$, 'PC005', 'nor the resource type');
select lives_ok($$select custody.record_audit_event('account.login', p_metadata => '{"method": "totp"}')$$, 'and has the shared words as they were shipped');
select is((select count(*) from custody_data.audit_actions a where a.tenant_id <> 'system'), 0::bigint, 'it does not see the other''s words');
select refuses($$insert into custody_data.audit_actions (tenant_id, action, description) values ('system', 'x', 'x')$$, '42501', 'nobody writes the shared vocabulary from a tenant');
select refuses($$insert into custody_data.audit_resource_types (tenant_id, resource_type, description) values ('vocabulary', 'x', 'x')$$, '42501', 'nor another tenant''s');
update custody_data.audit_actions set metadata_keys = '{email}' where tenant_id in ('system', 'vocabulary');
select is((select a.metadata_keys from custody_data.audit_actions a where a.tenant_id = 'system' and a.action = 'account.login'), '{method,source,error_code}', 'an update does not reach it');
set local session authorization custody_dpo;
select enter('vocabulary', 'dpo') /* $1 */;
select refuses($$select custody.register_action('x', '{}', 'x')$$, '42501', 'privacy officers add no words');
reset session authorization;
set local session authorization custody_app;
select enter('vocabulary', 'clerk', null, 'ada') /* $1 */;
select refuses($$select custody.register_action('mine.own', '{}', 'x')$$, 'PC015', 'an action by a session that is confined to one person');
select refuses($$select custody.register_resource_type('mine', 'x')$$, 'PC015', 'a resource type too');
select * from finish();
rollback;
