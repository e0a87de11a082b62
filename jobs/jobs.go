// Package jobs holds pgcustody's River workers, one a file, and what they share:
// how they are registered and scheduled, how a run is recorded, how a context is
// set.
//
// Every job may be killed at any line; the next attempt ends in the same state.
// Job arguments, errors and log lines carry ids and counts, never a user_id.
package jobs

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"pgcustody/jobs/agekeys"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/store"
)

// Schema is where River's tables are.
const Schema = "river"

// SystemTenant owns what belongs to no tenant: partitions, archive runs, runs of
// the jobs that serve all tenants.
const SystemTenant = "system"

// Queues of the daemon. A command that works its jobs itself has a queue of its
// own, named by OwnQueue.
const (
	QueueMaintenance = "maintenance" // partitions, requests, keys, detect, reconcile, verify
	QueueBulk        = "bulk"        // archive, retention: one after the other, so that live traffic feels one of them at most
	QueueSubjects    = "subjects"    // erase, export
	QueueNotices     = "notices"     // notify, alert
	QueueLogs        = "logs"        // ship: apart, so that no long run keeps the log from the store
	QueueSinks       = "sinks"       // sinks: apart from it, so that no slow sink does
	QueueLedger      = "ledger"      // seal, anchor: apart, so that no long run keeps events from being sealed
)

const ownQueuePrefix = "own-"

// OwnQueue is the queue of one command: what it inserts, and what its jobs
// insert in turn, is worked by it alone and tried once.
func OwnQueue(id string) string { return ownQueuePrefix + id }

func ownQueue(name string) bool { return strings.HasPrefix(name, ownQueuePrefix) }

// Limits of a job, so that no attempt holds a worker for ever. A job whose
// process died is taken up again when its limit and rescueAfter are over.
const (
	jobTimeout  = 15 * time.Minute
	rescueAfter = 20 * time.Minute
)

// Deps is what workers are built on.
type Deps struct {
	// Pool connects as a login with the roles custody_worker and custody_privacy.
	Pool *pgxpool.Pool
	// Unlock gives the jobs that touch personal values their tenant's key. It may be
	// nil: they stay locked.
	Unlock *Unlocker
	// Store takes archives, certificates and exports. It is nil where none is
	// configured: jobs that cannot do without say so and come again later.
	Store store.Store
	// Recipients are whom the archive is encrypted to. Without any nothing is archived.
	Recipients agekeys.Recipients
	// Signer signs checkpoints of the audit ledger and the archive's index. It is nil
	// where none is configured: events are sealed, and nothing is anchored.
	Signer *ledger.Signer
	// Stopping is closed when the process wants to end: jobs that are always at work end
	// then. It may be nil.
	Stopping <-chan struct{}
	// Log takes ids and counts only.
	Log *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
	// Actor is the external id under which the trail records the jobs.
	Actor string
	// Config is what each job may be told.
	Config Config

	// OnProgress and OnReport tell a command in the same process how its jobs
	// fare. Both may be nil and are called from the workers' goroutines.
	OnProgress func(Progress)
	OnReport   func(Report)
	// ExportTo takes exports instead of the store.
	ExportTo func(ctx context.Context, name string, body io.Reader) (int64, error)
	// ResidueBasis lets the erasure of a command in the same process go on although
	// the person's identifiers were found where they must not stand: on what basis
	// they stay. It is free text, and so no job argument.
	ResidueBasis string
}

// Config is what each job may be told. Zero values mean the defaults.
type Config struct {
	Schedule      Schedule
	Archive       ArchiveConfig
	ArchiveVerify ArchiveVerifyConfig
	Retention     RetentionConfig
	Partitions    PartitionsConfig
	Requests      RequestsConfig
	Erase         EraseConfig
	Export        ExportConfig
	Keys          KeysConfig
	Notify        NotifyConfig
	Seal          SealConfig
	Anchor        AnchorConfig
	Verify        VerifyConfig
	Ship          ShipConfig
	Detect        DetectConfig
}

// Schedule is how often the leader inserts each job; 0 switches one off.
type Schedule struct {
	Retention, Archive, ArchiveVerify, Partitions, Requests, Keys, Anchor, Verify, Detect time.Duration
	// Seal is how often events are sealed; jobs come each for a shift of it.
	Seal time.Duration
	// Ship is how often the server's log is shipped, in shifts as Seal; Reconcile how often
	// log, trail and store are held against each other.
	Ship, Reconcile time.Duration
}

// scope is the context in which a job works for a tenant.
func (d Deps) scope(tenant, purpose string) Scope {
	return Scope{Tenant: tenant, Actor: d.Actor, Purpose: purpose}
}

// stopping tells whether the process wants to end.
func (d Deps) stopping() bool {
	select {
	case <-d.Stopping:
		return true
	default:
		return false
	}
}

