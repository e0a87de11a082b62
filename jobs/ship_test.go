package jobs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/db"
	"pgcustody/jobs/logship"
	"pgcustody/jobs/serverlog"
	"pgcustody/jobs/store"
)

// shipBench ships a log that the test writes.
type shipBench struct {
	*bench
	super *pgxpool.Pool
	dir   string
	lines map[string]int // of sessions
	clock time.Time
}

func newShipBench(t *testing.T) *shipBench {
	b := &shipBench{bench: newLockedBench(t), dir: t.TempDir(), lines: map[string]int{}, clock: time.Now().UTC().Add(-time.Hour).Truncate(time.Second)}
	b.super = b.database.Pool(t, stack.Superuser)
	b.deps.Config.Ship = ShipConfig{Source: b.dir}
	return b
}

// said is what a test's line says beside the usual.
type said map[string]any

// line is the next one of a session, as the server writes it.
func (b *shipBench) line(session, message string, more said) string {
	b.lines[session]++
	b.clock = b.clock.Add(10 * time.Millisecond)
	record := said{
		"timestamp": b.clock.Format("2006-01-02 15:04:05.000 UTC"), "user": "dr_ada", "dbname": b.database.Name, "pid": 4711, "remote_host": "192.0.2.7", "remote_port": 40000,
		"session_id": session, "line_num": b.lines[session], "ps": "SELECT", "session_start": b.clock.Add(-time.Minute).Format("2006-01-02 15:04:05 UTC"), "vxid": "3/7", "txid": 0,
		"error_severity": "LOG", "message": message, "application_name": "app", "backend_type": "client backend", "query_id": 0,
	}
	for name, value := range more {
		record[name] = value
	}
	// timestamp comes first in what the server writes.
	text, err := json.Marshal(record)
	require.NoError(b, err)
	at, err := json.Marshal(record["timestamp"])
	require.NoError(b, err)
	delete(record, "timestamp")
	rest, err := json.Marshal(record)
	require.NoError(b, err)
	require.NotEmpty(b, text)
	return `{"timestamp":` + string(at) + "," + string(rest[1:]) + "\n"
}

// audited is a line of pgaudit's.
func (b *shipBench) audited(session, table string) string {
	return b.line(session, fmt.Sprintf(`AUDIT: OBJECT,1,1,READ,SELECT,TABLE,%s,select 's3cret' from t,<not logged>`, table),
		said{"func_name": "log_audit_event", "file_name": "pgaudit.c", "file_line_num": 783})
}

// own is a line of the schema's; the stub believes a MAC of zeros.
func (b *shipBench) own(session, mac string, line said) string {
	text, err := json.Marshal(line)
	require.NoError(b, err)
	return b.line(session, fmt.Sprintf("PGCUSTODY %s.%s %s", uuid.NewString(), strings.Repeat(mac, 64), text),
		said{"context": "PL/pgSQL function custody_data.write_line(text,text,text[],uuid[],bigint,boolean) line 1 at RAISE", "func_name": "exec_stmt_raise", "file_name": "pl_exec.c"})
}

// believe puts a stub in the place of the check of own lines: a MAC of zeros is right, of
// one of twos nobody can tell.
func (b *shipBench) believe() {
	_, err := b.super.Exec(b.Context(), `
create or replace function custody_data.lines_are_ours(p_messages text[], p_sessions text[]) returns boolean[] language sql as
$$ select array_agg(case when m.message not like '%.' || repeat('2', 64) || ' {%' then m.message like '%.' || repeat('0', 64) || ' {%' end order by m.n) from unnest(p_messages) with ordinality m (message, n) $$;
grant execute on function custody_data.lines_are_ours(text[], text[]) to public`)
	require.NoError(b, err)
}

