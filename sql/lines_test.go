package sql_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
)

// record is what these tests look at of a record of the server's log.
type record struct {
	SessionID string `json:"session_id"`
	Severity  string `json:"error_severity"`
	Message   string `json:"message"`
	Context   string `json:"context"`
}

// line is what a line of ours says.
type line struct {
	What, Tenant, Actor, Purpose, Subject, Login, Role, Table string
	Columns, People                                           []string
	Rows                                                      int
	Event                                                     string // the transaction's id, read only, standby
}

// logRecords are those of the server's log up to now that begin with PGCUSTODY and were
// written by the session; a marker that the session writes tells that all of them are there.
func (s *session) logRecords(t *testing.T, dir, marker string) (records []record) {
	t.Helper()
	require.Eventually(t, func() bool {
		files, err := filepath.Glob(filepath.Join(dir, "*.json"))
		require.NoError(t, err)
		slices.Sort(files)
		records = nil
		there := false
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			there = there || bytes.Contains(text, []byte(`"message":"`+marker+`"`))
			// Other tests log a lot meanwhile: lines of other processes are not looked at.
			pid := fmt.Appendf(nil, `"pid":%d,`, s.pid)
			for at := bytes.Index(text, pid); at >= 0; {
				raw := text[bytes.LastIndexByte(text[:at], '\n')+1:]
				if end := bytes.IndexByte(raw, '\n'); end >= 0 {
					raw = raw[:end]
				}
				var r record
				if bytes.Contains(raw, []byte(`"message":"PGCUSTODY `)) && json.Unmarshal(raw, &r) == nil && strings.HasSuffix(r.SessionID, fmt.Sprintf(".%x", s.pid)) {
					records = append(records, r)
				}
				next := bytes.Index(text[at+len(pid):], pid)
				if next < 0 {
					break
				}
				at += len(pid) + next
			}
		}
		return there
	}, time.Minute, 100*time.Millisecond)
	return records
}

// ours are the lines of the session that the database calls its own, and how many it does not.
func (b *bed) ours(t *testing.T, s *session) (lines []line, forged int) {
	t.Helper()
	marker := newUser("marker")
	b.must(t, fmt.Sprintf(`do $$ begin raise log '%s'; end $$`, marker))
	records := s.logRecords(t, b.Stack.LogDir(), marker)
	var messages, sessions []string
	for _, r := range records {
		messages, sessions = append(messages, r.Message), append(sessions, r.SessionID)
	}
	for i, ok := range ask[[]bool](t, b, `select custody_data.lines_are_ours($1, $2)`, messages, sessions) {
		if !ok {
			forged++
			continue
		}
		require.Equal(t, "LOG", records[i].Severity)
		require.Contains(t, records[i].Context, "custody_data.write_line")
		var l line
		require.NoError(t, json.Unmarshal([]byte(messages[i][strings.Index(messages[i], "{"):]), &l))
		lines = append(lines, l)
	}
	return lines, forged
}

// reads are the lines about a person in the open session that say that columns were opened.
func reads(lines []line, person string) (columns []string) {
	for _, l := range lines {
		if l.What == "read" && slices.Contains(l.People, person) {
			columns = append(columns, l.Table+" "+strings.Join(l.Columns, ","))
		}
	}
	return columns
}

// forceParallel goes by another name since Postgres 16.
const forceParallel = "select pg_catalog.set_config(p.name, 'on', true) from pg_catalog.pg_settings p where p.name in ('force_parallel_mode', 'debug_parallel_query')"

