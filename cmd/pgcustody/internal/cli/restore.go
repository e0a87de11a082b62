package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pgcustody/jobs/backup"
)

func newRestoreCmd(app *App) *cobra.Command {
	r := &restoreCommand{App: app}
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Bring a backup back into a new cluster, and repeat every later erasure before anybody can read",
		Long: `Restore a backup into a database that is empty or is to be made, as a superuser or as the
login for migrations. Everything is read, compared and decrypted before the database is
touched. Until the end only superusers, its owner and this login may connect: data, keys and
guards are restored, the schema is migrated, every erasure with a certificate in the store is
repeated and verified, and the archive is held against the record. Then the group roles of
pgcustody are let in, and nobody else: grant connect to other roles yourself.

It may be killed at any moment: the database stays closed, and the same command goes on with
it, or begins it anew. Exit status 4: a check failed, and the database stays closed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return r.Run(cmd.Context()) },
	}
	flags := cmd.Flags()
	flags.StringVar(&r.Into, "into", "", "database to make or to fill, as in postgres://login@host/database?sslmode=verify-full")
	fromEnv(flags, "into", "PGCUSTODY_RESTORE_URL")
	flags.StringVar(&r.Backup, "backup", "latest", "id of the backup, or latest")
	flags.StringVar(&r.Manifest, "manifest-sha256", "", "what the manifest must have, as backup printed it")
	flags.StringArrayVar(&r.Identities, "identity", nil, "file with an identity of age that one of the recipients is of; again for more")
	fromEnv(flags, "identity", "PGCUSTODY_BACKUP_IDENTITY")
	flags.BoolVar(&r.WithoutKeys, "without-keys", false, "restore the data alone: no sealed value can be opened by anybody")
	flags.StringVar(&r.Reason, "release-holds-reason", "", "as a privacy officer: why holds are released that the backup brings back on people who were erased since, without naming a person")
	flags.StringArrayVar(&r.Skip, "skip-certificate", nil, "object among the certificates that is none; again for more")
	flags.IntVar(&r.Sample, "sample", 0, "verify only this many segments of the archive: the newest, and others at random; 0 for all")
	addPGBin(cmd, &r.PGBin)
	return cmd
}

type restoreCommand struct {
	*App
	Into, Backup, Manifest, Reason, PGBin string
	Identities, Skip                      []string
	WithoutKeys                           bool
	Sample                                int
}

func (r *restoreCommand) Run(ctx context.Context) error {
	if r.Into == "" {
		return &ConfigError{Field: "--into", Problem: "required: the database to make or to fill, as in postgres://login@host/database?sslmode=verify-full"}
	}
	if r.Sample < 0 {
		return r.wrong("sample", fmt.Sprint(r.Sample), "must be 0 or more")
	}
	identities, err := backup.ReadIdentities(r.Identities)
	if err != nil {
		return err
	}
	opened, err := r.openStore(ctx, true)
	if err != nil {
		return err
	}
	bar := r.newProgress()
	defer bar.Done()
	done, err := backup.Restore(ctx, backup.RestoreConfig{
		Store: opened, Backup: r.Backup, ManifestSHA256: r.Manifest, Identities: identities, Into: r.Into, Actor: r.Actor, PGBin: r.PGBin,
		WithoutKeys: r.WithoutKeys, ReleaseReason: r.Reason, SkipCertificates: r.Skip, Sample: r.Sample, Log: r.Log, OnProgress: bar.Show,
		OnStep: func(step string) { r.Log.Info("restore", "step", step) },
	})
	if err != nil {
		return err
	}
	bar.Done()
	return r.Print(done, func(out io.Writer) {
		fmt.Fprintf(out, "backup %s, as of %s, is in database %s\n", done.Backup, done.SnapshotAt.Format(time.RFC3339), done.Database)
		e := done.Erasures
		fmt.Fprintf(out, "erasures: %d certificates in the store; %d repeated, %d were in the backup, %d of people it does not know; %d exports deleted\n",
			e.Certificates, e.Replayed, e.Standing, e.Unknown, e.Exports)
		fmt.Fprintf(out, "archive: %d segments with %d events verified; %d objects are newer than the backup\n", done.Archive.Segments, done.Archive.Events, done.Archive.Newer)
		if !done.Keys {
			fmt.Fprintln(out, "keys: none. No value that was sealed before can be opened, by anybody")
		}
		for _, finding := range done.Findings {
			fmt.Fprintln(out, "finding: "+finding)
		}
		fmt.Fprintf(out, "open for members of %s\n", strings.Join(done.Roles, ", "))
	})
}