func (b *shipBench) write(file string, parts ...string) {
	b.Helper()
	f, err := os.OpenFile(filepath.Join(b.dir, file), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(b, err)
	_, err = f.WriteString(strings.Join(parts, ""))
	require.NoError(b, err)
	require.NoError(b, f.Close())
}

// rotated makes a file older than those that are written later.
func (b *shipBench) rotated(file string, ago time.Duration) {
	b.Helper()
	at := time.Now().Add(-ago)
	require.NoError(b, os.Chtimes(filepath.Join(b.dir, file), at, at))
}

func (b *shipBench) ship() map[string]int64 {
	b.Helper()
	counts := map[string]int64{}
	require.NoError(b, ShipLogs(b.Context(), b.deps, func(name string, n int64) { counts[name] += n }))
	return counts
}

// ask returns rows as text.
func (b *shipBench) ask(query string) (out []string) {
	b.Helper()
	return b.asks(SystemTenant, query)
}

// asks returns rows as text, in the context of a tenant.
func (b *shipBench) asks(tenant, query string) (out []string) {
	b.Helper()
	require.NoError(b, InContext(b.Context(), b.deps.Pool, b.deps.scope(tenant, "test"), func(tx pgx.Tx) error {
		rows, err := tx.Query(b.Context(), query)
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
			values, err := row.Values()
			words := make([]string, len(values))
			for i, value := range values {
				words[i] = fmt.Sprint(value)
			}
			return strings.Join(words, " "), err
		})
		return err
	}))
	return out
}

func (b *shipBench) findings() []string {
	b.Helper()
	return b.ask("select f.kind, coalesce(f.session_id, '-'), f.line_from, f.line_to, f.occurrences from custody_data.log_findings f order by f.finding_id")
}

func (b *shipBench) batches() (batches []db.CustodyDataLogBatch) {
	b.Helper()
	require.NoError(b, InContext(b.Context(), b.deps.Pool, b.deps.scope(SystemTenant, "test"), func(tx pgx.Tx) (err error) {
		batches, err = db.New().LogBatches(b.Context(), tx, db.LogBatchesParams{FromNumber: 1, UpTo: 10_000})
		return err
	}))
	return batches
}

func (b *shipBench) object(key string) []byte {
	b.Helper()
	o, err := b.deps.Store.Get(b.Context(), key, "")
	require.NoError(b, err)
	defer o.Close()
	content, err := io.ReadAll(o)
	require.NoError(b, err)
	return content
}

// shipped checks the chain of all batches against the store, and returns their lines.
func (b *shipBench) shipped() (lines []string) {
	b.Helper()
	previous := make([]byte, 32)
	for i, batch := range b.batches() {
		require.EqualValues(b, i+1, batch.Number)
		require.Equal(b, previous, batch.PreviousSha256)
		object, document := b.object(batch.ObjectKey), b.object(batch.ManifestKey)
		sum := sha256.Sum256(object)
		require.Equal(b, sum[:], batch.Sha256)
		sum = sha256.Sum256(document)
		require.Equal(b, sum[:], batch.ManifestSha256)
		m, err := logship.ParseManifest(document)
		require.NoError(b, err)
		require.Equal(b, batch.Number, m.Number)
		require.Equal(b, batch.PreviousSha256, m.Previous[:])
		require.Equal(b, hex.EncodeToString(batch.CompressedSha256), hex.EncodeToString(m.Compressed[:]))
		opened, err := logship.ReadLines(bytes.NewReader(object), identities()...)
		require.NoError(b, err)
		plain, err := io.ReadAll(opened)
		require.NoError(b, err)
		require.NoError(b, opened.Close())
		sealed, err := age.Decrypt(bytes.NewReader(object), identities()...)
		require.NoError(b, err)
		frame, err := io.ReadAll(sealed)
		require.NoError(b, err)
		sum = sha256.Sum256(frame)
		require.Equal(b, sum[:], batch.CompressedSha256)
		n := int64(0)
		for scanner := bufio.NewScanner(bytes.NewReader(plain)); scanner.Scan(); n++ {
			require.True(b, json.Valid(scanner.Bytes()))
			lines = append(lines, scanner.Text())
		}
		require.Equal(b, n, batch.Lines)
		previous = batch.ManifestSha256
	}
	return lines
}

