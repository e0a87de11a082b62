package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pgcustody/jobs"
	"pgcustody/jobs/ledger"
)

func newSignerCmd(app *App) *cobra.Command {
	s := &signerCommands{App: app}
	cmd := &cobra.Command{
		Use:   "signer",
		Short: "Make, show and rotate the key that signs the audit ledger's checkpoints",
		Long: `Checkpoints of the audit ledger are signed by a key that is not in the database: in a folder
(--signer) that only who runs this can read, on a machine that is not the database's. Beside the
key stand the verifier keys, which are public and belong with every auditor, and what was signed
last: nothing is signed that does not go on from it.`,
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "init",
		Short: "Make a signing key for the log --origin in the folder --signer",
		Long: `Make a signing key for the log --origin in the folder --signer. A key that is there is never
replaced. In the folder of one that was lost a new one is made, and the old verifier key ends.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return s.Init() },
	}, &cobra.Command{
		Use:   "show",
		Short: "Print the verifier keys, which auditors need, and what was signed last",
		Long: `Print the verifier keys, which auditors need, and what was signed last. Each key stands with
the times from and until which its signatures count, by the checkpoints' own time; the line is what
proof check --vkey takes.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return s.Show() },
	}, &cobra.Command{
		Use:   "rotate",
		Short: "Replace the signing key: the next checkpoint is signed by both, then the old one is removed",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return s.Rotate(cmd.Context()) },
	}, &cobra.Command{
		Use:   "adopt",
		Short: "Have this database go on with the log whose newest checkpoint is in the store",
		Long: `Have this database go on with the log whose newest checkpoint is in the store, although that
was made by another cluster, or covers events that this database has not: it was restored, copied
or set back. The next run of the anchor takes over from the store the leaves that the database
lacks; those whose events are nowhere to be found stay as lost leaves. What was signed last, as the
signer remembers it, becomes the newest checkpoint in the store.

First make sure that the other database no longer anchors, and that nobody altered this one:
pgcustody verify.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.Adopt(cmd.Context()) },
	})
	return cmd
}

type signerCommands struct{ *App }

// needSigner opens the configured signer.
func (a *App) needSigner() (*ledger.Signer, error) {
	if a.Signer == "" {
		return nil, &ConfigError{Field: "--signer", Problem: "required: name the folder of the signing key, or set PGCUSTODY_SIGNER"}
	}
	signer, err := ledger.OpenSigner(a.Signer)
	if err != nil {
		return nil, err
	}
	if a.Origin != "" && a.Origin != signer.Origin() {
		signer.Close()
		return nil, a.wrong("origin", a.Origin, "the signer in "+a.Signer+" is that of "+signer.Origin())
	}
	return signer, nil
}

// anchorDeps is what the anchor is built on, for the time of work.
func (a *App) anchorDeps(ctx context.Context, step string, work func(jobs.Deps) error) error {
	signer, err := a.needSigner()
	if err != nil {
		return err
	}
	defer signer.Close()
	if _, err := a.NeedStore(); err != nil {
		return err
	}
	return a.withDatabase(ctx, step, func(pool *pgxpool.Pool) error {
		opened, err := a.openStore(ctx, true)
		if err != nil {
			return err
		}
		deps, err := a.deps(pool, opened)
		if err != nil {
			return err
		}
		deps.Signer = signer
		return work(deps)
	})
}

func (s *signerCommands) Init() error {
	if s.Origin == "" {
		return &ConfigError{Field: "--origin", Problem: "required: name the log, as in example.com/custody, or set PGCUSTODY_ORIGIN"}
	}
	if s.Signer == "" {
		return &ConfigError{Field: "--signer", Problem: "required: name the folder of the signing key, or set PGCUSTODY_SIGNER"}
	}
	signer, err := ledger.InitSigner(s.Signer, s.Origin, time.Now())
	if err != nil {
		return err
	}
	defer signer.Close()
	return s.print(signer)
}

func (s *signerCommands) Show() error {
	signer, err := s.needSigner()
	if err != nil {
		return err
	}
	defer signer.Close()
	return s.print(signer)
}

func (s *signerCommands) Rotate(ctx context.Context) error {
	signer, err := s.needSigner()
	if err != nil {
		return err
	}
	defer signer.Close()
	if err := signer.Rotate(ctx, time.Now()); err != nil {
		return err
	}
	return s.print(signer)
}

func (s *signerCommands) Adopt(ctx context.Context) error {
	return s.anchorDeps(ctx, "adopt", func(deps jobs.Deps) error {
		newest, state, err := jobs.NewAnchor(deps).Adopt(ctx)
		if err != nil {
			return err
		}
		return s.Print(state, func(out io.Writer) {
			if newest == nil {
				fmt.Fprintln(out, "nothing is anchored yet")
				return
			}
			fmt.Fprintf(out, "cluster %s goes on after checkpoint %d of cluster %s, %s, %d entries: pgcustody anchor, or the next run of the job\n",
				state.Adopted.SystemIdentifier, newest.Number, newest.SystemIdentifier, newest.Time.Format(time.RFC3339), newest.Size)
		})
	})
}

type shownSigner struct {
	Origin       string        `json:"origin"`
	VerifierKeys []string      `json:"verifier_keys"`
	State        *ledger.State `json:"state"`
}

func (s *signerCommands) print(signer *ledger.Signer) error {
	shown := shownSigner{Origin: signer.Origin()}
	for _, key := range signer.VerifierKeys() {
		shown.VerifierKeys = append(shown.VerifierKeys, key.String())
	}
	state, err := signer.State()
	if err == nil {
		shown.State = &state
	}
	return s.Print(shown, func(out io.Writer) {
		for _, key := range shown.VerifierKeys {
			fmt.Fprintln(out, key)
		}
		switch {
		case err != nil:
			fmt.Fprintf(out, "what was signed last is not known: %s\n", err)
		case state.Number == 0:
			fmt.Fprintln(out, "nothing was signed yet")
		default:
			fmt.Fprintf(out, "signed last: checkpoint %d, %d entries, root %s\n", state.Number, state.Size, state.Root)
		}
	})
}

// addVerifierKeys declares the keys by which a command believes checkpoints.
func addVerifierKeys(flags *pflag.FlagSet, values *[]string) {
	flags.StringArrayVar(values, "vkey", nil, "verifier key of the log, alone or as a line of pgcustody signer show; may be given again")
	fromEnv(flags, "vkey", "PGCUSTODY_VKEY")
}

// verifierKeys reads the configured keys, several in one value where they are
// separated by line feeds or commas, and the origin that they have in common.
func (c *Config) verifierKeys(values []string) (keys []ledger.VerifierKey, origin string, err error) {
	for _, value := range values {
		for line := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == '\n' || r == ',' }) {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			key, err := ledger.ParseVerifierKey(line)
			if err != nil {
				// The value is not shown: it may be a private key that was set by mistake.
				return nil, "", &ConfigError{Field: c.field("vkey"), Problem: err.Error()}
			}
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, "", &ConfigError{Field: "--vkey", Problem: "required: give the verifier keys of the log's signer, as pgcustody signer show prints them, or set PGCUSTODY_VKEY"}
	}
	if origin = c.Origin; origin == "" {
		origin = keys[0].Name()
	}
	for _, key := range keys {
		if key.Name() != origin {
			return nil, "", c.wrong("vkey", key.Key, "is not a key of the log "+origin)
		}
	}
	return keys, origin, nil
}
