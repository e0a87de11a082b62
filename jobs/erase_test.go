package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"pgcustody/jobs/store"
)

func TestErase(t *testing.T) {
	b := newBench(t)
	b.person("alice-4711")
	b.person("bob-4712")
	id := b.request("erasure", "alice-4711")

	// The job that looks for what is due finds the request; nobody inserts its job by hand.
	b.until("erase", Schedule{Requests: time.Hour})

	require.Zero(t, b.number(tenant, "select count(*) from custody_data.identities where user_id = 'alice-4711'"))
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.user_profiles"), "the other person stays")
	run := b.lastRun(tenant, "erase")
	require.Equal(t, "succeeded", run.Status)
	for _, table := range []string{"user_profiles", "user_preferences", "conversations", "erased", "certificates_stored"} {
		require.EqualValues(t, 1, b.count(run, table), table)
	}
	require.EqualValues(t, 1, b.count(b.lastRun(SystemTenant, "requests"), "erase"))

	stored, info := b.get(CertificateKey(tenant, id))
	require.True(t, info.LockedUntil(time.Now().AddDate(7, 0, 0)), "locked for seven years: %+v", info)
	var certificate map[string]any
	require.NoError(t, json.Unmarshal(stored, &certificate))
	require.Equal(t, id.String(), certificate["request_id"])
	require.NotContains(t, string(stored), "alice-4711")
	b.silent("alice-4711")

	// Carried out again, it is the same erasure.
	require.Equal(t, river.EventKindJobCompleted, b.work(EraseArgs{Tenant: tenant, RequestID: id}).Kind)
	again, _ := b.get(CertificateKey(tenant, id))
	require.Equal(t, stored, again)
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.audit_logs where action = 'account.erase'"))
}

// nextEvent waits for any event.
func (b *bench) nextEvent(events <-chan *river.Event) *river.Event {
	b.Helper()
	select {
	case event := <-events:
		return event
	case <-time.After(time.Minute):
		require.FailNow(b, "no event came")
		return nil
	}
}

func TestEraseUnderAHoldWaitsForItsEnd(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	b.asRunner(`select custody.place_hold('{"user_id": "alice"}', 'case 1', 'litigation')`)
	id := b.request("erasure", "alice")

	require.Equal(t, river.EventKindJobCompleted, b.work(EraseArgs{Tenant: tenant, RequestID: id}).Kind)
	run := b.lastRun(tenant, "erase")
	require.EqualValues(t, 1, b.count(run, "held"))
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.requests where status = 'held'"))
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.user_profiles"))

	b.work(RequestsArgs{})
	require.Zero(t, b.number(tenant, "select count(*) from river.river_job where kind = 'erase' and state <> 'completed'"), "what is held is not tried")

	b.asRunner("select custody.release_hold(hold_id, 'settled') from custody.holds")
	b.until("erase", Schedule{Requests: time.Hour})
	require.EqualValues(t, 1, b.count(b.lastRun(tenant, "erase"), "erased"))
}

func TestEraseThatFindsResidueComesAgainLater(t *testing.T) {
	b := newBench(t)
	b.person("alice-4711")
	b.exec(`select custody.record_audit_event('phi.access', 'document', 'letter to alice-4711', 'success')`)
	id := b.request("erasure", "alice-4711")

	event := b.work(EraseArgs{Tenant: tenant, RequestID: id})
	require.Equal(t, river.EventKindJobSnoozed, event.Kind)
	require.WithinDuration(t, time.Now().Add(time.Hour), event.Job.ScheduledAt, time.Minute)
	run := b.lastRun(tenant, "erase")
	require.Equal(t, "failed", run.Status)
	require.Equal(t, "erase subject: PC019", *run.Error)
	require.EqualValues(t, 1, b.count(run, "residue"))
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.user_profiles"), "nothing is erased")

	b.work(RequestsArgs{})
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from river.river_job where kind = 'erase'"), "the job that waits is the one job")

	// A command of its own, with the basis, does not wait for that job.
	b.deps.ResidueBasis = "GDPR Art. 17(3)(e)"
	b.asRunner("delete from river.river_job")
	require.Equal(t, river.EventKindJobCompleted, b.work(EraseArgs{Tenant: tenant, RequestID: id}).Kind)
	stored, _ := b.get(CertificateKey(tenant, id))
	require.Contains(t, string(stored), "GDPR Art. 17(3)(e)")
	b.silent("GDPR Art. 17(3)(e)")
}

