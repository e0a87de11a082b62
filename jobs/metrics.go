package jobs

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"pgcustody/db"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/verify"
)

// Metrics counts what every job did, for Prometheus. All methods do nothing on
// nil.
type Metrics struct {
	attempts *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	running  *prometheus.GaugeVec
	items    *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	success  *prometheus.GaugeVec
	keyAges  *prometheus.GaugeVec
	keysOld  *prometheus.GaugeVec

	archiveMonths *prometheus.GaugeVec

	anchorNumber, anchorSize, anchorTime prometheus.Gauge
	anchorRefused                        *prometheus.GaugeVec
	verifyStatus                         prometheus.Gauge
	verifyTime                           *prometheus.GaugeVec
	verifyFindings                       *prometheus.GaugeVec
	archiveFindings, archiveTime         prometheus.Gauge
}

// NewMetrics registers the metrics, and those that are read from the database
// when they are asked for.
func NewMetrics(registry prometheus.Registerer, pool *pgxpool.Pool) *Metrics {
	m := &Metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pgcustody_job_attempts_total", Help: "Attempts of jobs by how they ended: succeeded, failed, snoozed or interrupted.",
		}, []string{"job", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pgcustody_job_duration_seconds", Help: "How long attempts of jobs took.",
			Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30, 100, 300, 1000, 3600},
		}, []string{"job"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pgcustody_jobs_running", Help: "Jobs at work in this process.",
		}, []string{"job"}),
		items: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pgcustody_job_items_total", Help: "What the runs of jobs counted, as in their records.",
		}, []string{"job", "item"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pgcustody_job_bytes_total", Help: "Bytes that the runs of jobs read or wrote, as in their records.",
		}, []string{"job"}),
		success: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pgcustody_job_last_success_timestamp_seconds", Help: "When a job last succeeded in this process.",
		}, []string{"job"}),
		keyAges: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pgcustody_key_made_timestamp_seconds", Help: "When the oldest key of a kind was made that still seals: key_encryption, data or index.",
		}, []string{"tenant", "kind"}),
		keysOld: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pgcustody_keys_overdue", Help: "Keys that seal and are older than the policy key_age.",
		}, []string{"tenant", "kind"}),
		archiveMonths: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pgcustody_archive_months", Help: "Months of the trail in Postgres when the archive last ran in this process, by state: hot, due, or what keeps them (unarchived, recent, held, mismatch, foreign).",
		}, []string{"state"}),
		anchorNumber: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pgcustody_ledger_checkpoint_number", Help: "Number of the newest checkpoint that is anchored.",
		}),
		anchorSize: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pgcustody_ledger_anchored_events", Help: "Events that the newest anchored checkpoint covers.",
		}),
		anchorTime: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pgcustody_ledger_anchor_timestamp_seconds", Help: "Time of the newest anchored checkpoint.",
		}),
		verifyStatus: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pgcustody_ledger_verify_status", Help: "How the last verification ended: 0 intact, 1 altered, 2 could not check, 3 set back.",
		}),
		verifyTime: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pgcustody_ledger_verified_timestamp_seconds", Help: "When the ledger was last found intact: all of it (full), or what came since (new).",
		}, []string{"scope"}),
		verifyFindings: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pgcustody_ledger_findings", Help: "What the last verification found, by kind.",
		}, []string{"kind"}),
		archiveFindings: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pgcustody_archive_findings", Help: "What the last look at a sample of the archive found.",
		}),
		archiveTime: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pgcustody_archive_verified_timestamp_seconds", Help: "When a sample of the archive was last found whole.",
		}),
		anchorRefused: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pgcustody_ledger_anchor_refused", Help: "1 while this process refuses to anchor for that reason: fork, behind, lease, altered, unsigned, state or clock.",
		}, []string{"reason"}),
	}
	registry.MustRegister(m.attempts, m.seconds, m.running, m.items, m.bytes, m.success, m.keyAges, m.keysOld,
		m.anchorNumber, m.anchorSize, m.anchorTime, m.anchorRefused, m.verifyStatus, m.verifyTime, m.verifyFindings, m.archiveFindings, m.archiveTime,
		&queueCollector{pool: pool}, &sealingCollector{pool: pool},
		m.archiveMonths, &archiveCollector{pool: pool}, &alertCollector{pool: pool})
	return m
}

// observe takes over what a run's record says.
func (m *Metrics) observe(r Report) {
	if m == nil {
		return
	}
	for item, n := range r.Counts {
		if n > 0 && !strings.HasPrefix(item, totalPrefix) {
			m.items.WithLabelValues(r.Job, item).Add(float64(n))
		}
	}
	m.bytes.WithLabelValues(r.Job).Add(float64(r.Bytes))
	if r.Status == "succeeded" {
		m.success.WithLabelValues(r.Job).Set(float64(r.EndedAt.Unix()))
	}
}