func TestShip(t *testing.T) {
	b := newShipBench(t)
	b.believe()
	person, actor := uuid.NewString(), uuid.NewString()
	b.write("a.json",
		b.line("1a.2b", "connection received: host=192.0.2.7 port=40000", said{"user": "", "backend_type": "not initialized"}),
		b.line("1a.2b", "connection authorized: user=dr_ada database=custody", said{"ps": "authentication"}),
		b.own("1a.2b", "0", said{"v": 1, "what": "context", "tenant": tenant, "actor": actor, "purpose": "care", "login": "dr_ada", "role": "dr_ada", "pid": 43, "xact": 1795305600000000}),
		b.audited("1a.2b", "custody_data.user_profiles"),
		b.own("1a.2b", "0", said{"v": 1, "what": "read", "tenant": tenant, "actor": "~0123456789abcdef", "purpose": "care", "role": "dr_ada", "pid": 43, "xact": 1795305600000000,
			"table": "user_profiles", "columns": []string{"email"}, "people": []string{person, actor}, "rows": 2, "event": "4711"}),
		b.own("1a.2b", "1", said{"v": 1, "what": "read", "tenant": tenant, "actor": actor, "people": []string{person}}), // a wrong MAC
		b.line("1a.2b", "PGCUSTODY by hand", nil),
		b.line("1a.2b", "AUDIT: SESSION,1,1,READ,SELECT,TABLE,public.forged,select 1,<not logged>", said{"context": "PL/pgSQL function inline_code_block line 1 at RAISE"}),
		b.line("1a.2b", "division by zero", said{"error_severity": "ERROR", "state_code": "22012", "statement": "select 1/0"}),
	)
	require.EqualValues(t, 1, b.ship()["batches"])
	b.write("a.json", b.audited("1a.2b", "public.other"), strings.Replace(b.audited("1a.2b", "public.later"), "3/7", "3/8", 1),
		b.own("1a.2b", "0", said{"v": 1, "what": "read", "tenant": tenant, "actor": actor, "pid": 43, "table": "t", "people": []string{person}, "event": "read only"}),
		b.own("1a.2b", "0", said{"v": 1, "what": "read", "tenant": tenant, "actor": actor, "pid": 43, "table": "t", "people": []string{person}, "event": "standby"}),
		b.own("1a.2b", "0", said{"v": 1, "what": "read", "tenant": tenant, "actor": actor, "pid": 43, "table": "t", "people": []string{person}, "event": "18446744073709551616"}),
		b.line("1a.2b", "disconnection: session time: 0:00:01", nil), b.line("1a.2c", `password authentication failed for user "x"`, said{"error_severity": "FATAL", "state_code": "28P01", "ps": "authentication"}))
	counts := b.ship()
	require.EqualValues(t, 1, counts["batches"])
	require.EqualValues(t, 7, counts["events"])
	require.Zero(t, b.ship()["batches"], "nothing is shipped twice")

	require.Equal(t, []string{
		"1 1 0 connect system <nil> <nil> <nil> <nil>", "1 2 0 logon system <nil> <nil> <nil> <nil>",
		"1 4 0 statement acme " + actor + " <nil> custody_data.user_profiles <nil>",
		"1 5 0 read acme <nil> ~0123456789abcdef custody_data.user_profiles " + person, "1 5 1 read acme <nil> ~0123456789abcdef custody_data.user_profiles " + actor,
		// Whose transaction it was that forged, the server says.
		"1 6 0 forged acme <nil> ~0123456789abcdef <nil> <nil>", "1 7 0 forged acme <nil> ~0123456789abcdef <nil> <nil>", "1 8 0 forged acme <nil> ~0123456789abcdef <nil> <nil>", "1 9 0 message acme <nil> ~0123456789abcdef <nil> <nil>",
		"2 1 0 statement acme <nil> ~0123456789abcdef public.other <nil>", "2 2 0 statement system <nil> <nil> public.later <nil>",
		"2 3 0 read acme " + actor + " <nil> custody_data.t " + person, "2 4 0 read acme " + actor + " <nil> custody_data.t " + person, "2 5 0 read acme " + actor + " <nil> custody_data.t " + person,
		"2 6 0 logoff system <nil> <nil> <nil> <nil>", "2 7 0 logon_failed system <nil> <nil> <nil> <nil>",
	}, b.ask(`select e.batch, e.line, e.part, e.kind, e.tenant_id, e.actor_id::text, e.actor_pseudonym, e.object_name, e.identity_id::text
		from custody_data.access_events e order by e.batch, e.line, e.part`), "a context is of its transaction, in the next batch too")
	require.Equal(t, []string{"forged 1a.2b 6 8 3"}, b.findings())
	require.Equal(t, []string{"log.ship 1 9", "log.ship 2 7"}, b.ask(`select a.action, a.metadata ->> 'batch', a.metadata ->> 'lines' from custody_data.audit_logs a where a.action = 'log.ship' order by a.log_entry_id`))
	lines := b.shipped()
	require.Len(t, lines, 16)
	require.Equal(t, []string{"1 5 0 0000000000000000 4711", "1 5 1 0000000000000000 4711", "2 3 0 read only <nil>", "2 4 0 standby <nil>", "2 5 0 <nil> <nil>"},
		b.ask("select e.batch, e.line, e.part, e.event_line, e.event_xid::text from custody_data.access_events e where e.kind = 'read' order by e.batch, e.line, e.part"), "whose event there is, or that none can be")
	require.Contains(t, lines[3], `"tenant_uid":"acme"`)
	require.Contains(t, lines[3], `select ? from t`)
	require.NotContains(t, strings.Join(lines, ""), "s3cret")
	require.Contains(t, lines[4], `"line":"PGCUSTODY `)
	info, err := b.deps.Store.Head(t.Context(), b.batches()[0].ObjectKey, "")
	require.NoError(t, err)
	require.True(t, info.LockedUntil(time.Now().AddDate(3, 0, -1)))
}

