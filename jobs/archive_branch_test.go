package jobs

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"pgcustody/jobs/segment"
	"pgcustody/jobs/store"
)

// An object on no record is right only between what a backup knows of and its restore,
// and only under a name that the restored database does not give.
func TestWhatARestoreLeftBehind(t *testing.T) {
	restored := time.Date(2026, 3, 9, 12, 0, 0, 0, time.UTC)
	in := timeline{Branch: "0a1b2c3d", RecordedUntil: restored.Add(-24 * time.Hour), OpenedAt: restored}
	name := segment.NewName(restored.AddDate(0, 0, -1), 1)
	own, elder := name, name
	own.Branch, elder.Branch = in.Branch, "11111111"
	between := restored.Add(-time.Hour)
	for _, c := range []struct {
		what string
		in   timeline
		key  string
		at   time.Time
		left bool
	}{
		{"between backup and restore", in, name.ObjectKey(), between, true},
		{"its manifest", in, name.ManifestKey(), between, true},
		{"of a database that was itself restored", in, elder.ObjectKey(), between, true},
		{"of this one", in, own.ObjectKey(), between, false},
		{"older than the last that is on record", in, name.ObjectKey(), restored.Add(-48 * time.Hour), false},
		{"after the restore", in, name.ObjectKey(), restored.Add(time.Hour), false},
		{"no segment", in, segment.Prefix + "x", between, false},
		{"never restored", timeline{OpenedAt: restored}, name.ObjectKey(), between, false},
	} {
		require.Equal(t, c.left, c.in.leftBehind(store.Info{Key: c.key, Modified: c.at}), c.what)
	}
}