// The erasure is committed, then the process dies before the certificate is
// stored, or after it was and before the run was closed.
func TestEraseKilledAroundItsCertificate(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]bool{"before it is stored": false, "after it was stored": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.person("alice")
			b.asRunner("select custody.register_holder('cache', 'http://127.0.0.1:9/never')")
			id := b.request("erasure", "alice")

			first := b.deps
			first.Config.Notify.Backoff, first.Config.Notify.MaxBackoff = time.Hour, time.Hour
			killed := &dyingStore{Store: b.deps.Store, after: after, reached: make(chan struct{})}
			first.Store = killed
			client := b.client(first, Schedule{})
			events, unsubscribe := client.Subscribe(river.EventKindJobInterrupted)
			defer unsubscribe()
			inserted, err := client.Insert(t.Context(), EraseArgs{Tenant: tenant, RequestID: id}, nil)
			require.NoError(t, err)
			require.NoError(t, client.Start(context.WithoutCancel(t.Context())))
			<-killed.reached
			require.NoError(t, client.StopAndCancel(context.Background()))
			b.await(events, inserted.Job.ID)
			require.Zero(t, b.number(tenant, "select count(*) from custody_data.user_profiles"), "the person is erased")
			require.Equal(t, "store certificate: interrupted", *b.lastRun(tenant, "erase").Error)

			second := b.client(b.deps, Schedule{})
			completed, unsubscribe := second.Subscribe(river.EventKindJobCompleted)
			defer unsubscribe()
			b.start(second)
			b.await(completed, inserted.Job.ID)

			_, info := b.get(CertificateKey(tenant, id))
			require.True(t, info.LockedUntil(time.Now().AddDate(7, 0, 0)))
			require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.erasure_certificates"))
			require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.erasure_notices"))
			require.EqualValues(t, 1, b.number(tenant, "select count(*) from river.river_job where kind = 'notify'"), "one notice is one job")
			require.Equal(t, "succeeded", b.lastRun(tenant, "erase").Status)
		})
	}
}

// dyingStore is a store whose first Put never answers: with after, it has taken
// the object all the same.
type dyingStore struct {
	store.Store
	after   bool
	deletes bool // the first Delete never answers, and Put does
	reached chan struct{}
	once    atomic.Bool
}

func (s *dyingStore) Delete(ctx context.Context, key string) (int, error) {
	if !s.deletes || !s.once.CompareAndSwap(false, true) {
		return s.Store.Delete(ctx, key)
	}
	close(s.reached)
	<-ctx.Done()
	return 0, ctx.Err()
}

func (s *dyingStore) Put(ctx context.Context, key string, body io.Reader, opts store.PutOptions) (store.PutResult, error) {
	if s.deletes {
		return s.Store.Put(ctx, key, body, opts)
	}
	if !s.once.CompareAndSwap(false, true) {
		return store.PutResult{}, errors.New("put twice")
	}
	if s.after {
		if _, err := s.Store.Put(ctx, key, body, opts); err != nil {
			return store.PutResult{}, err
		}
	}
	close(s.reached)
	<-ctx.Done()
	return store.PutResult{}, ctx.Err()
}

