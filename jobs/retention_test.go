package jobs

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"
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
