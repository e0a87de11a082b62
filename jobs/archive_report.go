package jobs

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"pgcustody/db"
)

// timed does a part of a run and puts into its record how long it took.
func timed(ctx context.Context, run *Run, name string, part func(context.Context) error) error {
	started := time.Now()
	defer func() { run.Count(name+"_ms", time.Since(started).Milliseconds()) }()
	return part(ctx)
}

// totals puts into the run's record what the archive holds now, which is what it costs.
func (w *ArchiveWorker) totals(ctx context.Context, run *Run) error {
	var totals db.ArchiveTotalsRow
	err := InContext(ctx, w.Pool, w.archiveScope(), func(tx pgx.Tx) (err error) {
		totals, err = db.New().ArchiveTotals(ctx, tx)
		return err
	})
	if err != nil {
		return fail("add up the archive", err)
	}
	run.Total("segments", totals.Segments)
	run.Total("objects", totals.Objects)
	run.Total("events", totals.Events)
	run.Total("plain_bytes", totals.PlainBytes)
	run.Total("stored_bytes", totals.StoredBytes)
	if totals.PlainBytes > 0 {
		run.Total("stored_percent", (100*totals.StoredBytes+totals.PlainBytes-1)/totals.PlainBytes)
	}
	return nil
}

// kept says which months are past the hot period and still there, and why.
func (w *ArchiveWorker) kept(ctx context.Context, run *Run) error {
	var months []db.AuditMonthsRow
	err := InContext(ctx, w.Pool, w.archiveScope(), func(tx pgx.Tx) (err error) {
		months, err = db.New().AuditMonths(ctx, tx)
		return err
	})
	if err != nil {
		return fail("look at months", err)
	}
	states := map[string]int{}
	for _, month := range months {
		states[month.State]++
		if month.State == "hot" {
			continue
		}
		run.Total("months_"+month.State, int64(states[month.State]))
		w.Log.Info("month kept", "partition", month.PartitionName, "state", month.State, "events", month.Rows, "to_stay", month.RowsKept, "detail", month.Detail)
	}
	w.Metrics.months(states)
	return nil
}

// archiveCollector asks what the archive holds when Prometheus does.
type archiveCollector struct{ pool *pgxpool.Pool }

var (
	archivedSegmentsDesc = prometheus.NewDesc("pgcustody_archive_segments", "Segments of the archive: stored (on record, objects not deleted), open (not on record yet), held (under the store's legal hold) and expired (objects deleted).", []string{"state"}, nil)
	archivedObjectsDesc  = prometheus.NewDesc("pgcustody_archive_objects", "Objects of the stored segments, without versions that were superseded.", nil, nil)
	archivedEventsDesc   = prometheus.NewDesc("pgcustody_archive_events", "Events in the stored segments.", nil, nil)
	archivedBytesDesc    = prometheus.NewDesc("pgcustody_archive_bytes", "Bytes of the stored segments: plain (lines), compressed, and stored (encrypted).", []string{"form"}, nil)
	archivedRatioDesc    = prometheus.NewDesc("pgcustody_archive_compression_ratio", "Plain bytes by stored bytes.", nil, nil)
	unarchivedDesc       = prometheus.NewDesc("pgcustody_archive_oldest_unarchived_timestamp_seconds", "Beginning of the oldest day of which an event is in no segment on record; today's, as a rule.", nil, nil)
)

func (c *archiveCollector) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{archivedSegmentsDesc, archivedObjectsDesc, archivedEventsDesc, archivedBytesDesc, archivedRatioDesc, unarchivedDesc} {
		out <- desc
	}
}

func (c *archiveCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	var totals db.ArchiveTotalsRow
	scope := Scope{Tenant: SystemTenant, Actor: "pgcustody", Purpose: "metrics", Isolation: pgx.ReadCommitted}
	err := InContext(ctx, c.pool, scope, func(tx pgx.Tx) (err error) {
		totals, err = db.New().ArchiveTotals(ctx, tx)
		return err
	})
	if err != nil {
		out <- prometheus.NewInvalidMetric(archivedSegmentsDesc, err)
		return
	}
	gauge := func(desc *prometheus.Desc, value int64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	gauge(archivedSegmentsDesc, totals.Segments, "stored")
	gauge(archivedSegmentsDesc, totals.OpenSegments, "open")
	gauge(archivedSegmentsDesc, totals.HeldSegments, "held")
	gauge(archivedSegmentsDesc, totals.ExpiredSegments, "expired")
	gauge(archivedObjectsDesc, totals.Objects)
	gauge(archivedEventsDesc, totals.Events)
	gauge(archivedBytesDesc, totals.PlainBytes, "plain")
	gauge(archivedBytesDesc, totals.CompressedBytes, "compressed")
	gauge(archivedBytesDesc, totals.StoredBytes, "stored")
	if totals.StoredBytes > 0 {
		out <- prometheus.MustNewConstMetric(archivedRatioDesc, prometheus.GaugeValue, float64(totals.PlainBytes)/float64(totals.StoredBytes))
	}
	if day, err := time.Parse(time.DateOnly, totals.OldestUnarchivedDay); err == nil {
		gauge(unarchivedDesc, day.Unix())
	}
}
