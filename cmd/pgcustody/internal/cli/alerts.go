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

func newAlertsCmd(app *App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "alerts",
		Short: "List, acknowledge and close the alerts of detection",
		Long: `List, acknowledge and close the alerts of detection: those of --tenant; of all
tenants, to list, and of none, to settle, with --tenant system. Nobody settles an
alert about themselves, be it by --actor or by their login. Those of tenant system
are for a login with the role custody_auditor.`,
	}
	list := &alertsList{App: app}
	listCmd := &cobra.Command{
		Use: "list", Short: "List alerts, the most severe first",
		RunE: func(cmd *cobra.Command, _ []string) error { return list.Run(cmd.Context()) },
	}
	listCmd.Flags().BoolVar(&list.Closed, "closed", false, "list those that are closed too")
	listCmd.Flags().Int32Var(&list.Limit, "limit", 1000, "at most so many")

	cmd.AddCommand(listCmd, &cobra.Command{
		Use: "ack ALERT", Short: "Say that you look after an alert", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return app.settle(cmd.Context(), args[0], "acknowledged", func(tx pgx.Tx, id uuid.UUID) error {
				return db.New().AcknowledgeAlert(cmd.Context(), tx, id)
			})
		},
	})
	var reason string
	closeCmd := &cobra.Command{
		Use: "close ALERT", Short: "Close an alert, with a reason", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return &ConfigError{Field: "--reason", Problem: "required"}
			}
			return app.settle(cmd.Context(), args[0], "closed", func(tx pgx.Tx, id uuid.UUID) error {
				return db.New().CloseAlert(cmd.Context(), tx, db.CloseAlertParams{AlertID: id, Reason: reason})
			})
		},
	}
	closeCmd.Flags().StringVar(&reason, "reason", "", "what it was, without naming a person (required)")
	cmd.AddCommand(closeCmd)
	return cmd
}

// settle acknowledges or closes an alert of the configured tenant.
func (a *App) settle(ctx context.Context, alert, state string, settle func(pgx.Tx, uuid.UUID) error) error {
	id, err := parseID("ALERT", alert)
	if err != nil {
		return err
	}
	return a.withDatabase(ctx, "alert", func(pool *pgxpool.Pool) error {
		if err := a.inTenant(ctx, pool, "alert", func(tx pgx.Tx) error { return settle(tx, *id) }); err != nil {
			return err
		}
		return a.Print(map[string]any{"alert_id": id, "state": state}, func(out io.Writer) { fmt.Fprintf(out, "alert %s %s\n", id, state) })
	})
}

type alertsList struct {
	*App
	Closed bool
	Limit  int32
}

type alertRow struct {
	Tenant         string          `json:"tenant"`
	AlertID        uuid.UUID       `json:"alert_id"`
	Rule           string          `json:"rule"`
	Severity       string          `json:"severity"`
	State          string          `json:"state"`
	Object         string          `json:"object"`
	Actor          *string         `json:"actor,omitempty"`
	ActorID        *uuid.UUID      `json:"actor_id,omitempty"`
	Login          *string         `json:"login,omitempty"`
	FirstAt        time.Time       `json:"first_at"`
	LastAt         time.Time       `json:"last_at"`
	Count          int64           `json:"count"`
	Events         int64           `json:"events"`
	Detail         json.RawMessage `json:"detail"`
	OpenedAt       time.Time       `json:"opened_at"`
	AcknowledgedAt *time.Time      `json:"acknowledged_at,omitempty"`
	ClosedAt       *time.Time      `json:"closed_at,omitempty"`
	CloseReason    *string         `json:"close_reason,omitempty"`
}

func (l *alertsList) Run(ctx context.Context) error {
	return l.withDatabase(ctx, "alerts", func(pool *pgxpool.Pool) error {
		alerts := []alertRow{}
		if err := l.inTenant(ctx, pool, "alerts", func(tx pgx.Tx) error {
			rows, err := db.New().ListAlerts(ctx, tx, db.ListAlertsParams{Closed: l.Closed, MaxRows: l.Limit})
			for _, r := range rows {
				alerts = append(alerts, alertRow{r.TenantID, r.AlertID, r.Rule, r.Severity, r.State, r.ObjectKey, r.Actor, r.ActorID, r.Login, r.FirstAt.UTC(), r.LastAt.UTC(),
					r.Count, r.Events, r.Detail, r.OpenedAt.UTC(), utc(r.AcknowledgedAt), utc(r.ClosedAt), r.CloseReason})
			}
			return err
		}); err != nil {
			return err
		}
		return l.Print(alerts, func(out io.Writer) {
			if len(alerts) == 0 {
				fmt.Fprintln(out, "no alerts")
				return
			}
			table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(table, "ALERT\tSEVERITY\tRULE\tTENANT\tWHO OR WHAT\tTIMES\tLAST\tSTATE")
			for _, r := range alerts {
				object := r.Object
				if r.Actor != nil {
					object = *r.Actor
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", r.AlertID, r.Severity, r.Rule, r.Tenant, object, r.Count, timeText(&r.LastAt), r.State)
			}
			_ = table.Flush()
		})
	})
}
