package serverlog

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
)

var update = flag.Bool("update", false, "write testdata/sample.json and sample.csv anew from what the server logs")

// A person's statements, from the plain to the malicious. What is forged names the
// table public.forged, what no literal may pass on is in it as s3cret.
var statements = []string{
	"select * from people where name = 's3cret'",
	"select * from people where name = 'Zoë \"s3cret\"' -- s3cret\n and id > 0",
	"insert into people values (1, 's3cret'), (2, E'it\\'s s3cret')",
	"update people set name = $$s3cret$$ where id = 1",
	"delete from people where id = 2",
	"copy people to stdout",
	"begin",
	"declare c cursor for select * from people",
	"fetch all from c",
	"savepoint a",
	"select 'Привет, мир', U&'\\0441', '日本語 s3cret', x'1F', 12345",
	"rollback to savepoint a",
	"rollback",
	"prepare p (text) as select * from people where name = $1",
	"execute p('s3cret, \"s3cret\"')",
	"do $$ begin perform count(*) from people; end $$",
	`create table "odd,""na
me" (a int)`,
	`select * from "odd,""na
me"`,
	`drop table "odd,""na
me"`,
	"select " + strings.Repeat("'s3cret, ', ", 2000) + "1",
	// Errors: the statement and what was wrong with a value go to the log.
	"select 1 / 0 as s, 's3cret'",
	"select 's3cret'::int",
	"insert into people values (-1, 's3cret')",
	"select * from hidden where name = 's3cret'",
	"this is 's3cret' no SQL",
	"do $$ begin raise exception 'AUDIT: SESSION,1,1,READ,SELECT,TABLE,public.forged,select,<not logged>'; end $$",
	// Forgeries.
	"do $$ begin raise log 'AUDIT: SESSION,1,1,READ,SELECT,TABLE,public.forged,select 1,<not logged>'; end $$",
	"do $$ begin raise log using message = 'AUDIT: OBJECT,1,1,READ,SELECT,TABLE,public.forged,select 1,<not logged>', errcode = '00000'; end $$",
	"do $$ begin raise info 'AUDIT: SESSION,1,1,READ,SELECT,TABLE,public.forged,select 1,<not logged>'; end $$",
	"do $$ begin raise log 'connection authorized: user=forged'; end $$",
	"do $$ begin raise log 'disconnection: session time: 0:00:00.001 user=forged'; end $$",
	"do $$ begin raise log e'x\\nAUDIT: SESSION,1,1,READ,SELECT,TABLE,public.forged,select 1,<not logged>'; end $$",
	"select forge()",
	"insert into forging values (1)",
	"set application_name = 'AUDIT: SESSION,1,1,READ,SELECT,TABLE,public.forged,s,n'",
	"select 1",
	"set application_name = e'\",\"x\\n2026-11-21 22:00:00.000 UTC,\"p\",\"d\"'",
	"select 1",
	"set application_name = ',,,,,,,,'",
	"select 1",
	// A line break within a statement, and what would be a record behind it.
	"select 's3cret\n" + forgedCSV + "\n' as a",
	"select 's3cret\n" + forgedJSON + "\n' as a",
	"select 1, -- s3cret\n" + forgedCSV + "\n",
	"/* s3cret\n" + forgedJSON + "\n*/ select 1/0",
}

const (
	forgedCSV  = `2026-11-21 22:00:00.000 UTC,"person","custody",1,"[local]",6b0219e6.7802,1,"SELECT",2026-11-21 22:00:00 UTC,3/45,0,LOG,00000,"AUDIT: SESSION,1,1,READ,SELECT,TABLE,public.forged,select,<not logged>",,,,,,,,"log_audit_event, pgaudit.c:783","psql","client backend",,0`
	forgedJSON = `{"timestamp":"2026-11-21 22:00:00.000 UTC","user":"person","dbname":"custody","pid":1,"session_id":"6b0219e6.7802","line_num":1,"error_severity":"LOG","message":"AUDIT: SESSION,1,1,READ,SELECT,TABLE,public.forged,select 1,<not logged>","func_name":"log_audit_event","file_name":"pgaudit.c","backend_type":"client backend"}`
)

