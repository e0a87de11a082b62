package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"pgcustody/jobs"
)

// stopTimeout is how long a command waits for its jobs to write down that they
// were interrupted.
const stopTimeout = 20 * time.Second

// workNow inserts jobs through River on a queue of this command's own, works them
// and whatever they insert in this process, and waits until the queue is empty.
// It needs no daemon, and one that runs does not take its jobs. The error is that
// of the first job that failed.
func (a *App) workNow(ctx context.Context, deps jobs.Deps, list ...river.JobArgs) ([]jobs.Report, error) {
	queue := jobs.OwnQueue(uuid.NewString()[:8])
	bar := a.newProgress()
	defer bar.Done()

	var mu sync.Mutex
	var reports []jobs.Report
	if a.LogLevel == "" {
		// What becomes of the jobs is printed: a log of it is for who asks.
		deps.Log = slog.New(slog.DiscardHandler)
	}
	deps.OnProgress = bar.Show
	deps.OnReport = func(r jobs.Report) {
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, r)
	}
	client, err := jobs.NewClient(deps, jobs.ClientOptions{OwnQueue: queue, PollOnly: a.Pooler == "transaction"})
	if err != nil {
		return nil, err
	}
	events, unsubscribe := client.Subscribe(river.EventKindJobCompleted, river.EventKindJobFailed,
		river.EventKindJobCancelled, river.EventKindJobSnoozed, river.EventKindJobInterrupted)
	defer unsubscribe()

	var ids []int64
	for _, args := range list {
		inserted, err := client.Insert(ctx, args, jobs.OwnInsertOpts(queue))
		if err != nil {
			return nil, fmt.Errorf("insert job %s: %w", args.Kind(), err)
		}
		ids = append(ids, inserted.Job.ID)
	}
	// An interrupt must reach the jobs, and then their records must be written.
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return nil, fmt.Errorf("start River: %w", err)
	}
	waitErr := a.waitForQueue(ctx, client, queue, events)
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := client.StopAndCancel(stopping); err != nil {
		return reports, fmt.Errorf("stop River: %w", err)
	}

	mu.Lock()
	defer mu.Unlock()
	var failed error
	for _, report := range reports {
		if report.Err != nil && failed == nil {
			failed = report.Err
		}
	}
	if waitErr != nil {
		// Nobody works this queue any more.
		for _, id := range ids {
			_, _ = client.JobCancel(stopping, id)
		}
		return reports, errors.Join(waitErr, failed)
	}
	if failed == nil {
		failed = a.unreported(ctx, client, ids)
	}
	return reports, failed
}

// poll is how often the queue is looked at although no event came.
const poll = 2 * time.Second

func (a *App) waitForQueue(ctx context.Context, client *river.Client[pgx.Tx], queue string, events <-chan *river.Event) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		open, err := client.JobList(ctx, river.NewJobListParams().Queues(queue).First(1).States(
			rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRetryable,
			rivertype.JobStateRunning, rivertype.JobStateScheduled))
		if err != nil {
			return fmt.Errorf("wait for jobs: %w", err)
		}
		if len(open.Jobs) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-events:
		case <-ticker.C:
		}
	}
}

// unreported finds a job that ended without a report of its own: it failed before
// its run began, or panicked.
func (a *App) unreported(ctx context.Context, client *river.Client[pgx.Tx], ids []int64) error {
	for _, id := range ids {
		job, err := client.JobGet(ctx, id)
		if err != nil {
			return fmt.Errorf("read job %d: %w", id, err)
		}
		if job.State != rivertype.JobStateCompleted {
			problem := string(job.State)
			if n := len(job.Errors); n > 0 {
				problem = job.Errors[n-1].Error
			}
			return fmt.Errorf("job %s: %s", job.Kind, problem)
		}
	}
	return nil
}

// printReports writes the run records as a table.
func printReports(out io.Writer, reports []jobs.Report) {
	if len(reports) == 0 {
		fmt.Fprintln(out, "nothing to do")
		return
	}
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "JOB\tTENANT\tSTATUS\tDURATION\tCOUNTS\tBYTES\tRUN")
	for _, r := range reports {
		status := r.Status
		if r.Error != "" {
			status += " (" + r.Error + ")"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", r.Job, r.Tenant, status,
			r.EndedAt.Sub(r.StartedAt).Round(time.Millisecond), countsText(r.Counts), r.Bytes, r.RunID)
	}
	_ = table.Flush()
}

func countsText(counts map[string]int64) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s=%d", name, counts[name]))
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, " ")
}
