package jobs

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// Each run's record says what it did, how long its parts took and what the archive
// holds after it; metrics say the latter at any time, and add up the former alone.
func TestArchiveReport(t *testing.T) {
	b := &ledgerBench{registry: prometheus.NewRegistry()}
	a := newArchiveBench(t)
	b.bench = a.bench
	b.deps.Metrics = NewMetrics(b.registry, b.deps.Pool)

	a.events(tenant, a.day(1), 300)
	a.events(tenant, a.day(2), 200)
	a.events(tenant, a.day(200), 1)
	require.Zero(t, b.metric("pgcustody_archive_segments", "stored"))
	a.settle()
	require.EqualValues(t, a.day(200).Unix(), b.metric("pgcustody_archive_oldest_unarchived_timestamp_seconds"), "what is not sealed counts too")
	_, err := Seal(t.Context(), b.deps)
	require.NoError(t, err)
	require.EqualValues(t, a.day(200).Unix(), b.metric("pgcustody_archive_oldest_unarchived_timestamp_seconds"))

	first := a.run()
	require.EqualValues(t, 3, first.Counts["segments"])
	require.EqualValues(t, 3, first.Counts["total_segments"])
	require.EqualValues(t, 6, first.Counts["total_objects"])
	require.EqualValues(t, 501, first.Counts["total_events"])
	require.Equal(t, first.Counts["plain_bytes"], first.Counts["total_plain_bytes"])
	require.Greater(t, first.Counts["total_plain_bytes"], first.Counts["total_stored_bytes"])
	require.LessOrEqual(t, first.Counts["total_stored_bytes"], first.Bytes, "of which the record has the manifests too")
	require.InDelta(t, 100*float64(first.Counts["total_stored_bytes"])/float64(first.Counts["total_plain_bytes"]), first.Counts["total_stored_percent"], 1)
	for _, part := range []string{"archive", "hold", "expire", "index", "remove", "drop", "totals"} {
		require.Contains(t, first.Counts, part+"_ms")
	}
	require.LessOrEqual(t, first.Counts["archive_ms"], first.EndedAt.Sub(first.StartedAt).Milliseconds())
	require.EqualValues(t, 1, first.Counts["total_months_unarchived"], "the old month stays until its archive is a week old")

	a.events(tenant, a.day(1), 50)
	second := a.run()
	require.EqualValues(t, 1, second.Counts["segments"])
	require.EqualValues(t, 50, second.Counts["events"])
	require.EqualValues(t, 4, second.Counts["total_segments"])
	require.EqualValues(t, 551, second.Counts["total_events"])

	require.EqualValues(t, 4, b.metric("pgcustody_archive_segments", "stored"))
	require.Zero(t, b.metric("pgcustody_archive_segments", "open"))
	require.Zero(t, b.metric("pgcustody_archive_segments", "held"))
	require.EqualValues(t, 8, b.metric("pgcustody_archive_objects"))
	require.EqualValues(t, 551, b.metric("pgcustody_archive_events"))
	require.EqualValues(t, second.Counts["total_stored_bytes"], b.metric("pgcustody_archive_bytes", "stored"))
	require.InDelta(t, float64(second.Counts["total_plain_bytes"])/float64(second.Counts["total_stored_bytes"]), b.metric("pgcustody_archive_compression_ratio"), 0.001)
	require.EqualValues(t, 1, b.metric("pgcustody_archive_months", "unarchived"))
	require.EqualValues(t, 551, b.metric("pgcustody_job_items_total", "events", "archive"))
	families, err := b.registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				require.NotContains(t, label.GetValue(), "total_", "what stands is not added up")
			}
		}
	}

	// Whoever appended today is what is left.
	b.events(1)
	a.settle()
	_, err = Seal(t.Context(), b.deps)
	require.NoError(t, err)
	require.WithinDuration(t, a.today, time.Unix(int64(b.metric("pgcustody_archive_oldest_unarchived_timestamp_seconds")), 0), 24*time.Hour)
}
