package stacktest

import (
	"encoding/base64"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"

	"pgcustody/jobs/keys"
)

// KeyProvider keeps keys in files of a folder of the test's own. The spec is what
// PGCUSTODY_KEYS takes.
func KeyProvider(t testing.TB) (provider keys.Provider, spec string) {
	t.Helper()
	spec = "file:" + filepath.Join(t.TempDir(), "keys")
	provider, err := keys.Parse(t.Context(), spec, false)
	if err != nil {
		t.Fatal(err)
	}
	return provider, spec
}

// GiveKey gives a tenant that is registered the first version of its key-encryption
// key, as `pgcustody keys create` does, and returns it: what custody.unlock takes, as a
// bound parameter.
func (d *Database) GiveKey(t testing.TB, provider keys.Provider, tenant string) keys.Key {
	t.Helper()
	ctx := t.Context()
	ref, key, err := provider.NewKEK(ctx, tenant, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Wipe)
	reference := provider.String() + "#" + base64.StdEncoding.EncodeToString(ref.Stored)
	if err := pgx.BeginFunc(ctx, d.Conn(t, "custody_runner"), func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select custody.set_context($1, 'tester', 'key management')", tenant); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "select custody.register_kek($1, $2)", key, reference)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return key
}
