package verify_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/tlog"

	"pgcustody/jobs/ledger"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/verify"
)

var benchEvents = flag.Int("events", 200_000, "how many events benchmarks verify")

// BenchmarkVerify verifies a database on one core, and tells the most memory that it
// held.
func BenchmarkVerify(b *testing.B) {
	verify.ReadBy(4096)
	f := buildBench(b, *benchEvents)
	runtime.GOMAXPROCS(1)
	runtime.GC()
	var most atomic.Uint64
	stop := make(chan struct{})
	go func() {
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most.Store(max(most.Load(), m.HeapInuse+m.StackInuse))
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	events, begun := int64(0), cpu()
	for b.Loop() {
		report := f.verify()
		require.Equal(b, verify.StatusIntact, report.Status, "%v", report.Findings)
		events += report.Events
	}
	close(stop)
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(events)/(cpu()-begun).Seconds(), "events/cpu-s")
	b.ReportMetric(float64(most.Load())/(1<<20), "MiB")
}

// cpu is what this process has used of all cores.
func cpu() time.Duration {
	var used syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// buildBench makes a database with so many events of ordinary size.
func buildBench(b *testing.B, n int) *fixture {
	b.Helper()
	f := empty(b)
	// Ten events a transaction.
	f.exec(fmt.Sprintf(`do $$ begin
		for i in 1 .. %d loop
			insert into custody_data.audit_logs (tenant_id, log_entry_id, occurred_at, actor_id, subject_id, action, resource_type, resource_id, purpose, metadata)
			select 'acme', gen_random_uuid(), clock_timestamp(), gen_random_uuid(), gen_random_uuid(), 'phi.access', 'chart', 'chart-' || n, 'care', jsonb_build_object('rows', n)
			from generate_series(1, 10) n;
			commit;
		end loop;
	end $$`, n/10))
	f.exec("analyze custody_data.audit_logs")
	for more := true; more; {
		f.inSystem(func(tx pgx.Tx) error {
			return tx.QueryRow(b.Context(), "select (custody.seal_audit_log(100000) ->> 'more')::boolean").Scan(&more)
		})
	}
	f.anchor()
	return f
}

// BenchmarkObjects verifies an archive of two days from objects alone, and compares
// that with `zstd -dc | sha256sum` over the same objects.
func BenchmarkObjects(b *testing.B) {
	f := empty(b)
	f.inSystem(func(tx pgx.Tx) error { // an incarnation to sign in
		_, err := tx.Exec(b.Context(), "select custody.seal_audit_log(1000)")
		return err
	})
	var leaves []tlog.Hash
	plain := int64(0)
	today := time.Now().UTC().Truncate(24 * time.Hour)
	folder := b.TempDir()
	for day := range 2 {
		name := segment.NewName(today.AddDate(0, 0, day-2), 1)
		var lines []string
		first := int64(len(leaves))
		at := name.Day.Format("2006-01-02") + "T10:00:00.000000Z"
		for i := range *benchEvents / 2 {
			entry := fmt.Sprintf(`{"v":1,"log_entry_id":"%s","occurred_at":"%s","recorded_at":"%s","tenant_id":"acme","actor_id":"%s","subject_id":"%s","action":"phi.access","resource_type":"chart","resource_id":"chart-%d","result":"success","purpose":"care","metadata":{"rows": %d},"db_role":"custody_app","xid":"%d"}`,
				uuid.New(), at, at, uuid.New(), uuid.New(), i, i, 1000+day**benchEvents+i)
			lines = append(lines, entry)
			leaves = append(leaves, tlog.RecordHash([]byte(entry)))
			plain += int64(len(entry)) + 1
		}
		// The peer reads what is compressed, without age.
		var compressed bytes.Buffer
		encoder, err := zstd.NewWriter(&compressed)
		require.NoError(b, err)
		_, err = encoder.Write([]byte(strings.Join(lines, "\n") + "\n"))
		require.NoError(b, err)
		require.NoError(b, encoder.Close())
		require.NoError(b, os.WriteFile(filepath.Join(folder, name.String()), compressed.Bytes(), 0o600))
		f.putSegment(name, segment.Runs{{First: first, Count: int64(len(lines))}}, lines, time.Now().Add(24*time.Hour))
	}
	f.putTiles(leaves)
	c := f.checkpoint(1, int64(len(leaves)), rootOf(leaves))
	signed := sign(b, f.signer, c)
	f.put(ledger.CheckpointKey(origin, 1), []byte(signed))
	f.put(ledger.NewestKey(origin), []byte(signed))

	begun := time.Now()
	out, err := exec.CommandContext(b.Context(), "sh", "-c", "cat "+folder+"/* | zstd -dc | sha256sum").CombinedOutput()
	require.NoError(b, err, string(out))
	peer := float64(plain) / time.Since(begun).Seconds()
	runs := 0
	for b.Loop() {
		report := f.verify(fromObjects)
		require.Empty(b, report.Findings)
		require.EqualValues(b, len(leaves), report.Archived)
		runs++
	}
	mine := float64(plain) * float64(runs) / b.Elapsed().Seconds()
	b.ReportMetric(mine/(1<<20), "MiB/s")
	b.ReportMetric(mine/peer, "of-zstd|sha256sum")
}