// A real server's log, in either format, gives the same events but for the numbers
// of lines.
func TestShipSample(t *testing.T) {
	kinds := map[string][]string{}
	for _, name := range []string{"sample.json", "sample.csv"} {
		t.Run(name, func(t *testing.T) {
			b := newShipBench(t)
			b.believe()
			content, err := os.ReadFile(filepath.Join("serverlog", "testdata", name))
			require.NoError(t, err)
			b.write(name, strings.ReplaceAll(string(content), `"custody"`, `"`+b.database.Name+`"`))
			b.ship()
			require.NotEmpty(t, b.shipped())
			require.NotEmpty(t, b.ask("select 1 from custody_data.access_events e where e.kind = 'forged'"))
			require.NotEmpty(t, b.ask("select 1 from custody_data.access_events e where e.kind = 'statement'"))
			kinds[name] = b.ask("select e.kind, count(*) from custody_data.access_events e group by 1 order by 1")
			require.Empty(t, b.ask("select 1 from custody_data.access_events e where e.object_name = 'public.forged' and e.kind <> 'forged'"))
			t.Log(kinds[name], b.findings())
		})
	}
}

// What sessions of another database of the server log is shipped: who came, and no more,
// is an event here, and what they say of reads is neither believed nor called forged.
func TestShipOtherDatabases(t *testing.T) {
	b := newShipBench(t)
	b.believe()
	other := said{"dbname": "other"}
	b.write("a.json", b.line("1a.2b", "PGCUSTODY x {}", other), strings.Replace(b.audited("1a.2b", "custody_data.user_profiles"), b.database.Name, "other", 1),
		b.line("1a.2b", "connection authorized: user=dr_ada database=other", said{"dbname": "other", "ps": "authentication"}))
	b.ship()
	require.Len(t, b.shipped(), 3)
	require.Equal(t, []string{"logon"}, b.ask("select e.kind from custody_data.access_events e"))
	require.Empty(t, b.ask("select f.kind from custody_data.log_findings f where f.kind = 'forged'"))
}

func TestShipRotation(t *testing.T) {
	b := newShipBench(t)
	b.believe()
	first, second, third := b.line("1a.2b", "one", nil), b.line("1a.2b", "two", nil), b.line("1a.2b", "three", nil)
	b.write("a.json", first, second[:40])
	b.rotated("a.json", time.Minute)
	require.EqualValues(t, 1, b.ship()["batches"])
	require.Zero(t, b.ship()["batches"], "half a line waits")
	// In the middle of a line.
	b.write("b.json", second[40:], third)
	require.EqualValues(t, 2, b.ship()["batches"])
	require.Len(t, b.shipped(), 3)
	require.Empty(t, b.findings(), "the line was whole")
	// What has no other half is cut.
	b.write("b.json", first[:50])
	b.rotated("b.json", 30*time.Second)
	b.write("c.json", b.line("1a.2b", "four", nil))
	b.ship()
	require.Len(t, b.shipped(), 4)
	require.Equal(t, []string{"cut"}, b.ask("select f.kind from custody_data.log_findings f"))
	// Renamed by whoever rotates, and gone on under the old name.
	require.NoError(t, os.Rename(filepath.Join(b.dir, "c.json"), filepath.Join(b.dir, "c.json.1")))
	b.write("c.json.1", b.line("1a.2b", "five", nil))
	b.rotated("c.json.1", 20*time.Second)
	b.write("c.json", b.line("1a.2b", "six", nil))
	b.ship()
	require.Len(t, b.shipped(), 6)
	require.Len(t, b.findings(), 1, "%v", b.findings())

	// The same file twice.
	content, err := os.ReadFile(filepath.Join(b.dir, "c.json.1"))
	require.NoError(t, err)
	b.rotated("c.json", 10*time.Second)
	b.write("copy.json", string(content))
	b.ship()
	require.Len(t, b.shipped(), 6)
	require.Equal(t, []string{"repeat copy.json"}, b.ask("select f.kind, f.detail ->> 'file' from custody_data.log_findings f where f.kind = 'repeat'"))
}

