package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/jobs"
)

func newKeysCmd(app *App) *cobra.Command {
	k := &keyCommands{App: app}
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make, rotate and destroy a tenant's keys",
		Long: `Personal values are sealed under a data key of each person, and these are wrapped by the
tenant's key-encryption key, which is not in the database but with a provider:

  file:/directory    a file for each version, for development
  env:               PGCUSTODY_KEK_TENANT_VERSION, for development
  awskms:KEY[,KEY…]  AWS KMS; the database keeps its ciphertext

Rotating makes a new version, wraps all data keys under it and retires the old one. Either one
opens everything meanwhile, and no value is touched. A rotation that was interrupted is gone on
with. A retired version may be destroyed once no backup of the wrapped keys is needed that was
taken while it was in use.`,
	}
	var olderThan time.Duration
	reseal := &cobra.Command{
		Use:   "reseal",
		Short: "Replace data keys and the index key, and seal and index anew what they sealed",
		Long: `Replace data keys and the index key, and seal and index anew what they sealed in profiles,
preferences and conversations. Each person's values change over in one transaction, so it may be
interrupted at any moment and begun again. The keys of append-only values stay until the last of
these has expired. The daemon does the same for keys that are older than the policy key_age.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return k.Reseal(cmd.Context(), olderThan) },
	}
	reseal.Flags().DurationVar(&olderThan, "older-than", 0, "only keys that are older than this; by default all")
	cmd.AddCommand(&cobra.Command{
		Use:   "create",
		Short: "Make the first key of the tenant; one that is there already is left as it is",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return k.Create(cmd.Context()) },
	}, &cobra.Command{
		Use:   "list",
		Short: "List the tenant's keys: since when, how many data keys each wraps, whether one is overdue",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return k.List(cmd.Context()) },
	}, &cobra.Command{
		Use:   "rotate",
		Short: "Replace the tenant's key by a new one, or go on with a rotation",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return k.Rotate(cmd.Context()) },
	}, reseal, &cobra.Command{
		Use:   "status",
		Short: "Show how old the tenant's keys are, and how much is sealed under which version of them",
		Long: `Show how old the tenant's keys are, and how much is sealed under which version of them.

Values of tables that change are under the newest data key of their person once a rotation is
over; those of append-only tables, evidence of consents and personal parts of events, keep theirs
for life. It reads every row.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return k.Status(cmd.Context()) },
	}, &cobra.Command{
		Use:   "destroy VERSION",
		Short: "Have the provider forget a version that was retired",
		Args:  cobra.ExactArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return k.Destroy(cmd.Context(), args[0]) },
	})
	return cmd
}

type keyCommands struct{ *App }

// with opens the database and the provider.
func (k *keyCommands) with(ctx context.Context, step string, work func(ring jobs.Keyring, tenant string) error) error {
	tenant, err := k.NeedTenant()
	if err != nil {
		return err
	}
	provider, err := k.NeedKeys()
	if err != nil {
		return err
	}
	return k.withDatabase(ctx, step, func(pool *pgxpool.Pool) error {
		return work(jobs.Keyring{Pool: pool, Provider: provider, Actor: k.Actor}, tenant)
	})
}

func (k *keyCommands) Create(ctx context.Context) error {
	return k.with(ctx, "create", func(ring jobs.Keyring, tenant string) error {
		version, err := ring.Create(ctx, tenant)
		if err != nil {
			return err
		}
		return k.Print(map[string]any{"tenant": tenant, "version": version}, func(out io.Writer) {
			fmt.Fprintf(out, "tenant %s has key-encryption key %d with %s\n", tenant, version, ring.Provider)
		})
	})
}