// Workers registers every worker.
func Workers(d Deps) *river.Workers {
	workers := river.NewWorkers()
	river.AddWorker(workers, NewAlertWorker(d))
	river.AddWorker(workers, &AnchorWorker{Deps: d})
	river.AddWorker(workers, &ArchiveWorker{Deps: d})
	river.AddWorker(workers, &ArchiveVerifyWorker{Deps: d})
	river.AddWorker(workers, &DetectWorker{Deps: d})
	river.AddWorker(workers, &EraseWorker{Deps: d})
	river.AddWorker(workers, &ExportWorker{Deps: d})
	river.AddWorker(workers, &KeysWorker{Deps: d})
	river.AddWorker(workers, NewNotifyWorker(d))
	river.AddWorker(workers, &PartitionsWorker{Deps: d})
	river.AddWorker(workers, &ReconcileWorker{Deps: d})
	river.AddWorker(workers, &RequestsWorker{Deps: d})
	river.AddWorker(workers, &RetentionWorker{Deps: d})
	river.AddWorker(workers, &SealWorker{Deps: d})
	river.AddWorker(workers, &ShipWorker{Deps: d})
	river.AddWorker(workers, &SinksWorker{Deps: d})
	river.AddWorker(workers, &VerifyWorker{Deps: d})
	return workers
}

// Periodic is what the leader inserts by the schedule. Each job also comes once
// when a leader takes over, because River keeps no schedule across leaders; what
// is waiting already is not inserted twice.
func Periodic(s Schedule) []*river.PeriodicJob {
	var periodic []*river.PeriodicJob
	add := func(every time.Duration, args river.JobArgs) {
		if every > 0 {
			periodic = append(periodic, river.NewPeriodicJob(river.PeriodicInterval(every),
				func() (river.JobArgs, *river.InsertOpts) { return args, nil },
				&river.PeriodicJobOpts{ID: args.Kind(), RunOnStart: true}))
		}
	}
	add(s.Anchor, AnchorArgs{})
	add(s.Archive, ArchiveArgs{})
	add(s.ArchiveVerify, ArchiveVerifyArgs{})
	add(s.Detect, DetectArgs{})
	add(s.Keys, KeysArgs{})
	add(s.Partitions, PartitionsArgs{})
	add(s.Requests, RequestsArgs{})
	add(s.Retention, RetentionArgs{})
	add(s.Verify, VerifyArgs{})
	if s.Seal > 0 {
		add(max(s.Seal, sealShift), SealArgs{})
	}
	if s.Ship > 0 {
		add(max(s.Ship, shipShift), ShipArgs{})
		add(max(s.Ship, shipShift), SinksArgs{})
	}
	add(s.Reconcile, ReconcileArgs{})
	return periodic
}

// once keeps a job from being inserted while the same one, by its arguments,
// waits or runs in the same queue. Finished ones do not count.
func once() river.UniqueOpts {
	return river.UniqueOpts{ByArgs: true, ByQueue: true, ByState: []rivertype.JobState{
		rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRunning,
		rivertype.JobStateRetryable, rivertype.JobStateScheduled,
	}}
}

// ClientOptions says what a River client works.
type ClientOptions struct {
	// OwnQueue is the one queue of a command, "" for the daemon's.
	OwnQueue string
	// PollOnly does without LISTEN, as behind a transaction pooler.
	PollOnly bool
	// SoftStop is how long running jobs may go on once the client is stopped.
	SoftStop time.Duration
}

// NewClient makes a River client that works this package's jobs. Only the
// daemon's may lead: schedule, rescue and clean up.
func NewClient(d Deps, o ClientOptions) (*river.Client[pgx.Tx], error) {
	config := &river.Config{
		Schema:               Schema,
		Logger:               d.Log.With("component", "river"),
		Workers:              Workers(d),
		JobTimeout:           jobTimeout,
		RescueStuckJobsAfter: rescueAfter,
		SoftStopTimeout:      o.SoftStop,
		PollOnly:             o.PollOnly,
		// Reindexing is the owner's right, and the runner is not the owner.
		ReindexerIndexNames: []string{},
		Middleware:          []rivertype.Middleware{d.Metrics.middleware()},
	}
	if o.OwnQueue != "" {
		config.LeaderElectionDisabled = true
		config.Queues = map[string]river.QueueConfig{o.OwnQueue: {MaxWorkers: 4}}
	} else {
		config.PeriodicJobs = Periodic(d.Config.Schedule)
		config.Queues = map[string]river.QueueConfig{
			QueueMaintenance: {MaxWorkers: 4},
			QueueBulk:        {MaxWorkers: 1},
			QueueSubjects:    {MaxWorkers: 4},
			QueueNotices:     {MaxWorkers: 8},
			QueueLedger:      {MaxWorkers: 4},
			// A second one would read and send what the first does.
			QueueLogs:  {MaxWorkers: 1},
			QueueSinks: {MaxWorkers: 1},
		}
	}
	client, err := river.NewClient(riverpgxv5.New(d.Pool), config)
	if err != nil {
		return nil, fmt.Errorf("make River client: %w", err)
	}
	return client, nil
}

// follow says how a job that another job inserts is inserted: on the daemon's
// queues by the job's own options, on a command's own queue there and tried once.
func follow(queue string) *river.InsertOpts {
	if ownQueue(queue) {
		return OwnInsertOpts(queue)
	}
	return nil
}

// OwnInsertOpts inserts on a command's own queue: one attempt, because nobody
// would wait for another.
func OwnInsertOpts(queue string) *river.InsertOpts {
	return &river.InsertOpts{Queue: queue, MaxAttempts: 1}
}
