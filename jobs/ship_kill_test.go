package jobs

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs/store"
)

// TestShipKilledAtEachPoint kills the real binary at every step: the next run ends with
// the lines that a run without a fault would have shipped, each once.
func TestShipKilledAtEachPoint(t *testing.T) {
	b := newShipBench(t)
	binary, err := faulty()
	require.NoError(t, err)
	env := map[string]string{}
	maps.Copy(env, stacktest.Shared(t).Env())
	env["PGDATABASE"], env["PGCUSTODY_STORE"], env["PGCUSTODY_LOG_SOURCE"] = b.database.Name, b.deps.Store.URL(), b.dir
	env["PGCUSTODY_ARCHIVE_RECIPIENTS"], env["PATH"], env["HOME"] = opens.Recipient().String(), os.Getenv("PATH"), t.TempDir()
	run := func(more ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), binary, "logs", "ship")
		for name, value := range env {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		cmd.Env = append(cmd.Env, more...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return out.String(), err
	}
	written := 0
	write := func() {
		b.write("a.json", b.line("1a.2b", "one", nil), b.line("1a.2b", `connection authorized: user=dr_ada`, nil))
		written += 2
	}
	trace := filepath.Join(t.TempDir(), "trace")
	write()
	out, err := run("PGCUSTODY_FAULT_TRACE=" + trace)
	require.NoError(t, err, out)
	text, err := os.ReadFile(trace)
	require.NoError(t, err)
	var points []string
	for _, point := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if !slices.Contains(points, point) {
			points = append(points, point)
		}
	}
	for _, step := range []string{"before put batch", "after put batch", "after put manifest", "before record batch", "within record batch", "after record batch"} {
		require.Contains(t, points, step)
	}
	for _, point := range points {
		write()
		out, err := run("PGCUSTODY_FAULT=" + point)
		require.True(t, killed(err), "%s: %s", point, out)
		if out, err := run(); err != nil {
			t.Fatal(point, out)
		}
		require.Len(t, b.shipped(), written, point)
	}
	rows := written / 2
	// The same while the next batch is read.
	for _, point := range points {
		written += b.several("a.json", 2)
		out, err := run("PGCUSTODY_FAULT=" + point + "#2")
		require.True(t, killed(err), "%s: %s", point, out)
		if out, err := run(); err != nil {
			t.Fatal(point, out)
		}
	}
	require.Len(t, b.seen(), written)
	require.Equal(t, []string{"logon", "0"}, b.ask("select e.kind from custody_data.access_events e group by 1 union all select count(*)::text from custody_data.log_findings f"))
	require.Len(t, b.ask("select 1 from custody_data.access_events"), rows)

	// What the killed left is listed, and nothing else is wrong.
	report, err := VerifyLogs(t.Context(), b.deps, true)
	require.NoError(t, err)
	orphans := 0
	for _, f := range report.Findings {
		require.Equal(t, "orphan", f.Kind, "%v", f)
		orphans++
	}
	require.NotZero(t, orphans)
	require.EqualValues(t, len(b.batches()), report.Batches)
}

// Batches that are missing or altered in the store are found, and lines whose rows are
// missing in the database.
func TestVerifyLogs(t *testing.T) {
	b := newShipBench(t)
	for range 3 {
		b.write("a.json", b.line("1a.2b", "one", nil))
		b.ship()
	}
	report, err := VerifyLogs(t.Context(), b.deps, true)
	require.NoError(t, err)
	require.Empty(t, report.Findings)
	require.EqualValues(t, 3, report.Batches)
	_, err = b.super.Exec(t.Context(), `alter table custody_data.log_batches disable trigger all;
		update custody_data.log_batches set sha256 = sha256('x') where number = 1; update custody_data.log_batches set manifest_sha256 = sha256('x') where number = 2;
		update custody_data.log_batches set object_key = 'server-logs/000000000009.jsonl.zst.age' where number = 3`)
	require.NoError(t, err)
	report, err = VerifyLogs(t.Context(), b.deps, true)
	require.NoError(t, err)
	var found []string
	for _, f := range report.Findings {
		found = append(found, f.Kind+" "+strings.TrimPrefix(f.Detail["object"], "server-logs/0000000000")+" "+f.Detail["what"])
	}
	slices.Sort(found)
	require.Equal(t, []string{"batch_altered 01.jsonl.zst.age it has another digest", "batch_altered 02.manifest.json it has another digest",
		"batch_altered 03.manifest.json the chain is broken before it", "batch_without_object 09.jsonl.zst.age the store does not have it"},
		slices.DeleteFunc(found, func(f string) bool { return strings.HasPrefix(f, "orphan") }))
	require.Equal(t, []string{"batch_altered 3", "batch_without_object 1", "orphan 1"}, b.ask("select f.kind, count(*) from custody_data.log_findings f group by 1 order by 1"))
}

// The daily run reconciles, looks for the batches, and deletes those whose lock and
// policy are over.
func TestReconcile(t *testing.T) {
	b := newShipBench(t)
	_, err := b.super.Exec(t.Context(), `alter table custody_data.retention_policies disable trigger a_require_approval;
		update custody_data.retention_policies set keep = interval '2 seconds' where class = 'shipped_logs';
		alter table custody_data.retention_policies enable always trigger a_require_approval`)
	require.NoError(t, err)
	b.write("a.json", b.line("1a.2b", "one", nil))
	b.ship()
	require.Eventually(t, func() bool { return len(b.ask("select b.number from custody.due_log_batches(10) b")) == 1 }, 20*time.Second, 100*time.Millisecond)
	require.Equal(t, river.EventKindJobCompleted, b.work(ReconcileArgs{}).Kind)
	report := b.reports.of("reconcile")[0]
	require.EqualValues(t, 1, report.Counts["batches"])
	require.EqualValues(t, 1, report.Counts["batches_deleted"])
	require.Equal(t, []string{"1 log.expire", "1 log.ship"}, b.ask("select a.metadata ->> 'batch', a.action from custody_data.audit_logs a where a.action in ('log.ship', 'log.expire') order by 2"))
	_, err = b.deps.Store.Head(t.Context(), b.batches()[0].ObjectKey, "")
	require.ErrorIs(t, err, store.ErrNotFound)
	found, err := VerifyLogs(t.Context(), b.deps, true)
	require.NoError(t, err)
	require.Empty(t, found.Findings, "what was deleted in its time is not missing")
}
