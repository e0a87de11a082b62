package sql_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/jobs/serverlog"
)

// records are what the server's log has, in its order.
func (a *audited) records(t *testing.T) (records []*serverlog.Record) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(a.LogDir(), "*.json"))
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		// Nobody knows yet how the line ends that is being written.
		text = text[:bytes.LastIndexByte(text, '\n')+1]
		reader := serverlog.NewReader(bytes.NewReader(text), serverlog.Options{Format: serverlog.JSON})
		for {
			var r serverlog.Record
			if err := reader.Next(&r); errors.Is(err, io.EOF) {
				break
			} else {
				require.NoError(t, err)
			}
			records = append(records, r.Clone())
		}
	}
	return records
}

const sessionID = `select to_hex(trunc(extract(epoch from a.backend_start))::bigint) || '.' || to_hex(a.pid) from pg_catalog.pg_stat_activity a where a.pid = pg_catalog.pg_backend_pid()`

// logged runs statements as a login and returns what the log has of that session: of each audited
// statement OBJECT or SESSION, class, command and object, and the errors.
func (a *audited) logged(t *testing.T, login string, statements ...string) (lines []string) {
	t.Helper()
	config, err := pgx.ParseConfig(a.URL(login, stack.Database))
	if login == stack.Superuser {
		config, err = pgx.ParseConfig(a.SuperURL(stack.Database))
	}
	require.NoError(t, err)
	if login == person {
		config.User, config.Password = person, person
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	var id string
	require.NoError(t, conn.QueryRow(t.Context(), sessionID).Scan(&id))
	for _, statement := range statements {
		var err error
		prepared, bound := strings.CutPrefix(statement, "bound: ")
		switch {
		case bound:
			_, err = conn.Exec(t.Context(), prepared, "nobody")
		case strings.HasPrefix(statement, "copy ") && strings.HasSuffix(statement, " stdout"):
			_, err = conn.PgConn().CopyTo(t.Context(), io.Discard, statement)
		default:
			_, err = conn.Exec(t.Context(), statement, pgx.QueryExecModeSimpleProtocol)
		}
		if pg := (*pgconn.PgError)(nil); err != nil && !errors.As(err, &pg) {
			require.NoError(t, err, statement)
		}
	}
	require.NoError(t, conn.Close(context.Background()))

	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "the session's end is not in the log")
		lines = nil
		ended := false
		for _, r := range a.records(t) {
			if string(r.SessionID) != id {
				continue
			}
			ended = ended || strings.HasPrefix(string(r.Message), "disconnection: ")
			var audit serverlog.Audit
			switch origin := audit.Read(r); {
			case origin == serverlog.Genuine:
				require.Equal(t, login, string(r.User), "the login, whatever SET ROLE says")
				kind := "SESSION"
				if audit.Object {
					kind = "OBJECT"
				}
				lines = append(lines, fmt.Sprintf("%s %s %s %s", kind, audit.Class, audit.Command, audit.Name))
			case origin != serverlog.NotAudit:
				lines = append(lines, origin.String())
			case string(r.ErrorSeverity) == "ERROR":
				lines = append(lines, "ERROR "+string(r.StateCode)+" "+string(r.Statement))
			}
		}
		if ended {
			return lines
		}
	}
}

const (
	person = "dora"
	object = "OBJECT READ SELECT custody_data.identities"
	inside = "SESSION READ SELECT custody_data.identities"
)

