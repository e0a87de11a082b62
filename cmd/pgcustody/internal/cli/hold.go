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

func newHoldCmd(app *App) *cobra.Command {
	cmd := &cobra.Command{Use: "hold", Short: "Place, release and list legal holds"}

	place := &holdPlace{App: app}
	placeCmd := &cobra.Command{
		Use:   "place",
		Short: "Keep what erasure and retention would take",
		Long: `Keep what erasure and retention would take: of the whole tenant, of a person, or
one row. Name exactly one of --all, --user and --table with --row; --user beside
--table tells two people's conversations of the same id apart.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return place.Run(cmd.Context()) },
	}
	placeCmd.Flags().BoolVar(&place.All, "all", false, "hold everything of the tenant")
	placeCmd.Flags().StringVar(&place.User, "user", "", "hold everything of this person")
	placeCmd.Flags().StringVar(&place.Table, "table", "", "table of the row to hold")
	placeCmd.Flags().StringVar(&place.Row, "row", "", "id of the row to hold")
	placeCmd.Flags().StringVar(&place.Day, "day", "", "day (UTC) of a row of audit_logs that is in the archive alone, as in 2026-11-21")
	placeCmd.Flags().StringVar(&place.Reference, "reference", "", "number of the case, without naming a person (required)")
	placeCmd.Flags().StringVar(&place.Reason, "reason", "", "why the data is needed, without naming a person (required)")
	placeCmd.Flags().StringVar(&place.Until, "until", "", "when the hold ends by itself, as in 2027-01-31T00:00:00Z; default never")

	release := &holdRelease{App: app}
	releaseCmd := &cobra.Command{
		Use:   "release HOLD",
		Short: "End a hold; what it kept waiting goes on",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return release.Run(cmd.Context(), args[0]) },
	}
	releaseCmd.Flags().StringVar(&release.Reason, "reason", "", "why the data is no longer needed (required)")

	list := &holdList{App: app}
	listCmd := &cobra.Command{
		Use:   "list",
		Short: "List the tenant's holds",
		RunE:  func(cmd *cobra.Command, _ []string) error { return list.Run(cmd.Context()) },
	}
	listCmd.Flags().BoolVar(&list.Released, "released", false, "list those that have ended too")

	cmd.AddCommand(placeCmd, releaseCmd, listCmd)
	return cmd
}

type holdPlace struct {
	*App
	All                                             bool
	User, Table, Row, Day, Reference, Reason, Until string
}

// scope is the hold's scope as custody.place_hold takes it.
func (h *holdPlace) scope() (json.RawMessage, error) {
	scope := map[string]any{}
	switch {
	case h.Day != "" && (h.Row == "" || h.User != ""):
		return nil, usagef("hold place: --day goes with --table audit_logs and --row")
	case h.All && h.User == "" && h.Table == "" && h.Row == "":
		scope["tenant"] = true
	case !h.All && h.User != "" && h.Table == "" && h.Row == "":
		scope["user_id"] = h.User
	case !h.All && h.Table != "" && h.Row != "":
		scope["table"], scope["row"] = h.Table, h.Row
		if h.User != "" {
			scope["user_id"] = h.User
		}
		if h.Day != "" {
			scope["day"] = h.Day
		}
	default:
		return nil, usagef("hold place: name exactly one of --all, --user, and --table with --row")
	}
	return json.Marshal(scope)
}

func (h *holdPlace) Run(ctx context.Context) error {
	scope, err := h.scope()
	if err != nil {
		return err
	}
	for _, required := range [][2]string{{"--reference", h.Reference}, {"--reason", h.Reason}} {
		if required[1] == "" {
			return &ConfigError{Field: required[0], Problem: "required"}
		}
	}
	var until *time.Time
	if h.Until != "" {
		at, err := parseTime("--until", h.Until)
		if err != nil {
			return err
		}
		until = &at
	}
	return h.withDatabase(ctx, "place", func(pool *pgxpool.Pool) error {
		var id uuid.UUID
		if err := h.inTenant(ctx, pool, "legal hold", func(tx pgx.Tx) (err error) {
			id, err = db.New().PlaceHold(ctx, tx, db.PlaceHoldParams{Scope: scope, Reference: h.Reference, Reason: h.Reason, UntilAt: until})
			return err
		}); err != nil {
			return err
		}
		return h.Print(map[string]uuid.UUID{"hold_id": id}, func(out io.Writer) { fmt.Fprintf(out, "hold %s placed\n", id) })
	})
}

type holdRelease struct {
	*App
	Reason string
}

func (h *holdRelease) Run(ctx context.Context, hold string) error {
	id, err := parseID("HOLD", hold)
	if err != nil {
		return err
	}
	if h.Reason == "" {
		return &ConfigError{Field: "--reason", Problem: "required"}
	}
	return h.withDatabase(ctx, "release", func(pool *pgxpool.Pool) error {
		var resumed int64
		if err := h.inTenant(ctx, pool, "legal hold", func(tx pgx.Tx) (err error) {
			resumed, err = db.New().ReleaseHold(ctx, tx, db.ReleaseHoldParams{HoldID: *id, Reason: h.Reason})
			return err
		}); err != nil {
			return err
		}
		return h.Print(map[string]any{"hold_id": id, "requests_resumed": resumed}, func(out io.Writer) {
			fmt.Fprintf(out, "hold %s released, %d requests go on\n", id, resumed)
		})
	})
}

type holdList struct {
	*App
	Released bool
}

type holdRow struct {
	HoldID        uuid.UUID  `json:"hold_id"`
	Scope         string     `json:"scope"`
	IdentityID    *uuid.UUID `json:"identity_id,omitempty"`
	Table         *string    `json:"table,omitempty"`
	Row           *string    `json:"row,omitempty"`
	Reference     string     `json:"reference"`
	Reason        string     `json:"reason"`
	PlacedAt      time.Time  `json:"placed_at"`
	UntilAt       *time.Time `json:"until_at,omitempty"`
	ReleasedAt    *time.Time `json:"released_at,omitempty"`
	ReleaseReason *string    `json:"release_reason,omitempty"`
	Active        bool       `json:"active"`
}

func (h *holdList) Run(ctx context.Context) error {
	return h.withDatabase(ctx, "list", func(pool *pgxpool.Pool) error {
		holds := []holdRow{}
		if err := h.inTenant(ctx, pool, "legal holds", func(tx pgx.Tx) error {
			rows, err := db.New().ListHolds(ctx, tx, h.Released)
			for _, r := range rows {
				holds = append(holds, holdRow{r.HoldID, r.Scope, r.IdentityID, r.TableName, r.RowID, r.Reference, r.Reason,
					r.PlacedAt.UTC(), utc(r.UntilAt), utc(r.ReleasedAt), r.ReleaseReason, r.Active})
			}
			return err
		}); err != nil {
			return err
		}
		return h.Print(holds, func(out io.Writer) {
			if len(holds) == 0 {
				fmt.Fprintln(out, "no holds")
				return
			}
			table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(table, "HOLD\tSCOPE\tREFERENCE\tPLACED\tUNTIL\tSTATE")
			for _, r := range holds {
				scope, state := r.Scope, "ended"
				switch {
				case r.Table != nil:
					scope += " " + *r.Table + " " + *r.Row
				case r.IdentityID != nil:
					scope += " " + r.IdentityID.String()
				}
				if r.Active {
					state = "active"
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", r.HoldID, scope, r.Reference, timeText(&r.PlacedAt), timeText(r.UntilAt), state)
			}
			_ = table.Flush()
		})
	})
}

// parseTime reads a time of the command line.
func parseTime(field, text string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return time.Time{}, &ConfigError{field, text, "not a time, as in 2027-01-31T00:00:00Z or 2027-01-31"}
}

func utc(at *time.Time) *time.Time {
	if at == nil {
		return nil
	}
	t := at.UTC()
	return &t
}

func timeText(at *time.Time) string {
	if at == nil {
		return "-"
	}
	return at.UTC().Format("2006-01-02 15:04:05Z")
}
