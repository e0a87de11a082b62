package jobs

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/cmd/devstack/stack/stacktest"
	"pgcustody/db"
	"pgcustody/jobs/keys"
	"pgcustody/jobs/keys/keystest"
)

// begins counts transactions.
type begins struct {
	Beginner
	n atomic.Int64
}

func (b *begins) BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error) {
	b.n.Add(1)
	return b.Beginner.BeginTx(ctx, options)
}

// keyVersion is the version that an unlocker unlocks with, 0 where it leaves locked.
func (b *bench) keyVersion(u *Unlocker) (version int) {
	b.Helper()
	require.NoError(b, u.InContext(b.Context(), b.app, Scope{Tenant: tenant, Actor: "clerk"}, func(tx pgx.Tx) error {
		return tx.QueryRow(b.Context(), "select coalesce(nullif(current_setting('custody.kek_version', true), ''), '0')::int").Scan(&version)
	}))
	return version
}

func TestUnlocker(t *testing.T) {
	b := newLockedBench(t)
	ctx := t.Context()
	provider, _ := stacktest.KeyProvider(t)
	counted := &begins{Beginner: b.deps.Pool}
	ring := Keyring{Pool: b.deps.Pool, Provider: provider, Actor: "runner"}
	u := &Unlocker{Ring: Keyring{Pool: counted, Provider: provider, Actor: "runner"}}

	require.Zero(t, b.keyVersion(nil), "no provider")
	require.Zero(t, b.keyVersion(u), "no key")
	require.NoError(t, u.Check(ctx))
	_, err := ring.Create(ctx, tenant)
	require.NoError(t, err)
	require.Equal(t, 1, b.keyVersion(u), "that there was none is not remembered")
	counted.n.Store(0)
	for range 3 {
		require.Equal(t, 1, b.keyVersion(u))
	}
	require.Zero(t, counted.n.Load(), "the version is")

	// Rotated, the old key there still: the database says that it is the wrong one.
	_, err = ring.Rotate(ctx, tenant, nil)
	require.NoError(t, err)
	require.Equal(t, 2, b.keyVersion(u))
	require.EqualValues(t, 1, counted.n.Load())
	// Rotated and destroyed: the provider says so.
	_, err = ring.Rotate(ctx, tenant, nil)
	require.NoError(t, err)
	_, err = ring.Destroy(ctx, tenant, 2)
	require.NoError(t, err)
	require.NoError(t, u.Check(ctx))
	require.Equal(t, 3, b.keyVersion(u))

	short := &Unlocker{Ring: u.Ring, Keep: time.Nanosecond}
	counted.n.Store(0)
	for range 3 {
		require.Equal(t, 3, b.keyVersion(short))
	}
	require.EqualValues(t, 3, counted.n.Load())

	// Retired under the hands of a transaction: the work is done again, once.
	tries := 0
	err = u.With(ctx, tenant, func([]byte) error {
		if tries++; tries == 1 {
			_, err := ring.Rotate(ctx, tenant, nil)
			require.NoError(t, err)
		}
		return InContext(ctx, b.app, Scope{Tenant: tenant, Actor: "clerk", KEK: make([]byte, 64)}, func(pgx.Tx) error { return nil })
	})
	require.ErrorIs(t, db.FromPg(err), db.ErrWrongKey)
	require.Equal(t, 2, tries)
	// And where nothing is newer, it is not.
	tries = 0
	err = u.With(ctx, tenant, func([]byte) error {
		tries++
		return InContext(ctx, b.app, Scope{Tenant: tenant, Actor: "clerk", KEK: make([]byte, 64)}, func(pgx.Tx) error { return nil })
	})
	require.ErrorIs(t, db.FromPg(err), db.ErrWrongKey)
	require.Equal(t, 1, tries)

	// The key ends with the work.
	var kept []byte
	require.NoError(t, u.With(ctx, tenant, func(kek []byte) error {
		kept = kek
		require.Len(t, kek, 64)
		return nil
	}))
	require.Equal(t, make([]byte, 64), kept)

	other, _ := stacktest.KeyProvider(t)
	require.ErrorIs(t, b.unlocker(other).Check(ctx), keys.ErrUnknown)
	require.ErrorContains(t, b.unlocker(other).Check(ctx), "tenant acme")
}

