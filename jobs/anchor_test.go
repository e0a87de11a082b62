package jobs

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/db"
	"pgcustody/jobs/ledger"
)

const ledgerOrigin = "example.com/custody"

// ledgerBench is a bench with a signer.
type ledgerBench struct {
	*bench
	registry *prometheus.Registry
	super    *pgx.Conn
}

func newLedgerBench(t *testing.T) *ledgerBench {
	t.Helper()
	b := &ledgerBench{bench: newLockedBench(t), registry: prometheus.NewRegistry()}
	signer, err := ledger.InitSigner(filepath.Join(t.TempDir(), "signer"), ledgerOrigin, time.Now().Add(-time.Minute))
	require.NoError(t, err)
	t.Cleanup(signer.Close)
	b.deps.Signer = signer
	b.deps.Metrics = NewMetrics(b.registry, b.deps.Pool)
	b.super = b.database.Conn(t, stack.Superuser)
	return b
}

// events appends n events of the tenant, a transaction each, and returns their ids.
func (b *ledgerBench) events(n int) (ids []uuid.UUID) {
	b.Helper()
	for range n {
		b.context(b.app, tenant, func(tx pgx.Tx) error {
			var id uuid.UUID
			err := tx.QueryRow(b.Context(), "select custody.record_audit_event('phi.access', 'conversations', 'c-1', 'success')").Scan(&id)
			ids = append(ids, id)
			return err
		})
	}
	return ids
}

// sealed seals until no event is left, whatever other tests' transactions hold the
// horizon back.
func (b *ledgerBench) sealed() {
	b.Helper()
	require.Eventually(b, func() bool {
		_, err := Seal(b.Context(), b.deps)
		require.NoError(b, err)
		return b.unsealed() == 0
	}, 5*time.Minute, 10*time.Millisecond)
}

func (b *ledgerBench) unsealed() (n int64) {
	b.Helper()
	b.context(b.deps.Pool, SystemTenant, func(tx pgx.Tx) error {
		status, err := db.New().SealingStatus(b.Context(), tx)
		n = status.UnsealedEvents
		return err
	})
	return n
}

// metric is what /metrics tells of a gauge or a counter, of those with these values of
// labels.
func (b *ledgerBench) metric(name string, labels ...string) (value float64) {
	b.Helper()
	families, err := b.registry.Gather()
	require.NoError(b, err)
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			var values []string
			for _, pair := range metric.GetLabel() {
				values = append(values, pair.GetValue())
			}
			if slices.Equal(values, labels) {
				return metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
			}
		}
	}
	require.FailNow(b, "there is no metric "+name)
	return 0
}

func (b *ledgerBench) anchor() ledger.Result {
	b.Helper()
	result, err := NewAnchor(b.deps).Run(b.Context())
	require.NoError(b, err)
	return result
}

// proof makes the file of a proof that an event is in the ledger.
func (b *ledgerBench) proof(id uuid.UUID) ledger.InclusionProof {
	b.Helper()
	var proof ledger.InclusionProof
	b.context(b.deps.Pool, tenant, func(tx pgx.Tx) (err error) {
		proof, err = ProveInclusion(b.Context(), tx, tenant, id, nil)
		return err
	})
	return proof
}

// What is in the bucket is a log whose proofs come from SQL and are accepted offline.
func TestAnchorJob(t *testing.T) {
	b := newLedgerBench(t)
	keys := b.deps.Signer.VerifierKeys()
	var all []uuid.UUID
	var sizes []int64
	for round, n := range []int{3, 270, 40} {
		all = append(all, b.events(n)...)
		b.sealed()
		require.Equal(t, river.EventKindJobCompleted, b.work(AnchorArgs{}).Kind)
		newest, _ := b.get(ledger.NewestKey(ledgerOrigin))
		c, err := ledger.Open(newest, ledgerOrigin, keys)
		require.NoError(t, err)
		require.EqualValues(t, round+1, c.Number)
		require.EqualValues(t, b.number(SystemTenant, "select count(*) from custody.audit_entries"), c.Size)
		numbered, info := b.get(ledger.CheckpointKey(ledgerOrigin, c.Number))
		require.Equal(t, newest, numbered)
		require.True(t, info.LockedUntil(time.Now().AddDate(7, 0, -1)))
		require.Nil(t, c.WaitingSince)
		sizes = append(sizes, c.Size)
		require.EqualValues(t, c.Number, b.metric("pgcustody_ledger_checkpoint_number"))
		require.EqualValues(t, c.Size, b.metric("pgcustody_ledger_anchored_events"))

		for _, id := range all {
			proof, err := ledger.ParseInclusion(b.proof(id).Marshal())
			require.NoError(t, err)
			_, err = proof.Check(ledgerOrigin, keys, nil)
			require.NoError(t, err)
			require.Contains(t, string(proof.Entry), id.String())
		}
		for _, old := range sizes {
			var proof ledger.ConsistencyProof
			b.context(b.deps.Pool, tenant, func(tx pgx.Tx) (err error) {
				proof, err = ProveConsistency(b.Context(), tx, old, c.Size)
				return err
			})
			proof, err := ledger.ParseConsistency(proof.Marshal())
			require.NoError(t, err)
			_, _, err = proof.Check(ledgerOrigin, keys)
			require.NoError(t, err)
		}
	}
	// Neither sealing nor anchoring is an event, or a run on record.
	before := b.number(SystemTenant, "select count(*) from custody.audit_entries")
	require.Equal(t, river.EventKindJobCompleted, b.work(AnchorArgs{}).Kind)
	b.sealed()
	require.Equal(t, before, b.number(SystemTenant, "select count(*) from custody.audit_entries"))
	require.Zero(t, b.number(SystemTenant, "select count(*) from custody_data.job_runs where job in ('anchor', 'seal')"))
	require.EqualValues(t, 3, b.number(SystemTenant, "select max(number) from custody.ledger_checkpoints"))

	// No proof of what no checkpoint covers.
	late := b.events(1)[0]
	b.sealed()
	err := InContext(t.Context(), b.deps.Pool, b.deps.scope(tenant, "test"), func(tx pgx.Tx) error {
		_, err := ProveInclusion(t.Context(), tx, tenant, late, nil)
		return err
	})
	require.ErrorIs(t, db.FromPg(err), db.ErrNoCheckpoint)
}

