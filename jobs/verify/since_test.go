package verify_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"pgcustody/jobs/verify"
)

// TestSince verifies what came since an earlier verification, and what was done to
// it: to what came before, only what the leaves tell is found.
func TestSince(t *testing.T) {
	t.Parallel()
	f := copyOf(t)
	f.ownLog()
	progress := f.verify().Progress
	require.NotNil(t, progress)
	since := func(o *verify.Options) { o.Since = progress }
	require.EqualValues(t, 757, progress.Size)

	report := f.verify(since)
	require.Equal(t, []string{}, told(report.Findings))
	require.EqualValues(t, 757, report.From)
	require.Zero(t, report.Events)
	require.EqualValues(t, 5, report.Unsealed)

	f.seal()
	f.anchor()
	report = f.verify(since)
	require.Equal(t, []string{}, told(report.Findings))
	require.EqualValues(t, 5, report.Events)
	require.Zero(t, report.Unsealed)
	require.Equal(t, progress.FullAt, report.Progress.FullAt)
	require.EqualValues(t, 762, report.Progress.Size)

	f.readEvents()
	late, early := f.events[760], f.at(hot)
	f.exec(update+"result = 'failure'"+thisRow, late.id, late.occurred)
	require.Equal(t, []string{row(verify.RowChanged, late, "")}, told(f.verify(since).Findings))
	f.exec("delete from custody_data.audit_logs"+thisRow, late.id, late.occurred)
	require.Equal(t, []string{row(verify.RowMissing, late, "")}, told(f.verify(since).Findings))
	f.exec(update+"result = 'failure'"+thisRow, early.id, early.occurred)
	require.Equal(t, []string{row(verify.RowMissing, late, "")}, told(f.verify(since).Findings), "rows of before are not read again")
	require.Equal(t, []string{row(verify.RowChanged, early, ""), row(verify.RowMissing, late, "")}, told(f.verify().Findings))

	leaves := f.leaves()
	leaves[early.leaf][0] ^= 1
	f.setLeaves(leaves, true)
	require.Contains(t, told(f.verify(since).Findings), "leaf_changed "+told(f.verify().Findings)[0][len("leaf_changed "):])
}
