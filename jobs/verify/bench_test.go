package verify_test

import (
	"flag"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/jobs/verify"
)

var benchEvents = flag.Int("events", 200_000, "how many events benchmarks verify")

// BenchmarkVerify verifies a database on one core, and tells the most memory that it
// held.
func BenchmarkVerify(b *testing.B) {
	f := buildBench(b, *benchEvents)
	runtime.GOMAXPROCS(1)
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
	runtime.GC()
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
