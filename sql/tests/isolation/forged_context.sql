-- Any role can set any custom setting, so in free mode a context can be forged; it then shows what set_context would have
-- given, and never two tenants at once. (logins/token_mode.sql and persons.sql have logins for which it is worth nothing.)
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('forged_a'), tenant('forged_b');
select populate('forged_a'), populate('forged_b') /* $1 */;
set local session authorization custody_app;
set local custody.tenant = 'forged_b';
select is((select string_agg(distinct p.tenant_id, ' ') from custody_data.user_profiles p), 'forged_b', 'a forged tenant shows that tenant');
select refuses(format('insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action) values (%L, gen_random_uuid(), now(), gen_random_uuid(), %L)', 'forged_b', 'account.login'), '42501', 'events need an actor');
set local custody.tenant = 'system';
select is((select count(*) from custody_data.user_profiles) + (select count(*) from custody_data.identities i where i.tenant_id <> 'system'), 0::bigint, 'a forged tenant system shows no tenant''s rows');
set local custody.actor = 'x';
select refuses($$select custody.audit_events(now() - interval '1 day', now())$$, 'PC015', 'nor the trail');
select refuses($$select custody.record_audit_event('account.login')$$, 'PC015', 'and takes no event');
set local custody.subject = 'x';
select refuses($$select custody.audit_events(now() - interval '1 day', now())$$, 'PC015', 'with a forged subject neither');
select refuses($$select custody.register_action('evil', '{}', 'evil')$$, 'PC015', 'nobody adds to the shared vocabulary');
select refuses($$insert into custody_data.audit_actions (tenant_id, action, description) values ('system', 'evil', 'evil')$$, '42501', 'nor by one''s own right');
select refuses($$insert into custody_data.audit_resource_types (tenant_id, resource_type, description) values ('system', 'evil', 'evil')$$, '42501', 'resource types neither');
with changed as (update custody_data.audit_actions set metadata_keys = '{email}' where tenant_id = 'system' returning 1) select is((select count(*) from changed), 0::bigint, 'or changes it');
set local session authorization custody_dpo;
select refuses($$select custody.set_retention_policy('audit', interval '1 day', 'evil')$$, 'PC015', 'nobody sets the shared policies');
set local session authorization custody_app;
set local custody.tenant = 'forged_a'' or true or ''';
select is((select count(*) from custody_data.user_profiles), 0::bigint, 'settings are values, not SQL');
-- Roles are not forged: what a function is asked for by a forged context it gives to its caller's rights only.
set local custody.tenant = 'forged_a';
set local custody.subject = '';
select refuses($$select custody.erase_subject(gen_random_uuid())$$, '42501', 'rights do not come from settings');
select refuses($$select custody.export_subject('ada')$$, 'PC015', 'nor from being inside a definer function');

select * from finish();
rollback;
