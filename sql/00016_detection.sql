-- Detection: its rules, what they know of actors and networks, planted people, and alerts.
-- control: HIPAA 164.308(a)(1)(ii)(D), 164.308(a)(6)(ii), 164.312(b); SOC 2 CC7.2, CC7.3; ISO 27001 A.5.25, A.8.15, A.8.16; GDPR Art. 32, 33
-- reviewed by: security, DBA, privacy officer
--
-- A rule is a row here and a function of the routines. Rules serve all tenants and are read by auditors and administrators;
-- nobody who reads personal data is told who is planted. An alert belongs to the tenant whose data was touched, to tenant
-- system where none was. It names actors by identity and keeps no personal value.
-- locks: SHARE ROW EXCLUSIVE on access_events for its indexes, while it is new and empty. rewrite cost: none.

-- +goose Up
create type custody_data.access_group as (
  tenant_id text, actor_id uuid, actor_pseudonym text, login text, role text, client inet, object_name text, is_read boolean, hour timestamptz,
  events bigint, rows bigint, people bigint, own bigint, first_at timestamptz, last_at timestamptz, recorded_to timestamptz
);
comment on type custody_data.access_group is 'Access events of one actor, login, role, client and object in one hour, counted: what the rules look at in common, so that events are read once. people: reads that name a person; own: those that name the actor. recorded_to: when the last of them was shipped.';

create type custody_data.access_hour as (
  tenant_id text, actor text, actor_id uuid, login text, object_name text, hour timestamptz,
  events bigint, rows bigint, people bigint, first_at timestamptz, last_at timestamptz, recorded_to timestamptz
);
comment on type custody_data.access_hour is 'What an actor read of an object in an hour.';

create type custody_data.detection_input as (groups custody_data.access_group[], hours custody_data.access_hour[], definitions text[]);
comment on type custody_data.detection_input is 'What a run of detection computes once for all rules. definitions: findings of custody_check as they are now, id and object with a blank between; none where past data is tried.';

create type custody_data.bulk_read as (
  tenant_id text, actor text, actor_id uuid, login text, hour timestamptz, events bigint, rows bigint, people bigint, usual_rows bigint, usual_people bigint,
  objects text[], first_at timestamptz, last_at timestamptz, recorded_to timestamptz
);
comment on type custody_data.bulk_read is 'What an actor read in an hour, and at most in an hour of the days before.';

create type custody_data.detection_finding as (
  tenant_id text, object_key text, actor_id uuid, login text, events bigint, first_at timestamptz, last_at timestamptz, recorded_to timestamptz, detail jsonb
);
comment on type custody_data.detection_finding is 'What a rule found, in the one shape that all give: whose tenant, what it folds by, who acted, how many events from when to when, and facts without personal data. recorded_to: when the last of the events was shipped, by which what was found before is known.';

create table custody_data.detection_rules (
  tenant_id custody_data.tenant_name not null default 'system',
  rule text collate "C" not null,
  title text not null,
  description text not null,
  control text not null,
  severity text collate "C" not null,
  look_back interval not null,
  threshold bigint not null,
  enabled boolean not null default true,
  function_name text collate "C" not null,
  constraint detection_rules_pkey primary key (tenant_id, rule),
  constraint detection_rules_rule_is_a_name_check check (rule ~ '^[a-z][a-z0-9_]{0,62}$'),
  constraint detection_rules_function_is_a_detector_check check (function_name ~ '^detect_[a-z0-9_]{1,56}$'),
  constraint detection_rules_severity_is_known_check check (severity in ('low', 'medium', 'high', 'critical')),
  constraint detection_rules_threshold_is_positive_check check (threshold >= 1),
  constraint detection_rules_look_back_is_positive_check check (look_back > interval '0' and look_back <= interval '1 year')
);
comment on table custody_data.detection_rules is 'The rules of detection. Severity, look_back, threshold and enabled are set by custody.set_detection_rule.';
comment on column custody_data.detection_rules.look_back is 'How far back the rule looks: its baseline, or the time in which events count together; after_hours, network and privileged_read count by the clock hours that have something new.';
comment on column custody_data.detection_rules.threshold is 'From how many on the rule fires; what is counted the description says.';
comment on column custody_data.detection_rules.function_name is 'Function of custody_data (rule, from, to, seen) that returns setof detection_finding.';

