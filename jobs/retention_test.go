package jobs

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
)

// oldConversations makes n conversations whose last message is 100 days old.
func (b *bench) oldConversations(user string, n int) {
	b.Helper()
	b.exec(`select custody.save_conversation($1, 'old-' || i,
		jsonb_build_array(jsonb_build_object('role', 'user', 'text', 'hello', 'at', now() - interval '100 days'))) from generate_series(1, $2) i`, user, n)
}

const conversations = "select count(*) from custody_data.conversations"

func TestRetentionDeletesInBatches(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	b.oldConversations("alice", 25)
	b.oldConversations("held", 5)
	b.asRunner(`select custody.place_hold('{"user_id": "held"}', 'case 1', 'litigation')`)
	b.deps.Config.Retention = RetentionConfig{Batch: 10, Pause: time.Millisecond}
	var last Progress
	b.deps.OnProgress = func(p Progress) { last = p }

	require.Equal(t, river.EventKindJobCompleted, b.work(RetentionArgs{}).Kind)

	require.EqualValues(t, 6, b.number(tenant, conversations), "a new conversation and five held ones stay")
	run := b.lastRun(SystemTenant, "retention")
	require.Equal(t, "succeeded", run.Status)
	require.EqualValues(t, 25, b.count(run, "conversations"))
	require.EqualValues(t, 5, b.count(run, "held"))
	require.EqualValues(t, 3, b.count(run, "batches"))
	require.InDelta(t, 25*250, run.Bytes, 25*150, "an estimate of what went")
	require.Equal(t, Progress{Job: "retention", Unit: "rows", Done: 25, Total: 25}, last)
	require.EqualValues(t, 3, b.number(tenant, "select count(*) from custody_data.audit_logs where action = 'retention.run'"), "one event a batch")

	require.Equal(t, river.EventKindJobCompleted, b.work(RetentionArgs{Tenant: tenant, Class: "conversations"}).Kind)
	require.Zero(t, b.count(b.lastRun(tenant, "retention"), "conversations"), "nothing is left")
	require.EqualValues(t, 6, b.number(tenant, conversations))
}

func TestRetentionOnlyTakesWhatWasDueThen(t *testing.T) {
	b := newBench(t)
	b.oldConversations("alice", 3)
	before := time.Now().AddDate(0, 0, -20)
	require.Equal(t, river.EventKindJobCompleted, b.work(RetentionArgs{AsOf: &before}).Kind)
	require.EqualValues(t, 3, b.number(tenant, conversations), "they were 80 days old then")

	ahead := time.Now().AddDate(0, 0, 1)
	event := b.work(RetentionArgs{AsOf: &ahead})
	require.Equal(t, river.EventKindJobFailed, event.Kind, "nothing goes before its time")
	require.Equal(t, "retention of conversations: PC009", *b.lastRun(SystemTenant, "retention").Error)
}

// A batch that meets a lock is halved and tried again; once the lock is gone all goes.
func TestRetentionWaitsForNobody(t *testing.T) {
	b := newBench(t)
	b.oldConversations("alice", 4)
	b.deps.Config.Retention = RetentionConfig{LockTimeout: 50 * time.Millisecond, Backoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond, Attempts: 1000}

	// Holds are placed under a lock that deletions of the tenant wait for.
	holder := b.database.Conn(t, "custody_runner")
	tx, err := holder.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "select custody.set_context($1, 'tester')", tenant)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `select custody.place_hold('{"user_id": "alice"}', 'case 1', 'litigation')`)
	require.NoError(t, err)

	warned := make(chan struct{}, 1)
	b.deps.Log = slogTo(func(message string) {
		if message == "retention batch ended" {
			select {
			case warned <- struct{}{}:
			default:
			}
		}
	})
	done := make(chan *river.Event, 1)
	go func() { done <- b.work(RetentionArgs{Tenant: tenant}) }()
	select {
	case <-warned:
	case <-time.After(time.Minute):
		require.FailNow(t, "no batch met the lock")
	}
	require.NoError(t, tx.Rollback(t.Context()))
	require.Equal(t, river.EventKindJobCompleted, (<-done).Kind)
	require.Zero(t, b.number(tenant, conversations))
}

