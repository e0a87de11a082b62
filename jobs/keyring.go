package jobs

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"pgcustody/db"
	"pgcustody/jobs/keys"
)

// errKeyLogged is what the database cannot say itself, since its error would be logged
// together with the key.
var errKeyLogged = fmt.Errorf("%w: log_parameter_max_length_on_error is on for this login: set it to 0 and connect again", db.ErrKeyExposed)

// Keyring makes, rotates and destroys the key-encryption keys of tenants: the
// provider has the keys, the database what they wrap.
type Keyring struct {
	Pool     Beginner
	Provider keys.Provider
	// Actor is the external id that the trail records.
	Actor string
	// Batch is how many data keys are wrapped in one transaction; default 2000.
	Batch int32
}

// KEK is a version of a tenant's key-encryption key, as the database knows it.
type KEK struct {
	Version   int        `json:"version"`
	Provider  string     `json:"provider"`
	CreatedAt time.Time  `json:"created_at"`
	RetiredAt *time.Time `json:"retired_at,omitempty"`
	// DestroyedAt is when the provider had forgotten it.
	DestroyedAt *time.Time `json:"destroyed_at,omitempty"`
	// DataKeys is how many it wraps; Overdue says that it is older than the policy.
	DataKeys int64 `json:"data_keys"`
	Overdue  bool  `json:"overdue"`

	stored []byte
}

func (k KEK) ref(tenant string) keys.Ref {
	return keys.Ref{Tenant: tenant, Version: k.Version, Stored: k.stored}
}

// reference is what the database keeps of a key: the provider, and after the last #
// what the provider wants kept, in base64.
func reference(provider string, ref keys.Ref) string {
	return provider + "#" + base64.StdEncoding.EncodeToString(ref.Stored)
}

func parseReference(text string) (provider string, stored []byte, err error) {
	at := strings.LastIndexByte(text, '#')
	if at < 0 {
		return text, nil, nil // made known by another program
	}
	stored, err = base64.StdEncoding.DecodeString(text[at+1:])
	if len(stored) == 0 {
		stored = nil
	}
	return text[:at], stored, err
}

func (k Keyring) scope(tenant, purpose string, kek keys.Key) Scope {
	return Scope{Tenant: tenant, Actor: k.Actor, Purpose: purpose, KEK: kek.Bytes()}
}