create table custody_data.detection_heads (
  tenant_id custody_data.tenant_name not null default 'system',
  detected_to timestamptz,
  known jsonb not null default '{}',
  constraint detection_heads_pkey primary key (tenant_id)
);
comment on table custody_data.detection_heads is 'How far detection is: one row.';
comment on column custody_data.detection_heads.detected_to is 'Events that were shipped before have been looked at.';
comment on column custody_data.detection_heads.known is 'Superusers, logins that pass row-level security and settings of logging as detection last saw them: what differs is found.';

create table custody_data.detection_networks (
  tenant_id custody_data.tenant_name not null default 'system',
  role_name text collate "C" not null,
  networks inet[] not null,
  constraint detection_networks_pkey primary key (tenant_id, role_name),
  constraint detection_networks_are_given_check check (pg_catalog.cardinality(networks) between 1 and 256)
);
comment on table custody_data.detection_networks is 'From which networks the members of a role, or one login, are expected. A role without a row may come from anywhere.';

create table custody_data.actor_settings (
  tenant_id custody_data.tenant_name not null,
  actor_id uuid not null,
  time_zone text not null,
  work_from time not null,
  work_to time not null,
  work_days smallint[] not null,
  constraint actor_settings_pkey primary key (tenant_id, actor_id),
  constraint actor_settings_hours_are_in_order_check check (work_from < work_to),
  constraint actor_settings_days_are_of_a_week_check check (work_days <@ array[1, 2, 3, 4, 5, 6, 7]::smallint[] and pg_catalog.cardinality(work_days) between 1 and 7)
);
comment on table custody_data.actor_settings is 'When an actor is expected to work. The row of the nil identity is for all of the tenant who have none; without it they have no hours.';
comment on column custody_data.actor_settings.time_zone is 'Name of the IANA database, as in Europe/Berlin.';
comment on column custody_data.actor_settings.work_days is 'ISO days of the week, 1 is Monday.';

create table custody_data.access_baselines (
  tenant_id custody_data.tenant_name not null,
  actor text collate "C" not null,
  object_name text collate "C" not null,
  day date not null,
  peak_rows bigint not null,
  peak_people bigint not null,
  constraint access_baselines_pkey primary key (tenant_id, actor, object_name, day)
);
comment on table custody_data.access_baselines is 'What an actor read of a table on a UTC day, at most in one hour: their own measure. Kept for a year.';
comment on column custody_data.access_baselines.actor is 'Identity of the actor, the pseudonym of one without identity, or the login.';
comment on column custody_data.access_baselines.peak_people is 'Reads that named a person: at least as many as different people were read.';

create table custody_data.canaries (
  tenant_id custody_data.tenant_name not null,
  identity_id uuid not null,
  planted_by uuid not null,
  planted_at timestamptz not null default pg_catalog.clock_timestamp(),
  removed_at timestamptz,
  constraint canaries_pkey primary key (tenant_id, identity_id)
);
comment on table custody_data.canaries is 'People who do not exist: whoever reads one was looking where nobody has anything to look for.';

