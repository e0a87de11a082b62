package jobs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"pgcustody/jobs/keys"
	"pgcustody/jobs/store"
)

var secret = &pgconn.PgError{Code: "23514", Message: "alice is wrong", Detail: "Failing row contains (alice)."}

func TestCode(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{fmt.Errorf("for alice: %w", secret), "23514"},
		{&Failure{Step: "erase subject", Code: "PC019", Err: secret}, "PC019"},
		{fmt.Errorf("x: %w", context.Canceled), "interrupted"},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), "timeout"},
		{&store.Error{Op: "put", Object: "s3://b/alice", Kind: store.ErrExists, Err: errors.New("alice")}, "object exists already"},
		{&keys.Error{Op: "get", Object: "KEK 1", Kind: keys.ErrUnavailable, Err: context.DeadlineExceeded}, "key provider cannot be reached"},
		{&keys.Error{Op: "get", Object: "KEK 1", Kind: keys.ErrUnavailable, Err: context.Canceled}, "interrupted"},
		{&statusError{503}, "status 503"},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, "connection refused"},
		{&net.DNSError{Name: "alice.example", IsTimeout: true}, "timeout"},
		{&net.DNSError{Name: "alice.example"}, "*net.DNSError"},
		{errors.New("alice"), "*errors.errorString"},
	} {
		require.Equal(t, test.want, Code(test.err), "%v", test.err)
	}
}

// What River keeps of an error names nobody, and still says what to do with the job.
func TestErrorsNameNobody(t *testing.T) {
	job := &river.Job[EraseArgs]{JobRow: &rivertype.JobRow{Queue: QueueSubjects}}
	own := &river.Job[EraseArgs]{JobRow: &rivertype.JobRow{Queue: OwnQueue("1")}}
	for _, test := range []struct {
		err  error
		want string
	}{
		{fail("erase subject", secret), "erase subject: 23514"},
		{secret, "23514"},
		{errors.Join(fail("retention of consent", secret), fmt.Errorf("alice: %w", fail("retention of conversations", secret))),
			"retention of consent: 23514; retention of conversations: 23514"},
		{errors.Join(fail("a", secret), secret), "a: 23514"},
		{later(job, time.Hour, fail("erase subject", secret)), "erase subject: 23514"},
		{later(own, time.Hour, fail("erase subject", secret)), "erase subject: 23514"},
	} {
		got := spoken(test.err)
		require.Equal(t, test.want, got.Error())
		require.ErrorIs(t, got, secret, "the cause is still there for who asks")
	}
	var snooze *river.JobSnoozeError
	require.ErrorAs(t, spoken(later(job, time.Hour, fail("x", secret))), &snooze)
	require.Equal(t, time.Hour, snooze.Duration)
	var cancel *river.JobCancelError
	require.ErrorAs(t, spoken(later(own, time.Hour, fail("x", secret))), &cancel)
	require.ErrorIs(t, spoken(fail("x", fmt.Errorf("x: %w", context.Canceled))), context.Canceled, "River tells an interrupt by it")
}

// A worker that panics leaves no record open.
func TestPanicIsOnRecord(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	id := b.request("export", "alice")
	b.deps.Store = panickyStore{b.deps.Store}
	event := b.work(ExportArgs{Tenant: tenant, RequestID: id})
	require.Equal(t, river.EventKindJobFailed, event.Kind)
	run := b.lastRun(tenant, "export")
	require.Equal(t, "failed", run.Status)
	require.Equal(t, "export: panic", *run.Error)
	kept := event.Job.Errors[len(event.Job.Errors)-1]
	require.Equal(t, "panic of type string", kept.Error)
	require.Contains(t, kept.Trace, "panickyStore", "where it was is still told")
	require.NotContains(t, kept.Trace, "for a test")
}

func TestSpokenPanic(t *testing.T) {
	t.Parallel()
	require.Equal(t, "panic of type *pgconn.PgError", spokenPanic(secret))
	defer func() { require.Contains(t, spokenPanic(recover()), "index out of range [3]") }()
	_ = make([]int, 1)[len("abc")]
}

type panickyStore struct{ store.Store }

func (panickyStore) Head(context.Context, string, string) (store.Info, error) { panic("for a test") }
