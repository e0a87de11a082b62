package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"pgcustody/db"
	"pgcustody/jobs/keys"
)

// DataRotation is what rotating a tenant's data keys did.
type DataRotation struct {
	// Identities got a new data key, and Values of theirs were sealed anew.
	Identities int64 `json:"identities"`
	Values     int64 `json:"values"`
	// Profiles were indexed under the index key of version IndexVersion; 0 where that
	// key was young enough.
	Profiles     int64 `json:"profiles"`
	IndexVersion int   `json:"index_version,omitempty"`
	// Expired is how many old data keys were destroyed, because all that they sealed
	// has expired.
	Expired int64 `json:"expired"`
}

// resealConnections is how many go through the people of a tenant at once. Sealing is
// work for a core of the server each, and the others are the application's.
const resealConnections = 2

// peopleBatch is how many people one transaction seals anew: whoever writes about one of
// them waits for it.
const peopleBatch = 20

// RotateData replaces the data keys, and the index key, that are older than a time, and
// seals and indexes anew what they sealed in tables that change. It may be interrupted
// and begun again: what is done is done. progress is told how many values are.
func (k Keyring) RotateData(ctx context.Context, tenant string, olderThan time.Duration, progress func(values int64)) (DataRotation, error) {
	policy, err := k.policies(ctx, tenant)
	if err != nil {
		return DataRotation{}, fmt.Errorf("time of the database: %w", err)
	}
	// By the database's clock, which keys are dated by: with another the rotation might not end.
	before := policy.Now.Add(-olderThan)
	kek, err := k.Current(ctx, tenant)
	if err != nil {
		return DataRotation{}, err
	}
	defer kek.Wipe()
	var done DataRotation
	if err := k.reseal(ctx, tenant, kek, before, &done, progress); err != nil {
		return done, err
	}
	if err := k.reindex(ctx, tenant, kek, before, &done); err != nil {
		return done, err
	}
	return done, nil
}