// A ledger that does not go on from what is anchored is not signed: the first refusal
// is on record, and all are in the metrics.
func TestAnchorRefuses(t *testing.T) {
	b := newLedgerBench(t)
	b.events(300)
	b.sealed()
	anchored := b.anchor()
	b.events(10)
	b.sealed()
	// As a superuser who has all guards off and all hashes above right again.
	_, err := b.super.Exec(t.Context(), `
alter table custody_data.ledger_tiles disable trigger all;
update custody_data.ledger_tiles set hashes = overlay(hashes placing sha256('another') from 5 * 32 + 1) where level = 0 and tile_index = 0;
update custody_data.ledger_tiles u set hashes = (select custody_data.fold_hashes(t.hashes, 8) from custody_data.ledger_tiles t where t.level = 0 and t.tile_index = 0)
  where level = 1 and tile_index = 0`)
	require.NoError(t, err)
	worker := &AnchorWorker{Deps: b.deps}
	job := &river.Job[AnchorArgs]{JobRow: &rivertype.JobRow{ID: 1, Attempt: 1, Kind: "anchor", Queue: QueueLedger}}
	for range 3 {
		err = worker.Work(t.Context(), job)
		require.ErrorIs(t, err, ledger.ErrFork)
		require.Equal(t, fmt.Sprintf("anchor: the log has forked: it agrees with the %d anchored leaves only on the first 5", anchored.Size), err.Error())
	}
	require.EqualValues(t, 1, b.number(SystemTenant, "select count(*) from custody_data.job_runs where job = 'anchor' and status = 'failed'"))
	require.EqualValues(t, 1, b.metric("pgcustody_ledger_anchor_refused", "fork"))
	require.Zero(t, b.metric("pgcustody_ledger_anchor_refused", "behind"))
	require.EqualValues(t, 1, b.metric("pgcustody_ledger_checkpoint_number"))
}

// snapshot copies the database as it is now, as a file system's snapshot would: with
// its incarnation and all. The copy is a bench of its own on the same bucket and signer.
func (b *ledgerBench) snapshot() *ledgerBench {
	b.Helper()
	name := randomName("snapshot")
	name = strings.ReplaceAll(name, "-", "_")
	require.NoError(b, b.super.Close(b.Context()))
	cluster := b.database.Stack
	require.Eventually(b, func() bool { // until no session is left
		b.app.Reset()
		b.deps.Pool.Reset()
		return cluster.CreateDatabase(b.Context(), name, b.database.Name) == nil
	}, 30*time.Second, 100*time.Millisecond)
	b.super = b.database.Conn(b.T, stack.Superuser)
	b.Cleanup(func() { require.NoError(b, cluster.DropDatabase(context.Background(), name)) })
	d := &stacktest.Database{Name: name, Stack: cluster, URLs: map[string]string{}}
	for login := range b.database.URLs {
		d.URLs[login] = cluster.URL(login, name)
	}
	copied := &ledgerBench{bench: &bench{T: b.T, database: d, app: d.Pool(b.T, "custody_app"), deps: b.deps, reports: b.reports},
		registry: prometheus.NewRegistry(), super: d.Conn(b.T, stack.Superuser)}
	copied.deps.Pool = d.Pool(b.T, "custody_runner")
	copied.deps.Metrics = NewMetrics(copied.registry, copied.deps.Pool)
	return copied
}

