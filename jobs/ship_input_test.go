package jobs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pgcustody/jobs/logship"
	"pgcustody/jobs/serverlog"
)

// Each kind of bad input by itself: it is not believed, it is counted, and the lines before
// and behind it are shipped, in the same run.
func TestShipBadInput(t *testing.T) {
	all := newShipBench(t)
	written := `AUDIT: OBJECT,1,1,READ,SELECT,TABLE,custody_data.forged,select 1,<not logged>`
	pgaudit := said{"func_name": "log_audit_event", "file_name": "pgaudit.c", "file_line_num": 783}
	raised := said{"context": "PL/pgSQL function inline_code_block line 1 at RAISE", "func_name": "exec_stmt_raise", "file_name": "pl_exec.c"}
	with := func(more said, name string, value any) said {
		out := said{name: value}
		for k, v := range more {
			out[k] = v
		}
		return out
	}
	for name, c := range map[string]struct {
		// A line of a session of its own, as jsonlog has it; or text instead.
		message string
		more    said
		change  func(line string) string
		found   string // the finding, and what the batch counts; empty where it is no claim
		counted string
	}{
		"no line":             {change: func(string) string { return "nonsense\n" }, found: "broken", counted: "broken"},
		"zeros after a crash": {change: func(string) string { return strings.Repeat("\x00", 8192) + "\n" }, found: "broken", counted: "broken"},
		"another JSON":        {change: func(string) string { return `{"a":1}` + "\n" }, found: "broken", counted: "broken"},
		"cut within":          {change: func(l string) string { return l[:len(l)/2] + "\n" }, found: "broken", counted: "broken"},
		"UTF-16": {change: func(l string) string {
			return "\xff\xfe" + strings.Join(strings.Split(strings.TrimSuffix(l, "\n"), ""), "\x00") + "\x00\n"
		}, found: "broken", counted: "broken"},
		"Latin-1":                      {change: func(l string) string { return strings.Replace(l, "dr_ada", "dr_ad\xe9", 1) }, found: "bad_encoding", counted: "bad_encoding"},
		"five megabytes":               {change: func(l string) string { return strings.Replace(l, "dr_ada", strings.Repeat("x", 5<<20), 1) }, found: "too_long", counted: "too_long"},
		"a session of zeros":           {message: "PGCUSTODY x", more: with(raised, "context", "PL/pgSQL function custody_data.write_line(text) line 1 at RAISE"), change: func(l string) string { return strings.Replace(l, `"ba.d"`, `"ba.\u0000"`, 1) }, found: "broken", counted: "broken"},
		"a session that is none":       {change: func(l string) string { return strings.Replace(l, `"ba.d"`, `"`+strings.Repeat("a", 1<<20)+`.d"`, 1) }, found: "broken", counted: "broken"},
		"a line number without end":    {change: func(l string) string { return strings.Replace(l, `"line_num":1`, `"line_num":9223372036854775807`, 1) }, found: "broken", counted: "broken"},
		"a line number out of reach":   {more: said{"session_start": "2099-01-01 00:00:00 UTC"}, change: func(l string) string { return strings.Replace(l, `"line_num":1`, `"line_num":1000000000000`, 1) }, found: "gap", counted: "gap"},
		"the year 0":                   {more: said{"timestamp": "0000-02-03 04:05:06.789 UTC"}, found: "broken", counted: "broken"},
		"before the year 1":            {more: said{"timestamp": "0001-01-01 00:00:00.000 +01"}, found: "broken", counted: "broken"},
		"behind the year 9999":         {more: said{"timestamp": "9999-12-31 23:59:59.999 -01"}, found: "broken", counted: "broken"},
		"the year 1":                   {more: said{"timestamp": "0001-01-02 00:00:00.000 UTC"}, found: "clock_back", counted: "clock_back"},
		"a zone that nobody knows":     {more: said{"timestamp": "2026-11-21 22:00:00.123 XYZ"}, found: "unknown_zone", counted: "unknown_zone"},
		"a clock set back":             {more: said{"timestamp": "2020-01-01 00:00:00.000 UTC"}, found: "clock_back", counted: "clock_back"},
		"a line before the first":      {change: func(l string) string { return strings.Replace(l, `"line_num":1`, `"line_num":0`, 1) }, found: "broken", counted: "broken"},
		"forged by RAISE LOG":          {message: written, more: raised, found: "forged", counted: "forgery"},
		"forged, without its place":    {message: written, more: said{"context": "PL/pgSQL function f() line 1 at RAISE"}, found: "forged", counted: "forgery"},
		"forged by RAISE EXCEPTION":    {message: written, more: with(raised, "error_severity", "ERROR"), found: "forged", counted: "forgery"},
		"forged, with a statement":     {message: written, more: with(pgaudit, "statement", "select 1"), found: "forged", counted: "forgery"},
		"forged, not of its form":      {message: written + ",x", more: pgaudit, found: "forged", counted: "forgery"},
		"nobody can tell":              {message: written, found: "unverified", counted: "unproven"},
		"forged as one of ours":        {message: "PGCUSTODY " + strings.Repeat("0", 36) + "." + strings.Repeat("0", 64) + ` {"v":1,"what":"read","tenant":"acme"}`, more: with(raised, "context", "PL/pgSQL function custody_data.write_line(text) line 1 at RAISE"), found: "forged", counted: "forgery"},
		"forged as one of ours, zeros": {message: "PGCUSTODY \x00", more: with(raised, "context", "PL/pgSQL function custody_data.write_line(text) line 1 at RAISE"), found: "forged", counted: "forgery"},
		"a connection that is raised":  {message: "connection authorized: user=root", more: raised, found: "forged", counted: "forgery"},
		"an application's name":        {message: "x", more: said{"application_name": written}, counted: "other"},
		"a statement's text":           {message: "division by zero", more: said{"error_severity": "ERROR", "state_code": "22012", "statement": "select 1/0 -- \n" + written}, counted: "failed"},
		"texts of zeros":               {message: "x\x00", more: said{"error_severity": "ERROR", "state_code": "22P02", "application_name": "a\x00", "user": "u\x00", "vxid": "\x00", "ps": "\x00", "remote_host": "\x00"}, counted: "failed"},
		"halves of a character":        {message: "x", more: said{"application_name": "HALF"}, change: func(l string) string { return strings.Replace(l, "HALF", `\ud800\udc00\ud800`, 1) }, counted: "other"},
	} {
		t.Run(name, func(t *testing.T) {
			b := all.beside(t, strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(name, " ", "_"), ",", ""), "'", ""))
			bad := b.line("ba.d", c.message, c.more)
			if c.change != nil {
				bad = c.change(bad)
			}
			b.write("a.json", b.line("1a.2b", "before", nil), bad, b.line("1a.2b", "behind", nil))
			require.NotZero(t, b.ship()["batches"])
			mine := "b.source = '" + b.deps.Config.Ship.Name + "'"
			shipped := b.linesOf(mine)
			require.Equal(t, 2, strings.Count(shipped, `"uid":"1a.2b/`), "the others came")
			want := []string{}
			if c.found != "" {
				want = []string{c.found}
			}
			require.Equal(t, want, b.ask("select b.kind from custody_data.log_findings b where "+mine))
			require.Len(t, b.ask("select 1 from custody_data.log_batches b where (b.counts ->> '"+c.counted+"')::bigint > 0 and "+mine), 1,
				"%s is counted: %v", c.counted, b.ask("select b.counts::text from custody_data.log_batches b where "+mine))
			require.Empty(t, b.ask("select * from custody_data.access_events e join custody_data.log_batches b on b.number = e.batch where (e.kind in ('statement', 'read', 'logon') or e.object_name like '%forged') and "+mine), "it was believed")
			// Nor is the run after it stopped by what is kept of it.
			b.write("a.json", b.line("1a.2b", "later", nil))
			require.EqualValues(t, 1, b.ship()["batches"])
		})
	}
	all.shipped()
}

