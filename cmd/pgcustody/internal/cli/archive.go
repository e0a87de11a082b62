package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pgcustody/db"
	"pgcustody/jobs"
)

func newArchiveCmd(app *App) *cobra.Command {
	cmd := &cobra.Command{Use: "archive", Short: "Archive closed days of the audit trail, and prove what is archived"}
	a := &archive{App: app}
	run := &cobra.Command{
		Use:   "run",
		Short: "Archive the events of closed days, then drop months past the hot period",
		Long: `Archive the events of closed days (UTC), of all tenants, in locked objects: each is
read back and compared before it is on record. Then months whose events are all on
record, and that are past the hot period and under no legal hold, leave Postgres.
Safe to run again, and while another run is at work.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.Run(cmd.Context()) },
	}
	run.Flags().BoolVar(&a.DryRun, "dry-run", false, "show what would be archived and dropped, and what is kept and why")
	list := &cobra.Command{
		Use:   "list",
		Short: "List the segments on record",
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.List(cmd.Context()) },
	}
	list.Flags().StringVar(&a.From, "from", "", "only segments with events from this time on")
	list.Flags().StringVar(&a.To, "to", "", "only segments with events before this time")
	verify := &cobra.Command{
		Use:   "verify",
		Short: "Read segments back from the store and hold them against manifest and record",
		Long: `Read segments back from the store and hold every line against the manifest, and both
against the record; the locks too. Without --identity the stored bytes are held against
the manifest by their digest. Without --sample all segments are read, and objects that
are on no record are found. Exit status 4 if anything is wrong.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.Verify(cmd.Context()) },
	}
	verify.Flags().IntVar(&a.Sample, "sample", 0, "only this many segments: the newest, and others at random")
	addIdentities(verify.Flags(), &a.Identities)
	cmd.AddCommand(run, list, verify, newArchiveRestoreCmd(app), newArchiveExportCmd(app))
	return cmd
}

type archive struct {
	*App
	DryRun bool
	Sample int
	// From and To bound what is listed; empty is no bound.
	From, To string
	// Identities are files that open the archive.
	Identities []string
}

// addIdentities declares the flag for what opens the archive.
func addIdentities(flags *pflag.FlagSet, files *[]string) {
	flags.StringArrayVar(files, "identity", nil, "file with an identity of age that opens the archive; again for more")
}

func (a *archive) Run(ctx context.Context) error {
	if a.DryRun {
		return a.plan(ctx)
	}
	return a.runJobs(ctx, "run", true, func(_ *pgxpool.Pool, deps *jobs.Deps) ([]jobArgs, error) { return a.archiveJob(deps) })
}

// archiveJob is the job with what it needs: recipients, and the signer that signs its
// index where one is configured.
func (a *App) archiveJob(deps *jobs.Deps) ([]jobArgs, error) {
	if len(a.recipients.Keys) == 0 {
		return nil, &ConfigError{Field: "--archive-recipients", Problem: "required: the archive is always encrypted; give public keys of age, age1…, whose identities are kept apart from this machine, or a file of them, or set PGCUSTODY_ARCHIVE_RECIPIENTS; age-keygen makes one"}
	}
	if a.Signer != "" {
		signer, err := a.needSigner()
		if err != nil {
			return nil, err
		}
		deps.Signer = signer // until the process ends
	}
	return []jobArgs{jobs.ArchiveArgs{}}, nil
}

// inSystem runs work in the context of tenant system.
func (a *archive) inSystem(ctx context.Context, step string, work func(pgx.Tx) error) error {
	return a.withDatabase(ctx, step, func(pool *pgxpool.Pool) error {
		return jobs.InContext(ctx, pool, jobs.Scope{Tenant: jobs.SystemTenant, Actor: a.Actor, Purpose: "archive " + step}, work)
	})
}

type listedSegment struct {
	Day          string    `json:"day"`
	Part         int32     `json:"part"`
	Object       string    `json:"object"`
	Manifest     string    `json:"manifest"`
	Events       int64     `json:"events"`
	PlainBytes   int64     `json:"plain_bytes"`
	StoredBytes  int64     `json:"stored_bytes"`
	PlainSHA256  string    `json:"plain_sha256"`
	StoredSHA256 string    `json:"stored_sha256"`
	First        time.Time `json:"first_occurred_at"`
	Last         time.Time `json:"last_occurred_at"`
	RetainUntil  time.Time `json:"retain_until"`
	RecordedAt   time.Time `json:"recorded_at"`
}

