package jobs

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/jobs/keys"
)

// fill writes a profile, preferences and a conversation about some people.
func (b *bench) fill(people int) {
	b.Helper()
	require.NoError(b, b.unlock.InContext(b.Context(), b.app, Scope{Tenant: tenant, Actor: "clerk"}, func(tx pgx.Tx) error {
		_, err := tx.Exec(b.Context(), `
select custody.put_profile('p' || n, jsonb_build_object('full_name', 'Name ' || n, 'email', 'p' || n || '@example.org', 'phone', '+49 30 ' || 1000000 + n)),
  custody.put_preferences('p' || n, jsonb_build_object('n', n)),
  custody.save_conversation('p' || n, 'c', jsonb_build_array(jsonb_build_object('role', 'user', 'text', 'text ' || n)), 'title ' || n),
  custody.record_consent('p' || n, 'mail', true, '1', p_evidence => jsonb_build_object('form', n))
from generate_series(1, $1) n`, people)
		return err
	}))
}

// requireFilled reads what fill wrote.
func (b *bench) requireFilled(people int) {
	b.Helper()
	require.NoError(b, b.unlock.InContext(b.Context(), b.app, Scope{Tenant: tenant, Actor: "clerk"}, func(tx pgx.Tx) error {
		var right int
		require.NoError(b, tx.QueryRow(b.Context(), `
select count(*) from generate_series(1, $1) n
where custody.get_profile('p' || n) ->> 'full_name' = 'Name ' || n and (custody.get_preferences('p' || n) ->> 'n')::int = n
  and custody.get_conversation('p' || n, 'c') -> 'messages' -> 0 ->> 'text' = 'text ' || n
  and (select f from custody.find_subject('P' || n || '@example.org') f) = 'p' || n
  and (select (c.evidence ->> 'form')::int from custody.current_consents('p' || n) c) = n`, people).Scan(&right))
		require.Equal(b, people, right)
		return nil
	}))
}

// states sums the sealed values of tables that change by their state.
func (b *bench) states(ring Keyring) map[string]int64 {
	b.Helper()
	values, err := ring.Values(b.Context(), tenant)
	require.NoError(b, err)
	states := map[string]int64{}
	for _, v := range values {
		if !v.AppendOnly {
			states[v.State] += v.Values
		}
	}
	return states
}

// Data keys and the index key are rotated while applications write, a rotation that was
// interrupted is gone on with, and nothing is lost or left behind.
func TestRotateData(t *testing.T) {
	b := newBench(t)
	const people = 60
	b.fill(people)
	ring := b.unlock.Ring
	ring.Batch = 3
	done, err := ring.RotateData(t.Context(), tenant, time.Hour, nil)
	require.NoError(t, err)
	require.Zero(t, done, "no key is that old")

	stopped, stop := context.WithCancel(t.Context())
	_, err = ring.RotateData(stopped, tenant, 0, func(int64) { stop() })
	require.ErrorIs(t, err, context.Canceled)
	b.requireFilled(people)

	// Applications write and erase meanwhile.
	var wg sync.WaitGroup
	var written atomic.Int64
	writing, end := context.WithCancel(t.Context())
	defer end()
	for w := range 3 {
		wg.Go(func() {
			for i := 0; writing.Err() == nil; i++ {
				n := i%people + 1
				err := b.unlock.InContext(t.Context(), b.app, Scope{Tenant: tenant, Actor: "clerk"}, func(tx pgx.Tx) error {
					_, err := tx.Exec(t.Context(), `select custody.patch_profile($1, jsonb_build_object('city', $2::text)), custody.append_message($1, 'c', '{"role": "user", "text": "more"}'),
						custody.save_conversation($1, $2, '[{"role": "user", "text": "x"}]')`, fmt.Sprint("p", n), fmt.Sprint("w", w, "-", i))
					return err
				})
				if err != nil {
					t.Errorf("write meanwhile: %v", err)
					return
				}
				written.Add(1)
			}
		})
	}
	done, err = ring.RotateData(t.Context(), tenant, 0, nil)
	end()
	wg.Wait()
	require.NoError(t, err)
	require.Positive(t, written.Load())
	require.EqualValues(t, people, done.Identities)
	require.EqualValues(t, people, done.Profiles)
	require.Equal(t, 2, done.IndexVersion)
	b.requireFilled(people)
	require.Zero(t, b.states(ring)["older"], "what was written meanwhile is under the new keys too")
	require.EqualValues(t, 1, b.number(tenant, `select count(*) from custody_data.audit_logs where action = 'key.rotate' and metadata ->> 'keys_destroyed' = '[1]'`), "the old index key is gone")
}

