package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pgcustody/db"
	"pgcustody/jobs"
	"pgcustody/jobs/verify"
)

func newVerifyCmd(app *App) *cobra.Command {
	v := &verification{App: app}
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Tell whether the audit trail is what was sealed and anchored, and if not, what was altered",
		Long: `Read every event as raw columns, build entries, leaves, tiles and roots from them, and
hold these against every signed checkpoint in the bucket. Nothing that a superuser of
the database could write decides: origin, verifier keys and bucket are this command's
own settings. A login with BYPASSRLS, or of custody_backup, sees all rows for certain;
what a policy hides from another shows as missing. Leaf hashes wait in TMPDIR, 60 bytes
an event.

With --from-objects the bucket alone is verified: checkpoints, tiles, and the archive.
With --identity the archive's lines are read; without, its manifests are held against the
tree, and its objects against the manifests by the digest of what is stored.

Exit status 0: intact. 1: altered. 2: something could not be looked at. 3: set back,
consistently: events of the end are lost.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return v.Run(cmd.Context()) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&v.FromObjects, "from-objects", false, "verify the bucket alone, without a database")
	addVerifierKeys(flags, &v.VKeys)
	addIdentities(flags, &v.Identities)
	addKnownLost(flags, &v.KnownLost)
	flags.DurationVar(&v.MaxAge, "max-anchor-age", 2*time.Hour, "how old the newest checkpoint may be")
	return cmd
}

type verification struct {
	*App
	FromObjects bool
	VKeys       []string
	Identities  []string
	KnownLost   []string
	MaxAge      time.Duration
}

func addKnownLost(flags *pflag.FlagSet, values *[]string) {
	flags.StringArrayVar(values, "known-lost", nil, "leaves FIRST-LAST that verification reported as lost and whose loss you have looked into: noted and no finding any more; may be given again")
	fromEnv(flags, "known-lost", "PGCUSTODY_KNOWN_LOST")
}

// knownLost reads them, several in one value where commas separate them.
func (c *Config) knownLost(values []string) (known []verify.Leaves, err error) {
	for _, value := range values {
		for text := range strings.SplitSeq(value, ",") {
			leaves, err := verify.ParseLeaves(strings.TrimSpace(text))
			if err != nil {
				return nil, c.wrong("known-lost", text, err.Error())
			}
			known = append(known, leaves)
		}
	}
	return known, nil
}

// unchecked is an error as this command's exit status has it.
func unchecked(err error) error {
	if err == nil {
		return nil
	}
	var config *ConfigError
	if errors.As(err, &config) {
		return err // 2 as well
	}
	cause := err
	var cannot *verify.CannotCheck
	if errors.As(err, &cannot) {
		cause = cannot.Err
	}
	_, line := explain(cause)
	return &Failure{Code: verify.StatusUnchecked, What: "could not verify: " + line, Err: err}
}

func (v *verification) Run(ctx context.Context) error {
	keys, origin, err := v.verifierKeys(v.VKeys)
	if err != nil {
		return err
	}
	known, err := v.knownLost(v.KnownLost)
	if err != nil {
		return err
	}
	// Settings of the bucket are not asked for: what matters is in it, and the auditor's
	// credentials need no more than to read.
	opened, err := v.namedStore(ctx)
	if config := new(ConfigError); errors.As(err, &config) {
		return err
	}
	if err != nil {
		return unchecked(err)
	}
	identities, err := v.identities(v.Identities)
	if err != nil {
		return err
	}
	bar := v.newProgress()
	defer bar.Done()
	options := verify.Options{
		Store: opened, Origin: origin, Keys: keys, MaxAge: v.MaxAge, Identities: identities, KnownLost: known,
		Show: func(stage string, done, total int64) {
			bar.Show(jobs.Progress{Job: "verify", Unit: stage, Done: done, Total: total})
		},
	}
	if !v.FromObjects {
		pool, err := v.Pool(ctx, "verify")
		if err != nil {
			return unchecked(err)
		}
		defer pool.Close()
		options.Database = pool
		options.Prepare = func(ctx context.Context, tx pgx.Tx) error {
			purpose := "verify"
			return db.New().SetContext(ctx, tx, db.SetContextParams{Tenant: jobs.SystemTenant, Actor: v.Actor, Purpose: &purpose})
		}
	}
	report, err := verify.Run(ctx, options)
	bar.Done()
	if printed := v.Print(report, func(out io.Writer) { v.write(out, report, err) }); printed != nil {
		return printed
	}
	// What was found altered is so, whatever else could not be looked at.
	if err != nil && report.Status != verify.StatusAltered {
		return unchecked(err)
	}
	switch report.Status {
	case verify.StatusAltered:
		altered := &Failure{Code: report.Status, What: "altered", Object: origin, Do: "keep the database as it is and have each finding looked at"}
		if err != nil {
			altered.Do += "; more could not be looked at: " + unchecked(err).Error()
		}
		return altered
	case verify.StatusSetBack:
		return &Failure{Code: report.Status, What: "set back", Object: origin, Do: "events of the end are lost; look for them in backups and in what the server shipped"}
	}
	return nil
}

func (v *verification) write(out io.Writer, r *verify.Report, err error) {
	for _, f := range r.Findings {
		fmt.Fprintln(out, f)
	}
	for kind, n := range r.Counts {
		if named := int64(100); n > named {
			fmt.Fprintf(out, "%s: %d in all, %d of them named\n", kind, n, named)
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintln(out, "note:", n)
	}
	if r.Checkpoint > 0 {
		fmt.Fprintf(out, "checkpoint %d of %s, signed %s: %d leaves anchored\n", r.Checkpoint, r.Origin, r.AnchoredAt.Format(time.RFC3339), r.Anchored)
	}
	if v.FromObjects {
		fmt.Fprintf(out, "%d leaves, %d archived events held against them\n", r.Leaves, r.Archived)
	} else {
		fmt.Fprintf(out, "%d leaves, %d events held against them, %d archived ones, %d not sealed yet\n", r.Leaves, r.Events, r.Archived, r.Unsealed)
	}
	if len(r.Findings) == 0 && err == nil {
		fmt.Fprintln(out, "intact")
	}
}
