package jobs

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/db"
	"pgcustody/jobs/keys"
	"pgcustody/jobs/store"
)

func TestMain(m *testing.M) {
	// The stack itself is the test binary's, not a test's.
	goleak.VerifyTestMain(m)
}

const tenant = "acme"

// bench is a database, a tenant in it, and a bucket of a test's own.
type bench struct {
	*testing.T
	database *stacktest.Database
	app      *pgxpool.Pool // as an application
	unlock   *Unlocker     // of the test itself; the jobs' is in deps
	deps     Deps
	reports  *reports
}

// newBench makes a bench whose tenant has a key.
func newBench(t *testing.T) *bench {
	t.Helper()
	b := newLockedBench(t)
	provider, _ := stacktest.KeyProvider(t)
	b.database.GiveKey(t, provider, tenant)
	b.unlock = b.unlocker(provider)
	b.deps.Unlock = b.unlocker(provider)
	return b
}

func (b *bench) unlocker(provider keys.Provider) *Unlocker {
	return &Unlocker{Ring: Keyring{Pool: b.deps.Pool, Provider: provider, Actor: "tester"}}
}

// newLockedBench makes a bench whose tenant has no key; whatever the workers log goes
// to the test's log.
func newLockedBench(t *testing.T) *bench {
	t.Helper()
	t.Parallel()
	d := stacktest.DB(t)
	b := &bench{T: t, database: d, app: d.Pool(t, "custody_app"), reports: &reports{}}
	b.deps = Deps{
		Pool: d.Pool(t, "custody_runner"), Store: newStore(t), Actor: "runner",
		Recipients: recipients(),
		Log:        slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo})),
		OnReport:   b.reports.add,
		Config:     Config{Notify: NotifyConfig{Key: make([]byte, 32), Backoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond}},
	}
	b.context(b.deps.Pool, "system", func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.register_tenant($1, 'Acme')", tenant)
		return err
	})
	return b
}

// newStore opens a bucket of the test's own.
func newStore(t *testing.T) store.Store {
	bucket := stacktest.Bucket(t)
	setAWS.Do(func() {
		for name, value := range stacktest.Shared(t).Env() {
			if strings.HasPrefix(name, "AWS_") {
				require.NoError(t, os.Setenv(name, value)) //nolint:usetesting // for all tests, which run in parallel
			}
		}
	})
	s, err := store.OpenURL(t.Context(), "s3://"+bucket)
	require.NoError(t, err)
	return s
}

// setAWS names the stack's S3 server, the same one for all tests.
var setAWS sync.Once

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// reports collects what runs said at their end.
type reports struct {
	mu   sync.Mutex
	list []Report
}

func (r *reports) add(report Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, report)
}

// of returns the reports of a kind of job.
func (r *reports) of(job string) (list []Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, report := range r.list {
		if report.Job == job {
			list = append(list, report)
		}
	}
	return list
}

// context runs work in the context of a tenant, unlocked where it has a key.
func (b *bench) context(pool *pgxpool.Pool, tenant string, work func(pgx.Tx) error) {
	b.Helper()
	require.NoError(b, b.unlock.InContext(b.Context(), pool, Scope{Tenant: tenant, Actor: "tester", Purpose: "test"}, work))
}

// exec runs statements as the application in the tenant.
func (b *bench) exec(query string, args ...any) {
	b.Helper()
	b.context(b.app, tenant, func(tx pgx.Tx) error {
		_, err := tx.Exec(b.Context(), query, args...)
		return err
	})
}

// asRunner runs statements as the runner in the tenant.
func (b *bench) asRunner(query string, args ...any) {
	b.Helper()
	b.context(b.deps.Pool, tenant, func(tx pgx.Tx) error {
		_, err := tx.Exec(b.Context(), query, args...)
		return err
	})
}

// number reads one number as the runner in a tenant.
func (b *bench) number(tenant, query string, args ...any) (n int64) {
	b.Helper()
	b.context(b.deps.Pool, tenant, func(tx pgx.Tx) error { return tx.QueryRow(b.Context(), query, args...).Scan(&n) })
	return n
}

// person makes a person with everything that can be erased.
func (b *bench) person(user string) {
	b.Helper()
	b.exec(`select custody.put_profile($1, jsonb_build_object('full_name', 'Someone Testperson', 'email', $1 || '@example.org')),
		custody.put_preferences($1, '{"theme": "dark"}'),
		custody.record_consent($1, 'newsletter', true, 'v1', 'consent'),
		custody.save_conversation($1, 'c-1', jsonb_build_array(jsonb_build_object('role', 'user', 'text', 'hello', 'at', now())))`, user)
}

