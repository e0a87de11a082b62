package sql_test

import (
	"context"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/sql"
)

// audited is a server of the test's own, migrated, where a DBA ran pgaudit.sql: server-wide settings and
// the server's log are nobody else's.
type audited struct {
	*stack.Stack
	admin *pgx.Conn
}

func newAudited(t *testing.T) *audited {
	t.Helper()
	dir, err := stack.TempDir()
	require.NoError(t, err)
	s, err := stack.Start(t.Context(), stack.Options{Dir: dir, NoFsync: true, Ephemeral: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Destroy(context.Background())) })
	if !s.HasPgaudit() {
		t.Skip("this PostgreSQL has no pgaudit")
	}
	a := &audited{Stack: s}
	a.migrate(t)
	require.NoError(t, s.PutLogins(t.Context(), stack.Database))
	a.admin = connectTo(t, s.SuperURL(stack.Database))
	a.run(t, `select custody.ensure_audit_partitions(now(), now() + interval '3 months')`)
	a.pgaudit(t)
	return a
}

// migrate is pgcustody migrate up --force.
func (a *audited) migrate(t *testing.T) {
	t.Helper()
	require.NoError(t, a.OpenMigrator(t.Context()))
	_, err := sql.Up(t.Context(), sql.Config{URL: a.URL(stack.MigratorLogin, stack.Database), Force: true})
	require.NoError(t, err)
	require.NoError(t, a.CloseMigrator(t.Context()))
}

func (a *audited) pgaudit(t *testing.T) {
	t.Helper()
	text, err := fs.ReadFile(sql.Files(), "pgaudit.sql")
	require.NoError(t, err)
	_, err = a.admin.Exec(t.Context(), string(text))
	require.NoError(t, err)
}

// run runs statements one after the other: some of them want no transaction.
func (a *audited) run(t *testing.T, statements string) {
	t.Helper()
	for statement := range strings.SplitSeq(statements, ";\n") {
		if _, err := a.admin.Exec(t.Context(), statement); err != nil {
			require.NoError(t, err, statement)
		}
	}
}

type found struct{ ID, Object, Detail, Remediation string }

func findingsOf(t *testing.T, conn *pgx.Conn) []found { return findingsWhere(t, conn, "true") }

func findingsWhere(t *testing.T, conn *pgx.Conn, which string) []found {
	t.Helper()
	rows, err := conn.Query(t.Context(), `
		select f.id, f.object, f.detail, f.remediation
		from (select * from custody_check.findings union all select * from custody_check.log_findings) f where `+which+` order by f.level, f.id, f.object, f.detail`)
	require.NoError(t, err)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[found])
	require.NoError(t, err)
	return list
}

// eventually waits where the server reads its settings anew, which a session keeps from its start in part.
func (a *audited) eventually(t *testing.T, anew bool, holds func([]found) bool, what string) {
	t.Helper()
	var list []found
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		conn := a.admin
		if anew {
			conn = connectTo(t, a.SuperURL(stack.Database))
		}
		if list = findingsOf(t, conn); holds(list) {
			return
		}
	}
	require.Fail(t, what, "%+v", list)
}