func (a *archive) List(ctx context.Context) error {
	from, to := time.Time{}, time.Unix(1<<40, 0)
	for _, bound := range []struct {
		flag, text string
		at         *time.Time
	}{{"--from", a.From, &from}, {"--to", a.To, &to}} {
		if bound.text == "" {
			continue
		}
		var err error
		if *bound.at, err = parseTime(bound.flag, bound.text); err != nil {
			return err
		}
	}
	segments := []listedSegment{}
	err := a.inSystem(ctx, "list", func(tx pgx.Tx) error {
		rows, err := db.New().ArchiveSegments(ctx, tx)
		for _, s := range rows {
			if s.LastOccurredAt.Before(from) || !s.FirstOccurredAt.Before(to) {
				continue
			}
			segments = append(segments, listedSegment{
				Day: s.Day.Format(time.DateOnly), Part: s.Part, Object: s.ObjectKey, Manifest: s.ManifestKey, Events: s.Events,
				PlainBytes: s.PlainBytes, StoredBytes: s.StoredBytes,
				PlainSHA256: hex.EncodeToString(s.PlainSha256), StoredSHA256: hex.EncodeToString(s.StoredSha256),
				First: s.FirstOccurredAt.UTC(), Last: s.LastOccurredAt.UTC(), RetainUntil: s.RetainUntil.UTC(), RecordedAt: s.RecordedAt.UTC(),
			})
		}
		return err
	})
	if err != nil {
		return err
	}
	return a.Print(segments, func(out io.Writer) {
		if len(segments) == 0 {
			fmt.Fprintln(out, "no segments")
			return
		}
		table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(table, "DAY\tPART\tEVENTS\tPLAIN\tSTORED\tLOCKED UNTIL\tOBJECT")
		for _, s := range segments {
			fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%s\t%s\n", s.Day, s.Part, s.Events, s.PlainBytes, s.StoredBytes, s.RetainUntil.Format(time.DateOnly), s.Object)
		}
		_ = table.Flush()
	})
}

func (a *archive) Verify(ctx context.Context) error {
	if a.Sample < 0 {
		return a.wrong("sample", fmt.Sprint(a.Sample), "must be 0 or more")
	}
	identities, err := a.identities(a.Identities)
	if err != nil {
		return err
	}
	var checks []jobs.SegmentCheck
	err = a.withDatabase(ctx, "verify", func(pool *pgxpool.Pool) error {
		opened, err := a.openStore(ctx, true)
		if err != nil {
			return err
		}
		deps, err := a.deps(pool, opened)
		if err != nil {
			return err
		}
		bar := a.newProgress()
		defer bar.Done()
		checks, err = jobs.VerifyArchive(ctx, deps, identities, a.Sample, func(done, total int) {
			bar.Show(jobs.Progress{Job: "archive verify", Unit: "segments", Done: int64(done), Total: int64(total)})
		})
		return err
	})
	if err != nil {
		return err
	}
	found, notes := []jobs.SegmentCheck{}, []jobs.SegmentCheck{}
	segments, events := 0, int64(0)
	for _, c := range checks {
		if c.Finding != "" {
			found = append(found, c)
		}
		switch {
		case c.Segment != "" && c.Note == "":
			segments++
			events += c.Events
		case c.Note != "":
			notes = append(notes, c)
		}
	}
	err = a.Print(map[string]any{"segments": segments, "events": events, "findings": found, "notes": notes}, func(out io.Writer) {
		fmt.Fprintf(out, "%d segments with %d events verified, %d findings\n", segments, events, len(found))
		for _, c := range notes {
			fmt.Fprintf(out, "note: %s: %s\n", c.Object, c.Note)
		}
		for _, c := range found {
			fmt.Fprintf(out, "%s: %s\n", c.Object, c.Finding)
		}
	})
	if err == nil && len(found) > 0 {
		return &Failure{Code: ExitCheck, What: fmt.Sprintf("the archive does not hold: %d findings", len(found)), Object: found[0].Object, Do: found[0].Finding}
	}
	return err
}
