package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/jobs/backup"
)

func newBackupCmd(app *App) *cobra.Command {
	b := &backups{App: app, Keep: days(90 * day), KeepKeys: days(7 * day)}
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Write data and keys apart into the locked store, encrypted",
		Long: `Dump the database by pg_dump, the data and the wrapped keys apart and from one snapshot,
encrypt both to recipients of age, and stream them into the store under lock. Each is read
back and compared; the manifest, which is written last, makes them a backup. Then backups
whose time is over are deleted. An erased person's keys are in the backups of the keys until
these are: give them a short life.

Connects directly, not through a pooler, over TLS, as a login that is a member of
custody_backup; the run is recorded by the runner's login (--database-url). Nothing is
written to a disk here.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return b.Run(cmd.Context()) },
	}
	flags := cmd.Flags()
	flags.StringVar(&b.URL, "backup-url", "", "database as a login of custody_backup, as in postgres://login@host/database?sslmode=verify-full")
	fromEnv(flags, "backup-url", "PGCUSTODY_BACKUP_URL")
	flags.StringArrayVar(&b.Recipients, "recipient", nil, "public key of age that may open it, age1…; again for more")
	fromEnv(flags, "recipient", "PGCUSTODY_BACKUP_RECIPIENT")
	flags.StringArrayVar(&b.Files, "recipients-file", nil, "file with such keys, a line each")
	fromEnv(flags, "recipients-file", "PGCUSTODY_BACKUP_RECIPIENTS_FILE")
	flags.Var(&b.Keep, "keep", "how long the data is locked and kept")
	fromEnv(flags, "keep", "PGCUSTODY_BACKUP_KEEP")
	flags.Var(&b.KeepKeys, "keep-keys", "how long the keys are locked and kept")
	fromEnv(flags, "keep-keys", "PGCUSTODY_BACKUP_KEEP_KEYS")
	addPGBin(cmd, &b.PGBin)
	cmd.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List the backups in the store",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return b.List(cmd.Context()) },
	}, &cobra.Command{
		Use:   "prune",
		Short: "Delete backups whose time is over, as each backup does; needs no database",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return b.Prune(cmd.Context()) },
	})
	return cmd
}

func addPGBin(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "pg-bin", "", "directory of pg_dump and pg_restore, of the server's version or later; default: along PATH")
	fromEnv(cmd.Flags(), "pg-bin", "PGCUSTODY_PG_BIN")
}

const day = 24 * time.Hour

// days is a duration of a flag that may be given in days, as in 90d.
type days time.Duration

func (d *days) String() string {
	if time.Duration(*d)%day == 0 {
		return strconv.Itoa(int(time.Duration(*d)/day)) + "d"
	}
	return time.Duration(*d).String()
}

func (d *days) Set(text string) error {
	if number, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.Atoi(number)
		if err != nil || n > 36500 {
			return errors.New("give days, as in 90d, or hours, as in 36h")
		}
		*d = days(time.Duration(n) * day)
		return nil
	}
	parsed, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("give days, as in 90d, or hours, as in 36h")
	}
	*d = days(parsed)
	return nil
}

func (*days) Type() string { return "duration" }

type backups struct {
	*App
	URL               string
	Recipients, Files []string
	Keep, KeepKeys    days
	PGBin             string
}

func (b *backups) Run(ctx context.Context) error {
	recipients, err := backup.ParseRecipients(b.Recipients, b.Files)
	if err != nil {
		return err
	}
	if b.URL == "" {
		return &ConfigError{Field: "--backup-url", Problem: "required: the database as a login of custody_backup, as in postgres://login@host/database?sslmode=verify-full, or set PGCUSTODY_BACKUP_URL"}
	}
	var done *backup.Result
	err = b.withDatabase(ctx, "record", func(pool *pgxpool.Pool) error {
		opened, err := b.openStore(ctx, true)
		if err != nil {
			return err
		}
		bar := b.newProgress()
		defer bar.Done()
		done, err = backup.Run(ctx, backup.Config{
			URL: b.URL, Runner: pool, Actor: b.Actor, Store: opened, Accept: b.StoreAccept, Recipients: recipients,
			KeepData: time.Duration(b.Keep), KeepKeys: time.Duration(b.KeepKeys), PGBin: b.PGBin, Log: b.Log, OnProgress: bar.Show,
		})
		return err
	})
	if done == nil {
		return err
	}
	return errors.Join(b.Print(done, func(out io.Writer) {
		fmt.Fprintf(out, "backup %s of %s as of %s\n", done.ID, done.Database, done.SnapshotAt.Format(time.RFC3339))
		fmt.Fprintf(out, "data: %d bytes, locked until %s\n", done.Data.Size, done.Data.LockedUntil.Format(time.RFC3339))
		fmt.Fprintf(out, "keys: %d bytes, locked until %s\n", done.Keys.Size, done.Keys.LockedUntil.Format(time.RFC3339))
		fmt.Fprintf(out, "manifest: sha256 %s\n", done.ManifestSHA256)
		printPruned(out, done.Pruned)
	}), err)
}

func printPruned(out io.Writer, p backup.Pruned) {
	fmt.Fprintf(out, "deleted: %d data and %d key backups whose time is over, %d unfinished uploads\n", p.Data, p.Keys, p.Uploads)
}

func (b *backups) List(ctx context.Context) error {
	opened, err := b.openStore(ctx, true)
	if err != nil {
		return err
	}
	list, err := backup.List(ctx, opened)
	if err != nil {
		return err
	}
	return b.Print(list, func(out io.Writer) {
		if len(list) == 0 {
			fmt.Fprintln(out, "no backups")
			return
		}
		table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(table, "BACKUP\tAS OF\tDATA\tLOCKED UNTIL\tKEYS\tLOCKED UNTIL\tKEY VERSIONS")
		for _, entry := range list {
			if entry.Problem != "" {
				fmt.Fprintf(table, "%s\t%s\n", entry.ID, entry.Problem)
				continue
			}
			size := func(there bool, n int64) string {
				if !there {
					return "gone"
				}
				return strconv.FormatInt(n, 10)
			}
			var keks []string
			for _, kek := range entry.KEKs {
				keks = append(keks, fmt.Sprintf("%s %s", kek.Tenant, strings.Trim(fmt.Sprint(kek.Valid), "[]")))
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", entry.ID, entry.SnapshotAt.Format(time.RFC3339),
				size(entry.HasData, entry.Data.Size), entry.Data.LockedUntil.Format(time.RFC3339),
				size(entry.HasKeys, entry.Keys.Size), entry.Keys.LockedUntil.Format(time.RFC3339), strings.Join(keks, ", "))
		}
		_ = table.Flush()
	})
}

func (b *backups) Prune(ctx context.Context) error {
	opened, err := b.openStore(ctx, true)
	if err != nil {
		return err
	}
	pruned, err := backup.Prune(ctx, opened)
	if err != nil {
		return err
	}
	return b.Print(pruned, func(out io.Writer) { printPruned(out, pruned) })
}
