package cli

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"pgcustody/db"
	"pgcustody/jobs"
	"pgcustody/jobs/agekeys"
	"pgcustody/jobs/ledger"
	"pgcustody/jobs/store"
	"pgcustody/jobs/verify"
)

// soakTime is how long TestSoak goes on: PGCUSTODY_SOAK, as in 10m.
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	value := os.Getenv("PGCUSTODY_SOAK")
	if value == "" {
		return 8 * time.Second
	}
	d, err := time.ParseDuration(value)
	require.NoError(t, err)
	return d
}

// TestSoak has writers do whatever transactions can do, erasures and retention among
// it, while the daemon that seals and anchors is killed again and again, and verifies
// all the while: there is nothing to be found, at no time, and in the end every
// committed event has its leaf.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("soaks")
	}
	env := environment(t)
	env["PGCUSTODY_SIGNER"] = filepath.Join(t.TempDir(), "signer")
	env["PGCUSTODY_ORIGIN"] = "example.com/soak"
	for name, value := range env {
		if strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, value)
		}
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("pgcustody", args...)
		for name, value := range env {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
		return string(out)
	}
	run("signer", "init")
	run("tenants", "register", "acme", "--name", "Acme")

	ctx, stop := context.WithTimeout(t.Context(), soakTime(t))
	defer stop()
	var background sync.WaitGroup
	defer background.Wait()

	var done [len(soakKinds)]atomic.Int64
	const writers = 64
	for n := range writers {
		background.Go(func() {
			w := &soakWriter{T: t, env: env, n: n}
			defer w.close()
			// Each kind is somebody's first.
			for kind := n % len(soakKinds); ctx.Err() == nil; kind = rand.IntN(len(soakKinds)) {
				if err := w.write(ctx, kind); err == nil {
					done[kind].Add(1)
				} else if ctx.Err() == nil {
					t.Errorf("%s: %v", soakKinds[kind], err)
					return
				}
			}
		})
	}
	// What a daemon does, in processes that rarely live to the end of it.
	var kills atomic.Int64
	killed := func(args ...string) {
		cmd := exec.Command("pgcustody", args...)
		for name, value := range env {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		if err := cmd.Start(); err != nil {
			t.Errorf("%v: %v", args, err)
			return
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = cmd.Wait()
		}()
		select {
		case <-ended:
		case <-time.After(time.Duration(rand.IntN(2000)) * time.Millisecond):
			_ = cmd.Process.Kill()
			kills.Add(1)
			<-ended
		}
	}
	for _, args := range [][]string{{"run", "seal"}, {"run", "seal"}, {"anchor"}} {
		background.Go(func() {
			for ctx.Err() == nil {
				killed(args...)
			}
		})
	}
	background.Go(func() {
		for ctx.Err() == nil {
			d := startWork(t, env, "--seal-every", "100ms", "--anchor-every", "1s", "--retention-every", "1s")
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(1+rand.IntN(30)) * time.Second):
			}
			_ = d.cmd.Process.Kill()
			_ = d.cmd.Wait()
			kills.Add(1)
		}
	})

	keys, err := os.ReadFile(filepath.Join(env["PGCUSTODY_SIGNER"], "vkeys"))
	require.NoError(t, err)
	key, err := ledger.ParseVerifierKey(strings.SplitN(string(keys), "\n", 2)[0])
	require.NoError(t, err)
	opened, err := store.OpenURL(t.Context(), env["PGCUSTODY_STORE"])
	require.NoError(t, err)
	pool, err := pgxpool.New(t.Context(), env["URL_custody_super"])
	require.NoError(t, err)
	defer pool.Close()
	identities, err := agekeys.ReadIdentities("archive", env["DEVSTACK_ARCHIVE_IDENTITY"])
	require.NoError(t, err)
	looks := 0
	look := func() *verify.Report {
		report, err := verify.Run(t.Context(), verify.Options{Database: pool, Store: opened, Origin: env["PGCUSTODY_ORIGIN"], Keys: []ledger.VerifierKey{key}, Identities: identities})
		require.NoError(t, err)
		require.Empty(t, report.Findings)
		looks++
		return report
	}
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
			var anchored bool
			require.NoError(t, pool.QueryRow(t.Context(), "select exists (select from custody_data.ledger_checkpoints)").Scan(&anchored))
			if anchored {
				look()
			}
		}
	}
	background.Wait()

	// The last is not killed.
	d := startWork(t, env, "--seal-every", "100ms", "--anchor-every", "1s")
	require.Eventually(t, func() bool {
		var left int64
		require.NoError(t, jobs.InContext(t.Context(), pool, jobs.Scope{Tenant: jobs.SystemTenant, Actor: "soak", Purpose: "test"}, func(tx pgx.Tx) error {
			return tx.QueryRow(t.Context(), "select unsealed_events from custody.sealing_status()").Scan(&left)
		}))
		return left == 0
	}, time.Minute, 200*time.Millisecond)
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	require.Zero(t, d.end())
	run("anchor")
	report := look()
	var events int64
	require.NoError(t, pool.QueryRow(t.Context(), "select count(*) from custody_data.audit_logs").Scan(&events))
	require.Equal(t, events, report.Leaves+report.Unsealed)
	for kind := range soakKinds {
		require.Positive(t, done[kind].Load(), soakKinds[kind])
	}
	t.Logf("%d events, %d kills, %d looks, checkpoint %d", events, kills.Load(), looks, report.Checkpoint)
}

