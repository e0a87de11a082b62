package jobs

import (
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/db"
	"pgcustody/jobs/logship"
	"pgcustody/jobs/serverlog"
	"pgcustody/jobs/store"
)

// several writes lines of more than n batches, and returns how many lines.
func (b *shipBench) several(file string, n int) (lines int) {
	b.Helper()
	for written := 0; written <= n*logship.RegionBytes; lines++ {
		line := b.line("1a.2b", "long "+strings.Repeat("x", 256<<10), nil)
		written += len(line)
		b.write(file, line)
	}
	return lines
}

// seen are the lines of sessions that batches have, each once.
func (b *shipBench) seen() []string {
	b.Helper()
	var uids []string
	for _, line := range b.shipped() {
		_, rest, _ := strings.Cut(line, `"uid":"`)
		uid, _, _ := strings.Cut(rest, `"`)
		uids = append(uids, uid)
	}
	require.Len(b, slices.Compact(slices.Sorted(slices.Values(uids))), len(uids), "a line came twice")
	return uids
}

// While a batch is on its way the next one is read: where the first fails the second is
// not recorded, and the next run has the lines of both, each once.
func TestShipFailsOnTheWay(t *testing.T) {
	b := newShipBench(t)
	lines := b.several("a.json", 4)
	whole := b.deps.Store
	// The object of the first batch; the manifest of the second; that of the third, since
	// the number of the second is taken.
	for recorded, at := range []int{1, 4, 5} {
		b.deps.Store = &fullStore{Store: whole, at: at}
		require.ErrorIs(t, ShipLogs(t.Context(), b.deps, func(string, int64) {}), store.ErrUnreachable)
		require.Len(t, b.batches(), recorded, "what is behind the one that failed is not recorded")
	}
	b.deps.Store = whole
	b.ship()
	require.Len(t, b.seen(), lines)
	require.Empty(t, b.findings())
}

// Two runs over one log, and runs over the logs of two servers: nothing is lost, nothing
// comes twice, and the numbers have no gap.
func TestShipAtOnce(t *testing.T) {
	b := newShipBench(t)
	other := t.TempDir()
	lines := b.several("a.json", 3)
	content, err := os.ReadFile(filepath.Join(b.dir, "a.json"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(other, "a.json"), []byte(strings.ReplaceAll(string(content), `"1a.2b"`, `"1a.2c"`)), 0o600))
	second := b.deps
	second.Config.Ship = ShipConfig{Source: other, Name: "standby"}
	var group sync.WaitGroup
	for _, d := range []Deps{b.deps, b.deps, second} {
		group.Go(func() {
			err := ShipLogs(t.Context(), d, func(string, int64) {})
			// One that is always overtaken gives up: the next job goes on.
			if !refused(err, db.ErrLogMoved) {
				require.NoError(b, err)
			}
		})
	}
	group.Wait()
	b.ship()
	require.Len(t, b.seen(), 2*lines)
	require.Equal(t, []string{"server a.json", "standby a.json"}, b.ask("select s.source, s.file_name from custody_data.log_sources s order by 1"))
	require.Empty(t, b.findings())
	require.Len(t, b.ask("select 1 from custody_data.log_batches b where b.source = 'standby'"), len(b.ask("select 1 from custody_data.log_batches b where b.source = 'server'")))
}

// A line of ours under a key that is gone is no forgery, nor believed.
func TestShipUnverified(t *testing.T) {
	b := newShipBench(t)
	b.believe()
	person := uuid.NewString()
	read := said{"v": 1, "what": "read", "tenant": tenant, "actor": person, "people": []string{person}}
	b.write("a.json", b.own("1a.2b", "2", read), b.own("1a.2b", "1", read), b.own("1a.2b", "2", read))
	b.ship()
	require.ElementsMatch(t, []string{"unverified 1a.2b 1 3 2", "forged 1a.2b 2 2 1"}, b.findings())
	require.Equal(t, []string{"forged"}, b.ask("select e.kind from custody_data.access_events e"))
	lines := b.shipped()
	require.Contains(t, lines[0], `"activity_name":"Unverified record"`)
	require.NotContains(t, lines[0], person, "what nobody vouches for is not passed on")
}

// csvLine is the next line of a session, as csvlog has it.
func (b *shipBench) csvLine(session, message string) string {
	b.Helper()
	b.lines[session]++
	b.clock = b.clock.Add(10 * time.Millisecond)
	var text strings.Builder
	// The server quotes every text, and no number.
	quoted := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
	text.WriteString(strings.Join([]string{
		b.clock.Format("2006-01-02 15:04:05.000 UTC"), quoted("dr_ada"), quoted(b.database.Name), "4711", quoted("192.0.2.7:40000"), session, fmt.Sprint(b.lines[session]), quoted("SELECT"),
		b.clock.Add(-time.Minute).Format("2006-01-02 15:04:05 UTC"), "3/7", "0", "LOG", "00000", quoted(message), "", "", "", "", "", "", "", "", quoted("app"), quoted("client backend"), "", "0",
	}, ",") + "\n")
	fields, err := csv.NewReader(strings.NewReader(text.String())).Read()
	require.NoError(b, err)
	require.Len(b, fields, 26)
	return text.String()
}