func (k *keyCommands) List(ctx context.Context) error {
	return k.with(ctx, "list", func(ring jobs.Keyring, tenant string) error {
		list, err := ring.List(ctx, tenant)
		if err != nil {
			return err
		}
		return k.Print(list, func(out io.Writer) {
			table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(table, "VERSION\tPROVIDER\tCREATED\tRETIRED\tDATA KEYS\tNOTE")
			for _, key := range list {
				note := ""
				switch {
				case key.DestroyedAt != nil:
					note = "destroyed " + timeText(key.DestroyedAt)
				case key.Overdue:
					note = "overdue: pgcustody keys rotate"
				}
				fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%d\t%s\n", key.Version, key.Provider, timeText(&key.CreatedAt), timeText(key.RetiredAt), key.DataKeys, note)
			}
			_ = table.Flush()
		})
	})
}

func (k *keyCommands) Rotate(ctx context.Context) error {
	return k.with(ctx, "rotate", func(ring jobs.Keyring, tenant string) error {
		bar := k.newProgress()
		defer bar.Done()
		done, err := ring.Rotate(ctx, tenant, func(done, total int64) {
			bar.Show(jobs.Progress{Job: "rotate", Unit: "data keys", Done: done, Total: max(done, total)})
		})
		if err != nil {
			return err
		}
		bar.Done()
		return k.Print(done, func(out io.Writer) {
			fmt.Fprintf(out, "tenant %s: key %d in use, %d data keys wrapped anew; key %d is retired and may be destroyed once no backup needs it\n",
				tenant, done.Version, done.Rewrapped, done.Retired)
		})
	})
}

func (k *keyCommands) Reseal(ctx context.Context, olderThan time.Duration) error {
	if olderThan < 0 {
		return k.wrong("older-than", olderThan.String(), "must not be negative")
	}
	return k.with(ctx, "reseal", func(ring jobs.Keyring, tenant string) error {
		bar := k.newProgress()
		defer bar.Done()
		done, err := ring.RotateData(ctx, tenant, olderThan, func(values int64) {
			bar.Show(jobs.Progress{Job: "reseal", Unit: "values", Done: values})
		})
		if err != nil {
			return err
		}
		bar.Done()
		return k.Print(done, func(out io.Writer) {
			fmt.Fprintf(out, "tenant %s: new data keys for %d people, %d values sealed anew, %d profiles indexed anew\n", tenant, done.Identities, done.Values, done.Profiles)
		})
	})
}

func (k *keyCommands) Status(ctx context.Context) error {
	return k.with(ctx, "status", func(ring jobs.Keyring, tenant string) error {
		ages, err := ring.Ages(ctx, tenant)
		if err != nil {
			return err
		}
		values, err := ring.Values(ctx, tenant)
		if err != nil {
			return err
		}
		return k.Print(map[string]any{"keys": ages, "values": values}, func(out io.Writer) {
			table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(table, "KIND\tKEYS\tOLDEST\tOVERDUE")
			for _, age := range ages {
				fmt.Fprintf(table, "%s\t%d\t%s\t%d\n", age.Kind, age.Keys, timeText(age.Oldest), age.Overdue)
			}
			fmt.Fprintln(table, "\nCOLUMN\tVERSION\tSTATE\tVALUES")
			for _, v := range values {
				state := v.State
				if v.AppendOnly && state == "older" {
					state = "older, for life"
				}
				fmt.Fprintf(table, "%s.%s\t%d\t%s\t%d\n", v.Table, v.Column, v.KeyVersion, state, v.Values)
			}
			_ = table.Flush()
		})
	})
}

func (k *keyCommands) Destroy(ctx context.Context, text string) error {
	version, err := strconv.Atoi(text)
	if err != nil || version < 1 {
		return usagef("keys destroy: %q is no version: see pgcustody keys list", text)
	}
	return k.with(ctx, "destroy", func(ring jobs.Keyring, tenant string) error {
		final, err := ring.Destroy(ctx, tenant, version)
		if err != nil {
			return err
		}
		return k.Print(map[string]any{"tenant": tenant, "version": version, "final": final}, func(out io.Writer) {
			if final {
				fmt.Fprintf(out, "key %d of tenant %s is destroyed\n", version, tenant)
				return
			}
			fmt.Fprintf(out, "key %d of tenant %s is forgotten here; whoever has a copy of its ciphertext and the right to use the provider can still get it\n", version, tenant)
		})
	})
}