// An erasure takes what the store has of the person, whatever became of the
// requests, and leaves what it has of others.
func TestEraseDropsExports(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	b.person("bob")
	done, others, open := b.request("export", "alice"), b.request("export", "bob"), b.request("export", "alice")
	for _, id := range []uuid.UUID{done, others} {
		require.Equal(t, river.EventKindJobCompleted, b.work(ExportArgs{Tenant: tenant, RequestID: id}).Kind)
	}
	for _, id := range []uuid.UUID{done, open} { // a version more, and one of an attempt that died
		_, err := b.deps.Store.Put(t.Context(), ExportKey(tenant, id), stringReader("{}"), store.PutOptions{})
		require.NoError(t, err)
	}
	id := b.request("erasure", "alice")

	// The process dies while it deletes: the job is taken up again.
	first := b.deps
	killed := &dyingStore{Store: b.deps.Store, reached: make(chan struct{}), deletes: true}
	first.Store = killed
	client := b.client(first, Schedule{})
	events, unsubscribe := client.Subscribe(river.EventKindJobInterrupted)
	defer unsubscribe()
	inserted, err := client.Insert(t.Context(), EraseArgs{Tenant: tenant, RequestID: id}, nil)
	require.NoError(t, err)
	require.NoError(t, client.Start(context.WithoutCancel(t.Context())))
	<-killed.reached
	require.NoError(t, client.StopAndCancel(context.Background()))
	b.await(events, inserted.Job.ID)
	require.Equal(t, "failed", b.lastRun(tenant, "erase").Status)
	b.get(ExportKey(tenant, done))

	second := b.client(b.deps, Schedule{})
	completed, unsubscribe := second.Subscribe(river.EventKindJobCompleted)
	defer unsubscribe()
	b.start(second)
	b.await(completed, inserted.Job.ID)
	require.EqualValues(t, 3, b.count(b.lastRun(tenant, "erase"), "exports_deleted"))
	for _, export := range []uuid.UUID{done, open} {
		left, err := b.deps.Store.Delete(t.Context(), ExportKey(tenant, export))
		require.NoError(t, err)
		require.Zero(t, left, "a version was left")
	}
	b.get(ExportKey(tenant, others))
	b.get(CertificateKey(tenant, id))
}

func TestEraseWithExportsThatItCannotDelete(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	export := b.request("export", "alice")
	_, err := b.deps.Store.Put(t.Context(), ExportKey(tenant, export), stringReader("{}"), store.PutOptions{RetainUntil: time.Now().Add(time.Hour)})
	require.NoError(t, err)
	id := b.request("erasure", "alice")

	bucket := b.deps.Store
	b.deps.Store = nil
	require.Equal(t, river.EventKindJobSnoozed, b.work(EraseArgs{Tenant: tenant, RequestID: id}).Kind)
	require.Equal(t, "delete exports: no store is configured", *b.lastRun(tenant, "erase").Error)
	b.asRunner("delete from river.river_job")

	b.deps.Store = bucket
	event := b.work(EraseArgs{Tenant: tenant, RequestID: id})
	require.Equal(t, river.EventKindJobSnoozed, event.Kind)
	require.WithinDuration(t, time.Now().Add(time.Hour), event.Job.ScheduledAt, time.Minute)
	require.Equal(t, "delete exports: object is locked", *b.lastRun(tenant, "erase").Error)
	require.Zero(t, b.number(tenant, "select count(*) from custody_data.user_profiles"), "the person is erased all the same")
	b.get(CertificateKey(tenant, id))
}

func TestEraseRefusesAnotherCertificate(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	id := b.request("erasure", "alice")
	_, err := b.deps.Store.Put(t.Context(), CertificateKey(tenant, id), stringReader(`{"request_id": "forged"}`), store.PutOptions{})
	require.NoError(t, err)
	require.Equal(t, river.EventKindJobFailed, b.work(EraseArgs{Tenant: tenant, RequestID: id}).Kind)
	require.Equal(t, "store certificate: another certificate is stored for this request", *b.lastRun(tenant, "erase").Error)
}

func TestEraseOfACancelledRequest(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	id := b.request("erasure", "alice")
	b.asRunner("select custody.cancel_request($1, 'changed their mind')", id)
	require.Equal(t, river.EventKindJobFailed, b.work(EraseArgs{Tenant: tenant, RequestID: id}).Kind)
	require.Equal(t, "erase subject: PC018", *b.lastRun(tenant, "erase").Error)
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.user_profiles"))
}

func TestErasureGrace(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	b.request("erasure", "alice")
	b.deps.Config.Requests.ErasureGrace = time.Hour
	require.Equal(t, river.EventKindJobCompleted, b.work(RequestsArgs{}).Kind)
	require.Zero(t, b.number(tenant, "select count(*) from river.river_job where kind = 'erase'"))
}

