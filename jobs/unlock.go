package jobs

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/db"
	"pgcustody/jobs/keys"
)

// Unlocker gives transactions the key-encryption key of their tenant, from the
// provider that has it. A nil Unlocker has no provider, and leaves them locked; so
// does any for a tenant that has no key.
//
// It remembers which version of a tenant's key is the newest, and reads that anew
// after Keep, or when the database or the provider says that it no longer is: the key
// was rotated. The key itself is the provider's to keep, which does so where getting
// it takes long; here it is wiped when the transaction is over. That a tenant has no
// key is never believed from memory: an erasure would search less than it can.
type Unlocker struct {
	Ring Keyring
	// Keep is how long the newest version is remembered; default 5 minutes.
	Keep time.Duration

	mu     sync.Mutex
	newest map[string]newestKEK
}

// newestKEK is the newest valid version of a tenant's key, or nil, as it was read.
type newestKEK struct {
	kek   *KEK
	until time.Time
}

// stepGetKey is the step of a [Failure] that is the provider's.
const stepGetKey = "get key"

// InContext is [InContext] with the tenant's key. It may run work twice, in
// transactions of which the first is rolled back: when the key turns out to have been
// rotated.
func (u *Unlocker) InContext(ctx context.Context, pool Beginner, scope Scope, work func(pgx.Tx) error) error {
	return u.With(ctx, scope.Tenant, func(kek []byte) error {
		scope.KEK = kek
		return InContext(ctx, pool, scope, work)
	})
}

// With runs work with the tenant's key, which is nil where there is none and ends with
// work. Where the version that was remembered is not the newest any more, work runs
// again with the one that is.
func (u *Unlocker) With(ctx context.Context, tenant string, work func(kek []byte) error) error {
	return u.with(ctx, tenant, false, work)
}

func (u *Unlocker) with(ctx context.Context, tenant string, believeNone bool, work func(kek []byte) error) error {
	if u == nil || tenant == "" {
		return work(nil)
	}
	kek, err := u.version(ctx, tenant, believeNone)
	if err != nil {
		return err
	}
	err = u.use(ctx, tenant, kek, work)
	if !outdated(err) {
		return err
	}
	u.forget(tenant)
	newest, readErr := u.version(ctx, tenant, false)
	if readErr != nil || sameKEK(kek, newest) {
		return err
	}
	return u.use(ctx, tenant, newest, work)
}

// outdated tells whether an error is one that a newer version of the key may mend.
func outdated(err error) bool {
	return refused(err, db.ErrWrongKey) || refused(err, db.ErrLocked) || errors.Is(err, keys.ErrDestroyed) || errors.Is(err, keys.ErrUnknown)
}

func sameKEK(a, b *KEK) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Version == b.Version && bytes.Equal(a.stored, b.stored)
}

func (u *Unlocker) use(ctx context.Context, tenant string, kek *KEK, work func(kek []byte) error) error {
	if kek == nil {
		return work(nil)
	}
	key, err := u.Ring.Provider.KEK(ctx, kek.ref(tenant))
	if err != nil {
		return fail(stepGetKey, err)
	}
	defer key.Wipe()
	return work(key.Bytes())
}

// version is the newest valid version of a tenant's key, nil where it has none.
func (u *Unlocker) version(ctx context.Context, tenant string, believeNone bool) (*KEK, error) {
	u.mu.Lock()
	known := u.newest[tenant]
	u.mu.Unlock()
	if time.Now().Before(known.until) && (known.kek != nil || believeNone) {
		return known.kek, nil
	}
	newest, err := u.Ring.newest(ctx, tenant)
	if err != nil {
		return nil, fail("look for the key", err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.newest == nil {
		u.newest = map[string]newestKEK{}
	}
	u.newest[tenant] = newestKEK{newest, time.Now().Add(cmp.Or(u.Keep, 5*time.Minute))}
	return newest, nil
}

func (u *Unlocker) forget(tenant string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.newest, tenant)
}

// Check tells whether the provider gives the key of every tenant that has one: the
// error is that of the first whose key it does not give.
func (u *Unlocker) Check(ctx context.Context) error {
	if u == nil {
		return nil
	}
	var tenants []string
	if err := InContext(ctx, u.Ring.Pool, Scope{}, func(tx pgx.Tx) error {
		rows, err := db.New().ListTenants(ctx, tx)
		for _, row := range rows {
			tenants = append(tenants, row.TenantID)
		}
		return err
	}); err != nil {
		return fmt.Errorf("list tenants: %w", err)
	}
	for _, tenant := range tenants {
		if err := u.with(ctx, tenant, true, func([]byte) error { return nil }); err != nil {
			return fmt.Errorf("tenant %s: %w", tenant, err)
		}
	}
	return nil
}
