package sql_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/jobs"
	anchoring "pgcustody/jobs/ledger"
	"pgcustody/jobs/store"
)

// Servers of one origin, really promoted and really restored, on one bucket with one
// signer: who anchors, who waits, and who asks first.
func TestAnchoringAfterPromotion(t *testing.T) {
	t.Parallel()
	const origin = "example.com/promoted"
	for name, value := range stacktest.Shared(t).Env() {
		if strings.HasPrefix(name, "AWS_") {
			require.NoError(t, os.Setenv(name, value)) //nolint:usetesting // for all tests, which run in parallel
		}
	}
	bucket, err := store.OpenURL(t.Context(), "s3://"+stacktest.Bucket(t))
	require.NoError(t, err)
	signer, err := anchoring.InitSigner(filepath.Join(t.TempDir(), "signer"), origin, time.Now().Add(-time.Minute))
	require.NoError(t, err)
	t.Cleanup(signer.Close)
	anchorOf := func(b *inLife, lease time.Duration) *anchoring.Anchor {
		sealAll(t, b.runner.Conn)
		d := &stacktest.Database{Name: b.Name, Stack: b.Stack, URLs: map[string]string{runner: b.Stack.URL(runner, b.Name)}}
		return jobs.NewAnchor(jobs.Deps{Pool: d.Pool(t, runner), Store: bucket, Signer: signer, Log: slog.New(slog.DiscardHandler), Actor: "pgcustody",
			Config: jobs.Config{Anchor: jobs.AnchorConfig{Lease: lease}}})
	}
	// after the lease: times on checkpoints are of whole seconds
	once := func(b *inLife) (result anchoring.Result) {
		t.Helper()
		a := anchorOf(b, time.Nanosecond)
		require.Eventually(t, func() bool {
			result, err = a.Run(t.Context())
			return !errors.Is(err, anchoring.ErrLease)
		}, time.Minute, 100*time.Millisecond)
		require.NoError(t, err)
		require.True(t, result.Anchored)
		return result
	}

	started := time.Now()
	took := func(what string) { t.Logf("%6.1f s: %s", time.Since(started).Seconds(), what) }
	primary := newCluster(t)
	migrate(t, primary, stack.Database)
	p := lifeIn(t, primary, stack.Database)
	p.runner.run(t, "system", `select custody.register_tenant('acme', 'Acme'), custody.ensure_audit_partitions(now() - interval '2 days', now() + interval '1 month')`)
	p.write(t, 300)
	require.EqualValues(t, 1, once(p).Number)
	base := baseBackup(t, primary)
	file := p.backup(t)

	took("the primary has anchored")
	clones := make([]*inLife, 2)
	for i := range clones {
		clones[i] = lifeIn(t, startCopy(t, primary, base, nil), stack.Database)
	}
	until := ask[string](t, p.bed, `select pg_current_wal_lsn()::text`)
	for i, b := range clones {
		require.Eventually(t, func() bool {
			return ask[bool](t, b.bed, `select pg_last_wal_replay_lsn() >= $1::pg_lsn`, until)
		}, time.Minute, 20*time.Millisecond)
		b.must(t, "select pg_promote()")
		b.write(t, 20+i)
	}

	took("promoted")

	// Who was promoted waits for the lease of who may still be there, and then goes on by itself.
	_, err = anchorOf(clones[0], 0).Run(t.Context())
	require.ErrorIs(t, err, anchoring.ErrLease)
	first := once(clones[0])
	require.EqualValues(t, 2, first.Number)
	require.Nil(t, first.TakenOver, "its tree has all that was anchored")

	// The other one has the same identifier and timeline. It does not write over what the first
	// anchored, nor does the old primary: each goes on only when somebody says so.
	for _, b := range []*inLife{clones[1], p} {
		b.write(t, 5)
		_, err = anchorOf(b, 0).Run(t.Context())
		require.Error(t, err)
		require.True(t, errors.Is(err, anchoring.ErrLease) || errors.Is(err, anchoring.ErrFork) || errors.Is(err, anchoring.ErrBehind), err)
	}
	_, _, err = anchorOf(clones[1], time.Nanosecond).Adopt(t.Context())
	require.NoError(t, err)
	second := once(clones[1])
	require.EqualValues(t, 3, second.Number)
	require.NotNil(t, second.TakenOver)
	require.Positive(t, second.TakenOver.Leaves)
	sealAll(t, clones[1].runner.Conn)
	requireLedger(t, clones[1].admin, 0, clones[1].lost(t))

	took("both have anchored")

	// A dump in another cluster, which has another identifier: only after signer adopt, whatever the lease.
	other := newCluster(t)
	migrate(t, other, stack.Database)
	require.NoError(t, other.CreateDatabase(t.Context(), "restored", ""))
	_, err = client(t, other, "pg_restore", "--exit-on-error", "--dbname="+other.SuperURL("restored"), file)
	require.NoError(t, err)
	migrate(t, other, "restored")
	restored := lifeIn(t, other, "restored")
	restored.write(t, 3)
	time.Sleep(1100 * time.Millisecond)
	_, err = anchorOf(restored, time.Nanosecond).Run(t.Context())
	require.ErrorIs(t, err, anchoring.ErrLease)
	require.ErrorContains(t, err, "signer adopt")
	_, _, err = anchorOf(restored, time.Nanosecond).Adopt(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 4, once(restored).Number)
}