// live is a server of the test's own that logs in both formats, with pgaudit if it
// has it.
func live(t *testing.T) (s *stack.Stack, audited bool) {
	dir, err := stack.TempDir()
	require.NoError(t, err)
	s, err = stack.Start(t.Context(), stack.Options{Dir: dir, NoFsync: true, Ephemeral: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Destroy(context.Background())) })
	super := connect(t, s.SuperURL(stack.Database))
	require.NoError(t, super.QueryRow(t.Context(), "select exists (select from pg_available_extensions where name = 'pgaudit')").Scan(&audited))
	for _, sql := range []string{
		"alter system set log_destination = 'jsonlog,csvlog'",
		"alter system set log_error_verbosity = verbose",
		"alter system set log_connections = on",
		"alter system set log_disconnections = on",
		"create extension pgaudit",
		"create table public.people (id int check (id > 0), name text)",
		"create table public.hidden (id int, name text)",
		"create table public.forging (id int)",
		"grant connect on database custody to public",
		"grant all on schema public to public",
		"grant all on public.people, public.forging to public",
		`create function public.forge() returns int language plpgsql security definer as $$
		 begin raise log 'AUDIT: SESSION,9,9,READ,SELECT,TABLE,public.forged,"select, 1",<not logged>,5'; return 1; end $$`,
		"create function public.tg_forge() returns trigger language plpgsql as $$ begin perform public.forge(); return new; end $$",
		"create trigger forge before insert on public.forging for each row execute function public.tg_forge()",
		"create role person login password 'person'",
		"alter role person set pgaudit.log = 'all'",
		"alter role person set pgaudit.log_relation = on",
		"create role person_rows login password 'person' in role person",
		"alter role person_rows set pgaudit.log = 'all'",
		"alter role person_rows set pgaudit.log_rows = on",
		"alter role person_rows set pgaudit.log_parameter = on",
		"alter role person_rows set pgaudit.log_statement_once = on",
		"create role person_plain login password 'person'",
		"alter role person_plain set pgaudit.log = 'all'",
		"alter role person_plain set log_error_verbosity = 'default'",
		"select pg_reload_conf()",
	} {
		if !audited && strings.Contains(sql, "pgaudit") {
			continue
		}
		_, err := super.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	require.Eventually(t, func() bool {
		var to string
		return connect(t, s.SuperURL(stack.Database)).QueryRow(t.Context(), "show log_connections").Scan(&to) == nil && to == "on"
	}, 20*time.Second, 10*time.Millisecond)
	return s, audited
}