// A worker that is stopped in the middle of a run leaves its record closed and
// its job available; the next one ends in the state of a run that was not stopped.
func TestRetentionInterruptedAndRunAgain(t *testing.T) {
	b := newBench(t)
	b.oldConversations("alice", 30)
	b.deps.Config.Retention = RetentionConfig{Batch: 5, Pause: time.Hour} // stays in the middle
	inTheMiddle := make(chan struct{})
	var once atomic.Bool
	first := b.deps
	first.OnProgress = func(Progress) {
		if once.CompareAndSwap(false, true) {
			close(inTheMiddle)
		}
	}
	client := b.client(first, Schedule{})
	events, unsubscribe := client.Subscribe(river.EventKindJobInterrupted)
	defer unsubscribe()
	inserted, err := client.Insert(t.Context(), RetentionArgs{}, nil)
	require.NoError(t, err)
	require.NoError(t, client.Start(context.WithoutCancel(t.Context())))
	<-inTheMiddle
	require.NoError(t, client.StopAndCancel(context.Background()))
	b.await(events, inserted.Job.ID)

	run := b.lastRun(SystemTenant, "retention")
	require.Equal(t, "failed", run.Status)
	require.Equal(t, "retention: interrupted", *run.Error)
	require.EqualValues(t, 5, b.count(run, "conversations"), "what was committed is on record")
	require.EqualValues(t, 25, b.number(tenant, conversations))
	job, err := client.JobGet(t.Context(), inserted.Job.ID)
	require.NoError(t, err)
	require.Equal(t, rivertype.JobStateAvailable, job.State, "and may be worked again at once")

	b.deps.Config.Retention.Pause = time.Millisecond
	second := b.client(b.deps, Schedule{})
	completed, unsubscribe := second.Subscribe(river.EventKindJobCompleted)
	defer unsubscribe()
	b.start(second)
	b.await(completed, inserted.Job.ID)
	require.Zero(t, b.number(tenant, conversations))
	require.EqualValues(t, 25, b.count(b.lastRun(SystemTenant, "retention"), "conversations"))
}

// A process that is killed writes nothing at all: the next attempt closes its record.
func TestRecordOfADeadProcessIsClosed(t *testing.T) {
	b := newBench(t)
	client := b.client(b.deps, Schedule{})
	events, unsubscribe := client.Subscribe(river.EventKindJobCompleted)
	defer unsubscribe()
	inserted, err := client.Insert(t.Context(), RetentionArgs{}, nil)
	require.NoError(t, err)
	require.EqualValues(t, 1, b.number(SystemTenant, "select 1 from (select custody.start_run('retention', $1)) r", inserted.Job.ID))
	b.start(client)
	b.await(events, inserted.Job.ID)
	require.EqualValues(t, 1, b.number(SystemTenant,
		"select count(*) from custody_data.job_runs where river_job_id = $1 and status = 'failed' and error = 'the process died'", inserted.Job.ID))
	require.EqualValues(t, 1, b.number(SystemTenant,
		"select count(*) from custody_data.job_runs where river_job_id = $1 and status = 'succeeded'", inserted.Job.ID))
	require.Zero(t, b.number(SystemTenant, "select count(*) from custody_data.job_runs where status = 'running'"))
}

func TestRetentionStopsWhenItsTimeIsUp(t *testing.T) {
	b := newBench(t)
	b.oldConversations("alice", 10)
	b.deps.Config.Retention = RetentionConfig{Batch: 5, Timeout: time.Nanosecond}
	require.Equal(t, river.EventKindJobCompleted, b.work(RetentionArgs{}).Kind)
	run := b.lastRun(SystemTenant, "retention")
	require.EqualValues(t, 1, b.count(run, "unfinished"))
	require.EqualValues(t, 10, b.number(tenant, conversations))
}

func TestPartitions(t *testing.T) {
	b := newBench(t)
	require.Equal(t, river.EventKindJobCompleted, b.work(PartitionsArgs{}).Kind)
	now := time.Now().UTC()
	for ahead := range 4 {
		month := time.Date(now.Year(), now.Month()+time.Month(ahead), 1, 0, 0, 0, 0, time.UTC)
		require.EqualValues(t, 1, b.number(SystemTenant, "select count(*) from pg_catalog.pg_inherits i where i.inhrelid::regclass::text = 'custody_data.audit_logs_' || $1",
			month.Format("2006_01")), "%d months ahead", ahead)
	}
	require.Equal(t, river.EventKindJobCompleted, b.work(PartitionsArgs{}).Kind)
	require.Zero(t, b.count(b.lastRun(SystemTenant, "partitions"), "created"), "a second time: nothing")
}

// inTheWay locks a table until the returned function lets it go. With the trail locked
// batches delete their rows and then wait: their event has no place to go.
func (b *bench) inTheWay(table, mode string) (letGo func()) {
	b.Helper()
	holder := b.database.Conn(b.T, stack.Superuser)
	tx, err := holder.Begin(b.Context())
	require.NoError(b, err)
	_, err = tx.Exec(b.Context(), "lock table custody_data."+table+" in "+mode+" mode")
	require.NoError(b, err)
	return func() { require.NoError(b, tx.Rollback(b.Context())) }
}

