package importer

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgcustody/db"
	"pgcustody/jobs/seal"
)

// claimAtOnce is how many people are claimed by one statement.
const claimAtOnce = 100_000

// people are those that a file is about, with the keys under which what it says of them is sealed.
type people struct {
	tenant string
	byID   map[string]*person // by user_id
	keys   [][]byte           // what wipe must not forget
}

type person struct {
	identity uuid.UUID
	version  uint32 // of the key
	key      []byte
}

// claimPeople claims the identities that user_ids have, and their data keys, in the transaction of an import. In order
// of user_id, so that two imports that share people never wait for each other in a circle.
func claimPeople(ctx context.Context, tx pgx.Tx, tenant string, kek []byte, userIDs map[string]bool) (*people, error) {
	p := &people{tenant: tenant, byID: make(map[string]*person, len(userIDs))}
	for chunk := range slices.Chunk(slices.Sorted(maps.Keys(userIDs)), claimAtOnce) {
		if err := p.claim(ctx, tx, kek, chunk); err != nil {
			p.wipe()
			return nil, err
		}
	}
	return p, nil
}

func (p *people) claim(ctx context.Context, tx pgx.Tx, kek []byte, userIDs []string) error {
	queries := db.New()
	claimed, err := queries.ClaimIdentities(ctx, tx, userIDs)
	if err != nil {
		return fmt.Errorf("claim identities: %w", err)
	}
	byIdentity := make(map[uuid.UUID]*person, len(claimed))
	identities := make([]string, len(claimed))
	for i, row := range claimed {
		one := &person{identity: row.IdentityID}
		identities[i], byIdentity[row.IdentityID], p.byID[row.UserID] = row.IdentityID.String(), one, one
	}
	keys, err := queries.ClaimDataKeys(ctx, tx, identities)
	if err != nil {
		return fmt.Errorf("claim data keys: %w", err)
	}
	if len(claimed) != len(userIDs) || len(keys) != len(claimed) {
		return fmt.Errorf("%d identities and %d data keys for %d people", len(claimed), len(keys), len(userIDs))
	}
	for _, row := range keys {
		key, err := seal.Open(kek, seal.Place{
			Tenant: p.tenant, Identity: row.IdentityID, Table: "wrapped_keys", Column: "wrapped", Row: fmt.Sprint(row.KeyVersion),
		}, row.Wrapped)
		if err != nil {
			return fmt.Errorf("open data key: %w", err)
		}
		p.keys = append(p.keys, key)
		one := byIdentity[row.IdentityID]
		one.key, one.version = key, uint32(row.KeyVersion)
	}
	return nil
}

// wipe forgets the keys.
func (p *people) wipe() {
	for _, key := range p.keys {
		clear(key)
	}
}

// appendSealed appends a value sealed for its place; a value that is nil is null.
func (p *people) appendSealed(dst []byte, who *person, table, column, row string, value []byte) ([]byte, *problem) {
	if value == nil {
		return appendNull(dst), nil
	}
	sealed, err := seal.Seal(who.key, who.version, seal.Place{Tenant: p.tenant, Identity: who.identity, Table: table, Column: column, Row: row}, value)
	if err != nil {
		return dst, problemf(column, "cannot be sealed: %s", err)
	}
	return appendBytes(dst, sealed), nil
}

// survey reads a file whose rows are sealed before they are staged, and lists the user_ids of its good lines. What it
// finds out of the file as a whole is in the report.
func (cfg *Config) survey(ctx context.Context, f file, source io.Reader, parsers []*rowParser, report *Report) (map[string]bool, error) {
	for _, p := range parsers {
		p.encode, p.userIDs = f.table.survey, map[string]bool{}
	}
	s, err := cfg.read(ctx, f, source, parsers, cfg.rejecter(f), func(rows io.Reader) error {
		_, err := io.Copy(io.Discard, rows)
		return err
	})
	if err != nil {
		return nil, err
	}
	report.note(s)
	all := parsers[0].userIDs
	for _, p := range parsers[1:] {
		maps.Copy(all, p.userIDs)
	}
	return all, nil
}