// requestErasure makes a committed request.
func (b *bench) request(kind, user string) (id uuid.UUID) {
	b.Helper()
	b.context(b.deps.Pool, tenant, func(tx pgx.Tx) error {
		return tx.QueryRow(b.Context(), "select custody.request_"+kind+"($1, 'test')", user).Scan(&id)
	})
	return id
}

// client makes a River client of the daemon's kind, with the waits shortened that
// a test would otherwise sit through.
func (b *bench) client(d Deps, schedule Schedule) *river.Client[pgx.Tx] {
	b.Helper()
	d.Config.Schedule = schedule
	client, err := NewClient(d, ClientOptions{SoftStop: 20 * time.Second})
	require.NoError(b, err)
	return client
}

// start starts a client and stops it with the test, running jobs included.
func (b *bench) start(client *river.Client[pgx.Tx]) {
	b.Helper()
	require.NoError(b, client.Start(context.WithoutCancel(b.Context())))
	b.Cleanup(func() { require.NoError(b, client.StopAndCancel(context.Background())) })
}

// work inserts a job and waits for the end of its attempt. Notices that it
// inserts stay where they are.
func (b *bench) work(args river.JobArgs) *river.Event {
	b.Helper()
	client := b.client(b.deps, Schedule{})
	require.NoError(b, client.Queues().Remove(b.Context(), QueueNotices))
	events, unsubscribe := client.Subscribe(river.EventKindJobCompleted, river.EventKindJobFailed, river.EventKindJobCancelled, river.EventKindJobSnoozed)
	defer unsubscribe()
	inserted, err := client.Insert(b.Context(), args, nil)
	require.NoError(b, err)
	require.NoError(b, client.Start(context.WithoutCancel(b.Context())))
	defer func() { require.NoError(b, client.StopAndCancel(context.Background())) }()
	return b.await(events, inserted.Job.ID)
}

// await waits for an event of a job.
func (b *bench) await(events <-chan *river.Event, id int64) *river.Event {
	b.Helper()
	for {
		select {
		case event := <-events:
			if event.Job.ID == id {
				return event
			}
		case <-b.Context().Done():
			require.FailNow(b, "the test ended while it waited for a job")
		case <-time.After(time.Minute):
			require.FailNow(b, "no event for the job came")
		}
	}
}

// lastRun is the record of the last run of a job.
func (b *bench) lastRun(tenant, job string) (run db.LatestRunsRow) {
	b.Helper()
	b.context(b.deps.Pool, tenant, func(tx pgx.Tx) error {
		runs, err := db.New().LatestRuns(b.Context(), tx)
		for _, r := range runs {
			if r.Job == job {
				run = r
			}
		}
		return err
	})
	require.Equal(b, job, run.Job, "job has no run")
	return run
}

func (b *bench) count(run db.LatestRunsRow, name string) int64 {
	b.Helper()
	counts := map[string]int64{}
	require.NoError(b, json.Unmarshal(run.Counts, &counts))
	return counts[name]
}

// get reads an object.
func (b *bench) get(key string) ([]byte, store.Info) {
	b.Helper()
	object, err := b.deps.Store.Get(b.Context(), key, "")
	require.NoError(b, err)
	defer object.Close()
	content, err := io.ReadAll(object)
	require.NoError(b, err)
	info, err := b.deps.Store.Head(b.Context(), key, "") // knows the lock
	require.NoError(b, err)
	return content, info
}

// silent fails the test when a text stands in the queue or in a run record.
func (b *bench) silent(text string) {
	b.Helper()
	require.Zero(b, b.number(tenant, "select count(*) from river.river_job j where j::text like '%' || $1 || '%'", text), "%s stands in the queue", text)
	require.Zero(b, b.number(tenant, "select count(*) from custody_data.job_runs r where r::text like '%' || $1 || '%'", text), "%s stands in a run record", text)
}

func randomName(prefix string) string { return prefix + "-" + strings.ToLower(rand.Text()[:12]) }

// stopping is the context in which a client is stopped, when the test's is over.
func (b *bench) stopping() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(b.Context()), time.Minute)
}

func dbExec(t *testing.T, query string, args ...any) func(pgx.Tx) error {
	return func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), query, args...)
		return err
	}
}
