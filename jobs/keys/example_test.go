package keys_test

import (
	"context"
	"encoding/json"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgcustody/jobs/keys"
)

// readProfile reads a profile in a transaction that is unlocked for it. Provider
// is made once, by keys.Parse, and ref is what the database keeps of the tenant's
// key.
func readProfile(ctx context.Context, pool *pgxpool.Pool, provider keys.Provider, ref keys.Ref, user string) (profile json.RawMessage, err error) {
	key, err := provider.KEK(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select custody.set_context($1, $2, $3)", ref.Tenant, user, "show own profile"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "select custody.unlock($1)", key); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "select custody.get_profile($1)", user).Scan(&profile)
	})
	return profile, err
}

// An application gets the tenant's key from its provider and hands it to
// custody.unlock as a bound parameter, within the transaction and behind
// set_context.
func Example() {
	ctx := context.Background()
	provider, err := keys.Parse(ctx, os.Getenv("PGCUSTODY_KEYS"), false) // awskms:alias/pgcustody
	if err != nil {
		panic(err)
	}
	pool, err := pgxpool.New(ctx, os.Getenv("PGCUSTODY_DATABASE_URL"))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	ref := keys.Ref{Tenant: "acme", Version: 3} // and Stored, with AWS KMS
	if _, err := readProfile(ctx, pool, provider, ref, "alice"); err != nil {
		panic(err)
	}
}