// What is logged of reads of personal columns, whatever the way; and what is not.
func TestReadsReachTheLog(t *testing.T) {
	t.Parallel()
	a := newAudited(t)
	a.run(t, `create role dora login password 'dora' in role custody_privacy;
grant connect on database custody to dora;
grant usage on schema public to public;
begin;
select custody.register_tenant('acme', 'Acme');
select custody.set_context('acme', 'admin');
select custody.register_login('dora', 'dora@acme.example', 'acme');
commit;
create function public.peek() returns bigint language plpgsql as $$ begin return (select count(user_id) from custody_data.identities); end $$;
create function public.peek_as_owner() returns bigint language plpgsql security definer as $$ begin return (select count(user_id) from custody_data.identities); end $$;
alter function public.peek_as_owner() owner to custody_owner;
create view public.seen with (security_invoker = true) as select public.peek() as n, i.tenant_id from custody_data.tenants i;
grant select on public.seen to public`)
	a.pgaudit(t)
	month := time.Now().UTC().Format("custody_data.audit_logs_2006_01")
	// A worker does read: of a superuser, since the conditions of row-level security keep a person's plan in one process.
	plan := ""
	for _, statement := range []string{"begin", "set local force_parallel_mode = on", "explain select user_id from custody_data.identities", "rollback"} {
		rows, err := a.admin.Query(t.Context(), statement, pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		plan += strings.Join(lines, "\n")
	}
	require.Contains(t, plan, "Gather")
	const enter = `select custody.set_context('acme', 'dora@acme.example')`

	for name, c := range map[string]struct {
		login      string
		statements []string
		want       []string // each at least so often as it stands here
		never      []string
	}{
		"a person's read": {person, []string{"begin", enter, "select user_id from custody_data.identities", "commit"}, []string{object, inside}, nil},
		"a read that is rolled back": {person, []string{"begin", enter, "savepoint s", "select user_id from custody_data.identities", "rollback to s", "select user_id from custody_data.identities", "rollback"},
			[]string{object, inside, object, inside}, nil},
		"a read before an error": {person, []string{"begin", enter, "select user_id, 1 / (length(tenant_id) - length(tenant_id)) from custody_data.identities", "rollback"}, []string{object, inside}, nil},
		"COPY of a table":        {person, []string{"begin", enter, "copy custody_data.identities to stdout", "commit"}, []string{object, inside}, nil},
		"COPY of a query":        {person, []string{"begin", enter, "copy (select user_id from custody_data.identities) to stdout", "commit"}, []string{object, inside}, nil},
		// Refused, by the server itself: the error has the statement, pgaudit says nothing.
		"COPY into a file":      {person, []string{"copy custody_data.identities to '/tmp/x'"}, []string{"ERROR 42501 copy custody_data.identities to '/tmp/x'"}, []string{object, inside}},
		"COPY into a program":   {person, []string{"copy custody_data.identities to program 'cat'"}, []string{"ERROR 42501 copy custody_data.identities to program 'cat'"}, []string{object, inside}},
		"a cursor":              {person, []string{"begin", enter, "declare c cursor for select user_id from custody_data.identities", "fetch all from c", "commit"}, []string{object, inside, "SESSION READ DECLARE CURSOR "}, nil},
		"a cursor WITH HOLD":    {person, []string{"begin", enter, "declare c cursor with hold for select user_id from custody_data.identities", "commit", "fetch all from c"}, []string{object, inside}, nil},
		"SET ROLE":              {person, []string{"begin", enter, "set role custody_privacy", "select user_id from custody_data.identities", "commit"}, []string{"SESSION MISC SET ", object, inside}, nil},
		"a prepared statement":  {person, []string{"begin", enter, "prepare p as select user_id from custody_data.identities", "execute p", "execute p", "commit"}, []string{"SESSION READ PREPARE ", object, inside, object, inside}, nil},
		"a bound statement":     {person, []string{"begin", enter, "bound: select user_id from custody_data.identities where user_id = $1", "bound: select user_id from custody_data.identities where user_id = $1", "commit"}, []string{object, inside, object, inside}, nil},
		"a DO block":            {person, []string{"begin", enter, "do $$ begin perform user_id from custody_data.identities; end $$", "commit"}, []string{object, inside}, nil},
		"a function":            {person, []string{"begin", enter, "select public.peek()", "commit"}, []string{object, inside}, nil},
		"a function in a view":  {person, []string{"begin", enter, "select n from public.seen", "commit"}, []string{"SESSION READ SELECT public.seen", object, inside}, nil},
		"parallel workers":      {person, []string{"set parallel_setup_cost = 0", "set parallel_tuple_cost = 0", "set min_parallel_table_scan_size = 0", "set force_parallel_mode = on", "begin", enter, "select count(user_id) from custody_data.identities", "commit"}, []string{object, inside}, nil},
		"TRUNCATE, refused":     {person, []string{"truncate custody_data.identities"}, []string{"ERROR 42501 truncate custody_data.identities"}, nil},
		"one of our functions":  {person, []string{"begin", enter, "select custody.get_profile('dora@acme.example')", "commit"}, []string{object, "OBJECT READ SELECT custody_data.user_profiles"}, nil},
		"a register":            {person, []string{"begin", enter, "select count(*) from custody.alerts", "select count(*) from custody.requests", "commit"}, []string{"SESSION READ SELECT custody.alerts", "SESSION READ SELECT custody.requests"}, nil},
		"a register's function": {person, []string{"begin", enter, "select * from custody.list_requests()", "select custody.get_certificate(gen_random_uuid())", "commit"}, []string{"SESSION READ SELECT ", "SESSION READ SELECT ", "SESSION READ SELECT "}, nil},
		"access events":         {person, []string{"begin", enter, "select actor_id from custody_data.access_events", "commit"}, []string{"SESSION READ SELECT custody_data.access_events"}, nil},
		"a setting":             {person, []string{"set client_min_messages = log"}, []string{"SESSION MISC SET "}, nil},
		"a write":               {person, []string{"delete from custody_data.user_profiles"}, []string{"ERROR 42501 delete from custody_data.user_profiles"}, nil},
		"a superuser":           {stack.Superuser, []string{"select user_id from custody_data.identities", "copy custody_data.identities to stdout"}, []string{object, inside, object, inside}, nil},
		"a superuser, parallel": {stack.Superuser, []string{"set parallel_setup_cost = 0", "set min_parallel_table_scan_size = 0", "set force_parallel_mode = on", "select user_id from custody_data.identities"}, []string{object, inside}, nil},
		"a superuser's TRUNCATE": {stack.Superuser, []string{"begin", "alter table custody_data.identities disable trigger all", "truncate custody_data.identities", "rollback"},
			[]string{"SESSION DDL ALTER TABLE custody_data.identities", "SESSION WRITE TRUNCATE TABLE "}, nil},
		"roles and DDL": {stack.Superuser, []string{"create role tim", "grant custody_privacy to tim", "drop role tim", "create table public.t ()", "drop table public.t", "alter system set work_mem = '4MB'"},
			[]string{"SESSION ROLE CREATE ROLE ", "SESSION ROLE GRANT ROLE ", "SESSION ROLE DROP ROLE ", "SESSION DDL CREATE TABLE public.t", "SESSION DDL DROP TABLE public.t", "SESSION DDL ALTER SYSTEM "}, nil},
		"keys":        {stack.Superuser, []string{"select wrapped from custody_keys.wrapped_keys", "select secret from custody_keys.context_keys"}, []string{"OBJECT READ SELECT custody_keys.wrapped_keys", "OBJECT READ SELECT custody_keys.context_keys"}, nil},
		"a partition": {stack.Superuser, []string{"select personal from " + month}, []string{"SESSION READ SELECT " + month}, nil},
		"a backup":    {dump, []string{"copy " + month + " to stdout"}, []string{"SESSION READ SELECT " + month}, nil},

		// Applications: what object audit sees, and no more.
		"an application's read":   {app, []string{"begin", enter, "select user_id from custody_data.identities", "commit"}, []string{object}, []string{inside}},
		"an application's rows":   {app, []string{"begin", enter, "select row_to_json(i) from custody_data.identities i", "select (x.i).user_id from (select i from custody_data.identities i offset 0) x", "commit"}, []string{object, object}, []string{inside}},
		"an application's plan":   {app, []string{"begin", enter, "set local plan_cache_mode = force_generic_plan", "prepare p as select user_id from custody_data.identities", "execute p", "execute p", "commit"}, []string{object, object}, []string{inside}},
		"an application's WHERE":  {app, []string{"begin", enter, "select 1 from custody_data.identities where user_id = 'x'", "commit"}, []string{object}, []string{inside}},
		"an application's count":  {app, []string{"begin", enter, "select count(tenant_id) from custody_data.identities", "commit"}, []string{object}, []string{inside}},
		"an application's SELECT": {app, []string{"select 1"}, nil, []string{"SESSION READ SELECT "}},
		"an application's COPY":   {app, []string{"begin", enter, "copy custody_data.identities to stdout", "commit"}, []string{object}, nil},
		"an application's cursor": {app, []string{"begin", enter, "declare c cursor for select user_id from custody_data.identities", "fetch all from c", "rollback"}, []string{object}, nil},
		"an application's DDL":    {app, []string{"create temporary table x ()"}, []string{"ERROR 42501 create temporary table x ()"}, nil},

		// Holes of pgaudit that nothing closes: if one of these fails, the README may say less.
		"hole: a definer's function, of a person":       {person, []string{"select public.peek_as_owner()"}, []string{"SESSION READ SELECT "}, []string{object, inside}},
		"hole: a definer's function, of an application": {app, []string{"select public.peek_as_owner()"}, nil, []string{object, inside, "SESSION READ SELECT "}},
		"hole: how many there are, of an application":   {app, []string{"begin", enter, "select count(tenant_id) from custody_data.conversations", "commit"}, nil, []string{"OBJECT READ SELECT custody_data.conversations", "SESSION READ SELECT "}},
		"hole: sealed rows, of an application":          {app, []string{"begin", enter, "select row_to_json(c) from custody_data.conversations c", "commit"}, nil, []string{"OBJECT READ SELECT custody_data.conversations", "SESSION READ SELECT "}},
		"hole: a superuser who says no": {stack.Superuser, []string{"set pgaudit.log = 'none'", "set pgaudit.role = ''", "select user_id from custody_data.identities"},
			nil, []string{"SESSION MISC SET ", object, inside}},
		"hole: samples of a column, which the catalog has": {stack.Superuser, []string{"select most_common_vals from pg_catalog.pg_stats where attname = 'user_id'"}, nil, []string{object, inside, "SESSION READ SELECT ", "SESSION READ SELECT pg_catalog.pg_stats"}},
		"DDL under replica, which has its statement alone": {stack.Superuser, []string{"set session_replication_role = replica", "begin", "alter table custody_data.identities disable trigger all", "rollback"},
			[]string{"SESSION DDL ALTER TABLE "}, []string{"SESSION DDL ALTER TABLE custody_data.identities"}},
		"a superuser who says no by a function": {stack.Superuser, []string{"select set_config('pgaudit.log', 'none', false)"}, []string{"SESSION READ SELECT "}, nil},
		"a superuser who says no for later":     {stack.Superuser, []string{"begin", "alter role dora set pgaudit.log = 'none'", "rollback"}, []string{"SESSION ROLE ALTER ROLE "}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := a.logged(t, c.login, c.statements...)
			left := slices.Clone(got)
			for _, want := range c.want {
				i := slices.Index(left, want)
				require.GreaterOrEqual(t, i, 0, "%s is not in the log, or not often enough:\n%s", want, strings.Join(got, "\n"))
				left = slices.Delete(left, i, i+1)
			}
			for _, never := range c.never {
				require.NotContains(t, got, never)
			}
		})
	}
}