// failing are examples of what the checks find: whoever adds a finding adds one here, with the mend where the
// finding's own remediation is no SQL. Statements end with ;\n. MONTH is the trail's present month.
var failing = []struct{ id, object, example, mend string }{
	{"rls-forced", "user_profiles", `alter table custody_data.user_profiles no force row level security`, ""},
	{"guard-missing", "imports", `drop trigger a_reject_mutation on custody_data.imports`,
		"create trigger a_reject_mutation before update or delete or truncate on custody_data.imports for each statement execute function custody_data.tg_reject_mutation();\nalter table custody_data.imports enable always trigger a_reject_mutation"},
	{"guard-disabled", "wrapped_keys", `alter table custody_keys.wrapped_keys disable trigger a_reject_truncate`, ""},
	{"guard-replaced", "MONTH", "create or replace trigger a_reject_mutation before update or delete or truncate on custody_data.MONTH for each statement execute function custody_data.tg_touch_profile();\nalter table custody_data.MONTH enable always trigger a_reject_mutation",
		"create or replace trigger a_reject_mutation before update or delete or truncate on custody_data.MONTH for each statement execute function custody_data.tg_reject_mutation();\nalter table custody_data.MONTH enable always trigger a_reject_mutation"},
	{"partition-detached", "MONTH", `alter table custody_data.audit_logs detach partition custody_data.MONTH`, `alter table custody_data.audit_logs attach partition custody_data.MONTH BOUNDS`},
	{"partition-foreign", "custody_data.elsewhere", `create table custody_data.elsewhere partition of custody_data.audit_logs for values from ('1980-01-01') to ('1980-02-01')`, `drop table custody_data.elsewhere`},
	{"partition-ahead", "audit_logs", `do $$ begin execute format('drop table custody_data.%I', 'audit_logs_' || to_char((now() + interval '1 month') at time zone 'UTC', 'YYYY_MM')); end $$`,
		`select custody.ensure_audit_partitions(now(), now() + interval '1 month')`},
	{"partition-grant", "MONTH", `grant select on custody_data.MONTH to custody_readonly`, ""},
	{"partition-policy", "MONTH", `create policy evil on custody_data.MONTH using (true)`, ""},
	{"partition-rule", "MONTH", `create rule evil as on insert to custody_data.MONTH do instead nothing`, ""},
	{"backup-blind", "MONTH", "drop policy \"MONTH_backup_select\" on custody_data.MONTH;\nrevoke select on custody_data.MONTH from custody_backup", ""},
	{"owner", "holders", `alter table custody_data.holders owner to custody_admin`, `alter table custody_data.holders owner to custody_owner`},
	{"owner-login", "custody_owner", `alter role custody_owner login`, ""},
	{"migrator-open", "custody_migrator", `alter role custody_migrator login`, ""},
	{"public-grant", "holders", `grant select on custody_data.holders to public`, ""},
	{"public-execute", "custody.erase_subject(uuid,text)", `grant execute on function custody.erase_subject(uuid, text) to public`, ""},
	{"logins-unlisted", "custody_data.checked_logins()", `create or replace function custody_data.checked_logins() returns name[] language sql stable parallel safe return '{custody_app}'::name[]`, `update custody_data.logins set mode = mode`},
	{"login-gone", "gone", `insert into custody_data.logins (tenant_id, role_name, mode) values ('system', 'gone', 'token')`, `update custody_data.logins set ended_at = now() where role_name = 'gone'`},
	{"search-path", "custody.erase_subject(uuid,text)", `alter function custody.erase_subject(uuid, text) set search_path = public`, ""},
	{"view-invoker", "custody.consents", `alter view custody.consents set (security_invoker = false)`, ""},
	{"bypassrls", "custody_app", `alter role custody_app bypassrls`, ""},
	{"unclassified", "user_profiles.shoe_size", `alter table custody_data.user_profiles add column shoe_size text`, `alter table custody_data.user_profiles drop column shoe_size`},
	{"baseline-old", "custody_data.baseline()", `create or replace function custody_data.baseline() returns jsonb language sql immutable set search_path = pg_catalog, pg_temp as $x$ select '{"postgres": 9, "objects": {}}'::jsonb $x$`, "migrate up --force"},
	{"changed", "function custody.evil()", `create function custody.evil() returns int language sql set search_path = pg_catalog, pg_temp as 'select 1'`, `drop function custody.evil()`},
	{"key-exposed", "custody_app", `alter role custody_app set debug_print_plan = on`, `alter role custody_app reset debug_print_plan`},
	{"key-exposed", "this session", `set pgaudit.log_parameter = on`, `reset pgaudit.log_parameter`},
	{"key-exposed", "custody_app", "alter system set log_parameter_max_length = -1;\nselect pg_reload_conf();\nalter database custody reset log_parameter_max_length;\nalter role custody_app set log_statement = 'ALL'",
		"alter role custody_app reset log_statement;\nalter system reset log_parameter_max_length;\nselect pg_reload_conf();\nalter database custody set log_parameter_max_length = 0"},

	{"pgaudit-missing", "custody", `drop extension pgaudit`, ""},
	{"pgaudit-missing", "pgaudit_ddl_command_end", `alter event trigger pgaudit_ddl_command_end disable`, ""},
	{"pgaudit-missing", "pgaudit_sql_drop", `alter event trigger pgaudit_sql_drop enable replica`, ""},
	{"read-unmarked", "custody_data.user_profiles", `revoke select (phone) on custody_data.user_profiles from custody_pgaudit`, "pgaudit.sql"},
	{"read-unmarked", "custody_data.identities", "revoke select on custody_data.identities from custody_pgaudit;\ngrant select (user_id) on custody_data.identities to custody_pgaudit", "pgaudit.sql"},
	{"read-unmarked", "custody_keys.context_keys", `revoke select (secret) on custody_keys.context_keys from custody_pgaudit`, "pgaudit.sql"},
	{"mark-open", "custody_pgaudit", `alter role custody_pgaudit login`, ""},
	{"mark-open", "custody_app", `grant custody_pgaudit to custody_app`, ""},
	{"audit-class", "every login", `alter database custody set pgaudit.log = 'read, ddl, role'`, ""},
	{"audit-class", "every login", `alter database custody reset pgaudit.log`, ""},
	{"audit-class", "custody_app", `alter role custody_app in database custody set pgaudit.log = 'all, -role'`, ""},
	{"audit-class", "custody_super", `alter role custody_super set pgaudit.log = 'none'`, ""},
	{"audit-session", "custody_super", `set pgaudit.log = 'none'`, ""},
	{"log-setting", "every login", `alter database custody set pgaudit.role = ''`, ""},
	{"log-setting", "every login", `alter database custody set log_error_verbosity = terse`, ""},
	{"log-setting", "every login", `alter database custody reset log_error_verbosity`, ""},
	{"log-setting", "every login", `alter role all set log_min_messages = panic`, ""},
	{"log-setting", "custody_app", `alter role custody_app set pgaudit.log_level = debug5`, ""},
	{"log-setting", "custody_app", `alter role custody_app in database custody set pgaudit.log_rows = yes`, ""},
	{"log-setting", "custody_app", `alter role custody_app set pgaudit.log_statement = off`, ""},
	{"log-setting", "custody_app", `alter role custody_app set pgaudit.log_statement_once = on`, ""},
	{"log-setting", "custody_app", `alter role custody_app set pgaudit.log_relation = 0`, ""},
	{"log-setting", "every login", `alter database custody set log_min_messages = log`, ""},
	{"log-setting", "custody_app", `alter role custody_app set log_min_messages = 'PANIC'`, ""},
	{"log-setting", "custody_app", `alter role custody_app set session_replication_role = replica`, ""},
	{"log-setting", "this session", `set log_min_messages = fatal`, ""},
	{"log-setting", "every login", "alter database custody reset log_error_verbosity;\nalter role custody_super set log_error_verbosity = verbose;\nset log_error_verbosity = verbose", "reset log_error_verbosity;\nalter role custody_super reset log_error_verbosity;\nalter database custody set log_error_verbosity = verbose"},
	{"parameter-granted", "custody_app", `grant set on parameter pgaudit.log to custody_app`, ""},
	{"parameter-granted", "custody_app", `grant set, alter system on parameter log_min_messages to custody_readwrite`, ""},
	{"parameter-granted", "custody_app", `grant alter system on parameter log_destination to public`, ""},
	{"log-lost", "log_connections", "alter system set log_connections = off;\nselect pg_reload_conf()", ""},
	{"log-lost", "log_disconnections", "alter system set log_disconnections = off;\nselect pg_reload_conf()", ""},
	{"log-lost", "log_destination", "alter system set log_destination = stderr;\nselect pg_reload_conf()", ""},
	{"log-lost", "log_replication_commands", "alter system set log_replication_commands = off;\nselect pg_reload_conf()", ""},
	{"log-lost", "log_file_mode", "alter system set log_file_mode = '0660';\nselect pg_reload_conf()", ""},
	{"log-lost", "log_truncate_on_rotation", "alter system set log_truncate_on_rotation = on;\nselect pg_reload_conf()", ""},
	{"log-slow", "log_rotation_size", "alter system set log_rotation_size = '10MB';\nselect pg_reload_conf()", ""},
	{"login-unregistered", "dora", "create role dora login in role custody_privacy;\ngrant connect on database custody to dora", `comment on role dora is 'An agent. @custody{"login":"application"}'`},
	{"login-unregistered", "dora", `comment on role dora is 'Dora'`, "register dora"},
	{"login-unregistered", "stream", `create role stream login replication`, `comment on role stream is 'The standby. @custody{"login":"application"}'`},
	{"login-unregistered", "stream", `comment on role stream is 'The standby.'`, `alter role stream noreplication`},
	{"copy-granted", "dora", `grant pg_write_server_files to dora`, ""},
	{"copy-granted", "dora", "create role readers;\ngrant pg_read_all_data to readers;\ngrant readers to dora", ""},
	{"copy-granted", "dora", `grant execute on function pg_read_binary_file(text, bigint, bigint, boolean) to dora`, ""},
	{"copy-granted", "dora", "grant execute on function lo_export(oid, text) to custody_readonly;\ngrant custody_readonly to dora", "revoke execute on function lo_export(oid, text) from custody_readonly;\nrevoke custody_readonly from dora"},
	{"copy-granted", "custody_runner", `grant execute on function pg_read_file(text) to custody_runner`, ""},
	{"published", "evil", `create publication evil for table custody_data.identities`, ""},
	{"published", "evil", `create publication evil for all tables`, ""},
	{"table-granted", "dora", `grant select (user_id) on custody_data.identities to dora`, ""},
	{"table-granted", "dora", `grant select on custody_keys.wrapped_keys to dora`, ""},
	{"table-granted", "custody_backup", `grant select on custody_keys.session_secret_1 to custody_backup`, ""},
	{"definer-foreign", "public.peek()", `create function public.peek() returns bigint language sql security definer as 'select count(user_id) from custody_data.identities'`, ""},
}