create table custody_data.alerts (
  tenant_id custody_data.tenant_name not null,
  alert_id uuid not null default pg_catalog.gen_random_uuid(),
  rule text collate "C" not null,
  severity text collate "C" not null,
  state text collate "C" not null default 'open',
  object_key text collate "C" not null,
  actor_id uuid,
  login text collate "C",
  first_at timestamptz not null,
  last_at timestamptz not null,
  recorded_to timestamptz not null,
  count bigint not null default 1,
  events bigint not null,
  detail jsonb not null,
  opened_at timestamptz not null default pg_catalog.clock_timestamp(),
  acknowledged_at timestamptz,
  acknowledged_by uuid,
  closed_at timestamptz,
  closed_by uuid,
  close_reason text,
  sent_at timestamptz,
  attempts integer not null default 0,
  last_status text,
  constraint alerts_pkey primary key (tenant_id, alert_id),
  constraint alerts_severity_is_known_check check (severity in ('low', 'medium', 'high', 'critical')),
  constraint alerts_state_is_known_check check (state in ('open', 'acknowledged', 'closed')),
  constraint alerts_acknowledged_by_somebody_check check ((acknowledged_at is null) = (acknowledged_by is null)),
  constraint alerts_closed_with_a_reason_check check ((state = 'closed') = (closed_at is not null) and (closed_at is null) = (closed_by is null) and (closed_at is null) = (close_reason is null)),
  constraint alerts_close_reason_length_is_at_most_2000_check check (pg_catalog.char_length(close_reason) <= 2000)
);
-- At most one that is not closed.
create unique index alerts_object_key_idx on custody_data.alerts (tenant_id, rule, object_key) where closed_at is null;
create index alerts_opened_at_idx on custody_data.alerts (tenant_id, opened_at);
create index alerts_closed_at_idx on custody_data.alerts (tenant_id, closed_at) where closed_at is not null;
create index alerts_rule_idx on custody_data.alerts (tenant_id, rule, object_key, recorded_to);
comment on table custody_data.alerts is 'What detection found and somebody has to look at: open, acknowledged, closed with a reason. Repeated findings fold into the alert that is not closed. Closed ones are kept for the policy alerts.';
comment on column custody_data.alerts.object_key is 'What findings of the rule fold by: an actor, a login, a table.';
comment on column custody_data.alerts.first_at is 'Time of the first event.';
comment on column custody_data.alerts.last_at is 'Time of the last event.';
comment on column custody_data.alerts.recorded_to is 'When the last of the events was shipped: what is found again without a later one is known.';
comment on column custody_data.alerts.count is 'How often it was found with something new.';
comment on column custody_data.alerts.events is 'How many events the newest finding counted.';
comment on column custody_data.alerts.detail is 'Facts of the newest finding; identities, names of roles and tables, counts.';
comment on column custody_data.alerts.close_reason is 'Why it was closed; must name nobody. @custody{"sensitivity":"content","retention":"alerts"}';
comment on column custody_data.alerts.sent_at is 'When the webhook took it.';
comment on column custody_data.alerts.last_status is 'What became of the last attempt to send it.';

-- What came since, whoever's it is; and the few that rules about roles, schema and logins look for.
create index access_events_recorded_at_idx on custody_data.access_events using brin (recorded_at) with (pages_per_range = 32);
create index access_events_rare_idx on custody_data.access_events (recorded_at)
  where class in ('DDL', 'ROLE', 'SETTING') or kind in ('logon_failed', 'forged');

-- +goose StatementBegin
do $$
declare
  v_table text;
begin
  -- Configuration and state of the whole database.
  foreach v_table in array array['detection_rules', 'detection_heads', 'detection_networks'] loop
    execute pg_catalog.format('alter table custody_data.%I enable row level security, force row level security', v_table);
    execute pg_catalog.format('create policy %I on custody_data.%I using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()))', v_table || '_all_all', v_table);
    execute pg_catalog.format('comment on policy %I on custody_data.%I is %L', v_table || '_all_all', v_table, 'In the context of tenant system.');
  end loop;

  -- Rows of a tenant; detection itself serves all of them in the context of tenant system.
  foreach v_table in array array['actor_settings', 'access_baselines', 'canaries', 'alerts'] loop
    execute pg_catalog.format('alter table custody_data.%I enable row level security, force row level security', v_table);
    execute pg_catalog.format('create policy %I on custody_data.%I using (tenant_id = (select custody.current_tenant()) and not (select custody.has_subject()))', v_table || '_all_all', v_table);
    execute pg_catalog.format('comment on policy %I on custody_data.%I is %L', v_table || '_all_all', v_table, 'Rows of the tenant in context.');
    execute pg_catalog.format('create policy %I on custody_data.%I to custody_owner using ((select custody.current_tenant()) = ''system'' and not (select custody.has_subject()))', v_table || '_owner_all', v_table);
    execute pg_catalog.format('comment on policy %I on custody_data.%I is %L', v_table || '_owner_all', v_table, 'Detection, which serves all tenants at once.');
  end loop;
  create policy alerts_system_select on custody_data.alerts for select to custody_worker, custody_auditor
    using ((select custody.current_tenant()) = 'system' and not (select custody.has_subject()));
  comment on policy alerts_system_select on custody_data.alerts is 'Whoever watches all tenants, in the context of tenant system.';

  foreach v_table in array array['detection_rules', 'detection_heads', 'detection_networks', 'actor_settings', 'access_baselines', 'canaries', 'alerts'] loop
    execute pg_catalog.format('create policy %I on custody_data.%I for select to custody_backup using (true)', v_table || '_backup_select', v_table);
    execute pg_catalog.format('comment on policy %I on custody_data.%I is %L', v_table || '_backup_select', v_table, 'pg_dump --enable-row-security reads every row.');
    execute pg_catalog.format('grant select on custody_data.%I to custody_backup', v_table);
  end loop;
