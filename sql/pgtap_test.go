package sql_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
)

// The cases in tests/<topic>/ are pgTAP: one file is one transaction and says in
// its header what must hold. A topic has a database of its own.

// alone are the topics whose cases change the schema: two at once would wait for
// each other's locks in a circle.
var alone = []string{"append_only", "archive", "checks", "detection", "erasure", "logins", "partitions", "shipping"}

func TestPgTAP(t *testing.T) {
	t.Parallel()
	prove, err := exec.LookPath("pg_prove")
	require.NoError(t, err, "pg_prove comes with Debian's package pgtap")
	template := tapDatabase(t)

	for _, topic := range topics(t) {
		t.Run(topic, func(t *testing.T) {
			t.Parallel()
			d := template.copy(t)
			jobs := "4"
			if slices.Contains(alone, topic) {
				jobs = "1"
			}
			command := exec.CommandContext(t.Context(), prove, "--norc", "--nocolor", "--nocount", "--failures",
				"--jobs", jobs, "--ext", ".sql", "--recurse", filepath.Join("tests", topic))
			command.Env = d.env(t)
			out, err := command.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

// tap is a migrated database with pgTAP and the helpers of the cases.
type tap struct {
	name  string
	stack *stack.Stack
}

func tapDatabase(t *testing.T) *tap {
	t.Helper()
	d := stacktest.DB(t)
	setup, err := os.ReadFile("tests/setup.sql")
	require.NoError(t, err)
	// Closed at once: a database with sessions cannot be copied.
	conn, err := pgx.Connect(t.Context(), d.URLs[stack.Superuser])
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), string(setup))
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	return &tap{d.Name, d.Stack}
}

func (d *tap) copy(t *testing.T) *tap {
	t.Helper()
	topic := t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]
	name := fmt.Sprintf("pgtap_%d_%s", os.Getpid(), topic)
	require.NoError(t, d.stack.CreateDatabase(t.Context(), name, d.name))
	t.Cleanup(func() { require.NoError(t, d.stack.DropDatabase(context.Background(), name)) })
	return &tap{name, d.stack}
}

// env is how psql finds the database; a password has no place among arguments.
func (d *tap) env(t *testing.T) []string {
	t.Helper()
	config, err := pgconn.ParseConfig(d.stack.SuperURL(d.name))
	require.NoError(t, err)
	return []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "PGCLIENTENCODING=UTF8",
		"PGHOST=" + config.Host, fmt.Sprintf("PGPORT=%d", config.Port), "PGUSER=" + config.User,
		"PGPASSWORD=" + config.Password, "PGDATABASE=" + d.name,
	}
}

func topics(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir("tests")
	require.NoError(t, err)
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// cases are the files of all topics with their text.
func cases(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("tests/*/*.sql")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	texts := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		texts[path] = string(text)
	}
	return texts
}

var (
	// registers is how a case makes its tenants.
	registers = regexp.MustCompile(`(?m)^select tenant\('([^']*)'\)`)
	// refuses is how a case says that a statement is refused, and with what.
	refuses = regexp.MustCompile(`refuses\((?:format\()?\$\$(.*?)\$\$[^$]*?, '([0-9A-Z]{5})'|refuses\(format\('((?:[^']|'')*)'.*?\), '(PC[0-9]{3})'`)
	call    = regexp.MustCompile(`custody\.([a-z_]+)\(`)
	wrapper = regexp.MustCompile(`(?s)create function pg_temp\.([a-z_]+)\(.*?\$\$(.*?)\$\$`)
	wrapped = regexp.MustCompile(`pg_temp\.([a-z_]+)\(`)
	// raises is the sentence of a function's comment that lists its SQLSTATEs.
	raises = regexp.MustCompile(`Errors: (.*?)\. Callers|Errors: ((?s).*?)(?:\nCallers|$)`)
	code   = regexp.MustCompile(`PC[0-9]{3}`)
)

// Cases run side by side, so each has tenants of its own, and leaves nothing.
func TestCasesKeepApart(t *testing.T) {
	t.Parallel()
	owner := map[string]string{}
	for path, text := range cases(t) {
		require.True(t, strings.HasPrefix(text, "-- "), "%s: the header says what must hold", path)
		require.Regexp(t, `(?m)^begin( isolation level [a-z ]+)?;$`, text, path)
		require.True(t, strings.HasSuffix(text, "select * from finish();\nrollback;\n"), "%s: ends with finish and rollback", path)
		for _, m := range registers.FindAllStringSubmatch(text, -1) {
			require.Empty(t, owner[m[1]], "tenant %s is in two cases, of which %s is one", m[1], path)
			owner[m[1]] = path
		}
	}
}

// forged are functions that isolation/forged_context.sql calls in tenant system.
var forged = map[string]bool{"register_action": true}