var soakKinds = [...]string{"plain", "rolled back", "savepoint", "subtransaction", "prepared", "long", "erasure", "retention"}

// soakWriter writes on connections of its own.
type soakWriter struct {
	*testing.T
	env  map[string]string
	n    int
	turn int
	app  *pgx.Conn
	dpo  *pgx.Conn
}

func (w *soakWriter) close() {
	for _, conn := range []*pgx.Conn{w.app, w.dpo} {
		if conn != nil {
			_ = conn.Close(context.Background())
		}
	}
}

func (w *soakWriter) write(ctx context.Context, kind int) (err error) {
	w.turn++
	if w.app == nil {
		if w.app, err = pgx.Connect(ctx, w.env["URL_custody_app"]); err != nil {
			return err
		}
	}
	person := fmt.Sprintf("person-%d-%d", w.n, w.turn)
	event := func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "select custody.record_audit_event('phi.access', p_resource_type => 'health_record', p_resource_id => $1, p_subject_user_id => $2)", "r-"+person, person)
		return err
	}
	scope := jobs.Scope{Tenant: "acme", Actor: "soak", Purpose: "test"}
	errUndone := errors.New("undone")
	switch soakKinds[kind] {
	case "plain":
		return jobs.InContext(ctx, w.app, scope, event)
	case "rolled back":
		err := jobs.InContext(ctx, w.app, scope, func(tx pgx.Tx) error { return errors.Join(event(tx), errUndone) })
		if errors.Is(err, errUndone) && ctx.Err() == nil {
			return nil
		}
		return err
	case "savepoint":
		return jobs.InContext(ctx, w.app, scope, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "savepoint a")
			err = errors.Join(err, event(tx))
			_, err2 := tx.Exec(ctx, "rollback to a")
			return errors.Join(err, err2, event(tx))
		})
	case "subtransaction":
		return jobs.InContext(ctx, w.app, scope, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `do $$ begin
				begin perform custody.record_audit_event('account.login'); raise exception 'undone'; exception when raise_exception then null; end;
				begin perform custody.record_audit_event('account.logout'); exception when raise_exception then null; end;
			end $$`)
			return err
		})
	case "prepared":
		return w.prepared(ctx, scope, event)
	case "long":
		if rand.IntN(20) > 0 {
			return jobs.InContext(ctx, w.app, scope, event)
		}
		return jobs.InContext(ctx, w.app, scope, func(tx pgx.Tx) error {
			err := event(tx)
			time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
			return err
		})
	default:
		if w.dpo == nil {
			if w.dpo, err = pgx.Connect(ctx, w.env["URL_custody_dpo"]); err != nil {
				return err
			}
		}
		if soakKinds[kind] == "retention" {
			return jobs.InContext(ctx, w.dpo, scope, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "select custody.enforce_retention('entry_ids', 10)")
				return err
			})
		}
		var request string
		err = jobs.InContext(ctx, w.dpo, scope, func(tx pgx.Tx) error {
			if err := event(tx); err != nil {
				return err
			}
			return tx.QueryRow(ctx, "select custody.request_erasure($1, 'asked for')::text", person).Scan(&request)
		})
		if err != nil {
			return err
		}
		return jobs.InContext(ctx, w.dpo, scope, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "select custody.erase_subject($1)", request)
			return err
		})
	}
}

// prepared commits, or rolls back, in two phases, with time between them.
func (w *soakWriter) prepared(ctx context.Context, scope jobs.Scope, event func(pgx.Tx) error) error {
	tx, err := w.app.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := db.New().SetContext(ctx, tx, db.SetContextParams{Tenant: scope.Tenant, Actor: scope.Actor, Purpose: &scope.Purpose}); err != nil {
		return err
	}
	if err := event(tx); err != nil {
		return err
	}
	name := fmt.Sprintf("soak-%d-%d", w.n, w.turn)
	// From here on it ends, whatever ends the test.
	ctx = context.WithoutCancel(ctx)
	if _, err := w.app.Exec(ctx, "prepare transaction '"+name+"'"); err != nil {
		return err
	}
	time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
	_, err = w.app.Exec(ctx, []string{"commit", "rollback"}[rand.IntN(2)]+" prepared '"+name+"'")
	return err
}