end
$$;
-- +goose StatementEnd
grant select on custody_data.detection_rules, custody_data.detection_heads, custody_data.detection_networks, custody_data.actor_settings
  to custody_admin, custody_worker, custody_auditor;
grant select on custody_data.canaries to custody_auditor;
grant select on custody_data.alerts to custody_worker, custody_privacy, custody_auditor;

create trigger a_reject_truncate before truncate on custody_data.alerts
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_early_delete before delete on custody_data.alerts
  for each row execute function custody_data.tg_reject_early_delete('alerts');
create trigger a_reject_key_change before update on custody_data.alerts
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'alert_id', 'rule', 'severity', 'object_key', 'actor_id', 'login', 'first_at', 'opened_at',
    '=acknowledged_at', '=acknowledged_by', '=closed_at', '=closed_by', '=close_reason', '=sent_at');
create trigger a_reject_delete before delete or truncate on custody_data.canaries
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_key_change before update on custody_data.canaries
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'identity_id', 'planted_at');
create trigger a_reject_delete before delete or truncate on custody_data.detection_rules
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_key_change before update on custody_data.detection_rules
  for each row execute function custody_data.tg_reject_column_change('tenant_id', 'rule', 'function_name');
create trigger a_reject_delete before delete or truncate on custody_data.detection_heads
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_truncate before truncate on custody_data.detection_networks
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_truncate before truncate on custody_data.actor_settings
  for each statement execute function custody_data.tg_reject_mutation();
create trigger a_reject_truncate before truncate on custody_data.access_baselines
  for each statement execute function custody_data.tg_reject_mutation();
-- +goose StatementBegin
do $$
declare
  v_trigger record;
begin
  for v_trigger in
    select t.tgname, c.relname from pg_catalog.pg_trigger t join pg_catalog.pg_class c on c.oid = t.tgrelid
    where c.relnamespace = 'custody_data'::regnamespace and not t.tgisinternal
      and c.relname in ('detection_rules', 'detection_heads', 'detection_networks', 'actor_settings', 'access_baselines', 'canaries', 'alerts')
  loop
    execute pg_catalog.format('alter table custody_data.%I enable always trigger %I', v_trigger.relname, v_trigger.tgname);
  end loop;
end
$$;
-- +goose StatementEnd

