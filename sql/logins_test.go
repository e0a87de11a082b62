package sql_test

import (
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
)

// logins are those that work with the database; the migrator's is closed between
// migrations and can act as the owner.
func logins() (names []string) {
	for _, l := range stack.Logins {
		names = append(names, l.Name)
	}
	return names
}

func TestEachLoginConnectsByTLSAndPassword(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	with := func(t *testing.T, login string, change func(u *url.URL, q url.Values)) error {
		t.Helper()
		u, err := url.Parse(b.URLs[login])
		require.NoError(t, err)
		q := u.Query()
		change(u, q)
		u.RawQuery = q.Encode()
		conn, err := pgx.Connect(t.Context(), u.String())
		if err == nil {
			_ = conn.Close(t.Context())
		}
		return err
	}
	for _, login := range logins() {
		t.Run(login, func(t *testing.T) {
			s := b.session(t, login)
			require.Equal(t, login+" "+login, s.must(t, `select session_user || ' ' || current_user`))
			require.Equal(t, "TLSv1.3", ask[string](t, b, `select version from pg_catalog.pg_stat_ssl where pid = $1`, int32(s.pid)))
			require.True(t, ask[bool](t, b, `select rolcanlogin and not (rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls)
				from pg_catalog.pg_roles where rolname = $1`, login))
			require.True(t, ask[bool](t, b, `select rolpassword like 'SCRAM-SHA-256$%' from pg_catalog.pg_authid where rolname = $1`, login))

			requireCode(t, with(t, login, func(u *url.URL, _ url.Values) { u.User = url.UserPassword(login, "guessed") }), "28P01")
			requireCode(t, with(t, login, func(_ *url.URL, q url.Values) { q.Set("sslmode", "disable") }), "28000")
			require.Error(t, with(t, login, func(_ *url.URL, q url.Values) { q.Del("sslrootcert") }), "the server's certificate is not one that everybody trusts")
		})
	}
}

// permission is a statement, what it needs, and whom it is for.
type permission struct {
	name      string
	context   string // tenant, or none
	statement string
	for_      []string          // logins that may
	code      string            // for the others, 42501 if empty
	but       map[string]string // others that get a code of their own
}

const (
	app, reports, runner, dpo, audit, dump = "custody_app", "custody_reports", "custody_runner", "custody_dpo", "custody_audit", "custody_dump"
)

