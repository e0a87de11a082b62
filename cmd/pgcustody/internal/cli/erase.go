package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
	"pgcustody/jobs"
)

func newEraseCmd(app *App) *cobra.Command {
	e := &erase{App: app}
	cmd := &cobra.Command{
		Use:   "erase USER",
		Short: "Erase a person: request, execute, certify, verify",
		Long: `Erase a person: request, execute, certify, verify.

The request is committed first; the job erase then carries it out, and the
certificate is put under lock in the store where one is configured. An open
erasure request of the person is carried out rather than a second one made.
Exit status 4 says that the erasure is held, or that residue was found.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return e.Run(cmd.Context(), args[0]) },
	}
	cmd.Flags().StringVar(&e.Reason, "reason", "", "why, without naming the person")
	cmd.Flags().StringVar(&e.RequestID, "request-id", "", "id of the request: the same id again is the same request")
	cmd.Flags().StringVar(&e.ResidueBasis, "residue-basis", "", "legal basis on which identifiers that were found elsewhere stay there")
	cmd.Flags().BoolVar(&e.DryRun, "dry-run", false, "print what would be erased and kept, and change nothing")
	return cmd
}

type erase struct {
	*App
	Reason, RequestID, ResidueBasis string
	DryRun                          bool
}

// erasure is what the command prints.
type erasure struct {
	RequestID    uuid.UUID       `json:"request_id"`
	Status       json.RawMessage `json:"status"`
	Certificate  json.RawMessage `json:"certificate,omitempty"`
	Stored       string          `json:"stored,omitempty"` // key of the certificate in the store
	Verification json.RawMessage `json:"verification,omitempty"`
	Runs         []jobs.Report   `json:"runs"`
}

func (e *erase) Run(ctx context.Context, user string) error {
	tenant, err := e.NeedTenant()
	if err != nil {
		return err
	}
	given, err := parseID("--request-id", e.RequestID)
	if err != nil {
		return err
	}
	return e.withDatabase(ctx, "erase", func(pool *pgxpool.Pool) error {
		if e.DryRun {
			return e.plan(ctx, pool, user)
		}
		store, err := e.openStore(ctx, false)
		if err != nil {
			return err
		}
		if store == nil {
			e.Log.Warn("no store: the certificate is not put under lock")
		}
		deps, err := e.deps(pool, store)
		if err != nil {
			return err
		}
		deps.ResidueBasis = e.ResidueBasis
		id, err := e.request(ctx, pool, user, given)
		if err != nil {
			return err
		}
		reports, jobErr := e.workNow(ctx, deps, jobs.EraseArgs{Tenant: tenant, RequestID: id})
		if ctx.Err() != nil {
			return ctx.Err()
		}

		result := erasure{RequestID: id, Runs: reports}
		var verification struct {
			Status string `json:"status"`
			Clean  bool   `json:"clean"`
		}
		err = e.inTenant(ctx, pool, "erasure request", func(tx pgx.Tx) (err error) {
			queries := db.New()
			if result.Status, err = queries.RequestStatus(ctx, tx, id); err != nil {
				return err
			}
			if result.Certificate, err = queries.GetCertificate(ctx, tx, id); err != nil {
				return err
			}
			result.Verification, err = queries.VerifyErasure(ctx, tx, id)
			return err
		})
		if err != nil {
			return err
		}
		if err := json.Unmarshal(result.Verification, &verification); err != nil {
			return fmt.Errorf("read verification: %w", err)
		}
		// A holder that is away does not undo the erasure: the certificate says who has not
		// acknowledged, and `work` sends the notice again.
		unreached := verification.Status == "done" && verification.Clean && onlyNoticesFailed(reports, jobErr)
		if unreached {
			jobErr = nil
		}
		if store != nil && result.Certificate != nil {
			result.Stored = jobs.CertificateKey(tenant, id)
		}
		if err := e.Print(result, func(out io.Writer) {
			fmt.Fprintf(out, "request %s: %s\n", id, verification.Status)
			if result.Certificate != nil {
				fmt.Fprintf(out, "certificate:\n%s\n", indented(result.Certificate))
			}
			if result.Stored != "" {
				fmt.Fprintf(out, "stored as %s\n", result.Stored)
			}
			fmt.Fprintf(out, "verification:\n%s\n", indented(result.Verification))
			if unreached {
				fmt.Fprintln(out, "a holder was not reached: pgcustody work sends its notice again; pgcustody status names it")
			}
		}); err != nil {
			return err
		}
		switch {
		case verification.Status == "held":
			return &Failure{Code: ExitCheck, What: "erasure held", Object: "request " + id.String(),
				Do: "a legal hold covers the person: the erasure goes on when the hold is released"}
		case verification.Status == "done" && !verification.Clean:
			return &Failure{Code: ExitCheck, What: "erasure left something", Object: "request " + id.String(), Do: "see the findings of the verification", Err: jobErr}
		}
		return jobErr
	})
}

// onlyNoticesFailed tells that what failed were notices to holders, and nothing else.
func onlyNoticesFailed(reports []jobs.Report, failed error) bool {
	known := false
	for _, r := range reports {
		if r.Err == nil {
			continue
		}
		if r.Job != (jobs.NotifyArgs{}).Kind() {
			return false
		}
		known = known || errors.Is(failed, r.Err)
	}
	return known
}

func (e *erase) plan(ctx context.Context, pool *pgxpool.Pool, user string) error {
	var plan json.RawMessage
	if err := e.inTenantUnlocked(ctx, pool, "erasure plan", func(tx pgx.Tx) (err error) {
		plan, err = db.New().PlanErasure(ctx, tx, user)
		return err
	}); err != nil {
		return err
	}
	return e.Print(plan, func(out io.Writer) { fmt.Fprintln(out, indented(plan)) })
}

// request commits the request before anything is done about it.
func (e *erase) request(ctx context.Context, pool *pgxpool.Pool, user string, given *uuid.UUID) (id uuid.UUID, err error) {
	err = e.inTenantUnlocked(ctx, pool, "erasure request", func(tx pgx.Tx) error {
		queries := db.New()
		if given == nil {
			open, err := queries.OpenErasures(ctx, tx, user)
			if err != nil {
				return err
			}
			if len(open) > 0 {
				id = open[0]
				return nil
			}
		}
		id, err = queries.RequestErasure(ctx, tx, db.RequestErasureParams{UserID: user, Reason: textOrNil(e.Reason), RequestID: given})
		return err
	})
	return id, err
}

// parseID reads an optional id.
func parseID(field, text string) (*uuid.UUID, error) {
	if text == "" {
		return nil, nil
	}
	id, err := uuid.Parse(text)
	if err != nil {
		return nil, &ConfigError{field, text, "not a UUID"}
	}
	return &id, nil
}

func textOrNil(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// indented writes JSON for people.
func indented(document json.RawMessage) string {
	var value any
	if json.Unmarshal(document, &value) != nil {
		return string(document)
	}
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return string(document)
	}
	return string(text)
}
