package cli

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
	"pgcustody/jobs"
)

func newTenantsCmd(app *App) *cobra.Command {
	cmd := &cobra.Command{Use: "tenants", Short: "Register and list tenants"}
	t := &tenants{App: app}
	register := &cobra.Command{
		Use:   "register TENANT",
		Short: "Register a tenant; one that is there already is left as it is",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return t.Register(cmd.Context(), args[0]) },
	}
	register.Flags().StringVar(&t.Name, "name", "", "what people call it")
	list := &cobra.Command{
		Use:   "list",
		Short: "List all tenants",
		RunE:  func(cmd *cobra.Command, _ []string) error { return t.List(cmd.Context()) },
	}
	cmd.AddCommand(register, list)
	return cmd
}

type tenants struct {
	*App
	Name string
}

func (t *tenants) Register(ctx context.Context, tenant string) error {
	return t.withDatabase(ctx, "register", func(pool *pgxpool.Pool) error {
		scope := jobs.Scope{Tenant: jobs.SystemTenant, Actor: t.Actor, Purpose: "tenant registration"}
		if err := jobs.InContext(ctx, pool, scope, func(tx pgx.Tx) error {
			_, err := db.New().RegisterTenant(ctx, tx, db.RegisterTenantParams{Tenant: tenant, Name: textOrNil(t.Name)})
			return err
		}); err != nil {
			return err
		}
		return t.Print(map[string]string{"tenant": tenant}, func(out io.Writer) { fmt.Fprintf(out, "tenant %s registered\n", tenant) })
	})
}

type tenantRow struct {
	Tenant    string    `json:"tenant"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

func (t *tenants) List(ctx context.Context) error {
	return t.withDatabase(ctx, "list", func(pool *pgxpool.Pool) error {
		rows, err := db.New().ListTenants(ctx, pool)
		if err != nil {
			return err
		}
		list := []tenantRow{}
		for _, r := range rows {
			list = append(list, tenantRow{r.TenantID, r.Name, r.CreatedAt.UTC()})
		}
		return t.Print(list, func(out io.Writer) {
			table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(table, "TENANT\tNAME\tREGISTERED")
			for _, r := range list {
				fmt.Fprintf(table, "%s\t%s\t%s\n", r.Tenant, r.Name, timeText(&r.CreatedAt))
			}
			_ = table.Flush()
		})
	})
}