// settingKMS is held while the settings of AWS's SDK are those of one test.
var settingKMS sync.Mutex

// useKMS gives the tenant a key that a KMS of the test's own encrypts. The jobs begin
// without having got it.
func (b *bench) useKMS() *keystest.KMS {
	b.Helper()
	kms, env := keystest.StartKMS(b.T)
	parse := func() keys.Provider {
		settingKMS.Lock()
		defer settingKMS.Unlock()
		const endpoint = "AWS_ENDPOINT_URL_KMS" // newStore has set the others
		require.NoError(b, os.Setenv(endpoint, env[endpoint]))
		defer os.Unsetenv(endpoint)
		provider, err := keys.Parse(b.Context(), "awskms:alias/test", false)
		require.NoError(b, err)
		return provider
	}
	b.unlock = b.unlocker(parse())
	_, err := b.unlock.Ring.Create(b.Context(), tenant)
	require.NoError(b, err)
	b.deps.Unlock = b.unlocker(parse())
	return kms
}

// refusals are what a KMS may answer that does not give keys, and what the jobs say.
var refusals = map[string]struct {
	fault keystest.Fault
	said  string
}{
	"down":    {keystest.Fault{Drop: true}, "get key: key provider cannot be reached"},
	"failing": {keystest.Fault{Status: 500, Code: "KMSInternalException"}, "get key: key provider cannot be reached"},
	"refuses": {keystest.Fault{Status: 400, Code: "AccessDeniedException"}, "get key: key provider refused"},
}

// An erasure waits for the key, and is carried out once the provider gives it.
func TestEraseWaitsForTheKey(t *testing.T) {
	t.Parallel()
	for name, refusal := range refusals {
		t.Run(name, func(t *testing.T) {
			b := newLockedBench(t)
			kms := b.useKMS()
			b.person("alice-4711")
			erasure := b.request("erasure", "alice-4711")
			kms.Always(refusal.fault)

			client := b.client(b.deps, Schedule{})
			require.NoError(t, client.Queues().Remove(t.Context(), QueueNotices))
			events, unsubscribe := client.Subscribe(river.EventKindJobFailed, river.EventKindJobCompleted)
			defer unsubscribe()
			inserted, err := client.Insert(t.Context(), EraseArgs{Tenant: tenant, RequestID: erasure}, nil)
			require.NoError(t, err)
			b.start(client)
			event := b.await(events, inserted.Job.ID)
			require.Equal(t, river.EventKindJobFailed, event.Kind)
			require.Contains(t, []rivertype.JobState{rivertype.JobStateRetryable, rivertype.JobStateAvailable}, event.Job.State, "it comes again")
			require.Equal(t, refusal.said, event.Job.Errors[0].Error)
			require.Equal(t, refusal.said, *b.lastRun(tenant, "erase").Error)
			require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.user_profiles"))
			require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.requests where status = 'received'"))

			kms.Heal()
			require.Equal(t, river.EventKindJobCompleted, b.await(events, inserted.Job.ID).Kind)
			require.Zero(t, b.number(tenant, "select count(*) from custody_data.user_profiles"))
			b.silent("alice-4711")
		})
	}
}

