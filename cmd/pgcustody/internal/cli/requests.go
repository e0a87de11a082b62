package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
)

func newRequestsCmd(app *App) *cobra.Command {
	cmd := &cobra.Command{Use: "requests", Short: "List, show, extend, cancel and verify requests of data subjects"}

	list := &requestsList{App: app}
	listCmd := &cobra.Command{
		Use:   "list",
		Short: "List the tenant's requests, oldest first",
		RunE:  func(cmd *cobra.Command, _ []string) error { return list.Run(cmd.Context()) },
	}
	listCmd.Flags().StringVar(&list.Status, "status", "", "only those: received, held, done or cancelled")
	listCmd.Flags().Int32Var(&list.Limit, "limit", 100, "how many, 1 to 10000")
	listCmd.Flags().StringVar(&list.After, "after", "", "go on after this request, the last of the page before")

	one := &requestsOne{App: app}
	action := func(use, short string, run func(context.Context, uuid.UUID) error) *cobra.Command {
		return &cobra.Command{
			Use: use + " REQUEST", Short: short, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				id, err := parseID("REQUEST", args[0])
				if err != nil {
					return err
				}
				if id == nil {
					return &ConfigError{Field: "REQUEST", Problem: "required"}
				}
				return run(cmd.Context(), *id)
			},
		}
	}
	show := action("show", "Show a request with its certificate and notices", one.Show)
	extend := action("extend", "Extend an open request once by two months", one.Extend)
	extend.Flags().StringVar(&one.Reason, "reason", "", "why, as the person is told (required)")
	cancel := action("cancel", "Cancel an open request", one.Cancel)
	cancel.Flags().StringVar(&one.CancelReason, "reason", "", "why, without naming the person")
	verify := action("verify", "Look for what an erasure should not have left; exit status 4 when there is something", one.Verify)

	cmd.AddCommand(listCmd, show, extend, cancel, verify)
	return cmd
}

type requestsList struct {
	*App
	Status, After string
	Limit         int32
}

type requestRow struct {
	RequestID  uuid.UUID  `json:"request_id"`
	Kind       string     `json:"kind"`
	Status     string     `json:"status"`
	IdentityID uuid.UUID  `json:"identity_id"`
	ReceivedAt time.Time  `json:"received_at"`
	DueAt      time.Time  `json:"due_at"`
	ExtendedAt *time.Time `json:"extended_at,omitempty"`
	ClosedAt   *time.Time `json:"closed_at,omitempty"`
	Overdue    bool       `json:"overdue"`
}

