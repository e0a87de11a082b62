package jobs

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/retrieve"
	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// newAnchoredArchive is an archive beside a signer.
func newAnchoredArchive(t *testing.T) (*archiveBench, *ledgerBench) {
	t.Helper()
	l := newLedgerBench(t)
	return &archiveBench{bench: l.bench, super: l.database.Pool(t, stack.Superuser), today: time.Now().UTC().Truncate(24 * time.Hour)}, l
}

// The weekly look: what is whole is counted, what is not fails the run and is in the
// metrics.
func TestASampleOfTheArchiveIsLookedAt(t *testing.T) {
	b, l := newAnchoredArchive(t)
	require.Equal(t, river.EventKindJobCompleted, b.work(ArchiveVerifyArgs{}).Kind, "there is nothing to be wrong")
	for ago := 2; ago <= 5; ago++ {
		b.events(tenant, b.day(ago), 10)
	}
	b.run()
	b.deps.Config.ArchiveVerify.Sample = 3
	require.Equal(t, river.EventKindJobCompleted, b.work(ArchiveVerifyArgs{}).Kind)
	reports := b.reports.of("archive_verify")
	report := reports[len(reports)-1]
	require.Equal(t, map[string]int64{"segments": 3, "events": 30, "findings": 0}, report.Counts)
	require.Positive(t, report.Bytes)
	require.Zero(t, l.metric("pgcustody_archive_findings"))
	looked := l.metric("pgcustody_archive_verified_timestamp_seconds")
	require.Positive(t, looked)

	// Frozen ones are said, and are no finding.
	whole := b.deps.Store
	b.deps.Store = frozen{whole}
	require.Equal(t, river.EventKindJobCompleted, b.work(ArchiveVerifyArgs{}).Kind)
	reports = b.reports.of("archive_verify")
	require.Equal(t, map[string]int64{"not_read": 3, "findings": 0}, reports[len(reports)-1].Counts)
	b.deps.Store = whole

	name := segment.NewName(b.day(2), 1)
	_, err := b.deps.Store.Put(t.Context(), name.ManifestKey(), strings.NewReader("{}"), store.PutOptions{})
	require.NoError(t, err)
	require.Equal(t, river.EventKindJobFailed, b.work(ArchiveVerifyArgs{}).Kind)
	require.Contains(t, *b.lastRun(SystemTenant, "archive_verify").Error, "verify archive: 1 findings, the first is "+name.ManifestKey())
	require.EqualValues(t, 1, l.metric("pgcustody_archive_findings"))

	b.deps.Store = nil
	require.Equal(t, river.EventKindJobFailed, b.work(ArchiveVerifyArgs{}).Kind)
}

// A manifest that says another root than its leaves have in the ledger is found without
// an identity.
func TestManifestsAreHeldAgainstTheLedger(t *testing.T) {
	b := newArchiveBench(t)
	b.events(tenant, b.day(2), 300)
	b.run()
	checks, err := VerifyArchive(t.Context(), b.deps, nil, 0, func(int, int) {})
	require.NoError(t, err)
	require.Len(t, checks, 1)
	require.Empty(t, checks[0].Finding)
	b.asSuper("alter table custody_data.ledger_tiles disable trigger all",
		`update custody_data.ledger_tiles t set hashes = set_byte(t.hashes, s.at, get_byte(t.hashes, s.at) # 1)
		from (select lower(leaves) / 256 as tile, (lower(leaves) % 256 * 32)::integer as at from custody_data.archive_segments) s where t.level = 0 and t.tile_index = s.tile`)
	checks, err = VerifyArchive(t.Context(), b.deps, nil, 0, func(int, int) {})
	require.NoError(t, err)
	require.Equal(t, "its root is not that of its leaves in the ledger", checks[0].Finding)
	require.Equal(t, segment.NewName(b.day(2), 1).ManifestKey(), checks[0].Object)
}

// Without a database, the newest signed checkpoint in the bucket is what lines are held
// against.
func TestRetrievalFromTheBucketAlone(t *testing.T) {
	b, l := newAnchoredArchive(t)
	// More than a tile, and not to its end.
	b.events(tenant, b.day(2), 700)
	b.run()
	l.sealed()
	anchored := l.anchor()
	wanted := b.archived()

	open := func() retrieve.Options {
		tree, err := ledger.OpenAnchored(t.Context(), b.deps.Store, ledgerOrigin, b.deps.Signer.VerifierKeys())
		require.NoError(t, err)
		require.Equal(t, anchored.Size, tree.Size)
		return retrieve.Options{Store: b.deps.Store, Catalog: retrieve.Objects{Store: b.deps.Store, Origin: ledgerOrigin, Keys: b.deps.Signer.VerifierKeys()}, Tree: retrieve.AnchoredTree{AnchoredTree: tree},
			Identities: identities(), Query: retrieve.Day(b.day(2))}
	}
	lines := map[string]bool{}
	result, err := retrieve.Run(t.Context(), open(), func(e *retrieve.Event) error {
		lines[string(e.Line)] = true
		return nil
	})
	require.NoError(t, err)
	require.EqualValues(t, 700, result.Rows)
	require.Len(t, lines, len(wanted))
	for _, line := range wanted {
		require.Contains(t, lines, line)
	}

	// A manifest that the index lists must be there, and be that one.
	hidden := open()
	hidden.Store = without{b.deps.Store, segment.NewName(b.day(2), 1).ManifestKey()}
	hidden.Catalog = retrieve.Objects{Store: hidden.Store, Origin: ledgerOrigin, Keys: b.deps.Signer.VerifierKeys()}
	_, err = retrieve.Run(t.Context(), hidden, func(*retrieve.Event) error { return nil })
	require.ErrorContains(t, err, "manifest is missing")
	_, err = b.deps.Store.Put(t.Context(), segment.NewName(b.day(2), 1).ManifestKey(), strings.NewReader("{}"), store.PutOptions{})
	require.NoError(t, err)
	result, err = retrieve.Run(t.Context(), open(), func(*retrieve.Event) error { return nil })
	require.NoError(t, err, "the version that was signed is read")
	require.EqualValues(t, 700, result.Rows)

	// A tile that was changed in the bucket does not give the root that was signed.
	key := ledger.TileKey(ledgerOrigin, 0, 1, ledger.TileWidth)
	_, err = b.deps.Store.Put(t.Context(), key, bytes.NewReader(make([]byte, ledger.TileWidth*ledger.HashSize)), store.PutOptions{})
	require.NoError(t, err)
	n := 0
	_, err = retrieve.Run(t.Context(), open(), func(*retrieve.Event) error { n++; return nil })
	require.ErrorIs(t, err, ledger.ErrAltered)
	require.Less(t, n, 257)

	_, err = ledger.OpenAnchored(t.Context(), b.deps.Store, "example.com/other", b.deps.Signer.VerifierKeys())
	require.ErrorContains(t, err, "there is no checkpoint of this origin")
}

// without is a store that has lost an object.
type without struct {
	store.Store
	key string
}

func (s without) Get(ctx context.Context, key, version string) (*store.Object, error) {
	if key == s.key {
		return nil, &store.Error{Op: "get", Object: key, Kind: store.ErrNotFound}
	}
	return s.Store.Get(ctx, key, version)
}

// frozen is a store whose events are in a class that must be thawed.
type frozen struct{ store.Store }

func (f frozen) Get(ctx context.Context, key, version string) (*store.Object, error) {
	if strings.HasSuffix(key, ".age") {
		return nil, &store.Error{Op: "get", Object: key, Kind: store.ErrFrozen}
	}
	return f.Store.Get(ctx, key, version)
}
