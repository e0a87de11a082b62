-- What the migrator did to this database: the versioned files, and the parts that are applied again.
-- control: SOC 2 CC8.1, ISO 27001 A.8.32 (change management)
-- reviewed by: DBA
--
-- Run once, before the first versioned file, as custody_owner. A binary reads these tables before it starts
-- to work: the mark `breaking` stands here because an older binary does not have the file that carries it.
-- locks: new tables only. rewrite cost: none.

create table custody_data.schema_migrations (
  version bigint not null,
  name text not null,
  breaking boolean not null,
  sha256 text not null,
  applied_at timestamptz not null default pg_catalog.clock_timestamp(),
  applied_by text not null default session_user,
  constraint schema_migrations_pkey primary key (version)
);
comment on table custody_data.schema_migrations is 'The versioned files that this database has, one a row.';
comment on column custody_data.schema_migrations.breaking is 'Binaries that do not know this version must stop.';
comment on column custody_data.schema_migrations.sha256 is 'Digest of the file as it was applied; a file that was changed afterwards is reported.';

create table custody_data.schema_steps (
  step_id bigint generated always as identity,
  part text not null,
  sha256 text not null,
  version bigint not null,
  applied_at timestamptz not null default pg_catalog.clock_timestamp(),
  applied_by text not null default session_user,
  constraint schema_steps_pkey primary key (step_id),
  constraint schema_steps_part_is_known_check check (part in ('routines', 'river', 'pgaudit'))
);
comment on table custody_data.schema_steps is 'Each application of a part that is not versioned. The newest row of a part is what the database has; an older one with a binary''s digest tells that the database is ahead of it, none that it is behind.';
comment on column custody_data.schema_steps.sha256 is 'Digest of the part: its files, for routines also the version below them.';
comment on column custody_data.schema_steps.version is 'Newest version at the time.';

alter table custody_data.schema_migrations enable row level security, force row level security;
alter table custody_data.schema_steps enable row level security, force row level security;
create policy schema_migrations_all_select on custody_data.schema_migrations for select using (true);
create policy schema_migrations_owner_all on custody_data.schema_migrations to custody_owner using (true) with check (true);
create policy schema_steps_all_select on custody_data.schema_steps for select using (true);
create policy schema_steps_owner_all on custody_data.schema_steps to custody_owner using (true) with check (true);
comment on policy schema_migrations_all_select on custody_data.schema_migrations is 'Versions are no secret; grants say who may look.';
comment on policy schema_migrations_owner_all on custody_data.schema_migrations is 'The migrator writes here.';
comment on policy schema_steps_all_select on custody_data.schema_steps is 'Versions are no secret; grants say who may look.';
comment on policy schema_steps_owner_all on custody_data.schema_steps is 'The migrator writes here.';