var permissions = []permission{
	// Contexts. custody_dump has none: it reads everything and calls nothing.
	{name: "enter a context", statement: `select custody.set_context('acme', 'x')`, for_: []string{app, reports, runner, dpo, audit}},
	{name: "enter the system's context", statement: `select custody.set_context('system', 'x')`, for_: []string{runner, audit}, code: "PC015", but: map[string]string{dump: "42501"}},

	// Records.
	{name: "read a profile", context: "acme", statement: `select custody.get_profile('pat')`, for_: []string{app, reports, runner, dpo}},
	{name: "read profiles", statement: `select count(*) from custody_data.user_profiles`, for_: []string{app, reports, runner, dpo, dump}},
	{name: "write a profile", context: "acme", statement: `select custody.put_profile('pat', '{}')`, for_: []string{app}},
	{name: "insert a conversation", context: "acme", statement: `insert into custody_data.conversations (tenant_id, identity_id, conversation_id, messages, message_count, started_at, last_message_at)
		select 'acme', identity_id, 'c', ` + anySealed + `, 0, now(), now() from custody_data.identities where user_id = 'pat'`, for_: []string{runner}},
	{name: "delete a profile", context: "acme", statement: `select custody.delete_profile('pat')`, for_: []string{app}},
	{name: "delete profiles past the function", context: "acme", statement: `delete from custody_data.user_profiles`},
	{name: "make an e-mail address unique", context: "acme", statement: `select custody.set_unique_fields('{email}')`, for_: []string{app, runner}},
	{name: "seal a value past the function", context: "acme", statement: `select custody_data.seal_values(identity_id, 'user_profiles', identity_id::text, '{email}', '{x}') from custody_data.identities where user_id = 'pat'`, for_: []string{runner}},
	{name: "open the personal part of an event", context: "acme", statement: `select custody_data.open_personal(null)`, for_: []string{runner}},
	{name: "give a version", context: "acme", statement: `insert into custody_data.user_preferences (tenant_id, identity_id, preferences, version) select 'acme', identity_id, ` + anySealed + `, 7 from custody_data.identities`},
	{name: "delete a consent", context: "acme", statement: `delete from custody_data.consent_records`},
	{name: "change a consent", context: "acme", statement: `update custody_data.consent_records set granted = false`},
	{name: "write an identity", context: "acme", statement: `insert into custody_data.identities (tenant_id, user_id) values ('acme', 'made up')`},
	{name: "rename an identity", context: "acme", statement: `update custody_data.identities set user_id = 'x'`},
	{name: "import", context: "acme", statement: `select custody.prepare_import('user_preferences'), custody.import_preferences()`, for_: []string{runner}},

	// The trail.
	{name: "record an event", context: "acme", statement: `select custody.record_audit_event('account.login')`, for_: []string{app, runner, dpo}},
	{name: "read the trail", context: "acme", statement: `select count(*) from custody.audit_events(now() - interval '1 day', now())`,
		for_: []string{runner, dpo, audit}, but: map[string]string{app: "PC015"}},
	{name: "read the trail's table", context: "acme", statement: `select count(*) from custody_data.audit_logs`, for_: []string{runner, dump}},
	{name: "read a partition", statement: `select count(*) from custody_data.PARTITION`, for_: []string{dump}},
	{name: "write to a partition", context: "acme", statement: `insert into custody_data.PARTITION (tenant_id, log_entry_id, occurred_at, actor_id, action) values ('acme', gen_random_uuid(), now(), gen_random_uuid(), 'x')`},
	{name: "give a transaction number", context: "acme", statement: `insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, xid) values ('acme', gen_random_uuid(), now(), gen_random_uuid(), 'x', '7')`},
	{name: "give a time of recording", context: "acme", statement: `insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, recorded_at) values ('acme', gen_random_uuid(), now(), gen_random_uuid(), 'x', now())`},
	{name: "give another login", context: "acme", statement: `insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, action, db_role) values ('acme', gen_random_uuid(), now(), gen_random_uuid(), 'x', 'y')`},
	{name: "change an event", context: "acme", statement: `update custody_data.audit_logs set action = 'x'`},
	{name: "delete an event", context: "acme", statement: `delete from custody_data.audit_logs`},
	{name: "truncate the trail", statement: `truncate custody_data.audit_logs`},
	{name: "truncate a partition", statement: `truncate custody_data.PARTITION`},
	{name: "delete from a partition", statement: `delete from custody_data.PARTITION`},

	// Governance.
	{name: "ask for an erasure", context: "acme", statement: `select custody.request_erasure('pat')`, for_: []string{runner, dpo}, but: map[string]string{app: "PC015"}},
	{name: "plan an erasure", context: "acme", statement: `select custody.plan_erasure('pat')`, for_: []string{runner, dpo}},
	{name: "erase", context: "acme", statement: `select custody.erase_subject(gen_random_uuid())`, code: "42501", but: map[string]string{runner: "PC016", dpo: "PC016"}},
	{name: "verify an erasure", context: "acme", statement: `select custody.verify_erasure(gen_random_uuid())`, but: map[string]string{runner: "PC016", dpo: "PC016", audit: "PC016"}},
	{name: "replay erasures", context: "acme", statement: `select custody.replay_erasures('[]')`, for_: []string{runner, dpo}},
	{name: "export a person", context: "acme", statement: `select custody.export_subject('pat')`, for_: []string{runner, dpo}, but: map[string]string{app: "PC015"}},
	{name: "place a hold", context: "acme", statement: `select custody.place_hold('{"tenant":true}', 'c', 'r')`, for_: []string{runner, dpo}},
	{name: "read requests", context: "acme", statement: `select count(*) from custody.requests`, for_: []string{runner, dpo, audit}},
	{name: "write a request", context: "acme", statement: `update custody_data.requests set due_at = 'infinity'`},
	{name: "forge a certificate", context: "acme", statement: `insert into custody_data.erasure_certificates (tenant_id, request_id, identity_id, certificate) values ('acme', gen_random_uuid(), gen_random_uuid(), '{}')`},
	{name: "set a policy", context: "acme", statement: `select custody.set_retention_policy('conversations', '1 year', 'contract')`, for_: []string{runner, dpo}},
	{name: "enforce retention", context: "acme", statement: `select custody.enforce_retention('conversations', 1)`, for_: []string{runner, dpo}},

	// The runner.
	{name: "list tenants", statement: `select count(*) from custody.list_tenants()`, for_: []string{runner}},
	{name: "register a tenant", statement: `select custody.register_tenant('third', 'Third')`, for_: []string{runner}},
	{name: "archive", context: "system", statement: `select count(*) from custody.open_segments()`, for_: []string{runner}},
	{name: "record a segment", statement: `update custody_data.archive_segments set events = 0`},
	{name: "queue a job", statement: `select id from river.river_job for update`, for_: []string{runner}, code: "42501"},
	{name: "look at the controls", statement: `select count(*) from custody_check.findings`, for_: []string{runner, dpo, audit}},
	{name: "use the scratch space", statement: `create temporary table scratch (n int)`, for_: []string{runner}},

	// What only the owner or a superuser may, and nobody here is either.
	{name: "switch triggers off for the session", statement: `set session_replication_role = 'replica'`},
	{name: "switch triggers off for the transaction", statement: `select pg_catalog.set_config('session_replication_role', 'replica', true)`},
	{name: "disable a trigger", statement: `alter table custody_data.audit_logs disable trigger a_reject_mutation`},
	{name: "disable all triggers", statement: `alter table custody_data.user_profiles disable trigger all`},
	{name: "disable a trigger of a partition", statement: `alter table custody_data.PARTITION disable trigger a_reject_mutation`},
	{name: "drop a trigger", statement: `drop trigger a_reject_mutation on custody_data.audit_logs`},
	{name: "detach a month", statement: `alter table custody_data.audit_logs detach partition custody_data.PARTITION`},
	{name: "drop a month", statement: `drop table custody_data.PARTITION`},
	{name: "attach a month", statement: `alter table custody_data.audit_logs attach partition custody_data.PARTITION default`},
	{name: "switch isolation off", statement: `alter table custody_data.user_profiles disable row level security`},
	{name: "let the owner through", statement: `alter table custody_data.user_profiles no force row level security`},
	{name: "write a policy", statement: `create policy all_for_me on custody_data.user_profiles using (true)`},
	{name: "replace a guard", statement: `create or replace function custody_data.tg_reject_mutation() returns trigger language plpgsql as 'begin return null; end'`},
	{name: "replace a helper of policies", statement: `create or replace function custody.current_tenant() returns text language sql return 'other'`},
	{name: "make a table among ours", statement: `create table custody_data.mine (n int)`},
	{name: "make a function in the API", statement: `create function custody.mine() returns int language sql return 1`},
	{name: "make a schema", statement: `create schema mine`},
	{name: "become the owner", statement: `set role custody_owner`},
	{name: "become an administrator", statement: `set role custody_admin`},
	{name: "become the migrator", statement: `set role custody_migrator`},
	{name: "make a role", statement: `create role mine`},
	{name: "give oneself a role", statement: `grant custody_owner to current_user`},
	{name: "silence pgaudit", statement: `set pgaudit.log = 'none'`},
	{name: "read the server's files", statement: `select pg_catalog.pg_read_file('/etc/passwd')`},
	{name: "run a program", statement: `copy (select 1) to program 'true'`},
	{name: "end another's session", statement: `select pg_catalog.pg_terminate_backend(ADMIN)`},
}