// Whatever way a value comes out, and whatever becomes of the transaction, there is a line.
func TestEveryReadHasALine(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	w := b.session(t, "custody_app")
	for _, statement := range []string{
		`select custody.put_profile('pat', '{"full_name": "Pat Secret", "email": "pat.secret@example.org"}')`,
		`select custody.put_preferences('pat', '{"theme": "dark"}')`,
		`select custody.save_conversation('pat', 'c' || n, '[{"role": "user", "text": "hello"}]', 'Title') from pg_catalog.generate_series(1, 30) n`,
		`select custody.save_conversation('pat', 'a/b', '[{"role": "user", "text": "hello"}]', 'Title')`,
		`select custody.record_consent('pat', 'mail', true, n::text, p_evidence => '{"form": 1}') from pg_catalog.generate_series(1, 30) n`,
	} {
		w.run(t, tenant, statement)
	}
	const event = "99999999-9999-4999-8999-999999999999"
	w.run(t, tenant, `select custody.record_audit_event('account.login', p_subject_user_id => 'pat', p_log_entry_id => '`+event+`', p_personal => '{"source_ip": "192.0.2.1"}')`)
	b.must(t, "grant temporary on database "+b.Name+" to public")
	pat := b.identity(t, "pat")
	const profile, titles, evidence, personal = "user_profiles full_name,email", "conversations title", "consent_records evidence", "audit_logs personal"
	const preferences, conversation, trail = "user_preferences preferences", "conversations title,messages", "audit_logs "
	const get, list = `select custody.get_profile('pat')`, `select title from custody.conversation_summaries`
	own := "'" + pat + "', 'notes', 'text', '1'"

	type way struct {
		name  string
		begin string // what the transaction is opened with, or another login than the application's
		do    func(t *testing.T, s *session)
		want  []string
	}
	run := func(statements ...string) func(*testing.T, *session) {
		return func(t *testing.T, s *session) {
			t.Helper()
			for _, statement := range statements {
				s.must(t, statement)
			}
		}
	}
	fail := func(statement string) func(*testing.T, *session) {
		return func(t *testing.T, s *session) {
			t.Helper()
			_, err := s.try(t.Context(), statement)
			require.Error(t, err)
			s.must(t, "rollback")
		}
	}
	for _, w := range []way{
		{"commit", "", run(get, "commit"), []string{profile}},
		{"rollback", "", run(get, "rollback"), []string{profile}},
		{"rollback to a savepoint", "", run("savepoint a", get, "rollback to savepoint a", "commit"), []string{profile}},
		{"again after a rollback to a savepoint", "", run("savepoint a", get, "rollback to savepoint a", get, "commit"), []string{profile, profile}},
		{"error in the same statement", "", fail(`select 1 / (pg_catalog.length(custody.get_profile('pat')::text) - pg_catalog.length(custody.get_profile('pat')::text))`), []string{profile}},
		{"error after it", "", func(t *testing.T, s *session) { s.must(t, get); fail("select 1 / 0")(t, s) }, []string{profile}},
		{"the value in an error", "", fail(`select (custody.get_profile('pat') ->> 'full_name')::int`), []string{profile}},
		{"connection cut before commit", "", func(t *testing.T, s *session) { s.must(t, get); require.NoError(t, s.Close(t.Context())) }, []string{profile}},
		{"process ended before commit", "", func(t *testing.T, s *session) {
			s.must(t, get)
			b.must(t, fmt.Sprintf("select pg_terminate_backend(%d, 10000)", s.pid))
		}, []string{profile}},
		{"read only", "read only", run(get, "commit"), []string{profile}},
		{"read only, rolled back", "read only", run(get, list, "rollback"), []string{profile, titles}},
		{"repeatable read", "isolation level repeatable read", run(get, "rollback"), []string{profile}},
		{"serializable read only deferrable", "isolation level serializable read only deferrable", run(get, "rollback"), []string{profile}},
		{"prepared statement", "", run("prepare p as "+get, "execute p", "rollback"), []string{profile}},
		{"generic plan", "", run("set local plan_cache_mode = force_generic_plan", "prepare p (text) as select custody.get_profile($1)", "execute p('pat')", "rollback"), []string{profile}},
		{"extended protocol", "", func(t *testing.T, s *session) {
			var v string
			require.NoError(t, s.QueryRow(t.Context(), "select custody.get_profile($1)::text", "pat").Scan(&v))
			require.Contains(t, v, "pat.secret")
			s.must(t, "rollback")
		}, []string{profile}},
		{"cursor", "", run("declare c cursor for "+list, "fetch 1 from c", "rollback"), []string{titles}},
		{"cursor that outlives its transaction", "", func(t *testing.T, s *session) {
			s.must(t, "declare c cursor with hold for "+list)
			s.must(t, "commit")
			require.Equal(t, "Title", s.must(t, "fetch 1 from c"))
			s.must(t, "close c")
		}, []string{titles}},
		{"cursor never fetched", "", run("declare c cursor for "+list, "rollback"), nil},
		{"view", "", run(list, "rollback"), []string{titles}},
		{"another view", "", run(`select evidence from custody.consents`, "rollback"), []string{evidence}},
		{"view, other columns", "", run(`select conversation_id from custody.conversation_summaries`, "rollback"), nil},
		{"aggregate", "", run(`select pg_catalog.count(*), pg_catalog.max(title) from custody.conversation_summaries`, "rollback"), []string{titles}},
		{"condition", "", run(`select 1 from custody.conversation_summaries where title like 'T%'`, "rollback"), []string{titles}},
		{"order", "", run(`select conversation_id from custody.conversation_summaries order by title`, "rollback"), []string{titles}},
		{"join", "", run(`select 1 from custody.conversation_summaries a join custody.conversation_summaries b using (title)`, "rollback"), []string{titles}},
		{"before it ends", "", run(get), []string{profile}},
		{"before a cursor is closed", "", func(t *testing.T, s *session) {
			s.must(t, "declare c cursor for "+list)
			require.Equal(t, "Title", s.must(t, "fetch 1 from c"))
		}, []string{titles}},
		{"prepared transaction", "", func(t *testing.T, s *session) {
			s.must(t, get)
			s.must(t, "prepare transaction '"+b.Name+"'")
			s.must(t, "rollback prepared '"+b.Name+"'")
		}, []string{profile}},
		{"read only half-way", "", func(t *testing.T, s *session) {
			s.must(t, "set transaction_read_only = on")
			s.must(t, get)
			s.must(t, "commit")
		}, []string{profile}},
		{"cancelled", "", fail(get + `, pg_catalog.pg_cancel_backend(pg_catalog.pg_backend_pid()), pg_catalog.pg_sleep(50)`), []string{profile}},
		{"by whom", reports, run(get, list, "rollback"), []string{profile, titles}},
		{"the runner", runner, run(get, list, "rollback"), []string{profile, titles}},
		{"search by an address", "", run(`select custody.find_subject(' PAT.secret@example.org')`, "rollback"), []string{"user_profiles email"}},
		{"search by an address, read only", "read only", run(`select custody.find_subject('pat.secret@example.org')`, "rollback"), []string{"user_profiles email"}},
		{"search for somebody else", "", run(`select custody.find_subject('other@example.org')`, `select custody.find_subject('pat.secret@example.org', '+41 1 234567')`, "rollback"), nil},
		{"search past the function", "", fail(`select 1 from custody_data.user_profiles p where p.email_index = any (custody_data.blind_indexes('email', 'pat.secret@example.org'))`), nil},
		{"export", dpo, run(`select custody.export_subject('pat')`, "rollback"), []string{profile, preferences, evidence, conversation, personal}},
		{"export, item by item", dpo, run(`select custody.export_items(custody.request_export('pat'))`, "rollback"), []string{profile, preferences, evidence, conversation, personal}},
		{"search for what an erasure leaves", dpo, run(`select custody.search_residue(custody.request_erasure('pat'))`, "rollback"), []string{"user_profiles email,full_name"}},
		{"the trail", dpo, run(`select personal from custody.audit_events(now() - interval '1 day', now() + interval '1 day', 'pat')`, "rollback"), []string{personal, trail}},
		{"one event", dpo, run(`select custody.audit_event('`+event+`')`, "rollback"), []string{personal, trail}},
		{"one's own columns", "", run(`select custody.open_value(`+own+`, custody.seal_value(`+own+`, 'a note'))`, "rollback"), []string{"notes text"}},
		{"helper", "", run(`select custody_data.open_profile(p) from custody_data.user_profiles p`, `select custody_data.open_text(p.identity_id, 'user_profiles', 'email', p.identity_id::text, p.email) from custody_data.user_profiles p`,
			`select custody_data.open_values(p.identity_id, 'user_profiles', p.identity_id::text, '{full_name}', array[p.full_name]::bytea[]) from custody_data.user_profiles p`, "rollback"),
			[]string{profile, "user_profiles email", "user_profiles full_name"}},
		{"read only by hand, as nobody", "read only", fail("set local custody.actor = ''; set local custody.actor_id = ''; " + get), nil},
		// The same place, by other names: the line would tell of another table or column.
		{"another table's name", "", fail(`select custody_data.open_text(c.identity_id, 'conversations/title', 'a', 'b', c.title) from custody_data.conversations c where c.conversation_id = 'a/b'`), nil},
		{"another column's name", "", fail(`select custody.open_value(c.identity_id, 'conversations', 'messages/a', 'b', c.messages) from custody_data.conversations c where c.conversation_id = 'a/b'`), nil},
		{"settings of its own", "", run(`set local search_path = custody_data, custody, public`, get, "rollback"), []string{profile}},
		{"history", "", run(`select custody.consent_history('pat')`, "rollback"), []string{evidence}},
		{"rows as they are", "", func(t *testing.T, s *session) {
			require.NotContains(t, s.must(t, `select pg_catalog.to_jsonb(p) from custody_data.user_profiles p`), "Pat")
			s.must(t, "rollback")
		}, nil},
		{"trigger, CHECK and RETURNING", "", run(`create temp table kept (v text check (v is distinct from custody.get_preferences('pat')::text))`,
			`create function pg_temp.tg() returns trigger language plpgsql as $$ begin new.v := custody.get_profile('pat')::text; return new; end $$`,
			`create trigger tg before insert on kept for each row execute function pg_temp.tg()`, `insert into kept values ('x') returning v, (select pg_catalog.max(title) from custody.conversation_summaries)`, "rollback"),
			[]string{profile, preferences, titles}},
		{"default of a column", "", run(`create temp table kept (n int, v text default custody.get_profile('pat')::text)`, `insert into kept values (1)`, "rollback"), []string{profile}},
		{"MERGE", "", run(`create temp table kept (id text, v text)`, `merge into kept k using custody.conversation_summaries s on k.id = s.conversation_id when not matched then insert values (s.conversation_id, s.title)`, "rollback"), []string{titles}},
		{"view of one's own", "", run(`create temp view mine as `+list, `table mine`, "rollback"), []string{titles}},
		{"NOTIFY, a setting and an advisory lock", "", run(`select pg_catalog.pg_notify('c', custody.get_profile('pat')::text)`, `select pg_catalog.set_config('a.b', custody.get_preferences('pat')::text, false)`,
			`select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(custody.consent_history('pat')::text, 0))`, "rollback"), []string{profile, preferences, evidence}},
		// The planner asks a stable function what to expect, and calls an immutable one ahead of time.
		{"explain that asks a value", "", run(`explain select 1 from pg_catalog.pg_class where relname::text < custody.get_profile('pat') ->> 'full_name'`, "rollback"), []string{profile}},
		{"explain that shows a value", "", func(t *testing.T, s *session) {
			s.must(t, `create function pg_temp.same() returns text language plpgsql immutable as $$ begin return custody.get_profile('pat') ->> 'full_name'; end $$`)
			require.Contains(t, s.must(t, `explain (format json, verbose) select pg_temp.same()`), "Pat Secret")
			s.must(t, "rollback")
		}, []string{profile}},
		{"read only transactions of one DO", "", func(t *testing.T, s *session) {
			s.must(t, "rollback")
			s.must(t, "set default_transaction_read_only = on")
			s.must(t, fmt.Sprintf(`do $do$
declare
  v_lines text;
begin
  for i in 1 .. 2 loop
    perform custody.set_context('acme', 'custody_app'), set_config('custody.kek', '%x', true), set_config('custody.kek_version', '1', true), set_config('custody.lines', v_lines, true), custody.get_profile('pat');
    v_lines := current_setting('custody.lines');
    commit;
  end loop;
end $do$`, tenantKey(tenant)))
		}, []string{profile, profile}}, // though the second has the memory of the first
		{"API", "", run(`select custody.list_conversations('pat'), custody.get_conversation('pat', 'c1'), custody.get_preferences('pat')`, "rollback"),
			[]string{titles, "conversations title,messages", "user_preferences preferences"}},
		{"function in WHERE that leaks", "", run(`create function pg_temp.leak(text) returns boolean language plpgsql cost 0.0000001 as $$ begin raise notice '%', $1; return false; end $$`,
			`select 1 from custody.conversation_summaries where pg_temp.leak(title)`, "rollback"), []string{titles}},
		{"COPY", "", func(t *testing.T, s *session) {
			_, err := s.PgConn().CopyTo(t.Context(), io.Discard, "copy ("+list+") to stdout")
			require.NoError(t, err)
			s.must(t, "rollback")
		}, []string{titles}},
		{"DO", "", run(`do $$ begin perform custody.get_profile('pat'); end $$`, "rollback"), []string{profile}},
		{"DO that catches its error", "", run(`do $$ begin perform custody.get_profile('pat'); perform 1 / (select 0); exception when others then null; end $$`, "commit"), []string{profile}},
		{"explain", "", run("explain "+list, "rollback"), nil},
		{"explain analyze", "", run("explain analyze "+list, "rollback"), []string{titles}},
		{"create table as", "", run("create temp table kept on commit drop as "+list, "rollback"), []string{titles}},
		{"definer of another", "", run(`create function pg_temp.mine() returns jsonb language sql security definer as 'select custody.get_profile(''pat'')'`, "select pg_temp.mine()", "rollback"), []string{profile}},
		{"parallel workers", "", func(t *testing.T, s *session) {
			s.must(t, "set local parallel_setup_cost = 0; set local parallel_tuple_cost = 0; set local min_parallel_table_scan_size = 0; "+forceParallel)
			require.NotContains(t, s.must(t, "explain (format json) "+list), "Gather")
			s.must(t, list)
			s.must(t, "rollback")
		}, []string{titles}},
		{"a function that says it is parallel safe", "", func(t *testing.T, s *session) {
			s.must(t, forceParallel)
			s.must(t, `create function pg_temp.safe() returns jsonb language plpgsql parallel safe as 'begin return custody.get_profile(''pat''); end'`)
			s.must(t, "savepoint a")
			_, err := s.try(t.Context(), "select pg_temp.safe()")
			requireCode(t, err, "25000") // which it is not
			s.must(t, "rollback")
		}, nil},
		{"settings that hide", "", run("set local client_min_messages = error", "set local custody.lines = '"+strings.Repeat("0", 64)+"'", get, "rollback"), []string{profile}},
		{"many times", "", run(get, get, `select custody.get_profile('pat') from pg_catalog.generate_series(1, 50)`, "rollback"), []string{profile}},
		{"nothing", "", run("select 1", "rollback"), nil},
	} {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			b := b.again(t)
			login, begin := app, w.begin
			if slices.Contains(logins(), begin) {
				login, begin = begin, ""
			}
			s := b.session(t, login)
			require.NoError(t, s.tryBegin(t.Context(), begin, tenant, ""))
			w.do(t, s)
			lines, forged := b.ours(t, s)
			require.Zero(t, forged)
			require.Equal(t, w.want, reads(lines, pat))
			for _, l := range lines {
				require.Equal(t, tenant+"|"+login+"|"+login, l.Tenant+"|"+l.Login+"|"+l.Role)
				// The trail's own reading is another event.
				if l.What == "read" && l.Columns != nil {
					require.NotEmpty(t, l.Event)
					require.Equal(t, strings.Contains(w.name, "read only"), l.Event == "read only")
				}
			}
		})
	}
}