alter table custody_data.detection_rules no force row level security;
insert into custody_data.detection_rules (rule, title, description, control, severity, look_back, threshold, function_name) values
  ('bulk_rows', 'Many rows read', 'Rows that an actor read within one clock hour, and more than three times the most of any hour of the days before.', 'HIPAA 164.308(a)(1)(ii)(D)', 'high', '28 days', 5000, 'detect_bulk_rows'),
  ('bulk_people', 'Many people read', 'Different people whom an actor read within one clock hour, in more than three times as many reads as in any hour of the days before.', 'HIPAA 164.308(a)(1)(ii)(D)', 'high', '28 days', 200, 'detect_bulk_people'),
  ('after_hours', 'Reads out of hours', 'Events of an actor outside the hours that custody.set_actor_hours gave them, in their time zone.', 'ISO 27001 A.8.16', 'medium', '1 hour', 1, 'detect_after_hours'),
  ('network', 'Unexpected network', 'Events of a login from an address that none of its lists has (custody.set_detection_networks).', 'SOC 2 CC6.6', 'high', '1 hour', 1, 'detect_network'),
  ('first_table', 'First read of a table', 'Days of look_back on which an actor has read, who reads a table for the first time in it.', 'ISO 27001 A.8.16', 'low', '90 days', 5, 'detect_first_table'),
  ('privileged_read', 'Personal tables read by a superuser or the owner', 'Reads of tables with personal columns by who passes row-level security.', 'HIPAA 164.312(a)(1)', 'high', '1 hour', 1, 'detect_privileged_read'),
  ('canary', 'A canary was read', 'Reads of people who do not exist (custody.plant_canary).', 'SOC 2 CC7.2', 'critical', '1 hour', 1, 'detect_canary'),
  ('new_superuser', 'New superuser, BYPASSRLS or owner', 'Roles that have got a power over all rows since detection last looked.', 'SOC 2 CC6.3', 'critical', '1 hour', 1, 'detect_new_superuser'),
  ('role_statement', 'Roles were changed', 'Statements that make, change or grant roles.', 'HIPAA 164.308(a)(4)(ii)(C)', 'medium', '1 hour', 1, 'detect_role_statement'),
  ('schema_statement', 'The schema was changed', 'DDL statements on our schemas; each migration is one.', 'SOC 2 CC8.1', 'medium', '1 hour', 1, 'detect_schema_statement'),
  ('trigger_disabled', 'A guard was disabled', 'Guards that do not stand as the last migration left them, or statements on triggers of our tables.', 'HIPAA 164.312(c)(1)', 'critical', '1 hour', 1, 'detect_trigger_disabled'),
  ('policy_changed', 'Row-level security was changed', 'Policies that are not as the last migration left them, or statements on policies of our tables.', 'HIPAA 164.312(a)(1)', 'critical', '1 hour', 1, 'detect_policy_changed'),
  ('settings_changed', 'Settings of pgaudit or logging were changed', 'Settings that are not what they were when detection last looked, that hide or leak, or statements that set them.', 'HIPAA 164.312(b)', 'high', '1 hour', 1, 'detect_settings_changed'),
  ('failed_logins', 'Burst of failed logins', 'Failed logins at one login, or from one network, within look_back.', 'ISO 27001 A.8.5', 'medium', '10 minutes', 10, 'detect_failed_logins'),
  ('sealing_behind', 'Sealing is behind', 'Events of the trail without a leaf in the ledger, the oldest for longer than look_back.', 'HIPAA 164.312(c)(1)', 'high', '10 minutes', 1, 'detect_sealing_behind'),
  ('shipping_behind', 'Shipping is behind', 'Sources of the log of which nothing has been shipped for longer than look_back.', 'HIPAA 164.312(b)', 'high', '15 minutes', 1, 'detect_shipping_behind'),
  ('log_finding', 'Something is wrong with the log', 'Findings of one kind about the log of one source: forged lines, gaps, lost files.', 'ISO 27001 A.8.15', 'high', '1 hour', 1, 'detect_log_finding')
on conflict do nothing;
alter table custody_data.detection_rules force row level security;

-- +goose Down
drop index custody_data.access_events_recorded_at_idx, custody_data.access_events_rare_idx;
drop table custody_data.alerts, custody_data.canaries, custody_data.access_baselines, custody_data.actor_settings, custody_data.detection_networks,
  custody_data.detection_heads, custody_data.detection_rules cascade;
drop type custody_data.detection_finding cascade;
drop type custody_data.bulk_read cascade;
drop type custody_data.detection_input cascade;
drop type custody_data.access_hour cascade;
drop type custody_data.access_group cascade;
