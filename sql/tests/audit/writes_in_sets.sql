-- A statement that touches many rows makes one event for each person, which names every row.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('write_sets');
set local session authorization custody_app;
select enter('write_sets', 'clerk') /* $1 */;
select custody.put_preferences('ada', '{"a": 1}');
select custody.put_preferences('bob', '{"a": 1}');

-- Functions write row by row; sets are the owner's to write.
reset session authorization;
set local role custody_owner;
select enter('write_sets', 'clerk') /* $1 */;
insert into custody_data.conversations (tenant_id, identity_id, conversation_id, messages, message_count, started_at, last_message_at)
select 'write_sets', identity('write_sets', p), p || n, any_sealed(), 0, now(), now()
from unnest(array['ada', 'bob']) p, generate_series(1, 3) n;
select results_eq($$select e.subject_id, e.resource_id collate "default", e.metadata from events('write_sets', 'record.insert') e where e.resource_type = 'conversations' order by e.metadata::text$$,
  $$values (identity('write_sets', 'ada'), null::text, '{"rows": 3, "row_ids": ["ada1", "ada2", "ada3"]}'::jsonb), (identity('write_sets', 'bob'), null, '{"rows": 3, "row_ids": ["bob1", "bob2", "bob3"]}')$$,
  'six rows of two people are two events');

update custody_data.conversations set title = any_sealed() where conversation_id <> 'ada3';
select results_eq($$select e.metadata from events('write_sets', 'record.update') e where e.resource_type = 'conversations' order by e.metadata::text$$,
  $$values ('{"rows": 2, "columns": ["title"], "row_ids": ["ada1", "ada2"]}'::jsonb), ('{"rows": 3, "columns": ["title"], "row_ids": ["bob1", "bob2", "bob3"]}')$$, 'an update too');
update custody_data.conversations set title = any_sealed(), message_count = case conversation_id when 'ada1' then 1 else message_count end where conversation_id in ('ada1', 'ada3');
select results_eq($$select e.resource_id collate "default", e.metadata from events('write_sets', 'record.update') e where e.metadata -> 'columns' <> '["title"]' or e.resource_id is not null order by 1$$,
  $$values ('ada1'::text, '{"columns": ["message_count"]}'::jsonb), ('ada3', '{"columns": ["title"]}')$$, 'rows that differ in what changed are events of their own');
delete from custody_data.conversations where conversation_id like 'bob%';
select is(e.metadata, '{"rows": 3, "row_ids": ["bob1", "bob2", "bob3"]}', 'a delete of a person''s rows is one event') from events('write_sets', 'record.delete') e;
delete from custody_data.conversations where conversation_id = 'none';
select is((select count(*) from events('write_sets', 'record.delete')), 1::bigint, 'a statement without rows is none');
insert into custody_data.user_preferences (tenant_id, identity_id, preferences) select 'write_sets', identity('write_sets', 'ada'), any_sealed()
on conflict (tenant_id, identity_id) do update set preferences = excluded.preferences;
select is((select count(*) from events('write_sets', 'record.insert') e where e.resource_type = 'user_preferences'), 2::bigint, 'an upsert that updates is no insert');
select is((select count(*) from events('write_sets', 'record.update') e where e.resource_type = 'user_preferences'), 1::bigint, 'but an update');
select is((select count(*) from events('write_sets', 'record.update') e where e.actor_id <> identity('write_sets', 'clerk')), 0::bigint, 'all are the actor''s');
select * from finish();
rollback;
