package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"pgcustody/db"
)

// AlertArgs asks for one alert to be sent to the webhook.
type AlertArgs struct {
	AlertID uuid.UUID `json:"alert_id"`
}

func (AlertArgs) Kind() string { return "alert" }

func (AlertArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueNotices, MaxAttempts: notifyAttempts, UniqueOpts: once()}
}

// AlertMessage is the body of an alert's webhook, version 1. It names nobody: who
// acted and what was read stays in the database, for those who may read it.
type AlertMessage struct {
	Version  int       `json:"version"`
	Type     string    `json:"type"` // alert
	AlertID  uuid.UUID `json:"alert_id"`
	Tenant   string    `json:"tenant"`
	Rule     string    `json:"rule"`
	Severity string    `json:"severity"`
	State    string    `json:"state"`
	OpenedAt time.Time `json:"opened_at"`
	FirstAt  time.Time `json:"first_at"`
	LastAt   time.Time `json:"last_at"`
	Count    int64     `json:"count"`
	Events   int64     `json:"events"`
}

// AlertHeader carries the alert_id: the same for each retry.
const AlertHeader = "Pgcustody-Alert"

// AlertWorker posts alerts to the webhook.
type AlertWorker struct {
	river.WorkerDefaults[AlertArgs]
	Deps
	webhook
}

// NewAlertWorker makes the worker.
func NewAlertWorker(d Deps) *AlertWorker { return &AlertWorker{Deps: d, webhook: newWebhook()} }

func (w *AlertWorker) Timeout(*river.Job[AlertArgs]) time.Duration {
	return w.Config.Notify.withDefaults().Timeout + time.Minute
}

// NextRetry waits as notices do.
func (w *AlertWorker) NextRetry(job *river.Job[AlertArgs]) time.Time {
	return w.Config.Notify.withDefaults().next(len(job.Errors))
}

func (w *AlertWorker) Work(ctx context.Context, job *river.Job[AlertArgs]) error {
	config, endpoint := w.Config.Notify.withDefaults(), w.Config.Detect.Endpoint
	switch {
	case endpoint == "":
		return later(job, misconfigured, &Failure{Step: "send alert", Code: "no webhook: set PGCUSTODY_ALERT_WEBHOOK"})
	case len(config.Key) == 0:
		return later(job, misconfigured, &Failure{Step: "send alert", Code: "no webhook key: set PGCUSTODY_WEBHOOK_KEY"})
	}
	if problem := checkEndpoint(endpoint); problem != "" {
		return later(job, misconfigured, &Failure{Step: "send alert", Code: problem})
	}
	return record(ctx, w.Deps, job, SystemTenant, func(ctx context.Context, run *Run) error {
		scope := w.scope(SystemTenant, "alert")
		var alert db.AlertToSendRow
		err := InContext(ctx, w.Pool, scope, func(tx pgx.Tx) (err error) {
			alert, err = db.New().AlertToSend(ctx, tx, job.Args.AlertID)
			return err
		})
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return &Failure{Step: "read alert", Code: "no such alert", Err: river.JobCancel(err)}
		case err != nil:
			return fail("read alert", err)
		case alert.SentAt != nil:
			run.Count("sent_before", 1)
			return nil
		}
		body, err := json.Marshal(AlertMessage{
			Version: 1, Type: "alert", AlertID: job.Args.AlertID, Tenant: alert.TenantID, Rule: alert.Rule, Severity: alert.Severity, State: alert.State,
			OpenedAt: alert.OpenedAt.UTC(), FirstAt: alert.FirstAt.UTC(), LastAt: alert.LastAt.UTC(), Count: alert.Count, Events: alert.Events,
		})
		if err != nil {
			return fail("write alert", err)
		}

		_, sendErr := w.deliver(ctx, config, endpoint, AlertHeader, job.Args.AlertID, body)
		status := "sent"
		if sendErr != nil && ctx.Err() == nil {
			// What the network said may name hosts, and is no failure of the database.
			sendErr = &Failure{Step: "send alert", Code: Code(sendErr)}
		}
		if sendErr != nil {
			status = Code(sendErr)
		}
		// What the receiver was told is recorded although the job is being stopped.
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
		defer cancel()
		if err := InContext(closing, w.Pool, scope, func(tx pgx.Tx) error {
			return db.New().MarkAlertSent(closing, tx, db.MarkAlertSentParams{AlertID: job.Args.AlertID, Status: status, Delivered: sendErr == nil})
		}); err != nil {
			return fail("record alert", err)
		}
		if sendErr != nil {
			return fail("send alert", sendErr)
		}
		run.Count("sent", 1)
		return nil
	})
}