// Two workers, one leader: every request is carried out once, whoever takes it.
func TestTwoDaemonsAtOnce(t *testing.T) {
	b := newBench(t)
	const people = 12
	var ids []uuid.UUID
	for range people {
		user := randomName("person")
		b.person(user)
		ids = append(ids, b.request("erasure", user))
	}
	completed := make(chan int64, 100)
	for range 2 {
		client := b.client(b.deps, Schedule{Requests: time.Second, Retention: time.Second, Partitions: time.Second})
		events, unsubscribe := client.Subscribe(river.EventKindJobCompleted)
		t.Cleanup(unsubscribe)
		go func() {
			for event := range events {
				if event.Job.Kind == "erase" {
					completed <- event.Job.ID
				}
			}
		}()
		b.start(client)
	}
	seen := map[int64]bool{}
	for b.number(tenant, "select count(*) from custody_data.requests where status <> 'done'") > 0 || len(seen) < people {
		select {
		case id := <-completed:
			require.False(t, seen[id], "job %d was worked twice", id)
			seen[id] = true
		case <-time.After(time.Minute):
			require.FailNow(t, "not all requests were carried out", "%d of %d", len(seen), people)
		}
	}
	for _, id := range ids {
		_, info := b.get(CertificateKey(tenant, id))
		require.NotEmpty(t, info.RetainMode)
	}
	require.EqualValues(t, people, b.number(tenant, "select count(*) from custody_data.erasure_certificates"))
	// A look at what is due may be overtaken by the erasure itself: the job that it
	// inserts then finds the certificate.
	require.EqualValues(t, people, b.number(tenant, "select count(distinct args) from river.river_job where kind = 'erase'"))
	require.EqualValues(t, people, b.number(tenant, "select count(*) from custody_data.audit_logs where action = 'account.erase'"))
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from river.river_leader"))
	require.Zero(t, b.number(tenant, `select count(*) from (
		select kind from river.river_job where state in ('available', 'pending', 'running', 'scheduled', 'retryable') group by kind, args having count(*) > 1) twice`))
}

// An erasure that SQL carried out, or whose store was away, is brought to its end by
// the next look at what is due: its certificate is put under lock.
func TestErasedBySQLIsStoredByTheRunner(t *testing.T) {
	b := newBench(t)
	b.person("alice-4711")
	id := b.request("erasure", "alice-4711")
	b.asRunner("select custody.erase_subject($1)", id)

	b.work(RequestsArgs{})
	require.Zero(t, b.number(tenant, "select count(*) from river.river_job where kind = 'erase'"), "not at once: the job that erased may be at it")
	b.deps.Config.Requests.CertificateGrace = time.Nanosecond
	opened := b.deps.Store
	b.deps.Store = nil
	b.work(RequestsArgs{})
	require.Zero(t, b.number(tenant, "select count(*) from river.river_job where kind = 'erase'"), "without a store there is nothing to do about it")
	b.deps.Store = opened

	b.until("erase", Schedule{Requests: time.Hour})
	stored, _ := b.get(CertificateKey(tenant, id))
	require.Contains(t, string(stored), id.String())
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.stored_certificates"))
	b.work(RequestsArgs{})
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from river.river_job where kind = 'erase'"), "once")
}

// What holders answer, and the proof that a later checkpoint brings, make no other
// certificate; anything else does.
func TestSameCertificate(t *testing.T) {
	stored := `{"request_id": "r", "status": "awaiting_holders", "external_holders": [{"holder": "crm"}], "audit_event_proof": null, "deleted": {"user_profiles": 1}}`
	for now, same := range map[string]bool{
		`{"deleted": {"user_profiles": 1}, "request_id": "r", "status": "complete", "external_holders": [], "audit_event_proof": {"leaf_index": 1}}`: true,
		`{"deleted": {"user_profiles": 2}, "request_id": "r", "status": "complete", "external_holders": [], "audit_event_proof": {"leaf_index": 1}}`: false,
		`{"deleted": {"user_profiles": 1}, "request_id": "r"`: false,
	} {
		require.Equal(t, same, sameCertificate([]byte(stored), []byte(now)), now)
	}
}
