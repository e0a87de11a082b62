package jobs

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
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
	}, time.Minute, 10*time.Millisecond)
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
