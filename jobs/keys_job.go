package jobs

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/riverqueue/river"
)

// KeysArgs asks for one look after the keys of tenants: what their policies for keys
// ask for is done.
type KeysArgs struct {
	// Tenant narrows the run; "" means all.
	Tenant string `json:"tenant,omitempty"`
}

func (KeysArgs) Kind() string { return "keys" }

func (KeysArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueMaintenance, MaxAttempts: 3, UniqueOpts: once()}
}

// KeysConfig says how keys are looked after.
type KeysConfig struct {
	// Handover is how long applications have to take up a new key-encryption key before
	// the old one is retired; default 1 hour. An [Unlocker] takes it up in minutes.
	Handover time.Duration
	// Timeout is how long a run may take; what is left, the next run takes. Default
	// 50 minutes.
	Timeout time.Duration
}

func (c KeysConfig) withDefaults() KeysConfig {
	c.Handover = cmp.Or(c.Handover, time.Hour)
	c.Timeout = cmp.Or(c.Timeout, 50*time.Minute)
	return c
}

// KeysWorker rotates, destroys and expires keys as the policies key_age,
// kek_generation and key_backup of each tenant say, and tells which are overdue.
type KeysWorker struct {
	river.WorkerDefaults[KeysArgs]
	Deps
}

// keysGrace is what a run may take beyond its own limit to close its record.
const keysGrace = time.Minute

func (w *KeysWorker) Timeout(*river.Job[KeysArgs]) time.Duration {
	return w.Config.Keys.withDefaults().Timeout + keysGrace
}

func (w *KeysWorker) Work(ctx context.Context, job *river.Job[KeysArgs]) error {
	config := w.Config.Keys.withDefaults()
	if w.Unlock == nil {
		return river.JobCancel(fail(stepGetKey, errNoProvider))
	}
	return record(ctx, w.Deps, job, cmp.Or(job.Args.Tenant, SystemTenant), func(ctx context.Context, run *Run) error {
		ctx, cancel := context.WithTimeout(ctx, config.Timeout)
		defer cancel()
		tenants, err := w.tenants(ctx, job.Args.Tenant)
		if err != nil {
			return fail("list tenants", err)
		}
		// One tenant's provider that is away does not keep the others' keys from being looked after.
		var failures error
		for _, tenant := range tenants {
			done, err := w.Unlock.Ring.Maintain(ctx, tenant, config.Handover)
			failures = errors.Join(failures, fail("look after keys", err))
			run.Count("key_encryption_keys_made", boolCount(done.Begun > 0))
			run.Count("key_encryption_keys_retired", boolCount(done.Retired > 0))
			run.Count("key_encryption_keys_destroyed", int64(len(done.Destroyed)))
			run.Count("data_keys_rewrapped", done.Rewrapped)
			run.Count("data_keys_rotated", done.Identities)
			run.Count("values_resealed", done.Values)
			run.Count("profiles_indexed", done.Profiles)
			run.Count("data_keys_expired", done.Expired)
			failures = errors.Join(failures, fail("list ages of keys", w.tell(ctx, tenant)))
			if ctx.Err() != nil {
				break
			}
		}
		return failures
	})
}

// tell reports the ages of a tenant's keys, and warns of those that are overdue.
func (w *KeysWorker) tell(ctx context.Context, tenant string) error {
	ages, err := w.Unlock.Ring.Ages(ctx, tenant)
	if err != nil {
		return err
	}
	for _, age := range ages {
		w.Metrics.keyAge(tenant, age)
		if age.Overdue > 0 {
			w.Log.Warn("keys are older than the policy key_age", "tenant", tenant, "kind", age.Kind, "keys", age.Overdue)
		}
	}
	return nil
}

var errNoProvider = errors.New("no key provider is configured")

func boolCount(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