func TestShipLosses(t *testing.T) {
	b := newShipBench(t)
	b.believe()
	b.write("a.json", b.line("1a.2b", "one", nil))
	b.ship()
	// Removed before it was read to its end.
	b.write("a.json", b.line("1a.2b", "two", nil))
	require.NoError(t, os.Remove(filepath.Join(b.dir, "a.json")))
	b.write("b.json", b.line("1a.2b", "three", nil), b.line("1a.2b", "four", nil))
	b.ship()
	require.Equal(t, []string{"gap 1a.2b 2", "lost_file - "}, b.ask("select f.kind, coalesce(f.session_id, '-'), case f.kind when 'gap' then f.line_from::text else '' end from custody_data.log_findings f order by f.kind"))
	// Truncated in its place, and written anew: the same name, another file.
	require.NoError(t, os.WriteFile(filepath.Join(b.dir, "b.json"), []byte(b.line("1a.2b", "five", nil)), 0o600))
	b.ship()
	require.Equal(t, []string{"truncated"}, b.ask("select f.kind from custody_data.log_findings f where f.kind in ('truncated', 'replaced')"))
	// Lines again, out of order, and a clock set back.
	late, repeated := b.line("1a.2b", "six", nil), b.line("1a.2b", "seven", nil)
	b.write("b.json", repeated, late, repeated)
	b.clock = b.clock.Add(-10 * time.Minute)
	b.write("b.json", b.line("1a.2b", "eight", nil))
	b.ship()
	require.Equal(t, []string{"clock_back", "reordered", "repeat"}, b.ask("select distinct f.kind from custody_data.log_findings f where f.kind in ('reordered', 'repeat', 'clock_back') order by 1"))
	// Other encodings, and what is no line at all.
	b.write("b.json", strings.Replace(b.line("1a.2b", "MARK", nil), "MARK", "caf\xe9", 1), "nonsense\n", `{"timestamp":"`+"\n", b.line("1a.2b", "nine", nil))
	b.ship()
	require.Equal(t, []string{"bad_encoding 1", "broken 2"}, b.ask("select f.kind, f.occurrences from custody_data.log_findings f where f.kind in ('broken', 'bad_encoding') order by 1"))
	b.shipped()
	require.Equal(t, []string{"bad_encoding server", "broken server", "clock_back server", "gap server", "lost_file server", "reordered server", "repeat server", "truncated server"},
		b.ask("select d.object_key from custody.detect() d where d.rule = 'log_finding' and d.outcome = 'opened' order by 1"), "each is an alert")
}

// A line of 100 MB is passed over, counted, and costs no other line.
func TestShipEnormous(t *testing.T) {
	b := newShipBench(t)
	b.believe()
	b.write("a.json", b.line("1a.2b", "one", nil))
	huge := b.line("1a.2b", "HUGE", nil)
	at := strings.Index(huge, "HUGE")
	b.write("a.json", huge[:at])
	for range 100 {
		b.write("a.json", strings.Repeat("x", 1<<20))
	}
	b.write("a.json", huge[at:], b.line("1a.2b", "three", nil))
	b.ship()
	require.Len(t, b.shipped(), 2)
	require.Equal(t, []string{"gap", "too_long"}, b.ask("select f.kind from custody_data.log_findings f order by 1"))
}