// List returns the versions of a tenant's key, oldest first.
func (k Keyring) List(ctx context.Context, tenant string) ([]KEK, error) {
	var rows []db.CustodyKekStatus
	err := InContext(ctx, k.Pool, k.scope(tenant, "key management", keys.Key{}), func(tx pgx.Tx) (err error) {
		rows, err = db.New().ListKEKs(ctx, tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	list := []KEK{}
	for _, r := range rows {
		provider, stored, err := parseReference(r.Reference)
		if err != nil {
			return nil, fmt.Errorf("KEK %d of tenant %s: %w", r.KekVersion, tenant, err)
		}
		list = append(list, KEK{
			Version: int(r.KekVersion), Provider: provider, CreatedAt: r.CreatedAt.UTC(), RetiredAt: r.RetiredAt, DestroyedAt: r.DestroyedAt,
			DataKeys: r.DataKeys, Overdue: r.Overdue, stored: stored,
		})
	}
	return list, nil
}

// ErrNoKey says that a tenant has no key-encryption key yet.
var ErrNoKey = errors.New("tenant has no key-encryption key")

// Current gets the newest version of a tenant's key, which opens whatever the
// tenant has sealed. The caller should Wipe it.
func (k Keyring) Current(ctx context.Context, tenant string) (keys.Key, error) {
	newest, err := k.newest(ctx, tenant)
	if err != nil {
		return keys.Key{}, err
	}
	if newest == nil {
		return keys.Key{}, fmt.Errorf("%w: %s: pgcustody keys create makes one", ErrNoKey, tenant)
	}
	return k.Provider.KEK(ctx, newest.ref(tenant))
}

// newest is the newest valid version of a tenant's key, nil where it has none. Of it
// only version and provider are looked up.
func (k Keyring) newest(ctx context.Context, tenant string) (*KEK, error) {
	var rows []db.CustodyKekReference
	err := InContext(ctx, k.Pool, k.scope(tenant, "key management", keys.Key{}), func(tx pgx.Tx) (err error) {
		rows, err = db.New().CurrentKEK(ctx, tx)
		return err
	})
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	provider, stored, err := parseReference(rows[0].Reference)
	if err != nil {
		return nil, fmt.Errorf("KEK %d of tenant %s: %w", rows[0].KekVersion, tenant, err)
	}
	return &KEK{Version: int(rows[0].KekVersion), Provider: provider, stored: stored}, nil
}

func validKEKs(list []KEK) (valid []KEK) {
	for _, kek := range list {
		if kek.RetiredAt == nil {
			valid = append(valid, kek)
		}
	}
	return valid
}

// Create makes the first version of a tenant's key and returns it; where there is a
// valid one it changes nothing and returns that.
func (k Keyring) Create(ctx context.Context, tenant string) (version int, err error) {
	list, err := k.List(ctx, tenant)
	if err != nil {
		return 0, err
	}
	if valid := validKEKs(list); len(valid) > 0 {
		return valid[len(valid)-1].Version, nil
	}
	return k.register(ctx, tenant, len(list)+1, keys.Key{})
}

// register makes a version with the provider, and then makes it known. A process that
// dies between the two leaves a key behind that nothing uses.
func (k Keyring) register(ctx context.Context, tenant string, version int, current keys.Key) (int, error) {
	ref, kek, err := k.Provider.NewKEK(ctx, tenant, version)
	if err != nil {
		return 0, err
	}
	defer kek.Wipe()
	var registered int32
	err = InContext(ctx, k.Pool, k.scope(tenant, "key management", keys.Key{}), func(tx pgx.Tx) (err error) {
		registered, err = db.New().RegisterKEK(ctx, tx, db.RegisterKEKParams{
			Kek: kek.Bytes(), Reference: reference(k.Provider.String(), ref), Current: current.Bytes(),
		})
		switch {
		case err != nil:
			return err
		case registered == 0:
			return errKeyLogged
		case int(registered) != version: // somebody else was faster, and the key goes by another name
			return fmt.Errorf("%w: version %d of tenant %s was made meanwhile", db.ErrRotationUnderWay, version, tenant)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("register key: %w", err)
	}
	return version, nil
}

// Rotation is what rotating a tenant's key did.
type Rotation struct {
	// Version is the new key's; Retired the old one's, which may be destroyed now.
	Version int `json:"version"`
	Retired int `json:"retired"`
	// Rewrapped is how many data keys this run wrapped anew.
	Rewrapped int64 `json:"rewrapped"`
}

// Rotate replaces a tenant's key: makes a new version, wraps under it what the old one
// wraps, and retires the old one. Meanwhile either one opens everything. A rotation
// that was begun and not ended is gone on with. progress is told how many data keys
// this run has wrapped, and about how many there are.
func (k Keyring) Rotate(ctx context.Context, tenant string, progress func(done, total int64)) (Rotation, error) {
	list, err := k.List(ctx, tenant)
	if err != nil {
		return Rotation{}, err
	}
	valid := validKEKs(list)
	if len(valid) == 0 {
		return Rotation{}, fmt.Errorf("%w: %s: pgcustody keys create makes one", ErrNoKey, tenant)
	}
	if len(valid) == 1 {
		current, err := k.Provider.KEK(ctx, valid[0].ref(tenant))
		if err != nil {
			return Rotation{}, err
		}
		defer current.Wipe()
		if _, err := k.register(ctx, tenant, list[len(list)-1].Version+1, current); err != nil && !errors.Is(db.FromPg(err), db.ErrRotationUnderWay) {
			return Rotation{}, err
		}
	}
	// What was committed counts: some providers make another key for the same version.
	kek, err := k.Current(ctx, tenant)
	if err != nil {
		return Rotation{}, err
	}
	defer kek.Wipe()

	// The newest of those that were there at the beginning wraps less than the others.
	var total int64
	for _, k := range valid {
		total = max(total, k.DataKeys)
	}
	var done Rotation
	for {
		wrapped, err := k.rewrap(ctx, tenant, kek, &done, func() {
			if progress != nil {
				progress(done.Rewrapped, total)
			}
		})
		if err != nil {
			return done, err
		}
		err = InContext(ctx, k.Pool, k.scope(tenant, "key rotation", kek), func(tx pgx.Tx) error {
			_, err := db.New().RetireKEK(ctx, tx)
			return err
		})
		if err == nil {
			done.Retired = done.Version - 1
			return done, nil
		}
		// An application with the old key made a data key meanwhile, or an erasure holds one.
		if !errors.Is(db.FromPg(err), db.ErrRotationUnderWay) {
			return done, fmt.Errorf("retire key: %w", err)
		}
		if wrapped == 0 {
			select {
			case <-ctx.Done():
				return done, ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// rewrapConnections is how many go through the data keys at once: wrapping is work for
// a core of the server each.
const rewrapConnections = 4

// rewrap goes once through the data keys, wraps those that it can get at, and says how
// many. Each connection passes over what another has in hand.
func (k Keyring) rewrap(ctx context.Context, tenant string, kek keys.Key, done *Rotation, progress func()) (wrapped int64, err error) {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for range rewrapConnections {
		group.Go(func() error {
			var step struct {
				Version int        `json:"kek_version"`
				Keys    int64      `json:"keys"`
				Last    *uuid.UUID `json:"last"`
			}
			for {
				err := InContext(ctx, k.Pool, k.scope(tenant, "key rotation", kek), func(tx pgx.Tx) error {
					result, err := db.New().RewrapKeys(ctx, tx, db.RewrapKeysParams{Batch: cmp.Or(k.Batch, 2000), After: step.Last})
					if err != nil {
						return err
					}
					return json.Unmarshal(result, &step)
				})
				if err != nil {
					return fmt.Errorf("wrap keys: %w", err)
				}
				mu.Lock()
				wrapped += step.Keys
				done.Version = step.Version
				done.Rewrapped += step.Keys
				progress()
				mu.Unlock()
				if step.Last == nil {
					return nil
				}
			}
		})
	}
	return wrapped, group.Wait()
}

// ErrKeyInUse says that a key-encryption key still wraps data keys.
var ErrKeyInUse = errors.New("key-encryption key is in use")

// Destroy has the provider forget a version that was retired. Final tells whether it
// is beyond reach by that; see [keys.Provider].
func (k Keyring) Destroy(ctx context.Context, tenant string, version int) (final bool, err error) {
	list, err := k.List(ctx, tenant)
	if err != nil {
		return false, err
	}
	for _, kek := range list {
		switch {
		case kek.Version != version:
		case kek.RetiredAt == nil:
			return false, fmt.Errorf("%w: version %d of tenant %s: pgcustody keys rotate replaces and retires it", ErrKeyInUse, version, tenant)
		default:
			final, err := k.Provider.Destroy(ctx, kek.ref(tenant))
			if err != nil {
				return false, err
			}
			return final, InContext(ctx, k.Pool, k.scope(tenant, "key management", keys.Key{}), func(tx pgx.Tx) error {
				_, err := db.New().MarkKEKDestroyed(ctx, tx, int32(version))
				return err
			})
		}
	}
	return false, fmt.Errorf("%w: version %d of tenant %s", ErrNoKey, version, tenant)
}