// since moves what is known of the tenant's keys into the past, which only a superuser
// can, and leaves the guard as it was.
func (b *bench) since(age time.Duration) {
	b.Helper()
	super := b.database.Conn(b.T, stack.Superuser)
	for _, table := range []string{"key_encryption_keys", "data_keys"} {
		columns := "created_at = created_at - $1::interval"
		if table == "key_encryption_keys" {
			columns += ", retired_at = retired_at - $1::interval"
		}
		require.NoError(b, pgx.BeginFunc(b.Context(), super, func(tx pgx.Tx) error {
			_, err := tx.Exec(b.Context(), "alter table custody_keys."+table+" disable trigger a_reject_key_change")
			require.NoError(b, err)
			_, err = tx.Exec(b.Context(), "update custody_keys."+table+" set "+columns+" where destroyed_at is null", age)
			require.NoError(b, err)
			_, err = tx.Exec(b.Context(), "alter table custody_keys."+table+" enable always trigger a_reject_key_change")
			return err
		}))
	}
}

// The job does what the policies ask for, each in its time: a generation of the
// key-encryption key, the handover, the end of the old one, and rotation by age.
func TestKeysJob(t *testing.T) {
	b := newBench(t)
	const people = 5
	b.fill(people)
	ring := b.unlock.Ring
	look := func() {
		t.Helper()
		b.unlock = b.unlocker(ring.Provider) // which remembers no version
		require.Equal(t, river.EventKindJobCompleted, b.work(KeysArgs{}).Kind)
		b.requireFilled(people)
	}
	versions := func() (valid, destroyed []int) {
		t.Helper()
		list, err := ring.List(t.Context(), tenant)
		require.NoError(t, err)
		for _, k := range list {
			switch {
			case k.RetiredAt == nil:
				valid = append(valid, k.Version)
			case k.DestroyedAt != nil:
				destroyed = append(destroyed, k.Version)
			}
		}
		return valid, destroyed
	}
	requireVersions := func(valid, destroyed []int) {
		t.Helper()
		v, d := versions()
		require.Equal(t, valid, v)
		require.Equal(t, destroyed, d)
	}
	const day = 24 * time.Hour

	look()
	requireVersions([]int{1}, nil)
	b.since(8 * day)
	look()
	requireVersions([]int{1, 2}, nil) // either opens
	look()
	requireVersions([]int{1, 2}, nil)
	b.since(2 * time.Hour)
	look()
	requireVersions([]int{2}, nil)
	first, err := ring.List(t.Context(), tenant)
	require.NoError(t, err)
	_, err = ring.Provider.KEK(t.Context(), first[0].ref(tenant))
	require.NoError(t, err, "a backup of keys may still need it")
	b.since(8 * day) // the second's generation is over as well
	look()
	requireVersions([]int{2, 3}, []int{1})
	_, err = ring.Provider.KEK(t.Context(), first[0].ref(tenant))
	require.ErrorIs(t, err, keys.ErrDestroyed)
	require.EqualValues(t, 1, b.number(tenant, `select count(*) from custody_data.audit_logs where action = 'key.destroy'`))

	// A year on every data key is overdue.
	b.since(366 * day)
	ages, err := ring.Ages(t.Context(), tenant)
	require.NoError(t, err)
	require.Len(t, ages, 3)
	for _, age := range ages {
		require.Equal(t, age.Keys, age.Overdue, age.Kind)
	}
	look()
	ages, err = ring.Ages(t.Context(), tenant)
	require.NoError(t, err)
	for _, age := range ages {
		require.Zero(t, age.Overdue, age.Kind)
	}
	run := b.lastRun(SystemTenant, "keys")
	require.EqualValues(t, people, b.count(run, "data_keys_rotated"))
	require.EqualValues(t, people, b.count(run, "profiles_indexed"))
	require.Zero(t, b.states(ring)["older"])

	// Without a provider there is nothing to look after.
	b.deps.Unlock = nil
	require.Equal(t, river.EventKindJobCancelled, b.work(KeysArgs{}).Kind)
}
