package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/jobs"
	"pgcustody/jobs/ledger"
)

func newProofCmd(app *App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "proof",
		Short: "Prove that an event is in the audit ledger, and check such proofs offline",
	}
	p := &proofCommands{App: app}
	inclusion := &cobra.Command{
		Use:   "inclusion LOG_ENTRY_ID",
		Short: "Prove that an event of the tenant is in the ledger of a signed checkpoint",
		Long: `Prove that an event of the tenant is in the ledger of the newest signed checkpoint. The proof is
a C2SP tlog-proof: one file with the event's canonical entry, its place, the hashes and the signed
checkpoint, which anybody can check who has the verifier keys, with neither database nor store. Of
an event that is in the archive alone give --occurred-at; its entry is the line in the archive.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return p.Inclusion(cmd.Context(), args[0]) },
	}
	inclusion.Flags().StringVar(&p.OccurredAt, "occurred-at", "", "when the event occurred, as in 2027-01-31T00:00:00.123456Z")
	consistency := &cobra.Command{
		Use:   "consistency OLD NEW",
		Short: "Prove that the ledger of one checkpoint goes on from that of another, both by their sizes",
		Args:  cobra.ExactArgs(2),
		RunE:  func(cmd *cobra.Command, args []string) error { return p.Consistency(cmd.Context(), args[0], args[1]) },
	}
	for _, made := range []*cobra.Command{inclusion, consistency} {
		made.Flags().StringVarP(&p.Output, "output", "o", "-", "file to write, - for standard output")
	}
	check := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a proof of either kind, with neither database nor store",
		Long: `Check a proof of either kind, with neither database nor store: by the verifier keys of the log,
which its operator shows by pgcustody signer show, and nothing else. Exit status 4 where it does
not hold, 3 where the file is no proof.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return p.Check(args[0]) },
	}
	addVerifierKeys(check.Flags(), &p.VerifierKeys)
	check.Flags().StringVar(&p.Entry, "entry", "", "file with the event's canonical entry, for proofs without one: its line of the archive")
	cmd.AddCommand(inclusion, consistency, check)
	return cmd
}

type proofCommands struct {
	*App
	Output, OccurredAt, Entry string
	VerifierKeys              []string
}

// with runs work in a transaction of the tenant.
func (p *proofCommands) with(ctx context.Context, work func(pgx.Tx) error) error {
	if _, err := p.NeedTenant(); err != nil {
		return err
	}
	if err := p.checkOutput(); err != nil {
		return err
	}
	return p.withDatabase(ctx, "proof", func(pool *pgxpool.Pool) error {
		return p.inTenant(ctx, pool, "proof", work)
	})
}

func (p *proofCommands) checkOutput() error {
	if info, err := os.Stat(filepath.Dir(p.Output)); p.Output != "-" && (err != nil || !info.IsDir()) {
		return p.wrong("output", p.Output, "its folder does not exist")
	}
	return nil
}

func (p *proofCommands) Inclusion(ctx context.Context, text string) error {
	id, err := parseID("LOG_ENTRY_ID", text)
	if err != nil {
		return err
	}
	if id == nil {
		return usagef("proof inclusion: name the event: see pgcustody proof inclusion --help")
	}
	var occurredAt *time.Time
	if p.OccurredAt != "" {
		at, err := parseTime("--occurred-at", p.OccurredAt)
		if err != nil {
			return err
		}
		occurredAt = &at
	}
	var proof ledger.InclusionProof
	if err := p.with(ctx, func(tx pgx.Tx) (err error) {
		proof, err = jobs.ProveInclusion(ctx, tx, p.Tenant, *id, occurredAt)
		return err
	}); err != nil {
		return err
	}
	c, err := ledger.Unverified(proof.Checkpoint)
	if err != nil {
		return err
	}
	made := madeProof{Origin: c.Origin, Checkpoint: c.Number, TreeSize: c.Size, Time: c.Time, Index: &proof.Index, Entry: entryJSON(proof.Entry)}
	return p.write(made, proof.Marshal())
}

func (p *proofCommands) Consistency(ctx context.Context, from, to string) error {
	older, err := size("OLD", from)
	if err != nil {
		return err
	}
	newer, err := size("NEW", to)
	if err != nil {
		return err
	}
	var proof ledger.ConsistencyProof
	if err := p.with(ctx, func(tx pgx.Tx) (err error) {
		proof, err = jobs.ProveConsistency(ctx, tx, older, newer)
		return err
	}); err != nil {
		return err
	}
	c, err := ledger.Unverified(proof.New)
	if err != nil {
		return err
	}
	return p.write(madeProof{Origin: c.Origin, Checkpoint: c.Number, TreeSize: c.Size, Time: c.Time, OldSize: &older}, proof.Marshal())
}

