package cli

import (
	"cmp"
	"context"
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

// addPolicyCmds adds what lists and changes retention policies.
func addPolicyCmds(app *App, cmd *cobra.Command) {
	p := &policies{App: app}
	set := &cobra.Command{
		Use:   "set CLASS INTERVAL",
		Short: "Set how long a class is kept; what shortens waits for a second person",
		Long: `Set how long the tenant keeps a class, as in: retention set consent '10 years'
--basis 'the law that asks for it'. Tenant system has the policies that hold for all
tenants. Longer is set at once. By a shorter one nothing changes: it is a proposal,
which another actor approves within 30 days, by another login of the database.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return p.Set(cmd.Context(), args[0], args[1]) },
	}
	set.Flags().StringVar(&p.Basis, "basis", "", "legal basis (required)")
	approve := &cobra.Command{
		Use:   "approve CHANGE",
		Short: "Approve a shorter policy that somebody else proposed, by another login",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return p.Approve(cmd.Context(), args[0]) },
	}
	reject := &cobra.Command{
		Use:   "reject CHANGE",
		Short: "Reject a shorter policy, or withdraw one's own",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return p.Reject(cmd.Context(), args[0]) },
	}
	reject.Flags().StringVar(&p.Reason, "reason", "", "why, without naming a person (required)")
	list := &cobra.Command{
		Use:   "list",
		Short: "List the policies that hold for the tenant, and the changes that wait for approval",
		RunE:  func(cmd *cobra.Command, _ []string) error { return p.List(cmd.Context()) },
	}
	list.Flags().BoolVar(&p.Decided, "decided", false, "list changes that were decided too")
	cmd.AddCommand(set, approve, reject, list)
}

type policies struct {
	*App
	Basis, Reason string
	Decided       bool
}

// within runs work in a transaction of the tenant.
func (p *policies) within(ctx context.Context, step string, work func(pgx.Tx) error) error {
	return p.withDatabase(ctx, step, func(pool *pgxpool.Pool) error { return p.inTenant(ctx, pool, "retention policy", work) })
}

type policyRow struct {
	Class string    `json:"class"`
	Keep  string    `json:"keep"`
	Basis string    `json:"basis"`
	Own   bool      `json:"own"`
	SetAt time.Time `json:"set_at"`
}

type policyChange struct {
	ChangeID      uuid.UUID  `json:"change_id"`
	Class         string     `json:"class"`
	Keep          string     `json:"keep"`
	KeepBefore    string     `json:"keep_before"`
	Basis         string     `json:"basis"`
	Status        string     `json:"status"`
	ProposedBy    uuid.UUID  `json:"proposed_by"`
	ProposedLogin string     `json:"proposed_login"`
	ProposedAt    time.Time  `json:"proposed_at"`
	ExpiresAt     time.Time  `json:"expires_at"`
	DecidedBy     *uuid.UUID `json:"decided_by,omitempty"`
	DecidedLogin  *string    `json:"decided_login,omitempty"`
	DecidedAt     *time.Time `json:"decided_at,omitempty"`
	Reason        *string    `json:"reason,omitempty"`
}

func (p *policies) Set(ctx context.Context, class, keep string) error {
	if p.Basis == "" {
		return &ConfigError{Field: "--basis", Problem: "required"}
	}
	var set db.SetRetentionPolicyRow
	if err := p.within(ctx, "set", func(tx pgx.Tx) (err error) {
		set, err = db.New().SetRetentionPolicy(ctx, tx, db.SetRetentionPolicyParams{Class: class, Keep: keep, Basis: p.Basis})
		return err
	}); err != nil {
		return err
	}
	status := cmp.Or(set.Decision, "proposed")
	return p.Print(map[string]any{
		"change_id": set.ChangeID, "class": class, "status": status, "keep": set.Keep, "keep_before": set.KeepBefore, "expires_at": set.ExpiresAt.UTC(),
	}, func(out io.Writer) {
		if set.Decision != "" {
			fmt.Fprintf(out, "%s is kept for %s (before: %s)\n", class, set.Keep, set.KeepBefore)
			return
		}
		fmt.Fprintf(out, "%s is still kept for %s: %s is shorter and waits for a second person, until %s\n", class, set.KeepBefore, set.Keep, timeText(&set.ExpiresAt))
		fmt.Fprintf(out, "pgcustody retention approve %s, as another actor and by another login, puts it into force\n", set.ChangeID)
	})
}

func (p *policies) Approve(ctx context.Context, change string) error {
	id, err := parseID("CHANGE", change)
	if err != nil {
		return err
	}
	var approved db.ApproveRetentionChangeRow
	if err := p.within(ctx, "approve", func(tx pgx.Tx) (err error) {
		approved, err = db.New().ApproveRetentionChange(ctx, tx, *id)
		return err
	}); err != nil {
		return err
	}
	return p.Print(map[string]any{"change_id": id, "class": approved.Class, "status": "approved", "keep": approved.Keep, "keep_before": approved.KeepBefore},
		func(out io.Writer) {
			fmt.Fprintf(out, "%s is kept for %s (before: %s)\n", approved.Class, approved.Keep, approved.KeepBefore)
		})
}

func (p *policies) Reject(ctx context.Context, change string) error {
	id, err := parseID("CHANGE", change)
	if err != nil {
		return err
	}
	if p.Reason == "" {
		return &ConfigError{Field: "--reason", Problem: "required"}
	}
	var rejected db.RejectRetentionChangeRow
	if err := p.within(ctx, "reject", func(tx pgx.Tx) (err error) {
		rejected, err = db.New().RejectRetentionChange(ctx, tx, db.RejectRetentionChangeParams{ChangeID: *id, Reason: p.Reason})
		return err
	}); err != nil {
		return err
	}
	return p.Print(map[string]any{"change_id": id, "class": rejected.Class, "status": rejected.Decision}, func(out io.Writer) {
		fmt.Fprintf(out, "change %s of %s is %s\n", id, rejected.Class, rejected.Decision)
	})
}

func (p *policies) List(ctx context.Context) error {
	list := struct {
		Policies []policyRow    `json:"policies"`
		Changes  []policyChange `json:"changes"`
	}{[]policyRow{}, []policyChange{}}
	if err := p.within(ctx, "list", func(tx pgx.Tx) error {
		rows, err := db.New().RetentionPolicies(ctx, tx)
		if err != nil {
			return err
		}
		for _, r := range rows {
			list.Policies = append(list.Policies, policyRow{r.Class, r.Keep, r.Basis, r.Own, r.SetAt.UTC()})
		}
		changes, err := db.New().RetentionChanges(ctx, tx, p.Decided)
		for _, c := range changes {
			list.Changes = append(list.Changes, policyChange{c.ChangeID, c.Class, c.Keep, c.KeepBefore, c.Basis, c.Status,
				c.ProposedBy, c.ProposedLogin, c.ProposedAt.UTC(), c.ExpiresAt.UTC(), c.DecidedBy, c.DecidedLogin, utc(c.DecidedAt), c.Reason})
		}
		return err
	}); err != nil {
		return err
	}
	return p.Print(list, func(out io.Writer) {
		table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(table, "CLASS\tKEPT FOR\tOWN\tSET\tBASIS")
		for _, r := range list.Policies {
			own := "-"
			if r.Own {
				own = "own"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", r.Class, r.Keep, own, timeText(&r.SetAt), r.Basis)
		}
		_ = table.Flush()
		if len(list.Changes) == 0 {
			return
		}
		fmt.Fprintln(out)
		fmt.Fprintln(table, "CHANGE\tCLASS\tFROM\tTO\tSTATUS\tPROPOSED\tBY LOGIN\tDECIDED BY LOGIN")
		for _, c := range list.Changes {
			decided := "-"
			if c.DecidedLogin != nil {
				decided = *c.DecidedLogin
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.ChangeID, c.Class, c.KeepBefore, c.Keep, c.Status, timeText(&c.ProposedAt), c.ProposedLogin, decided)
		}
		_ = table.Flush()
	})
}