// months takes over in which state the months of the trail are.
func (m *Metrics) months(states map[string]int) {
	if m == nil {
		return
	}
	m.archiveMonths.Reset()
	for state, n := range states {
		m.archiveMonths.WithLabelValues(state).Set(float64(n))
	}
}

// keyAge takes over what a look after keys found.
func (m *Metrics) keyAge(tenant string, age KeyAge) {
	if m == nil {
		return
	}
	if age.Oldest != nil {
		m.keyAges.WithLabelValues(tenant, age.Kind).Set(float64(age.Oldest.Unix()))
	}
	m.keysOld.WithLabelValues(tenant, age.Kind).Set(float64(age.Overdue))
}

// verified takes over what a verification found.
func (m *Metrics) verified(report *verify.Report, full bool) {
	if m == nil {
		return
	}
	m.verifyStatus.Set(float64(report.Status))
	m.verifyFindings.Reset()
	for kind, n := range report.Counts {
		m.verifyFindings.WithLabelValues(string(kind)).Set(float64(n))
	}
	if report.Status == verify.StatusIntact {
		m.verifyTime.WithLabelValues("new").SetToCurrentTime()
		if full {
			m.verifyTime.WithLabelValues("full").SetToCurrentTime()
		}
	}
}

// archiveVerified takes over what a look at the archive found.
func (m *Metrics) archiveVerified(findings int, err error) {
	if m == nil {
		return
	}
	m.archiveFindings.Set(float64(findings))
	if findings == 0 && err == nil {
		m.archiveTime.SetToCurrentTime()
	}
}

// anchorRefusals are the reasons for which the anchor does not sign.
var anchorRefusals = map[error]string{
	ledger.ErrFork: "fork", ledger.ErrBehind: "behind", ledger.ErrLease: "lease", ledger.ErrAltered: "altered",
	ledger.ErrUnsigned: "unsigned", ledger.ErrState: "state", ledger.ErrClock: "clock",
}

// anchored takes over what a run of the anchor found.
func (m *Metrics) anchored(result ledger.Result, err error) {
	if m == nil {
		return
	}
	if result.Newest != nil {
		m.anchorNumber.Set(float64(result.Number))
		m.anchorSize.Set(float64(result.Size))
		m.anchorTime.Set(float64(result.Time.Unix()))
	}
	for kind, reason := range anchorRefusals {
		m.anchorRefused.WithLabelValues(reason).Set(float64(boolCount(errors.Is(err, kind))))
	}
}

// middleware measures every attempt of every kind.
func (m *Metrics) middleware() rivertype.Middleware {
	return river.WorkerMiddlewareFunc(func(ctx context.Context, job *rivertype.JobRow, next func(context.Context) error) (err error) {
		if m == nil {
			return next(ctx)
		}
		started, outcome := time.Now(), "failed" // what it stays when the job panics
		m.running.WithLabelValues(job.Kind).Inc()
		defer func() {
			m.running.WithLabelValues(job.Kind).Dec()
			m.seconds.WithLabelValues(job.Kind).Observe(time.Since(started).Seconds())
			m.attempts.WithLabelValues(job.Kind, outcome).Inc()
		}()
		err = next(ctx)
		var snooze *river.JobSnoozeError
		switch {
		case err == nil:
			outcome = "succeeded"
		case errors.As(err, &snooze):
			outcome = "snoozed"
		case errors.Is(err, context.Canceled):
			outcome = "interrupted"
		}
		return err
	})
}

// queueCollector reads the job queue and the pool when Prometheus asks.
type queueCollector struct{ pool *pgxpool.Pool }

var (
	queuedDesc = prometheus.NewDesc("pgcustody_jobs_queued", "Jobs in the queue that are not finished, by state.", []string{"job", "state"}, nil)
	oldestDesc = prometheus.NewDesc("pgcustody_jobs_oldest_seconds", "How long the oldest job that may be worked has waited.", nil, nil)
	poolDesc   = prometheus.NewDesc("pgcustody_database_connections", "Connections of this process's pool.", []string{"state"}, nil)
)

func (c *queueCollector) Describe(out chan<- *prometheus.Desc) {
	out <- queuedDesc
	out <- oldestDesc
	out <- poolDesc
}

// scrapeTimeout bounds what a scrape may ask of the database.
const scrapeTimeout = 3 * time.Second

