package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
	"pgcustody/jobs"
	"pgcustody/jobs/store"
	"pgcustody/sql"
)

func newStatusCmd(app *App) *cobra.Command {
	s := &status{App: app}
	return &cobra.Command{
		Use:   "status",
		Short: "Show the schema's version, the jobs' last runs, what is due, and the store",
		Long: `Show the schema's version, the jobs' last runs, what is due, and the store: of
--tenant, or of all tenants. The exit status is that of the first thing that is
wrong with database or store; work that is due is not wrong.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.Run(cmd.Context()) },
	}
}

type status struct{ *App }

type statusReport struct {
	Database databaseState  `json:"database"`
	Jobs     []lastRun      `json:"jobs"`
	Due      []dueRow       `json:"retention_due"`
	Requests []requestState `json:"requests"`
	Notices  []openNotice   `json:"open_notices"`
	Ledger   ledgerState    `json:"ledger"`
	Archive  archiveState   `json:"archive"`
	Store    storeState     `json:"store"`
}

type databaseState struct {
	State   string `json:"state"` // usable, or what is wrong
	Version int64  `json:"version"`
	Known   int64  `json:"known"`
}

type lastRun struct {
	Tenant    string          `json:"tenant"`
	Job       string          `json:"job"`
	RunID     uuid.UUID       `json:"run_id"`
	Status    string          `json:"status"`
	StartedAt time.Time       `json:"started_at"`
	EndedAt   *time.Time      `json:"ended_at"`
	Counts    json.RawMessage `json:"counts"`
	Bytes     int64           `json:"bytes"`
	Error     *string         `json:"error,omitempty"`
}

type requestState struct {
	Tenant         string `json:"tenant"`
	Open           int64  `json:"open"`
	Held           int64  `json:"held"`
	Overdue        int64  `json:"overdue"`
	Unsent         int64  `json:"notices_unsent"`
	Unacknowledged int64  `json:"notices_unacknowledged"`
}

// openNotice waits for a holder. One whose holder is retired, or has no endpoint,
// is sent by nobody: custody.acknowledge_erasure closes it.
type openNotice struct {
	Tenant     string     `json:"tenant"`
	RequestID  uuid.UUID  `json:"request_id"`
	Holder     string     `json:"holder"`
	ByHand     bool       `json:"by_hand"`
	RetiredAt  *time.Time `json:"holder_retired_at,omitempty"`
	CreatedAt  time.Time  `json:"created_at"`
	SentAt     *time.Time `json:"sent_at"`
	Attempts   int32      `json:"attempts"`
	LastStatus *string    `json:"last_status"`
}

// maxNotices is how many open notices of a tenant are listed, the oldest first; all
// are counted.
const maxNotices = 50

// ledgerState is how far sealing and anchoring are behind. Holder is the transaction
// that holds sealing back, by kind and pid or gid.
type ledgerState struct {
	Unsealed   int64      `json:"unsealed_events"`
	AgeSeconds float64    `json:"age_seconds"`
	Holder     string     `json:"holder,omitempty"`
	Checkpoint int64      `json:"checkpoint"` // number of the newest; 0: none
	Anchored   int64      `json:"anchored_leaves"`
	AnchoredAt *time.Time `json:"anchored_at"`
}

type archiveState struct {
	OpenSegments     int64      `json:"open_segments"`
	RecordedSegments int64      `json:"recorded_segments"`
	LastDay          *string    `json:"last_day"`
	LastRecordedAt   *time.Time `json:"last_recorded_at"`
}

type storeState struct {
	URL   string `json:"url"`
	State string `json:"state"` // none, usable, or what is wrong
}

func (s *status) Run(ctx context.Context) error {
	pool, err := s.Pool(ctx, "status")
	if err != nil {
		return err
	}
	defer pool.Close()
	report := statusReport{Jobs: []lastRun{}, Due: []dueRow{}, Requests: []requestState{}, Notices: []openNotice{}}
	known, err := sql.Inspect(ctx, pool)
	if err != nil {
		return err
	}
	report.Database = databaseState{State: string(known.Relation), Version: known.Applied, Known: known.Known}
	problem := sql.Check(ctx, pool)
	if problem == nil {
		report.Database.State = "usable"
		if err := s.collect(ctx, pool, &report); err != nil {
			return err
		}
	}
	storeProblem := s.store(ctx, &report.Store)
	if err := s.Print(report, func(out io.Writer) { report.print(out) }); err != nil {
		return err
	}
	return errors.Join(problem, storeProblem)
}

func (s *status) collect(ctx context.Context, pool *pgxpool.Pool, report *statusReport) (err error) {
	queries := db.New()
	tenants := []string{s.Tenant}
	if s.Tenant == "" {
		rows, err := queries.ListTenants(ctx, pool)
		if err != nil {
			return err
		}
		tenants = nil
		for _, row := range rows {
			tenants = append(tenants, row.TenantID)
		}
	}
	for _, tenant := range tenants {
		scope := jobs.Scope{Tenant: tenant, Actor: s.Actor, Purpose: "status"}
		if err := jobs.InContext(ctx, pool, scope, func(tx pgx.Tx) error {
			runs, err := queries.LatestRuns(ctx, tx)
			if err != nil {
				return err
			}
			for _, r := range runs {
				report.Jobs = append(report.Jobs, lastRun{tenant, r.Job, r.RunID, r.Status, r.StartedAt.UTC(), utc(r.EndedAt), r.Counts, r.Bytes, r.Error})
			}
			open, err := queries.OpenRequestCounts(ctx, tx)
			if err != nil {
				return err
			}
			notices, err := queries.NoticeState(ctx, tx)
			if err != nil {
				return err
			}
			waiting, err := queries.OpenNotices(ctx, tx, maxNotices)
			if err != nil {
				return err
			}
			for _, n := range waiting {
				report.Notices = append(report.Notices, openNotice{tenant, n.RequestID, n.Holder, n.ByHand || n.RetiredAt != nil,
					utc(n.RetiredAt), n.CreatedAt.UTC(), utc(n.SentAt), n.Attempts, n.LastStatus})
			}
			if tenant != jobs.SystemTenant {
				report.Requests = append(report.Requests, requestState{tenant, open.Open, open.Held, open.Overdue, notices.Unsent, notices.Unacknowledged})
			}
			segments, err := queries.SegmentState(ctx, tx)
			if err != nil {
				return err
			}
			report.Archive = archiveState{OpenSegments: segments.Open, RecordedSegments: segments.Recorded}
			last, err := queries.LastSegments(ctx, tx)
			if err != nil {
				return err
			}
			if len(last) > 0 {
				day := last[0].Day.Format(time.DateOnly)
				report.Archive.LastDay, report.Archive.LastRecordedAt = &day, utc(last[0].RecordedAt)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if report.Due, err = dueRows(ctx, s.App, pool, nil, ""); err != nil {
		return err
	}
	return jobs.InContext(ctx, pool, jobs.Scope{Tenant: jobs.SystemTenant, Actor: s.Actor, Purpose: "status"}, func(tx pgx.Tx) error {
		lag, err := queries.SealingStatus(ctx, tx)
		if err != nil {
			return err
		}
		report.Ledger = ledgerState{Unsealed: lag.UnsealedEvents, AgeSeconds: lag.AgeSeconds, Holder: strings.TrimSpace(lag.HolderKind + " " + lag.Holder)}
		newest, err := queries.LatestCheckpoint(ctx, tx)
		if err == nil && len(newest) > 0 {
			report.Ledger.Checkpoint, report.Ledger.Anchored, report.Ledger.AnchoredAt = newest[0].Number, newest[0].TreeSize, utc(&newest[0].AnchoredAt)
		}
		return err
	})
}

// store looks whether the store can be reached and used, without writing to it.
func (s *status) store(ctx context.Context, state *storeState) error {
	state.URL, state.State = s.Store, "none"
	if s.Store == "" {
		return nil
	}
	_, err := s.openStore(ctx, true)
	state.State = "usable"
	if err != nil {
		state.State = err.Error()
		var wrong *store.Error
		if errors.As(err, &wrong) {
			state.State = wrong.Kind.Error()
			if errors.Is(wrong.Kind, store.ErrUnfit) {
				state.State += ": " + wrong.Err.Error()
			}
		}
	}
	return err
}

func (r *statusReport) print(out io.Writer) {
	fmt.Fprintf(out, "database: %s, version %d of %d\n", r.Database.State, r.Database.Version, r.Database.Known)
	if r.Store.URL == "" {
		fmt.Fprintln(out, "store: none")
	} else {
		fmt.Fprintf(out, "store: %s, %s\n", r.Store.URL, r.Store.State)
	}
	fmt.Fprintf(out, "ledger: %d events without a leaf", r.Ledger.Unsealed)
	if r.Ledger.Unsealed > 0 {
		fmt.Fprintf(out, ", the oldest for %.0f s", r.Ledger.AgeSeconds)
	}
	if r.Ledger.Holder != "" {
		fmt.Fprintf(out, ", held back by %s", r.Ledger.Holder)
	}
	if r.Ledger.Checkpoint == 0 {
		fmt.Fprintln(out, "; no checkpoint")
	} else {
		fmt.Fprintf(out, "; checkpoint %d of %d leaves at %s\n", r.Ledger.Checkpoint, r.Ledger.Anchored, timeText(r.Ledger.AnchoredAt))
	}
	day := "none"
	if r.Archive.LastDay != nil {
		day = *r.Archive.LastDay
	}
	fmt.Fprintf(out, "archive: %d segments, %d open, last day %s\n", r.Archive.RecordedSegments, r.Archive.OpenSegments, day)

	if len(r.Jobs) > 0 {
		fmt.Fprintln(out, "\nlast runs:")
		table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(table, "TENANT\tJOB\tSTATUS\tSTARTED\tCOUNTS")
		for _, run := range r.Jobs {
			state := run.Status
			if run.Error != nil {
				state += " (" + *run.Error + ")"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", run.Tenant, run.Job, state, timeText(&run.StartedAt), run.Counts)
		}
		_ = table.Flush()
	}
	if len(r.Requests) > 0 {
		fmt.Fprintln(out, "\nrequests and notices:")
		table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(table, "TENANT\tOPEN\tHELD\tOVERDUE\tUNSENT\tUNACKNOWLEDGED")
		for _, q := range r.Requests {
			fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%d\n", q.Tenant, q.Open, q.Held, q.Overdue, q.Unsent, q.Unacknowledged)
		}
		_ = table.Flush()
	}
	if len(r.Notices) > 0 {
		fmt.Fprintln(out, "\nopen notices, the oldest of each tenant:")
		table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(table, "TENANT\tREQUEST\tHOLDER\tCREATED\tSENT\tATTEMPTS\tSTATE")
		for _, n := range r.Notices {
			state := "-"
			switch {
			case n.RetiredAt != nil:
				state = "holder retired: acknowledge by hand"
			case n.ByHand:
				state = "no endpoint: acknowledge by hand"
			case n.LastStatus != nil:
				state = *n.LastStatus
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", n.Tenant, n.RequestID, n.Holder, timeText(&n.CreatedAt), timeText(n.SentAt), n.Attempts, state)
		}
		_ = table.Flush()
	}
	fmt.Fprintln(out, "\nretention due:")
	printDue(out, r.Due)
}