// Each finding has a failing example, is found, and goes away by what it says, or by what is said here.
func TestEveryFindingHasAnExampleAndAMend(t *testing.T) {
	t.Parallel()
	a := newAudited(t)
	require.Empty(t, findingsOf(t, a.admin), "of a server that is set up as it should be")
	month := time.Now().UTC().Format("audit_logs_2006_01")
	var bounds string
	require.NoError(t, a.admin.QueryRow(t.Context(), `select pg_get_expr(c.relpartbound, c.oid) from pg_class c where c.relname = $1`, month).Scan(&bounds))
	fill := strings.NewReplacer("MONTH", month, "BOUNDS", bounds)

	tried := map[string]bool{}
	for _, f := range failing {
		tried[f.id] = true
		object := fill.Replace(f.object)
		a.run(t, fill.Replace(f.example))
		var mend string
		reloads := f.id == "log-lost" || f.id == "log-slow"
		a.eventually(t, reloads, func(list []found) bool {
			i := slices.IndexFunc(list, func(l found) bool { return l.ID == f.id && l.Object == object })
			if i >= 0 {
				mend = list[i].Remediation
			}
			return i >= 0
		}, fmt.Sprintf("%s %s is not found: %s", f.id, object, f.example))
		if !reloads && f.object != "this session" && f.id != "audit-session" {
			// What the text of definitions is takes its time, and is the owner's for everybody.
			const same = `f.id <> 'changed'`
			require.Equal(t, findingsWhere(t, a.admin, same), findingsWhere(t, connectTo(t, a.URL(audit, stack.Database)), same), "%s %s, whoever asks", f.id, object)
		}
		switch f.mend {
		case "":
			a.run(t, strings.ReplaceAll(mend, "; ", ";\n"))
		case "migrate up --force":
			a.migrate(t)
		case "pgaudit.sql":
			a.pgaudit(t)
		case "register dora":
			// A person's login, which pgaudit.sql has not heard of.
			a.run(t, `begin;
select custody.register_tenant('acme', 'Acme');
select custody.set_context('acme', 'admin');
select custody.register_login('dora', 'dora@acme.example', 'acme');
commit`)
		default:
			a.run(t, fill.Replace(f.mend))
		}
		a.eventually(t, reloads, func(list []found) bool { return len(list) == 0 }, fmt.Sprintf("%s %s: not mended by %s", f.id, object, mend))
	}

	// Every branch of the views begins with its id.
	for _, name := range []string{"routines/90_checks.sql", "routines/91_checks_of_the_log.sql"} {
		text, err := fs.ReadFile(sql.Files(), name)
		require.NoError(t, err)
		ids := regexp.MustCompile(`(?m)^select (?:distinct )?'([a-z-]+)'`).FindAllStringSubmatch(string(text), -1)
		require.NotEmpty(t, ids)
		for _, id := range ids {
			require.True(t, tried[id[1]], "finding %s has no example", id[1])
		}
	}
}
