package verify

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// What was swept before the first checkpoint bounds nothing; what was sealed does.
func TestDating(t *testing.T) {
	life := uuid.New()
	now := time.Now()
	at := func(when time.Time) *row {
		var event row
		event[colRecordedAt] = binary.BigEndian.AppendUint64(nil, uint64(micros2000(when))) //nolint:gosec // after 2000
		return &event
	}
	leafOf := func(index int64, kind string, xid uint64) *found {
		f := &found{stretch: &stretch{kind: kind, incarnation: life}}
		f.index, f.key.xid = index, xid
		return f
	}
	for _, first := range []string{"swept", "sealed"} {
		c := &check{
			report:      &Report{Counts: map[Kind]int64{}},
			checkpoints: []checkpoint{{number: 1, size: 1, time: now.Unix(), next: 10, incarnation: life}},
		}
		date := c.dating()
		date(at(now.Add(-time.Hour)), leafOf(0, first, 5))
		date(at(now), leafOf(1, "sealed", 11))
		require.Empty(t, c.report.Findings, first)
		date(at(now.Add(-2*time.Hour)), leafOf(2, "sealed", 12))
		if first == "sealed" {
			require.Len(t, c.report.Findings, 1, "recorded before the checkpoint, by a transaction that had not begun")
			require.Equal(t, Backdated, c.report.Findings[0].Kind)
		}
	}
}