// Attempts end with an error that says why; whatever needs no key goes on meanwhile.
func TestProviderIsDown(t *testing.T) {
	b := newLockedBench(t)
	kms := b.useKMS()
	for _, user := range []string{"alice", "bob", "carol"} {
		b.person(user)
	}
	b.oldConversations("bob", 2)
	carriedOut, waiting, export := b.request("erasure", "alice"), b.request("erasure", "bob"), b.request("export", "carol")
	b.exec("select 1") // the test has the key, the jobs do not
	b.context(b.deps.Pool, tenant, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.search_residue($1)", carriedOut)
		return err
	})
	b.context(b.deps.Pool, tenant, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.erase_subject($1)", carriedOut)
		return err
	})
	kms.Always(keystest.Fault{Status: 400, Code: "AccessDeniedException"})

	for _, args := range []river.JobArgs{RetentionArgs{Tenant: tenant}, PartitionsArgs{}, EraseArgs{Tenant: tenant, RequestID: carriedOut}} {
		require.Equal(t, river.EventKindJobCompleted, b.work(args).Kind, args.Kind())
	}
	require.EqualValues(t, 2, b.count(b.lastRun(tenant, "retention"), "conversations"))
	stored, _ := b.get(CertificateKey(tenant, carriedOut))
	require.NotEmpty(t, stored)
	asked := kms.Count("Decrypt")

	client := b.client(b.deps, Schedule{})
	events, unsubscribe := client.Subscribe(river.EventKindJobFailed)
	defer unsubscribe()
	require.NoError(t, client.Start(context.WithoutCancel(t.Context())))
	for _, args := range []river.JobArgs{EraseArgs{Tenant: tenant, RequestID: waiting}, ExportArgs{Tenant: tenant, RequestID: export}} {
		inserted, err := client.Insert(t.Context(), args, &river.InsertOpts{MaxAttempts: 1, Queue: QueueSubjects})
		require.NoError(t, err)
		event := b.await(events, inserted.Job.ID)
		require.Equal(t, rivertype.JobStateDiscarded, event.Job.State, args.Kind())
		require.Equal(t, "get key: key provider refused", event.Job.Errors[0].Error)
	}
	require.NoError(t, client.StopAndCancel(context.Background())) // so that it takes no job of what follows
	require.Equal(t, asked+2, kms.Count("Decrypt"), "and nobody else has asked")
	require.ErrorIs(t, b.deps.Unlock.Check(t.Context()), keys.ErrRefused)

	// An operator may have it carried out without.
	b.deps.Unlock = nil
	require.Equal(t, river.EventKindJobCompleted, b.work(EraseArgs{Tenant: tenant, RequestID: waiting}).Kind)
	b.deps.Unlock = b.unlock
	require.Equal(t, river.EventKindJobCompleted, b.work(ExportArgs{Tenant: tenant, RequestID: export}).Kind)
}

// lockedBuffer takes what several goroutines log.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

// What jobs leave behind with a key in their hands: no key, in no spelling.
func TestJobsKeepNoKey(t *testing.T) {
	b := newLockedBench(t)
	kms := b.useKMS()
	var log lockedBuffer
	b.deps.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, user := range []string{"alice", "bob"} {
		b.person(user)
	}
	erasure, export := b.request("erasure", "alice"), b.request("export", "bob")
	kms.Say(5, keystest.Fault{Status: 500, Body: "no key"}) // an attempt that fails, too
	require.Equal(t, river.EventKindJobFailed, b.work(ExportArgs{Tenant: tenant, RequestID: uuid.New()}).Kind)
	require.Equal(t, river.EventKindJobCompleted, b.work(EraseArgs{Tenant: tenant, RequestID: erasure}).Kind)
	require.Equal(t, river.EventKindJobCompleted, b.work(ExportArgs{Tenant: tenant, RequestID: export}).Kind)

	var left string
	require.NoError(t, b.database.Conn(t, stack.Superuser).QueryRow(t.Context(), `select (select string_agg(j::text, ' ') from river.river_job j)
		|| (select string_agg(r::text, ' ') from custody_data.job_runs r) || (select string_agg(a::text, ' ') from custody_data.audit_logs a)`).Scan(&left))
	document, _ := b.get(ExportKey(tenant, export))
	certificate, _ := b.get(CertificateKey(tenant, erasure))
	require.Contains(t, log.String(), "job run")
	for _, key := range kms.Secrets() {
		for _, text := range []string{left, log.String(), string(document), string(certificate), fmt.Sprintf("%v %+v %#v", b.deps, b.deps, b.deps.Unlock)} {
			keystest.RequireSilent(t, text, key)
		}
	}
}
