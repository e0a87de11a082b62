package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
	"pgcustody/jobs"
)

func newLoginCmd(app *App) *cobra.Command {
	l := &loginCommands{App: app}
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Say which login of the database is a person's, and which one gets its context by tokens alone",
		Long: `Say which login of the database is a person's, and which one gets its context by tokens alone.
The others choose their context themselves, which guards against mistakes and not against injected
SQL. Each change is an event, and holds from the login's next transaction on.

The changes are for a login that is a member of custody_admin: that of --migrate-url. list takes
the runner's. pgcustody check then says whether the server's log keeps what the login reads.`,
	}
	adminFlag(app, cmd)
	register := &cobra.Command{
		Use:   "register LOGIN --as USER",
		Short: "Bind a person's login to one actor of the tenant, and to purposes",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return l.Register(cmd.Context(), args[0]) },
	}
	register.Flags().StringVar(&l.As, "as", "", "user_id as which the login acts (required)")
	register.Flags().StringArrayVar(&l.Purposes, "purpose", nil, "purpose that it may give; may be given again; any where none is named")
	tokens := &cobra.Command{
		Use:   "tokens LOGIN",
		Short: "Put an application's login into token mode: custody.begin_context alone gives it a context",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return l.Tokens(cmd.Context(), args[0]) },
	}
	tokens.Flags().BoolVar(&l.Off, "off", false, "put the login, whatever its mode, back into free mode")
	list := &cobra.Command{
		Use:   "list",
		Short: "List the logins on record: people of the tenant, and applications in token mode",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return l.List(cmd.Context()) },
	}
	list.Flags().BoolVar(&l.Ended, "ended", false, "list what was on record before, too")
	cmd.AddCommand(register, &cobra.Command{
		Use:   "retire LOGIN",
		Short: "Retire a login of the tenant: it gets no context any more (of token mode: --tenant system)",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return l.Retire(cmd.Context(), args[0]) },
	}, tokens, list, &cobra.Command{
		Use:   "rotate-key",
		Short: "Replace the key that authenticates contexts; those under the key before stand until they end",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return l.RotateKey(cmd.Context()) },
	})
	return cmd
}

// adminFlag declares the login for what custody_admin alone may do.
func adminFlag(app *App, cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&app.MigrateURL, "migrate-url", "", "database as a login of custody_admin, for changes; without it --database-url")
	fromEnv(cmd.PersistentFlags(), "migrate-url", "PGCUSTODY_MIGRATE_URL")
}

// asAdmin runs work as a login of custody_admin, in the context of a tenant.
func (a *App) asAdmin(ctx context.Context, step, tenant string, work func(pgx.Tx) error) error {
	a.DatabaseURL = cmp.Or(a.MigrateURL, a.DatabaseURL)
	return a.withDatabase(ctx, step, func(pool *pgxpool.Pool) error {
		return jobs.InContext(ctx, pool, jobs.Scope{Tenant: tenant, Actor: a.Actor, Purpose: "login administration"}, work)
	})
}

type loginCommands struct {
	*App
	As         string
	Purposes   []string
	Off, Ended bool
}

func (l *loginCommands) Register(ctx context.Context, login string) error {
	tenant, err := l.NeedTenant()
	if err != nil {
		return err
	}
	if l.As == "" {
		return &ConfigError{Field: "--as", Problem: "required: give the user_id as which the person acts"}
	}
	if err := l.asAdmin(ctx, "register", tenant, func(tx pgx.Tx) error {
		return db.New().RegisterLogin(ctx, tx, db.RegisterLoginParams{Role: login, Actor: l.As, Tenant: tenant, Purposes: l.Purposes})
	}); err != nil {
		return err
	}
	return l.Print(map[string]any{"login": login, "tenant": tenant, "mode": "person"}, func(out io.Writer) {
		fmt.Fprintf(out, "login %s is a person's, of tenant %s; see pgcustody check\n", login, tenant)
	})
}

func (l *loginCommands) Retire(ctx context.Context, login string) error {
	tenant, err := l.NeedTenant()
	if err != nil {
		return err
	}
	if err := l.asAdmin(ctx, "retire", tenant, func(tx pgx.Tx) error { return db.New().RetireLogin(ctx, tx, login) }); err != nil {
		return err
	}
	return l.Print(map[string]any{"login": login, "tenant": tenant, "mode": "retired"}, func(out io.Writer) {
		fmt.Fprintf(out, "login %s is retired; alter role … nologin keeps it out altogether\n", login)
	})
}

func (l *loginCommands) Tokens(ctx context.Context, login string) error {
	if err := l.asAdmin(ctx, "tokens", jobs.SystemTenant, func(tx pgx.Tx) error {
		return db.New().RequireTokens(ctx, tx, db.RequireTokensParams{Role: login, Required: !l.Off})
	}); err != nil {
		return err
	}
	mode := "token"
	if l.Off {
		mode = "free"
	}
	return l.Print(map[string]any{"login": login, "mode": mode}, func(out io.Writer) { fmt.Fprintf(out, "login %s is in %s mode\n", login, mode) })
}

func (l *loginCommands) RotateKey(ctx context.Context) error {
	var kid string
	if err := l.asAdmin(ctx, "rotate-key", jobs.SystemTenant, func(tx pgx.Tx) (err error) {
		kid, err = db.New().RotateContextKey(ctx, tx)
		return err
	}); err != nil {
		return err
	}
	return l.Print(map[string]string{"kid": kid}, func(out io.Writer) { fmt.Fprintf(out, "contexts are authenticated under key %s\n", kid) })
}

type shownLogin struct {
	Tenant       string     `json:"tenant"`
	Login        string     `json:"login"`
	Mode         string     `json:"mode"`
	Actor        *string    `json:"actor"`
	Purposes     []string   `json:"purposes"`
	RegisteredAt time.Time  `json:"registered_at"`
	EndedAt      *time.Time `json:"ended_at"`
}

func (l *loginCommands) List(ctx context.Context) error {
	tenant, err := l.NeedTenant()
	if err != nil {
		return err
	}
	list := []shownLogin{}
	if err := l.withDatabase(ctx, "list", func(pool *pgxpool.Pool) error {
		for _, of := range slices.Compact([]string{tenant, jobs.SystemTenant}) {
			if err := jobs.InContext(ctx, pool, jobs.Scope{Tenant: of, Actor: l.Actor, Purpose: "login administration"}, func(tx pgx.Tx) error {
				rows, err := db.New().ListLogins(ctx, tx, l.Ended)
				for _, r := range rows {
					list = append(list, shownLogin{of, r.RoleName, r.Mode, r.Actor, r.Purposes, r.RegisteredAt.UTC(), r.EndedAt})
				}
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return l.Print(list, func(out io.Writer) {
		table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(table, "LOGIN\tMODE\tTENANT\tACTOR\tPURPOSES\tREGISTERED\tENDED")
		for _, r := range list {
			actor, purposes := "-", "any"
			if r.Actor != nil {
				actor = *r.Actor
			}
			if r.Mode != "person" {
				purposes = "-"
			} else if len(r.Purposes) > 0 {
				purposes = strings.Join(r.Purposes, ", ")
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Login, r.Mode, r.Tenant, actor, purposes, timeText(&r.RegisteredAt), timeText(r.EndedAt))
		}
		_ = table.Flush()
	})
}