// beside ships another log into the same database and store.
func (b *shipBench) beside(t *testing.T, name string) *shipBench {
	copied := *b.bench
	copied.T = t
	other := &shipBench{bench: &copied, super: b.super, dir: t.TempDir(), lines: map[string]int{}, clock: b.clock}
	other.deps.Config.Ship = ShipConfig{Source: other.dir, Name: name}
	return other
}

// linesOf are the lines of the batches of a condition.
func (b *shipBench) linesOf(condition string) string {
	b.Helper()
	var all strings.Builder
	for _, key := range b.ask("select b.object_key from custody_data.log_batches b where " + condition + " order by b.number") {
		opened, err := logship.ReadLines(bytes.NewReader(b.object(key)), identities()...)
		require.NoError(b, err)
		_, err = io.Copy(&all, opened)
		require.NoError(b, errors.Join(err, opened.Close()))
	}
	return all.String()
}

// Numbers of lines that are far apart do not count past all bounds, in a batch or in detection.
func TestShipCountsWithinBounds(t *testing.T) {
	b := newShipBench(t)
	for i, n := range []int64{1e12, 9e18} {
		for j := range 100 {
			session := fmt.Sprintf("1%d.%d", i, j+10)
			b.write("a.json", b.line(session, "x", nil), strings.Replace(b.line(session, "disconnection: session time: 0:00:01", nil), `"line_num":2`, fmt.Sprintf(`"line_num":%d`, n), 1))
		}
	}
	b.ship()
	require.Equal(t, []string{"broken 100", "gap 99999999999800"}, b.ask("select f.kind, sum(f.occurrences)::bigint from custody_data.log_findings f group by 1 order by 1"))
	require.Len(t, b.ask("select * from custody.detect() d where d.rule = 'log_finding'"), 2)
}