func (c *queueCollector) Collect(out chan<- prometheus.Metric) {
	stat := c.pool.Stat()
	for state, n := range map[string]int32{"idle": stat.IdleConns(), "used": stat.AcquiredConns(), "limit": stat.MaxConns()} {
		out <- prometheus.MustNewConstMetric(poolDesc, prometheus.GaugeValue, float64(n), state)
	}

	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	// River's tables are not sqlc's: their migrations are River's own.
	rows, err := c.pool.Query(ctx, `
select kind, state::text, count(*)::float8, coalesce(extract(epoch from now() - min(scheduled_at) filter (where state = 'available')), 0)::float8
from river.river_job
where state in ('available', 'pending', 'retryable', 'running', 'scheduled')
group by kind, state`)
	if err != nil {
		out <- prometheus.NewInvalidMetric(queuedDesc, err)
		return
	}
	defer rows.Close()
	oldest := 0.0
	for rows.Next() {
		var kind, state string
		var n, waited float64
		if err := rows.Scan(&kind, &state, &n, &waited); err != nil {
			out <- prometheus.NewInvalidMetric(queuedDesc, err)
			return
		}
		oldest = max(oldest, waited)
		out <- prometheus.MustNewConstMetric(queuedDesc, prometheus.GaugeValue, n, kind, state)
	}
	if err := rows.Err(); err != nil {
		out <- prometheus.NewInvalidMetric(queuedDesc, err)
		return
	}
	out <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, oldest)
}

// sealingCollector asks how far sealing lags when Prometheus does.
type sealingCollector struct{ pool *pgxpool.Pool }

var (
	unsealedDesc = prometheus.NewDesc("pgcustody_ledger_unsealed_events", "Committed events that have no leaf in the ledger yet.", nil, nil)
	lagDesc      = prometheus.NewDesc("pgcustody_ledger_unsealed_age_seconds", "Age of the oldest of them.", nil, nil)
	holderDesc   = prometheus.NewDesc("pgcustody_ledger_horizon_holder_timestamp_seconds", "When the transaction began that keeps events from being sealed; only while one does for longer than a minute.", []string{"kind", "holder", "database"}, nil)
)

func (c *sealingCollector) Describe(out chan<- *prometheus.Desc) {
	out <- unsealedDesc
	out <- lagDesc
	out <- holderDesc
}

func (c *sealingCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	var status db.SealingStatusRow
	err := InContext(ctx, c.pool, Scope{Tenant: SystemTenant, Actor: "pgcustody", Purpose: "metrics"}, func(tx pgx.Tx) (err error) {
		status, err = db.New().SealingStatus(ctx, tx)
		return err
	})
	if err != nil {
		out <- prometheus.NewInvalidMetric(unsealedDesc, err)
		return
	}
	out <- prometheus.MustNewConstMetric(unsealedDesc, prometheus.GaugeValue, float64(status.UnsealedEvents))
	out <- prometheus.MustNewConstMetric(lagDesc, prometheus.GaugeValue, status.AgeSeconds)
	if status.HolderSince != nil && status.AgeSeconds > time.Minute.Seconds() {
		out <- prometheus.MustNewConstMetric(holderDesc, prometheus.GaugeValue, float64(status.HolderSince.Unix()),
			status.HolderKind, status.Holder, status.HolderDatabase)
	}
}

// alertCollector counts alerts when Prometheus asks.
type alertCollector struct{ pool *pgxpool.Pool }

var (
	alertsDesc   = prometheus.NewDesc("pgcustody_alerts", "Alerts that are not closed, by rule, severity of the rule and state: open or acknowledged.", []string{"rule", "severity", "state"}, nil)
	detectedDesc = prometheus.NewDesc("pgcustody_detected_timestamp_seconds", "Events that were shipped before have been looked at by the rules of detection.", nil, nil)
)

func (c *alertCollector) Describe(out chan<- *prometheus.Desc) {
	out <- alertsDesc
	out <- detectedDesc
}

func (c *alertCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	var counts []db.CountAlertsRow
	var detected *time.Time
	err := InContext(ctx, c.pool, Scope{Tenant: SystemTenant, Actor: "pgcustody", Purpose: "metrics"}, func(tx pgx.Tx) (err error) {
		if detected, err = db.New().DetectedTo(ctx, tx); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		counts, err = db.New().CountAlerts(ctx, tx)
		return err
	})
	if err != nil {
		out <- prometheus.NewInvalidMetric(alertsDesc, err)
		return
	}
	for _, n := range counts {
		out <- prometheus.MustNewConstMetric(alertsDesc, prometheus.GaugeValue, float64(n.Open), n.Rule, n.Severity, "open")
		out <- prometheus.MustNewConstMetric(alertsDesc, prometheus.GaugeValue, float64(n.Acknowledged), n.Rule, n.Severity, "acknowledged")
	}
	if detected != nil {
		out <- prometheus.MustNewConstMetric(detectedDesc, prometheus.GaugeValue, float64(detected.Unix()))
	}
}
