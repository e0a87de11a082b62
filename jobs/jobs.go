// Package jobs holds pgcustody's River workers, one a file, and what they share:
// how they are registered and scheduled, how a run is recorded, how a context is
// set.
//
// Every job may be killed at any line; the next attempt ends in the same state.
package jobs

import (
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
)

// Schema is where River's tables are.
const Schema = "river"

// SystemTenant owns what belongs to no tenant: partitions, archive runs, runs of
// the jobs that serve all tenants.
const SystemTenant = "system"

// Deps is what workers are built on.
type Deps struct {
	// Pool connects as a login with the role custody_worker.
	Pool *pgxpool.Pool
	// Log takes ids and counts only.
	Log *slog.Logger
	// Actor is the external id under which the trail records the jobs.
	Actor string
	// Schedule is how often each job comes.
	Schedule Schedule
}

// Schedule is how often the leader inserts each job; 0 switches one off.
type Schedule struct {
	Retention, Archive, Partitions, Requests time.Duration
}

// Workers registers every worker.
func Workers(d Deps) *river.Workers {
	workers := river.NewWorkers()
	// one river.AddWorker a line
	return workers
}

// Periodic is what the leader inserts by the schedule.
func Periodic(d Deps) []*river.PeriodicJob {
	return nil
}