func TestEachLoginMayDoWhatItsGroupMay(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	a := b.session(t, app)
	a.run(t, tenant, `select custody.put_profile('pat', '{}'), custody.record_consent('pat', 'mail', true, '1')`)
	fill := strings.NewReplacer(
		"PARTITION", a.must(t, `select 'audit_logs_' || to_char(now() at time zone 'UTC', 'YYYY_MM')`),
		"ADMIN", ask[string](t, b, `select pg_catalog.pg_backend_pid()::text`))
	for _, login := range logins() {
		t.Run(login, func(t *testing.T) {
			s := b.session(t, login)
			for _, p := range permissions {
				if p.context != "" && login == dump {
					p.context = "" // it can enter none
				}
				want := "42501"
				if slices.Contains(p.for_, login) {
					want = ""
				} else if code, ok := p.but[login]; ok {
					want = code
				} else if p.code != "" {
					want = p.code
				}
				if p.context == "system" && want != "" && login != audit {
					p.context = "acme" // where it can be
				}

				s.must(t, "begin")
				if p.context != "" {
					_, err := s.Exec(t.Context(), setContext, p.context, login, "")
					require.NoError(t, err)
					require.NoError(t, s.unlock(t.Context(), p.context))
				}
				_, err := s.try(t.Context(), fill.Replace(p.statement))
				s.rollback(t)
				require.Equal(t, want, codeOf(err), "%s: %v", p.name, err)
				if want == "" {
					require.NoError(t, err, p.name)
				}
			}
		})
	}
	b.requireNoFindings(t)
}

// SET ROLE takes a login no further than to its own groups, and the guards see through it.
func TestEachLoginBecomesItsGroupsOnly(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	groups := map[string]bool{}
	for _, l := range stack.Logins {
		for _, g := range l.Groups {
			groups[g] = true
		}
	}
	for _, l := range stack.Logins {
		s := b.session(t, l.Name)
		for _, group := range slices.Sorted(maps.Keys(groups)) {
			_, err := s.try(t.Context(), "set role "+group+"; reset role")
			if slices.Contains(l.Groups, group) {
				require.NoError(t, err)
			} else {
				requireCode(t, err, "42501")
			}
		}
	}
	s := b.session(t, runner)
	s.must(t, "begin; set local role custody_privacy")
	_, err := s.try(t.Context(), `select custody.set_context('system', 'x')`)
	requireCode(t, err, "PC015") // the login is custody_worker too, the role it took is not
}

// Without a context nobody sees a row but the backup, which sees all of them by
// its policies, and switching row security off shows nobody more.
func TestRowsWithoutAContext(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, in := range []string{"acme", "other"} {
		b.session(t, app).run(t, in, `select custody.put_profile('pat', '{}')`)
	}
	for _, login := range logins() {
		if login == audit {
			continue
		}
		s := b.session(t, login)
		want := "0"
		if login == dump {
			want = "2"
		}
		require.Equal(t, want, s.must(t, `select count(*) from custody_data.user_profiles`), login)
		s.must(t, "set row_security = off")
		_, err := s.try(t.Context(), `select count(*) from custody_data.user_profiles`)
		requireCode(t, err, "42501")
	}
}
