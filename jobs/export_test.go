package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"pgcustody/db"
	"pgcustody/jobs/store"
)

// exported is a document without what differs between two exports of one person.
func exported(t *testing.T, document []byte) map[string]any {
	t.Helper()
	var d map[string]any
	require.NoError(t, json.Unmarshal(document, &d))
	delete(d, "exported_at")
	delete(d, "requests")     // the second export knows of one more
	delete(d, "audit_events") // and of its event
	return d
}

func TestExportIsWhatExportSubjectReturns(t *testing.T) {
	b := newBench(t)
	b.person("alice-4711")
	b.person("bob-4712")
	b.oldConversations("alice-4711", 3)
	b.exec(`select custody.record_audit_event('phi.access', 'health_record', 'r-1', 'success', '{"count": 1}', 'alice-4711', p_personal => '{"ip": "192.0.2.1"}')`)
	b.exec(`select custody.put_profile('empty', '{}'), custody.delete_profile('empty')`)

	for _, user := range []string{"alice-4711", "empty"} {
		id := b.request("export", user)
		require.Equal(t, river.EventKindJobCompleted, b.work(ExportArgs{Tenant: tenant, RequestID: id}).Kind)
		document, info := b.get(ExportKey(tenant, id))
		require.EqualValues(t, len(document), info.Size)

		var whole []byte
		b.context(b.deps.Pool, tenant, func(tx pgx.Tx) error {
			return tx.QueryRow(t.Context(), "select custody.export_subject($1)", user).Scan(&whole)
		})
		require.Equal(t, exported(t, whole), exported(t, document))
		var a, z struct {
			Requests struct {
				Data    []any
				Purpose string
			} `json:"requests"`
			Audit struct {
				Data []any
			} `json:"audit_events"`
		}
		require.NoError(t, json.Unmarshal(document, &a))
		require.NoError(t, json.Unmarshal(whole, &z))
		require.Equal(t, z.Requests.Purpose, a.Requests.Purpose)
		require.Equal(t, a.Audit.Data, z.Audit.Data[:len(a.Audit.Data)], "the same events, and later ones")
		require.Len(t, a.Requests.Data, 1)

		run := b.lastRun(tenant, "export")
		require.EqualValues(t, len(document), run.Bytes)
		require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.requests where request_id = $1 and status = 'done'", id))
		require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.audit_logs where action = 'account.export' and metadata ->> 'request_id' = $1", id.String()))
		require.NotContains(t, string(document), "bob-4712")
	}
	b.silent("alice-4711")
}

// Beyond the bound of export_subject the job still writes the whole document.
func TestLargeExport(t *testing.T) {
	b := newBench(t)
	b.exec(`select custody.save_conversation('alice', 'big-' || i, jsonb_build_array(jsonb_build_object('role', 'user', 'at', now(), 'text',
		repeat(md5(i::text), 32768)))) from generate_series(1, 8) i`)
	err := b.unlock.InContext(t.Context(), b.deps.Pool, Scope{Tenant: tenant, Actor: "tester"}, dbExec(t, "select custody.export_subject('alice', 1 << 20)"))
	require.ErrorIs(t, db.FromPg(err), db.ErrExportTooLarge)

	id := b.request("export", "alice")
	require.Equal(t, river.EventKindJobCompleted, b.work(ExportArgs{Tenant: tenant, RequestID: id}).Kind)
	document, _ := b.get(ExportKey(tenant, id))
	require.Greater(t, len(document), 8<<20)
	var d struct {
		Conversations struct{ Data []json.RawMessage } `json:"conversations"`
	}
	require.NoError(t, json.Unmarshal(document, &d))
	require.Len(t, d.Conversations.Data, 8)
}

// The process dies after the document was stored and before that was on record.
func TestExportKilledAfterItsPut(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	id := b.request("export", "alice")
	first := b.deps
	killed := &dyingStore{Store: b.deps.Store, after: true, reached: make(chan struct{})}
	first.Store = killed
	client := b.client(first, Schedule{})
	events, unsubscribe := client.Subscribe(river.EventKindJobInterrupted)
	defer unsubscribe()
	inserted, err := client.Insert(t.Context(), ExportArgs{Tenant: tenant, RequestID: id}, nil)
	require.NoError(t, err)
	require.NoError(t, client.Start(context.WithoutCancel(t.Context())))
	<-killed.reached
	require.NoError(t, client.StopAndCancel(context.Background()))
	b.await(events, inserted.Job.ID)
	require.Zero(t, b.number(tenant, "select count(*) from custody_data.audit_logs where action = 'account.export'"), "the event went with its transaction")
	before, _ := b.get(ExportKey(tenant, id))

	second := b.client(b.deps, Schedule{})
	completed, unsubscribe := second.Subscribe(river.EventKindJobCompleted)
	defer unsubscribe()
	b.start(second)
	b.await(completed, inserted.Job.ID)
	after, _ := b.get(ExportKey(tenant, id))
	require.Equal(t, before, after)
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.audit_logs where action = 'account.export'"))
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.requests where status = 'done'"))
}