func (l *requestsList) Run(ctx context.Context) error {
	after, err := parseID("--after", l.After)
	if err != nil {
		return err
	}
	return l.withDatabase(ctx, "list", func(pool *pgxpool.Pool) error {
		requests := []requestRow{}
		if err := l.inTenant(ctx, pool, "requests", func(tx pgx.Tx) error {
			rows, err := db.New().ListRequests(ctx, tx, db.ListRequestsParams{Status: textOrNil(l.Status), MaxRows: l.Limit, After: after})
			for _, r := range rows {
				requests = append(requests, requestRow{r.RequestID, r.Kind, r.Status, r.IdentityID, r.ReceivedAt.UTC(), r.DueAt.UTC(),
					utc(r.ExtendedAt), utc(r.ClosedAt), r.Overdue})
			}
			return err
		}); err != nil {
			return err
		}
		return l.Print(requests, func(out io.Writer) {
			if len(requests) == 0 {
				fmt.Fprintln(out, "no requests")
				return
			}
			table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(table, "REQUEST\tKIND\tSTATUS\tRECEIVED\tDUE\tCLOSED")
			for _, r := range requests {
				status := r.Status
				if r.Overdue {
					status += ", overdue"
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", r.RequestID, r.Kind, status, timeText(&r.ReceivedAt), timeText(&r.DueAt), timeText(r.ClosedAt))
			}
			_ = table.Flush()
		})
	})
}

type requestsOne struct {
	*App
	Reason, CancelReason string
}

type noticeRow struct {
	NoticeID       uuid.UUID  `json:"notice_id"`
	Holder         string     `json:"holder"`
	SentAt         *time.Time `json:"sent_at"`
	Attempts       int32      `json:"attempts"`
	LastStatus     *string    `json:"last_status"`
	AcknowledgedAt *time.Time `json:"acknowledged_at"`
	// HolderRetiredAt is set where nobody sends the notice any more.
	HolderRetiredAt *time.Time `json:"holder_retired_at,omitempty"`
}

func (o *requestsOne) Show(ctx context.Context, id uuid.UUID) error {
	return o.withDatabase(ctx, "show", func(pool *pgxpool.Pool) error {
		var shown struct {
			Request     json.RawMessage `json:"request"`
			Certificate json.RawMessage `json:"certificate,omitempty"`
			Notices     []noticeRow     `json:"notices"`
		}
		shown.Notices = []noticeRow{}
		if err := o.inTenant(ctx, pool, "requests", func(tx pgx.Tx) (err error) {
			queries := db.New()
			if shown.Request, err = queries.RequestStatus(ctx, tx, id); err != nil {
				return err
			}
			if shown.Certificate, err = queries.GetCertificate(ctx, tx, id); err != nil {
				return err
			}
			notices, err := queries.RequestNotices(ctx, tx, id)
			for _, n := range notices {
				shown.Notices = append(shown.Notices, noticeRow{n.NoticeID, n.Holder, utc(n.SentAt), n.Attempts, n.LastStatus, utc(n.AcknowledgedAt), utc(n.RetiredAt)})
			}
			return err
		}); err != nil {
			return err
		}
		if shown.Request == nil {
			return &Failure{Code: ExitRefused, What: "unknown request", Object: id.String(), Do: "see pgcustody requests list"}
		}
		return o.Print(shown, func(out io.Writer) {
			text, _ := json.Marshal(shown)
			fmt.Fprintln(out, indented(text))
		})
	})
}

func (o *requestsOne) Extend(ctx context.Context, id uuid.UUID) error {
	if o.Reason == "" {
		return &ConfigError{Field: "--reason", Problem: "required: the person must be told why"}
	}
	return o.withDatabase(ctx, "extend", func(pool *pgxpool.Pool) error {
		var due time.Time
		if err := o.inTenant(ctx, pool, "requests", func(tx pgx.Tx) (err error) {
			due, err = db.New().ExtendRequest(ctx, tx, db.ExtendRequestParams{RequestID: id, Reason: o.Reason})
			return err
		}); err != nil {
			return err
		}
		due = due.UTC()
		return o.Print(map[string]any{"request_id": id, "due_at": due}, func(out io.Writer) {
			fmt.Fprintf(out, "request %s is now due %s\n", id, timeText(&due))
		})
	})
}

func (o *requestsOne) Cancel(ctx context.Context, id uuid.UUID) error {
	return o.withDatabase(ctx, "cancel", func(pool *pgxpool.Pool) error {
		var status string
		if err := o.inTenant(ctx, pool, "requests", func(tx pgx.Tx) (err error) {
			status, err = db.New().CancelRequest(ctx, tx, db.CancelRequestParams{RequestID: id, Reason: textOrNil(o.CancelReason)})
			return err
		}); err != nil {
			return err
		}
		return o.Print(map[string]any{"request_id": id, "status": status}, func(out io.Writer) { fmt.Fprintf(out, "request %s: %s\n", id, status) })
	})
}

func (o *requestsOne) Verify(ctx context.Context, id uuid.UUID) error {
	return o.withDatabase(ctx, "verify", func(pool *pgxpool.Pool) error {
		var verification json.RawMessage
		if err := o.inTenant(ctx, pool, "erasure verification", func(tx pgx.Tx) (err error) {
			verification, err = db.New().VerifyErasure(ctx, tx, id)
			return err
		}); err != nil {
			return err
		}
		if err := o.Print(verification, func(out io.Writer) { fmt.Fprintln(out, indented(verification)) }); err != nil {
			return err
		}
		var said struct {
			Clean bool `json:"clean"`
		}
		if err := json.Unmarshal(verification, &said); err != nil {
			return fmt.Errorf("read verification: %w", err)
		}
		if !said.Clean {
			return &Failure{Code: ExitCheck, What: "identifiers or rows of the person found", Object: "request " + id.String(), Do: "see the findings"}
		}
		return nil
	})
}