// Who asks about the trail, or who read what, and rolls back, has a line for it.
func TestLinesOfQuestions(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.session(t, "custody_app").run(t, tenant, `select custody.put_profile('pat', '{}')`)
	pat := b.identity(t, "pat")
	for _, c := range []struct{ login, tenant, question, want string }{
		{"custody_audit", tenant, `custody.access_to_person(now() - interval '1 day', now(), 'pat')`, "access_events " + pat},
		{"custody_audit", tenant, `custody.access_by_actor(now() - interval '1 day', now(), 'pat')`, "access_events " + pat},
		{"custody_audit", tenant, `custody.access_summary(now() - interval '1 day', now())`, "access_events "},
		{"custody_dpo", tenant, `custody.access_of_subject(now() - interval '1 day', now(), 'pat')`, "access_events " + pat},
		{"custody_audit", "system", `custody.detect(now() - interval '1 day', now(), true)`, "access_events "},
		{"custody_audit", tenant, `custody.audit_events(now() - interval '1 day', now(), 'pat')`, "audit_logs " + pat},
		{"custody_audit", tenant, `custody.audit_event('99999999-9999-4999-8999-999999999999')`, "audit_logs "},
		{"custody_dpo", tenant, `custody.list_requests()`, "requests "},
	} {
		s := b.session(t, c.login)
		require.NoError(t, s.tryBegin(t.Context(), "", c.tenant, ""))
		s.must(t, "select * from "+c.question)
		s.must(t, "rollback")
		lines, forged := b.ours(t, s)
		require.Zero(t, forged)
		last := lines[len(lines)-1]
		require.Equal(t, "read "+c.want, last.What+" "+last.Table+" "+strings.Join(last.People, ","), c.question)
		require.Empty(t, last.Event, "there is none of a read to look for")
	}
}