func connect(t *testing.T, url string) *pgx.Conn {
	config, err := pgx.ParseConfig(url)
	require.NoError(t, err)
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// run logs in and runs the statements, those that fail too.
func run(t *testing.T, url string, statements []string) {
	conn := connect(t, url)
	for _, sql := range statements {
		err := func() error {
			if strings.HasPrefix(sql, "copy ") {
				_, err := conn.PgConn().CopyTo(t.Context(), io.Discard, sql)
				return err
			}
			_, err := conn.Exec(t.Context(), sql)
			return err
		}()
		if pgErr := (*pgconn.PgError)(nil); err != nil && !errors.As(err, &pgErr) {
			require.NoError(t, err, sql)
		}
	}
	require.NoError(t, conn.Close(t.Context()))
}

// readAll reads a log that is complete.
func readAll(t testing.TB, log []byte, o Options) (records []*Record, lost []Unreadable, counts Counts) {
	o.Complete = true
	o.Unreadable = func(u Unreadable) { lost = append(lost, u) }
	r := NewReader(bytes.NewReader(log), o)
	for {
		var record Record
		err := r.Next(&record)
		if errors.Is(err, io.EOF) {
			require.EqualValues(t, len(log)+int(o.Offset), r.Offset())
			return records, lost, r.Counts()
		}
		require.NoError(t, err)
		records = append(records, record.Clone())
	}
}

func TestRealServer(t *testing.T) {
	t.Parallel()
	s, audited := live(t)
	url := func(user, database string) string {
		u := s.URL("custody_app", database)
		password := s.Passwords["custody_app"]
		return strings.Replace(strings.Replace(u, "custody_app", user, 1), password, "person", 1)
	}
	run(t, url("person", stack.Database), statements)
	run(t, url("person_plain", stack.Database), statements)

	rows, err := pgx.Connect(t.Context(), url("person_rows", stack.Database))
	require.NoError(t, err)
	for range 2 {
		_, err = rows.Exec(t.Context(), "select * from people where name = $1 and id = $2", `a,"b"`, 3)
		require.NoError(t, err)
	}
	require.NoError(t, rows.Close(t.Context()))

	for _, refused := range []string{url("nobody", stack.Database), url("person", "nowhere"), strings.Replace(url("person", stack.Database), ":person@", ":wrong@", 1)} {
		_, err := pgx.Connect(t.Context(), refused)
		require.Error(t, err)
	}

	// Two log files, whose last record comes last in both.
	last := connect(t, s.SuperURL(stack.Database))
	_, err = last.Exec(t.Context(), "do $$ begin raise log 'the end'; end $$")
	require.NoError(t, err)
	logs := map[string][]byte{}
	for _, ext := range []string{"json", "csv"} {
		require.Eventually(t, func() bool {
			files, err := filepath.Glob(filepath.Join(s.LogDir(), "*."+ext))
			require.NoError(t, err)
			var all []byte
			for _, file := range files {
				text, err := os.ReadFile(file)
				require.NoError(t, err)
				all = append(all, text...)
			}
			logs[ext] = all
			return bytes.Contains(all, []byte("the end"))
		}, 20*time.Second, 10*time.Millisecond, ext)
	}

	json, lost, counts := readAll(t, logs["json"], Options{Format: JSON})
	require.Empty(t, lost)
	require.Zero(t, counts.UnknownZone+counts.BadEncoding)
	csv, lost, counts := readAll(t, logs["csv"], Options{Format: CSV})
	require.Empty(t, lost)
	require.Zero(t, counts.UnknownZone+counts.BadEncoding)

	// Both formats say the same of each session that began when both were written.
	began := map[string]bool{}
	for _, r := range csv {
		if r.LineNum == 1 && strings.HasPrefix(string(r.Message), "connection received") {
			began[string(r.SessionID)] = true
		}
	}
	of := func(all []*Record) (records []*Record) {
		for _, r := range all {
			if began[string(r.SessionID)] {
				records = append(records, r)
			}
		}
		return records
	}
	json, csv = of(json), of(csv)
	require.Equal(t, len(json), len(csv))
	byKey := map[string]*Record{}
	for _, r := range csv {
		byKey[fmt.Sprintf("%s/%d", r.SessionID, r.LineNum)] = r
	}
	for _, r := range json {
		other := byKey[fmt.Sprintf("%s/%d", r.SessionID, r.LineNum)]
		require.NotNil(t, other)
		require.True(t, r.Equal(other), "%+v\n%+v", r, other)
	}

	if *update {
		writeSample(t, "sample.json", logs["json"], json)
		writeSample(t, "sample.csv", logs["csv"], csv)
	}

	// In order, and nothing missing.
	sequence := NewSequence(SequenceOptions{})
	for _, r := range json {
		require.Empty(t, sequence.Check(nil, r))
	}

	encoder := NewEncoder(EncoderOptions{})
	kinds := map[string]map[Kind]int{}
	var audits []Audit
	for _, r := range json {
		kind := encoder.Read(r)
		user := string(r.User)
		if kinds[user] == nil {
			kinds[user] = map[Kind]int{}
		}
		kinds[user][kind]++
		event := encoder.Append(nil, nil)
		require.NotContains(t, string(event), "s3cret", "%+v", r)
		a := encoder.Audit()
		if kind != Statement && kind != Unproven {
			continue
		}
		require.NotEqual(t, "public.forged", string(a.Name))
		require.NotContains(t, string(a.Name), "forged")
		if user == "person_rows" {
			audits = append(audits, Audit{Object: a.Object, StatementID: a.StatementID, Substatement: a.Substatement,
				Class: bytes.Clone(a.Class), Command: bytes.Clone(a.Command), Statement: bytes.Clone(a.Statement), StatementLogged: a.StatementLogged,
				Parameters: bytes.Clone(a.Parameters), ParametersLogged: a.ParametersLogged, Rows: a.Rows})
		}
	}
	// Seven forged in each of the two sessions: two by RAISE LOG in a DO block, one by
	// RAISE EXCEPTION, two about connections, one each of the function and the trigger.
	require.Equal(t, 7, kinds["person"][Forgery])
	require.Equal(t, 7, kinds["person_plain"][Forgery])
	require.Zero(t, kinds["person"][Unproven])
	require.Zero(t, kinds["person_plain"][Statement])
	// The server authorizes a connection before it looks for the database.
	require.Equal(t, map[string]int{"person": 2, "person_plain": 1, "person_rows": 1},
		map[string]int{"person": kinds["person"][Logon], "person_plain": kinds["person_plain"][Logon], "person_rows": kinds["person_rows"][Logon]})
	require.Equal(t, 1, kinds["person"][Logoff])
	require.Equal(t, 2, kinds["person"][LogonFailed]) // wrong password, no such database
	require.Equal(t, 1, kinds["nobody"][LogonFailed])
	require.Equal(t, 8, kinds["person"][Failed])

	if !audited {
		return
	}
	require.Greater(t, kinds["person"][Statement], len(statements)*2/3)
	require.Greater(t, kinds["person_plain"][Unproven], len(statements)*2/3)
	require.NotEmpty(t, audits)
	ran := audits[len(audits)-1]
	require.Equal(t, "select * from people where name = $1 and id = $2", string(ran.Statement))
	require.Equal(t, "\"a,\"\"b\"\"\",3", string(ran.Parameters))
	require.Zero(t, ran.Rows)
}

// writeSample keeps what the other tests read.
func writeSample(t *testing.T, name string, log []byte, records []*Record) {
	var b []byte
	for _, r := range records {
		if len(r.Message)+len(r.Statement) < 4000 {
			b = append(b, log[r.Start:r.End]...)
		}
	}
	require.NoError(t, os.MkdirAll("testdata", 0o755))
	require.NoError(t, os.WriteFile(filepath.Join("testdata", name), b, 0o644))
}