// reseal goes through the people of a tenant until none is left with an older key. Each
// connection passes over whom another has in hand.
func (k Keyring) reseal(ctx context.Context, tenant string, kek keys.Key, before time.Time, done *DataRotation, progress func(int64)) error {
	for {
		var mu sync.Mutex
		round := int64(0)
		group, groupCtx := errgroup.WithContext(ctx)
		for range resealConnections {
			group.Go(func() error {
				var step struct {
					Identities int64      `json:"identities"`
					Values     int64      `json:"values"`
					Last       *uuid.UUID `json:"last"`
				}
				for {
					err := InContext(groupCtx, k.Pool, k.scope(tenant, "key rotation", kek), func(tx pgx.Tx) error {
						result, err := db.New().RotateDataKeys(groupCtx, tx, db.RotateDataKeysParams{
							CreatedBefore: before, People: cmp.Or(k.Batch, peopleBatch), After: step.Last,
						})
						if err != nil {
							return err
						}
						return json.Unmarshal(result, &step)
					})
					if err != nil {
						return fmt.Errorf("rotate data keys: %w", err)
					}
					mu.Lock()
					round += step.Identities
					done.Identities += step.Identities
					done.Values += step.Values
					if progress != nil {
						progress(done.Values)
					}
					mu.Unlock()
					if step.Last == nil {
						return nil
					}
				}
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		// The last round finds nobody: whom others had in hand has had their turn.
		if round == 0 {
			return nil
		}
	}
}

// reindex replaces the index key where it is older, or goes on with what was begun.
func (k Keyring) reindex(ctx context.Context, tenant string, kek keys.Key, before time.Time, done *DataRotation) error {
	scope := k.scope(tenant, "key rotation", kek)
	ages, err := k.Ages(ctx, tenant)
	if err != nil {
		return err
	}
	for _, age := range ages {
		if age.Kind == "index" && age.Oldest != nil && age.Oldest.Before(before) {
			err := InContext(ctx, k.Pool, scope, func(tx pgx.Tx) error {
				_, err := db.New().RotateIndexKey(ctx, tx)
				return err
			})
			if err != nil {
				return fmt.Errorf("rotate index key: %w", err)
			}
		}
	}
	for {
		found, over, err := k.reindexOnce(ctx, scope, done)
		if err != nil || over {
			return err
		}
		if found == 0 { // what is left somebody is writing
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// reindexOnce goes through the profiles from the beginning, on several connections, each
// of which passes over what another has in hand. It says how many it indexed anew, and
// whether that is over: the old key is destroyed.
func (k Keyring) reindexOnce(ctx context.Context, scope Scope, done *DataRotation) (found int64, over bool, err error) {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for range resealConnections {
		group.Go(func() error {
			var step struct {
				Version   int        `json:"version"`
				Profiles  int64      `json:"profiles"`
				Destroyed []int      `json:"destroyed"`
				Over      bool       `json:"over"`
				Last      *uuid.UUID `json:"last"`
			}
			for {
				err := InContext(ctx, k.Pool, scope, func(tx pgx.Tx) error {
					result, err := db.New().ReindexProfiles(ctx, tx, db.ReindexProfilesParams{Profiles: cmp.Or(k.Batch, 100), After: step.Last})
					if err != nil {
						return err
					}
					return json.Unmarshal(result, &step)
				})
				if err != nil {
					return fmt.Errorf("index profiles: %w", err)
				}
				mu.Lock()
				found += step.Profiles
				over = over || step.Over
				done.Profiles += step.Profiles
				if step.Profiles > 0 || len(step.Destroyed) > 0 {
					done.IndexVersion = step.Version
				}
				mu.Unlock()
				if step.Last == nil {
					return nil
				}
			}
		})
	}
	err = group.Wait()
	return found, over, err
}

// ExpireData destroys the old data keys of a tenant whose last value has expired. It
// needs no key-encryption key.
func (k Keyring) ExpireData(ctx context.Context, tenant string) (expired int64, err error) {
	for {
		var batch int64
		err := InContext(ctx, k.Pool, k.scope(tenant, "key expiry", keys.Key{}), func(tx pgx.Tx) (err error) {
			batch, err = db.New().ExpireDataKeys(ctx, tx)
			return err
		})
		if err != nil {
			return expired, fmt.Errorf("expire data keys: %w", err)
		}
		expired += batch
		if batch == 0 {
			return expired, nil
		}
	}
}

// KeyAge says how old the keys of a kind are that seal now: key_encryption, data or
// index. Overdue is how many are older than the policy key_age.
type KeyAge struct {
	Kind    string     `json:"kind"`
	Keys    int64      `json:"keys"`
	Oldest  *time.Time `json:"oldest,omitempty"`
	Overdue int64      `json:"overdue"`
}

// Ages lists the ages of a tenant's keys, by kind.
func (k Keyring) Ages(ctx context.Context, tenant string) (ages []KeyAge, err error) {
	err = InContext(ctx, k.Pool, k.scope(tenant, "key management", keys.Key{}), func(tx pgx.Tx) error {
		rows, err := db.New().ListKeyAges(ctx, tx)
		for _, r := range rows {
			ages = append(ages, KeyAge{Kind: r.Kind, Keys: r.Keys, Oldest: r.Oldest, Overdue: r.Overdue})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list ages of keys: %w", err)
	}
	return ages, nil
}

// SealedValues counts the sealed values and blind indexes under one version of their
// keys; State is current, older or erased.
type SealedValues struct {
	Table      string `json:"table"`
	Column     string `json:"column"`
	AppendOnly bool   `json:"append_only"`
	KeyVersion int    `json:"key_version"`
	State      string `json:"state"`
	Values     int64  `json:"values"`
}

// Values lists what is sealed under which version. It reads every row of the tenant.
func (k Keyring) Values(ctx context.Context, tenant string) (values []SealedValues, err error) {
	err = InContext(ctx, k.Pool, k.scope(tenant, "key management", keys.Key{}), func(tx pgx.Tx) error {
		rows, err := db.New().ListSealedValues(ctx, tx)
		for _, r := range rows {
			values = append(values, SealedValues{
				Table: r.TableName, Column: r.ColumnName, AppendOnly: r.AppendOnly, KeyVersion: int(r.KeyVersion), State: r.State, Values: r.SealedValues,
			})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list sealed values: %w", err)
	}
	return values, nil
}

// keyPolicies are a tenant's policies for keys.
type keyPolicies struct {
	// Age is how long a key seals, Generation how long a key-encryption key wraps,
	// Backup how long a backup of wrapped keys is kept.
	Age, Generation, Backup time.Duration
	// Now is the database's time.
	Now time.Time
}

func (k Keyring) policies(ctx context.Context, tenant string) (p keyPolicies, err error) {
	err = InContext(ctx, k.Pool, k.scope(tenant, "key management", keys.Key{}), func(tx pgx.Tx) error {
		row, err := db.New().KeyPolicies(ctx, tx)
		seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
		p = keyPolicies{seconds(row.KeyAge), seconds(row.KekGeneration), seconds(row.KeyBackup), row.Now}
		return err
	})
	return p, err
}

// Maintenance is what one look after a tenant's keys did.
type Maintenance struct {
	// Begun and Retired are the versions of the key-encryption key that were made and
	// retired; Destroyed are those that the provider has forgotten.
	Begun     int   `json:"begun,omitempty"`
	Retired   int   `json:"retired,omitempty"`
	Destroyed []int `json:"destroyed,omitempty"`
	Rewrapped int64 `json:"rewrapped,omitempty"`
	DataRotation
}

// Maintain does what a tenant's policies ask for: begins a rotation of the
// key-encryption key when its generation (policy kek_generation) is over, ends one that
// has lasted for handover, so that applications have had that time to take up the new
// key, has the provider forget those that were retired for as long as backups of wrapped
// keys are kept (key_backup), rotates data keys and the index key that are older than
// the policy key_age, and destroys those whose last value has expired.
func (k Keyring) Maintain(ctx context.Context, tenant string, handover time.Duration) (done Maintenance, err error) {
	list, err := k.List(ctx, tenant)
	if err != nil {
		return done, err
	}
	valid := validKEKs(list)
	if len(valid) == 0 {
		return done, nil // nothing is sealed
	}
	policy, err := k.policies(ctx, tenant)
	if err != nil {
		return done, fmt.Errorf("policies for keys: %w", err)
	}

	newest := valid[len(valid)-1]
	age := policy.Now.Sub(newest.CreatedAt)
	if len(valid) > 1 && age >= handover {
		rotation, err := k.Rotate(ctx, tenant, nil)
		done.Retired, done.Rewrapped = rotation.Retired, rotation.Rewrapped
		if err != nil {
			return done, err
		}
	}
	if (len(valid) == 1 || done.Retired > 0) && age >= policy.Generation {
		begun, rewrapped, err := k.begin(ctx, tenant, newest)
		done.Begun = begun
		done.Rewrapped += rewrapped
		if err != nil {
			return done, err
		}
	}

	var failures error
	for _, kek := range list {
		if kek.RetiredAt == nil || kek.DestroyedAt != nil || policy.Now.Sub(*kek.RetiredAt) < policy.Backup {
			continue
		}
		if _, err := k.Destroy(ctx, tenant, kek.Version); err != nil {
			failures = errors.Join(failures, err)
			continue
		}
		done.Destroyed = append(done.Destroyed, kek.Version)
	}

	done.DataRotation, err = k.RotateData(ctx, tenant, policy.Age, nil)
	failures = errors.Join(failures, err)
	done.Expired, err = k.ExpireData(ctx, tenant)
	return done, errors.Join(failures, err)
}

// begin makes the next version of a tenant's key-encryption key and wraps under it what
// the current one wraps. Either opens everything until Rotate retires the old one.
func (k Keyring) begin(ctx context.Context, tenant string, newest KEK) (version int, rewrapped int64, err error) {
	current, err := k.Provider.KEK(ctx, newest.ref(tenant))
	if err != nil {
		return 0, 0, err
	}
	defer current.Wipe()
	version, err = k.register(ctx, tenant, newest.Version+1, current)
	if err != nil {
		return 0, 0, err
	}
	kek, err := k.Current(ctx, tenant)
	if err != nil {
		return version, 0, err
	}
	defer kek.Wipe()
	var done Rotation
	rewrapped, err = k.rewrap(ctx, tenant, kek, &done, func() {})
	return version, rewrapped, err
}