func size(field, text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, &ConfigError{field, text, "not the size of a checkpoint: custody.ledger_checkpoints lists them"}
	}
	return n, nil
}

// madeProof describes a proof.
type madeProof struct {
	File       string          `json:"file,omitempty"`
	Origin     string          `json:"origin"`
	Checkpoint int64           `json:"checkpoint"`
	TreeSize   int64           `json:"tree_size"`
	Time       time.Time       `json:"time"`
	Index      *int64          `json:"index,omitempty"`
	Entry      json.RawMessage `json:"entry,omitempty"`
	OldSize    *int64          `json:"old_tree_size,omitempty"`
	Proof      string          `json:"proof,omitempty"` // where no file was written
}

func (m madeProof) String() string {
	covered := fmt.Sprintf("checkpoint %d of %s, %s, %d entries", m.Checkpoint, m.Origin, m.Time.Format(time.RFC3339), m.TreeSize)
	if m.OldSize != nil {
		return fmt.Sprintf("%s, goes on from the checkpoint of %d entries", covered, *m.OldSize)
	}
	return fmt.Sprintf("entry %d is in %s", *m.Index, covered)
}

// entryJSON is an entry as part of a document; the proof has its bytes.
func entryJSON(entry []byte) json.RawMessage {
	if !json.Valid(entry) {
		return nil
	}
	return entry
}

// write writes the proof where it was asked for. A file appears whole or not at all,
// and only its owner may read it: an entry tells who did what.
func (p *proofCommands) write(made madeProof, proof []byte) error {
	if p.Output == "-" {
		made.Proof = string(proof)
		return p.Print(made, func(out io.Writer) { _, _ = out.Write(proof) })
	}
	file, err := os.CreateTemp(filepath.Dir(p.Output), ".pgcustody-proof-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("write proof: %w", err)
	}
	_, err = file.Write(proof)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), p.Output)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write proof: %w", err), os.Remove(file.Name()))
	}
	made.File = p.Output
	return p.Print(made, func(out io.Writer) { fmt.Fprintf(out, "%s: %s\n", made.File, made) })
}

// maxProof is far beyond a proof.
const maxProof = 64 << 20

func (p *proofCommands) Check(name string) error {
	keys, origin, err := p.verifierKeys(p.VerifierKeys)
	if err != nil {
		return err
	}
	file, err := p.read("FILE", name)
	if err != nil {
		return err
	}
	var entry []byte
	if p.Entry != "" {
		if entry, err = p.read("--entry", p.Entry); err != nil {
			return err
		}
		// A line of the archive may have come with its end.
		if n := len(entry); n > 0 && entry[n-1] == '\n' {
			entry = entry[:n-1]
		}
	}
	if ledger.IsConsistency(file) {
		proof, err := ledger.ParseConsistency(file)
		if err != nil {
			return err
		}
		older, newer, err := proof.Check(origin, keys)
		if err != nil {
			return err
		}
		return p.holds(madeProof{File: name, Origin: origin, Checkpoint: newer.Number, TreeSize: newer.Size, Time: newer.Time, OldSize: &older.Size})
	}
	proof, err := ledger.ParseInclusion(file)
	if err != nil {
		return err
	}
	c, err := proof.Check(origin, keys, entry)
	if err != nil {
		return err
	}
	if entry == nil {
		entry = proof.Entry
	}
	return p.holds(madeProof{File: name, Origin: origin, Checkpoint: c.Number, TreeSize: c.Size, Time: c.Time, Index: &proof.Index, Entry: entryJSON(entry)})
}

func (p *proofCommands) holds(made madeProof) error {
	return p.Print(made, func(out io.Writer) {
		fmt.Fprintf(out, "holds: %s\n", made)
		if made.Entry != nil {
			fmt.Fprintln(out, string(made.Entry))
		}
	})
}

func (p *proofCommands) read(field, name string) ([]byte, error) {
	from := p.In
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, &ConfigError{field, name, "cannot be read"}
		}
		defer file.Close()
		from = file
	}
	content, err := io.ReadAll(io.LimitReader(from, maxProof+1))
	switch {
	case err != nil:
		return nil, &ConfigError{field, name, "cannot be read"}
	case len(content) > maxProof:
		return nil, &ConfigError{field, name, "is too large for a proof"}
	}
	return content, nil
}