// A store that fails stops shipping, and costs nothing.
func TestShipFailingStore(t *testing.T) {
	b := newShipBench(t)
	b.believe()
	b.write("a.json", b.line("1a.2b", "one", nil))
	whole := b.deps.Store
	for _, n := range []int{1, 2} {
		b.deps.Store = &fullStore{Store: whole, at: n}
		err := ShipLogs(t.Context(), b.deps, func(string, int64) {})
		require.ErrorIs(t, err, store.ErrUnreachable)
		require.Empty(t, b.batches())
		require.Empty(t, b.ask("select * from custody_data.log_sources"))
	}
	b.deps.Store = whole
	require.EqualValues(t, 1, b.ship()["batches"])
	require.Len(t, b.shipped(), 1)
	require.Contains(t, b.batches()[0].ObjectKey, "000000000001-2.", "what the second left is passed over")
}

// fullStore fails its n-th Put.
type fullStore struct {
	store.Store
	at, n int
}

func (f *fullStore) Put(ctx context.Context, key string, body io.Reader, o store.PutOptions) (store.PutResult, error) {
	if f.n++; f.n == f.at {
		return store.PutResult{}, &store.Error{Op: "put", Object: key, Kind: store.ErrUnreachable}
	}
	return f.Store.Put(ctx, key, body, o)
}

// from makes shipping begin where a log ends now: what other tests made the server log
// before is not theirs.
func (b *shipBench) from(dir string) {
	b.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	require.NoError(b, err)
	require.NotEmpty(b, files)
	slices.Sort(files)
	file, err := os.Open(files[len(files)-1])
	require.NoError(b, err)
	defer file.Close()
	content, err := io.ReadAll(file)
	require.NoError(b, err)
	mark, err := serverlog.MarkFile(file, int64(bytes.LastIndexByte(content, '\n')+1))
	require.NoError(b, err)
	first, err := logship.ParseState(nil)
	require.NoError(b, err)
	state, err := first.Marshal()
	require.NoError(b, err)
	_, err = b.super.Exec(b.Context(), `insert into custody_data.log_sources (source, format, file_name, file_offset, file_head, file_tail, state) select n, 'jsonlog', $1, $2, $3, $4, $5 from unnest(array['server', 'by-connection']) n`,
		filepath.Base(file.Name()), mark.Offset, mark.Head[:], mark.Tail[:], state)
	require.NoError(b, err)
}

