package jobs

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
)

// newWatched makes a bench with a planted person, whom readCanary reads.
func newWatched(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	b.context(b.database.Pool(t, "custody_audit"), tenant, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.plant_canary('mata-hari')")
		return err
	})
	b.exec("select custody.record_audit_event('account.login', 'account', 'nosy', p_subject_user_id => 'nosy')")
	_, err := b.database.Conn(t, stack.Superuser).Exec(t.Context(), `
		select custody_data.ensure_access_partitions(now(), now());
		update custody_data.detection_rules set enabled = rule = 'canary'`)
	require.NoError(t, err)
	return b
}

// readCanary is what the shipper writes when somebody has read the planted person.
func (b *bench) readCanary() {
	b.Helper()
	_, err := b.database.Conn(b.T, stack.Superuser).Exec(b.Context(), `
		insert into custody_data.access_events (tenant_id, recorded_at, batch, line, occurred_at, kind, class, object_name, login, actor_id, identity_id, session_id)
		select c.tenant_id, clock_timestamp(), 1, 1, now(), 'read', 'READ', 'custody_data.user_profiles', 'custody_app',
		  (select i.identity_id from custody_data.identities i where i.tenant_id = c.tenant_id and i.user_id = 'nosy'), c.identity_id, 'x.y'
		from custody_data.canaries c`)
	require.NoError(b, err)
}

func TestAlertIsOpenedSignedAndRetried(t *testing.T) {
	b := newWatched(t)
	receiver := newHolder(t, answer{status: http.StatusServiceUnavailable}, answer{status: http.StatusFound}, answer{status: http.StatusOK})
	b.deps.Config.Detect.Endpoint = receiver.URL + "/alerts"
	listener := b.database.Conn(t, stack.Superuser)
	_, err := listener.Exec(t.Context(), "listen pgcustody_alerts")
	require.NoError(t, err)

	b.readCanary()
	b.until("alert", Schedule{Detect: time.Hour})

	note, err := listener.WaitForNotification(t.Context())
	require.NoError(t, err)
	var told struct {
		AlertID  uuid.UUID `json:"alert_id"`
		Severity string    `json:"severity"`
	}
	decoder := json.NewDecoder(stringReader(note.Payload))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&told), "a notification has id and severity alone")
	require.Equal(t, "critical", told.Severity)

	deliveries := receiver.deliveries()
	require.Len(t, deliveries, 3)
	for _, d := range deliveries {
		require.Equal(t, Sign(b.deps.Config.Notify.Key, d.header.Get(TimestampHeader), d.body), d.header.Get(SignatureHeader))
		require.NotEqual(t, Sign(b.deps.Config.Notify.Key, "0", d.body), d.header.Get(SignatureHeader), "the time is signed too")
		require.Equal(t, told.AlertID.String(), d.header.Get(AlertHeader), "a retry is the same alert")
		var message AlertMessage
		require.NoError(t, json.Unmarshal(d.body, &message))
		require.Equal(t, []any{1, "alert", told.AlertID, tenant, "canary", "critical", "open", int64(1), int64(1)},
			[]any{message.Version, message.Type, message.AlertID, message.Tenant, message.Rule, message.Severity, message.State, message.Count, message.Events})
		require.NotContains(t, string(d.body), "nosy")
	}
	require.EqualValues(t, 1, b.number(SystemTenant, "select count(*) from custody_data.alerts where sent_at is not null and attempts = 3 and last_status = 'sent'"))
	require.EqualValues(t, 2, b.number(SystemTenant, "select count(*) from custody_data.job_runs where job = 'alert' and status = 'failed' and error ~ '^send alert: status (503|302)$'"))
	require.EqualValues(t, 1, b.count(b.lastRun(SystemTenant, "detect"), "opened"))

	// What is found again is neither opened nor sent again.
	require.Equal(t, river.EventKindJobCompleted, b.work(DetectArgs{}).Kind)
	b.readCanary()
	require.Equal(t, river.EventKindJobCompleted, b.work(DetectArgs{}).Kind)
	require.EqualValues(t, 1, b.number(SystemTenant, "select count(*) from custody_data.alerts where count = 2"))
	due, err := DueAlerts(t.Context(), b.deps)
	require.NoError(t, err)
	require.Empty(t, due)
	require.EqualValues(t, 1, b.number(SystemTenant, "select count(*) from custody_data.job_runs where job = 'detect'"), "a run that opens nothing is not on record")
	b.silent("nosy")
}

func TestAlertsWaitForTheWebhook(t *testing.T) {
	b := newWatched(t)
	b.readCanary()
	require.Equal(t, river.EventKindJobCompleted, b.work(DetectArgs{}).Kind)
	due, err := DueAlerts(t.Context(), b.deps)
	require.NoError(t, err)
	require.Empty(t, due, "without a webhook nothing is sent")
	b.deps.Config.Detect.Endpoint = "http://alerts.example.org/"
	due, err = DueAlerts(t.Context(), b.deps)
	require.NoError(t, err)
	require.Len(t, due, 1)

	client := b.client(b.deps, Schedule{})
	events, unsubscribe := client.Subscribe(river.EventKindJobSnoozed)
	defer unsubscribe()
	inserted, err := client.Insert(t.Context(), due[0], nil)
	require.NoError(t, err)
	b.start(client)
	b.await(events, inserted.Job.ID) // to an endpoint in the clear it is not sent
	require.EqualValues(t, 1, b.number(SystemTenant, "select count(*) from custody_data.alerts where attempts = 0"))

	// Metrics.
	registry := prometheus.NewRegistry()
	NewMetrics(registry, b.deps.Pool)
	families, err := registry.Gather()
	require.NoError(t, err)
	open, series, detected := 0.0, 0, 0
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			labels := map[string]string{}
			for _, label := range metric.GetLabel() {
				labels[label.GetName()] = label.GetValue()
			}
			switch family.GetName() {
			case "pgcustody_alerts":
				series++
				open += metric.GetGauge().GetValue()
				if metric.GetGauge().GetValue() > 0 {
					require.Equal(t, map[string]string{"rule": "canary", "severity": "critical", "state": "open"}, labels)
				}
			case "pgcustody_detected_timestamp_seconds":
				detected++
			}
		}
	}
	require.EqualValues(t, 1, open)
	require.EqualValues(t, 2*b.number(SystemTenant, "select count(*) from custody.detection_rules"), series, "rules without an alert have a zero")
	require.Equal(t, 1, detected)
}

func TestDetectionThatFailsIsOnRecord(t *testing.T) {
	b := newWatched(t)
	_, err := b.database.Conn(t, stack.Superuser).Exec(t.Context(), "alter function custody_data.detect_canary(custody_data.detection_rules, timestamptz, timestamptz, custody_data.detection_input) rename to detect_nothing")
	require.NoError(t, err)
	require.Equal(t, river.EventKindJobFailed, b.work(DetectArgs{}).Kind)
	require.EqualValues(t, 1, b.number(SystemTenant, "select count(*) from custody_data.job_runs where job = 'detect' and status = 'failed'"))
	require.EqualValues(t, 0, b.number(SystemTenant, "select count(*) from custody_data.detection_heads"), "what failed was not looked at")
}
