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
	"pgcustody/jobs"
)

func newDetectCmd(app *App) *cobra.Command {
	d := &detect{App: app}
	cmd := &cobra.Command{
		Use:   "detect",
		Short: "Run the rules of detection, on past data too",
		Long: `Run the rules of detection over what was shipped from --since to --until, for all
tenants. With --dry-run nothing is written but that it was asked (access.read): it
says which alerts would be opened, which findings would fold into one, and which are
known. Rules about how things stand (roles, settings, guards, sealing, shipping) look
only where --until is now.

The daemon does the same each minute, over what is new (job detect).`,
		RunE: func(cmd *cobra.Command, _ []string) error { return d.Run(cmd.Context()) },
	}
	cmd.Flags().StringVar(&d.Since, "since", "", "look at what was shipped from here on: a time, as in 2027-01-31, or how long ago, as in 36h; default where detection was last, and ten minutes more")
	cmd.Flags().StringVar(&d.Until, "until", "", "and before, in the same forms; default now")
	cmd.Flags().BoolVar(&d.DryRun, "dry-run", false, "say what is found, and open no alert")
	return cmd
}

type detect struct {
	*App
	Since, Until string
	DryRun       bool
}

// parseSince reads a time, or how long ago it was.
func parseSince(field, text string) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		at := time.Now().Add(-ago)
		return &at, nil
	}
	at, err := parseTime(field, text)
	return &at, err
}

type detectRow struct {
	Rule     string          `json:"rule"`
	Severity string          `json:"severity"`
	Outcome  string          `json:"outcome"`
	AlertID  *uuid.UUID      `json:"alert_id,omitempty"`
	Tenant   string          `json:"tenant"`
	Object   string          `json:"object"`
	ActorID  *uuid.UUID      `json:"actor_id,omitempty"`
	Login    *string         `json:"login,omitempty"`
	Events   int64           `json:"events"`
	FirstAt  *time.Time      `json:"first_at,omitempty"`
	LastAt   *time.Time      `json:"last_at,omitempty"`
	Detail   json.RawMessage `json:"detail"`
}

func (d *detect) Run(ctx context.Context) error {
	since, err := parseSince("--since", d.Since)
	if err != nil {
		return err
	}
	until, err := parseSince("--until", d.Until)
	if err != nil {
		return err
	}
	return d.withDatabase(ctx, "detect", func(pool *pgxpool.Pool) error {
		rows := []detectRow{}
		scope := jobs.Scope{Tenant: jobs.SystemTenant, Actor: d.Actor, Purpose: "detection"}
		if err := jobs.InContext(ctx, pool, scope, func(tx pgx.Tx) error {
			found, err := db.New().Detect(ctx, tx, db.DetectParams{FromAt: since, ToAt: until, DryRun: d.DryRun})
			for _, r := range found {
				rows = append(rows, detectRow{r.Rule, r.Severity, r.Outcome, r.AlertID, r.TenantID, r.ObjectKey, r.ActorID, r.Login, r.Events, utc(r.FirstAt), utc(r.LastAt), r.Detail})
			}
			return err
		}); err != nil {
			return err
		}
		return d.Print(map[string]any{"dry_run": d.DryRun, "findings": rows}, func(out io.Writer) {
			if len(rows) == 0 {
				fmt.Fprintln(out, "nothing found")
				return
			}
			table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(table, "SEVERITY\tRULE\tTENANT\tOBJECT\tEVENTS\tLAST\tOUTCOME")
			for _, r := range rows {
				outcome := r.Outcome
				if d.DryRun && outcome != "known" {
					outcome = "would be " + outcome
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", r.Severity, r.Rule, r.Tenant, r.Object, r.Events, timeText(r.LastAt), outcome)
			}
			_ = table.Flush()
		})
	})
}