// A message is ours in its own session alone, and as it stands.
func TestForgedLines(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	s, other := b.session(t, "custody_app"), b.session(t, "custody_app")
	s.run(t, tenant, `select custody.put_profile('pat', '{"full_name": "Pat Secret"}')`)
	s.run(t, tenant, `select custody.get_profile('pat')`)
	marker := newUser("marker")
	b.must(t, fmt.Sprintf(`do $$ begin raise log '%s'; end $$`, marker))
	records := s.logRecords(t, b.Stack.LogDir(), marker)
	require.NotEmpty(t, records)
	genuine := records[len(records)-1].Message

	forge := func(s *session, message string) {
		t.Helper()
		_, err := s.Exec(t.Context(), fmt.Sprintf(`do $do$ begin raise log using message = $m$%s$m$; end $do$`, message), pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
	}
	forge(other, genuine) // a true one of another session
	forge(other, strings.Replace(genuine, fmt.Sprintf(`"pid":%d`, s.pid), fmt.Sprintf(`"pid":%d`, other.pid), 1))
	forge(other, strings.Replace(genuine, "PGCUSTODY ", "PGCUSTODY 0", 1))
	forge(other, "PGCUSTODY "+strings.Repeat("0", 36)+"."+strings.Repeat("0", 64)+" {}")
	forge(other, "PGCUSTODY ")
	forge(other, "PGCUSTODY "+strings.Repeat("x", 1<<20))
	lines, forged := b.ours(t, other)
	require.Empty(t, lines)
	require.Equal(t, 6, forged)

	forge(s, strings.Replace(genuine, "full_name", "nothing", 1))
	forge(s, strings.Replace(genuine, `"rows":1`, `"rows":0`, 1))
	before, forged := b.ours(t, s)
	require.Equal(t, 2, forged)
	require.Equal(t, []string{"user_profiles full_name"}, reads(before, b.identity(t, "pat")))

	_, err := other.try(t.Context(), `select custody_data.lines_are_ours(array['x'], array['x'])`)
	requireCode(t, err, "42501")
	_, err = other.try(t.Context(), `select custody_data.write_line('read')`)
	requireCode(t, err, "42501")
}

// Lists of several people, and keys that are given out, name each of them.
func TestLinesOfManyPeople(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	s := b.session(t, "custody_app")
	s.run(t, tenant, `select custody.save_conversation('p' || n, 'c', '[{"role": "user", "text": "hello"}]', 'Title') from pg_catalog.generate_series(1, 60) n`)
	s.run(t, tenant, `select title from custody.conversation_summaries`)
	lines, forged := b.ours(t, s)
	require.Zero(t, forged)
	people := map[string]int{}
	for _, l := range lines {
		if l.What == "read" {
			require.Len(t, l.People, 1)
			people[l.People[0]]++
		}
	}
	require.Len(t, people, 60)

	w := b.session(t, "custody_runner")
	w.run(t, tenant, `select pg_catalog.count(*) from custody.claim_data_keys((select pg_catalog.array_agg(i.identity_id) from custody_data.identities i where i.user_id like 'p%'))`)
	lines, _ = b.ours(t, w)
	lines = slices.DeleteFunc(lines, func(l line) bool { return l.What != "read" })
	require.Len(t, lines, 1)
	require.Equal(t, "wrapped_keys", lines[0].Table)
	require.Len(t, lines[0].People, 60)
	require.Equal(t, 60, lines[0].Rows)
	require.Empty(t, lines[0].Event)
}

// Where pgaudit logs statements, contexts have a line to join them with, in which an identity or a pseudonym acts.
func TestContextLines(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	w := b.session(t, "custody_app")
	w.run(t, tenant, `select custody.put_preferences('known', '{}')`)
	m := b.inTokenMode(t)
	quiet := b.session(t, "custody_app")
	require.NoError(t, quiet.beginToken(t.Context(), m.token(t, nil)))
	lines, _ := b.ours(t, quiet)
	require.Empty(t, lines)
	b.must(t, "alter role custody_app in database "+b.Name+" set pgaudit.role = 'custody_pgaudit'")
	s := b.session(t, "custody_app")
	for _, sub := range []string{"known", "never.seen@example.org"} {
		require.NoError(t, s.beginToken(t.Context(), m.token(t, map[string]any{"sub": sub, "purpose": "a \"purpose\"\nof two lines"})))
		s.must(t, "rollback")
	}
	lines, forged := b.ours(t, s)
	require.Zero(t, forged)
	require.Len(t, lines, 2, "rolled back as they are")
	require.Equal(t, line{What: "context", Tenant: tenant, Actor: b.identity(t, "known"), Purpose: "a \"purpose\"\nof two lines", Login: "custody_app", Role: "custody_app"}, lines[0])
	require.Regexp(t, "^~[0-9a-f]{16}$", lines[1].Actor)
}

// On a standby, which writes nothing, a token enters a context as on its primary, and the line is the only record.
func TestReadsAndTokensOnAStandby(t *testing.T) {
	t.Parallel()
	primary := newCluster(t)
	migrate(t, primary, stack.Database)
	b := bedOf(t, primary, stack.Database)
	b.session(t, "custody_runner").run(t, "system", `select custody.register_tenant('acme', 'Acme'), custody.register_tenant('other', 'Other'), custody.ensure_audit_partitions(now(), now())`)
	b.registerKeys(t)
	w := b.session(t, "custody_app")
	w.run(t, tenant, `select custody.put_profile('pat', '{"full_name": "Pat of acme"}')`)
	w.run(t, "other", `select custody.put_profile('pat', '{"full_name": "Pat of other"}')`)
	m := b.inTokenMode(t)
	// The first token makes the key of contexts, which only a primary can.
	require.NoError(t, w.beginToken(t.Context(), m.token(t, nil)))
	w.must(t, "commit")

	b.must(t, "alter role custody_app set pgaudit.log = 'read'")
	standby := bedOf(t, startCopy(t, primary, baseBackup(t, primary), nil), stack.Database)
	standby.keyed = true
	require.True(t, ask[bool](t, standby, `select pg_is_in_recovery()`))
	s := standby.session(t, "custody_app")
	read := func(claims map[string]any) string {
		t.Helper()
		require.NoError(t, s.beginToken(t.Context(), m.token(t, claims)))
		_, err := s.Exec(t.Context(), "select custody.unlock($1)", tenantKey(claims["tenant"].(string)))
		require.NoError(t, err)
		return s.must(t, `select custody.get_profile('pat') ->> 'full_name'`)
	}
	require.Equal(t, "Pat of acme", read(map[string]any{"tenant": tenant}))
	s.must(t, "savepoint a")
	s.must(t, "set local custody.tenant = 'other'")
	_, err := s.try(t.Context(), `select custody.get_profile('pat')`)
	requireCode(t, err, "PC001")
	s.must(t, "rollback")
	require.Equal(t, "Pat of other", read(map[string]any{"tenant": "other"}))
	s.must(t, "commit")
	_, err = s.try(t.Context(), `select custody.set_context('acme', 'clerk')`)
	requireCode(t, err, "PC061")
	requireCode(t, s.beginToken(t.Context(), newMinter(t, m.kid).token(t, nil)), "PC060")
	s.must(t, "rollback")

	lines, forged := standby.ours(t, s)
	require.Zero(t, forged)
	var said []string
	for _, l := range lines {
		said = append(said, l.What+" "+l.Tenant)
		require.Equal(t, map[string]string{"read": "standby"}[l.What], l.Event)
	}
	require.Equal(t, []string{"context acme", "read acme", "context other", "read other"}, said)
	require.Equal(t, []string{"user_profiles full_name"}, reads(lines, ask[string](t, b, `select identity_id::text from custody_data.identities where tenant_id = 'other' and user_id = 'pat'`)))
	require.Zero(t, ask[int](t, standby, `select count(*) from custody_data.audit_logs where action = 'record.read'`))
}
