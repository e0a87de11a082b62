package jobs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/db"
	"pgcustody/jobs/keys"
	"pgcustody/jobs/seal"
)

// newKeyring is a keyring over keys in a folder of the test's own.
func (b *bench) newKeyring() (ring Keyring, dir string) {
	b.Helper()
	dir = filepath.Join(b.TempDir(), "keys")
	require.NoError(b, os.Mkdir(dir, 0o700))
	provider, err := keys.Parse(b.Context(), "file:"+dir, false)
	require.NoError(b, err)
	return Keyring{Pool: b.deps.Pool, Provider: provider, Actor: "runner", Batch: 2}, dir
}

func (b *bench) identity(user string) (id uuid.UUID) {
	b.Helper()
	b.person(user)
	b.context(b.app, tenant, func(tx pgx.Tx) error {
		return tx.QueryRow(b.Context(), "select identity_id from custody_data.identities where user_id = $1", user).Scan(&id)
	})
	return id
}

// unlocked runs work as the application with a tenant's newest key.
func (b *bench) unlocked(kek keys.Key, work func(pgx.Tx) error) error {
	return InContext(b.Context(), b.app, Scope{Tenant: tenant, Actor: "clerk", KEK: kek.Bytes()}, work)
}

func (b *bench) seal(kek keys.Key, identity uuid.UUID, row, value string) (sealed []byte) {
	b.Helper()
	require.NoError(b, b.unlocked(kek, func(tx pgx.Tx) error {
		return tx.QueryRow(b.Context(), "select custody.seal_value($1, 'notes', 'body', $2, $3)", identity, row, value).Scan(&sealed)
	}))
	return sealed
}

func (b *bench) open(kek keys.Key, identity uuid.UUID, row string, sealed []byte) (value string, err error) {
	return value, b.unlocked(kek, func(tx pgx.Tx) error {
		return tx.QueryRow(b.Context(), "select custody.open_value($1, 'notes', 'body', $2, $3)", identity, row, sealed).Scan(&value)
	})
}

func TestKeyring(t *testing.T) {
	b := newLockedBench(t)
	ctx := t.Context()
	ring, dir := b.newKeyring()
	_, err := ring.Current(ctx, tenant)
	require.ErrorIs(t, err, ErrNoKey)
	_, err = ring.Rotate(ctx, tenant, nil)
	require.ErrorIs(t, err, ErrNoKey)
	for range 2 { // again: it is there
		version, err := ring.Create(ctx, tenant)
		require.NoError(t, err)
		require.Equal(t, 1, version)
	}
	b.unlock = b.unlocker(ring.Provider)
	first, err := ring.Current(ctx, tenant)
	require.NoError(t, err)
	people := map[uuid.UUID][]byte{}
	for _, user := range []string{"ada", "bob", "cyd", "dan", "eve"} {
		id := b.identity(user)
		people[id] = b.seal(first, id, user, "of "+user)
	}
	all := func(kek keys.Key) {
		t.Helper()
		for _, user := range []string{"ada", "bob", "cyd", "dan", "eve"} {
			id := b.identity(user)
			value, err := b.open(kek, id, user, people[id])
			require.NoError(t, err)
			require.Equal(t, "of "+user, value)
		}
	}
	all(first)

	// Interrupted after the first batch: either key opens all, and the next run ends it.
	stopped, stop := context.WithCancel(ctx)
	_, err = ring.Rotate(stopped, tenant, func(done, _ int64) {
		if done > 0 {
			stop()
		}
	})
	require.ErrorIs(t, err, context.Canceled)
	list, err := ring.List(ctx, tenant)
	require.NoError(t, err)
	require.Len(t, validKEKs(list), 2)
	total := list[0].DataKeys // those of the people, and what else the tenant has
	require.GreaterOrEqual(t, total, int64(5))
	begun := list[1].DataKeys
	require.Positive(t, begun)
	second, err := ring.Current(ctx, tenant)
	require.NoError(t, err)
	require.NotEqual(t, first.Bytes(), second.Bytes())
	all(first)
	all(second)
	_, err = ring.Destroy(ctx, tenant, 1)
	require.ErrorIs(t, err, ErrKeyInUse)

	var progress []int64
	done, err := ring.Rotate(ctx, tenant, func(done, total int64) { progress = append(progress, done, total) })
	require.NoError(t, err)
	require.Equal(t, Rotation{Version: 2, Retired: 1, Rewrapped: total - begun}, done)
	require.Equal(t, []int64{total - begun, total}, progress[len(progress)-2:])
	all(second)
	_, err = b.open(first, b.identity("ada"), "ada", people[b.identity("ada")])
	require.ErrorIs(t, db.FromPg(err), db.ErrWrongKey)

	final, err := ring.Destroy(ctx, tenant, 1)
	require.NoError(t, err)
	require.True(t, final)
	_, err = ring.Provider.KEK(ctx, keys.Ref{Tenant: tenant, Version: 1})
	require.ErrorIs(t, err, keys.ErrDestroyed)
	_, err = ring.Destroy(ctx, tenant, 2)
	require.ErrorIs(t, err, ErrKeyInUse)
	_, err = ring.Destroy(ctx, tenant, 3)
	require.ErrorIs(t, err, ErrNoKey)

	// Once more, from nothing left behind.
	done, err = ring.Rotate(ctx, tenant, nil)
	require.NoError(t, err)
	require.Equal(t, Rotation{Version: 3, Retired: 2, Rewrapped: total}, done)
	require.NoError(t, os.RemoveAll(dir))
	_, err = ring.Current(ctx, tenant)
	require.True(t, errors.As(err, new(*keys.Error)), "%v", err)
}