// Each SQLSTATE that a function's comment lists is tried in a case, and what the
// cases see of a function is in its comment. PC001 is tried for all functions at
// once by context/no_context.sql.
func TestEveryErrorIsTried(t *testing.T) {
	t.Parallel()
	conn := stacktest.DB(t).Conn(t, stack.Superuser)
	rows, err := conn.Query(t.Context(), `
select p.proname, pg_catalog.obj_description(p.oid, 'pg_proc')
from pg_catalog.pg_proc p
where p.pronamespace = 'custody'::regnamespace
order by 1`)
	require.NoError(t, err)
	type function struct{ Name, Comment string }
	functions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[function])
	require.NoError(t, err)

	tried := map[string]bool{}
	seen := map[string]bool{} // where nothing else was called
	for _, text := range cases(t) {
		// A case may wrap a call in a function of its own.
		wraps := map[string]string{}
		for _, m := range wrapper.FindAllStringSubmatch(text, -1) {
			wraps[m[1]] = m[2]
		}
		for _, m := range refuses.FindAllStringSubmatch(text, -1) {
			statement := m[1] + m[3]
			for _, w := range wrapped.FindAllStringSubmatch(statement, -1) {
				statement += wraps[w[1]]
			}
			calls := call.FindAllStringSubmatch(statement, -1)
			for _, name := range calls {
				pair := name[1] + " " + m[2] + m[4]
				tried[pair] = true
				seen[pair] = seen[pair] || len(calls) == 1
			}
		}
	}
	said := map[string]bool{}
	for _, f := range functions {
		for _, list := range raises.FindAllString(f.Comment, -1) {
			for _, c := range code.FindAllString(list, -1) {
				said[f.Name+" "+c] = true
			}
		}
	}
	var missing, unsaid []string
	for pair := range said {
		if !tried[pair] && !strings.HasSuffix(pair, "PC001") {
			missing = append(missing, pair)
		}
	}
	for pair := range seen {
		name, c, _ := strings.Cut(pair, " ")
		// record_audit_events raises what record_audit_event raises, and says so.
		if c, batch := strings.CutPrefix(pair, "record_audit_events "); batch && said["record_audit_event "+c] {
			continue
		}
		// PC001 and, for tenant system, PC015 are those of every context.
		if seen[pair] && !said[pair] && strings.HasPrefix(c, "PC") && c != "PC001" && !(forged[name] && c == "PC015") {
			unsaid = append(unsaid, pair)
		}
	}
	slices.Sort(missing)
	slices.Sort(unsaid)
	require.Empty(t, missing, "listed in the comment and tried nowhere:\n%s", strings.Join(missing, "\n"))
	require.Empty(t, unsaid, "seen in a case and not in the comment:\n%s", strings.Join(unsaid, "\n"))
}

// checkFunctions has plpgsql_check look at every function; the functions of an
// import read the caller's temporary tables, which are made first.
const checkFunctions = `
select p.oid::regprocedure || ': ' || pg_catalog.concat_ws(' ', c.level, c.message, c.detail, 'at line', c.lineno, c.statement)
from pg_catalog.pg_proc p
join pg_catalog.pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
cross join lateral checking.plpgsql_check_function_tb(p.oid,
  coalesce((select t.tgrelid from pg_catalog.pg_trigger t where t.tgfoid = p.oid order by t.tgrelid limit 1), 0),
  oldtable => case when p.proname ~ '^tg_audit_' or p.proname = 'tg_reject_held' then 'old_rows' end,
  newtable => case when p.proname ~ '^tg_audit_' or p.proname = 'tg_require_live_identity' then 'new_rows' end,
  other_warnings => true, extra_warnings => true, performance_warnings => false, security_warnings => true) c
where p.pronamespace in ('custody'::regnamespace, 'custody_data'::regnamespace)
order by 1`

func TestPlpgsqlCheck(t *testing.T) {
	t.Parallel()
	conn := stacktest.DB(t).Conn(t, stack.Superuser)
	run := func(statement string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	run(`create schema checking; create extension plpgsql_check with schema checking`)
	findings := func() []string {
		t.Helper()
		rows, err := conn.Query(t.Context(), checkFunctions)
		require.NoError(t, err)
		found, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return found
	}
	run(`begin; select custody.set_context('system', 'checker')`)
	for _, table := range []string{"user_profiles", "user_preferences", "consent_records", "conversations", "audit_logs"} {
		run("select custody.prepare_import('" + table + "')")
	}
	require.Empty(t, findings())

	// The check sees what it is there for.
	run(`create function custody.broken(p_name text) returns void language plpgsql as $$ begin execute 'select ' || p_name; perform custody.no_such(); end $$`)
	require.NotEmpty(t, slices.DeleteFunc(findings(), func(f string) bool { return !bytes.Contains([]byte(f), []byte("custody.broken")) }))
	run(`rollback`)
}
