package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"pgcustody/db"
	"pgcustody/jobs/ledger"
)

// ProveInclusion makes the proof that an event of the context's tenant is in the
// tree of the newest signed checkpoint. The entry is in it where the event is still
// in Postgres; of one that is in the archive alone the time must be given. What does
// not hold is not handed out; whether the checkpoint is signed by whom it should be,
// the checker finds out.
func ProveInclusion(ctx context.Context, tx pgx.Tx, tenant string, id uuid.UUID, occurredAt *time.Time) (ledger.InclusionProof, error) {
	var made ledger.InclusionProof
	raw, err := db.New().InclusionProof(ctx, tx, db.InclusionProofParams{LogEntryID: id, OccurredAt: occurredAt})
	if err != nil {
		return made, fmt.Errorf("prove inclusion: %w", err)
	}
	var proof struct {
		LeafIndex  int64    `json:"leaf_index"`
		LeafHash   string   `json:"leaf_hash"`
		Hashes     []string `json:"hashes"`
		Checkpoint string   `json:"checkpoint"`
	}
	if err := json.Unmarshal(raw, &proof); err != nil {
		return made, fmt.Errorf("read proof: %w", err)
	}
	made.Index, made.Checkpoint = proof.LeafIndex, []byte(proof.Checkpoint)
	if made.Hashes, err = hashes(proof.Hashes); err != nil {
		return made, err
	}
	event, err := db.New().AuditEntry(ctx, tx, db.AuditEntryParams{Tenant: tenant, LogEntryID: id, OccurredAt: occurredAt})
	switch {
	case err == nil:
		made.Entry = []byte(event.Entry)
	case !errors.Is(err, pgx.ErrNoRows):
		return made, fmt.Errorf("prove inclusion: %w", err)
	}
	checkpoint, err := ledger.Unverified(made.Checkpoint)
	if err != nil {
		return made, err
	}
	if made.Entry != nil {
		return made, made.CheckAgainst(checkpoint, nil)
	}
	leaf, err := tlog.ParseHash(proof.LeafHash)
	if err != nil {
		return made, fmt.Errorf("read proof: %w", err)
	}
	return made, made.CheckLeaf(checkpoint, leaf[:])
}

// ProveConsistency makes the proof that the signed checkpoint of one size goes on from
// that of another.
func ProveConsistency(ctx context.Context, tx pgx.Tx, older, newer int64) (ledger.ConsistencyProof, error) {
	var made ledger.ConsistencyProof
	raw, err := db.New().ConsistencyProof(ctx, tx, db.ConsistencyProofParams{OldSize: older, NewSize: newer})
	if err != nil {
		return made, fmt.Errorf("prove consistency: %w", err)
	}
	var proof struct {
		Hashes        []string `json:"hashes"`
		OldCheckpoint string   `json:"old_checkpoint"`
		NewCheckpoint string   `json:"new_checkpoint"`
	}
	if err := json.Unmarshal(raw, &proof); err != nil {
		return made, fmt.Errorf("read proof: %w", err)
	}
	made.Old, made.New = []byte(proof.OldCheckpoint), []byte(proof.NewCheckpoint)
	if made.Hashes, err = hashes(proof.Hashes); err != nil {
		return made, err
	}
	first, err := ledger.Unverified(made.Old)
	if err != nil {
		return made, err
	}
	second, err := ledger.Unverified(made.New)
	if err != nil {
		return made, err
	}
	return made, made.CheckAgainst(first, second)
}

func hashes(list []string) ([]tlog.Hash, error) {
	var parsed []tlog.Hash
	for _, text := range list {
		hash, err := tlog.ParseHash(text)
		if err != nil {
			return nil, fmt.Errorf("read proof: %w", err)
		}
		parsed = append(parsed, hash)
	}
	return parsed, nil
}