func TestExportWithoutAStoreWaits(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	id := b.request("export", "alice")
	b.deps.Store = nil
	require.Equal(t, river.EventKindJobSnoozed, b.work(ExportArgs{Tenant: tenant, RequestID: id}).Kind)
	require.Equal(t, "write export: no store: set PGCUSTODY_STORE", *b.lastRun(tenant, "export").Error)
}

func TestExportOfSomebodyErased(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	id := b.request("export", "alice")
	erasure := b.request("erasure", "alice")
	require.Equal(t, river.EventKindJobCompleted, b.work(EraseArgs{Tenant: tenant, RequestID: erasure}).Kind)
	require.Equal(t, river.EventKindJobCompleted, b.work(ExportArgs{Tenant: tenant, RequestID: id}).Kind)
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.requests where request_id = $1 and status = 'cancelled'", id))
	_, err := b.deps.Store.Head(t.Context(), ExportKey(tenant, id), "")
	require.ErrorIs(t, err, store.ErrNotFound)
}

// What an attempt stored that died before the erasure goes with the attempt that
// comes after it; a request that was done stays done.
func TestExportOfSomebodyErasedLeavesNoDocument(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	open, done := b.request("export", "alice"), b.request("export", "alice")
	require.Equal(t, river.EventKindJobCompleted, b.work(ExportArgs{Tenant: tenant, RequestID: done}).Kind)
	require.Equal(t, river.EventKindJobCompleted, b.work(EraseArgs{Tenant: tenant, RequestID: b.request("erasure", "alice")}).Kind)
	for id, status := range map[uuid.UUID]string{open: "cancelled", done: "done"} {
		_, err := b.deps.Store.Put(t.Context(), ExportKey(tenant, id), strings.NewReader("{}"), store.PutOptions{})
		require.NoError(t, err)
		require.Equal(t, river.EventKindJobCompleted, b.work(ExportArgs{Tenant: tenant, RequestID: id}).Kind)
		left, err := b.deps.Store.Delete(t.Context(), ExportKey(tenant, id))
		require.NoError(t, err)
		require.Zero(t, left)
		require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.requests where request_id = $1 and status = $2", id, status))
	}
}

// An erasure that committed while the document is on its way would not find it.
func TestErasureWaitsForAnExportUnderWay(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	b.person("bob")
	b.work(ExportArgs{Tenant: tenant, RequestID: b.request("export", "bob")}) // the jobs' actor is known from here on
	export, erasure := b.request("export", "alice"), b.request("erasure", "alice")
	b.deps.Config.Erase.LockTimeout = 100 * time.Millisecond
	exporting := b.deps
	var erased *river.Event
	exporting.ExportTo = func(ctx context.Context, _ string, body io.Reader) (int64, error) {
		n, err := io.Copy(io.Discard, body)
		erased = b.work(EraseArgs{Tenant: tenant, RequestID: erasure})
		return n, err
	}
	require.NoError(t, (&ExportWorker{Deps: exporting}).streamOnly(t.Context(), export))
	require.Equal(t, river.EventKindJobFailed, erased.Kind)
	require.Equal(t, "erase subject: 55P03", *b.lastRun(tenant, "erase").Error)
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.identities where user_id = 'alice'"))
}

// streamOnly does what Work does in its transaction, without River, and rolls back.
func (w *ExportWorker) streamOnly(ctx context.Context, id uuid.UUID) error {
	scope := w.scope(tenant, "export request")
	scope.Isolation = pgx.RepeatableRead
	err := w.Unlock.InContext(ctx, w.Pool, scope, func(tx pgx.Tx) error {
		if _, _, err := w.export(ctx, tx, &Run{counts: map[string]int64{}}, ExportKey(tenant, id), id); err != nil {
			return err
		}
		return pgx.ErrTxCommitRollback
	})
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return nil
	}
	return err
}

// Whoever takes the document may fail in the middle of it.
func TestExportThatNobodyReadsToItsEnd(t *testing.T) {
	b := newBench(t)
	b.person("alice")
	id := b.request("export", "alice")
	b.deps.ExportTo = func(_ context.Context, _ string, body io.Reader) (int64, error) {
		_, _ = io.ReadFull(body, make([]byte, 10))
		return 0, io.ErrShortWrite
	}
	require.Equal(t, river.EventKindJobFailed, b.work(ExportArgs{Tenant: tenant, RequestID: id}).Kind)
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.requests where status = 'received'"))
}