// What the provider gives where the database knows of none of it: nothing is stored.
func TestKeyringWithAnotherProvidersKeys(t *testing.T) {
	b := newLockedBench(t)
	ring, _ := b.newKeyring()
	_, err := ring.Create(t.Context(), tenant)
	require.NoError(t, err)
	other, _ := b.newKeyring()
	_, err = other.Current(t.Context(), tenant)
	require.ErrorIs(t, err, keys.ErrUnknown)
	_, err = other.Rotate(t.Context(), tenant, nil)
	require.ErrorIs(t, err, keys.ErrUnknown)
	wrong, err := keys.NewKey([]byte("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"), true)
	require.NoError(t, err)
	require.ErrorIs(t, db.FromPg(b.unlocked(wrong, func(pgx.Tx) error { return nil })), db.ErrWrongKey)
}

// What SQL seals Go opens, given the keys, and the other way round.
func TestSealedInSQLOpenedInGo(t *testing.T) {
	b := newLockedBench(t)
	ctx := t.Context()
	ring, _ := b.newKeyring()
	_, err := ring.Create(ctx, tenant)
	require.NoError(t, err)
	kek, err := ring.Current(ctx, tenant)
	require.NoError(t, err)
	b.unlock = b.unlocker(ring.Provider)
	ada := b.identity("ada")
	sealed := b.seal(kek, ada, "r/1\nß", "grüß Gott")

	var wrapped []byte
	require.NoError(t, b.database.Conn(t, stack.Superuser).QueryRow(ctx, "select wrapped from custody_keys.wrapped_keys where identity_id = $1", ada).Scan(&wrapped))
	version, err := seal.KeyVersion(wrapped)
	require.NoError(t, err)
	require.EqualValues(t, 1, version)
	dataKey, err := seal.Open(kek.Bytes(), seal.Place{Tenant: tenant, Identity: ada, Table: "wrapped_keys", Column: "wrapped", Row: "1"}, wrapped)
	require.NoError(t, err)
	require.Len(t, dataKey, 64)
	place := seal.Place{Tenant: tenant, Identity: ada, Table: "notes", Column: "body", Row: "r/1\nß"}
	plain, err := seal.Open(dataKey, place, sealed)
	require.NoError(t, err)
	require.Equal(t, "grüß Gott", string(plain))

	place.Row = "r/2"
	sealed, err = seal.Seal(dataKey, 1, place, []byte("from Go"))
	require.NoError(t, err)
	value, err := b.open(kek, ada, "r/2", sealed)
	require.NoError(t, err)
	require.Equal(t, "from Go", value)
	_, err = b.open(kek, ada, "r/1", sealed)
	require.ErrorIs(t, db.FromPg(err), db.ErrSealedValue)
}