// csvlog alone: line breaks within texts, rotation in the middle of one, names of rotated
// files, a file that was removed.
func TestShipCSV(t *testing.T) {
	b := newShipBench(t)
	split := b.csvLine("1a.2b", "two\nlines, and \"more\"\n2026-11-22 10:00:00.000 UTC,not a record")
	b.write("a.csv", b.csvLine("1a.2c", "one"), split[:len(split)/2])
	b.rotated("a.csv", time.Minute)
	b.ship()
	require.Len(t, b.seen(), 1, "what has no end waits")
	// The rest comes in two parts.
	b.write("b.csv", split[len(split)/2:len(split)-30])
	b.ship()
	require.Len(t, b.seen(), 1, "nor what may go on in the next file")
	b.write("b.csv", split[len(split)-30:], b.csvLine("1a.2b", "connection authorized: user=dr_ada"))
	b.ship()
	require.Len(t, b.seen(), 3)
	require.Empty(t, b.findings(), "the record was whole")
	require.NoError(t, os.Rename(filepath.Join(b.dir, "b.csv"), filepath.Join(b.dir, "b.csv.1")))
	b.rotated("b.csv.1", 20*time.Second)
	b.write("b.csv", b.csvLine("1a.2b", "three"))
	b.ship()
	require.Len(t, b.seen(), 4)
	require.Empty(t, b.findings())
	require.Equal(t, []string{"logon dr_ada 192.0.2.7/32"}, b.ask("select e.kind, e.login, e.client from custody_data.access_events e"))
	require.Equal(t, []string{"csvlog"}, b.ask("select s.format from custody_data.log_sources s"))
	require.NoError(t, os.Remove(filepath.Join(b.dir, "b.csv")))
	require.NoError(t, os.Remove(filepath.Join(b.dir, "b.csv.1")))
	require.NoError(t, os.Remove(filepath.Join(b.dir, "a.csv")))
	b.csvLine("1a.2b", "lost")
	b.write("c.csv", b.csvLine("1a.2b", "four"))
	b.ship()
	require.Len(t, b.seen(), 5)
	require.Equal(t, []string{"gap 1a.2b 4", "lost_file - 0"}, b.ask(`select f.kind, coalesce(f.session_id, '-'), case f.kind when 'gap' then f.line_from else 0 end from custody_data.log_findings f order by 1`))
}

// shipCSVByConnection ships csvlog through the connection, as managed hosts have it, with a
// rotation in the middle of a line. The files lie where the real server's are, which writes
// jsonlog alone. The runner's login must be able to read them: see TestShipRealServer.
func shipCSVByConnection(t *testing.T) {
	b := newShipBench(t)
	logs := stacktest.Shared(t).LogDir()
	first, second := "csv-"+b.database.Name+"-1.csv", "csv-"+b.database.Name+"-2.csv"
	put := func(name, content string) {
		path := filepath.Join(logs, name)
		// The server's own account reads it.
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
		t.Cleanup(func() { require.NoError(t, os.Remove(path)) })
	}
	one, split := b.csvLine("1a.2b", "one"), b.csvLine("1a.2b", "two\nlines")
	put(first, one+split[:len(split)-8])
	at := time.Now().Add(-time.Minute)
	require.NoError(t, os.Chtimes(filepath.Join(logs, first), at, at))
	mark, err := serverlog.MarkFile(strings.NewReader(one), 0)
	require.NoError(t, err)
	state, err := (&logship.State{Contexts: map[string]*logship.Context{}}).Marshal()
	require.NoError(t, err)
	_, err = b.super.Exec(t.Context(), "insert into custody_data.log_sources (source, format, file_name, file_offset, file_head, file_tail, state) values ('managed', 'csvlog', $1, 0, $2, $3, $4)",
		first, mark.Head[:], mark.Tail[:], state)
	require.NoError(t, err)
	_, err = b.super.Exec(t.Context(), "grant execute on function pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean), pg_catalog.pg_stat_file(text, boolean) to custody_runner")
	require.NoError(t, err)
	b.deps.Config.Ship = ShipConfig{Source: "server", Name: "managed"}
	b.ship()
	require.Len(t, b.seen(), 1)
	put(second, split[len(split)-8:]+b.csvLine("1a.2b", "three"))
	b.ship()
	require.Equal(t, []string{"1a.2b/1", "1a.2b/2", "1a.2b/3"}, b.seen())
	require.Equal(t, []string{"managed csvlog " + second}, b.ask("select s.source, s.format, s.file_name from custody_data.log_sources s"))
	require.Empty(t, b.findings())
}