// ends are the batches that were ended, by their codes.
func (b *bench) ends() <-chan string {
	ends := make(chan string, 1000)
	b.deps.Log = slog.New(endsHandler{slog.DiscardHandler, ends})
	return ends
}

type endsHandler struct {
	slog.Handler
	ends chan<- string
}

func (h endsHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h endsHandler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h endsHandler) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "retention batch ended" {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "error" {
				h.ends <- a.Value.String()
			}
			return true
		})
	}
	return nil
}

func (b *bench) await1(ends <-chan string) string {
	b.Helper()
	select {
	case code := <-ends:
		return code
	case <-time.After(time.Minute):
		require.FailNow(b, "no batch was ended")
		return ""
	}
}

// A batch whose rows somebody else wants gives way long before its own limits, takes
// less then, and goes on.
func TestRetentionGivesWayToWhoWaits(t *testing.T) {
	b := newBench(t)
	b.oldConversations("alice", 40)
	b.deps.Config.Retention = RetentionConfig{Batch: 40, MinBatch: 5, LockTimeout: time.Hour, BatchTimeout: time.Hour,
		Look: 5 * time.Millisecond, Patience: 20 * time.Millisecond, Backoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, Attempts: 1_000_000, Pause: time.Millisecond}
	ends := b.ends()
	letGo := b.inTheWay("audit_logs", "share")
	done := make(chan *river.Event, 1)
	go func() { done <- b.work(RetentionArgs{Tenant: tenant}) }()

	live := b.database.Conn(t, stack.Superuser)
	const want = "select 1 from custody_data.conversations where conversation_id = 'old-1' for update"
	// Once a batch has deleted the row, whoever wants it waits; the batch cannot end by itself.
	require.NoError(t, execute(t, live, "set lock_timeout = '1ms'"))
	require.Eventually(t, func() bool { return state(execute(t, live, want)) == lockNotAvailable }, time.Minute, time.Millisecond, "no batch has taken the row")
	require.NoError(t, execute(t, live, "set lock_timeout = '1min'"))
	require.NoError(t, execute(t, live, "begin"))
	require.NoError(t, execute(t, live, want), "the row is let go, although the batch still has no place for its event")
	require.Equal(t, "57014", b.await1(ends))
	letGo()
	require.Equal(t, river.EventKindJobCompleted, (<-done).Kind)
	require.EqualValues(t, 1, b.number(tenant, conversations), "the row that the other has is passed over")
	run := b.lastRun(tenant, "retention")
	require.EqualValues(t, 39, b.count(run, "conversations"))
	require.Positive(t, b.count(run, "yields"))
	require.GreaterOrEqual(t, b.count(run, "batches"), int64(2), "smaller ones")
	require.NoError(t, execute(t, live, "rollback"))
}

// A batch that takes too long is ended by its statement timeout and tried again.
func TestRetentionBatchesAreBounded(t *testing.T) {
	b := newBench(t)
	b.oldConversations("alice", 4)
	b.deps.Config.Retention = RetentionConfig{LockTimeout: time.Hour, BatchTimeout: 50 * time.Millisecond, Backoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, Attempts: 1_000_000}
	ends := b.ends()
	letGo := b.inTheWay("audit_logs", "share")
	done := make(chan *river.Event, 1)
	go func() { done <- b.work(RetentionArgs{Tenant: tenant}) }()
	require.Equal(t, "57014", b.await1(ends))
	letGo()
	require.Equal(t, river.EventKindJobCompleted, (<-done).Kind)
	require.Zero(t, b.number(tenant, conversations))
}

// Whoever waits behind a batch that is done in time slows the next one down all the same.
func TestWatchedTellsWhoWaited(t *testing.T) {
	b := newBench(t)
	b.oldConversations("alice", 1)
	watch := func(patience time.Duration, during func()) (felt bool, err error) {
		b.context(b.deps.Pool, tenant, func(tx pgx.Tx) error {
			felt, err = b.deps.watched(t.Context(), tx, time.Millisecond, patience, func() error {
				if _, err := tx.Exec(t.Context(), "select pg_advisory_xact_lock(1)"); err != nil {
					return err
				}
				during()
				return nil
			})
			return nil
		})
		return felt, err
	}
	felt, err := watch(time.Hour, func() { time.Sleep(20 * time.Millisecond) })
	require.NoError(t, err)
	require.False(t, felt, "nobody was there")

	other := b.database.Conn(t, stack.Superuser)
	got := make(chan error, 1)
	felt, err = watch(time.Hour, func() {
		go func() { got <- execute(t, other, "select pg_advisory_lock(1)") }()
		admin := b.database.Conn(t, stack.Superuser)
		require.Eventually(t, func() bool {
			var waiting bool
			require.NoError(t, admin.QueryRow(t.Context(), "select exists (select from pg_locks l where l.locktype = 'advisory' and not l.granted and l.database = (select oid from pg_database where datname = current_database()))").Scan(&waiting))
			return waiting
		}, time.Minute, time.Millisecond)
		time.Sleep(50 * time.Millisecond)
	})
	require.NoError(t, err)
	require.True(t, felt)
	require.NoError(t, <-got, "and got the lock when the transaction had ended")
}