// proved makes and checks a proof for each event.
func (b *ledgerBench) proved(ids []uuid.UUID) {
	b.Helper()
	for _, id := range ids {
		proof := b.proof(id)
		_, err := proof.Check(ledgerOrigin, b.deps.Signer.VerifierKeys(), nil)
		require.NoError(b, err)
		require.Contains(b, string(proof.Entry), id.String())
	}
}

// A database that was set back goes on with the log of what it was, and so does the
// one that was left behind by that, each when it may.
func TestSetBackDatabaseGoesOn(t *testing.T) {
	b := newLedgerBench(t)
	common := b.events(300)
	b.sealed()
	first := b.anchor()
	old := b.snapshot()
	lost := b.events(260)
	b.sealed()
	second := b.anchor()

	// Behind, and then beside what is anchored.
	_, err := NewAnchor(old.deps).Run(t.Context())
	require.ErrorIs(t, err, ledger.ErrBehind)
	require.ErrorContains(t, err, fmt.Sprintf("set back to %d of %d anchored leaves", first.Size, second.Size))
	others := old.events(100)
	old.sealed()
	_, err = NewAnchor(old.deps).Run(t.Context())
	require.ErrorIs(t, err, ledger.ErrFork)

	_, _, err = NewAnchor(old.deps).Adopt(t.Context())
	require.NoError(t, err)
	taken := old.anchor()
	require.Equal(t, first.Size, taken.TakenOver.Prefix)
	require.Equal(t, second.Size-first.Size, taken.TakenOver.Leaves)
	require.EqualValues(t, 3, taken.Number)
	old.sealed()
	require.EqualValues(t, 4, old.anchor().Number) // that it was taken over is an event
	old.proved(common)
	old.proved(others)
	require.EqualValues(t, 1, old.number(SystemTenant, "select count(*) from custody.audit_entries e where e.entry like '%ledger.take_over%'"))
	// What is lost is known to be.
	require.Equal(t, first.Size, old.number(SystemTenant, "select first_leaf from custody_data.ledger_stretches where kind = 'lost'"))
	require.Zero(t, old.number(SystemTenant, "select count(*) from custody.verify_ledger()"))

	// The database that had them waits for its turn, and has them again.
	b.events(10)
	b.sealed()
	_, err = NewAnchor(b.deps).Run(t.Context())
	require.ErrorIs(t, err, ledger.ErrLease)
	b.deps.Config.Anchor.Lease = time.Nanosecond
	require.Eventually(t, func() bool { // checkpoints are of whole seconds
		_, err = NewAnchor(b.deps).Run(t.Context())
		return !errors.Is(err, ledger.ErrLease)
	}, 5*time.Minute, 100*time.Millisecond)
	require.NoError(t, err)
	b.sealed()
	b.anchor()
	b.proved(common)
	b.proved(lost)
}

// A database that lives in another cluster, though the sealer has not noticed it yet,
// does not anchor as the one that it was.
func TestAnchorNoticesAnotherClusterFirst(t *testing.T) {
	b := newLedgerBench(t)
	b.events(5)
	b.sealed()
	b.anchor()
	_, err := b.super.Exec(t.Context(), "alter table custody_data.incarnations disable trigger all")
	require.NoError(t, err)
	_, err = b.super.Exec(t.Context(), "update custody_data.incarnations set system_identifier = 1")
	require.NoError(t, err)
	_, err = NewAnchor(b.deps).Run(t.Context())
	require.ErrorIs(t, err, ledger.ErrLease)
	require.ErrorContains(t, err, "this is cluster ")
	require.NotContains(t, err.Error(), "this is cluster 1 ")
}

// The bucket is lost: the log goes on in another, from what is on record.
func TestBucketLost(t *testing.T) {
	b := newLedgerBench(t)
	ids := b.events(10)
	b.sealed()
	b.anchor()
	ids = append(ids, b.events(280)...)
	b.sealed()
	second := b.anchor()
	b.deps.Store = newStore(t)
	_, err := NewAnchor(b.deps).Run(t.Context())
	require.ErrorIs(t, err, ledger.ErrAltered)
	newest, _, err := NewAnchor(b.deps).Adopt(t.Context())
	require.NoError(t, err)
	require.Equal(t, second.Root, newest.Root)
	require.False(t, b.anchor().Anchored)
	ids = append(ids, b.events(1)...)
	b.sealed()
	require.EqualValues(t, 3, b.anchor().Number)
	b.proved(ids)
	content, _ := b.get(ledger.CheckpointKey(ledgerOrigin, 2))
	_, err = ledger.Open(content, ledgerOrigin, b.deps.Signer.VerifierKeys())
	require.NoError(t, err)
}