// TestShipRealServer ships what the real server logs: reads through the functions are
// found to be the schema's own, one that was rolled back is told from one that was not,
// and what somebody raises is not believed.
func TestShipRealServer(t *testing.T) {
	b := &shipBench{bench: newBench(t), lines: map[string]int{}}
	b.super = b.database.Pool(t, stack.Superuser)
	b.deps.Config.Ship = ShipConfig{Source: stacktest.Shared(t).LogDir()}
	b.from(stacktest.Shared(t).LogDir())
	b.exec("select custody.put_profile('ada', '{\"full_name\": \"Ada\"}')")
	b.exec("select custody.put_profile('bob', '{\"full_name\": \"Bob\"}')")
	b.exec("select custody.get_profile('ada')")
	undone := errors.New("undone")
	require.ErrorIs(t, b.unlock.InContext(t.Context(), b.app, Scope{Tenant: tenant, Actor: "tester", Purpose: "test"}, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.get_profile('bob')")
		return errors.Join(undone, err)
	}), undone)
	// Every other way in which a read is undone, and one in which it has no event to lose.
	ways := map[string][]string{
		"ben": {"savepoint a", "READ", "rollback to savepoint a"},
		"cyd": {"READ", "select 1 / 0"},
		"dan": {"READ", "do $$ begin perform pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid()); end $$"},
		"eli": {"set transaction_read_only = on", "READ"},
		"fay": {"savepoint a", "READ", "rollback to savepoint a", "READ"},
	}
	for who, statements := range ways {
		b.exec("select custody.put_profile('" + who + "', '{\"full_name\": \"X\"}')")
		_ = b.unlock.InContext(t.Context(), b.app, Scope{Tenant: tenant, Actor: "tester", Purpose: "test"}, func(tx pgx.Tx) (err error) {
			for _, statement := range statements {
				if statement == "READ" {
					statement = "select custody.get_profile('" + who + "')"
				}
				if _, err = tx.Exec(t.Context(), statement); err != nil {
					return err
				}
			}
			return nil
		})
	}
	const reads = 2 + 2 + 6
	// Read in transactions that are prepared, and end when everybody has forgotten them.
	prepared := map[string]string{}
	for _, who := range []string{"kim", "lee"} {
		b.exec("select custody.put_profile('" + who + "', '{\"full_name\": \"X\"}')")
		prepared[who] = "pgcustody " + uuid.NewString()
		require.NoError(t, b.unlock.InContext(t.Context(), b.app, Scope{Tenant: tenant, Actor: "tester", Purpose: "test"}, func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), "select custody.get_profile('"+who+"')")
			return errors.Join(err, func() error {
				_, err := tx.Exec(t.Context(), "prepare transaction '"+prepared[who]+"'")
				return err
			}())
		}))
		t.Cleanup(func() {
			// The database cannot go while one is open, should the test have failed.
			_, _ = b.super.Exec(context.WithoutCancel(t.Context()), "rollback prepared '"+prepared[who]+"'")
		})
	}
	b.exec(`do $$ begin raise log 'PGCUSTODY forged-by-hand %', current_database(); end $$`)
	for begun := time.Now(); len(b.ask("select 1 from custody_data.access_events e where e.kind = 'read'")) < reads; time.Sleep(200 * time.Millisecond) {
		require.Less(t, time.Since(begun), 3*time.Minute)
		b.ship()
	}
	require.Equal(t, slices.Repeat([]string{"read acme true custody_data.user_profiles 1"}, reads),
		b.ask("select e.kind, e.tenant_id, e.actor_id is not null, e.object_name, e.rows from custody_data.access_events e where e.kind = 'read'"))
	require.NotEmpty(t, b.ask("select 1 from custody_data.access_events e where e.kind = 'forged' and e.login = 'custody_app'"))
	// What became of each read, whoever else is at work on this server.
	became := func() map[string]any {
		b.ask("select * from custody.reconcile_logs(now() - interval '1 hour', now())")
		rows, err := b.super.Query(t.Context(), "select i.user_id, e.rolled_back from custody_data.access_events e join custody_data.identities i on i.tenant_id = e.tenant_id and i.identity_id = e.identity_id where e.kind = 'read'")
		require.NoError(t, err)
		reads, err := pgx.CollectRows(rows, pgx.RowToMap)
		require.NoError(t, err)
		found := map[string]any{}
		for _, read := range reads {
			found[read["user_id"].(string)] = read["rolled_back"]
		}
		return found
	}
	undo := func(kim, lee any) map[string]any {
		return map[string]any{"ada": false, "bob": true, "ben": true, "cyd": true, "dan": true, "eli": nil, "fay": false, "kim": kim, "lee": lee}
	}
	require.Equal(t, undo(nil, nil), became(), "a prepared transaction has not ended, though no session has it")
	for who, how := range map[string]string{"kim": "commit", "lee": "rollback"} {
		_, err := b.super.Exec(t.Context(), how+" prepared '"+prepared[who]+"'")
		require.NoError(t, err)
	}
	require.Equal(t, undo(false, true), became())
	require.Equal(t, []string{"read_only 1", "rolled_back 5"}, b.asks(tenant, "select v.kind, count(*) from custody.log_reconciliation v where v.kind <> 'statement_without_row' group by 1 order by 1"), "and so the tenant's officers see it")
	require.Empty(t, b.ask("select 1 from custody_data.log_findings f where f.kind = 'row_without_line'"))

	// The same through the connection, where that right was granted.
	_, err := b.super.Exec(t.Context(), `grant execute on function pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean), pg_catalog.pg_stat_file(text, boolean) to custody_runner;
		grant pg_monitor to custody_runner`)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := b.super.Exec(context.WithoutCancel(t.Context()), "revoke pg_monitor from custody_runner")
		require.NoError(t, err)
	})
	// It runs when this one has ended, before the rights go.
	t.Run("csvlog", shipCSVByConnection)
	b.deps.Config.Ship = ShipConfig{Source: "server", Name: "by-connection"}
	b.ship()
	require.Len(t, b.ask("select 1 from custody_data.access_events e join custody_data.log_batches b on b.number = e.batch where e.kind = 'read' and b.source = 'by-connection'"), reads)
}