// What an operator chose becomes of literals and messages.
func TestShipLiterals(t *testing.T) {
	for name, c := range map[string]struct {
		o    serverlog.EncoderOptions
		want string
	}{
		"replace": {serverlog.EncoderOptions{}, "select ? from t"},
		"drop":    {serverlog.EncoderOptions{Literals: serverlog.DropLiterals}, "select  from t"},
		"keep":    {serverlog.EncoderOptions{Literals: serverlog.KeepLiterals}, "select 's3cret' from t"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newShipBench(t)
			b.deps.Config.Ship.Encoder = c.o
			b.write("a.json", b.audited("1a.2b", "public.t"), b.line("1a.2b", "a pa55word", said{"error_severity": "ERROR", "state_code": "22P02"}))
			b.ship()
			require.Contains(t, b.shipped()[0], `"query_string":"`+c.want+`"`)
			require.NotContains(t, b.shipped()[1], "pa55word")
			b.deps.Config.Ship.Encoder.KeepMessages = true
			b.write("a.json", b.line("1a.2b", "a pa55word", said{"error_severity": "ERROR", "state_code": "22P02"}))
			b.ship()
			require.Contains(t, b.shipped()[2], "pa55word")
		})
	}
}

// csvlog is read where only that is written, whatever lies about.
func TestShipChoosesWhatIsWritten(t *testing.T) {
	b := newShipBench(t)
	b.write("report.json", "{}\n")
	b.rotated("report.json", time.Hour)
	b.write("a.csv", b.csvLine("1a.2b", "one"))
	b.ship()
	require.Len(t, b.seen(), 1)
	require.Equal(t, []string{"csvlog"}, b.ask("select s.format from custody_data.log_sources s"))

	both := b.beside(t, "both")
	both.write("b.csv", both.csvLine("1a.2c", "one"))
	both.write("b.json", both.line("1a.2c", "one", nil))
	at := time.Now()
	for file, ago := range map[string]time.Duration{"b.csv": 0, "b.json": time.Second} {
		require.NoError(t, os.Chtimes(filepath.Join(both.dir, file), at.Add(-ago), at.Add(-ago)))
	}
	both.ship()
	require.Equal(t, []string{"both jsonlog", "server csvlog"}, b.ask("select s.source, s.format from custody_data.log_sources s order by 1"))
}