func execute(t *testing.T, conn *pgx.Conn, query string) error {
	t.Helper()
	_, err := conn.Exec(t.Context(), query)
	return err
}

// Whatever the database says is due, the job deletes, but for months.
func TestRetentionTakesEachClass(t *testing.T) {
	b := newBench(t)
	for _, in := range []string{tenant, SystemTenant} {
		due, err := retentionDue(t.Context(), b.deps, in, nil, time.Minute)
		require.NoError(t, err)
		var classes []string
		for _, row := range due {
			if row.Class != "audit_hot" {
				classes = append(classes, row.Class)
			}
		}
		require.ElementsMatch(t, deletedClasses, classes)
	}
}

// Consents go by stretches of people, each of which is read once or twice: what is in
// force and what is held does not make later batches longer.
func TestRetentionWalksThePeople(t *testing.T) {
	b := newBench(t)
	const consents = `select count(*) from custody_data.consent_records`
	decide := func(users, granted, years string) {
		b.exec(`select custody.record_consent('p' || n, 'news' || m, $2::boolean, '1', p_occurred_at => now() - $3::int * interval '1 year')
			from generate_series(1, 60) n, generate_series(1, case n when 1 then 50 else 1 end) m where `+users+` and $1 <> ''`, tenant, granted, years)
	}
	decide("true", "true", "9")
	decide("n % 3 <> 0", "false", "8") // the first person alone has more than a stretch
	b.asRunner(`select custody.place_hold('{"user_id": "p2"}', 'case 1', 'litigation')`)
	b.deps.Config.Retention = RetentionConfig{Batch: 2, MinBatch: 1, Pause: time.Millisecond}
	require.EqualValues(t, 60+49+40+49, b.number(tenant, consents))

	require.Equal(t, river.EventKindJobCompleted, b.work(RetentionArgs{Class: "consent"}).Kind)

	const due = 2 * (39 + 49)
	run := b.lastRun(SystemTenant, "retention")
	require.EqualValues(t, due, b.count(run, "consent"))
	require.EqualValues(t, 2, b.count(run, "held"))
	require.GreaterOrEqual(t, b.count(run, "batches"), int64(due/2))
	require.EqualValues(t, 20+2, b.number(tenant, consents), "those in force and those of the person under hold stay")
	require.EqualValues(t, 1, b.number(tenant, consents+" where not granted"))

	var ends []uuid.UUID
	b.context(b.deps.Pool, tenant, func(tx pgx.Tx) error {
		for to := (uuid.UUID{}); ; {
			next, err := personAfter(t.Context(), tx, to, 5)
			if next == nil || err != nil {
				return err
			}
			ends, to = append(ends, *next), *next
		}
	})
	require.Len(t, ends, 4, "22 records in stretches of 5, and a few where a person's two stand at an end")
	require.True(t, slices.IsSortedFunc(ends, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }))
}

// What is due cannot be counted in time: then the batches find out.
func TestRetentionOfWhatIsNotCounted(t *testing.T) {
	b := newBench(t)
	b.oldConversations("alice", 4)
	b.deps.Config.Retention = RetentionConfig{LockTimeout: time.Hour, BatchTimeout: 200 * time.Millisecond, Backoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, Attempts: 1_000_000}
	ends := b.ends()
	letGo := b.inTheWay("conversations", "access exclusive")
	done := make(chan *river.Event, 1)
	go func() { done <- b.work(RetentionArgs{Tenant: tenant}) }()
	require.Equal(t, "57014", b.await1(ends))
	letGo()
	require.Equal(t, river.EventKindJobCompleted, (<-done).Kind)
	require.Zero(t, b.number(tenant, conversations))
	run := b.lastRun(tenant, "retention")
	require.EqualValues(t, 1, b.count(run, "uncounted"))
	require.EqualValues(t, 4, b.count(run, "conversations"))
}
